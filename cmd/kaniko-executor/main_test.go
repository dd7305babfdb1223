package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
	runpkg "github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// TestMain makes the test program the executor itself: main's first two lines.
func TestMain(m *testing.M) {
	sandbox.Main()
	if len(os.Args) == 2 && os.Args[1] == kaniko.ChildCommand {
		os.Exit(child(os.Stderr))
	}
	os.Exit(m.Run())
}

func none(string) string { return "" }

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		why  string
	}{
		{nil, 2, "--destination is missing"},
		{[]string{"--destination", "UPPER CASE"}, 2, "--destination UPPER CASE"},
		{[]string{"--destination", "a.example/b:1", "--context", "git://x"}, 2, "only folders"},
		{[]string{"--destination", "a.example/b:1", "--context", dir + "/none"}, 2, "not a folder"},
		{[]string{"--destination", "a.example/b:1", "--context", dir, "--dockerfile", "other"}, 2, "--dockerfile other"},
		{[]string{"--destination", "a.example/b:1", "--context", dir, "--build-arg", "=x"}, 2, "no name"},
		{[]string{"--destination", "a.example/b:1", "--context", dir, "--secret", "env=X"}, 2, "--secret env=X: no id"},
		{[]string{"--destination", "a.example/b:1", "--context", dir, "--secret", "id=X,what=y"}, 2, `"what" is not one of`},
		{[]string{"--destination", "a.example/b:1", "--context", dir, "--secret", "id=X,env=Y"}, 2, "the variable Y is not set"},
		{[]string{"--destination", "a.example/b:1", "--context", dir, "--secret", "id=X,src=" + dir + "/none"}, 2, "no such file"},
		{[]string{"--destination", "a.example/b:1", "--context", dir, "--snapshot-mode", "full"}, 2, "snapshot-mode"},
		{[]string{"--destination", "a.example/b:1", "--cache-repo", "UP per"}, 2, "--cache-repo"},
		{[]string{"--destination", "a.example/b:1", "--context", "dir://" + dir, "left"}, 2, `unexpected argument "left"`},
		{[]string{"--destination", "a.example/b:1", "--context", dir, "--target", "nope"}, 1, `no stage "nope"`},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append([]string{"kaniko-executor"}, tt.args...), none, &stdout, &stderr)
		if code != tt.code || !strings.Contains(stderr.String(), tt.why) || stdout.Len() > 0 {
			t.Errorf("%q: code %d, stdout %q, stderr %q", tt.args, code, stdout.String(), stderr.String())
		}
	}
}

