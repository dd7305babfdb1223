package kaniko

import (
	"archive/tar"
	"bufio"
	"bytes"
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
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
)

// maxConfig bounds the configuration that comes out of the sandbox.
const maxConfig = 4 << 20

// made is a layer above the base.
type made struct {
	v1.Layer
	title  string
	reused bool // not made in this build
}

// image is base with layers on top and a configuration. Times are 0, so that
// equal content gives an equal digest.
func image(base v1.Image, layers []made, config v1.Config, above []v1.History) (v1.Image, error) {
	old, err := base.ConfigFile()
	if err != nil {
		return nil, err
	}
	// A mixture of Docker's and OCI's media types is refused by some registries.
	manifestType, configType, layerType := types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer
	if mt, err := base.MediaType(); err == nil && mt == types.DockerManifestSchema2 && len(old.RootFS.DiffIDs) > 0 {
		manifestType, configType, layerType = types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer
	}
	var adds []mutate.Addendum
	for _, l := range layers {
		adds = append(adds, mutate.Addendum{Layer: l.Layer, MediaType: layerType})
	}
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(base, manifestType), configType), adds...)
	if err != nil {
		return nil, err
	}
	built, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	built = built.DeepCopy()
	built.Config = config
	// What a docker build leaves there is about the builder.
	built.Config.Hostname, built.Config.Image, built.Config.ArgsEscaped = "", "", false
	built.OS, built.Architecture = "linux", runtime.GOARCH
	//lint:ignore SA1019 bases still carry it
	built.Author, built.Container, built.DockerVersion = "", "", ""
	built.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	built.History = append(slices.Clone(old.History), above...)
	return mutate.ConfigFile(img, built)
}

// compressor is that of all layers. The commands have ended when it works:
// the processors are free.
const compressor = layer.Parallel

// tarEntry is where an entry's body is in the executor's tar file.
type tarEntry struct {
	h      *tar.Header
	offset int64
}

// normalise writes a layer of the executor once more: sorted, without times
// and names of owners, hard links after what they link to, and without what is
// only as it was below. It returns nil when nothing is left. The folder was
// writable for every RUN: nothing in it is trusted to be what it should be.
func normalise(root *os.Root, name, tmp string, below *known) (*layer.Layer, error) {
	f, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := readIndex(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if entries = below.drop(entries, f); len(entries) == 0 {
		return nil, nil
	}
	w, err := layer.NewWriter(tmp, compressor)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := w.Add(entry(e, f)); err != nil {
			w.Abort()
			return nil, &builder.InputError{What: "the Dockerfile makes something that can't be in an image", Next: "remove it in the same RUN", Err: err}
		}
	}
	return w.Close()
}

func readIndex(f *os.File) ([]tarEntry, error) {
	var entries []tarEntry
	at := &position{r: bufio.NewReaderSize(f, 1<<16)}
	t := tar.NewReader(at)
	seen := map[string]int{}
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if h.PAXRecords["SCHILY.xattr.security.capability"] != "" {
			return nil, &builder.InputError{What: "/" + h.Name + " has file capabilities, which functions can't use", Next: "remove them in the same RUN: setcap -r /" + h.Name}
		}
		name := path.Clean("/" + h.Name)
		if i, ok := seen[name]; ok {
			// The last one counts, as when unpacking.
			entries[i] = tarEntry{h, at.n}
			continue
		}
		seen[name] = len(entries)
		entries = append(entries, tarEntry{h, at.n})
	}
	entries = slices.DeleteFunc(entries, func(e tarEntry) bool { return path.Clean("/"+e.h.Name) == "/" })
	slices.SortFunc(entries, func(a, b tarEntry) int {
		ah, bh := a.h.Typeflag == tar.TypeLink, b.h.Typeflag == tar.TypeLink
		switch {
		case ah != bh && ah:
			return 1
		case ah != bh:
			return -1
		}
		return strings.Compare(path.Clean("/"+a.h.Name), path.Clean("/"+b.h.Name))
	})
	return entries, nil
}

