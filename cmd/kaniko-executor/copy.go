package main

import (
	"archive/tar"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/GoogleContainerTools/kaniko/pkg/util"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

// copyFlags are what stands before the sources of a COPY or ADD.
type copyFlags struct {
	chown, chmod string
	link         bool
	from         string
	unpack       bool // ADD
}

// copier copies files into the image as Docker does. kaniko's own copying
// follows links out of the context, keeps a link that is named as a source,
// gives new parent folders away with --chown, and adds what links lead to.
type copier struct {
	root     int // of the sources: a descriptor
	rootPath string
	inRoot   bool // a stage's files: absolute links are meant inside
	uid, gid int
	mode     *fs.FileMode // of --chmod
	unpack   bool
	made     []string
}

// epoch is the time of every copied file: it is the layer's, and later
// commands may look at it.
var epoch = time.Unix(0, 0)

func (s *stage) copy(sd instructions.SourcesAndDest, f copyFlags) (bool, error) {
	c := copier{rootPath: kaniko.InsideContext, unpack: f.unpack}
	if f.from != "" {
		n, ok := s.order.From[s.place]
		if !ok {
			return false, fmt.Errorf("the files of --from=%s are not here", f.from)
		}
		c.rootPath, c.inRoot = fmt.Sprintf("%s/%d", kaniko.FromDir, n), true
	}
	var err error
	if c.root, err = unix.Open(c.rootPath, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return false, err
	}
	defer unix.Close(c.root)
	if err := c.flags(s, f); err != nil {
		return false, err
	}
	dest, err := s.expand(sd.DestPath)
	if err != nil {
		return false, err
	}
	isDir := strings.HasSuffix(dest, "/") || dest == "." || strings.HasSuffix(dest, "/.")
	if !path.IsAbs(dest) {
		dest = path.Join("/", s.config.WorkingDir, dest)
	}
	dest = path.Clean(dest)
	if l := kaniko.Lost(dest); l != "" {
		return false, fmt.Errorf("what is put into %s never reaches the image", l)
	}
	var sources []string
	for _, word := range sd.SourcePaths {
		src, err := s.expand(word)
		if err != nil {
			return false, err
		}
		found, err := c.glob(src)
		if err != nil {
			return false, err
		}
		sources = append(sources, found...)
	}
	if len(sources)+len(sd.SourceContents) > 1 && !isDir {
		if st, err := os.Stat(dest); err != nil || !st.IsDir() {
			return false, fmt.Errorf("several files are copied, so the target %s must be a folder and end with /", dest)
		}
	}
	real, err := resolve(dest)
	if err != nil {
		return false, err
	}
	if f.link && real != dest {
		return false, fmt.Errorf("%s lies behind a symbolic link, which --link would replace; leave --link out", dest)
	}
	for _, src := range sources {
		if err := c.source(src, real, isDir); err != nil {
			return false, err
		}
	}
	for _, doc := range sd.SourceContents {
		if err := c.document(s, doc, real, isDir); err != nil {
			return false, err
		}
	}
	return s.files.take(c.made, s.place)
}

func (c *copier) flags(s *stage, f copyFlags) error {
	if f.chown != "" {
		uid, gid, err := util.GetUserGroup(f.chown, s.env())
		if err != nil {
			return fmt.Errorf("--chown: %w", err)
		}
		c.uid, c.gid = int(uid), int(gid)
		if s.order.Rootless && (c.uid != 0 || c.gid != 0) {
			return fmt.Errorf("--chown=%s is not possible without root on this machine: there, only root's files can be made", f.chown)
		}
	}
	if f.chmod != "" {
		mode, _, err := util.GetChmod(f.chmod, s.env())
		if err != nil {
			return fmt.Errorf("--chmod=%s: only numbers, as 755, are possible here", f.chmod)
		}
		m := fileMode(uint32(mode))
		c.mode = &m
	}
	return nil
}

// fileMode makes Go's mode of Unix's.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, b := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= b
		}
	}
	return mode
}

