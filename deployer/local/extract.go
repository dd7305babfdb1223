package local

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Limits of what an image may unpack to, so that a hostile or broken one
// can't fill the machine.
type limits struct {
	bytes int64
	files int
}

// layerNeeds says what a layer, unpacked alone, would lose: then the image's
// layers are unpacked on top of each other instead.
type layerNeeds struct {
	// Below: the layer removes files of lower ones, or links to them.
	Below bool `json:"below"`
	// Folders are those it has files in but does not describe: in a lower
	// layer they may be links, or have another mode.
	Folders []string `json:"folders,omitempty"`
}

// maxFolders is how many such folders are looked up; more count as Below.
const maxFolders = 1000

// hostileError is a layer that tries what no honest builder writes.
type hostileError struct{ what string }

func (e *hostileError) Error() string { return "hostile layer: " + e.what }

// extractor unpacks layers into one folder. Nothing it does leaves the
// folder: every path goes through os.Root, and links on the way are resolved
// within.
type extractor struct {
	root *os.Root
	// onto: lower layers are in the folder already, so what removes files
	// takes effect. Otherwise it is only reported.
	onto bool
	// owners keeps owners and groups; it needs root's rights.
	owners bool
	left   limits

	real map[string]string   // folders by name in the layer → where they really are
	mine map[string]bool     // what this layer made
	dirs map[string]dirProps // modes given at the end, so that read-only folders can be filled
	need layerNeeds
}

type dirProps struct {
	mode     fs.FileMode
	uid, gid int
}

// maxLinks is how many symbolic links one path may go through, as in Linux.
const maxLinks = 40

// layer unpacks one uncompressed layer.
func (x *extractor) layer(r io.Reader) error {
	x.real = map[string]string{".": "."}
	x.mine = map[string]bool{}
	x.dirs = map[string]dirProps{}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		if err := x.entry(h, t); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	// Bytes behind the archive's end belong to the digest.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	return x.finishDirs()
}

