package builder_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

// requests runs f and gives what the registry was asked.
func requests(reg *registrytest.Server, f func()) []registrytest.Request {
	reg.Reset()
	f()
	return reg.Requests()
}

func TestRequestCounts(t *testing.T) {
	w := newWorld(t)
	home := t.TempDir()
	e := engine(t, builder.Options{CacheDir: home})
	expect := func(title string, most int, exact bool, e *builder.Layers, req builder.Request) builder.Image {
		t.Helper()
		var img builder.Image
		log := requests(w.reg, func() { img = mustBuild(t, e, req) })
		if len(log) > most || exact && len(log) != most {
			t.Errorf("%s: %d requests, want %d: %v", title, len(log), most, log)
		}
		if img.Requests != len(log) {
			t.Errorf("%s: the image says %d requests, the registry saw %d", title, img.Requests, len(log))
		}
		return img
	}
	first := expect("cold", 19, false, e, w.request(t, "k1", "one"))
	again := expect("no change", 1, true, e, w.request(t, "k1", "one"))
	if again.Ref != first.Ref || !again.Reused || again.Uploaded != 0 || len(again.Layers) != 4 {
		t.Errorf("no change: %+v", again)
	}
	changed := expect("code change", 5, true, e, w.request(t, "k2", "two"))
	if changed.Ref == first.Ref || changed.Reused {
		t.Errorf("code change: %+v", changed)
	}
	for _, l := range changed.Layers {
		if want := l.Title != "code"; l.Reused != want {
			t.Errorf("code change: layer %+v", l)
		}
	}
	// A new process on the same machine.
	expect("code change, new process", 5, true, engine(t, builder.Options{CacheDir: home}), w.request(t, "k3", "three"))
	expect("no change, new process", 1, true, engine(t, builder.Options{CacheDir: home}), w.request(t, "k1", "one"))
	// A changed adapter is not taken for the one before it.
	updated := w.request(t, "k3b", "three")
	updated.Layers = []builder.Tree{{Title: "adapter", FS: fstest.MapFS{"main.js": {Data: []byte("newer adapter")}}, Prefix: "/opt/faas/adapter"}}
	img := mustBuild(t, engine(t, builder.Options{CacheDir: home}), updated)
	for _, l := range img.Layers {
		if l.Title == "adapter" && (l.Reused || l.Digest == first.Layers[1].Digest) {
			t.Errorf("another adapter: layer %+v, before %+v", l, first.Layers[1])
		}
	}
	// Another machine, empty but for the network.
	w.npm.Reset()
	expect("known lock file, unknown machine", 12, false, engine(t, builder.Options{}), w.request(t, "k4", "four"))
	if r := w.npm.Requests(); len(r) != 0 {
		t.Errorf("packages were fetched although the layer is known: %v", r)
	}
	other := expect("no change, unknown machine", 1, true, engine(t, builder.Options{}), w.request(t, "k1", "one"))
	if other.Ref != first.Ref || !other.Reused {
		t.Errorf("unknown machine: %+v", other)
	}
	// A plan that looked before building is not looked for again.
	look := engine(t, builder.Options{CacheDir: home})
	req := w.request(t, "k5", "five")
	if _, ok, err := look.Find(t.Context(), req.Repository, req.Key); ok || err != nil {
		t.Fatal(ok, err)
	}
	expect("after Find", 5, true, look, req)
	if ref, ok, err := look.Find(t.Context(), req.Repository, req.Key); !ok || err != nil || ref.DigestStr() == "" {
		t.Error(ref, ok, err)
	}
}

func TestThreeRoundTripsForACodeChange(t *testing.T) {
	w := newWorld(t)
	e := engine(t, builder.Options{CacheDir: t.TempDir()})
	mustBuild(t, e, w.request(t, "k1", "one"))
	log := requests(w.reg, func() { mustBuild(t, e, w.request(t, "k2", "two")) })
	var methods []string
	for _, r := range log {
		methods = append(methods, r.Method)
	}
	// Both POSTs need nothing but local work, each PUT needs its POST, the
	// manifest needs both.
	posts := 0
	for i, m := range methods {
		if m == "POST" {
			posts++
		}
		if strings.Contains(log[i].Path, "/manifests/") && (i != 4 || posts != 2) {
			t.Errorf("order: %v", log)
		}
	}
	if posts != 2 {
		t.Errorf("methods: %v", methods)
	}
}

