package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/GoogleContainerTools/kaniko/pkg/util"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

// snapshots finds what instructions change. The overlay has all of it in one
// folder, so nothing else is looked at; kaniko would look at every file of the
// image before and after each command.
type snapshots struct {
	seen map[string]state // what the layers so far have changed; nil before the first command
}

// Where the sandbox shows the changes and what is below them.
var (
	changesDir = fmt.Sprintf("/proc/self/fd/%d", kaniko.ChangesFD)
	beforeDir  = fmt.Sprintf("/proc/self/fd/%d", kaniko.BeforeFD)
)

// state is what can be seen of a changed file without reading it.
type state struct {
	removed  bool
	mode     uint32 // with the kind
	uid, gid uint32
	size     int64
	ino, dev uint64 // dev is which device it is
	// A command may set one time, but not the other. Folders have none here:
	// they change with what is in them.
	mtime, ctime unix.Timespec
}

func (s state) kind() uint32 { return s.mode & unix.S_IFMT }

func newSnapshots() (*snapshots, error) { return &snapshots{}, util.InitIgnoreList() }

// begin looks at what is changed before the first command.
func (s *snapshots) begin() (err error) {
	if s.seen == nil {
		s.seen, err = changes()
	}
	return err
}

// changes are all files that are not as below, by name.
func changes() (map[string]state, error) {
	now := map[string]state{}
	return now, folder(".", true, now)
}

// folder adds the changes in a folder. below says that there is one of this
// name below the changes.
func folder(dir string, below bool, now map[string]state) error {
	list, err := os.ReadDir(path.Join(changesDir, dir))
	if err != nil {
		return err
	}
	for _, e := range list {
		name := path.Join(dir, e.Name())
		if util.IsInIgnoreList("/" + name) {
			continue
		}
		st, err := look(path.Join(changesDir, name))
		if err != nil {
			return err
		}
		if st.kind() == unix.S_IFCHR && st.dev == 0 {
			continue // overlay's mark of a removed file
		}
		now[name] = st
		if st.kind() != unix.S_IFDIR {
			continue
		}
		inner := false
		if below {
			old, err := look(path.Join(beforeDir, name))
			inner = err == nil && old.kind() == unix.S_IFDIR
		}
		if err := folder(name, inner, now); err != nil {
			return err
		}
	}
	if !below {
		return nil
	}
	// A mark of removal, or of a folder that hides what is below it, says no
	// more than this comparison, and reading them takes rights.
	old, err := os.ReadDir(path.Join(beforeDir, dir))
	if err != nil {
		return err
	}
	list, err = os.ReadDir(path.Join("/", dir))
	if err != nil {
		return err
	}
	left := map[string]bool{}
	for _, e := range list {
		left[e.Name()] = true
	}
	for _, e := range old {
		if name := path.Join(dir, e.Name()); !left[e.Name()] && !util.IsInIgnoreList("/"+name) {
			now[name] = state{removed: true}
		}
	}
	return nil
}

func look(p string) (state, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return state{}, &fs.PathError{Op: "lstat", Path: p, Err: err}
	}
	s := state{mode: st.Mode, uid: st.Uid, gid: st.Gid}
	if s.kind() != unix.S_IFDIR {
		s.size, s.ino, s.dev, s.mtime, s.ctime = st.Size, st.Ino, st.Rdev, st.Mtim, st.Ctim
	}
	return s, nil
}

// take makes a layer of just these files and the folders that they are in, and
// says whether there was anything.
func (s *snapshots) take(paths []string, place int) (bool, error) {
	files := map[string]state{}
	for _, p := range paths {
		for p = filepath.Clean(p); p != "/" && p != "."; p = filepath.Dir(p) {
			name := strings.TrimPrefix(p, "/")
			if _, ok := files[name]; ok {
				break
			}
			st, err := look(path.Join(changesDir, name))
			if err == nil && s.seen != nil {
				s.seen[name] = st
			} else if errors.Is(err, fs.ErrNotExist) {
				st, err = look("/" + name)
			}
			if err != nil {
				return false, err
			}
			files[name] = st
		}
	}
	return len(files) > 0, write(place, files)
}

