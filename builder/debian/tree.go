package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Limits of one image. Debian's largest closures are far below; an archive
// that goes beyond is broken or hostile.
const (
	maxEntries = 400_000
	maxBytes   = 8 << 30
	maxName    = 4096
)

// source is who brought a path into a tree.
type source struct {
	name     string // package name
	replaces []string
}

// node is one path of a tree. Content lies in the tree's spool.
type node struct {
	mode fs.FileMode
	link string // symbolic link's target
	off  int64
	size int64
	sum  [sha256.Size]byte
	// inode is the node whose content a hard link shares, itself otherwise.
	inode *node
	from  *source
}

func (n *node) isDir() bool { return n.mode.IsDir() }

// tree is the merged content of many packages, kept by path, so that it can be
// written sorted. Contents go to an unlinked temporary file: memory holds
// names only. Not safe for concurrent use.
type tree struct {
	dir   string // for the spool
	spool *os.File
	end   int64
	nodes map[string]*node
	drop  func(name string) bool
	buf   []byte
}

// newTree makes an empty tree. drop decides what is left out; nil keeps all.
func newTree(dir string, drop func(string) bool) (*tree, error) {
	f, err := layer.Temp(dir)
	if err != nil {
		return nil, err
	}
	if drop == nil {
		drop = func(string) bool { return false }
	}
	return &tree{dir: dir, spool: f, nodes: map[string]*node{}, drop: drop, buf: make([]byte, 64<<10)}, nil
}

func (t *tree) close() error { return t.spool.Close() }

// merged are the top folders that Debian keeps in /usr. Packages may still
// name them by their old place.
var merged = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// usrMerge gives the one true path of name.
func usrMerge(name string) string {
	top, _, _ := strings.Cut(name, "/")
	if slices.Contains(merged, top) {
		return "usr/" + name
	}
	return name
}

// entryName makes a tree's path of an archive's: "./usr/bin/" is usr/bin. The
// archive's root is "".
func entryName(raw string) (string, error) {
	switch {
	case len(raw) > maxName:
		return "", fmt.Errorf("%w: a name of %d bytes", ErrUnsafe, len(raw))
	case strings.ContainsRune(raw, 0), path.IsAbs(raw):
		return "", fmt.Errorf("%w: %q is not a relative path", ErrUnsafe, raw)
	}
	for _, part := range strings.Split(raw, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: %q leaves the image", ErrUnsafe, raw)
		}
		// A registry would read it as an instruction to remove a file.
		if strings.HasPrefix(part, ".wh.") {
			return "", fmt.Errorf("%w: %q is a whiteout", ErrUnsafe, raw)
		}
	}
	name := path.Clean(raw)
	if name == "." {
		return "", nil
	}
	return name, nil
}

// addTar merges one archive. Two packages may bring the same folder, or the
// same file with the same content; a file that one says it replaces is its
// own; anything else is an [ErrConflict].
func (t *tree) addTar(ctx context.Context, from source, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := t.addHeader(&from, h, tr); err != nil {
			return err
		}
	}
}

func (t *tree) addHeader(from *source, h *tar.Header, body io.Reader) error {
	raw, err := entryName(h.Name)
	if err != nil {
		return err
	}
	if raw == "" {
		return nil
	}
	name := usrMerge(raw)
	if t.drop(name) {
		return nil
	}
	n := &node{from: from}
	n.inode = n
	switch h.Typeflag {
	case tar.TypeDir:
		n.mode = fs.ModeDir | fs.FileMode(h.Mode&0o777|0o700)
		if h.Mode&0o1000 != 0 {
			n.mode |= fs.ModeSticky
		}
	case tar.TypeReg:
		if err := dense(h); err != nil {
			return err
		}
		if h.Size < 0 || t.end+h.Size > maxBytes {
			return fmt.Errorf("%w: more than %d bytes", ErrUnsafe, int64(maxBytes))
		}
		// Without setuid and setgid: every owner becomes 0:0, and a program
		// that was setgid mail would be setgid root.
		n.mode = fs.FileMode(h.Mode&0o777 | 0o600)
		if n.off, n.size, n.sum, err = t.store(body); err != nil {
			return err
		}
		if n.size != h.Size {
			return fmt.Errorf("%s: %w", name, io.ErrUnexpectedEOF)
		}
	case tar.TypeSymlink:
		if raw != name && !strings.Contains(raw, "/") {
			return nil // a package that brings /bin -> usr/bin itself
		}
		n.mode = fs.ModeSymlink | 0o777
		if n.link, err = mergedLink(raw, name, h.Linkname); err != nil {
			return err
		}
	case tar.TypeLink:
		target, err := entryName(h.Linkname)
		if err != nil {
			return err
		}
		target = usrMerge(target)
		have := t.nodes[target]
		if have == nil || !have.mode.IsRegular() || have.from.name != from.name {
			return fmt.Errorf("%w: hard link %s to %s, which is no earlier file of the package", ErrUnsafe, name, target)
		}
		n.mode, n.inode, n.size, n.sum = have.inode.mode, have.inode, have.inode.size, have.inode.sum
	default:
		return fmt.Errorf("%w: %s is a device or of an unknown type (%q)", ErrUnsafe, name, string(h.Typeflag))
	}
	return t.put(name, n)
}

