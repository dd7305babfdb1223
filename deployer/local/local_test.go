package local_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
	"github.com/kuroko-faas/kuroko/deployer/local"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// serveDir, in the environment, makes this program a server to be killed.
const serveDir = "KUROKO_TEST_SERVE"

func TestMain(m *testing.M) {
	sandbox.Main()
	if dir := os.Getenv(serveDir); dir != "" {
		s, err := local.Start(context.Background(), options(dir))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(s.URL())
		select {}
	}
	os.Exit(m.Run())
}

// options are a server's with short times.
func options(dir string) local.Options {
	return local.Options{Dir: dir, Sandbox: os.Getenv("KUROKO_TEST_SANDBOX"), Times: local.Times{
		Init: 20 * time.Second, Grace: 3 * time.Second, Drain: 10 * time.Second, Backoff: 20 * time.Millisecond,
	}}
}

// prebuilt, in the environment, names the unit's program for a run that can't
// build it.
const prebuilt = "KUROKO_TEST_UNIT"

// unitProgram is testdata/unit, built once, static.
var unitProgram = sync.OnceValues(func() ([]byte, error) {
	if file := os.Getenv(prebuilt); file != "" {
		return os.ReadFile(file)
	}
	dir, err := os.MkdirTemp("", "kuroko-unit-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "unit")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/unit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the unit: %w\n%s", err, b)
	}
	return os.ReadFile(out)
})

// entry is one entry of a layer.
type entry struct {
	tar.Header
	body string
}

func layer(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if e.Mode == 0 {
			e.Mode = 0o644
		}
		if e.Typeflag == 0 && strings.HasSuffix(e.Name, "/") {
			e.Typeflag, e.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}}
}

func file(name, body string) entry { return entry{Header: tar.Header{Name: name}, body: body} }

// push makes an image and pushes it.
func push(t *testing.T, host string, cfg v1.Config, layers ...v1.Layer) name.Digest {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config = runtime.GOARCH, "linux", cfg
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(host + "/team/app@" + h.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref.Context().Tag("t"+h.Hex[:12]), img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref
}

// world is a registry with the unit's images in it.
type world struct {
	host                           string
	base                           v1.Layer
	one, two, crash, mute, missing name.Digest
}

func newWorld(t *testing.T) world {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a program and runs it in sandboxes")
	}
	program, err := unitProgram()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	w := world{host: strings.TrimPrefix(srv.URL, "http://")}
	w.base = layer(t, dir("app/", 0o755), dir("tmp/", 0o1777), dir("bin/", 0o755),
		entry{Header: tar.Header{Name: "bin/unit", Mode: 0o755}, body: string(program)})
	w.one, w.two = w.image(t, "one"), w.image(t, "two")
	w.crash, w.mute = w.image(t, "crash"), w.image(t, "mute")
	w.missing, err = name.NewDigest(w.host + "/team/app@sha256:" + strings.Repeat("0", 64))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w world) image(t *testing.T, behave string) name.Digest {
	t.Helper()
	return push(t, w.host, v1.Config{
		Entrypoint: []string{"/bin/unit"}, WorkingDir: "/app", User: "65532:65532", Env: []string{"BEHAVE=" + behave},
	}, w.base, layer(t, file("app/name", behave)))
}

// start starts a server that ends with the test.
func start(t *testing.T, dir string) *local.Server {
	t.Helper()
	o := options(dir)
	o.Log = func(s string) { t.Log(s) }
	s, err := local.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, s) })
	return s
}

func end(t *testing.T, s *local.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Errorf("close: %v", err)
	}
}

var scope = deployer.Scope{Service: "app", Environment: "test", Namespace: "apps", Owner: "1"}

func unit(n string, image name.Digest) deployer.Spec {
	return deployer.Spec{Name: "app-" + n, Unit: n, Image: image, Key: "k-" + n, Table: `{"name":"` + n + `"}`, Environment: map[string]string{"GREETING": "hi"}}
}

