package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// Tree is a set of files put at Prefix.
type Tree struct {
	// FS holds the files. For a real folder use [os.Root.FS]: a link that
	// somebody swaps in while we read can't lead out of it then.
	FS fs.FS
	// Prefix is an absolute folder in the image.
	Prefix string
	// Paths lists the files and links of FS that take part, in any order;
	// nil means all of them, with empty folders.
	Paths []string
}

// FileError is a file of a tree that can't go into a layer. Its owner can act.
type FileError struct {
	Path string // in the tree
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("%q: %v", e.Path, e.Err) }
func (e *FileError) Unwrap() error { return e.Err }

// ErrLinkLeaves is the cause when a symbolic link's target is absolute or lies
// outside its tree.
var ErrLinkLeaves = errors.New("the symbolic link leaves the tree")

// AddTree adds the files of t, sorted by path: owner 0:0, folders and
// executable files 0755, other files 0644. Links are kept as links; one that
// leaves the tree, a device, socket or pipe, and a file that changes while it
// is read are refused with a [*FileError].
func (w *Writer) AddTree(ctx context.Context, t Tree) error {
	files, err := t.list(ctx)
	if err != nil {
		return err
	}
	prefix := strings.Trim(path.Clean("/"+t.Prefix), "/")
	if prefix != "" {
		if err := w.Add(Entry{Name: prefix, Mode: fs.ModeDir | 0o755}); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := w.addFile(t.FS, prefix, f); err != nil {
			return err
		}
	}
	return nil
}

// FromTree makes a layer of one tree. The caller closes the Layer.
func FromTree(ctx context.Context, dir string, c Compressor, t Tree) (*Layer, error) {
	w, err := NewWriter(dir, c)
	if err != nil {
		return nil, err
	}
	if err := w.AddTree(ctx, t); err != nil {
		w.Abort()
		return nil, err
	}
	return w.Close()
}

type treeFile struct {
	path string
	info fs.FileInfo
	link string
}

// list finds the files of t, sorted by path, each looked at without following
// links.
func (t Tree) list(ctx context.Context) ([]treeFile, error) {
	if t.FS == nil {
		return nil, nil
	}
	var out []treeFile
	if t.Paths == nil {
		err := fs.WalkDir(t.FS, ".", func(p string, d fs.DirEntry, err error) error {
			if err == nil && p != "." {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				var f treeFile
				if f, err = t.look(p); err == nil {
					out = append(out, f)
				}
			}
			if err != nil {
				return fileError(p, err)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	} else {
		dirs := map[string]bool{".": true}
		for _, p := range t.Paths {
			p = path.Clean(p)
			if !fs.ValidPath(p) || p == "." {
				return nil, fileError(p, errors.New("not a path inside the tree"))
			}
			if err := t.realParents(path.Dir(p), dirs); err != nil {
				return nil, err
			}
			f, err := t.look(p)
			if err != nil {
				return nil, fileError(p, err)
			}
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b treeFile) int { return strings.Compare(a.path, b.path) })
	return slices.CompactFunc(out, func(a, b treeFile) bool { return a.path == b.path }), nil
}

// realParents makes sure that no folder above a listed file is a link: what
// lies behind one is not part of this tree.
func (t Tree) realParents(dir string, known map[string]bool) error {
	if known[dir] {
		return nil
	}
	if err := t.realParents(path.Dir(dir), known); err != nil {
		return err
	}
	info, err := lstat(t.FS, dir)
	if err != nil {
		return fileError(dir, err)
	}
	if !info.IsDir() {
		return fileError(dir, errors.New("not a folder, but files below it are listed"))
	}
	known[dir] = true
	return nil
}

func (t Tree) look(p string) (treeFile, error) {
	if !utf8.ValidString(p) {
		return treeFile{}, errors.New("the name is not UTF-8")
	}
	info, err := lstat(t.FS, p)
	if err != nil {
		return treeFile{}, err
	}
	f := treeFile{path: p, info: info}
	switch {
	case info.IsDir(), info.Mode().IsRegular():
	case info.Mode()&fs.ModeSymlink != 0:
		if f.link, err = fs.ReadLink(t.FS, p); err != nil {
			return treeFile{}, err
		}
		target := path.Join(path.Dir(p), f.link)
		if path.IsAbs(f.link) || target == ".." || strings.HasPrefix(target, "../") {
			return treeFile{}, fmt.Errorf("%w: it points to %q", ErrLinkLeaves, f.link)
		}
	default:
		return treeFile{}, fmt.Errorf("a %s can't go into a layer", typeName(info.Mode()))
	}
	return f, nil
}

// lstat looks at a name without following a link, where the file system knows
// links at all.
func lstat(fsys fs.FS, p string) (fs.FileInfo, error) {
	if l, ok := fsys.(fs.ReadLinkFS); ok {
		return l.Lstat(p)
	}
	return fs.Stat(fsys, p)
}

func (w *Writer) addFile(fsys fs.FS, prefix string, f treeFile) error {
	e := Entry{Name: path.Join(prefix, f.path), Link: f.link}
	switch {
	case f.info.IsDir():
		e.Mode = fs.ModeDir | 0o755
		return w.Add(e)
	case f.link != "":
		e.Mode = fs.ModeSymlink | 0o777
		return w.Add(e)
	}
	r, err := fsys.Open(f.path)
	if err != nil {
		return fileError(f.path, err)
	}
	defer r.Close()
	now, err := r.Stat()
	if err != nil {
		return fileError(f.path, err)
	}
	if !now.Mode().IsRegular() || now.Size() != f.info.Size() {
		return fileError(f.path, ErrChanged)
	}
	body := &failing{r: r}
	e.Mode, e.Size, e.Body = 0o644, now.Size(), body
	if now.Mode()&0o111 != 0 {
		e.Mode = 0o755
	}
	err = w.Add(e)
	switch {
	case body.err != nil:
		return fileError(f.path, body.err)
	case errors.Is(err, ErrChanged):
		return fileError(f.path, ErrChanged)
	}
	return err
}

// failing remembers that reading failed, which is the file's fault; other
// errors of a copy are the spool's.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// fileError names the file, and leaves the path that the system's error also
// carries out.
func fileError(p string, err error) error {
	var have *FileError
	if errors.As(err, &have) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &FileError{Path: p, Err: err}
}
