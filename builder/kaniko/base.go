package kaniko

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// unpacker turns an image's layers into a folder. Owners are kept when the
// process may give files away; in a user namespace with a single id they
// would have no meaning.
type unpacker struct {
	root   *os.Root
	dir    string
	owners bool
	dirs   map[string]*tar.Header // applied last: a read-only folder must be filled first
	left   int64                  // bytes that may still be unpacked
}

// maxUnpacked bounds a base image on disk; more is a mistake or an attack.
const maxUnpacked = 20 << 30

// unpack writes img's files into dir, which must not exist. It appears there
// complete or not at all; when another process was faster, its result stays.
func unpack(ctx context.Context, img v1.Image, dir string, owners bool) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".unpack-")
	if err != nil {
		return err
	}
	defer removeTree(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacker{root: root, dir: tmp, owners: owners, dirs: map[string]*tar.Header{}, left: maxUnpacked}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for i, l := range layers {
		if err := u.layer(ctx, l); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if err := u.finish(); err != nil {
		return err
	}
	err = os.Rename(tmp, dir)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (u *unpacker) layer(ctx context.Context, l v1.Layer) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	// Whiteouts hide what lower layers brought, never their own layer's.
	own := map[string]bool{}
	t := tar.NewReader(bufio.NewReaderSize(r, 1<<20))
	for {
		h, err := t.Next()
		if err == io.EOF {
			// The rest is read so that the stream's digest is verified.
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			continue
		}
		if err := u.entry(name, h, t, own); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

func (u *unpacker) entry(name string, h *tar.Header, body io.Reader, own map[string]bool) error {
	dir, file := path.Split(name)
	dir = path.Clean(dir)
	if file == ".wh..wh..opq" {
		return u.hide(dir, own, true)
	}
	if hidden, ok := strings.CutPrefix(file, ".wh."); ok {
		return u.hide(path.Join(dir, hidden), own, false)
	}
	if err := u.parents(dir); err != nil {
		return err
	}
	for p := name; p != "."; p = path.Dir(p) {
		own[p] = true
	}
	st, err := u.root.Lstat(name)
	if err == nil && !(st.IsDir() && h.Typeflag == tar.TypeDir) {
		if err := u.remove(name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		u.dirs[name] = h
		return nil
	case tar.TypeReg:
		if u.left -= h.Size; u.left < 0 {
			return fmt.Errorf("the image is larger than %d GiB", maxUnpacked>>30)
		}
		f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, body)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		return u.attributes(name, h)
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		if u.owners {
			return u.root.Lchown(name, h.Uid, h.Gid)
		}
		return nil
	case tar.TypeLink:
		return u.root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	}
	// Devices, pipes: a sandbox has its own /dev.
	return nil
}

// parents makes folders that the archive does not list, and replaces files
// that stand in the way. A symbolic link to a folder stays, as when the layers
// are mounted; os.Root keeps it from leading out.
func (u *unpacker) parents(dir string) error {
	if dir == "." || dir == "/" {
		return nil
	}
	st, err := u.root.Stat(dir)
	if err == nil && st.IsDir() {
		return nil
	}
	if err := u.parents(path.Dir(dir)); err != nil {
		return err
	}
	if st, err := u.root.Lstat(dir); err == nil {
		if st.Mode().Type() == fs.ModeSymlink {
			return fmt.Errorf("lies behind the link %s, which does not lead to a folder of the image", dir)
		}
		if err := u.remove(dir); err != nil {
			return err
		}
	}
	return mkdir(u.root, dir)
}

// hide removes what lower layers have at name, or in it.
func (u *unpacker) hide(name string, own map[string]bool, inside bool) error {
	if !inside {
		if own[name] {
			return nil
		}
		return u.remove(name)
	}
	list, err := fs.ReadDir(u.root.FS(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		p := path.Join(name, e.Name())
		if own[p] {
			if e.IsDir() {
				if err := u.hide(p, own, true); err != nil {
					return err
				}
			}
			continue
		}
		if err := u.remove(p); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) remove(name string) error {
	for d := range u.dirs {
		if d == name || strings.HasPrefix(d, name+"/") {
			delete(u.dirs, d)
		}
	}
	return u.root.RemoveAll(name)
}

// attributes sets owner, mode and time, in this order: a change of owner
// clears set-user-ID.
func (u *unpacker) attributes(name string, h *tar.Header) error {
	if u.owners {
		if err := u.root.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode & 0o777)
	for bit, m := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.Mode&bit != 0 {
			mode |= m
		}
	}
	if err := u.root.Chmod(name, mode); err != nil {
		return err
	}
	if c := h.PAXRecords["SCHILY.xattr.security.capability"]; c != "" && u.owners {
		// The path stays inside: the file was made through it, below root.
		if err := unix.Lsetxattr(filepath.Join(u.dir, name), "security.capability", []byte(c), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

// finish sets the folders' attributes, the deepest first.
func (u *unpacker) finish() error {
	for _, name := range deepestFirst(u.dirs) {
		if err := u.attributes(name, u.dirs[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func deepestFirst(m map[string]*tar.Header) []string {
	names := slices.Collect(maps.Keys(m))
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(b, "/"), strings.Count(a, "/")), strings.Compare(a, b))
	})
	return names
}

// removeTree removes also folders that their owner may not write to.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(name, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
