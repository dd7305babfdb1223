package builder_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
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
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	if task, ok := os.LookupEnv(memoryJob); ok {
		os.Exit(runMemoryTask(task))
	}
	os.Exit(m.Run())
}

// world is a registry with a base image in it, and a package registry.
type world struct {
	reg  *registrytest.Server
	npm  *npmtest.Registry
	base name.Digest
}

func newWorld(t testing.TB) *world {
	w := &world{reg: registrytest.New(t), npm: npmtest.Start(t, npmtest.Generate(6, 3, 2000)...)}
	w.base = pushBase(t, w.reg, "base/nodejs18")
	return w
}

// pushBase puts a base image of one layer into a registry. It is written by
// other code than ours.
func pushBase(t testing.TB, reg *registrytest.Server, path string) name.Digest {
	t.Helper()
	return pushBaseOf(t, reg, path, "#!/bin/sh\n", "node18")
}

func pushBaseOf(t testing.TB, reg *registrytest.Server, path, program, abi string) name.Digest {
	t.Helper()
	return pushOf(t, reg, path, program, map[string]string{"abi": abi, "org.opencontainers.image.title": "base"})
}

// pushOf puts an image of one layer with that program and those labels into a
// registry.
func pushOf(t testing.TB, reg *registrytest.Server, path, program string, labels map[string]string) name.Digest {
	t.Helper()
	l, err := layer.FromTree(context.Background(), "", layer.Gzip, layer.Tree{Prefix: "/usr", FS: fstest.MapFS{"bin/node": {Data: []byte(program), Mode: 0o755}}})
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), l)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Env: []string{"PATH=/usr/bin", "NODE_ENV=development"}, User: "root", Cmd: []string{"sh"}, Labels: labels})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	repo, err := name.NewRepository(reg.Host + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Tag("latest"), img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	reg.Reset()
	return repo.Digest(d.String())
}

const appManifest = `{"name":"app","version":"1.0.0","dependencies":{"generated-0":"^1.0.0"}}`

func (w *world) request(t testing.TB, key, code string) builder.Request {
	t.Helper()
	repo, err := name.NewRepository(w.reg.Host + "/team/app/nodejs18")
	if err != nil {
		t.Fatal(err)
	}
	project := fstest.MapFS{
		"package.json":      {Data: []byte(appManifest)},
		"package-lock.json": {Data: []byte(w.npm.Lock(appManifest))},
		"index.js":          {Data: []byte(code)},
		"faas.yml":          {Data: []byte("x")},
	}
	return builder.Request{
		Name: "nodejs18", Key: key, Repository: repo, Base: w.base,
		Layers:       []builder.Tree{{Title: "adapter", FS: fstest.MapFS{"main.js": {Data: []byte("adapter")}}, Prefix: "/opt/faas/adapter"}},
		Code:         builder.Tree{Title: "code", FS: project, Prefix: "/app", Paths: []string{"index.js", "package.json", "package-lock.json"}},
		Dependencies: &builder.Dependencies{Kind: "npm", FS: project, Manifest: "package.json", Lock: "package-lock.json", Prefix: "/app", Registry: w.npm.URL},
		Config: builder.Config{WorkingDir: "/app", Entrypoint: []string{"/usr/bin/node", "/opt/faas/adapter/main.js"}, User: "65532:65532",
			Env: []string{"NODE_ENV=production", "A=b"}, Labels: map[string]string{"team": "shop"}},
	}
}

