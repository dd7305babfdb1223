package kaniko

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// titled is a new layer and the instruction that made it.
type titled struct {
	*layer.Layer
	title string
}

// maxConfig bounds the configuration that comes out of the sandbox.
const maxConfig = 4 << 20

// assemble makes the image out of the base and what the executor left in out.
// The folder was writable for every RUN: nothing in it is trusted to be what
// it should be, and links in it lead nowhere. Times are set to 0, entries
// sorted, and what is only as it was in the base is left out, so that equal
// content gives an equal digest. The caller closes the layers.
func assemble(base v1.Image, below *known, out, tmp string, o Outcome) (_ v1.Image, _ []titled, err error) {
	root, err := os.OpenRoot(out)
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	raw, err := readFile(root, "config.json", maxConfig)
	if err != nil {
		return nil, nil, err
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, nil, fmt.Errorf("config.json: %w", err)
	}
	baseConfig, err := base.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	if o.Layers < 0 || len(config.RootFS.DiffIDs) != len(baseConfig.RootFS.DiffIDs)+o.Layers {
		return nil, nil, fmt.Errorf("the executor reports %d layers, its configuration %d on a base of %d", o.Layers, len(config.RootFS.DiffIDs), len(baseConfig.RootFS.DiffIDs))
	}
	titles := layerTitles(&config, len(baseConfig.History))
	var layers []titled
	defer func() {
		if err != nil {
			closeAll(layers)
		}
	}()
	var adds []mutate.Addendum
	for i := range o.Layers {
		l, err := normalise(root, fmt.Sprintf("%d.tar", i), tmp, below)
		if err != nil {
			return nil, layers, err
		}
		title := "layer"
		if i < len(titles) {
			title = titles[i]
		}
		layers = append(layers, titled{l, title})
		adds = append(adds, mutate.Addendum{Layer: l, MediaType: types.OCILayer, History: v1.History{CreatedBy: title}})
	}
	// A mixture of Docker's and OCI's media types is refused by some registries.
	manifestType, configType := types.OCIManifestSchema1, types.OCIConfigJSON
	if mt, err := base.MediaType(); err == nil && mt == types.DockerManifestSchema2 && len(baseConfig.RootFS.DiffIDs) > 0 {
		manifestType, configType = types.DockerManifestSchema2, types.DockerConfigJSON
		for i := range adds {
			adds[i].MediaType = types.DockerLayer
		}
	}
	img := mutate.ConfigMediaType(mutate.MediaType(base, manifestType), configType)
	if img, err = mutate.Append(img, adds...); err != nil {
		return nil, layers, err
	}
	built, err := img.ConfigFile()
	if err != nil {
		return nil, layers, err
	}
	built = built.DeepCopy()
	built.Config = config.Config
	// What a docker build leaves there is about the builder.
	built.Config.Hostname, built.Config.Image, built.Config.ArgsEscaped = "", "", false
	built.OS, built.Architecture = config.OS, config.Architecture
	//lint:ignore SA1019 bases still carry it
	built.Author, built.Container, built.DockerVersion = "", "", ""
	built.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	built.History = history(baseConfig, &config)
	img, err = mutate.ConfigFile(img, built)
	return img, layers, err
}

// history is the base's and then one entry per instruction, without times.
func history(base, config *v1.ConfigFile) []v1.History {
	all := slices.Clone(base.History)
	for _, h := range config.History[min(len(base.History), len(config.History)):] {
		all = append(all, v1.History{Created: v1.Time{Time: time.Unix(0, 0).UTC()}, CreatedBy: h.CreatedBy, EmptyLayer: h.EmptyLayer})
	}
	return all
}

// layerTitles are the instructions that made the new layers.
func layerTitles(config *v1.ConfigFile, base int) []string {
	var titles []string
	for _, h := range config.History[min(base, len(config.History)):] {
		if !h.EmptyLayer {
			titles = append(titles, h.CreatedBy)
		}
	}
	return titles
}

// tarEntry is where an entry's body is in the executor's tar file.
type tarEntry struct {
	h      *tar.Header
	offset int64
}

// normalise writes the executor's layer once more: sorted, without times and
// names of owners, hard links after what they link to.
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
	entries = below.drop(entries, f)
	w, err := layer.NewWriter(tmp, layer.Gzip)
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
	root   *os.Root        // the base's files
	owners bool            // whether lower shows the base's owners
	now    map[string]bool // paths that a new layer has written or removed; true for folders
}

// drop returns the entries that say something new.
func (k *known) drop(entries []tarEntry, f io.ReaderAt) []tarEntry {
	linked := map[string]bool{}
	for _, e := range entries {
		if e.h.Typeflag == tar.TypeLink {
			linked[clean(e.h.Linkname)] = true
		}
	}
	var kept []tarEntry
	for _, e := range entries {
		if name := clean(e.h.Name); linked[name] || k.changed(name) || !k.same(name, e, f) {
			kept = append(kept, e)
		}
	}
	for _, e := range kept {
		name := clean(e.h.Name)
		if dir, file := path.Split(name); strings.HasPrefix(file, ".wh.") {
			name = path.Join(dir, strings.TrimPrefix(file, ".wh."))
		}
		k.now[clean(name)] = e.h.Typeflag == tar.TypeDir
	}
	return kept
}

// changed says whether a new layer has had a word on name: then the base's
// file is no longer what is there. A folder that was written again still shows
// what is in it.
func (k *known) changed(name string) bool {
	if _, ok := k.now[name]; ok {
		return true
	}
	for name = path.Dir(name); name != "."; name = path.Dir(name) {
		if folder, ok := k.now[name]; ok && !folder {
			return true
		}
	}
	return false
}

// same says whether the base has exactly this.
func (k *known) same(name string, e tarEntry, f io.ReaderAt) bool {
	st, err := k.root.Lstat(name)
	if err != nil || st.Mode() != e.h.FileInfo().Mode() && st.Mode().Type() != fs.ModeSymlink || st.Mode().Type() != e.h.FileInfo().Mode().Type() {
		return false
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); k.owners && (!ok || int(sys.Uid) != e.h.Uid || int(sys.Gid) != e.h.Gid) {
		return false
	}
	switch {
	case st.IsDir():
		return true
	case st.Mode().Type() == fs.ModeSymlink:
		to, err := k.root.Readlink(name)
		return err == nil && to == e.h.Linkname
	case !st.Mode().IsRegular() || st.Size() != e.h.Size:
		return false
	}
	old, err := k.root.Open(name)
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

func closeAll(layers []titled) {
	for _, l := range layers {
		l.Close()
	}
}
