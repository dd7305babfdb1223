package main

import (
	"os"
	"os/exec"
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
	if sha, branch, err := head(t.Context(), environ, dir); sha != "" || branch != "" || err != nil {
		t.Errorf("no work tree: %q, %q, %v", sha, branch, err)
	}
	git("init", "-q", "-b", "feature/x")
	if _, _, err := head(t.Context(), environ, dir); usererr.Of(err).Next != "make a first commit" {
		t.Errorf("no commit: %v", err)
	}
	git("commit", "-q", "--allow-empty", "-m", "one")
	want := git("rev-parse", "HEAD")
	if sha, branch, err := head(t.Context(), environ, dir); sha != want || branch != "feature/x" || err != nil {
		t.Errorf("on a branch: %q, %q, %v", sha, branch, err)
	}
	git("checkout", "-q", "--detach")
	if sha, branch, err := head(t.Context(), environ, dir); sha != want || branch != "" || err != nil {
		t.Errorf("detached: %q, %q, %v", sha, branch, err)
	}
}
