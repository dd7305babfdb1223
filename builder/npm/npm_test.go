package npm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
)

// zoo has one package for each rule that npm follows when it unpacks.
func zoo() []npmtest.Package {
	obj := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	return []npmtest.Package{
		{Name: "plain", Version: "1.0.0", Files: obj("index.js", "1", "lib/a b.js", "2", "中文.md", "3", "empty", "")},
		{Name: "plain", Version: "2.0.0", Files: obj("index.js", "two")},
		{Name: "@scope/tool", Version: "1.2.3", Files: obj("bin/cli.js", "#!/usr/bin/env node\r\nconsole.log(1)\r\n", "x", "y"),
			Executable: []string{"x"},
			Manifest: map[string]any{"bin": obj("tool", "bin/cli.js", "gone", "missing.js"),
				"dependencies": obj("plain", "2.0.0", "peers", "*")}},
		{Name: "other-tool", Version: "1.0.0", Files: obj("cli", "#!/bin/sh\n"), Manifest: map[string]any{"bin": obj("tool", "./cli", "other", "./cli")}},
		{Name: "peers", Version: "1.0.0", Manifest: map[string]any{"peerDependencies": obj("peer", "*", "maybe", "*"),
			"peerDependenciesMeta": map[string]any{"maybe": map[string]bool{"optional": true}}}},
		{Name: "peer", Version: "1.0.0"},
		{Name: "ignores", Version: "1.0.0", Files: obj(".gitignore", "a", "sub/.gitignore", "b", "sub/.npmignore", "c")},
		{Name: "links", Version: "1.0.0", Files: obj("f", "1"), Extra: []tar.Header{
			{Typeflag: tar.TypeSymlink, Name: "package/link", Linkname: "/etc/passwd"},
			{Typeflag: tar.TypeLink, Name: "package/hard", Linkname: "package/f"},
			{Typeflag: tar.TypeDir, Name: "package/folder/", Mode: 0o700},
			{Typeflag: tar.TypeFifo, Name: "package/fifo"},
		}},
		{Name: "root-folder", Version: "1.0.0", Archive: archive(
			tar.Header{Typeflag: tar.TypeReg, Name: "some-other-name/package.json"}, `{"name":"root-folder","version":"1.0.0"}`,
			tar.Header{Typeflag: tar.TypeReg, Name: "outside", Mode: 0o644}, "not part of the package",
			tar.Header{Typeflag: tar.TypeReg, Name: "another/twice", Mode: 0o644}, "first",
			tar.Header{Typeflag: tar.TypeReg, Name: "package/twice", Mode: 0o755}, "second, longer")},
		{Name: "for-linux", Version: "1.0.0", Manifest: map[string]any{"os": []string{"linux"}}},
		{Name: "for-mac", Version: "1.0.0", Manifest: map[string]any{"os": []string{"darwin"}, "dependencies": obj("only-for-mac", "*", "plain", "1.0.0")}},
		{Name: "only-for-mac", Version: "1.0.0"},
		{Name: "wraps-mac", Version: "1.0.0", Manifest: map[string]any{"dependencies": obj("for-mac", "*")}},
		{Name: "not-windows", Version: "1.0.0", Manifest: map[string]any{"os": []string{"!win32"}}},
		{Name: "musl", Version: "1.0.0", Manifest: map[string]any{"os": []string{"linux"}, "libc": []string{"musl"}}},
		{Name: "for-tests", Version: "1.0.0", Manifest: map[string]any{"dependencies": obj("plain", "1.0.0", "deep-dev", "*")}},
		{Name: "deep-dev", Version: "1.0.0"},
	}
}

const zooManifest = `{"name":"app","version":"1.0.0",
 "dependencies":{"plain":"^1.0.0","@scope/tool":"1.2.3","other-tool":"*","ignores":"1.0.0","links":"1.0.0","root-folder":"1.0.0",
   "alias":"npm:plain@2.0.0"},
 "optionalDependencies":{"for-linux":"*","for-mac":"*","wraps-mac":"*","not-windows":"*","musl":"*"},
 "devDependencies":{"for-tests":"*"}}`

