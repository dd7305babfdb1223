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
	"runtime"
	"slices"
	"strings"
	"sync"

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
	at           int // the folder that shows it: a descriptor
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
		st, err := look(kaniko.ChangesFD, name)
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
			old, err := look(kaniko.BeforeFD, name)
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

// look looks at a file in a folder, given by its descriptor: over /proc the way
// takes as long as the look.
func look(at int, name string) (state, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return state{}, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	s := state{mode: st.Mode, uid: st.Uid, gid: st.Gid, at: at}
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
			st, err := look(kaniko.ChangesFD, name)
			if err == nil && s.seen != nil {
				s.seen[name] = st
			} else if errors.Is(err, fs.ErrNotExist) {
				st, err = look(unix.AT_FDCWD, "/"+name)
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

// item is a file on its way into a layer's archive. Small ones are read by
// several goroutines ahead of the archive: opening is most of the work.
type item struct {
	name   string
	state  state
	header *tar.Header
	ready  chan error
	body   []byte   // or, of a large file,
	file   *os.File // the open file
}

// large files are not read ahead.
const large = 1 << 20

// write writes a layer's archive: sorted, and names of a file that is there
// already after everything else.
func write(place int, files map[string]state) (err error) {
	if len(files) == 0 {
		return nil
	}
	f, err := os.Create(filepath.Join(kaniko.Out, fmt.Sprintf("%d.tar", place)))
	if err != nil {
		return err
	}
	defer f.Close()
	items, links := sorted(files)
	todo, done := make(chan *item, 16), make(chan *item, 16)
	var readers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		readers.Go(func() {
			for i := range todo {
				i.ready <- i.open()
			}
		})
	}
	go func() {
		for _, i := range items {
			todo <- i
			done <- i
		}
		close(todo)
		close(done)
	}()
	out := bufio.NewWriterSize(f, 1<<20)
	t := tar.NewWriter(out)
	for i := range done { // to the end, also after an error: nothing stays open
		if openErr := <-i.ready; err == nil {
			err = openErr
		}
		if err == nil {
			err = i.write(t)
		}
		if i.file != nil {
			i.file.Close()
		}
		i.body = nil
	}
	readers.Wait()
	for _, h := range links {
		if err == nil {
			err = t.WriteHeader(h)
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(t.Close(), out.Flush())
}

// sorted are files by their names in the archive, and further names of some.
func sorted(files map[string]state) (items []*item, links []*tar.Header) {
	for name, st := range files {
		in := name
		if dir, file := path.Split(name); st.removed {
			in = dir + ".wh." + file
		}
		h := &tar.Header{Name: in, Mode: int64(st.mode & 0o7777), Uid: int(st.uid), Gid: int(st.gid)}
		items = append(items, &item{name: name, state: st, header: h, ready: make(chan error, 1)})
	}
	slices.SortFunc(items, func(a, b *item) int { return strings.Compare(a.header.Name, b.header.Name) })
	first := map[uint64]string{}
	items = slices.DeleteFunc(items, func(i *item) bool {
		if i.state.kind() != unix.S_IFREG {
			return i.state.kind() == unix.S_IFSOCK // nobody's any more
		}
		name, again := first[i.state.ino]
		if again {
			i.header.Typeflag, i.header.Linkname = tar.TypeLink, name
			links = append(links, i.header)
		} else {
			first[i.state.ino] = i.name
		}
		return again
	})
	return items, links
}

// open finds out what belongs into the header, and the content. A file is read
// where it was changed, which is faster than through the overlay.
func (i *item) open() error {
	h, name := i.header, i.name
	if i.state.at == unix.AT_FDCWD {
		name = "/" + name
	}
	switch i.state.kind() {
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(i.state.at, name, buf)
		h.Linkname = string(buf[:max(n, 0)])
		return err
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, i.state.size
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return nil
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
		return nil
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
		return nil
	default: // removed
		return nil
	}
	fd, err := unix.Openat(i.state.at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/" + i.name, Err: err}
	}
	if err := attributes(fd, i.name, h); err != nil {
		unix.Close(fd)
		return err
	}
	if h.Size > large {
		i.file = os.NewFile(uintptr(fd), i.name)
		return nil
	}
	defer unix.Close(fd)
	if h.Typeflag == tar.TypeDir || h.Size == 0 {
		return nil
	}
	i.body = make([]byte, h.Size)
	for at := 0; at < len(i.body); {
		n, err := unix.Read(fd, i.body[at:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "read", Path: "/" + i.name, Err: err}
		}
		if n == 0 {
			i.body = i.body[:at]
			break
		}
		at += n
	}
	return nil
}

func (i *item) write(t *tar.Writer) error {
	if err := t.WriteHeader(i.header); err != nil {
		return err
	}
	n, err := int64(0), error(nil)
	if i.file != nil {
		n, err = io.Copy(t, i.file)
	} else if len(i.body) > 0 {
		var k int
		k, err = t.Write(i.body)
		n = int64(k)
	}
	if err != nil || n != i.header.Size {
		return fmt.Errorf("/%s was written to while it was read: %w", i.name, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

// attributes refuses files with extended attributes that would be lost.
func attributes(fd int, name string, h *tar.Header) error {
	var buf [4 << 10]byte
	n, err := unix.Flistxattr(fd, buf[:])
	if err != nil || n == 0 {
		return nil // a file system without them, or a file
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
