package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// stagingPlaces are folders of which one exists everywhere. The tmpfs that we
// work on covers it inside the new mount namespace only, and is gone with the
// old root.
var stagingPlaces = []string{"/tmp", "/run", "/var", "/mnt", "/etc"}

// devices are what a program may expect in /dev without asking for hardware.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// links in /dev.
var links = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
}

// Parts of /proc that are the machine's, not the sandbox's. Root without any
// capability may still write most of /proc/sys.
var (
	procReadOnly = []string{"sys", "irq", "bus", "fs"}
	procHidden   = []string{"kcore", "keys", "timer_list", "sysrq-trigger"}
)

// tree is the new root while it is being built.
type tree struct {
	o      *order
	opened map[string]string // the caller's paths, by descriptor
	// Copies of the mounts at o.Root and at each bind's source, or -1: made
	// before the tmpfs covers a place that may lie below them.
	rootCopy   int
	bindCopies []int
	prepared   map[int]string // what was made for binds, by their number
	fd         int            // of the new root
	kept       []int          // descriptors that paths go through, until the root is done
}

// keep returns a path for fd that is good until close.
func (t *tree) keep(fd int) string {
	t.kept = append(t.kept, fd)
	return fdPath(fd)
}

func (t *tree) close() {
	for _, fd := range t.kept {
		unix.Close(fd)
	}
}

// makeRoot builds the root that o describes and moves into it.
func (o *order) makeRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return &stepError{op: "make mounts private", rights: true, err: err}
	}
	// Everything of the caller is opened before the tmpfs may cover it. Paths
	// of descriptors also need no quoting in overlay's options and keep them
	// under the kernel's limit of one page.
	opened := map[string]string{}
	t := tree{o: o, opened: opened}
	defer t.close()
	open := func(p string) error {
		if p == "" || opened[p] != "" {
			return nil
		}
		fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &stepError{op: "open", path: p, err: err}
		}
		opened[p] = t.keep(fd)
		return nil
	}
	want := append([]string{o.Root, o.Upper, o.Work}, o.Lower...)
	for _, b := range o.Binds {
		want = append(append(want, b.Source), b.Lower...)
	}
	for _, d := range devices {
		want = append(want, "/dev/"+d)
	}
	for _, p := range want {
		if err := open(p); err != nil {
			return err
		}
	}
	t.rootCopy = t.copyMounts(o.Root)
	for _, b := range o.Binds {
		t.bindCopies = append(t.bindCopies, t.copyMounts(b.Source))
	}
	staging, err := o.staging()
	if err != nil {
		return err
	}
	if err := t.prepare(staging + "/files"); err != nil {
		return err
	}
	root, err := t.mountRoot(staging)
	if err != nil {
		return err
	}
	if t.fd, err = unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return &stepError{op: "open the new root", err: err}
	}
	t.keep(t.fd)
	if err := t.fill(); err != nil {
		return err
	}
	if err := unix.Fchdir(t.fd); err != nil {
		return &stepError{op: opPivot, err: err}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return &stepError{op: opPivot, rights: true, err: err}
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return &stepError{op: "leave the old root", rights: true, err: err}
	}
	if err := unix.Chdir("/"); err != nil {
		return &stepError{op: "enter the new root", err: err}
	}
	return nil
}

// staging mounts the tmpfs that holds the mount point, the skeleton and, when
// they go to memory, the changes.
func (o *order) staging() (string, error) {
	last := error(unix.ENOENT)
	for _, p := range stagingPlaces {
		last = unix.Mount("tmpfs", p, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, fmt.Sprintf("mode=755,size=%d", o.TmpfsBytes))
		if last == nil {
			for _, d := range []string{"root", "skeleton", "up", "work", "files", "changes", "before"} {
				if err := unix.Mkdir(p+"/"+d, 0o755); err != nil {
					return "", &stepError{op: "make folder", path: p + "/" + d, err: err}
				}
			}
			return p, nil
		}
		if last != unix.ENOENT && last != unix.ENOTDIR {
			break
		}
	}
	return "", &stepError{op: "mount tmpfs", rights: true, err: last}
}

