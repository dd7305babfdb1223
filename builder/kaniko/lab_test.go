package kaniko_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	code := m.Run()
	if executor.dir != "" {
		os.RemoveAll(executor.dir)
	}
	os.Exit(code)
}

// executor is the program under test, built once.
var executor struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// givenExecutor, in the environment, is an executor built already.
const givenExecutor = "KUROKO_TEST_EXECUTOR"

func executorPath(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("linking kaniko takes a while")
	}
	executor.once.Do(func() {
		if executor.path = os.Getenv(givenExecutor); executor.path != "" {
			return
		}
		if executor.dir, executor.err = os.MkdirTemp("", "executor-"); executor.err != nil {
			return
		}
		if executor.err = os.Chmod(executor.dir, 0o755); executor.err != nil {
			return
		}
		executor.path = filepath.Join(executor.dir, "kaniko-executor")
		cmd := exec.Command("go", "build", "-o", executor.path, "../../cmd/kaniko-executor")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			executor.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if executor.err != nil {
		t.Fatalf("build the executor: %v", executor.err)
	}
	return executor.path
}

// lab is a registry with a base image in it.
type lab struct {
	t        *testing.T
	host     string
	base     string // reference by digest
	mode     sandbox.Mode
	executor string
	cacheDir string
	log      *safeBuffer
	requests *requestLog
}

// requestLog records the requests that a handler got, and can answer instead.
type requestLog struct {
	mu     sync.Mutex
	lines  []string
	refuse func(r *http.Request) int
	next   http.Handler
}

func (l *requestLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	l.lines = append(l.lines, r.Method+" "+r.URL.Path)
	refuse := l.refuse
	l.mu.Unlock()
	if refuse != nil {
		if code := refuse(r); code != 0 {
			http.Error(w, "refused by the test", code)
			return
		}
	}
	if d := r.URL.Query().Get("mount"); r.Method == http.MethodPost && d != "" && r.URL.Query().Get("from") != "" {
		// go-containerregistry's registry has no mounts; its blobs are
		// everywhere.
		w.Header().Set("Docker-Content-Digest", d)
		w.Header().Set("Location", strings.TrimSuffix(r.URL.Path, "uploads/")+d)
		w.WriteHeader(http.StatusCreated)
		return
	}
	l.next.ServeHTTP(w, r)
}

func (l *requestLog) set(refuse func(r *http.Request) int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = refuse
}

// sent are the uploads of content below a path.
func (l *requestLog) sent(below string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.HasPrefix(line, "PATCH "+below) {
			out = append(out, line)
		}
	}
	return out
}

func newRegistry(t *testing.T) (host string, l *requestLog) {
	t.Helper()
	l = &requestLog{next: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))}
	srv := httptest.NewServer(l)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), l
}

func newLab(t *testing.T, mode sandbox.Mode) *lab {
	t.Helper()
	l := &lab{t: t, mode: mode, executor: executorPath(t), cacheDir: t.TempDir(), log: &safeBuffer{}}
	p, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: mode, Lower: []string{t.TempDir()}, Binds: []sandbox.Bind{{Source: l.executor, Target: "/x"}}, Argv: []string{"/x", "--help"}})
	if errors.Is(err, sandbox.ErrForbidden) || errors.Is(err, sandbox.ErrNoOverlay) {
		t.Skipf("not possible on this machine: %v", err)
	}
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		t.Fatal(err)
	}
	l.host, l.requests = newRegistry(t)
	img := baseImage(t)
	ref, err := name.ParseReference(l.host + "/base/tools:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	l.base = l.host + "/base/tools@" + digest.String()
	return l
}

func (l *lab) options() kaniko.Options {
	return kaniko.Options{Executor: l.executor, CacheDir: l.cacheDir, Log: l.log, Mode: l.mode, Attempts: 1, Delay: time.Millisecond}
}

func (l *lab) engine() *kaniko.Engine { return kaniko.New(l.options()) }

// safeBuffer is a log that a test may read while something writes.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *safeBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}

func (l *lab) build(key, dockerfile string, files fstest.MapFS) (builder.Image, error) {
	l.t.Helper()
	l.log.Reset()
	return l.engine().Build(l.t.Context(), l.request(key, dockerfile, files))
}

func (l *lab) request(key, dockerfile string, files fstest.MapFS) builder.Request {
	l.t.Helper()
	repo, err := name.NewRepository(l.host + "/team/app")
	if err != nil {
		l.t.Fatal(err)
	}
	return builder.Request{
		Name: "app", Key: key, Repository: repo, Code: builder.Tree{FS: files},
		Dockerfile: &builder.Dockerfile{FS: fstest.MapFS{"Dockerfile": {Data: []byte(strings.Replace(dockerfile, "FROM BASE", "FROM "+l.base, 1))}}, Path: "Dockerfile"},
	}
}