func deploy(t *testing.T, target deployer.Target, pipeline int64, units ...deployer.Spec) deployer.Outcome {
	t.Helper()
	out, err := deployer.Deploy(t.Context(), target, deployer.Plan{Scope: scope, Pipeline: pipeline, Units: units}, quick)
	if err != nil {
		t.Fatalf("deploy %d: %v", pipeline, err)
	}
	return out
}

var quick = deployer.Options{ProbeEvery: 20 * time.Millisecond, Checks: 1, Settle: 2 * time.Second, Lease: deployer.LeaseTimes{For: 2 * time.Second, Poll: 50 * time.Millisecond}}

// get asks a URL and returns what the unit says about itself.
func get(t *testing.T, url string) map[string]any {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %s, %v\n%s", url, res.Status, err, b)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%s: %v\n%s", url, err, b)
	}
	return m
}

func TestTarget(t *testing.T) {
	w := newWorld(t)
	for _, mode := range []string{"auto", "none"} {
		t.Run(mode, func(t *testing.T) {
			t.Setenv("KUROKO_TEST_SANDBOX", mode)
			deployertest.TestTarget(t, func(t *testing.T) deployertest.Env {
				s := start(t, t.TempDir())
				return deployertest.Env{
					Target: local.Dial(s.Socket()), Scope: scope,
					One: w.one, Two: w.two, Crash: w.crash, Mute: w.mute, Missing: w.missing, Options: quick,
				}
			})
		})
	}
}

func TestUnitSeesItsImageOnly(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	s := start(t, dir)
	target := local.Dial(s.Socket())
	out := deploy(t, target, 1, unit("main", w.one))
	mode, why, err := target.Sandbox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if mode == string(sandbox.None) {
		t.Skipf("no sandbox on this machine: %s", why)
	}
	got := get(t, out.Units[0].URL+"/x?file="+filepath.Join(dir, "lock"))
	for k, want := range map[string]any{
		"revision": out.Units[0].Revision, "uid": 65532.0, "dir": "/app", "seen": false, "tmp": true,
		"unit": `{"name":"main"}`, "service": "app-main", "own": "hi", "path_env": "/usr/local/bin:/usr/bin:/bin",
	} {
		if got[k] != want {
			t.Errorf("%s is %v, want %v", k, got[k], want)
		}
	}
	rev, err := target.WaitReady(t.Context(), scope, "app-main", out.Units[0].Revision, nil)
	if err != nil || rev.Sandbox != mode {
		t.Errorf("revision %+v, %v; want sandbox %s", rev, err, mode)
	}
}

func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user; the other tests run as this user already")
	}
	newWorld(t) // skips where it must
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Everything again as an ordinary user: user namespaces, no owners.
	own := t.TempDir()
	for p := own; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(own, "local.test")
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, b, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := unitProgram()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(own, "unit"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for mode, test := range map[string]string{"auto": "TestUnitSeesItsImageOnly", "none": "TestRouting"} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), bin, "-test.run=^"+test+"$", "-test.v")
			cmd.Dir = own
			cmd.Env = []string{
				"PATH=" + os.Getenv("PATH"), "TMPDIR=" + own, "HOME=" + own,
				prebuilt + "=" + filepath.Join(own, "unit"), "KUROKO_TEST_SANDBOX=" + mode,
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("PASS")) {
				t.Fatalf("as an ordinary user: %v\n%s", err, out)
			}
			if bytes.Contains(out, []byte("SKIP")) {
				t.Skipf("as an ordinary user: %s", out)
			}
		})
	}
}

