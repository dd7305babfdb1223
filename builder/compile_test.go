package builder_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
	"github.com/kuroko-faas/kuroko/builder/pip/piptest"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

// compilers skips what runs a compiler: seconds for each file.
func compilers(t *testing.T) {
	t.Helper()
	if os.Getenv("KUROKO_TEST_IMAGES") == "" {
		t.Skip("compiles with the build images, which takes seconds: make test-images")
	}
}

// unpacked are an image's files below a folder, on disk.
func unpacked(t *testing.T, img v1.Image, below string) string {
	t.Helper()
	dir := t.TempDir()
	r := mutate.Extract(img)
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		inside, ok := strings.CutPrefix(strings.TrimPrefix(h.Name, "/"), below+"/")
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		var data bytes.Buffer
		if _, err := data.ReadFrom(tr); err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, filepath.FromSlash(inside))
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data.Bytes(), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// native says whether any layer of an image is known to hold machine code:
// then its base is not swapped for one with another abi.
func native(t *testing.T, img v1.Image) bool {
	t.Helper()
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if l.Annotations["io.kuroko.layer"] == "dependencies" {
			return l.Annotations["io.kuroko.native"] == "true"
		}
	}
	t.Errorf("no dependency layer in %s", raw)
	return false
}

// loads runs a program of a slim base over files that a build image compiled.
func loads(t *testing.T, e *builder.Layers, base name.Digest, dir string, want string, argv ...string) {
	t.Helper()
	var out bytes.Buffer
	if _, err := e.Run(t.Context(), builder.Command{Image: base, Argv: argv, Dir: dir, Stdout: &out, Stderr: &out}); err != nil || out.String() != want {
		t.Errorf("on the base: %v, got %q, want %q", err, out.String(), want)
	}
}

// node-gyp compiles an addon in the build image, without the internet, and the
// slim base loads it.
func TestRealAddon(t *testing.T) {
	compilers(t)
	w := newWorld(t)
	image, trees := realBuildImage(t, w.reg, "nodejs18")
	base, _ := realImage(t, w.reg, "base/nodejs18")
	w.npm.Add(npmtest.Package{Name: "addon", Version: "1.0.0", Files: map[string]string{
		"binding.gyp": `{"targets": [{"target_name": "addon", "sources": ["addon.c", "more.cc"]}]}`,
		"addon.c": `#include <node_api.h>
napi_value greet(napi_env env, napi_callback_info info);
NAPI_MODULE_INIT() {
  napi_value fn;
  napi_create_function(env, "greet", NAPI_AUTO_LENGTH, greet, NULL, &fn);
  return fn;
}
`,
		"more.cc": `#include <node_api.h>
#include <string>
extern "C" napi_value greet(napi_env env, napi_callback_info info) {
  std::string text = std::string("from C") + "++";
  napi_value v;
  napi_create_string_utf8(env, text.c_str(), text.size(), &v);
  return v;
}
`,
	}, Manifest: map[string]any{"gypfile": true, "scripts": map[string]string{"install": "node-gyp rebuild"}}})
	const manifest = `{"name":"app","version":"1.0.0","dependencies":{"addon":"1.0.0"}}`
	lock := w.npm.Lock(manifest)
	var digests []string
	for _, key := range []string{"k1", "k2"} {
		req := w.request(t, key, "one")
		req.Repository = req.Repository.Registry.Repo("team", key)
		req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(manifest)}, "package-lock.json": {Data: []byte(lock)}}
		req.Dependencies.Build = image
		e := engine(t, builder.Options{TreeDir: trees, TempDir: t.TempDir()})
		img := mustBuild(t, e, req)
		digests = append(digests, img.Ref.DigestStr())
		if key != "k1" {
			continue
		}
		pulled, err := remote.Image(img.Ref)
		if err != nil {
			t.Fatal(err)
		}
		if !native(t, pulled) {
			t.Error("the layer is not known to hold machine code")
		}
		loads(t, e, base, unpacked(t, pulled, "app"), "from C++\n", "/usr/bin/node", "-e", "console.log(require('./node_modules/addon/build/Release/addon.node')())")
	}
	if digests[0] != digests[1] {
		t.Errorf("two builds of the same: %v", digests)
	}
}

// pip compiles a source archive's extension in the build image, and the slim
// base loads it.
func TestRealExtension(t *testing.T) {
	compilers(t)
	reg := registrytest.New(t)
	image, trees := realBuildImage(t, reg, "python3.11")
	base, _ := realImage(t, reg, "base/python3.11")
	index := piptest.NewIndex(t)
	index.Add("fast-1.0.tar.gz", extensionArchive(t))
	e := engine(t, builder.Options{TreeDir: trees, TempDir: t.TempDir()})
	img := mustBuild(t, e, pythonRequest(t, reg, "k1", "fast==1.0\n", index, image))
	pulled, err := remote.Image(img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if !native(t, pulled) {
		t.Error("the layer is not known to hold machine code")
	}
	loads(t, e, base, unpacked(t, pulled, "usr/local/lib/python3.11/dist-packages"), "5 from C++\n",
		"/usr/bin/python3", "-c", "import sys; sys.path.insert(0, '/app'); import fast, faster; print(fast.add(2, 3), faster.greet())")
}

// extensionArchive is a source archive with a module in C and one in C++. Its
// build needs nothing from the index but compiles as setuptools would.
func extensionArchive(t *testing.T) []byte {
	t.Helper()
	backend := `import os, subprocess, sysconfig, zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    flags = sysconfig.get_config_var("CFLAGS").split() + ["-fPIC", "-shared", "-I" + sysconfig.get_path("include")]
    subprocess.check_call(sysconfig.get_config_var("CC").split() + flags + ["fast.c", "-o", "fast" + suffix])
    subprocess.check_call(["g++", "-fPIC", "-shared", "-I" + sysconfig.get_path("include"), "faster.cc", "-o", "faster" + suffix])
    name = "fast-1.0-cp311-cp311-linux_%s.whl" % os.uname().machine
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as z:
        for m in "fast", "faster": z.write(m + suffix)
        z.writestr("fast-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fast\nVersion: 1.0\n")
        z.writestr("fast-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_%s\n" % os.uname().machine)
        z.writestr("fast-1.0.dist-info/RECORD", "")
    return name
`
	const module = `#include <Python.h>
%s
static PyMethodDef methods[] = {{"NAME", NAME, METH_VARARGS, 0}, {0, 0, 0, 0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "MODULE", 0, -1, methods};
PyMODINIT_FUNC PyInit_MODULE(void) { return PyModule_Create(&module); }
`
	source := func(module, file, function, body string) string {
		return strings.NewReplacer("%s", body, "NAME", function, "MODULE", file).Replace(module)
	}
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, f := range [][2]string{
		{"PKG-INFO", "Metadata-Version: 2.1\nName: fast\nVersion: 1.0\n"},
		{"backend.py", backend},
		{"pyproject.toml", "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n"},
		{"fast.c", source(module, "fast", "add", `static PyObject *add(PyObject *self, PyObject *args) { long a, b; if (!PyArg_ParseTuple(args, "ll", &a, &b)) return 0; return PyLong_FromLong(a + b); }`)},
		{"faster.cc", source(module, "faster", "greet", "#include <string>\nstatic PyObject *greet(PyObject *, PyObject *) { std::string s = std::string(\"from C\") + \"++\"; return PyUnicode_FromString(s.c_str()); }")},
	} {
		if err := w.WriteHeader(&tar.Header{Name: "fast-1.0/" + f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(f[1]))
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
