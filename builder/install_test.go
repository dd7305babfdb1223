package builder_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/debian"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// realBuildImage is realImage of a runtime's build image.
func realBuildImage(t *testing.T, reg *registrytest.Server, runtime string) (image name.Digest, trees string) {
	t.Helper()
	return realImage(t, reg, "build/"+runtime)
}

// realImage puts an image that `make images` made into a registry, and returns
// where it is kept unpacked from test to test.
func realImage(t *testing.T, reg *registrytest.Server, from string) (image name.Digest, trees string) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs an installer in a real image, which takes seconds")
	}
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("needs namespaces: ", why)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache folder to look for images in")
	}
	cache = filepath.Join(cache, "kuroko")
	repo, err := name.NewRepository(reg.Host + "/" + from)
	if err != nil {
		t.Fatal(err)
	}
	b := debian.Builder{Cache: cache}
	_, image, err = b.Push(t.Context(), from, "", repo, remote.WithContext(t.Context()))
	if errors.Is(err, debian.ErrNotBuilt) {
		t.Skipf("needs the image %s: run make images", from)
	}
	if err != nil {
		t.Fatal(err)
	}
	reg.Reset()
	return image, filepath.Join(cache, "trees")
}

// TestRealInstaller has npm run an install script that looks around: in the
// build image, and in the job container of a machine without namespaces.
func TestRealInstaller(t *testing.T) {
	t.Run("namespaces", func(t *testing.T) {
		w := newWorld(t)
		image, trees := realBuildImage(t, w.reg, "nodejs18")
		installs(t, w, image, builder.Options{TreeDir: trees})
	})
	t.Run("none", func(t *testing.T) {
		if _, err := exec.LookPath("npm"); err != nil || testing.Short() {
			t.Skip("runs this machine's npm, which takes seconds")
		}
		w := newWorld(t)
		installs(t, w, w.base, builder.Options{Mode: sandbox.None})
	})
}

func installs(t *testing.T, w *world, image name.Digest, o builder.Options) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FAAS_TEST_TOKEN", "t0ken")
	w.npm.Add(npmtest.Package{Name: "native", Version: "1.0.0",
		Files: map[string]string{"install.js": `const fs = require('fs')
let seen = 'nothing'
try { seen = fs.readFileSync(` + "`" + secret + "`" + `, 'utf8') } catch {}
fs.writeFileSync('built.json', JSON.stringify({ token: process.env.FAAS_TEST_TOKEN || 'none', seen, uid: process.getuid(), node: process.execPath }))
`},
		Manifest: map[string]any{"scripts": map[string]string{"install": "node install.js"}}})
	manifest := `{"name":"app","version":"1.0.0","dependencies":{"native":"1.0.0","generated-0":"1.0.0"}}`
	lock := w.npm.Lock(manifest)
	req := w.request(t, "k1", "one")
	req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(manifest)}, "package-lock.json": {Data: []byte(lock)}}
	req.Dependencies.Build = image
	o.TempDir = t.TempDir()
	e := engine(t, o)
	img := mustBuild(t, e, req)
	pulled, err := remote.Image(img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	got := files(t, pulled)
	built := got["app/node_modules/native/built.json"]
	t.Logf("sandbox %s: %s", img.Sandbox, built)
	if !strings.Contains(built, `"token":"none"`) {
		t.Errorf("the script saw the job's environment: %s", built)
	}
	if o.Mode == sandbox.None {
		if img.Sandbox != builder.SandboxNone || img.BuildImage != "" || img.Unboxed == "" {
			t.Errorf("ran in %q %q, %q", img.Sandbox, img.BuildImage, img.Unboxed)
		}
	} else {
		if img.Sandbox != builder.SandboxNamespaces || img.BuildImage != image.DigestStr() {
			t.Errorf("ran in %q %q", img.Sandbox, img.BuildImage)
		}
		if !strings.Contains(built, `"seen":"nothing"`) || !strings.Contains(built, `"uid":65532`) || !strings.Contains(built, `"node":"/usr/bin/node"`) {
			t.Errorf("the script saw the job's files, or was root: %s", built)
		}
	}
	if _, ok := got["app/node_modules/generated-5/package.json"]; !ok {
		t.Error("an ordinary package is missing")
	}
	left, err := os.ReadDir(o.TempDir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// A failing script is the project's error, with npm's words.
	w.npm.Add(npmtest.Package{Name: "broken", Version: "1.0.0",
		Manifest: map[string]any{"scripts": map[string]string{"install": "echo no compiler found >&2; exit 3"}}})
	manifest = `{"name":"app","version":"1.0.0","dependencies":{"broken":"1.0.0"}}`
	req = w.request(t, "k2", "one")
	req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(manifest)}, "package-lock.json": {Data: []byte(w.npm.Lock(manifest))}}
	req.Dependencies.Build = image
	_, err = e.Build(t.Context(), req)
	var in *builder.InputError
	if !errors.As(err, &in) || !strings.Contains(err.Error(), "no compiler found") {
		t.Errorf("got %v", err)
	}
}