// takeAll makes a layer of everything that changed.
func (s *snapshots) takeAll(place int) (bool, error) {
	now, err := changes()
	if err != nil {
		return false, err
	}
	files := map[string]state{}
	for name, st := range now {
		if old, ok := s.seen[name]; !ok || old != st {
			files[name] = st
		}
	}
	for name, old := range s.seen {
		// What an earlier instruction made is gone without a mark.
		if _, ok := now[name]; ok || old.removed {
			continue
		}
		if dir := path.Dir(name); dir == "." || now[dir].kind() == unix.S_IFDIR {
			now[name] = state{removed: true}
			files[name] = now[name]
		}
	}
	for name := range files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := files[dir]; ok {
				break
			}
			files[dir] = now[dir]
		}
	}
	s.seen = now
	return len(files) > 0, write(place, files)
}

// layer writes a layer's archive: sorted, and names of a file that is there
// already after everything else.
type layer struct {
	*tar.Writer
	first map[uint64]string // names of files that have several
	buf   []byte
}

func write(place int, files map[string]state) error {
	if len(files) == 0 {
		return nil
	}
	f, err := os.Create(filepath.Join(kaniko.Out, fmt.Sprintf("%d.tar", place)))
	if err != nil {
		return err
	}
	defer f.Close()
	names := map[string]string{} // by the name in the archive
	for name, st := range files {
		if st.removed {
			dir, file := path.Split(name)
			names[dir+".wh."+file] = name
		} else {
			names[name] = name
		}
	}
	out := bufio.NewWriterSize(f, 1<<20)
	l := layer{tar.NewWriter(out), map[uint64]string{}, make([]byte, 256<<10)}
	var links []*tar.Header
	for _, in := range sortedKeys(names) {
		name := names[in]
		st := files[name]
		h := &tar.Header{Name: in, Mode: int64(st.mode & 0o7777), Uid: int(st.uid), Gid: int(st.gid)}
		if st.removed {
			err = l.WriteHeader(h)
		} else if first := l.first[st.ino]; first != "" {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			links = append(links, h)
		} else {
			err = l.add(name, st, h)
		}
		if err != nil {
			return err
		}
	}
	for _, h := range links {
		if err := l.WriteHeader(h); err != nil {
			return err
		}
	}
	return errors.Join(l.Close(), out.Flush())
}

func sortedKeys(m map[string]string) []string {
	all := make([]string, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// add writes a file. It is read where it was changed, which is faster than
// through the overlay.
func (l *layer) add(name string, st state, h *tar.Header) error {
	from := path.Join(changesDir, name)
	if _, err := os.Lstat(from); err != nil {
		from = "/" + name
	}
	var err error
	switch st.kind() {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(from); err != nil {
			return err
		}
		return l.WriteHeader(h)
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.size
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	default:
		return nil // a socket is nobody's any more
	}
	if err := attributes(from, name, h); err != nil {
		return err
	}
	if err := l.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{l}, struct{ io.Reader }{f}, l.buf)
	if err != nil || n != st.size {
		return fmt.Errorf("/%s was written to while it was read: %w", name, errors.Join(err, io.ErrUnexpectedEOF))
	}
	l.first[st.ino] = name
	return nil
}

// attributes refuses files with extended attributes that would be lost.
func attributes(from, name string, h *tar.Header) error {
	buf := make([]byte, 4<<10)
	n, err := unix.Llistxattr(from, buf)
	if err != nil {
		return nil // a file system without them
	}
	for a := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		switch {
		case a == "", strings.HasPrefix(a, "user.overlay."), strings.HasPrefix(a, "trusted.overlay."):
		case a == "security.capability":
			// The parent sees it and says what to do.
			h.PAXRecords = map[string]string{"SCHILY.xattr." + a: "yes"}
		case strings.HasPrefix(a, "security."):
			// Labels of a security module belong to the machine.
		default:
			return fmt.Errorf("/%s has the extended attribute %s, which would not be in the image; remove it in the same RUN", name, a)
		}
	}
	return nil
}