// dense refuses files with holes: a few bytes of archive would become
// gigabytes. No package tool writes them.
func dense(h *tar.Header) error {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return fmt.Errorf("%w: %s is a file with holes", ErrUnsafe, h.Name)
		}
	}
	return nil
}

// mergedLink keeps a link right that moved into /usr with its package: it is
// the target as seen from the old place that counts.
func mergedLink(raw, name, target string) (string, error) {
	if target == "" || len(target) > maxName || !staysInside(raw, target) {
		return "", fmt.Errorf("%w: link %s to %q leaves the image", ErrUnsafe, raw, target)
	}
	if raw == name || path.IsAbs(target) {
		return target, nil
	}
	old := path.Join(path.Dir(raw), target) // relative to the root, inside it
	if path.Join(path.Dir(name), target) == usrMerge(old) {
		return target, nil
	}
	return "/" + old, nil
}

// put places n at name, or finds that it is there already.
func (t *tree) put(name string, n *node) error {
	have := t.nodes[name]
	if have == nil {
		if len(t.nodes) >= maxEntries {
			return fmt.Errorf("%w: more than %d files", ErrUnsafe, maxEntries)
		}
		if err := t.parents(name, n.from); err != nil {
			return err
		}
		t.nodes[name] = n
		return nil
	}
	switch {
	case have.isDir() && n.isDir():
		return nil
	case have.mode.Type() == n.mode.Type() && have.link == n.link && have.size == n.size && have.sum == n.sum:
		return nil
	case !n.isDir() && !have.isDir() && have.from.name == n.from.name:
		// dpkg takes the last of two entries, but no builder makes them.
		return fmt.Errorf("%w: %s is there twice", ErrUnsafe, name)
	case !n.isDir() && !have.isDir() && slices.Contains(n.from.replaces, have.from.name):
		t.nodes[name] = n
		return nil
	case !n.isDir() && !have.isDir() && slices.Contains(have.from.replaces, n.from.name):
		return nil
	}
	return fmt.Errorf("%w: %s is a %s in %s and a %s in %s", ErrConflict, name,
		typeName(have.mode), have.from.name, typeName(n.mode), n.from.name)
}

// parents makes sure that name's folders are folders: nothing is ever written
// through a link.
func (t *tree) parents(name string, from *source) error {
	for i := 0; i < len(name); i++ {
		if name[i] != '/' {
			continue
		}
		dir := name[:i]
		if have := t.nodes[dir]; have == nil {
			d := &node{mode: fs.ModeDir | 0o755, from: from}
			d.inode = d
			t.nodes[dir] = d
		} else if !have.isDir() {
			return fmt.Errorf("%w: %s is below %s, which is a %s in %s", ErrConflict, name, dir, typeName(have.mode), have.from.name)
		}
	}
	return nil
}

func typeName(m fs.FileMode) string {
	switch m.Type() {
	case fs.ModeDir:
		return "folder"
	case fs.ModeSymlink:
		return "link"
	}
	return "file"
}

