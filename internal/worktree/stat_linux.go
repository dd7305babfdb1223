package worktree

import (
	"io/fs"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// statOf is what the file system says of a file.
func statOf(info fs.FileInfo) (fileStat, bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileStat{}, false
	}
	return fileStat{dev: uint64(s.Dev), ino: s.Ino, size: s.Size, mode: s.Mode, mtime: s.Mtim.Nano(), ctime: s.Ctim.Nano()}, true
}

// regular reports whether it is a file's own content that counts.
func (s fileStat) regular() bool { return s.mode&unix.S_IFMT == unix.S_IFREG }

// look finds out which files are as they were when they were summed. It takes
// a good part of a plan's time, so it asks the kernel itself: [os.Root] would
// take twice as long. What can't be told counts as changed.
func (k Known) look() []bool {
	holds := make([]bool, len(k.sums))
	// The questions don't wait for anything: with a reader on every processor,
	// answers from the network would lie there for milliseconds.
	readers := max(1, runtime.GOMAXPROCS(0)-1)
	_ = inParts(len(k.sums), readers, func(from, to int) error {
		top, err := unix.Open(k.root, openPath, 0)
		if err != nil {
			return err
		}
		l := looker{in: []lookedInto{{"", top}}}
		defer l.leave(0)
		for i := from; i < to; i++ {
			at, ok := l.lstat(k.sums[i].path)
			holds[i] = ok && at == k.sums[i].at
		}
		return nil
	})
	return holds
}

// A folder is only passed through, and never one behind a link.
const openPath = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// looker looks at the files of one folder after the other.
type looker struct {
	in []lookedInto // from the top down to where the last file was
}

type lookedInto struct {
	path string // ends in a slash, but for the top's
	fd   int
}

func (l *looker) lstat(p string) (fileStat, bool) {
	dir := p[:strings.LastIndexByte(p, '/')+1]
	n := len(l.in)
	for !strings.HasPrefix(dir, l.in[n-1].path) {
		n--
	}
	l.leave(n)
	for at := l.in[n-1]; len(at.path) < len(dir); {
		end := len(at.path) + strings.IndexByte(dir[len(at.path):], '/')
		name := dir[len(at.path):end]
		if name == ".." {
			return fileStat{}, false
		}
		fd, err := unix.Openat(at.fd, name, openPath, 0)
		if err != nil {
			return fileStat{}, false
		}
		at = lookedInto{dir[:end+1], fd}
		l.in = append(l.in, at)
	}
	var s unix.Stat_t
	if base := p[len(dir):]; base == "" || base == ".." || unix.Fstatat(l.in[len(l.in)-1].fd, base, &s, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return fileStat{}, false
	}
	return fileStat{dev: uint64(s.Dev), ino: s.Ino, size: s.Size, mode: s.Mode, mtime: s.Mtim.Nano(), ctime: s.Ctim.Nano()}, true
}

// leave closes the folders below the nth.
func (l *looker) leave(n int) {
	for _, f := range l.in[n:] {
		_ = unix.Close(f.fd)
	}
	l.in = l.in[:n]
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
