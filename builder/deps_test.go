package builder_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/registry"
)

func TestSharedCacheRepository(t *testing.T) {
	w := newWorld(t)
	cache, err := name.NewRepository(w.reg.Host + "/platform/deps")
	if err != nil {
		t.Fatal(err)
	}
	signer, keys := newSigner(t)
	build := func(path, key string, write bool) builder.Image {
		req := w.request(t, key, "one")
		req.Repository = req.Repository.Registry.Repo(path)
		return mustBuild(t, engine(t, builder.Options{CacheRepo: cache, CacheWrite: write, Signer: signer, CacheKeys: keys}), req)
	}
	deps := func(img builder.Image) builder.Layer {
		for _, l := range img.Layers {
			if l.Title == "dependencies" {
				return l
			}
		}
		return builder.Layer{}
	}
	if l := deps(build("a/app", "k", false)); l.Reused {
		t.Error("reused from nowhere")
	}
	if _, err := remote.List(cache); err == nil {
		t.Error("the shared repository was written to without permission")
	}
	build("b/app", "k", true)
	w.npm.Reset()
	w.reg.Reset()
	img := build("c/app", "k", false)
	if l := deps(img); !l.Reused || len(w.npm.Requests()) != 0 {
		t.Errorf("not mounted: %+v, %v", l, w.npm.Requests())
	}
	pulled, err := remote.Image(img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(pulled); err != nil {
		t.Error(err)
	}
	// What stands there is a runnable image of one layer.
	tags, err := remote.List(cache)
	tags = slices.DeleteFunc(tags, func(tag string) bool { return strings.HasPrefix(tag, "sha256:") }) // go-containerregistry's server lists digests too
	if err != nil || len(tags) != 1 || !strings.HasPrefix(tags[0], "deps-") {
		t.Fatal(tags, err)
	}
	one, err := remote.Image(cache.Tag(tags[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(one); err != nil {
		t.Error(err)
	}
	// An entry that is not what its tag says is not used.
	if err := remote.Write(cache.Tag(tags[0]), empty.Image); err != nil {
		t.Fatal(err)
	}
	if l := deps(build("d/app", "k", false)); l.Reused {
		t.Error("a foreign image was taken for a dependency layer")
	}
	// Its layer is gone: made again.
	build("e/app", "k", true)
	h, _ := v1.NewHash(deps(img).Digest)
	w.reg.Forget("platform/deps", h)
	if l := deps(build("f/app", "k", false)); l.Reused {
		t.Error("a lost layer was reused")
	}
}

// TestPoisonedIndex: somebody with push rights has put another layer under the
// key of known packages. Nobody may get it.
func TestPoisonedIndex(t *testing.T) {
	w := newWorld(t)
	cache, err := name.NewRepository(w.reg.Host + "/platform/deps")
	if err != nil {
		t.Fatal(err)
	}
	signer, keys := newSigner(t)
	thief, _ := newSigner(t)
	build := func(path string, o builder.Options) builder.Image {
		o.CacheRepo = cache
		return mustBuild(t, engine(t, o), w.in(path, w.request(t, "k", "one")))
	}
	content := func(img builder.Image) string {
		pulled, err := remote.Image(img.Ref)
		if err != nil {
			t.Fatal(err)
		}
		return files(t, pulled)["app/node_modules/generated-0/package.json"]
	}
	honest := build("a/app", builder.Options{CacheWrite: true, Signer: signer})
	want := content(honest)
	if want == "" {
		t.Fatal("no dependencies in the image")
	}
	tags, err := remote.List(cache)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(tags, func(tag string) bool { return strings.HasPrefix(tag, "deps-") })
	tag := cache.Tag(tags[i])
	good, err := remote.Image(tag)
	if err != nil {
		t.Fatal(err)
	}
	// The poisoned entry keeps every annotation of the honest one.
	poison := func() v1.Hash {
		l, err := layer.FromTree(t.Context(), t.TempDir(), layer.Gzip, layer.Tree{Prefix: "/app/node_modules/generated-0", FS: fstest.MapFS{"package.json": {Data: []byte("{stolen}")}}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := good.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		notes := maps.Clone(m.Layers[0].Annotations)
		notes["io.kuroko.deps.diffid"] = l.Info().DiffID.String()
		img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{Layer: l, Annotations: notes})
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(tag, img); err != nil {
			t.Fatal(err)
		}
		h, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	bad := poison()
	for name, o := range map[string]builder.Options{
		"nobody is believed":      {},
		"signed entries alone":    {CacheKeys: keys},
		"on a protected ref, too": {CacheKeys: keys, Signer: signer},
	} {
		img := build("b/"+strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), ",", ""), o)
		if got := content(img); got != want {
			t.Errorf("%s: got %q", name, got)
		}
		if img.Ref.DigestStr() != honest.Ref.DigestStr() || len(img.Warnings) != 1 || !strings.Contains(img.Warnings[0], "holds something else") {
			t.Errorf("%s: %s, %v", name, img.Ref, img.Warnings)
		}
	}
	// Signed by a key that nobody trusts, and by the right key for another entry.
	for name, seal := range map[string]func() []byte{
		"a stranger's signature": func() []byte { return sealed(t, thief, tag.TagStr(), bad) },
		"another key's entry":    func() []byte { return sealed(t, signer, "deps-other", bad) },
	} {
		s := registry.New(registry.Options{}).Session()
		d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: bad, Size: 1}
		if _, err := s.PushArtifacts(t.Context(), cache, nil, registry.Artifact{Type: attest.TypeEnvelope, Subject: &d,
			Files: []registry.File{{MediaType: types.MediaType(attest.TypeEnvelope), Data: seal()}}}); err != nil {
			t.Fatal(err)
		}
		if got := content(build("c/"+strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", ""), builder.Options{CacheKeys: keys})); got != want {
			t.Errorf("%s: got %q", name, got)
		}
	}
	// An honest entry without a signature saves the sending, after a look at
	// the packages.
	if err := remote.Write(tag, good); err != nil {
		t.Fatal(err)
	}
	w.npm.Reset()
	img := build("d/app", builder.Options{})
	if len(w.npm.Requests()) == 0 || !img.Layers[2].Reused || len(img.Warnings) != 0 {
		t.Errorf("%+v, %v, %v", img.Layers, img.Warnings, w.npm.Requests())
	}
}

func sealed(t *testing.T, s *attest.Signer, name string, h v1.Hash) []byte {
	t.Helper()
	statement, err := attest.Provenance{Builder: "https://github.com/kuroko-faas/kuroko/builder", BuildType: "x", Parameters: map[string]any{"a": "b"}}.Statement(attest.Subject{Name: name, Digest: h.String()})
	if err != nil {
		t.Fatal(err)
	}
	env, err := s.Seal(t.Context(), statement)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// TestUnprotectedRefsWriteNoIndex: neither the shared one nor the image's own.
func TestUnprotectedRefsWriteNoIndex(t *testing.T) {
	w := newWorld(t)
	cache, err := name.NewRepository(w.reg.Host + "/platform/deps")
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]builder.Options{"own": {Unprotected: true}, "shared": {Unprotected: true, CacheRepo: cache, CacheWrite: true}} {
		log := requests(w.reg, func() { mustBuild(t, engine(t, o), w.in("team/"+name, w.request(t, "k", "one"))) })
		for _, r := range log {
			if r.Method == "PUT" && strings.Contains(r.Path, "/manifests/deps-") {
				t.Errorf("%s: %v", name, r)
			}
		}
	}
}

func TestKeysOfDependencyLayers(t *testing.T) {
	w := newWorld(t)
	e := engine(t, builder.Options{})
	mustBuild(t, e, w.request(t, "k1", "one"))
	fetched := func(change func(*builder.Request)) bool {
		w.npm.Reset()
		req := w.request(t, fmt.Sprint(time.Now().UnixNano()), "one")
		change(&req)
		mustBuild(t, e, req)
		return len(w.npm.Requests()) > 0
	}
	same := func(m string) func(*builder.Request) {
		return func(r *builder.Request) {
			r.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(m)}, "package-lock.json": {Data: []byte(w.npm.Lock(appManifest))}}
		}
	}
	if fetched(same(`{"version":"9.9.9","scripts":{"test":"x"},"dependencies":{"generated-0":"1.x"}}`)) {
		t.Error("what does not change the packages made a new layer")
	}
	if fetched(func(r *builder.Request) { r.Dependencies.Registry = "http://127.0.0.1:1" }) {
		t.Error("the registry's address takes part in the key")
	}
	if !fetched(func(r *builder.Request) { r.Dependencies.Prefix = "/srv" }) {
		t.Error("the place takes no part in the key")
	}
	if !fetched(same(`{}`)) == false {
		t.Error("no dependencies, and packages were fetched")
	}
}

func TestNoDependencies(t *testing.T) {
	w := newWorld(t)
	req := w.request(t, "k1", "one")
	req.Dependencies = nil
	img := mustBuild(t, engine(t, builder.Options{}), req)
	if len(img.Layers) != 3 {
		t.Errorf("layers: %+v", img.Layers)
	}
	req = w.request(t, "k2", "one")
	req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(`{}`)}, "package-lock.json": {Data: []byte(`{"lockfileVersion":3,"packages":{}}`)}}
	if img := mustBuild(t, engine(t, builder.Options{}), req); len(img.Layers) != 3 {
		t.Errorf("layers: %+v", img.Layers)
	}
}