// known is what the layers so far have put where. kaniko writes parent folders
// and the targets of links into a layer although they did not change, and in a
// user namespace with the builder as their owner.
type known struct {
	trees  []*rootfs.Tree  // top first
	roots  []*os.Root      // theirs
	owners bool            // whether the trees show the owners
	now    map[string]word // what new layers have written or removed, by path
	// folders remembers what trees have at a folder's name: most files of a
	// layer are in few of them.
	folders map[spot]folder
}

// word is what a new layer says about a path.
type word struct {
	folder   bool
	mode     fs.FileMode
	uid, gid int
}

// spot is a name in a tree.
type spot struct {
	tree int
	name string
}

// folder is what a tree has to say about what trees below it have in a folder.
type folder struct {
	there bool // something may be in it here
	hides bool // nothing below counts
}

func newKnown(trees []*rootfs.Tree, owners bool) (*known, error) {
	k := &known{trees: trees, owners: owners, now: map[string]word{}, folders: map[spot]folder{}}
	for _, t := range trees {
		r, err := os.OpenRoot(t.Dir)
		if err != nil {
			k.close()
			return nil, err
		}
		k.roots = append(k.roots, r)
	}
	return k, nil
}

func (k *known) close() {
	for _, r := range k.roots {
		r.Close()
	}
}

// find is the tree that shows name, or -1.
func (k *known) find(name string) (int, fs.FileInfo) {
	for i, r := range k.roots {
		f := k.folder(i, path.Dir(name))
		if f.there {
			if st, err := r.Lstat(name); err == nil {
				if whiteout(st) {
					return -1, nil
				}
				return i, st
			}
		}
		if f.hides {
			return -1, nil
		}
	}
	return -1, nil
}

func (k *known) folder(tree int, name string) folder {
	if name == "." {
		return folder{there: true}
	}
	at := spot{tree, name}
	if f, ok := k.folders[at]; ok {
		return f
	}
	f := k.folder(tree, path.Dir(name))
	if f.there {
		switch st, err := k.roots[tree].Lstat(name); {
		case err != nil:
			f.there = false
		case !st.IsDir():
			f = folder{hides: true} // something else stands there
		default:
			f.hides = f.hides || opaque(filepath.Join(k.trees[tree].Dir, name), k.owners)
		}
	}
	k.folders[at] = f
	return f
}

// whiteout says whether st is overlay's mark of a removed file.
func whiteout(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && st.Mode()&fs.ModeCharDevice != 0 && sys.Rdev == 0
}

func opaque(dir string, owners bool) bool {
	attr := "user.overlay.opaque"
	if owners {
		attr = "trusted.overlay.opaque"
	}
	b := make([]byte, 1)
	n, err := unix.Lgetxattr(dir, attr, b)
	return err == nil && n == 1 && b[0] == 'y'
}

// drop returns the entries that say something new, and the folders that they
// are in: those would else be made anew, without their mode. What the base has
// exactly so is not new; a file that an instruction has written before is, also
// if it is written with the same content again: whether that was in this build
// or in one whose layers are used must make no difference.
func (k *known) drop(entries []tarEntry, f io.ReaderAt) []tarEntry {
	linked := map[string]bool{}
	for _, e := range entries {
		if e.h.Typeflag == tar.TypeLink {
			linked[clean(e.h.Linkname)] = true
		}
	}
	fresh, keep := map[string]bool{}, map[string]bool{}
	for _, e := range entries {
		name := clean(e.h.Name)
		at, st := k.find(name)
		if at >= 0 && !k.changed(name) {
			// The namespace shows its own user as the owner of everything.
			if o, ok := k.trees[at].Foreign[name]; ok {
				e.h.Uid, e.h.Gid = o[0], o[1]
			}
		}
		if linked[name] || k.fresh(at, st, name, e, f) {
			fresh[name] = true
			for ; name != "."; name = path.Dir(name) {
				keep[name] = true
			}
		}
	}
	var kept []tarEntry
	for _, e := range entries {
		name := clean(e.h.Name)
		if !keep[name] {
			continue
		}
		if kept = append(kept, e); !fresh[name] {
			continue
		}
		if dir, file := path.Split(name); strings.HasPrefix(file, ".wh.") {
			name = path.Join(dir, strings.TrimPrefix(file, ".wh."))
		}
		k.now[clean(name)] = word{e.h.Typeflag == tar.TypeDir, e.h.FileInfo().Mode(), e.h.Uid, e.h.Gid}
	}
	return kept
}