func TestRouting(t *testing.T) {
	w := newWorld(t)
	s := start(t, t.TempDir())
	out := deploy(t, local.Dial(s.Socket()), 1, unit("main", w.one))
	rev := out.Units[0].Revision
	for _, tc := range []struct{ host, path, wantPath, wantPrefix string }{
		{"", "/app-main/hello?a=b%20c", "/hello", "/app-main"},
		{"", "/app-main", "/", "/app-main"},
		{"", "/app-main/", "/", "/app-main"},
		{"", "/app-main/a%2Fb/c", "/a/b/c", "/app-main"},
		{"", "/" + rev + "/x", "/x", "/" + rev},
		{"app-main.local.example", "/hello", "/hello", ""},
		{rev + ".local.example:80", "/app-main/hello", "/app-main/hello", ""},
		{"other.example", "/app-main/y", "/y", "/app-main"},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL()+tc.path, nil)
		if tc.host != "" {
			req.Host = tc.host
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		err = json.NewDecoder(res.Body).Decode(&got)
		res.Body.Close()
		if err != nil || got["path"] != tc.wantPath || got["prefix"] != tc.wantPrefix || got["revision"] != rev {
			t.Errorf("%s %s: %s, %v, %v; want path %s, prefix %q", tc.host, tc.path, res.Status, got, err, tc.wantPath, tc.wantPrefix)
		}
		if strings.Contains(tc.path, "%2F") && got["rawPath"] != "/a%2Fb/c" {
			t.Errorf("the escaped path became %v", got["rawPath"])
		}
	}
	for path, want := range map[string]int{"/": 404, "/nobody/x": 404, "/app-mainx": 404} {
		res, err := http.Get(s.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %s; want %d", path, res.Status, want)
		}
	}
	// A stream's first bytes arrive before its end.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", s.URL()+"/app-main/stream", nil)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 6)
	if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "first\n" {
		t.Errorf("stream: %q, %v", first, err)
	}
	cancel()
	res.Body.Close()
}

func TestCrashIsReported(t *testing.T) {
	w := newWorld(t)
	s := start(t, t.TempDir())
	target := local.Dial(s.Socket())
	live := deploy(t, target, 1, unit("main", w.one))
	_, err := deployer.Deploy(t.Context(), target, deployer.Plan{Scope: scope, Pipeline: 2, Units: []deployer.Spec{unit("main", w.crash)}}, quick)
	cs := deployer.Failures(err)
	if len(cs) != 1 || cs[0].Code != deployer.Crash || cs[0].ExitCode != 3 || !strings.Contains(cs[0].Cause, "exited with code 3") {
		t.Fatalf("causes %+v of %v", cs, err)
	}
	if n := len(cs[0].Logs); n != deployer.LogLines || cs[0].Logs[n-1] != "boom" || !slices.Contains(cs[0].Logs, "line 29") {
		t.Errorf("%d log lines %q; want the last %d", n, cs[0].Logs, deployer.LogLines)
	}
	if got := get(t, live.Units[0].URL+"/")["revision"]; got != live.Units[0].Revision {
		t.Errorf("%v serves; want %s", got, live.Units[0].Revision)
	}
}

func TestCrashedUnitIsRestarted(t *testing.T) {
	w := newWorld(t)
	s := start(t, t.TempDir())
	live := deploy(t, local.Dial(s.Socket()), 1, unit("main", w.one))
	url := live.Units[0].URL
	for range 3 {
		if res, err := http.Get(url + "/exit"); err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusBadGateway {
				t.Errorf("a request that ends the process: %s; want 502", res.Status)
			}
		}
		waitFor(t, "restart", func() bool {
			res, err := http.Get(url + "/")
			if err != nil {
				return false
			}
			res.Body.Close()
			return res.StatusCode == 200
		})
	}
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 1500 {
		if f() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s did not come", what)
}

