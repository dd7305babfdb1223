package parts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestKeyFollowsWhatIsBuilt(t *testing.T) {
	s := Set{Lab: t.TempDir()}
	dir := filepath.Join(s.Lab, "p")
	p := part{name: "p", dir: "p"}
	write(t, filepath.Join(dir, "go.mod"), "module p\n")
	write(t, filepath.Join(dir, "main.go"), "package main\n")
	key := func() string {
		t.Helper()
		k, err := s.key(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	before := key()
	// None of these is in the program.
	write(t, filepath.Join(dir, "main_test.go"), "package main\n")
	write(t, filepath.Join(dir, "README.md"), "text\n")
	write(t, filepath.Join(dir, "testdata", "x"), "data\n")
	write(t, filepath.Join(dir, "sub", "go.mod"), "module sub\n")
	write(t, filepath.Join(dir, "sub", "x.go"), "package sub\n")
	if key() != before {
		t.Error("a test, a document or another module changes the key")
	}
	for _, f := range []string{"main.go", "go.mod", "go.sum", "new/x.go"} {
		last := key()
		write(t, filepath.Join(dir, f), "changed "+f)
		if key() == last {
			t.Errorf("%s does not change the key", f)
		}
	}
}

func TestBuildOneKeepsNothingHalfMade(t *testing.T) {
	s := Set{Lab: t.TempDir(), Cache: t.TempDir(), Log: t.Logf}
	dir := filepath.Join(s.Cache, "p-1")
	broken := errors.New("broken")
	p := part{name: "p", make: func(_ context.Context, b *builder) error {
		write(t, filepath.Join(b.out, "half"), "")
		return broken
	}}
	if err := s.buildOne(t.Context(), p, dir, nil); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a failed build is in the cache")
	}
	made := 0
	p.make = func(_ context.Context, b *builder) error {
		made++
		write(t, filepath.Join(b.out, "whole"), "")
		return nil
	}
	for range 2 {
		if err := s.buildOne(t.Context(), p, dir, nil); err != nil {
			t.Fatal(err)
		}
	}
	if made != 1 {
		t.Errorf("made %d times, want once", made)
	}
	left, err := filepath.Glob(filepath.Join(s.Cache, ".making-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

func TestBuildWaitsForAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockFile(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("second lock: %v", err)
	}
	unlock()
	unlock, err = lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestProgress(t *testing.T) {
	for _, c := range []struct {
		compiled, total, downloads int
		elapsed                    time.Duration
		want                       string
	}{
		{0, 2691, 12, 30 * time.Second, "kube: 30s, 0 packages compiled of at most 2691, 12 modules downloaded, at most about 10m left"},
		{1000, 2000, 0, 4 * time.Minute, "kube: 4m, 1000 packages compiled of at most 2000, at most 4m left"},
		{2000, 2000, 0, 12 * time.Minute, "kube: 12m, 2000 packages compiled of at most 2000"},
	} {
		got := strings.TrimSpace(progress("kube", c.compiled, c.total, c.downloads, c.elapsed, 10*time.Minute))
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("got  %s\nwant %s…", got, c.want)
		}
	}
}

// TestVersionsAreThoseOfTheModules keeps what people are shown true.
func TestVersionsAreThoseOfTheModules(t *testing.T) {
	lab := filepath.Join("..", "..")
	for _, p := range all() {
		if p.dir == "" {
			continue
		}
		v, err := moduleVersions(filepath.Join(lab, p.dir, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if title := p.about(v); strings.HasSuffix(title, " ") {
			t.Errorf("part %s: %q names no version", p.name, title)
		}
	}
}