func (x *extractor) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if x.left.files--; x.left.files < 0 {
		return &hostileError{"more files than the limit"}
	}
	name := path.Clean("/" + h.Name)[1:]
	if hasDotDot(h.Name) {
		return &hostileError{"a path with .."}
	}
	if name == "" {
		x.dirs["."] = dirProps{dirMode(h), h.Uid, h.Gid}
		return nil
	}
	dir, err := x.folder(path.Dir(name), 0)
	if err != nil {
		return err
	}
	base := path.Base(name)
	at := path.Join(dir, base)
	if rest, ok := strings.CutPrefix(base, ".wh."); ok {
		return x.whiteout(dir, rest)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err = x.dir(at, h)
	case tar.TypeReg:
		err = x.file(at, h, body)
	case tar.TypeSymlink:
		if err = x.clear(at); err == nil {
			err = x.root.Symlink(h.Linkname, at)
		}
	case tar.TypeLink:
		err = x.link(at, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return nil // the sandbox has its own devices; functions need no pipes on disk
	default:
		return fmt.Errorf("entry of unknown type %q", h.Typeflag)
	}
	if err != nil {
		return err
	}
	x.mine[at] = true
	if x.owners && h.Typeflag != tar.TypeLink && h.Typeflag != tar.TypeDir {
		if err := x.root.Lchown(at, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeReg {
		// After the owner: changing that clears bits of the mode. Programs
		// that change the user are of no use in a function, and a way out.
		return x.root.Chmod(at, fs.FileMode(h.Mode)&0o777)
	}
	return nil
}

func hasDotDot(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// folder makes name a folder and returns where it really is, with every link
// on the way resolved as the container would: an absolute link starts at the
// container's own root, and .. stays inside.
func (x *extractor) folder(name string, links int) (string, error) {
	if at, ok := x.real[name]; ok {
		return at, nil
	}
	parent, err := x.folder(path.Dir(name), links)
	if err != nil {
		return "", err
	}
	at := path.Join(parent, path.Base(name))
	st, err := x.root.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if x.need.Folders = append(x.need.Folders, at); len(x.need.Folders) > maxFolders {
			x.need.Folders, x.need.Below = nil, true
		}
		if err := x.root.Mkdir(at, 0o755); err != nil {
			return "", err
		}
		// Whatever our umask is.
		if err := x.root.Chmod(at, 0o755); err != nil {
			return "", err
		}
		x.mine[at] = true
	case err != nil:
		return "", err
	case st.Mode()&fs.ModeSymlink != 0:
		if links++; links > maxLinks {
			return "", &hostileError{"too many links in one path"}
		}
		to, err := x.root.Readlink(at)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(to) {
			to = path.Join("/", parent, to)
		}
		if to = path.Clean(to)[1:]; to == "" {
			to = "."
		}
		if at, err = x.folder(to, links); err != nil {
			return "", err
		}
	case !st.IsDir():
		return "", fmt.Errorf("%s is a file, not a folder", at)
	}
	x.real[name] = at
	return at, nil
}

// clear removes what stands at the place of an entry.
func (x *extractor) clear(at string) error {
	st, err := x.root.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	x.forget(st)
	return x.root.RemoveAll(at)
}

// forget drops what was remembered about folders, when one of them, or a link
// that may lead to one, is removed.
func (x *extractor) forget(st fs.FileInfo) {
	if st.IsDir() || st.Mode()&fs.ModeSymlink != 0 {
		x.real = map[string]string{".": "."}
	}
}

func dirMode(h *tar.Header) fs.FileMode {
	m := fs.FileMode(h.Mode) & 0o777
	if h.Mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

func (x *extractor) dir(at string, h *tar.Header) error {
	st, err := x.root.Lstat(at)
	if err == nil && !st.IsDir() {
		if err := x.clear(at); err != nil {
			return err
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = x.root.Mkdir(at, 0o700)
	}
	if err != nil {
		return err
	}
	x.dirs[at] = dirProps{dirMode(h), h.Uid, h.Gid}
	return nil
}

func (x *extractor) file(at string, h *tar.Header, body io.Reader) error {
	if x.left.bytes -= h.Size; x.left.bytes < 0 || h.Size < 0 {
		return &hostileError{"more bytes than the limit"}
	}
	if err := x.clear(at); err != nil {
		return err
	}
	f, err := x.root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, body)
	if err == nil && n != h.Size {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, f.Close())
}

func (x *extractor) link(at string, h *tar.Header) error {
	if hasDotDot(h.Linkname) {
		return &hostileError{"a link with .."}
	}
	name := path.Clean("/" + h.Linkname)[1:]
	if name == "" {
		return &hostileError{"a hard link to /"}
	}
	dir, err := x.folder(path.Dir(name), 0)
	if err != nil {
		return err
	}
	to := path.Join(dir, path.Base(name))
	st, err := x.root.Lstat(to)
	if errors.Is(err, fs.ErrNotExist) && !x.onto {
		x.need.Below = true // in a lower layer
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		return &hostileError{"a hard link to a folder"}
	}
	if to == at {
		return nil
	}
	if err := x.clear(at); err != nil {
		return err
	}
	return x.root.Link(to, at)
}

// whiteout removes what lower layers left in dir: the named entry, or
// everything when it is the opaque marker.
func (x *extractor) whiteout(dir, name string) error {
	x.need.Below = true
	switch name {
	case "", ".", "..":
		return &hostileError{"a whiteout of a folder's own name"}
	}
	if !x.onto {
		return nil
	}
	if name != ".wh..opq" {
		if strings.HasPrefix(name, ".wh.") {
			return nil // other markers of the same family mean nothing here
		}
		if at := path.Join(dir, name); !x.mine[at] {
			return x.clear(at)
		}
		return nil
	}
	f, err := x.root.Open(dir)
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, n := range names {
		if at := path.Join(dir, n); !x.mine[at] {
			if err := x.clear(at); err != nil {
				return err
			}
		}
	}
	return nil
}

func (x *extractor) finishDirs() error {
	for at, p := range x.dirs {
		st, err := x.root.Lstat(at)
		if err != nil || !st.IsDir() {
			continue // replaced by a later entry
		}
		if x.owners {
			if err := x.root.Lchown(at, p.uid, p.gid); err != nil {
				return err
			}
		} else {
			p.mode |= 0o700 // or we could not remove it again
		}
		if err := x.root.Chmod(at, p.mode); err != nil {
			return err
		}
	}
	return nil
}