// Requests go on while traffic is switched: none of them fails.
func TestNoRequestIsLostWhileSwitching(t *testing.T) {
	w := newWorld(t)
	s := start(t, t.TempDir())
	target := local.Dial(s.Socket())
	out := deploy(t, target, 1, unit("main", w.one))
	url := out.Units[0].URL
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	asked, bad, seen := 0, []string{}, map[string]int{}
	for n := range 4 { // 4 × one per 20 ms: 200 a second
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				method, body := "GET", io.Reader(nil)
				if n%2 == 1 {
					method, body = "POST", strings.NewReader("x") // what no proxy repeats
				}
				req, _ := http.NewRequest(method, url+"/sleep?ms=15", body)
				res, err := http.DefaultClient.Do(req)
				answer := ""
				if err == nil {
					b, _ := io.ReadAll(res.Body)
					res.Body.Close()
					if answer = string(b); res.StatusCode != 200 {
						err = fmt.Errorf("%s: %s", res.Status, b)
					}
				}
				mu.Lock()
				asked++
				seen[answer]++
				if err != nil {
					bad = append(bad, err.Error())
				}
				mu.Unlock()
			}
		})
	}
	count := func(rev string) int {
		mu.Lock()
		defer mu.Unlock()
		return seen[rev]
	}
	for n := range 3 {
		image := []name.Digest{w.two, w.one, w.two}[n]
		u := unit("main", image)
		u.Environment["ROUND"] = fmt.Sprint(n)
		out := deploy(t, target, int64(n+2), u)
		waitFor(t, "traffic at "+out.Units[0].Revision, func() bool { return count(out.Units[0].Revision) > 20 })
	}
	close(stop)
	wg.Wait()
	if len(bad) > 0 || asked < 60 || len(seen) != 4 {
		t.Errorf("%d of %d requests failed, answers from %v: %q", len(bad), asked, seen, bad)
	}
}

func TestSplitIsExact(t *testing.T) {
	w := newWorld(t)
	s := start(t, t.TempDir())
	target := local.Dial(s.Socket())
	one := deploy(t, target, 1, unit("main", w.one))
	two := deploy(t, target, 2, unit("main", w.two))
	h, err := target.Head(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	a, b := one.Units[0].Revision, two.Units[0].Revision
	if err := target.SetTraffic(t.Context(), deployer.Fence{Scope: scope, Epoch: h.Epoch}, "app-main", []deployer.Share{{Revision: a, Percent: 30}, {Revision: b, Percent: 70}}); err != nil {
		t.Fatal(err)
	}
	seen := map[any]int{}
	for range 100 {
		seen[get(t, s.URL()+"/app-main/")["revision"]]++
	}
	if seen[a] != 30 || seen[b] != 70 {
		t.Errorf("100 requests went to %v", seen)
	}
}

func TestRestartBringsUnitsBack(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	s := start(t, dir)
	out := deploy(t, local.Dial(s.Socket()), 1, unit("main", w.one))
	url, socket := s.URL(), s.Socket()
	if _, err := local.Start(t.Context(), local.Options{Dir: dir}); !errors.Is(err, local.ErrBusy) {
		t.Errorf("a second server in the folder: %v; want busy", err)
	}
	end(t, s)
	if _, err := http.Get(url); err == nil {
		t.Error("it still answers after its end")
	}
	_, err := local.Dial(socket).Head(t.Context(), scope)
	if !errors.Is(err, deployer.ErrUnavailable) || !strings.Contains(err.Error(), "faasctl local serve") {
		t.Errorf("a call without server: %v; want unavailable, with the command", err)
	}
	s = start(t, dir)
	if s.URL() != url {
		t.Errorf("the URL changed from %s to %s", url, s.URL())
	}
	// The first request waits for the unit.
	if got := get(t, url+"/app-main/")["revision"]; got != out.Units[0].Revision {
		t.Errorf("%v serves; want %s", got, out.Units[0].Revision)
	}
	state, err := deployer.Observe(t.Context(), local.Dial(s.Socket()), scope)
	if err != nil || state.Head.Live != "r1" || len(state.Services) != 1 {
		t.Errorf("state %+v, %v", state, err)
	}
}

func TestKilledServerComesBack(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	serve := func() (*exec.Cmd, string) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), serveDir+"="+dir)
		cmd.Stderr = os.Stderr
		r, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		var url string
		if _, err := fmt.Fscanln(r, &url); err != nil {
			t.Fatal(err)
		}
		return cmd, url
	}
	cmd, url := serve()
	target := local.Dial(filepath.Join(dir, "control.sock"))
	one := deploy(t, target, 1, unit("main", w.one))
	before := get(t, url+"/app-main/")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := target.Head(t.Context(), scope); !errors.Is(err, deployer.ErrUnavailable) {
		t.Errorf("a call to a killed server: %v; want unavailable", err)
	}
	_, again := serve()
	if again != url {
		t.Errorf("the URL changed from %s to %s", url, again)
	}
	after := get(t, url+"/app-main/")
	if after["revision"] != one.Units[0].Revision || before["revision"] != after["revision"] {
		t.Errorf("%v served before, %v after", before["revision"], after["revision"])
	}
	two := deploy(t, target, 2, unit("main", w.two))
	if got := get(t, url+"/app-main/")["revision"]; got != two.Units[0].Revision {
		t.Errorf("%v serves; want %s", got, two.Units[0].Revision)
	}
}

