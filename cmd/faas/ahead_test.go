package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/worktree"
)

// What was begun before main saves time and changes nothing, wherever it
// looked, and whatever is wrong there.
func TestPlanWithALookAhead(t *testing.T) {
	l := newLab(t)
	l.write(map[string]string{
		"faas.yml": "version: 1\nservice: shop\nprovider: {runtime: nodejs18}\nfunctions:\n" +
			"  a: {handler: a/index.handler, source: a, events: [{http: {path: /a}}]}\n",
		"a/index.js": "exports.handler = async () => 1;\n",
	})
	cache := worktree.Cache(command{environ: l.environ}.getenv)
	elsewhere := t.TempDir()
	if err := os.Mkdir(filepath.Join(elsewhere, ".git"), 0o755); err != nil {
		t.Fatal(err)
	}
	same := func(what string) {
		t.Helper()
		code, out, log := l.faas("plan")
		for _, dir := range []string{l.dir, elsewhere} {
			l.ahead = worktree.Begin(l.environ, dir, cache)
			c, o, g := l.faas("plan")
			l.ahead.Close()
			if l.ahead = nil; c != code || o != out || g != log {
				t.Errorf("%s: with a look at %s: %d\n%s%s\nwithout one: %d\n%s%s", what, dir, c, o, g, code, out, log)
			}
		}
		t.Logf("%s: %d\n%s%s", what, code, out, log)
	}
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		cmd.Dir, cmd.Env = l.dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir, "GIT_CONFIG_NOSYSTEM=1"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	same("no git repository")
	git("init", "-q")
	same("no commit")
	git("add", ".")
	git("commit", "-q", "-m", "all")
	same("a commit")
	index := filepath.Join(l.dir, ".git", "index")
	good, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	l.write(map[string]string{".git/index.lock": "", "a/index.js": "exports.handler = async () => 2;\n"})
	same("a locked index, and a change")
	l.write(map[string]string{".git/index": "no index"})
	same("a broken index")
	l.write(map[string]string{".git/index": string(good), "faas.yml": "version: 1\n"})
	same("a broken faas.yml")
	t.Setenv("PATH", t.TempDir())
	same("no git")
}
