package pip_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/pip"
	"github.com/kuroko-faas/kuroko/builder/pip/piptest"
)

var platform = pip.Platform{Minor: 11, Glibc: 36, Arch: "amd64"}

// write makes the layer and lists its files: mode and content by path.
func write(t testing.TB, f *pip.Fetcher, requirements string) (map[string]string, string, error) {
	t.Helper()
	file, err := pip.Parse([]byte(requirements))
	if err != nil {
		return nil, "", err
	}
	plan, err := file.Plan(platform)
	if err != nil {
		return nil, "", err
	}
	w, err := layer.NewWriter(t.TempDir(), layer.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := f.Write(t.Context(), w, "/usr/local", plan); err != nil {
		return nil, "", err
	}
	l, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	z, err := gzip.NewReader(l.Open())
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files, l.Info().Digest.String(), nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = fmt.Sprintf("%o %s", h.Mode, data)
	}
}

// apps are wheels with everything that pip treats specially.
func apps() []piptest.Wheel {
	return []piptest.Wheel{
		{Name: "Flask-Like", Version: "3.0.0", Requires: []string{"dep_one>=1.0", `old; python_version < "3.0"`, `extra-dep; extra == "more"`}, Files: map[string]string{
			"flask_like/__init__.py": "X = 1\n", "flask_like/data.bin": "\x00\x01", "flask_like/run.sh*": "#!/bin/sh\n", "flask_like/Ünïcode,name.py": "",
			"Flask_Like-3.0.0.data/scripts/tool*":     "#!python -u\nprint('tool')\n",
			"Flask_Like-3.0.0.data/scripts/plain*":    "#!/bin/sh\necho plain\n",
			"Flask_Like-3.0.0.data/data/etc/like.cfg": "a = 1\n", "Flask_Like-3.0.0.data/purelib/flask_like/extra.py": "Y = 2\n",
		}, EntryPoints: "[console_scripts]\nflask-like = flask_like:main\nnested = flask_like.cli:App.run\n\n[gui_scripts]\ngui = flask_like:gui\n[other]\nx = y\n"},
		{Name: "dep.one", Version: "1.5", Tag: "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64", Files: map[string]string{"dep_one/native.so*": "elf"}},
		{Name: "shared-ns", Version: "2!1.0", Files: map[string]string{"ns/a.py": "a\n"}},
	}
}

func requirements(t testing.TB, wheels []piptest.Wheel) string {
	var b strings.Builder
	for _, w := range wheels {
		b.WriteString(w.Line(t))
	}
	return b.String()
}

// TestTreeEqualsPip: what is in the layer is what pip would have installed.
func TestTreeEqualsPip(t *testing.T) {
	if out, err := exec.Command("/usr/bin/python3", "-c", "import sys, pip; print(sys.version_info[1])").Output(); err != nil || strings.TrimSpace(string(out)) != "11" {
		t.Skip("needs Debian's Python 3.11 with python3-pip in /usr/bin")
	}
	wheels := apps()
	index := piptest.NewIndex(t, wheels...)
	list := requirements(t, wheels)
	got, _, err := write(t, &pip.Fetcher{Index: index.URL}, list)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "requirements.txt")
	if err := os.WriteFile(file, []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	root := filepath.Join(dir, "root")
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-m", "pip", "install", "--require-hashes", "--no-compile", "--ignore-installed", "--no-cache-dir",
		"--disable-pip-version-check", "--break-system-packages", "--no-warn-script-location", "--root-user-action=ignore", "--index-url", index.URL, "--root", root, "-r", file)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "LANG=C.UTF-8"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pip: %v\n%s", err, out)
	}
	want := map[string]string{}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(p)
		name, _ := filepath.Rel(root, p)
		want[filepath.ToSlash(name)] = fmt.Sprintf("%o %s", info.Mode().Perm(), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: got %q, pip has %q", name, got[name], want[name])
		}
		delete(got, name)
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		t.Errorf("%s: pip does not have it", name)
	}
}

func TestSameInputsSameLayer(t *testing.T) {
	wheels := apps()
	index := piptest.NewIndex(t, wheels...)
	cache := t.TempDir()
	_, first, err := write(t, &pip.Fetcher{Index: index.URL, Cache: cache}, requirements(t, wheels))
	if err != nil {
		t.Fatal(err)
	}
	asked := len(index.Requests())
	slices.Reverse(wheels)
	_, again, err := write(t, &pip.Fetcher{Index: index.URL, Cache: cache}, "# comment\r\n"+strings.ReplaceAll(requirements(t, wheels), " --hash", " \\\r\n    --hash"))
	if err != nil || first != again {
		t.Errorf("%s, then %s, %v", first, again, err)
	}
	if n := len(index.Requests()); n != asked {
		t.Errorf("%d requests although the cache has every wheel", n-asked)
	}
}