func TestIdleRevisionStopsAndStartsOnDemand(t *testing.T) {
	w := newWorld(t)
	o := options(t.TempDir())
	o.Times.KeepWarm = 50 * time.Millisecond
	s, err := local.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, s) })
	target := local.Dial(s.Socket())
	one := deploy(t, target, 1, unit("main", w.one)).Units[0].Revision
	deploy(t, target, 2, unit("main", w.two))
	waitFor(t, "the end of "+one, func() bool {
		lines, err := target.Logs(t.Context(), scope, "app-main", one, 1)
		return err == nil && slices.Equal(lines, []string{"ended"})
	})
	if got := get(t, s.URL()+"/"+one+"/")["revision"]; got != one {
		t.Errorf("%v answers at %s's own URL", got, one)
	}
	if _, err := deployer.Rollback(t.Context(), target, scope, "", quick); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s.URL()+"/app-main/")["revision"]; got != one {
		t.Errorf("%v serves after the rollback", got)
	}
}

func TestRegistryFaults(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name  string
		image func(t *testing.T) name.Digest
		want  deployer.Code
	}{
		{"unauthorised", func(t *testing.T) name.Digest { return w.behind(t, http.StatusUnauthorized) }, deployer.ImageUnauthorized},
		{"forbidden", func(t *testing.T) name.Digest { return w.behind(t, http.StatusForbidden) }, deployer.ImageUnauthorized},
		{"nobody there", func(t *testing.T) name.Digest {
			d, err := name.NewDigest("127.0.0.1:1/team/app@" + w.one.DigestStr())
			if err != nil {
				t.Fatal(err)
			}
			return d
		}, deployer.ImageUnreachable},
		{"no program", func(t *testing.T) name.Digest {
			return push(t, w.host, v1.Config{Entrypoint: []string{"/bin/none"}}, w.base)
		}, deployer.ImageUnusable},
		{"no entry point", func(t *testing.T) name.Digest { return push(t, w.host, v1.Config{}, w.base) }, deployer.ImageUnusable},
		{"hostile", func(t *testing.T) name.Digest {
			return push(t, w.host, v1.Config{Entrypoint: []string{"/bin/unit"}}, w.base, layer(t, file("../../evil", "x")))
		}, deployer.ImageUnusable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, t.TempDir())
			target := local.Dial(s.Socket())
			_, err := deployer.Deploy(t.Context(), target, deployer.Plan{Scope: scope, Units: []deployer.Spec{unit("main", tc.image(t))}}, quick)
			cs := deployer.Failures(err)
			if len(cs) != 1 || cs[0].Code != tc.want || cs[0].Next == "" {
				t.Errorf("causes %+v of %v; want %s", cs, err, tc.want)
			}
		})
	}
}

// behind is the first image behind a registry that answers everything with
// the status.
func (w world) behind(t *testing.T, status int) name.Digest {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if status == http.StatusUnauthorized {
			rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		}
		rw.WriteHeader(status)
	}))
	t.Cleanup(srv.Close)
	d, err := name.NewDigest(strings.TrimPrefix(srv.URL, "http://") + "/team/app@" + w.one.DigestStr())
	if err != nil {
		t.Fatal(err)
	}
	return d
}