// fresh says whether an entry says something new. Tree number at shows st.
func (k *known) fresh(at int, st fs.FileInfo, name string, e tarEntry, f io.ReaderAt) bool {
	folder := e.h.Typeflag == tar.TypeDir
	if w, ok := k.now[name]; ok && folder && w.folder {
		if !k.owners {
			e.h.Uid, e.h.Gid = w.uid, w.gid
		}
		return w != word{true, e.h.FileInfo().Mode(), e.h.Uid, e.h.Gid}
	}
	base := len(k.trees) - 1
	return k.changed(name) || at < 0 || !folder && at != base || !k.same(at, st, name, e, f)
}

// changed says whether a new layer has had a word on name: then what is below
// is no longer what is there. A folder that was written again still shows what
// is in it.
func (k *known) changed(name string) bool {
	if _, ok := k.now[name]; ok {
		return true
	}
	for name = path.Dir(name); name != "."; name = path.Dir(name) {
		if w, ok := k.now[name]; ok && !w.folder {
			return true
		}
	}
	return false
}

// same says whether the tree has exactly this.
func (k *known) same(at int, st fs.FileInfo, name string, e tarEntry, f io.ReaderAt) bool {
	if st.Mode().Type() != e.h.FileInfo().Mode().Type() || st.Mode() != e.h.FileInfo().Mode() && st.Mode().Type() != fs.ModeSymlink {
		return false
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); k.owners && (!ok || int(sys.Uid) != e.h.Uid || int(sys.Gid) != e.h.Gid) {
		return false
	}
	switch {
	case st.IsDir():
		return true
	case st.Mode().Type() == fs.ModeSymlink:
		to, err := k.roots[at].Readlink(name)
		return err == nil && to == e.h.Linkname
	case !st.Mode().IsRegular() || st.Size() != e.h.Size:
		return false
	}
	old, err := k.roots[at].Open(name)
	if err != nil {
		return false
	}
	defer old.Close()
	return equal(old, io.NewSectionReader(f, e.offset, e.h.Size))
}

// equal compares two readers of the same length.
func equal(a, b io.Reader) bool {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(a, x)
		m, _ := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if err != nil {
			return err == io.EOF || err == io.ErrUnexpectedEOF
		}
	}
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func entry(e tarEntry, f io.ReaderAt) layer.Entry {
	h := e.h
	x := layer.Entry{Name: h.Name, Mode: h.FileInfo().Mode(), UID: h.Uid, GID: h.Gid, Link: h.Linkname, Size: h.Size}
	switch h.Typeflag {
	case tar.TypeLink:
		x.Hard, x.Size = true, 0
	case tar.TypeReg:
		x.Link, x.Body = "", io.NewSectionReader(f, e.offset, h.Size)
	default:
		x.Size = 0
	}
	return x
}

// position counts what was read.
type position struct {
	r io.Reader
	n int64
}

func (p *position) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	return n, err
}

func readFile(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, err
}

// openRegular opens a file that a hostile process may have put there: no link,
// and no pipe that would never end.
func openRegular(root *os.Root, name string) (*os.File, error) {
	st, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	return root.Open(name)
}
