package debian

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// infoFile stands in an image's layout beside index.json.
const infoFile = "kuroko.json"

// keep is how long layers and archives that no build used stay in the cache.
const keep = 14 * 24 * time.Hour

// lock takes the cache, for all processes: how is LOCK_EX to build, LOCK_SH to
// read.
func (b *Builder) lock(ctx context.Context, how int) (unlock func(), err error) {
	if b.Cache == "" || !filepath.IsAbs(b.Cache) {
		return nil, fmt.Errorf("debian: the cache folder %q is not an absolute path", b.Cache)
	}
	if err := os.MkdirAll(b.tmp(), 0o755); err != nil {
		return nil, fmt.Errorf("debian: cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(b.Cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("debian: cache: %w", err)
	}
	for waited := false; ; waited = true {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("debian: lock %s: %w", b.Cache, err)
		}
		if !waited {
			b.log("wait for another build in %s", b.Cache)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// storedLayer is a layer in the cache.
type storedLayer struct {
	info layer.Info
	path string // of the compressed bytes
}

var _ partial.CompressedLayer = (*storedLayer)(nil)

func (l *storedLayer) Digest() (v1.Hash, error)            { return l.info.Digest, nil }
func (l *storedLayer) DiffID() (v1.Hash, error)            { return l.info.DiffID, nil }
func (l *storedLayer) Size() (int64, error)                { return l.info.Size, nil }
func (l *storedLayer) MediaType() (types.MediaType, error) { return l.info.MediaType, nil }
func (l *storedLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }

// stored finds the layer of that key, or makes it. What is there is read
// through once: a damaged file is made again.
func (b *Builder) stored(ctx context.Context, key string, fill func(*layer.Writer) error) (l *storedLayer, reused bool, err error) {
	dir := b.layerDir(key)
	if l := readStored(dir); l != nil {
		now := b.now()
		_ = os.Chtimes(dir, now, now) // only the age for prune
		return l, true, nil
	}
	w, err := layer.NewWriter(b.tmp(), layer.Gzip)
	if err != nil {
		return nil, false, err
	}
	if err := fill(w); err != nil {
		w.Abort()
		return nil, false, err
	}
	made, err := w.Close()
	if err != nil {
		return nil, false, err
	}
	defer made.Close()
	tmp, err := os.MkdirTemp(b.tmp(), "layer-")
	if err != nil {
		return nil, false, err
	}
	defer os.RemoveAll(tmp)
	if err := writeFrom(filepath.Join(tmp, "blob"), made.Open()); err != nil {
		return nil, false, err
	}
	info, err := json.Marshal(made.Info())
	if err != nil {
		return nil, false, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), info, 0o644); err != nil {
		return nil, false, err
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.RemoveAll(dir), os.Chmod(tmp, 0o755), os.Rename(tmp, dir)); err != nil {
		return nil, false, err
	}
	return &storedLayer{info: made.Info(), path: filepath.Join(dir, "blob")}, false, nil
}

// readStored is nil when there is no sound layer in dir.
func readStored(dir string) *storedLayer {
	data, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	if err != nil {
		return nil
	}
	l := &storedLayer{path: filepath.Join(dir, "blob")}
	if json.Unmarshal(data, &l.info) != nil {
		return nil
	}
	if sum, err := fileSum(l.path); err != nil || sum != l.info.Digest.Hex {
		return nil
	}
	return l
}

func writeFrom(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// image puts the layers and the recipe's settings together.
func (img Image) image(r Recipe, layers []*storedLayer) (v1.Image, error) {
	out := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i, l := range layers {
		full, err := partial.CompressedToLayer(l)
		if err != nil {
			return nil, err
		}
		if out, err = mutate.Append(out, mutate.Addendum{Layer: full, MediaType: l.info.MediaType,
			History: v1.History{Created: v1.Time{Time: time.Unix(0, 0).UTC()}, CreatedBy: "faasctl image build " + r.Name, Comment: img.Layers[i].Title}}); err != nil {
			return nil, err
		}
	}
	cf, err := out.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", img.Arch
	if cf.Architecture == "arm" {
		cf.Variant = "v7" // Debian's armhf
	}
	cf.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	env := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for k, v := range r.Env {
		env[k] = v
	}
	cf.Config.Env = nil
	for _, k := range sortedKeys(env) {
		cf.Config.Env = append(cf.Config.Env, k+"="+env[k])
	}
	cf.Config.WorkingDir, cf.Config.User = r.Workdir, r.User
	cf.Config.Entrypoint, cf.Config.Cmd = r.Entrypoint, r.Cmd
	cf.Config.Labels = map[string]string{LabelABI: img.ABI, "org.opencontainers.image.title": r.Name}
	if r.Title != "" {
		cf.Config.Labels["org.opencontainers.image.description"] = r.Title
	}
	for k, v := range r.Labels {
		cf.Config.Labels[k] = v
	}
	return mutate.ConfigFile(out, cf)
}

// writeLayout makes img's OCI layout at out/<name>, at once or not at all.
func (b *Builder) writeLayout(r Recipe, img Image, layers []*storedLayer, out string) (Image, error) {
	built, err := img.image(r, layers)
	if err != nil {
		return Image{}, err
	}
	digest, err := built.Digest()
	if err != nil {
		return Image{}, err
	}
	if img.Path, err = filepath.Abs(filepath.Join(out, filepath.FromSlash(img.Name))); err != nil {
		return Image{}, err
	}
	img.Digest = digest.String()
	if have, err := readImage(img.Path); err == nil && have.Digest == img.Digest && sound(img.Path, layers, digest) {
		img.Reused = true
		return img, nil
	}
	parent := filepath.Dir(img.Path)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return Image{}, err
	}
	tmp, err := os.MkdirTemp(parent, ".new-")
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return Image{}, err
	}
	if err := fillLayout(tmp, img, built, layers); err != nil {
		return Image{}, err
	}
	// Two renames: a reader between them finds nothing, never a half image.
	old := tmp + ".old"
	if err := os.Rename(img.Path, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Image{}, err
	}
	if err := os.Rename(tmp, img.Path); err != nil {
		return Image{}, err
	}
	return img, os.RemoveAll(old)
}

func fillLayout(dir string, img Image, built v1.Image, layers []*storedLayer) error {
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	for _, l := range layers {
		to := filepath.Join(blobs, l.info.Digest.Hex)
		if err := os.Link(l.path, to); err == nil || errors.Is(err, os.ErrExist) {
			continue
		}
		f, err := os.Open(l.path) // another disk
		if err != nil {
			return err
		}
		err = writeFrom(to, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	if err := p.AppendImage(built, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: img.Arch}),
		layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": img.Name})); err != nil {
		return err
	}
	info, err := json.MarshalIndent(img, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, infoFile), append(info, '\n'), 0o644)
}

