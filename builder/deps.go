package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/npm"
	"github.com/kuroko-faas/kuroko/builder/pip"
	"github.com/kuroko-faas/kuroko/builder/registry"
)

// depsVersion is part of every dependency key: another way to write the layer
// has to raise it.
const (
	depsVersion = "npm/3"
	pipVersion  = "pip/1"
)

// maxLock is more than any honest lock file has.
const maxLock = 64 << 20

// depsMemo is what is remembered of a dependency layer.
type depsMemo struct {
	layer.Info
	Repo string `json:"repo"` // where it was pushed to last
}

// dependencies finds or makes the dependency layer and brings it into the
// image's repository. nil means that there is nothing to install.
func (b *build) dependencies(ctx context.Context) (*part, error) {
	r, err := b.recipe()
	if err != nil || r.empty {
		return nil, err
	}
	key := b.depsKey(r.parts...)
	// Several images with the same dependencies at once: one makes the layer,
	// the others mount it.
	unlock := b.e.memo.lock("deps " + key)
	defer unlock()
	p, hint, err := b.knownDeps(ctx, key)
	if p != nil || err != nil {
		return p, err
	}
	l, err := b.makeDeps(ctx, r)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	p = &part{titled: titled{title: "dependencies", info: l.Info()}}
	var from *name.Repository
	switch repo := b.cacheRepo(); {
	case hint == nil:
	case hint.Digest == p.info.Digest:
		from = &repo // what is there is what it should be
	case r.write != nil:
		b.warn("the shared index of dependency layers in %s holds something else than these packages under %s, which was not used: whoever can push there can have written it",
			repo, keyTag(repo, "deps-", key).TagStr())
	}
	if p.reused, err = b.ensure(ctx, blobOf(p.title, l), from, p.info.Size >= bigEnoughToAsk); err != nil {
		return nil, err
	}
	b.remember(key, p.info)
	b.offer(ctx, key, p.info)
	return p, nil
}

// recipe is how a dependency layer comes about.
type recipe struct {
	empty bool // there is nothing to install
	parts []string
	// write makes the layer from the lock file; nil where only the installer
	// can. install is also for what only an archive tells: then it knows why.
	write   func(ctx context.Context, w *layer.Writer) error
	install func(ctx context.Context, why error) (*layer.Layer, error)
}

// Installs says whether dependencies need the package manager itself, as far
// as the lock file tells. What can't be read does not.
func (e *Layers) Installs(d *Dependencies) bool {
	b := &build{e: e, req: Request{Dependencies: d}}
	r, err := b.recipe()
	return err == nil && !r.empty && r.write == nil
}

// recipe reads the lock file.
func (b *build) recipe() (recipe, error) {
	d := b.req.Dependencies
	lock, err := readInput(d.FS, d.Lock)
	if err != nil {
		return recipe{}, err
	}
	if d.Kind == KindPip {
		return b.pipRecipe(lock)
	}
	manifest, err := readInput(d.FS, d.Manifest)
	if err != nil {
		return recipe{}, err
	}
	if d.Kind != KindNPM {
		return b.toolRecipe(manifest, lock)
	}
	parsed, err := npm.Parse(manifest, lock)
	var plan npm.Plan
	if err == nil {
		plan, err = parsed.Plan(b.e.npmPlatform())
	}
	r := recipe{install: func(ctx context.Context, _ error) (*layer.Layer, error) { return b.npmInstall(ctx, manifest, lock) }}
	switch {
	case errors.Is(err, npm.ErrNeedsInstaller):
		// npm reads more than the plan: all of both files takes part.
		r.parts = []string{"installer", string(manifest), string(lock)}
		return r, nil
	case err != nil:
		return recipe{}, err
	}
	r.empty, r.parts = plan.Empty(), plan.Parts()
	r.write = func(ctx context.Context, w *layer.Writer) error {
		o := b.e.o
		f := &npm.Fetcher{Registry: d.Registry, Scopes: o.NPMScopes, Source: b.e.packages(), Cache: o.NPMCache, Temp: o.TempDir}
		return f.Write(ctx, w, d.Prefix, plan)
	}
	return r, nil
}

