package bundle

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kuroko-faas/kuroko/oss"
)

func TestPlanRunner(t *testing.T) {
	named := Meta{Version: "5", Runner: &Runner{Version: "2.0.0", Blobs: map[string]Blob{"linux/amd64": {}}}}
	for _, tc := range []struct {
		name                  string
		meta                  Meta
		own, platform, marker string
		exec                  bool
		err                   string
	}{
		{"no runner named", Meta{Version: "5"}, "1.0.0", "linux/amd64", "", false, ""},
		{"no runner named, too old", Meta{Version: "5", MinRunner: "1.1"}, "1.0.0", "linux/amd64", "", false, "needs runner 1.1 or newer"},
		{"no runner named, a developer's build", Meta{Version: "5", MinRunner: "1.1"}, "dev", "linux/amd64", "", false, ""},
		{"this one", named, "2.0.0", "linux/amd64", "", false, ""},
		{"this one, after exec", named, "2.0.0", "linux/amd64", "2.0.0", false, ""},
		{"another", named, "1.0.0", "linux/amd64", "", true, ""},
		{"an older one", named, "3.0.0", "linux/amd64", "", true, ""},
		{"loop", named, "1.0.0", "linux/amd64", "2.0.0", false, "the one started as 2.0.0 says it is 1.0.0"},
		{"loop over two versions", named, "1.5.0", "linux/amd64", "1.5.0", false, "names runner 2.0.0"},
		{"not for this platform", named, "1.0.0", "linux/arm64", "", false, "not published for linux/arm64, only for: linux/amd64"},
	} {
		p, err := PlanRunner(tc.meta, tc.own, tc.platform, tc.marker)
		if tc.err != "" {
			if !errors.Is(err, ErrRunner) || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil || p.Exec != tc.exec || p.Why == "" || tc.exec != (len(p.Env) == 1 && p.Env[0] == RunnerMarker+"=2.0.0") {
			t.Errorf("%s: %+v %v", tc.name, p, err)
		}
	}
}

// withRunner publishes a bundle that names a runner and returns it.
func withRunner(t *testing.T, l *lab, binary []byte) Runner {
	t.Helper()
	r := recipe("3.0.0")
	r.Runner = &RunnerFiles{Version: "2.0.0", Files: map[string]func() (io.ReadCloser, error){"linux/amd64": memFile(binary)}}
	p, err := Build(t.Context(), checkout(), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Publish(t.Context(), l.store, p); err != nil {
		t.Fatal(err)
	}
	l.move(Entry{Manifest: strings.TrimPrefix(p.Digest, "sha256:"), Version: "3.0.0", Percent: 100})
	b := l.must(l.client(), l.query())
	if b.Meta.Runner == nil {
		t.Fatal("the bundle names no runner")
	}
	return *b.Meta.Runner
}

func TestRunner(t *testing.T) {
	l := newLab(t)
	binary := bytes.Repeat([]byte("\x7fELF runner "), 10_000)
	r := withRunner(t, l, binary)
	if want := (Blob{sum(binary), int64(len(binary))}); r.Blobs["linux/amd64"] != want {
		t.Fatalf("blob %+v, want %+v", r.Blobs["linux/amd64"], want)
	}
	c := l.client()
	c.Cache = t.TempDir()
	path, err := c.Runner(t.Context(), r, "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	check := func(path string) {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, binary) {
			t.Errorf("content: %v", err)
		}
		in, _ := os.Stat(path)
		dir, _ := os.Stat(filepath.Dir(path))
		if in.Mode().Perm() != 0o555 || dir.Mode().Perm() != 0o700 {
			t.Errorf("modes %v in %v", in.Mode(), dir.Mode())
		}
	}
	check(path)
	// A hit is verified, and costs nothing.
	l.store.reset()
	if again, err := c.Runner(t.Context(), r, "linux/amd64"); err != nil || again != path || l.store.count("") != 0 {
		t.Errorf("hit: %s %v %v", again, err, l.store.gets)
	}
	for name, spoil := range map[string]func() error{
		"changed": func() error {
			return errors.Join(os.Chmod(path, 0o755), os.WriteFile(path, bytes.Repeat([]byte("x"), len(binary)), 0), os.Chmod(path, 0o555))
		},
		"other mode": func() error { return os.Chmod(path, 0o777) },
		"link":       func() error { os.Remove(path); return os.Symlink("/bin/true", path) },
		"removed":    func() error { return os.Remove(path) },
		"cache poisoned": func() error {
			os.Remove(path)
			return os.WriteFile(filepath.Join(c.Cache, "bin", sum(binary)), []byte("evil"), 0o644)
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(name, err)
		}
		again, err := c.Runner(t.Context(), r, "linux/amd64")
		if err != nil || again != path {
			t.Fatalf("%s: %s %v", name, again, err)
		}
		check(path)
	}
	// A second job of the node takes it from the cache.
	other := l.client()
	other.Cache = c.Cache
	l.store.reset()
	if p, err := other.Runner(t.Context(), r, "linux/amd64"); err != nil || p == path || l.store.count("v1/bin/") != 0 {
		t.Errorf("second job: %s %v %v", p, err, l.store.gets)
	}
	if _, err := c.Runner(t.Context(), r, "plan9/386"); !errors.Is(err, ErrRunner) {
		t.Errorf("unknown platform: %v", err)
	}
}

func TestRunnerIsTamperedWith(t *testing.T) {
	l := newLab(t)
	binary := bytes.Repeat([]byte("\x7fELF runner "), 10_000)
	r := withRunner(t, l, binary)
	key := binKey(sum(binary))
	good := l.store.at(key)
	evil, err := compress(bytes.Repeat([]byte("\x7fELF evil.. "), 10_000))
	if err != nil {
		t.Fatal(err)
	}
	bomb, err := compress(make([]byte, 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"another program": evil, "flipped": append(bytes.Clone(good[:len(good)-2]), 'x', 'y'), "cut": good[:len(good)/2],
		"not compressed": binary[:1000], "empty": nil, "bomb": bomb, "too large": bytes.Repeat([]byte("x"), len(binary)*2),
	} {
		l.store.set(key, raw)
		c := l.client()
		c.Cache = t.TempDir()
		if p, err := c.Runner(t.Context(), r, "linux/amd64"); !errors.Is(err, ErrUntrusted) || p != "" {
			t.Errorf("%s: %q %v", name, p, err)
		}
		empty(t, c.Private)
	}
	l.store.Delete(t.Context(), key)
	if _, err := l.client().Runner(t.Context(), r, "linux/amd64"); !errors.Is(err, ErrRunner) || !errors.Is(err, oss.ErrNotFound) && !strings.Contains(err.Error(), "not in the store") {
		t.Errorf("missing: %v", err)
	}
	l.store.setFault(down)
	if _, err := l.client().Runner(t.Context(), r, "linux/amd64"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("down: %v", err)
	}
	for name, b := range map[string]Blob{"sum": {"../x", 1}, "size": {sum(binary), 0}, "huge": {sum(binary), maxRunner + 1}} {
		if _, err := l.client().Runner(t.Context(), Runner{Blobs: map[string]Blob{"linux/amd64": b}}, "linux/amd64"); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A folder of the expected name that others can write is not used.
func TestRunnerFolderOfOthers(t *testing.T) {
	l := newLab(t)
	binary := []byte("\x7fELF runner")
	r := withRunner(t, l, binary)
	c := l.client()
	path, err := c.Runner(t.Context(), r, "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	top := filepath.Dir(filepath.Dir(path))
	if err := os.Chmod(top, 0o777); err != nil {
		t.Fatal(err)
	}
	other, err := c.Runner(t.Context(), r, "linux/amd64")
	if err != nil || strings.HasPrefix(other, top+"/") {
		t.Errorf("got %s, %v", other, err)
	}
}

func TestRunnerManyAtOnce(t *testing.T) {
	l := newLab(t)
	r := withRunner(t, l, bytes.Repeat([]byte("\x7fELF runner "), 10_000))
	l.store.reset()
	c := l.client()
	c.Cache = t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p, err := c.Runner(t.Context(), r, "linux/amd64")
			if err != nil || !runnerIntact(p, r.Blobs["linux/amd64"]) {
				t.Errorf("%s %v", p, err)
			}
		})
	}
	wg.Wait()
	if n := l.store.count("v1/bin/"); n != 1 {
		t.Errorf("%d downloads", n)
	}
}