func TestChooses(t *testing.T) {
	of := func(tag string) piptest.Wheel {
		return piptest.Wheel{Name: "x", Version: "1.0", Tag: tag, Files: map[string]string{"x.py": tag}}
	}
	for _, c := range []struct {
		have []string
		want string
	}{
		{[]string{"py3-none-any", "cp311-cp311-manylinux_2_17_x86_64", "cp311-cp311-manylinux_2_28_x86_64"}, "cp311-cp311-manylinux_2_28_x86_64"},
		{[]string{"cp38-abi3-manylinux2014_x86_64", "py3-none-any"}, "cp38-abi3-manylinux2014_x86_64"},
		{[]string{"cp311-cp311-manylinux_2_99_x86_64", "py2.py3-none-any"}, "py2.py3-none-any"},
		{[]string{"cp311-cp311-win_amd64", "cp311-cp311-manylinux_2_17_aarch64", "cp312-cp312-manylinux_2_17_x86_64", "cp311-cp311-musllinux_1_1_x86_64"}, ""},
	} {
		index := piptest.NewIndex(t)
		line := "x==1.0"
		for _, tag := range c.have {
			w := of(tag)
			index.Add(w.FileName(), w.Bytes(t))
			line += " --hash=sha256:" + piptest.Sum(w.Bytes(t))
		}
		got, _, err := write(t, &pip.Fetcher{Index: index.URL}, line)
		if c.want == "" {
			if !errors.Is(err, pip.ErrNeedsInstaller) {
				t.Errorf("%v: %v", c.have, err)
			}
			continue
		}
		if text := got["usr/local/lib/python3.11/dist-packages/x.py"]; err != nil || text != "644 "+c.want {
			t.Errorf("%v: got %q, %v; want %s", c.have, text, err, c.want)
		}
	}
}

func TestNeedsInstaller(t *testing.T) {
	const sum = " --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for line, want := range map[string]string{
		"flask==1.0":                        "flask==1.0 has no hash",
		"flask>=1.0" + sum:                  "flask is not pinned",
		"-e .":                              "an editable install",
		"-r more.txt":                       "the option -r",
		"--index-url=https://u:p@h/s":       "the option --index-url",
		"git+https://h/r.git":               "comes from an address",
		"x @ https://h/x.whl":               "x comes from an address",
		"./local":                           "comes from a folder",
		"x==1 --hash=md5:00":                "a hash of kind md5",
		"a==1\nb==2\n-e c" + "\nd==3" + sum: "line 1: a==1 has no hash; line 2: b==2 has no hash; line 3: an editable install",
	} {
		_, _, err := write(t, &pip.Fetcher{Index: "http://127.0.0.1:1/simple"}, line)
		if !errors.Is(err, pip.ErrNeedsInstaller) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
		var needs *pip.NeedsInstallerError
		if local := strings.Contains(line, "-e ") || strings.HasPrefix(line, "-r") || strings.HasPrefix(line, "."); errors.As(err, &needs) && local != (len(needs.Local) == 1) {
			t.Errorf("%q: other files of the repository: %q", line, needs.Local)
		}
	}
	source := piptest.NewIndex(t)
	source.Add("x-1.0.tar.gz", []byte("sdist"))
	_, _, err := write(t, &pip.Fetcher{Index: source.URL}, "x==1.0 --hash=sha256:"+piptest.Sum([]byte("sdist")))
	if !errors.Is(err, pip.ErrNeedsInstaller) || !strings.Contains(err.Error(), "source archive and no wheel") {
		t.Error(err)
	}
}