// copyMounts copies what is mounted at and below p, without attaching it
// anywhere yet; -1 when there is nothing to copy or the kernel, before 5.2,
// can't.
func (t *tree) copyMounts(p string) int {
	if p == "" {
		return -1
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, t.opened[p], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1
	}
	t.keep(fd)
	return fd
}

// attach mounts a copy, or else source itself, at dst.
func attach(copied int, source, dst string) error {
	if copied < 0 {
		return unix.Mount(source, dst, "", unix.MS_BIND|unix.MS_REC, "")
	}
	return unix.MoveMount(copied, "", unix.AT_FDCWD, dst, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

// mountRoot mounts what becomes / and returns where.
func (t *tree) mountRoot(staging string) (string, error) {
	o, opened := t.o, t.opened
	root := staging + "/root"
	flags := uintptr(unix.MS_NODEV)
	if !o.KeepCapabilities {
		flags |= unix.MS_NOSUID
	}
	if o.Root != "" {
		if err := attach(t.rootCopy, opened[o.Root], root); err != nil {
			return "", &stepError{op: "bind the root", path: o.Root, rights: true, err: err}
		}
		if err := remountAll(root, flags); err != nil {
			return "", &stepError{op: "protect the root", path: o.Root, rights: true, err: err}
		}
		return root, nil
	}
	if o.Probe { // nothing in it, but a mount: only such a one can become /
		if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
			return "", &stepError{op: "bind the root", path: root, rights: true, err: err}
		}
		return root, nil
	}
	skeleton := staging + "/skeleton"
	if err := o.fillSkeleton(skeleton, opened, t.prepared); err != nil {
		return "", err
	}
	up, work := staging+"/up", staging+"/work"
	if o.Upper != "" {
		up, work = opened[o.Upper], opened[o.Work]
		if err := unix.Chmod(up, 0o755); err != nil {
			return "", &stepError{op: "set the mode of", path: o.Upper, err: err}
		}
	}
	var lower []string
	for _, l := range o.Lower {
		lower = append(lower, opened[l])
	}
	options := "lowerdir=" + strings.Join(append(lower, skeleton), ":") + ",upperdir=" + up + ",workdir=" + work
	if o.Mode == UserNS {
		options += ",userxattr"
	} else {
		// The changes shall be plain files: no names or contents that are
		// found in the lower folders only.
		options += ",redirect_dir=off,metacopy=off"
	}
	// Nobody needs the changes after a crash: volatile saves flushing them.
	// Linux before 5.10 doesn't know it.
	err := unix.Mount("overlay", root, "overlay", flags, options+",volatile")
	if err == unix.EINVAL {
		err = unix.Mount("overlay", root, "overlay", flags, options)
	}
	if err != nil {
		return "", &stepError{op: opOverlay, err: err}
	}
	if o.Changes {
		err = t.views(staging, up, lower)
	}
	return root, err
}

// views opens the changes and what is below them, both read-only, where the
// descriptors of the command don't overwrite them. Their mounts go with the
// old root: only the descriptors hold them.
func (t *tree) views(staging, up string, lower []string) error {
	changes, before := staging+"/changes", staging+"/before"
	err := unix.Mount(up, changes, "", unix.MS_BIND, "")
	if err == nil {
		err = remount(changes, safe|unix.MS_RDONLY)
	}
	if err != nil {
		return &stepError{op: "show the changes", rights: true, err: err}
	}
	if err := t.stack(before, lower); err != nil {
		return &stepError{op: opOverlay, path: "what is below the changes", err: err}
	}
	for _, p := range []string{changes, before} {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &stepError{op: "open", path: p, err: err}
		}
		high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, extraFD+t.o.Extra+2)
		unix.Close(fd)
		if err != nil {
			return &stepError{op: "open", path: p, err: err}
		}
		t.o.views = append(t.o.views, high)
	}
	return nil
}