func (b *build) pipRecipe(lock []byte) (recipe, error) {
	d, o := b.req.Dependencies, b.e.o
	plan, err := b.e.pipPlan(d, lock)
	var need *pip.NeedsInstallerError
	switch {
	case errors.As(err, &need) && len(need.Local) > 0:
		return recipe{}, err
	case errors.As(err, &need):
		return recipe{parts: []string{pipVersion, "installer", d.ABI, string(lock)}, install: func(ctx context.Context, _ error) (*layer.Layer, error) {
			return b.pipInstall(ctx, lock, err)
		}}, nil
	case err != nil:
		return recipe{}, err
	}
	f := &pip.Fetcher{Index: d.Registry, Source: b.e.packages(), Cache: o.PipCache, Temp: o.TempDir}
	r := recipe{empty: plan.Empty(), parts: append([]string{pipVersion}, plan.Parts()...)}
	r.write = func(ctx context.Context, w *layer.Writer) error { return f.Write(ctx, w, d.Prefix, plan) }
	r.install = func(ctx context.Context, why error) (*layer.Layer, error) { return b.pipInstall(ctx, lock, why) }
	return r, nil
}

// packages is how package registries are asked.
func (e *Layers) packages() fetch.Source {
	return fetch.Source{Authorize: e.o.Authorize, Client: e.npm, Attempts: e.o.Attempts, Delay: e.o.Delay}
}

func (e *Layers) pipPlan(d *Dependencies, lock []byte) (pip.Plan, error) {
	platform, err := pip.ParseABI(d.ABI, e.o.Platform.Architecture)
	if err != nil {
		return pip.Plan{}, err
	}
	f, err := pip.Parse(lock)
	if err != nil {
		return pip.Plan{}, err
	}
	return f.Plan(platform)
}

// depsKey is the key of a dependency layer: what is installed, for what base,
// in which build image, how it is written.
func (b *build) depsKey(parts ...string) string {
	if len(b.req.Secrets) > 0 { // an installer may do more with them
		parts = append(append(slices.Clone(parts), "secrets"), b.req.Secrets...)
	}
	return new(Keyer).Add(depsVersion, layer.Gzip.ID(), b.e.o.Platform.String(), b.req.Base.DigestStr(),
		b.req.Dependencies.Build.DigestStr(), strings.Trim(b.req.Dependencies.Prefix, "/")).Add(parts...).Sum()
}

func readInput(fsys fs.FS, file string) ([]byte, error) {
	if fsys == nil {
		return nil, errors.New("builder: dependencies without a file system")
	}
	info, err := fs.Stat(fsys, file)
	if err == nil && info.Size() > maxLock {
		err = fmt.Errorf("%d bytes are too many", info.Size())
	}
	var b []byte
	if err == nil {
		b, err = fs.ReadFile(fsys, file)
	}
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, &InputError{What: "read " + file, Next: "commit " + file, Err: err}
	}
	return b, nil
}

func (e *Layers) npmPlatform() npm.Platform {
	p := npm.Platform{OS: e.o.Platform.OS, CPU: e.o.Platform.Architecture, Libc: "glibc"}
	switch p.CPU {
	case "amd64":
		p.CPU = "x64"
	case "386":
		p.CPU = "ia32"
	}
	return p
}

// knownDeps looks for a layer that somebody has made already; nil when there
// is none or it can't be had any more. hint is what an index says that is not
// to be believed: it may be compared with, and mounted when it is equal.
func (b *build) knownDeps(ctx context.Context, key string) (p *part, hint *layer.Info, err error) {
	var m depsMemo
	if b.e.memo.load("deps", key, &m) && plausible(m.Info) {
		p := &part{titled: titled{title: "dependencies", info: m.Info}, reused: true}
		from, err := name.NewRepository(m.Repo)
		var source *name.Repository
		if err == nil && from.RegistryStr() == b.req.Repository.RegistryStr() && from.Name() != b.req.Repository.Name() {
			source = &from
		}
		switch _, err := b.ensure(ctx, registry.Blob{Title: "dependencies layer", Digest: m.Digest, Size: m.Size}, source, true); {
		case err == nil:
			return p, nil, nil
		case !errors.Is(err, registry.ErrNoContent):
			return nil, nil, err
		}
	}
	repo := b.cacheRepo()
	found, err := b.s.Manifest(ctx, keyTag(repo, "deps-", key))
	if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrDenied) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	info, ok := readDeps(found.Raw, key)
	if !ok {
		return nil, nil, nil // not ours, or not for this key: made anew
	}
	p = &part{titled: titled{title: "dependencies", info: info}, reused: true}
	if repo.Name() == b.req.Repository.Name() && !b.force {
		// A registry keeps what a manifest names.
		b.e.memo.saw(repo, info.Digest)
		b.remember(key, info)
		return p, nil, nil
	}
	if repo.Name() != b.req.Repository.Name() {
		trusted, err := b.signedEntry(ctx, repo, found.Digest, key)
		if err != nil || !trusted {
			return nil, &info, err
		}
	}
	_, err = b.ensure(ctx, b.s.Copy(repo, info.Descriptor(), "dependencies layer"), &repo, true)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil, nil // the manifest outlived its layer
	}
	if err != nil {
		return nil, nil, err
	}
	b.remember(key, info)
	return p, nil, nil
}