// archive makes a package archive of headers and contents in turn.
func archive(parts ...any) []byte {
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	for i := 0; i < len(parts); i += 2 {
		h := parts[i].(tar.Header)
		body := parts[i+1].(string)
		h.Size = int64(len(body))
		if err := tw.WriteHeader(&h); err != nil {
			panic(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			panic(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// install makes the layer of a project and gives it unpacked: path to
// "mode content", "dir" or "-> target".
func install(t *testing.T, f *Fetcher, manifest, lock string) (map[string]string, layer.Info, error) {
	t.Helper()
	l, err := Parse([]byte(manifest), []byte(lock))
	if err != nil {
		return nil, layer.Info{}, err
	}
	plan, err := l.Plan(LinuxX64)
	if err != nil {
		return nil, layer.Info{}, err
	}
	w, err := layer.NewWriter(t.TempDir(), layer.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	f.Delay = time.Microsecond
	if err := f.Write(t.Context(), w, "/app", plan); err != nil {
		return nil, layer.Info{}, err
	}
	done, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer done.Close()
	r, err := done.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return got, done.Info(), nil
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(tr)
		name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "app/"), "/")
		switch h.Typeflag {
		case tar.TypeDir:
			got[name] = "dir"
		case tar.TypeSymlink:
			got[name] = "-> " + h.Linkname
		default:
			got[name] = fmt.Sprintf("%o %s", h.Mode, body)
		}
	}
}

func TestZoo(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	lock := reg.Lock(zooManifest)
	got, info, err := install(t, &Fetcher{Registry: reg.URL}, zooManifest, lock)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"node_modules/plain/lib/a b.js":                        "644 2",
		"node_modules/plain/empty":                             "644 ",
		"node_modules/alias/index.js":                          "644 two",
		"node_modules/@scope/tool/node_modules/plain/index.js": "644 two",
		"node_modules/@scope/tool/bin/cli.js":                  "755 #!/usr/bin/env node\nconsole.log(1)\r\n",
		"node_modules/@scope/tool/x":                           "755 y",
		"node_modules/.bin/tool":                               "-> ../@scope/tool/bin/cli.js",
		"node_modules/.bin/other":                              "-> ../other-tool/cli",
		"node_modules/peer":                                    "dir",
		"node_modules/ignores/.npmignore":                      "644 a",
		"node_modules/ignores/sub/.npmignore":                  "644 c",
		"node_modules/root-folder/twice":                       "644 second, longer",
		"node_modules/for-linux":                               "dir",
		"node_modules/not-windows":                             "dir",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	for _, name := range []string{"node_modules/.bin/gone", "node_modules/ignores/.gitignore", "node_modules/links/link", "node_modules/links/hard",
		"node_modules/links/fifo", "node_modules/links/folder", "node_modules/root-folder/outside", "outside", "node_modules/for-mac", "node_modules/only-for-mac",
		"node_modules/wraps-mac", "node_modules/musl", "node_modules/for-tests", "node_modules/deep-dev"} {
		if v, ok := got[name]; ok {
			t.Errorf("%s is there: %q", name, v)
		}
	}
	// Another order of arrival gives the same layer.
	for _, parallel := range []int{1, 3} {
		_, again, err := install(t, &Fetcher{Registry: reg.URL + "/", Parallel: parallel}, zooManifest, lock)
		if err != nil || again != info {
			t.Errorf("parallel %d: got %v, %v; want %v", parallel, again, err, info)
		}
	}
}

// TestSameTreeAsNpm compares with a real npm ci against the same registry.
func TestSameTreeAsNpm(t *testing.T) {
	if testing.Short() {
		t.Skip("runs npm, which takes seconds")
	}
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skip("needs npm")
	}
	reg := npmtest.Start(t, zoo()...)
	reg.Add(npmtest.Package{Name: "bundles", Version: "1.0.0",
		Files: map[string]string{"index.js": "1", "node_modules/inner/package.json": `{"name":"inner","version":"3.0.0","bin":{"inner":"run.js"}}`,
			"node_modules/inner/run.js": "#!/usr/bin/env node\n"},
		Manifest: map[string]any{"dependencies": map[string]string{"inner": "3.0.0"}, "bundleDependencies": []string{"inner"}}})
	manifest := strings.Replace(zooManifest, `"plain":`, `"bundles":"1.0.0","plain":`, 1)
	compareWithNpm(t, reg.URL, manifest)
}

// TestRealPackages does the same with packages of the machine's own registry.
func TestRealPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("runs npm against the configured registry")
	}
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skip("needs npm")
	}
	out, err := exec.CommandContext(t.Context(), "npm", "config", "get", "registry").Output()
	registry := strings.TrimSpace(string(out))
	if err != nil || !strings.HasPrefix(registry, "http") {
		t.Skip("npm has no registry configured")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, strings.TrimRight(registry, "/")+"/ms/-/ms-2.1.3.tgz", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Skip("the configured package registry can't be reached:", err)
	}
	resp.Body.Close()
	compareWithNpm(t, registry, `{"name":"app","version":"1.0.0","dependencies":{"accepts":"1.3.8","semver":"7.6.3"},"devDependencies":{"ms":"2.0.0"}}`)
}