// stack mounts folders over each other at dst, read-only. Overlay wants two of
// them when nothing can be written.
func (t *tree) stack(dst string, lower []string) error {
	if len(lower) == 1 {
		if err := unix.Mount(lower[0], dst, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return remount(dst, safe|unix.MS_RDONLY)
	}
	options := "lowerdir=" + strings.Join(lower, ":")
	if t.o.Mode == UserNS {
		options += ",userxattr"
	}
	return unix.Mount("overlay", dst, "overlay", safe|unix.MS_RDONLY, options)
}

// fillSkeleton makes the mount points in the lowest layer, so that they never
// count as a change.
func (o *order) fillSkeleton(dir string, opened map[string]string, prepared map[int]string) error {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return &stepError{op: "make mount points", err: err}
	}
	defer r.Close()
	for _, d := range []string{"proc", "dev", "tmp"} {
		err = errors.Join(err, r.Mkdir(d, 0o755))
	}
	err = errors.Join(err, r.Chmod("tmp", 0o777|os.ModeSticky))
	for i, b := range o.Binds {
		rel := strings.TrimPrefix(path.Clean(b.Target), "/")
		dir, source := true, prepared[i]
		if source == "" {
			source = opened[b.Source]
		}
		if source != "" {
			st, statErr := os.Stat(source)
			if statErr != nil {
				return &stepError{op: "bind", path: b.Source, err: statErr}
			}
			dir = st.IsDir()
		}
		if dir {
			err = errors.Join(err, r.MkdirAll(rel, 0o755))
			continue
		}
		err = errors.Join(err, r.MkdirAll(path.Dir(rel), 0o755))
		if f, openErr := r.OpenFile(rel, os.O_CREATE, 0o644); openErr == nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return &stepError{op: "make mount points", err: err}
	}
	return nil
}

// fill mounts /proc, /dev and the binds into the new root.
func (t *tree) fill() error {
	proc, err := t.point("/proc", true)
	if err != nil {
		return err
	}
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return &stepError{op: opProc, rights: true, err: err}
	}
	if err := t.hideMachine(t.opened["/dev/null"]); err != nil {
		return err
	}
	if err := t.fillDev(); err != nil {
		return err
	}
	if fd, err := t.open("/tmp"); err == nil {
		unix.Close(fd)
	} else {
		tmp, err := t.point("/tmp", true)
		if err == nil {
			err = unix.Chmod(tmp, 0o1777)
		}
		if err != nil {
			return &stepError{op: "make", path: "/tmp", err: err}
		}
	}
	for i, b := range t.o.Binds {
		source := t.opened[b.Source]
		if p := t.prepared[i]; p != "" {
			b, source = Bind{Source: b.Target, Target: b.Target, ReadOnly: true}, p
		}
		if err := t.bind(b, source, t.bindCopies[i]); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes what binds show that nobody has made yet, in dir, which is in
// memory: files of their own, and parts of several folders.
func (t *tree) prepare(dir string) error {
	t.prepared = map[int]string{}
	for i, b := range t.o.Binds {
		p := fmt.Sprintf("%s/%d", dir, i)
		if b.Part != "" {
			fd, err := t.part(b, p)
			if err != nil {
				return err
			}
			t.prepared[i] = t.keep(fd)
		}
		if b.File == nil {
			continue
		}
		f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return &stepError{op: "write", path: b.Target, err: err}
		}
		_, err = f.Write(b.File.Data)
		err = errors.Join(err, f.Chown(b.File.UID, b.File.GID), f.Chmod(b.File.Mode.Perm()), f.Close())
		if err != nil {
			return &stepError{op: "write", path: b.Target, err: err}
		}
		fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &stepError{op: "open", path: b.Target, err: err}
		}
		t.prepared[i] = t.keep(fd)
	}
	return nil
}

