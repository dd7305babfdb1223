package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/usererr"
)

func TestHead(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		cmd.Dir, cmd.Env = dir, environ
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if sha, branch, err := (command{environ: environ}).head(t.Context(), nil, dir); sha != "" || branch != "" || err != nil {
		t.Errorf("no work tree: %q, %q, %v", sha, branch, err)
	}
	git("init", "-q", "-b", "feature/x")
	if _, _, err := (command{environ: environ}).head(t.Context(), nil, dir); usererr.Of(err).Next != "make a first commit" {
		t.Errorf("no commit: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".git", "config"), []byte("[broken\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := (command{environ: environ}).head(t.Context(), nil, dir); err == nil || !strings.Contains(err.Error(), "bad config") || usererr.Of(err).Next == "make a first commit" {
		t.Errorf("broken: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, ".git", "config")); err != nil {
		t.Fatal(err)
	}
	git("commit", "-q", "--allow-empty", "-m", "one")
	want := git("rev-parse", "HEAD")
	if sha, branch, err := (command{environ: environ}).head(t.Context(), nil, dir); sha != want || branch != "feature/x" || err != nil {
		t.Errorf("on a branch: %q, %q, %v", sha, branch, err)
	}
	if os.Getuid() == 0 { // another user's checkout
		for _, p := range []string{dir, filepath.Join(dir, ".git")} {
			if err := os.Chown(p, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
		if sha, _, err := (command{environ: environ}).head(t.Context(), nil, dir); sha != want || err != nil {
			t.Errorf("another user's: %q, %v", sha, err)
		}
		for _, p := range []string{dir, filepath.Join(dir, ".git")} {
			if err := os.Chown(p, 0, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	git("checkout", "-q", "--detach")
	if sha, branch, err := (command{environ: environ}).head(t.Context(), nil, dir); sha != want || branch != "" || err != nil {
		t.Errorf("detached: %q, %q, %v", sha, branch, err)
	}
}