func compareWithNpm(t *testing.T, registry, manifest string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("package.json", manifest)
	npm := func(args ...string) {
		cmd := exec.CommandContext(t.Context(), "npm", append(args, "--registry="+registry, "--no-audit", "--no-fund", "--prefer-offline")...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "npm_config_update_notifier=false", "npm_config_loglevel=error")
		if strings.HasPrefix(registry, "http://127.0.0.1") {
			// Our own registry's versions must not get into anybody's cache.
			cmd.Env = append(cmd.Env, "npm_config_cache="+t.TempDir())
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("npm %v: %v\n%s", args, err, out)
		}
	}
	npm("install", "--package-lock-only", "--omit-lockfile-registry-resolved")
	lock, err := os.ReadFile(filepath.Join(dir, "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	npm("ci", "--omit=dev")
	got, _, err := install(t, &Fetcher{Registry: registry}, manifest, string(lock))
	if err != nil {
		t.Fatal(err)
	}
	delete(got, "")
	delete(got, "app")
	want := map[string]string{}
	err = filepath.Walk(filepath.Join(dir, "node_modules"), func(p string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case info.IsDir():
			want[rel] = "dir"
		case info.Mode()&os.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			want[rel] = "-> " + to
		case rel == "node_modules/.package-lock.json": // npm's own memory
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			mode := 0o644
			if info.Mode()&0o111 != 0 {
				mode = 0o755
			}
			want[rel] = fmt.Sprintf("%o %s", mode, b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: got %.60q, npm has %.60q", name, got[name], want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: npm does not have it", name)
		}
	}
	if len(want) < 10 {
		t.Errorf("npm installed only %d things; is the test looking at the right place?", len(want))
	}
}

func TestOutOfStep(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	lock := reg.Lock(`{"name":"a","dependencies":{"plain":"^1.0.0","peers":"*"},"devDependencies":{"for-tests":"*"}}`)
	for manifest, want := range map[string]string{
		`{"dependencies":{"plain":"^1.0.0","peers":"*"},"devDependencies":{"for-tests":"*"}}`: "",
		`{"dependencies":{"plain":"1.x","peers":"*"},"devDependencies":{"for-tests":"*"}}`:    "",
		`{"dependencies":{"plain":"latest"}}`:                                                 "",
		`{"dependencies":{"plain":"^1.0.0"}}`:                                                 "",
		`{"dependencies":{"plain":"^2.0.0"}}`:                                                 "plain: package.json wants ^2.0.0, the lock file has 1.0.0",
		`{"dependencies":{"plain":"^2.0.0"},"overrides":{"plain":"1.0.0"}}`:                   "",
		`{"dependencies":{"plain":"npm:other@1"}}`:                                            "plain: package.json wants npm:other@1, the lock file has 1.0.0",
		`{"dependencies":{"plain":"git+https://git.example.test/plain"}}`:                     "plain: package.json wants git+https://git.example.test/plain, the lock file has 1.0.0",
		`{"dependencies":{"new":"^1.0.0","plain":"3"},"devDependencies":{"dev":""}}`:          "dev: package.json wants any version, the lock file has none; new: package.json wants ^1.0.0, the lock file has none; plain: package.json wants 3, the lock file has 1.0.0",
	} {
		_, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, lock)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", manifest, err)
			}
			continue
		}
		var oos *OutOfStepError
		if !errors.As(err, &oos) || oos.Fix != "npm install --package-lock-only" || !strings.HasSuffix(err.Error(), ": "+want) {
			t.Errorf("%s:\n got %v\nwant %s", manifest, err, want)
		}
	}
}