// open opens name below the root of the sources, where links can't lead out.
// The path that it returns has no links in it, but for a last one that was not
// to be followed.
func (c *copier) open(name string, follow bool) (string, unix.Stat_t, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	if c.inRoot {
		how.Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	}
	if !follow {
		how.Flags |= unix.O_NOFOLLOW
	}
	var st unix.Stat_t
	fd, err := unix.Openat2(c.root, name, &how)
	if err != nil {
		what := err.Error()
		switch {
		case errors.Is(err, unix.EXDEV):
			what = "leaves the build context through a symbolic link"
		case errors.Is(err, unix.ENOENT):
			what = "not there"
			err = fs.ErrNotExist
		}
		return "", st, &sourceError{name, what, err}
	}
	defer unix.Close(fd)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	return real, st, err
}

type sourceError struct {
	name, what string
	err        error
}

func (e *sourceError) Error() string { return e.name + ": " + e.what }
func (e *sourceError) Unwrap() error { return e.err }

// glob is what a source means: itself, or what a pattern matches.
func (c *copier) glob(src string) ([]string, error) {
	src = strings.TrimPrefix(path.Clean("/"+src), "/")
	if src == "" {
		return []string{"."}, nil
	}
	if !strings.ContainsAny(src, "*?[\\") {
		return []string{src}, nil
	}
	found := []string{"."}
	for part := range strings.SplitSeq(src, "/") {
		var next []string
		for _, dir := range found {
			if !strings.ContainsAny(part, "*?[\\") {
				next = append(next, path.Join(dir, part))
				continue
			}
			real, st, err := c.open(dir, true)
			if errors.Is(err, fs.ErrNotExist) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			if err != nil {
				return nil, err
			}
			list, err := os.ReadDir(real)
			if err != nil {
				return nil, err
			}
			for _, e := range list {
				ok, err := path.Match(part, e.Name())
				if err != nil {
					return nil, fmt.Errorf("%s: %w", src, err)
				}
				if ok {
					next = append(next, path.Join(dir, e.Name()))
				}
			}
		}
		found = next
	}
	var there []string
	for _, name := range found {
		if _, _, err := c.open(name, true); !errors.Is(err, fs.ErrNotExist) {
			there = append(there, name)
		}
	}
	if len(there) == 0 {
		return nil, fmt.Errorf("%s: no file matches", src)
	}
	sort.Strings(there)
	return there, nil
}

// source copies one source: a folder's content, a file, or with ADD what is in
// an archive.
func (c *copier) source(src, dest string, isDir bool) error {
	real, st, err := c.open(src, true)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := c.mkdirs(dest); err != nil {
			return err
		}
		return c.folder(real, dest, "")
	case unix.S_IFREG:
	default:
		return fmt.Errorf("%s is neither a file nor a folder", src)
	}
	if c.unpack {
		if done, err := c.archive(real, dest); done || err != nil {
			return err
		}
	}
	to, err := c.target(dest, path.Base(src), isDir)
	if err != nil {
		return err
	}
	return c.file(real, to, fileMode(st.Mode))
}

// target is where a single file goes; its folder is made.
func (c *copier) target(dest, name string, isDir bool) (string, error) {
	if st, err := os.Stat(dest); err == nil && st.IsDir() || isDir {
		dest = path.Join(dest, name)
	}
	return dest, c.mkdirs(path.Dir(dest))
}

// folder copies what is in from into the folder to. rel is how far from the
// source it is.
func (c *copier) folder(from, to, rel string) error {
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range list {
		src, dst, below := path.Join(from, e.Name()), path.Join(to, e.Name()), path.Join(rel, e.Name())
		switch {
		case e.IsDir():
			st, err := e.Info()
			if err != nil {
				return err
			}
			if err := c.mkdir(dst); err != nil {
				return err
			}
			if err := c.folder(src, dst, below); err != nil {
				return err
			}
			if err := c.finish(dst, st.Mode()); err != nil {
				return err
			}
		case e.Type() == fs.ModeSymlink:
			if err := c.link(src, dst); err != nil {
				return err
			}
		case e.Type().IsRegular():
			st, err := e.Info()
			if err != nil {
				return err
			}
			if err := c.file(src, dst, st.Mode()); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is neither a file, a folder nor a link", below)
		}
	}
	return nil
}

// mkdirs makes a folder and its parents: root's, mode 0755, whatever --chown
// says.
func (c *copier) mkdirs(dir string) error {
	st, err := os.Stat(dir)
	if err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s is there already, and not a folder", dir)
		}
		return nil
	}
	if err := c.mkdirs(path.Dir(dir)); err != nil {
		return err
	}
	return c.mkdir(dir)
}

