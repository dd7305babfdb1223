package builder_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/builder"
)

func TestSharedCacheRepository(t *testing.T) {
	w := newWorld(t)
	cache, err := name.NewRepository(w.reg.Host + "/platform/deps")
	if err != nil {
		t.Fatal(err)
	}
	build := func(path, key string, write bool) builder.Image {
		req := w.request(t, key, "one")
		req.Repository = req.Repository.Registry.Repo(path)
		return mustBuild(t, engine(t, builder.Options{CacheRepo: cache, CacheWrite: write}), req)
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