// edit changes a lock file as JSON.
func edit(t *testing.T, lock string, f func(packages map[string]map[string]any)) string {
	t.Helper()
	var l struct {
		LockfileVersion int                       `json:"lockfileVersion"`
		Packages        map[string]map[string]any `json:"packages"`
	}
	if err := json.Unmarshal([]byte(lock), &l); err != nil {
		t.Fatal(err)
	}
	f(l.Packages)
	b, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLockFileFromAnotherPlatform(t *testing.T) {
	reg := npmtest.Start(t, npmtest.Package{Name: "native", Version: "1.0.0", Manifest: map[string]any{"optionalDependencies": map[string]string{
		"@native/linux-x64": "1", "@native/linux-x64-musl": "1", "@native/darwin-arm64": "1"}}})
	manifest := `{"dependencies":{"native":"*"}}`
	_, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, reg.Lock(manifest))
	var oos *OutOfStepError
	if !errors.As(err, &oos) || len(oos.Problems) != 1 || oos.Fix != RecreateLock ||
		oos.Problems[0] != "@native/linux-x64: native@1.0.0 wants it on this platform, and the lock file was written without it" {
		t.Errorf("got %v", err)
	}
}

func TestUnsupportedPlatform(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	manifest := `{"dependencies":{"wraps-mac":"*"}}`
	_, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, reg.Lock(manifest))
	var un *UnsupportedError
	if !errors.As(err, &un) || err.Error() != "for-mac@1.0.0 runs on darwin only, and the image is linux x64 glibc" {
		t.Errorf("got %v", err)
	}
}