func TestBadFile(t *testing.T) {
	for line, want := range map[string]string{
		"flask == 1.0 ; python_version": "no comparison", "x==1 --hash=sha256:12": "not a SHA-256 sum", "???": "not a requirement",
		"x==1; bogus == '1'": `unknown variable "bogus"`, "x==1; (python_version > '3'": "not closed", "x==1 ; " + strings.Repeat("(", 100): "levels",
	} {
		var bad *pip.LockError
		if _, err := pip.Parse([]byte(line)); !errors.As(err, &bad) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "line 1: ") {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}

func TestMarkers(t *testing.T) {
	const sum = " --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for marker, want := range map[string]bool{
		`python_version >= "3.9"`: true, `python_version < "3.10"`: false, `"3.11" == python_version`: true, `python_version ~= "3.8"`: true,
		`sys_platform == "win32"`: false, `sys_platform != 'win32' and os_name == 'posix'`: true, `platform_machine in "x86_64 arm64"`: true,
		`platform_machine not in "x86_64"`: false, `(os_name == "nt" or sys_platform == "linux") and implementation_name == "cpython"`: true,
		`os_name == "posix" or os_name == "nt" and os_name == "nope"`: true, `python_full_version < "3.11.3"`: true, `python_full_version < "3.11.0"`: false,
		`extra == "test"`: false, `platform_python_implementation == "PyPy"`: false, `python_version in "3.10, 3.11"`: true,
	} {
		f, err := pip.Parse([]byte("x==1 ; " + marker + sum))
		if err != nil {
			t.Errorf("%s: %v", marker, err)
			continue
		}
		if p, err := f.Plan(platform); err != nil || p.Empty() == want {
			t.Errorf("%s: installed %v, %v; want %v", marker, !p.Empty(), err, want)
		}
	}
}

func TestIncomplete(t *testing.T) {
	all := apps()
	index := piptest.NewIndex(t, all...)
	var step *pip.OutOfStepError
	_, _, err := write(t, &pip.Fetcher{Index: index.URL}, all[0].Line(t))
	if !errors.As(err, &step) || err.Error() != "requirements.txt is incomplete: flask-like==3.0.0 requires dep-one, which is not pinned" {
		t.Error(err)
	}
	old := piptest.Wheel{Name: "dep-one", Version: "0.9"}
	index.Add(old.FileName(), old.Bytes(t))
	_, _, err = write(t, &pip.Fetcher{Index: index.URL}, all[0].Line(t)+old.Line(t))
	if !errors.As(err, &step) || !strings.Contains(err.Error(), "requires dep-one>=1.0, but 0.9 is pinned") {
		t.Error(err)
	}
	// An extra brings its own requirements.
	_, _, err = write(t, &pip.Fetcher{Index: index.URL}, strings.Replace(all[0].Line(t), "==", "[more]==", 1)+all[1].Line(t))
	if !errors.As(err, &step) || !strings.Contains(err.Error(), "requires extra-dep") {
		t.Error(err)
	}
}