// part opens a part of the folders that b lays over each other, at dir where
// they are several.
func (t *tree) part(b Bind, dir string) (int, error) {
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return 0, &stepError{op: "make folder", path: dir, err: err}
	}
	if err := t.layOver(b, dir); err != nil {
		return 0, err
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(root)
		fd, openErr := openIn(root, b.Part)
		if openErr == nil {
			return fd, nil
		}
		err = openErr
	}
	return 0, &stepError{op: "show", path: b.Part, err: err}
}

func (t *tree) bind(b Bind, source string, copied int) error {
	switch {
	case len(b.Lower) > 0:
		return t.bindLower(b)
	case b.Memory > 0:
		return t.bindMemory(b)
	}
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return &stepError{op: "bind", path: b.Source, err: err}
	}
	dst, err := t.point(b.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	if err := attach(copied, source, dst); err != nil {
		return &stepError{op: "bind", path: b.Source, rights: true, err: err}
	}
	// dst is what lies below the new mount: open the place again.
	if dst, err = t.point(b.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	flags := uintptr(safe)
	if b.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	real, err := os.Readlink(dst)
	if err == nil {
		err = remountAll(real, flags)
	}
	if err != nil {
		return &stepError{op: "protect the bind of", path: b.Source, rights: true, err: err}
	}
	return nil
}

// bindLower shows folders laid over each other.
func (t *tree) bindLower(b Bind) error {
	if len(b.Lower) == 1 {
		one := Bind{Source: b.Lower[0], Target: b.Target, ReadOnly: true}
		return t.bind(one, t.opened[one.Source], -1)
	}
	dst, err := t.point(b.Target, true)
	if err != nil {
		return err
	}
	return t.layOver(b, dst)
}

// layOver mounts b's folders, read-only, at dst. Overlay wants two of them
// when nothing can be written.
func (t *tree) layOver(b Bind, dst string) error {
	if len(b.Lower) == 1 {
		if err := unix.Mount(t.opened[b.Lower[0]], dst, "", unix.MS_BIND, ""); err != nil {
			return &stepError{op: "bind", path: b.Lower[0], rights: true, err: err}
		}
		return nil
	}
	var lower []string
	for _, l := range b.Lower {
		lower = append(lower, t.opened[l])
	}
	if err := t.stack(dst, lower); err != nil {
		return &stepError{op: opOverlay, path: b.Target, err: err}
	}
	return nil
}

func (t *tree) bindMemory(b Bind) error {
	dst, err := t.point(b.Target, true)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dst, &st); err != nil {
		return &stepError{op: "mount tmpfs", path: b.Target, err: err}
	}
	if err := unix.Mount("tmpfs", dst, "tmpfs", safe, fmt.Sprintf("mode=%o,size=%d", st.Mode&0o7777, b.Memory)); err != nil {
		return &stepError{op: "mount tmpfs", path: b.Target, rights: true, err: err}
	}
	return nil
}

func (t *tree) fillDev() error {
	dev, err := t.point("/dev", true)
	if err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", dev, "tmpfs", flags, "mode=755,size=64k"); err != nil {
		return &stepError{op: "mount /dev", rights: true, err: err}
	}
	for _, name := range devices {
		p, err := t.point("/dev/"+name, false)
		if err != nil {
			return err
		}
		if err := unix.Mount(t.opened["/dev/"+name], p, "", unix.MS_BIND, ""); err != nil {
			return &stepError{op: "bind", path: "/dev/" + name, rights: true, err: err}
		}
	}
	if dev, err = t.point("/dev", true); err != nil {
		return err
	}
	for _, l := range links {
		if err := unix.Symlink(l[1], dev+"/"+l[0]); err != nil {
			return &stepError{op: "link", path: "/dev/" + l[0], err: err}
		}
	}
	shm, err := t.point("/dev/shm", true)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", shm, "tmpfs", flags, "mode=1777,size=64m"); err != nil {
		return &stepError{op: "mount /dev/shm", rights: true, err: err}
	}
	return nil
}