func TestLostDependencyOfADependency(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	manifest := `{"dependencies":{"@scope/tool":"*"}}`
	lock := edit(t, reg.Lock(manifest), func(p map[string]map[string]any) { delete(p, "node_modules/plain") })
	_, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, lock)
	if want := "plain: @scope/tool@1.2.3 wants 2.0.0, the lock file has none"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNeedsInstaller(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	manifest := `{"dependencies":{"plain":"*"}}`
	set := func(k string, v any) func(map[string]map[string]any) {
		return func(p map[string]map[string]any) { p["node_modules/plain"][k] = v }
	}
	for name, tt := range map[string]struct {
		edit func(map[string]map[string]any)
		want string
	}{
		"install script": {set("hasInstallScript", true), "plain@1.0.0: it has an install script"},
		"git":            {set("resolved", "git+ssh://git@git.example.test/a.git#0123"), "plain@1.0.0: it comes from a git repository"},
		"file":           {set("resolved", "file:plain.tgz"), "plain@1.0.0: it is a file of the project"},
		"no integrity":   {set("integrity", ""), "plain@1.0.0: the lock file has no integrity value for it"},
		"md5":            {set("integrity", "md5-1B2M2Y8AsgTpgAmY7PhCfg=="), "plain@1.0.0: the lock file has no integrity value for it"},
		"link":           {set("link", true), "plain@1.0.0: it is a link"},
		"web address": {func(p map[string]map[string]any) {
			p[""]["dependencies"] = map[string]string{"plain": "https://files.example.test/x.tgz"}
			p["node_modules/plain"]["resolved"] = "https://files.example.test/x.tgz"
		}, "plain@1.0.0: it comes from a web address, not from a package registry"},
	} {
		t.Run(name, func(t *testing.T) {
			m := manifest
			if name == "web address" {
				m = `{"dependencies":{"plain":"https://files.example.test/x.tgz"}}`
			}
			_, _, err := install(t, &Fetcher{Registry: reg.URL}, m, edit(t, reg.Lock(`{"dependencies":{"plain":"1.0.0"}}`), func(p map[string]map[string]any) {
				p[""]["dependencies"] = map[string]string{"plain": "*"}
				tt.edit(p)
			}))
			if !errors.Is(err, ErrNeedsInstaller) || !strings.HasSuffix(err.Error(), ": "+tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if len(reg.Requests()) > 0 {
		t.Errorf("archives were fetched although npm was needed: %v", reg.Requests())
	}
	for name, two := range map[string][2]string{
		"workspaces": {`{"workspaces":["a"]}`, `{"lockfileVersion":3,"packages":{}}`},
		"version 1":  {`{}`, `{"lockfileVersion":1,"dependencies":{}}`},
		"version 4":  {`{}`, `{"lockfileVersion":4,"packages":{}}`},
	} {
		if _, err := Parse([]byte(two[0]), []byte(two[1])); !errors.Is(err, ErrNeedsInstaller) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestWhatOnlyTheArchiveTells(t *testing.T) {
	for name, p := range map[string]npmtest.Package{
		"compiles":     {Name: "p", Version: "1.0.0", Files: map[string]string{"binding.gyp": "{}"}},
		"not gzip":     {Name: "p", Version: "1.0.0", Archive: []byte("plain text")},
		"not tar":      {Name: "p", Version: "1.0.0", Archive: compress(bytes.Repeat([]byte("x"), 5000))},
		"overlap":      {Name: "p", Version: "1.0.0", Files: map[string]string{"node_modules/q/package.json": "{}"}, Manifest: map[string]any{"dependencies": map[string]string{"q": "1.0.0"}}},
		"file on path": {Name: "p", Version: "1.0.0", Files: map[string]string{"node_modules": "a file"}, Manifest: map[string]any{"dependencies": map[string]string{"q": "1.0.0"}}},
	} {
		t.Run(name, func(t *testing.T) {
			reg := npmtest.Start(t, p, npmtest.Package{Name: "q", Version: "1.0.0"}, npmtest.Package{Name: "q", Version: "2.0.0"})
			manifest := `{"dependencies":{"q":"2.0.0","p":"*"}}` // q 1.0.0 lies inside p
			_, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, reg.Lock(manifest))
			if !errors.Is(err, ErrNeedsInstaller) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func compress(b []byte) []byte {
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	_, _ = zw.Write(b)
	_ = zw.Close()
	return out.Bytes()
}

func TestBadLockFiles(t *testing.T) {
	for name, tt := range map[string]struct{ manifest, lock, want string }{
		"not JSON":           {`{}`, "{\n\n \"a\": }", "package-lock.json: line 3: invalid character"},
		"merge conflict":     {`{}`, "{\n<<<<<<< HEAD\n", "merge conflict"},
		"empty":              {`{}`, ``, "package-lock.json: line 1: unexpected end of JSON input"},
		"something else":     {`{}`, `{"a":1}`, "package-lock.json: it holds neither lockfileVersion nor packages"},
		"package.json":       {`{`, `{}`, "package.json: line 1: unexpected end of JSON input"},
		"wrong type":         {`{"dependencies":[]}`, `{}`, "package.json: dependencies has the wrong type: array"},
		"place outside":      {`{}`, `{"lockfileVersion":3,"packages":{"../x":{}}}`, `packages: "../x": not a place in the project`},
		"place with dots":    {`{}`, `{"lockfileVersion":3,"packages":{"node_modules/../../x":{}}}`, `not a place in the project`},
		"absolute place":     {`{}`, `{"lockfileVersion":3,"packages":{"/node_modules/x":{}}}`, `not a place in the project`},
		"bad name":           {`{}`, `{"lockfileVersion":3,"packages":{"node_modules/a b":{}}}`, `not a package name`},
		"hidden name":        {`{}`, `{"lockfileVersion":3,"packages":{"node_modules/.bin":{}}}`, `not a package name`},
		"name is an address": {`{}`, `{"lockfileVersion":3,"packages":{"node_modules/a":{"name":"../../b"}}}`, `"../../b" is not a package name`},
		"version is a path":  {`{}`, `{"lockfileVersion":3,"packages":{"node_modules/a":{"version":"1/../..","integrity":"sha512-x"}}}`, `"1/../.." is not a version`},
	} {
		_, err := Parse([]byte(tt.manifest), []byte(tt.lock))
		var le *LockError
		if !errors.As(err, &le) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", name, err, tt.want)
		}
	}
}

func TestBinNamesStayInside(t *testing.T) {
	for in, want := range map[string]map[string]string{
		`"cli.js"`:                        {"pkg": "cli.js"},
		`{"../../evil":"../../../x"}`:     {"evil": "x"},
		`{"a\\b:c":"d\\e"}`:               {"c": "d/e"},
		`{"":"x","ok":"","n":5,"..":"y"}`: {},
		`["x"]`:                           {},
	} {
		var f binField
		if err := json.Unmarshal([]byte(in), &f); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if got := f.files("@scope/pkg"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, want %v", in, got, want)
		}
	}
}

func TestCancelledFetch(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("the job was cancelled")
	reg.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		cancel(stop)
		<-r.Context().Done()
		return true
	})
	l, err := Parse([]byte(zooManifest), []byte(reg.Lock(zooManifest)))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := l.Plan(LinuxX64)
	if err != nil {
		t.Fatal(err)
	}
	w, err := layer.NewWriter("", layer.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := (&Fetcher{Registry: reg.URL}).Write(ctx, w, "/app", plan); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}