// The child unpacks over /: it must refuse to be anything but process 1 of a
// sandbox.
func TestChildRefusesOutside(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", kaniko.ChildCommand).CombinedOutput()
	var exited *exec.ExitError
	if !errors.As(err, &exited) || exited.ExitCode() != 70 || !strings.Contains(string(out), "not process 1") {
		t.Errorf("%v: %s", err, out)
	}
	// Process 1, but in a root that nobody prepared for it.
	self := filepath.Join(t.TempDir(), "x")
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(self, program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	p, err := sandbox.Start(t.Context(), sandbox.Spec{
		Root: "/", AsInit: true, Argv: []string{self, kaniko.ChildCommand}, Stderr: &stderr,
	})
	if errors.Is(err, sandbox.ErrForbidden) {
		t.Skipf("not possible on this machine: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil || !strings.Contains(stderr.String(), "not a sandbox") {
		t.Errorf("%v: %s", err, stderr.String())
	}
}

// A whole build through the command line, against a registry that wants the
// job's password.
func TestBuildAndPush(t *testing.T) {
	if testing.Short() {
		t.Skip("linking kaniko takes a while")
	}
	if m, reason := sandbox.Detect(t.Context()); m == sandbox.None {
		t.Skipf("not possible on this machine: %s", reason)
	}
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte("ci:hunter2-password"))
	plain := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != auth {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		plain.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")

	// The test program may link the C library, which a sandbox over scratch
	// lacks: the real one doesn't.
	program := filepath.Join(t.TempDir(), "kaniko-executor")
	cmd := exec.Command("go", "build", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir := t.TempDir()
	for f, text := range map[string]string{"app.txt": "hello", "docker/Dockerfile": "FROM scratch\nARG VERSION\nARG TOKEN\nCOPY app.txt /app.txt\nLABEL version=$VERSION token=$TOKEN\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	digestFile := filepath.Join(t.TempDir(), "digest")
	call := func(env ...string) (string, string, error) {
		cmd := exec.CommandContext(t.Context(), program, "--context", "dir://"+dir, "--dockerfile", "docker/Dockerfile",
			"--destination", host+"/team/app:1", "-d", host+"/team/app:latest", "--build-arg", "VERSION=1,2=3", "--build-arg", "TOKEN", "--digest-file", digestFile, "--cache-repo", host+"/team/cache")
		cmd.Env = append([]string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "TOKEN=from-env"}, env...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		return stdout.String(), stderr.String(), err
	}
	forbidden(t, program, dir, host)
	_, stderr, err := call()
	var exited *exec.ExitError
	if !errors.As(err, &exited) || exited.ExitCode() != 78 || !strings.Contains(stderr, "E1303") || !strings.Contains(stderr, "CI_REGISTRY_PASSWORD") {
		t.Errorf("without a password: %v %s", err, stderr)
	}
	credentials := []string{"CI_REGISTRY=" + host, "CI_REGISTRY_USER=ci", "CI_REGISTRY_PASSWORD=hunter2-password"}
	stdout, stderr, err := call(credentials...)
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if strings.Contains(stdout+stderr, "hunter2") {
		t.Errorf("the password is in the log: %s", stdout+stderr)
	}
	digest, err := os.ReadFile(digestFile)
	if err != nil {
		t.Fatal(err)
	}
	if want := host + "/team/app@" + string(digest) + "\n"; stdout != want+want {
		t.Errorf("stdout %q, want %q twice", stdout, want)
	}
	for _, tag := range []string{"1", "latest"} {
		ref, err := name.ParseReference(host + "/team/app:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(ref, remote.WithAuth(&authn.Basic{Username: "ci", Password: "hunter2-password"}))
		if err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil || d.String() != string(digest) {
			t.Errorf("%s: %v, %v; the file says %s", tag, d, err, digest)
		}
		c, err := img.ConfigFile()
		if err != nil || c.Config.Labels["version"] != "1,2=3" || c.Config.Labels["token"] != "from-env" {
			t.Errorf("%s: labels %v, %v", tag, c.Config.Labels, err)
		}
	}
	// The cache repository has it: nothing is built, so no sandbox is needed.
	again, stderr, err := call(credentials...)
	if err != nil || again != stdout || !strings.Contains(stderr, "nothing to build") {
		t.Errorf("again: %q, %v, %s", again, err, stderr)
	}
}

// forbidden runs the program where no sandbox is possible: inside one.
func forbidden(t *testing.T, program, dir, host string) {
	t.Helper()
	var stderr bytes.Buffer
	p, err := sandbox.Start(t.Context(), sandbox.Spec{
		Root: t.TempDir(), Binds: []sandbox.Bind{{Source: program, Target: "/x", ReadOnly: true}, {Source: dir, Target: "/context", ReadOnly: true}},
		Argv:   []string{"/x", "--context", "/context", "--dockerfile", "docker/Dockerfile", "--destination", host + "/team/app:1"},
		Stderr: &stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait()
	var exited *runpkg.ExitError
	if !errors.As(err, &exited) || exited.Code != 77 || !strings.Contains(stderr.String(), "CAP_SYS_ADMIN") || !strings.Contains(stderr.String(), "E1103") || !strings.Contains(stderr.String(), "without a Dockerfile") {
		t.Errorf("%v: %s", err, stderr.String())
	}
	t.Logf("%s", stderr.String())
}
