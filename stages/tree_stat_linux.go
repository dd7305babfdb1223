package stages

import (
	"io/fs"
	"os"
	"syscall"
)

// statOf is what the file system says of a file.
func statOf(info fs.FileInfo) (fileStat, bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileStat{}, false
	}
	return fileStat{dev: uint64(s.Dev), ino: s.Ino, size: s.Size, mode: s.Mode, mtime: s.Mtim.Nano(), ctime: s.Ctim.Nano()}, true
}

// ours reports whether the file belongs to this process's user.
func ours(info fs.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}

// localFiles reports whether dir is on a file system whose times are this
// machine's: on a network's, the server's clock decides. The numbers are
// https://man7.org/linux/man-pages/man2/statfs.2.html
func localFiles(dir string) bool {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return false
	}
	switch uint32(s.Type) {
	case 0xef53, // ext2, ext3, ext4
		0x58465342, // xfs
		0x9123683e, // btrfs
		0xf2f52010, // f2fs
		0x2fc12fc1, // zfs
		0x794c7630, // overlayfs
		0x01021994: // tmpfs
		return true
	}
	return false
}
