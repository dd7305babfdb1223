package builder_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/pip/piptest"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// sourceArchive is a package that has no wheel, and builds its own without
// anything else from the index. Its build looks around.
func sourceArchive(t *testing.T, secret string) []byte {
	t.Helper()
	backend := `import os, zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    seen = "nothing"
    try: seen = open("` + secret + `").read()
    except OSError: pass
    text = "SEEN = %r\nENV = %r\n" % (seen, sorted(k for k in os.environ if "TOKEN" in k or k.startswith("CI_")))
    name = "built-2.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as z:
        z.writestr("built.py", text)
        z.writestr("built-2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: built\nVersion: 2.0\n")
        z.writestr("built-2.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr("built-2.0.dist-info/RECORD", "built.py,,\nbuilt-2.0.dist-info/METADATA,,\nbuilt-2.0.dist-info/WHEEL,,\nbuilt-2.0.dist-info/RECORD,,\n")
    return name
`
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, f := range [][2]string{{"built-2.0/PKG-INFO", "Metadata-Version: 2.1\nName: built\nVersion: 2.0\n"}, {"built-2.0/backend.py", backend},
		{"built-2.0/pyproject.toml", "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n"}} {
		if err := w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(f[1]))
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func pythonRequest(t *testing.T, reg *registrytest.Server, key, requirements string, index *piptest.Index, image name.Digest) builder.Request {
	t.Helper()
	repo, err := name.NewRepository(reg.Host + "/team/app/python3-11")
	if err != nil {
		t.Fatal(err)
	}
	project := fstest.MapFS{"requirements.txt": {Data: []byte(requirements)}, "app.py": {Data: []byte("print(1)")}}
	return builder.Request{
		Name: "python3-11", Key: key, Repository: repo, Base: pushBaseOf(t, reg, "base/python3.11", "#!/bin/sh\n", "cp311-glibc2.36-amd64"),
		Code:         builder.Tree{Title: "code", FS: project, Prefix: "/app", Paths: []string{"app.py"}},
		Dependencies: &builder.Dependencies{Kind: builder.KindPip, FS: project, Lock: "requirements.txt", Prefix: "/usr/local", ABI: "cp311-glibc2.36", Registry: index.URL, Build: image},
	}
}

// What requirements.txt does not pin, or what has no wheel, pip installs in the
// build image; an index's password stays outside.
func TestPipInstalls(t *testing.T) {
	reg := registrytest.New(t)
	image, trees := realBuildImage(t, reg, "python3.11")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret"), 0o644); err != nil {
		t.Fatal(err)
	}
	index := piptest.NewIndex(t, piptest.Wheel{Name: "greeter", Version: "1.0", Files: map[string]string{"greeter.py": "GREETING = 'hello'\n"},
		EntryPoints: "[console_scripts]\ngreet = greeter:main\n"})
	index.Add("built-2.0.tar.gz", sourceArchive(t, secret))
	index.Token = "t0ken-of-the-index"
	t.Setenv("CI_JOB_TOKEN", "x")
	e := engine(t, builder.Options{TreeDir: trees, TempDir: t.TempDir(), Authorize: func(r *http.Request) { r.SetBasicAuth("ci", index.Token) }})
	img := mustBuild(t, e, pythonRequest(t, reg, "k1", "greeter\nbuilt==2.0\n", index, image))
	if img.Sandbox != builder.SandboxNamespaces || img.BuildImage != image.DigestStr() {
		t.Errorf("ran in %q %q", img.Sandbox, img.BuildImage)
	}
	if len(img.Warnings) != 1 || !strings.Contains(img.Warnings[0], "line 1: greeter is not pinned with ==; line 2: built==2.0 has no hash") {
		t.Errorf("warnings: %q", img.Warnings)
	}
	pulled, err := remote.Image(img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	got := files(t, pulled)
	const lib = "usr/local/lib/python3.11/dist-packages/"
	if got[lib+"greeter.py"] != "GREETING = 'hello'\n" || !strings.HasPrefix(got["usr/local/bin/greet"], "#!/usr/bin/python3") {
		t.Errorf("the wheel: %q, %q", got[lib+"greeter.py"], got["usr/local/bin/greet"])
	}
	if got[lib+"built.py"] != "SEEN = 'nothing'\nENV = []\n" {
		t.Errorf("the source archive: %q", got[lib+"built.py"])
	}
	for n, text := range got {
		if strings.HasSuffix(n, ".pyc") || strings.Contains(text, index.Token) || strings.Contains(text, "127.0.0.1") {
			t.Errorf("%s should not be there, or tells where packages came from", n)
		}
	}
	// A hash does not make a wheel of an archive.
	sum := piptest.Sum(sourceArchive(t, secret))
	img = mustBuild(t, e, pythonRequest(t, reg, "k2", "built==2.0 --hash=sha256:"+sum+"\n", index, image))
	if img.Sandbox != builder.SandboxNamespaces {
		t.Errorf("ran in %q", img.Sandbox)
	}
}

// Another file of the repository can change without the image's key: refused.
func TestPipWithOtherFiles(t *testing.T) {
	reg := registrytest.New(t)
	e := engine(t, builder.Options{Mode: sandbox.None, TempDir: t.TempDir()})
	_, err := e.Build(t.Context(), pythonRequest(t, reg, "k1", "-r more.txt\n", piptest.NewIndex(t), name.Digest{}))
	var in *builder.InputError
	if !errors.As(err, &in) || !strings.Contains(err.Error(), "line 1: the option -r") {
		t.Errorf("got %v", err)
	}
}
