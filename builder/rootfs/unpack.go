package rootfs

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
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

// unpacker turns layers into a folder. Owners are kept when the process may
// give files away; in a user namespace with a single id they are noted.
type unpacker struct {
	root   *os.Root
	owners bool
	// overlay keeps whiteouts in overlay's form, for a layer that is laid over
	// others; else they remove what is below.
	overlay bool
	part    *Part                  // nil is all
	dirs    map[string]*tar.Header // applied last: a read-only folder must be filled first
	foreign map[string][2]int      // owners that are not root, by name, where they can't be kept
	left    int64                  // bytes that may still be unpacked
	at      *os.Root               // the folder called in, of the last file; nil when it may be another by now
	in      string
	buf     []byte
}

// MaxUnpacked bounds an image on disk; more is a mistake or an attack.
const MaxUnpacked = 20 << 30

// unpack writes the layers' files into dir, an existing empty folder. It
// returns the owners that could not be kept.
func unpack(ctx context.Context, layers []v1.Layer, dir string, w Want) (map[string][2]int, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u := unpacker{root: root, owners: w.Owners, overlay: w.Overlay, part: w.Part, dirs: map[string]*tar.Header{}, foreign: map[string][2]int{}, left: MaxUnpacked}
	defer u.leave()
	for i, l := range layers {
		if err := u.layer(ctx, l); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return u.foreign, u.finish()
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
	whole := &hashing{r: bufio.NewReaderSize(r, 1<<20), h: sha256.New()}
	t := tar.NewReader(whole)
	for {
		h, err := t.Next()
		if err == io.EOF {
			// The rest is read so that the stream's digest is verified.
			if _, err := io.Copy(io.Discard, whole); err != nil {
				return err
			}
			return whole.verify(l)
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

// hashing hashes what is read.
type hashing struct {
	r io.Reader
	h hash.Hash
}

func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	return n, err
}

// verify compares with what the layer's image says about it: registries check
// the compressed bytes only.
func (h *hashing) verify(l v1.Layer) error {
	want, err := l.DiffID()
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(h.h.Sum(nil)); got != want.Hex {
		return fmt.Errorf("the files have the sum sha256:%s, the image says %s", got, want)
	}
	return nil
}

// opaqueMark says that a folder hides what lower layers have in it.
const opaqueMark = ".wh..wh..opq"

func (u *unpacker) entry(name string, h *tar.Header, body io.Reader, own map[string]bool) error {
	dir, file := path.Split(name)
	dir = path.Clean(dir)
	hidden, removes := strings.CutPrefix(file, ".wh.")
	if u.part != nil {
		about := name
		switch {
		case file == opaqueMark:
			about = dir
		case removes:
			about = path.Join(dir, hidden)
		}
		if !u.part.Has(about) {
			return nil
		}
	}
	regular := h.Typeflag == tar.TypeReg && !removes
	if !regular {
		u.leave()
	}
	if u.at == nil || u.in != dir {
		if err := u.parents(dir); err != nil && !removes {
			return err
		}
	}
	if file == opaqueMark {
		return u.hide(dir, own, true)
	}
	if removes {
		return u.hide(path.Join(dir, hidden), own, false)
	}
	if (h.Uid != 0 || h.Gid != 0) && !u.owners {
		u.foreign[name] = [2]int{h.Uid, h.Gid}
	} else {
		delete(u.foreign, name)
	}
	for p := name; p != "." && !own[p]; p = path.Dir(p) {
		own[p] = true
	}
	if regular {
		return u.file(name, dir, file, h, body)
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
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		if u.owners {
			return u.root.Lchown(name, h.Uid, h.Gid)
		}
		return nil
	case tar.TypeLink:
		err := u.root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
		if u.part != nil && errors.Is(err, fs.ErrNotExist) {
			return ErrNotInPart
		}
		return err
	}
	// Devices, pipes: a sandbox has its own /dev.
	return nil
}

// file writes a regular file. From the root every call walks the whole path,
// and a file takes several: the folder stays open for the files that follow.
func (u *unpacker) file(name, dir, base string, h *tar.Header, body io.Reader) error {
	if u.left -= h.Size; u.left < 0 {
		return fmt.Errorf("the image is larger than %d GiB", MaxUnpacked>>30)
	}
	f, err := u.create(dir, base)
	if errors.Is(err, fs.ErrExist) {
		if err := u.remove(name); err != nil {
			return err
		}
		f, err = u.create(dir, base)
	}
	if err != nil {
		return err
	}
	if u.buf == nil {
		u.buf = make([]byte, 64<<10)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, body, u.buf)
	if err == nil && u.owners {
		err = f.Chown(h.Uid, h.Gid)
	}
	if err == nil {
		err = f.Chmod(modeOf(h)) // after the owner, whose change clears set-user-ID
	}
	if c := capability(h); err == nil && c != "" && u.owners {
		if err = unix.Fsetxattr(int(f.Fd()), xattrCapability, []byte(c), 0); errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return u.at.Chtimes(base, h.ModTime, h.ModTime)
}

// create makes a new file in a folder, which is then open.
func (u *unpacker) create(dir, base string) (f *os.File, err error) {
	if u.at == nil || u.in != dir {
		u.leave()
		if u.at, err = u.root.OpenRoot(dir); err != nil {
			return nil, err
		}
		u.in = dir
	}
	return u.at.OpenFile(base, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

// leave closes the open folder: another may get its name.
func (u *unpacker) leave() {
	if u.at != nil {
		u.at.Close()
		u.at = nil
	}
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
	if err := u.root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return u.root.Chmod(dir, 0o755) // whatever the umask is
}

// hide removes what lower layers have at name, or in it.
func (u *unpacker) hide(name string, own map[string]bool, inside bool) error {
	if u.overlay {
		return u.whiteout(name, own, inside)
	}
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

// whiteout says in overlay's form that what lower layers have at name, or in
// it, is gone.
func (u *unpacker) whiteout(name string, own map[string]bool, inside bool) error {
	if inside {
		attr := "trusted.overlay.opaque"
		if !u.owners {
			attr = "user.overlay.opaque"
		}
		d, err := u.root.Open(name)
		if err != nil {
			return err
		}
		defer d.Close()
		return unix.Fsetxattr(int(d.Fd()), attr, []byte("y"), 0)
	}
	if own[name] {
		return nil
	}
	d, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	// Nobody needs a right for this one device since Linux 5.8.
	return unix.Mknodat(int(d.Fd()), path.Base(name), unix.S_IFCHR, 0)
}

func (u *unpacker) remove(name string) error {
	u.leave()
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
	if err := u.root.Chmod(name, modeOf(h)); err != nil {
		return err
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

func modeOf(h *tar.Header) fs.FileMode {
	mode := fs.FileMode(h.Mode & 0o777)
	for bit, m := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.Mode&bit != 0 {
			mode |= m
		}
	}
	return mode
}

// capability is what a program may do without being root.
func capability(h *tar.Header) string { return h.PAXRecords["SCHILY.xattr."+xattrCapability] }

const xattrCapability = "security.capability"

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

// Remove removes a folder, also where its owner may not write to what is in it.
func Remove(dir string) error {
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