func engine(t testing.TB, o builder.Options) *builder.Layers {
	t.Helper()
	if o.Delay == 0 {
		o.Delay = time.Microsecond
	}
	e, err := builder.NewLayers(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustBuild(t testing.TB, e *builder.Layers, req builder.Request) builder.Image {
	t.Helper()
	img, err := e.Build(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// files unpacks an image the way a container runtime would: path to content.
func files(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	got := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(tr)
		got[strings.TrimSuffix(h.Name, "/")] = string(b)
	}
}

func TestImageIsWhatWasAskedFor(t *testing.T) {
	w := newWorld(t)
	got := mustBuild(t, engine(t, builder.Options{}), w.request(t, "k1", "one"))
	img, err := remote.Image(got.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := cfg.Config
	if c.User != "65532:65532" || c.WorkingDir != "/app" || len(c.Cmd) != 0 || strings.Join(c.Entrypoint, " ") != "/usr/bin/node /opt/faas/adapter/main.js" {
		t.Errorf("config: %+v", c)
	}
	if got, want := strings.Join(c.Env, " "), "PATH=/usr/bin NODE_ENV=production A=b"; got != want {
		t.Errorf("env: %s, want %s", got, want)
	}
	if c.Labels["abi"] != "node18" || c.Labels["team"] != "shop" {
		t.Errorf("labels: %v", c.Labels)
	}
	man, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if man.MediaType != types.OCIManifestSchema1 || man.Annotations["org.opencontainers.image.base.digest"] != w.base.DigestStr() {
		t.Errorf("manifest: %v %v", man.MediaType, man.Annotations)
	}
	all := files(t, img)
	for path, want := range map[string]string{"usr/bin/node": "#!/bin/sh\n", "opt/faas/adapter/main.js": "adapter", "app/index.js": "one", "app/package.json": appManifest} {
		if all[path] != want {
			t.Errorf("%s: %q, want %q", path, all[path], want)
		}
	}
	if _, ok := all["app/node_modules/generated-5/package.json"]; !ok {
		t.Error("the dependencies are missing")
	}
	if _, ok := all["app/faas.yml"]; ok {
		t.Error("a file that was not asked for is there")
	}
	var table []string
	var sum int64
	for _, l := range got.Layers {
		table = append(table, fmt.Sprintf("%s %v", l.Title, l.Reused))
		sum += l.Size
		if l.Size == 0 || l.Digest == "" {
			t.Errorf("layer %+v", l)
		}
	}
	if want := "base true, adapter false, dependencies false, code false"; strings.Join(table, ", ") != want {
		t.Errorf("layers: %s, want %s", strings.Join(table, ", "), want)
	}
	if got.Name != "nodejs18" || got.Key != "k1" || got.Engine != "layer" || got.Reused || got.Uploaded <= 0 || got.Uploaded > 2*sum || got.Sandbox != "" {
		t.Errorf("image: %+v", got)
	}
}

func TestBaseInAnotherRegistry(t *testing.T) {
	w := newWorld(t)
	far := registrytest.New(t)
	w.base = pushBase(t, far, "mirror/base")
	img := mustBuild(t, engine(t, builder.Options{}), w.request(t, "k1", "one"))
	if img.Layers[0].Title != "base" || img.Layers[0].Reused {
		t.Errorf("layers: %+v", img.Layers)
	}
	pulled, err := remote.Image(img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(pulled); err != nil {
		t.Error(err)
	}
}

func TestBaseIsAnIndex(t *testing.T) {
	w := newWorld(t)
	img, err := remote.Image(w.base)
	if err != nil {
		t.Fatal(err)
	}
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: empty.Image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	if err := remote.WriteIndex(w.base.Context().Tag("multi"), idx); err != nil {
		t.Fatal(err)
	}
	d, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	w.base = w.base.Context().Digest(d.String())
	home := t.TempDir()
	for _, key := range []string{"k1", "k2"} { // the second reads the folder
		got := mustBuild(t, engine(t, builder.Options{CacheDir: home}), w.request(t, key, "one"))
		pulled, err := remote.Image(got.Ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(pulled); err != nil {
			t.Error(err)
		}
	}
	_, err = engine(t, builder.Options{Platform: v1.Platform{OS: "linux", Architecture: "riscv64"}}).Build(t.Context(), w.request(t, "k3", "x"))
	if err == nil || !strings.Contains(err.Error(), "it has no image for linux/riscv64, only for linux/amd64, linux/arm64") {
		t.Errorf("got %v", err)
	}
}

func TestNoBase(t *testing.T) {
	w := newWorld(t)
	req := w.request(t, "k1", "one")
	req.Base = req.Base.Context().Digest("sha256:" + strings.Repeat("0", 64))
	_, err := engine(t, builder.Options{}).Build(t.Context(), req)
	if !errors.Is(err, builder.ErrNoBase) || !strings.Contains(err.Error(), req.Base.String()) {
		t.Errorf("got %v", err)
	}
	// A layer of it is gone.
	img, err := remote.Image(w.base)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	w.reg.Forget("base/nodejs18", m.Layers[0].Digest)
	if _, err := engine(t, builder.Options{}).Build(t.Context(), w.request(t, "k1", "one")); !errors.Is(err, builder.ErrNoBase) {
		t.Errorf("got %v", err)
	}
}

func TestPoisonedFolder(t *testing.T) {
	w := newWorld(t)
	home := t.TempDir()
	want := mustBuild(t, engine(t, builder.Options{CacheDir: home}), w.request(t, "k1", "one"))
	// Every file in it is replaced by other JSON.
	for _, content := range []string{`{}`, `garbage`, `{"manifest":"e30=","config":"e30="}`, `{"digest":"sha256:00","size":7}`} {
		err := filepath.WalkDir(home, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return os.WriteFile(p, []byte(content), 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
		req := w.request(t, "k-"+content, "one")
		if got := mustBuild(t, engine(t, builder.Options{CacheDir: home}), req); got.Ref != want.Ref {
			t.Errorf("%s: %v, want %v", content, got.Ref, want.Ref)
		}
	}
}

func TestBadInput(t *testing.T) {
	w := newWorld(t)
	lock := w.npm.Lock(appManifest)
	for title, tt := range map[string]struct {
		change     func(*builder.Request)
		what, next string
	}{
		"out of step": {func(r *builder.Request) {
			r.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(`{"dependencies":{"generated-0":"^2.0.0","new":"1"}}`)}, "package-lock.json": {Data: []byte(lock)}}
		}, "package-lock.json is out of step with package.json: generated-0: package.json wants ^2.0.0, the lock file has 1.0.0; new: package.json wants 1, the lock file has none",
			"run npm install --package-lock-only and commit package-lock.json"},
		"broken lock file": {func(r *builder.Request) {
			r.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(`{}`)}, "package-lock.json": {Data: []byte("{\n<<<<<<< ours\n")}}
		}, "read package-lock.json: line 2: invalid character '<' looking for beginning of object key string (it holds the marks of a merge conflict)",
			"run npm install --package-lock-only and commit package-lock.json"},
		"no lock file": {func(r *builder.Request) { r.Dependencies.FS = fstest.MapFS{"package.json": {}} },
			"read package-lock.json: file does not exist", "commit package-lock.json"},
		"not published": {func(r *builder.Request) {
			r.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(`{"dependencies":{"gone":"1.0.0"}}`)},
				"package-lock.json": {Data: []byte(strings.ReplaceAll(lock, "generated-5", "gone"))}}
		}, "the package registry does not have this version", "check that gone@1.0.0 is published at 127.0.0.1"},
		"file missing": {func(r *builder.Request) { r.Code.Paths = append(r.Code.Paths, "gone.js") },
			`code: "gone.js" can't go into the image: file does not exist`, "remove the file or change what it is"},
		"link outside": {func(r *builder.Request) {
			r.Code.FS, r.Code.Paths = fstest.MapFS{"l": {Data: []byte("/etc/passwd"), Mode: fs.ModeSymlink}}, nil
		}, `code: "l" can't go into the image: the symbolic link leaves the tree: it points to "/etc/passwd"`, "replace the link by a copy, or point it inside the project"},
	} {
		t.Run(title, func(t *testing.T) {
			req := w.request(t, "k-bad", "one")
			tt.change(&req)
			_, err := engine(t, builder.Options{}).Build(t.Context(), req)
			var in *builder.InputError
			if !errors.As(err, &in) {
				t.Fatalf("got %T %v", err, err)
			}
			if !strings.Contains(err.Error(), tt.what) || !strings.HasPrefix(in.Next, tt.next) {
				t.Errorf("got  %v\n     %s\nwant %s\n     %s", err, in.Next, tt.what, tt.next)
			}
			if _, err := remote.Head(req.Repository.Tag("k-k-bad")); err == nil {
				t.Error("something is tagged")
			}
		})
	}
}

func TestRegistryDown(t *testing.T) {
	w := newWorld(t)
	var n atomic.Int32
	w.reg.Fault(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			n.Add(1)
			rw.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	_, err := engine(t, builder.Options{Attempts: 3}).Build(t.Context(), w.request(t, "k1", "one"))
	var away *builder.Unavailable
	if !errors.As(err, &away) || away.Host != w.reg.Host || away.Attempts != 3 {
		t.Fatalf("got %T %v", err, err)
	}
	if !strings.HasSuffix(err.Error(), " to team/app/nodejs18: "+w.reg.Host+": answered 503 Service Unavailable (tried 3 times)") {
		t.Errorf("got %v", err)
	}
	w.reg.Fault(nil)
	w.npm.Fault(func(rw http.ResponseWriter, r *http.Request) bool {
		rw.WriteHeader(http.StatusBadGateway)
		return true
	})
	_, err = engine(t, builder.Options{Attempts: 2}).Build(t.Context(), w.request(t, "k1", "one"))
	if !errors.As(err, &away) || !strings.HasPrefix(err.Error(), "fetch generated-") || !strings.HasSuffix(err.Error(), ": answered 502 (tried 2 times)") {
		t.Errorf("got %v", err)
	}
	w.npm.Fault(nil)
	w.reg.Auth(registrytest.Basic("robot", "s3cret"))
	if _, err := engine(t, builder.Options{}).Build(t.Context(), w.request(t, "k1", "one")); !errors.Is(err, builder.ErrDenied) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("the job was cancelled")
	cancel(stop)
	if _, err := engine(t, builder.Options{}).Build(ctx, w.request(t, "k1", "one")); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

// fake is an installer that writes what npm might.
type fake struct {
	ran int
	err error
}

func (f *fake) install(ctx context.Context, c builder.Command) (builder.Ran, error) {
	f.ran++
	none := builder.Ran{Sandbox: builder.SandboxNone}
	for _, file := range []string{"package.json", "package-lock.json"} {
		if _, err := os.Stat(filepath.Join(c.Dir, file)); err != nil {
			return none, err
		}
	}
	mods := filepath.Join(c.Dir, "node_modules")
	err := errors.Join(os.MkdirAll(filepath.Join(mods, "native", "build"), 0o755), os.MkdirAll(filepath.Join(mods, ".bin"), 0o755),
		os.WriteFile(filepath.Join(mods, "native", "build", "addon.node"), []byte("compiled"), 0o644),
		os.WriteFile(filepath.Join(mods, ".package-lock.json"), []byte(strings.Join(c.Argv, " ")), 0o644),
		os.Symlink("../native/build/addon.node", filepath.Join(mods, ".bin", "native")))
	return none, errors.Join(err, f.err)
}

func TestInstallerRunsWhereItIsNeeded(t *testing.T) {
	w := newWorld(t)
	native := `{"dependencies":{"native":"1.0.0"}}`
	w.npm.Add(npmtest.Package{Name: "native", Version: "1.0.0", Manifest: map[string]any{"scripts": map[string]string{"install": "node-gyp rebuild"}}})
	w.npm.Add(npmtest.Package{Name: "hidden", Version: "1.0.0", Files: map[string]string{"binding.gyp": "{}"}})
	for title, manifest := range map[string]string{"the lock file says so": native, "the archive says so": `{"dependencies":{"hidden":"1.0.0"}}`} {
		t.Run(title, func(t *testing.T) {
			f := &fake{}
			e := engine(t, builder.Options{Install: f.install})
			for i, key := range []string{"k1", "k2"} {
				req := w.request(t, key+title[:8], "one"+key)
				req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(manifest)}, "package-lock.json": {Data: []byte(w.npm.Lock(manifest))}}
				img := mustBuild(t, e, req)
				if f.ran != 1 || i == 0 && img.Sandbox != "none" || i == 1 && img.Sandbox != "" {
					t.Errorf("build %d: %d installs, sandbox %q", i, f.ran, img.Sandbox)
				}
				pulled, err := remote.Image(img.Ref)
				if err != nil {
					t.Fatal(err)
				}
				got := files(t, pulled)
				if got["app/node_modules/native/build/addon.node"] != "compiled" {
					t.Error("what the installer made is missing")
				}
				if _, ok := got["app/node_modules/.package-lock.json"]; ok {
					t.Error("npm's own note is in the image")
				}
			}
		})
	}
	bad := &fake{err: &builder.InputError{What: "install the dependencies with npm", Err: errors.New("no compiler")}}
	req := w.request(t, "k9", "one")
	req.Repository = req.Repository.Registry.Repo("other/app")
	req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(native)}, "package-lock.json": {Data: []byte(w.npm.Lock(native))}}
	var in *builder.InputError
	if _, err := engine(t, builder.Options{Install: bad.install}).Build(t.Context(), req); !errors.As(err, &in) {
		t.Errorf("got %v", err)
	}
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	w := newWorld(t)
	for want, change := range map[string]func(*builder.Request){
		"no key":     func(r *builder.Request) { r.Key = "" },
		"Dockerfile": func(r *builder.Request) { r.Dockerfile = &builder.Dockerfile{} },
		"no base":    func(r *builder.Request) { r.Base = name.Digest{} },
		"repository": func(r *builder.Request) { r.Repository = name.Repository{} },
		`"gem"`:      func(r *builder.Request) { r.Dependencies.Kind = "gem" },
	} {
		req := w.request(t, "k", "")
		change(&req)
		if _, err := engine(t, builder.Options{}).Build(t.Context(), req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if r := w.reg.Requests(); len(r) != 0 {
		t.Errorf("the registry was asked: %v", r)
	}
	// Keys that are no tags work all the same.
	for _, key := range []string{"sha256:abc/def", strings.Repeat("k", 200)} {
		img := mustBuild(t, engine(t, builder.Options{}), w.request(t, key, "one"))
		if again := mustBuild(t, engine(t, builder.Options{}), w.request(t, key, "one")); !again.Reused || again.Ref != img.Ref {
			t.Errorf("%q: %+v", key, again)
		}
	}
}

func TestKeys(t *testing.T) {
	a, b := builder.Key("ab", "c"), builder.Key("a", "bc")
	if a == b || a != new(builder.Keyer).Add("ab").Add("c").Sum() || len(a) != 64 {
		t.Errorf("keys %s, %s", a, b)
	}
	if builder.Key() == builder.Key("") {
		t.Error("no part and an empty part look alike")
	}
	if !strings.Contains(builder.Layout, layer.Gzip.ID()) {
		t.Errorf("the layout %q does not name the compressor", builder.Layout)
	}
}