// zipOf is a wheel by hand.
func zipOf(t testing.TB, change func(z *zip.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for n, text := range map[string]string{"x-1.0.dist-info/METADATA": "Name: x\nVersion: 1.0\n", "x-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\n", "x-1.0.dist-info/RECORD": ""} {
		f, err := z.Create(n)
		if err == nil {
			_, err = io.WriteString(f, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(change(z), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestHostileWheels(t *testing.T) {
	named := func(name string, mode fs.FileMode, size int) func(*zip.Writer) error {
		return func(z *zip.Writer) error {
			h := &zip.FileHeader{Name: name, Method: zip.Deflate}
			h.SetMode(mode)
			f, err := z.CreateHeader(h)
			if err == nil {
				_, err = f.Write(make([]byte, size))
			}
			return err
		}
	}
	limits := fetch.Limits{Package: 1 << 20, Files: 20}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"climbs":    {zipOf(t, named("../../etc/passwd", 0o644, 1)), "leaves its folder"},
		"absolute":  {zipOf(t, named("/etc/passwd", 0o644, 1)), "leaves its folder"},
		"backslash": {zipOf(t, named(`a\..\b`, 0o644, 1)), "leaves its folder"},
		"data":      {zipOf(t, named("x-1.0.data/data/../../../../etc/x", 0o644, 1)), "leaves its folder"},
		"link":      {zipOf(t, named("x/link", fs.ModeSymlink|0o777, 9)), "is a link"},
		"device":    {zipOf(t, named("x/dev", fs.ModeDevice|0o666, 0)), "special file"},
		"bomb":      {zipOf(t, named("x/zeros", 0o644, 2<<20)), "has more than 1048576 bytes"},
		"many": {zipOf(t, func(z *zip.Writer) error {
			for i := range 30 {
				if _, err := z.Create(fmt.Sprint("x/", i)); err != nil {
					return err
				}
			}
			return nil
		}), "more than 20 files"},
		"twice": {zipOf(t, func(z *zip.Writer) error { return errors.Join(named("x/a", 0o644, 1)(z), named("x/a", 0o644, 2)(z)) }), "twice"},
	} {
		index := piptest.NewIndex(t)
		index.Add("x-1.0-py3-none-any.whl", c.data)
		_, _, err := write(t, &pip.Fetcher{Index: index.URL, Limits: limits}, "x==1.0 --hash=sha256:"+piptest.Sum(c.data))
		var bad *fetch.PackageError
		if !errors.As(err, &bad) || !errors.Is(err, fetch.ErrHostile) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for name, data := range map[string][]byte{"not a zip": []byte("hello"), "another package": piptest.Wheel{Name: "y", Version: "1.0"}.Bytes(t)} {
		index := piptest.NewIndex(t)
		index.Add("x-1.0-py3-none-any.whl", data)
		var bad *fetch.PackageError
		if _, _, err := write(t, &pip.Fetcher{Index: index.URL}, "x==1.0 --hash=sha256:"+piptest.Sum(data)); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIndexFaults(t *testing.T) {
	w := piptest.Wheel{Name: "x", Version: "1.0", Files: map[string]string{"x.py": ""}}
	index := piptest.NewIndex(t, w)
	fetcher := &pip.Fetcher{Index: index.URL, Source: fetch.Source{Delay: time.Millisecond, Attempts: 3}}

	// Other bytes than the page says.
	index.Before = func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/files/") {
			io.WriteString(rw, "something else")
			return true
		}
		return false
	}
	if _, _, err := write(t, fetcher, w.Line(t)); !errors.Is(err, pip.ErrIntegrity) {
		t.Errorf("other bytes: %v", err)
	}
	// A published file that nobody pinned.
	index.Before = nil
	if _, _, err := write(t, fetcher, "x==1.0 --hash=sha256:"+piptest.Sum(nil)); !errors.Is(err, pip.ErrIntegrity) {
		t.Errorf("other hash: %v", err)
	}
	if _, _, err := write(t, fetcher, "nope==1.0 --hash=sha256:"+piptest.Sum(nil)); !errors.Is(err, pip.ErrNotPublished) {
		t.Errorf("not published: %v", err)
	}
	// Busy twice, cut off once.
	n := 0
	index.Before = func(rw http.ResponseWriter, r *http.Request) bool {
		if n++; n < 3 {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
		return n < 3
	}
	if _, _, err := write(t, fetcher, w.Line(t)); err != nil {
		t.Errorf("busy twice: %v", err)
	}
	index.Before = func(rw http.ResponseWriter, r *http.Request) bool { rw.WriteHeader(http.StatusBadGateway); return true }
	var fe *fetch.Error
	if _, _, err := write(t, fetcher, w.Line(t)); !errors.As(err, &fe) || fe.Attempts != 3 || fe.Status != http.StatusBadGateway {
		t.Errorf("always busy: %v", err)
	}
	// A token: sent to the index alone, and never told.
	index.Before, index.Token = nil, "s3cret"
	if _, _, err := write(t, fetcher, w.Line(t)); !errors.As(err, &fe) || fe.Status != http.StatusUnauthorized {
		t.Errorf("without a token: %v", err)
	}
	fetcher.Authorize = func(r *http.Request) { r.SetBasicAuth("ci", "s3cret") }
	files, _, err := write(t, fetcher, w.Line(t))
	if err != nil || strings.Contains(fmt.Sprint(files), "s3cret") {
		t.Errorf("with a token: %v", err)
	}
}

func TestJSONIndex(t *testing.T) {
	w := piptest.Wheel{Name: "x", Version: "1.0", Files: map[string]string{"x.py": "json\n"}}
	index := piptest.NewIndex(t, w)
	index.Before = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/simple/") {
			return false
		}
		rw.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
		fmt.Fprintf(rw, `{"files": [{"filename": %q, "url": "/files/%[1]s", "hashes": {"sha256": %q}}]}`, w.FileName(), piptest.Sum(w.Bytes(t)))
		return true
	}
	if files, _, err := write(t, &pip.Fetcher{Index: index.URL}, w.Line(t)); err != nil || files["usr/local/lib/python3.11/dist-packages/x.py"] != "644 json\n" {
		t.Errorf("%v %v", files, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("flask==1.0 ; python_version > '3' --hash=sha256:00\n-e .\n"))
	f.Add([]byte("a[b,c]==1!2.0+x \\\n --hash sha256:ab # x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := pip.Parse(data)
		if err != nil {
			return
		}
		plan, err := file.Plan(platform)
		if err == nil && plan.Empty() == (len(plan.Packages) > 0) {
			t.Error("a plan that is not itself")
		}
	})
}

func Example() {
	file, err := pip.Parse([]byte("flask==3.0.0 ; python_version >= \"3.8\" --hash=sha256:" + strings.Repeat("0", 64)))
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := pip.ParseABI("cp311-glibc2.36", "amd64")
	if err != nil {
		fmt.Println(err)
		return
	}
	plan, err := file.Plan(p)
	fmt.Println(plan.Packages[0].ID(), err)
	// Output: flask==3.0.0 <nil>
}