func (b *build) remember(key string, info layer.Info) {
	b.e.memo.save("deps", key, depsMemo{info, b.req.Repository.Name()})
}

// cacheRepo holds the index of dependency layers: the shared repository, or
// the image's own, which nobody can write to who could not write the image.
func (b *build) cacheRepo() name.Repository {
	if b.e.o.CacheRepo.RepositoryStr() != "" {
		return b.e.o.CacheRepo
	}
	return b.req.Repository
}

// makeDeps writes the layer from the lock file, or has the package manager do
// it where only that can.
func (b *build) makeDeps(ctx context.Context, r recipe) (*layer.Layer, error) {
	if r.write != nil {
		w, err := layer.NewWriter(b.e.o.TempDir, layer.Gzip)
		if err != nil {
			return nil, err
		}
		defer w.Abort()
		err = r.write(ctx, w)
		if err == nil {
			return w.Close()
		}
		if !errors.Is(err, npm.ErrNeedsInstaller) && !errors.Is(err, pip.ErrNeedsInstaller) {
			return nil, err
		}
		return r.install(ctx, err)
	}
	return r.install(ctx, nil)
}

// The annotations of a dependency image's only layer.
const (
	noteKey    = "io.kuroko.deps.key"
	noteDiffID = "io.kuroko.deps.diffid"
)

// offer stores the layer as an image of one layer, so that others find it by
// tag, mount it, and the registry keeps it. It is a courtesy: a registry that
// does not take it costs the next machine some seconds.
func (b *build) offer(ctx context.Context, key string, info layer.Info) {
	repo := b.cacheRepo()
	own := repo.Name() == b.req.Repository.Name()
	if b.e.o.Unprotected || !own && (!b.e.o.CacheWrite || len(b.req.Secrets) > 0) {
		return // what came by a project's secrets is not for other projects
	}
	if !own {
		from := b.req.Repository
		if _, err := b.s.Push(ctx, repo, registry.Blob{Digest: info.Digest, Size: info.Size}, &from); err != nil {
			blob := b.s.Copy(from, info.Descriptor(), "dependencies layer")
			if _, err := b.s.Push(ctx, repo, blob, nil); err != nil {
				return
			}
		}
	}
	p := b.e.o.Platform
	config, err := json.Marshal(v1.ConfigFile{OS: p.OS, Architecture: p.Architecture, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{info.DiffID}}})
	if err != nil {
		return
	}
	if _, err := b.s.Push(ctx, repo, bytesBlob("configuration", config), nil); err != nil {
		return
	}
	manifest, err := depsManifest(key, info, config)
	if err != nil || !own && b.signEntry(ctx, repo, manifest, key) != nil {
		return
	}
	_ = b.s.PutManifest(ctx, keyTag(repo, "deps-", key), types.OCIManifestSchema1, manifest)
}

func depsManifest(key string, info layer.Info, config []byte) ([]byte, error) {
	d := info.Descriptor()
	d.Annotations = map[string]string{noteKey: key, noteDiffID: info.DiffID.String(), noteNative: strconv.FormatBool(info.Native)}
	return json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: sumOf(config), Size: int64(len(config))},
		Layers: []v1.Descriptor{d},
	})
}

// readDeps reads a dependency image; false when it is not one of this key.
func readDeps(raw []byte, key string) (layer.Info, bool) {
	var m v1.Manifest
	if json.Unmarshal(raw, &m) != nil || len(m.Layers) != 1 {
		return layer.Info{}, false
	}
	l := m.Layers[0]
	diff, err := v1.NewHash(l.Annotations[noteDiffID])
	info := layer.Info{Digest: l.Digest, DiffID: diff, Size: l.Size, MediaType: l.MediaType, Native: l.Annotations[noteNative] != "false"}
	return info, err == nil && l.Annotations[noteKey] == key && plausible(info)
}

// plausible refuses what can't be a layer of ours, wherever it was remembered.
func plausible(i layer.Info) bool {
	return i.Size > 0 && i.MediaType == layer.Gzip.MediaType() && len(i.Digest.Hex) == 64 && len(i.DiffID.Hex) == 64 &&
		i.Digest.Algorithm == "sha256" && i.DiffID.Algorithm == "sha256"
}
