package worktree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLook(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"a.js": "one"})
	git(t, dir, "init", "-q", "-b", "main")
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-qm", "one")
	l := Begin(os.Environ(), dir, cache)
	defer l.Close()
	if paths, err := l.Files(); err != nil || !slices.Equal(paths, []string{"a.js"}) {
		t.Errorf("files %v, %v", paths, err)
	}
	if sha, branch, err := l.Head(); len(sha) != 40 || branch != "main" || err != nil {
		t.Errorf("head %q, %q, %v", sha, branch, err)
	}
	if !l.At(dir, cache) || l.At(dir, "") || l.At(cache, cache) || (*Look)(nil).At(dir, cache) {
		t.Error("it does not know where it is")
	}
	// What git says is told when it is asked for.
	if err := os.WriteFile(filepath.Join(dir, ".git", "index"), []byte("no index"), 0o644); err != nil {
		t.Fatal(err)
	}
	broken := Begin(os.Environ(), dir, cache)
	defer broken.Close()
	_, now := List(t.Context(), dir, "")
	if _, err := broken.Files(); err == nil || now == nil || err.Error() != now.Error() {
		t.Errorf("a broken index: %v, and without a look %v", err, now)
	}
}

// A look that nobody wants ends at once, and its git with it.
func TestLookEnds(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ".git"), 0o755); err != nil {
		t.Fatal(err)
	}
	pid := filepath.Join(bin, "pid")
	script := fmt.Sprintf("#!/bin/sh\necho $$ >%s.tmp && mv %s.tmp %s\nexec sleep 600\n", pid, pid, pid)
	if err := os.WriteFile(filepath.Join(bin, "git"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	for name, end := range map[string]func(*Look, context.CancelCauseFunc){
		"closed":   func(l *Look, _ context.CancelCauseFunc) { l.Close() },
		"canceled": func(_ *Look, cancel context.CancelCauseFunc) { cancel(errors.New("the user has left")) },
	} {
		_ = os.Remove(pid)
		ctx, cancel := context.WithCancelCause(t.Context())
		l := Begin(os.Environ(), dir, "")
		l.Until(ctx)
		for {
			if _, err := os.Stat(pid); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		text, err := os.ReadFile(pid)
		if err != nil {
			t.Fatal(err)
		}
		end(l, cancel)
		if _, _, err := l.Head(); err == nil || name == "canceled" && err.Error() != "the user has left" {
			t.Errorf("%s: head says %v", name, err)
		}
		l.Close()
		if _, err := os.Stat("/proc/" + strings.TrimSpace(string(text))); runtime.GOOS == "linux" && err == nil {
			t.Errorf("%s: git still runs", name)
		}
		cancel(nil)
	}
}

// Only a file of its own that is as it was is said to be there.
func TestKnownHolds(t *testing.T) {
	r := newRemembering(t, map[string]string{"a.js": "one", "b.js": "two", "c.js": "three"})
	if err := os.Symlink("a.js", filepath.Join(r.dir, "link.js")); err != nil {
		t.Fatal(err)
	}
	r.paths = append(r.paths, "link.js")
	r.at(later())
	if err := os.WriteFile(filepath.Join(r.dir, "b.js"), []byte("longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(r.dir, "c.js")); err != nil {
		t.Fatal(err)
	}
	k := loadKnown(r.cache, r.dir, later())
	if k.Holds("a.js") {
		t.Error("nobody has looked yet")
	}
	k.holds = k.look()
	for path, want := range map[string]bool{"a.js": true, "b.js": false, "c.js": false, "link.js": false, "d.js": false} {
		if k.Holds(path) != want {
			t.Errorf("%s holds: %v", path, !want)
		}
	}
}