func TestSameCommitSameDigest(t *testing.T) {
	w := newWorld(t)
	checkout := func(umask int) string {
		defer syscall.Umask(syscall.Umask(umask))
		dir := t.TempDir()
		for name, content := range map[string]string{"package.json": appManifest, "package-lock.json": w.npm.Lock(appManifest), "index.js": "same", "lib/中文.js": "x", "-rf": "y"} {
			p := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(content), 0o666); err != nil {
				t.Fatal(err)
			}
			at := time.Unix(1600000000+int64(umask)*1000, 0)
			if err := os.Chtimes(p, at, at); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	// Two machines, two registries, two folders.
	w2 := newWorld(t)
	var digests []string
	for i, world := range []*world{w, w2} {
		root, err := os.OpenRoot(checkout([]int{0o022, 0o077}[i]))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		req := world.request(t, "same", "")
		req.Code.FS, req.Code.Paths, req.Dependencies.FS = root.FS(), nil, root.FS()
		img := mustBuild(t, engine(t, builder.Options{}), req)
		digests = append(digests, img.Ref.DigestStr())
		d1, err := builder.DigestOf(t.Context(), req.Code)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d1)
	}
	if digests[0] != digests[2] || digests[1] != digests[3] {
		t.Errorf("digests differ: %v", digests)
	}
}

func TestTwentyImagesShareLayers(t *testing.T) {
	w := newWorld(t)
	e := engine(t, builder.Options{CacheDir: t.TempDir()})
	build := func(key, code string, i int) builder.Image {
		req := w.request(t, key, code)
		req.Repository = req.Repository.Registry.Repo(fmt.Sprintf("team/app/fn%d", i))
		return mustBuild(t, e, req)
	}
	for i := range 20 {
		img := build(fmt.Sprint("k", i), fmt.Sprint("code ", i), i)
		for _, l := range img.Layers {
			if want := i > 0 && l.Title != "code" || l.Title == "base"; l.Reused != want {
				t.Errorf("image %d: %+v", i, l)
			}
		}
	}
	var img builder.Image
	log := requests(w.reg, func() { img = build("k7-changed", "code 7, changed", 7) })
	if len(log) != 5 || img.Uploaded > 4000 {
		t.Errorf("one change of twenty: %d bytes, %v", img.Uploaded, log)
	}
}

func TestImagesAtOnce(t *testing.T) {
	w := newWorld(t)
	e := engine(t, builder.Options{CacheDir: t.TempDir(), NPMCache: t.TempDir()})
	var wg sync.WaitGroup
	for i := range 8 {
		req := w.request(t, fmt.Sprint("k", i), fmt.Sprint("code ", i))
		req.Repository = req.Repository.Registry.Repo(fmt.Sprintf("team/app/fn%d", i))
		wg.Go(func() {
			img, err := e.Build(context.Background(), req)
			if err != nil {
				t.Error(err)
				return
			}
			pulled, err := remote.Image(img.Ref)
			if err != nil {
				t.Error(err)
				return
			}
			if err := validate.Image(pulled); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(w.npm.Requests()); n != 6 {
		t.Errorf("6 archives were fetched with %d requests: %v", n, w.npm.Requests())
	}
}

func TestDroppedBlobs(t *testing.T) {
	for _, what := range []string{"base", "adapter", "dependencies", "all"} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			e := engine(t, builder.Options{CacheDir: t.TempDir()})
			first := mustBuild(t, e, w.request(t, "k1", "one"))
			for _, l := range first.Layers {
				if l.Title == what || what == "all" {
					h, _ := v1.NewHash(l.Digest)
					w.reg.Forget("team/app/nodejs18", h)
				}
			}
			img := mustBuild(t, e, w.request(t, "k2", "two"))
			pulled, err := remote.Image(img.Ref)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(pulled); err != nil {
				t.Error(err)
			}
			log := requests(w.reg, func() { mustBuild(t, e, w.request(t, "k3", "three")) })
			if len(log) != 5 {
				t.Errorf("afterwards a code change takes %d requests: %v", len(log), log)
			}
		})
	}
}