// hideMachine protects the parts of /proc that reach beyond the namespaces.
func (t *tree) hideMachine(null string) error {
	each := func(names []string, f func(p string) error) error {
		for _, n := range names {
			fd, err := t.open("/proc/" + n)
			if err == unix.ENOENT {
				continue // not in this kernel
			}
			if err == nil {
				err = f(fdPath(fd))
				unix.Close(fd)
			}
			if err != nil {
				return &stepError{op: "protect /proc", path: n, rights: true, err: err}
			}
		}
		return nil
	}
	err := each(procHidden, func(p string) error { return unix.Mount(null, p, "", unix.MS_BIND, "") })
	if err != nil {
		return err
	}
	err = each(procReadOnly, func(p string) error { return unix.Mount(p, p, "", unix.MS_BIND, "") })
	if err != nil {
		return err
	}
	return each(procReadOnly, func(p string) error { return remount(p, safe|unix.MS_RDONLY) })
}

// open opens p inside the new root, where also symbolic links end inside.
func (t *tree) open(p string) (int, error) { return openIn(t.fd, p) }

func openIn(root int, p string) (int, error) {
	return unix.Openat2(root, strings.TrimPrefix(p, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// point returns a path of p inside the new root, made when it doesn't exist.
func (t *tree) point(p string, dir bool) (string, error) {
	p = path.Clean(p)
	fd, err := t.open(p)
	if err == unix.ENOENT {
		err = t.create(p, dir)
		if err == nil {
			fd, err = t.open(p)
		}
	}
	if err != nil {
		return "", &stepError{op: "make the mount point", path: p, err: err}
	}
	return t.keep(fd), nil
}

func (t *tree) create(p string, dir bool) error {
	parent := t.fd
	if up := path.Dir(p); up != "/" {
		fd, err := t.open(up)
		if err == unix.ENOENT {
			if err = t.create(up, true); err == nil {
				fd, err = t.open(up)
			}
		}
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		parent = fd
	}
	name := path.Base(p)
	var st unix.Stat_t
	if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		// A dangling link, as /etc/resolv.conf often is: a mount can't cover
		// it, so the file that it names is made instead.
		return t.createTarget(parent, name, path.Dir(p), dir)
	}
	if dir {
		return unix.Mkdirat(parent, name, 0o755)
	}
	fd, err := unix.Openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func (t *tree) createTarget(parent int, name, in string, dir bool) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(parent, name, buf)
	if err != nil {
		return err
	}
	to := string(buf[:n])
	if !path.IsAbs(to) {
		to = path.Join(in, to)
	}
	to = path.Clean("/" + to)
	if to == path.Join(in, name) {
		return unix.ELOOP
	}
	if _, err := t.open(to); err != unix.ENOENT {
		return unix.ELOOP // it resolves in another way: nothing we should guess
	}
	return t.create(to, dir)
}

// safe are the flags of everything that is shown inside.
const safe = unix.MS_NODEV | unix.MS_NOSUID

// remountAll adds flags to what is mounted at p, a path without links, and to
// everything mounted below it.
func remountAll(p string, flags uintptr) error {
	mounts, err := mountPoints("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m != p && !strings.HasPrefix(m, p+"/") {
			continue
		}
		err := remount(m, flags)
		if m != p && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)) {
			continue // a later mount covers it: its path leads elsewhere, and nothing leads to it
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remount adds flags to those that the mount has: taking one away may be
// forbidden.
func remount(p string, flags uintptr) error {
	var st unix.Statfs_t
	if err := unix.Statfs(p, &st); err != nil {
		return err
	}
	// These have the same values as mount flags. The kernel keeps the access
	// time flags when none is given.
	flags |= uintptr(st.Flags) & (unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	return unix.Mount("", p, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
}

// mountPoints are the mount points in a mountinfo file.
func mountPoints(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			all = append(all, unescape(f[4]))
		}
	}
	return all, nil
}

// unescape reads mountinfo's \040 for a space, and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			n := 0
			for _, c := range []byte(s[i+1 : i+4]) {
				n = n*8 + int(c-'0')
			}
			if n > 0 && n < 256 {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
