package builder_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

// maxPeak is what a build may take of memory, however many packages it has.
const maxPeak = 96 << 20

// BenchmarkPeakMemory builds an image with a dependency tree of 500 MB in
// 40,000 files, in a process of its own, and prints the most memory that it
// had: 46 MiB in November 2026. Registry and package registry are in this
// process.
//
//	go test -run '^$' -bench PeakMemory -benchtime 1x ./builder
func BenchmarkPeakMemory(b *testing.B) {
	for b.Loop() {
		peak := peakOf(b, 40, 1000, 12500)
		b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
		if peak > maxPeak {
			b.Errorf("%d MiB, more than %d", peak>>20, maxPeak>>20)
		}
	}
}

// TestPeakMemory is a tenth of the benchmark.
func TestPeakMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: builds an image of 50 MB")
	}
	peak := peakOf(t, 8, 500, 12500)
	t.Logf("peak: %d MiB", peak>>20)
	if peak > maxPeak {
		t.Errorf("%d MiB, more than %d", peak>>20, maxPeak>>20)
	}
}

const memoryJob = "KUROKO_TEST_MEMORY"

// memoryTask is what the child is asked to build.
type memoryTask struct{ Base, Repository, Registry, Manifest, Lock, Temp string }

// peakOf builds an image with packages of the given number of files in a child
// and returns its peak in bytes.
func peakOf(t testing.TB, packages, files, size int) int64 {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("reads the peak from /proc")
	}
	archive := bigArchive(t, files, size)
	sum := sha512.Sum512(archive)
	integrity := "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	npm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(archive)))
		_, _ = w.Write(archive)
	}))
	t.Cleanup(npm.Close)
	deps, lock := map[string]string{}, map[string]any{}
	for i := range packages {
		n := fmt.Sprintf("big-%d", i)
		deps[n] = "1.0.0"
		lock["node_modules/"+n] = map[string]any{"version": "1.0.0", "integrity": integrity}
	}
	lock[""] = map[string]any{"dependencies": deps}
	manifest, err := json.Marshal(map[string]any{"dependencies": deps})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{"lockfileVersion": 3, "packages": lock})
	if err != nil {
		t.Fatal(err)
	}
	reg := registrytest.New(t)
	task, err := json.Marshal(memoryTask{Base: pushBase(t, reg, "base/nodejs18").String(), Repository: reg.Host + "/team/app", Registry: npm.URL,
		Manifest: string(manifest), Lock: string(text), Temp: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), memoryJob+"="+string(task))
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	peak, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		t.Fatalf("the child says %q", out)
	}
	return peak
}

// bigArchive is a package archive whose files look like code to a compressor.
func bigArchive(t testing.TB, files, size int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 2000)
	for i := range words {
		words[i] = strconv.FormatUint(rnd.Uint64(), 36)[:3+rnd.IntN(8)]
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for i := range files {
		var body bytes.Buffer
		for body.Len() < size {
			body.WriteString(words[rnd.IntN(len(words))])
			body.WriteByte(" \n(){};,.="[rnd.IntN(10)])
		}
		name := "package/package.json"
		if i > 0 {
			name = fmt.Sprintf("package/lib/dir%d/file%d.js", i%37, i)
		} else {
			body.Reset()
			body.WriteString(`{"name":"big","version":"1.0.0"}`)
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(body.Len())}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// runMemoryTask is the child: it builds, prints its peak and ends.
func runMemoryTask(text string) int {
	fail := func(err error) int {
		fmt.Println(err)
		return 1
	}
	var task memoryTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		return fail(err)
	}
	base, err := name.NewDigest(task.Base)
	if err != nil {
		return fail(err)
	}
	repo, err := name.NewRepository(task.Repository)
	if err != nil {
		return fail(err)
	}
	e, err := builder.NewLayers(builder.Options{TempDir: task.Temp, CacheDir: task.Temp + "/cache", NPMCache: task.Temp + "/npm"})
	if err != nil {
		return fail(err)
	}
	project := fstest.MapFS{"package.json": {Data: []byte(task.Manifest)}, "package-lock.json": {Data: []byte(task.Lock)}, "index.js": {Data: []byte("x")}}
	if _, err := e.Build(context.Background(), builder.Request{Name: "app", Key: "k", Repository: repo, Base: base,
		Code:         builder.Tree{Title: "code", FS: project, Prefix: "/app"},
		Dependencies: &builder.Dependencies{Kind: "npm", FS: project, Manifest: "package.json", Lock: "package-lock.json", Prefix: "/app", Registry: task.Registry},
	}); err != nil {
		return fail(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fail(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return fail(err)
			}
			fmt.Println(n << 10)
			return 0
		}
	}
	return fail(fmt.Errorf("no VmHWM in /proc/self/status"))
}