func (c *copier) mkdir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%s is there already, and not a folder", dir)
	}
	c.made = append(c.made, dir)
	return errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755), os.Chtimes(dir, epoch, epoch))
}

// clear makes room for a file.
func (c *copier) clear(name string) error {
	st, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		return fmt.Errorf("%s is a folder already", name)
	}
	return os.Remove(name)
}

func (c *copier) link(src, dst string) error {
	to, err := os.Readlink(src)
	if err != nil {
		return err
	}
	if err := c.clear(dst); err != nil {
		return err
	}
	c.made = append(c.made, dst)
	return errors.Join(os.Symlink(to, dst), os.Lchown(dst, c.uid, c.gid))
}

func (c *copier) file(src, dst string, mode fs.FileMode) error {
	if n, err := unix.Lgetxattr(src, "security.capability", nil); err == nil && n > 0 {
		return fmt.Errorf("%s has file capabilities, which functions can't use; copy it in a RUN", src)
	}
	if err := c.clear(dst); err != nil {
		return err
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	return c.write(in, dst, mode)
}

func (c *copier) write(in io.Reader, dst string, mode fs.FileMode) error {
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	c.made = append(c.made, dst)
	return c.finish(dst, mode)
}

// finish sets owner, mode and time.
func (c *copier) finish(name string, mode fs.FileMode) error {
	if c.mode != nil {
		mode = *c.mode
	}
	c.made = append(c.made, name)
	mode &= fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky
	// A change of owner clears set-user-ID.
	return errors.Join(os.Lchown(name, c.uid, c.gid), os.Chmod(name, mode), os.Chtimes(name, epoch, epoch))
}

// document writes a here-document.
func (c *copier) document(s *stage, doc instructions.SourceContent, dest string, isDir bool) error {
	data := doc.Data
	if doc.Expand {
		lex := shell.NewLex(parser.DefaultEscapeToken)
		lex.SkipProcessQuotes = true
		var err error
		if data, _, err = lex.ProcessWord(data, shell.EnvsFromSlice(s.env())); err != nil {
			return err
		}
	}
	to, err := c.target(dest, doc.Path, isDir)
	if err != nil {
		return err
	}
	if err := c.clear(to); err != nil {
		return err
	}
	return c.write(strings.NewReader(data), to, 0o644)
}

// archive unpacks a tar archive; it says false for any other file.
func (c *copier) archive(src, dest string) (bool, error) {
	f, err := os.Open(src)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, 6)
	n, _ := io.ReadFull(f, head)
	head = head[:n]
	again := func() (io.Reader, error) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		switch {
		case strings.HasPrefix(string(head), "\x1f\x8b"):
			return gzip.NewReader(f)
		case strings.HasPrefix(string(head), "BZh"):
			return bzip2.NewReader(f), nil
		}
		return f, nil
	}
	if strings.HasPrefix(string(head), "\xfd7zXZ\x00") {
		return false, errors.New("ADD does not unpack .xz archives here; COPY it and use RUN tar")
	}
	r, err := again()
	if err != nil {
		return false, nil // no archive of that kind
	}
	if _, err := tar.NewReader(r).Next(); err != nil {
		return false, nil
	}
	if r, err = again(); err != nil {
		return false, err
	}
	if err := c.mkdirs(dest); err != nil {
		return false, err
	}
	names, err := util.UnTar(r, dest)
	if err != nil {
		return true, fmt.Errorf("unpack: %w", err)
	}
	for _, name := range names {
		if _, err := os.Lstat(name); err == nil { // some kinds are left out
			c.made = append(c.made, name)
		}
	}
	return true, nil
}

// resolve follows the links in p as far as it exists.
func resolve(p string) (string, error) {
	real, err := filepath.EvalSymlinks(p)
	if err == nil {
		if st, err := os.Stat(real); err != nil || !st.IsDir() {
			// A file is replaced, not written through.
			dir, err := resolve(path.Dir(p))
			return path.Join(dir, path.Base(p)), err
		}
		return real, nil
	}
	if !errors.Is(err, fs.ErrNotExist) || p == "/" {
		return "", err
	}
	dir, err := resolve(path.Dir(p))
	return path.Join(dir, path.Base(p)), err
}