func (l *lab) mustBuild(key, dockerfile string, files fstest.MapFS) (v1.Image, builder.Image) {
	l.t.Helper()
	res, err := l.build(key, dockerfile, files)
	if err != nil {
		l.t.Fatalf("%v\n%s", err, l.log)
	}
	img, err := remote.Image(res.Ref)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		l.t.Errorf("the pushed image is not valid: %v", err)
	}
	return img, res
}

// newFiles are the files of the layers above the base, by path; the last
// layer counts.
func newFiles(t *testing.T, img v1.Image, below int) map[string]*tar.Header {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*tar.Header{}
	for _, l := range layers[below:] {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				b, err := io.ReadAll(tr)
				if err != nil {
					t.Fatal(err)
				}
				h.Linkname = string(b) // so that tests can look at it
			}
			all[path.Clean("/"+h.Name)] = h
		}
		r.Close()
	}
	return all
}

// tools are programs of this machine that make a base image which can RUN.
var tools = []string{"dash", "cat", "ls", "id", "mkdir", "touch", "ln", "rm", "env", "chmod", "chown", "stat", "tr", "sleep", "mkfifo", "cp", "wc"}

// xattrTool is in the base where this machine has it.
const xattrTool = "setfattr"

// baseImage packs this machine's shell and a few tools, with the libraries
// that they need.
func baseImage(t *testing.T) v1.Image {
	t.Helper()
	if theBase != nil {
		return theBase
	}
	files := map[string]string{} // in the image → here
	library := regexp.MustCompile(`(/\S+) \(0x`)
	for _, tool := range append([]string{xattrTool}, tools...) {
		p, err := exec.LookPath(tool)
		if err != nil && tool == xattrTool {
			continue
		}
		if err != nil {
			t.Skipf("needs %s on this machine to make a base image", tool)
		}
		files["usr/bin/"+tool] = p
		out, err := exec.Command("ldd", p).Output()
		if err != nil {
			t.Skipf("needs ldd to find what %s links: %v", tool, err)
		}
		for _, m := range library.FindAllSubmatch(out, -1) {
			files[strings.TrimPrefix(string(m[1]), "/")] = string(m[1])
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(h tar.Header, body []byte) {
		h.Size, h.Format = int64(len(body)), tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	dirs := map[string]bool{}
	for _, f := range slices.Sorted(maps.Keys(files)) {
		for d := path.Dir(f); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		put(tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, nil)
	}
	put(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	put(tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, nil)
	put(tar.Header{Typeflag: tar.TypeDir, Name: "run/", Mode: 0o755}, nil)
	put(tar.Header{Typeflag: tar.TypeDir, Name: "var/", Mode: 0o755}, nil)
	put(tar.Header{Typeflag: tar.TypeSymlink, Name: "var/run", Linkname: "../run", Mode: 0o777}, nil)
	if !dirs["bin"] {
		put(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin", Mode: 0o777}, nil)
	}
	for _, f := range slices.Sorted(maps.Keys(files)) {
		b, err := os.ReadFile(files[f])
		if err != nil {
			t.Fatal(err)
		}
		put(tar.Header{Typeflag: tar.TypeReg, Name: f, Mode: 0o755}, b)
	}
	put(tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/bin/sh", Linkname: "dash", Mode: 0o777}, nil)
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\nnonroot:x:65532:65532::/home:/bin/sh\n"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nnonroot:x:65532:\n"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/doomed", Mode: 0o644}, []byte("x"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/shadow", Mode: 0o600}, []byte("secret of the base"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Env: []string{"PATH=/usr/bin:/bin", "FROM_BASE=yes"}, Labels: map[string]string{"base": "label"}, WorkingDir: "/"})
	if err != nil {
		t.Fatal(err)
	}
	theBase = img
	return img
}

// theBase is made once: no test changes it.
var theBase v1.Image

var modes = []sandbox.Mode{sandbox.Root, sandbox.UserNS}

// each runs f with a lab in each mode that this machine allows.
func each(t *testing.T, f func(t *testing.T, l *lab)) {
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			if m == sandbox.Root && os.Geteuid() != 0 {
				t.Skip("mode root needs root")
			}
			f(t, newLab(t, m))
		})
	}
}

func text(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s), Mode: 0o644} }

func octal(n int64) string { return strconv.FormatInt(n, 8) }
func decimal(n int) string { return strconv.Itoa(n) }
