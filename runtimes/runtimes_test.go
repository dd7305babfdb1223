package runtimes_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/runtimes"
)

// nodeOldest is the oldest Node.js the adapter is written for.
const nodeOldest = 18

// node finds a Node.js that can run the adapter, or skips.
func node(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("node")
	if err != nil {
		t.Skip("needs node on PATH")
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		t.Skipf("needs a node that starts: %v", err)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(string(out)), "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < nodeOldest {
		t.Skipf("needs node %d or newer, found %s", nodeOldest, out)
	}
	return path
}

// TestNodeAdapter runs the adapter's own tests with node's test runner.
func TestNodeAdapter(t *testing.T) {
	bin := node(t)
	files, err := filepath.Glob("node/test/*.test.js")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files: %v", err)
	}
	if testing.Short() {
		// The others start a process per case.
		files = []string{"node/test/unit.test.js"}
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, bin, append([]string{"--test", "--test-reporter=tap"}, files...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("node --test: %v\n%s", err, failures(string(out)))
	}
	if !strings.Contains(string(out), "# pass ") {
		t.Errorf("node --test ran nothing:\n%s", out)
	}
}

// failures cuts what passed out of a TAP report.
func failures(tap string) string {
	var keep []string
	for _, line := range strings.Split(tap, "\n") {
		if !strings.HasPrefix(strings.TrimSpace(line), "ok ") && !strings.Contains(line, "duration_ms") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "\n")
}

func TestNodeShipsOnlyWhatRuns(t *testing.T) {
	var got []string
	err := fs.WalkDir(runtimes.Adapters, "node", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, "node/main.js") || !slices.Contains(got, "node/lib/adapter.js") {
		t.Errorf("the adapter's entry is missing in %q", got)
	}
	for _, path := range got {
		if strings.Contains(path, "test") || strings.HasSuffix(path, ".md") {
			t.Errorf("%s ships", path)
		}
	}
}

// TestNodeAsShipped runs the embedded files as a function image lays them out,
// with a table written by our own type.
func TestNodeAsShipped(t *testing.T) {
	bin := node(t)
	root := t.TempDir()
	adapter, app := filepath.Join(root, "opt/faas/adapter"), filepath.Join(root, "app")
	sub, err := fs.Sub(runtimes.Adapters, "node")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(adapter, sub); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(adapter, "platform.json"), `{"mark":"tide"}`)
	// A repository that says "module" must not change how the adapter is read.
	write(t, filepath.Join(root, "package.json"), `{"type":"module"}`)
	write(t, filepath.Join(app, "index.cjs"), `exports.handler = async (event) => ({ hello: event.pathParameters.name, x: process.env.X })`)
	unit, err := json.Marshal(runtimes.Unit{Name: "main", Functions: []runtimes.Function{{
		Name: "hello", Handler: "index.handler", Contract: "event", TimeoutMs: 5000, Concurrency: 2,
		Environment: map[string]string{"X": "y"},
		Routes:      []runtimes.Route{{Path: "/hello/[name]", Methods: []string{"GET"}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, bin, filepath.Join(adapter, "main.js"))
	cmd.Dir = app
	cmd.Env = []string{"PORT=0", "FAAS_UNIT=" + string(unit), "K_REVISION=hello-main-1", "FAAS_IMAGE=i@sha256:0", "FAAS_KEY=k"}
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log := bufio.NewScanner(stdout)
	url := ""
	for ready := false; !ready && log.Scan(); {
		var line struct {
			Msg  string
			Port int
		}
		if err := json.Unmarshal(log.Bytes(), &line); err != nil {
			t.Fatalf("log line %q: %v", log.Text(), err)
		}
		if line.Port != 0 {
			url = "http://127.0.0.1:" + strconv.Itoa(line.Port)
		}
		ready = line.Msg == "ready"
	}
	get := func(path string, header ...string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, "GET", url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body), res.Header
	}
	if code, body, h := get("/hello/kuroko"); code != 200 || body != `{"hello":"kuroko","x":"y"}` || h.Get("X-Faas-Platform") != "tide" {
		t.Errorf("got %d %q platform %q", code, body, h.Get("X-Faas-Platform"))
	}
	if code, _, _ := get("/health/readiness"); code != 200 {
		t.Errorf("readiness: got %d", code)
	}
	if code, body, h := get("/anything", "x-faas-nonce", "42"); code != 200 || body != "" ||
		h.Get("X-Faas-Nonce") != "42" || h.Get("X-Faas-Revision") != "hello-main-1" || h.Get("X-Faas-Image") != "i@sha256:0" || h.Get("X-Faas-Key") != "k" {
		t.Errorf("nonce: got %d %q %v", code, body, h)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for log.Scan() { // Wait closes the pipe: read it to its end first.
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGINT: %v, want exit code 0", err)
	}
}

func TestNodeHandler(t *testing.T) {
	data, err := os.ReadFile("testdata/handlers.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Handler, Export string
		Files           []string
		Error           bool
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		files, export, err := runtimes.NodeHandler(c.Handler)
		if (err != nil) != c.Error {
			t.Errorf("NodeHandler(%q): error %v, want error: %v", c.Handler, err, c.Error)
		}
		if !c.Error && (export != c.Export || !slices.Equal(files, c.Files)) {
			t.Errorf("NodeHandler(%q) = %q, %q; want %q, %q", c.Handler, files, export, c.Files, c.Export)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