func (t *tree) store(r io.Reader) (off, size int64, sum [sha256.Size]byte, err error) {
	h := sha256.New()
	off = t.end
	for {
		n, err := r.Read(t.buf)
		if n > 0 {
			h.Write(t.buf[:n])
			if _, err := t.spool.WriteAt(t.buf[:n], t.end); err != nil {
				return 0, 0, sum, layer.SpoolError(t.dir, err)
			}
			t.end += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return off, t.end - off, [sha256.Size]byte(h.Sum(nil)), nil
		}
		if err != nil {
			return 0, 0, sum, err
		}
	}
}

// generated is the source of what we write instead of maintainer scripts.
var generated = source{name: "kuroko"}

// setFile, setDir and setLink write what no package brings, or replace a file
// of a package. name is relative to the root.
func (t *tree) setFile(name string, mode fs.FileMode, data []byte) error {
	return t.setReader(name, mode, bytes.NewReader(data))
}

func (t *tree) setReader(name string, mode fs.FileMode, r io.Reader) error {
	n := &node{mode: mode, from: &generated}
	n.inode = n
	var err error
	if n.off, n.size, n.sum, err = t.store(r); err != nil {
		return err
	}
	return t.set(name, n)
}

func (t *tree) setDir(name string, mode fs.FileMode) error {
	n := &node{mode: fs.ModeDir | mode, from: &generated}
	n.inode = n
	return t.set(name, n)
}

func (t *tree) setLink(name, target string) error {
	n := &node{mode: fs.ModeSymlink | 0o777, link: target, from: &generated}
	n.inode = n
	return t.set(name, n)
}

func (t *tree) set(name string, n *node) error {
	name = usrMerge(name)
	if have := t.nodes[name]; have != nil && have.isDir() != n.isDir() {
		return fmt.Errorf("%w: %s is a %s in %s and a %s is to be generated", ErrConflict, name,
			typeName(have.mode), have.from.name, typeName(n.mode))
	}
	if err := t.parents(name, n.from); err != nil {
		return err
	}
	t.nodes[name] = n
	return nil
}

// names lists every path, sorted.
func (t *tree) names() []string {
	all := make([]string, 0, len(t.nodes))
	for name := range t.nodes {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// open reads a file's content.
func (t *tree) open(n *node) io.Reader {
	return io.NewSectionReader(t.spool, n.inode.off, n.inode.size)
}

// resolve follows links inside the tree, the last component included. It
// returns nil when the path leads nowhere.
func (t *tree) resolve(name string) *node {
	_, n := t.follow(name)
	return n
}

// follow is resolve with the path it arrives at.
func (t *tree) follow(name string) (string, *node) {
	rest := strings.Split(usrMerge(path.Clean(name)), "/")
	at := ""
	for hops := 0; len(rest) > 0; {
		at, rest = path.Join(at, rest[0]), rest[1:]
		n := t.nodes[at]
		switch {
		case n == nil:
			return "", nil
		case n.mode.Type() == fs.ModeSymlink:
			if hops++; hops > 40 {
				return "", nil
			}
			to := path.Join("/", path.Dir(at), n.link)
			if path.IsAbs(n.link) {
				to = path.Clean(n.link)
			}
			to = usrMerge(strings.Trim(to, "/"))
			rest = append(strings.Split(to, "/"), rest...)
			at = ""
		case len(rest) == 0:
			return at, n
		case !n.isDir():
			return "", nil
		}
	}
	return "", nil
}

// write puts the tree into w: sorted, the first name of a file with its
// content and its other names as hard links to it.
func (t *tree) write(ctx context.Context, w *layer.Writer) error { return t.writeBeyond(ctx, w, nil) }

// writeBeyond is write without the paths that below has.
func (t *tree) writeBeyond(ctx context.Context, w *layer.Writer, below *tree) error {
	first := map[*node]string{}
	for _, name := range t.names() {
		if below != nil && below.nodes[name] != nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := t.nodes[name]
		e := layer.Entry{Name: name, Mode: n.inode.mode, Link: n.link}
		if n.mode.IsRegular() {
			if target, ok := first[n.inode]; ok {
				e.Hard, e.Link = true, target
			} else {
				first[n.inode] = name
				e.Size, e.Body = n.inode.size, t.open(n)
			}
		}
		if err := w.Add(e); err != nil {
			return err
		}
	}
	return nil
}