// sound tells whether a layout still holds its blobs.
func sound(dir string, layers []*storedLayer, digest v1.Hash) bool {
	for _, l := range layers {
		info, err := os.Stat(filepath.Join(dir, "blobs", "sha256", l.info.Digest.Hex))
		if err != nil || info.Size() != l.info.Size {
			return false
		}
	}
	sum, err := fileSum(filepath.Join(dir, "blobs", "sha256", digest.Hex))
	return err == nil && sum == digest.Hex
}

func readImage(dir string) (Image, error) {
	data, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		return Image{}, err
	}
	var img Image
	if err := json.Unmarshal(data, &img); err != nil {
		return Image{}, fmt.Errorf("%s: %w", filepath.Join(dir, infoFile), err)
	}
	img.Path = dir
	return img, nil
}

// Find describes an image made before, in out or, when out is "", in the
// cache. [ErrNotBuilt] when there is none.
func (b *Builder) Find(image, out string) (Image, error) {
	if !nameRE.MatchString(image) {
		return Image{}, fmt.Errorf("debian: %q is not an image name: %w", image, ErrNotBuilt)
	}
	if out == "" {
		out = b.images()
	}
	img, err := readImage(filepath.Join(out, filepath.FromSlash(image)))
	if errors.Is(err, os.ErrNotExist) {
		return Image{}, fmt.Errorf("debian: image %s: %w", image, ErrNotBuilt)
	}
	if err != nil {
		return Image{}, fmt.Errorf("debian: image %s: %w", image, err)
	}
	return img, nil
}

// Open reads the image itself. It is read lazily, from Path.
func (img Image) Open() (v1.Image, error) {
	digest, err := v1.NewHash(img.Digest)
	if err != nil {
		return nil, fmt.Errorf("debian: image %s: %w", img.Name, err)
	}
	p, err := layout.FromPath(img.Path)
	if err != nil {
		return nil, fmt.Errorf("debian: image %s: %w", img.Name, err)
	}
	opened, err := p.Image(digest)
	if err != nil {
		return nil, fmt.Errorf("debian: image %s: %w", img.Name, err)
	}
	return opened, nil
}

// prune removes layers and archives that no build has used for long. What it
// can't remove stays: it is only space.
func (b *Builder) prune() {
	for _, dir := range []string{filepath.Join(b.Cache, "layers"), filepath.Join(b.Cache, "apt", "archives"), b.tmp()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && b.now().Sub(info.ModTime()) > keep && !strings.HasPrefix(e.Name(), "partial") {
				_ = os.RemoveAll(filepath.Join(dir, e.Name()))
			}
		}
	}
}
