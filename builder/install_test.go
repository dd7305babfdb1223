package builder_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
)

// TestRealInstaller has npm run an install script that looks around.
func TestRealInstaller(t *testing.T) {
	if testing.Short() {
		t.Skip("runs npm, which takes seconds")
	}
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skip("needs npm")
	}
	w := newWorld(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FAAS_TEST_TOKEN", "t0ken")
	w.npm.Add(npmtest.Package{Name: "native", Version: "1.0.0",
		Files: map[string]string{"install.js": `const fs = require('fs')
let seen = 'nothing'
try { seen = fs.readFileSync(` + "`" + secret + "`" + `, 'utf8') } catch {}
fs.writeFileSync('built.json', JSON.stringify({ token: process.env.FAAS_TEST_TOKEN || 'none', seen, uid: process.getuid() }))
`},
		Manifest: map[string]any{"scripts": map[string]string{"install": "node install.js"}}})
	manifest := `{"name":"app","version":"1.0.0","dependencies":{"native":"1.0.0","generated-0":"1.0.0"}}`
	lock := w.npm.Lock(manifest)
	req := w.request(t, "k1", "one")
	req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(manifest)}, "package-lock.json": {Data: []byte(lock)}}
	temp := t.TempDir()
	img := mustBuild(t, engine(t, builder.Options{TempDir: temp}), req)
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
	switch img.Sandbox {
	case "root", "userns":
		if !strings.Contains(built, `"seen":"nothing"`) || !strings.Contains(built, `"uid":65532`) {
			t.Errorf("the script saw the job's files or was root: %s", built)
		}
	case "none":
		t.Log("this machine allows no sandbox: what the script could read was not tested")
	default:
		t.Errorf("sandbox %q", img.Sandbox)
	}
	if _, ok := got["app/node_modules/generated-5/package.json"]; !ok {
		t.Error("an ordinary package is missing")
	}
	left, err := os.ReadDir(temp)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// A failing script is the project's error, with npm's words.
	w.npm.Add(npmtest.Package{Name: "broken", Version: "1.0.0",
		Manifest: map[string]any{"scripts": map[string]string{"install": "echo no compiler found >&2; exit 3"}}})
	manifest = `{"name":"app","version":"1.0.0","dependencies":{"broken":"1.0.0"}}`
	req = w.request(t, "k2", "one")
	req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(manifest)}, "package-lock.json": {Data: []byte(w.npm.Lock(manifest))}}
	_, err = engine(t, builder.Options{}).Build(t.Context(), req)
	var in *builder.InputError
	if !errors.As(err, &in) || !strings.Contains(err.Error(), "no compiler found") {
		t.Errorf("got %v", err)
	}
}
