package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/worktree"
)

// What every command pays before main, by what Go says of it: the collector
// waits before the large tables are made, and no package of ours makes much.
func TestStartIsCheap(t *testing.T) {
	const ours, most = "github.com/kuroko-faas/kuroko/", 200_000 // an expression that counts to 253 takes as much alone
	cmd := exec.Command(os.Args[0], "-test.run", "^$")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	order := map[string]int{}
	for n, line := range strings.Split(string(out), "\n") {
		// init NAME @0.1 ms, 0.2 ms clock, 3 bytes, 4 allocs
		f := strings.Fields(line)
		if len(f) < 10 || f[0] != "init" {
			continue
		}
		order[f[1]] = n + 1
		var bytes int
		if _, err := fmt.Sscan(f[7], &bytes); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if strings.HasPrefix(f[1], ours) && bytes > most {
			t.Errorf("%s makes %d bytes before main; at most %d: make it when it is needed", f[1], bytes, most)
		}
	}
	tables := order["k8s.io/client-go/kubernetes/scheme"]
	for _, early := range []string{"nogc", "ahead"} {
		if first := order[ours+"internal/"+early]; first == 0 || tables == 0 || first > tables {
			t.Errorf("internal/%s is number %d, the first large table %d", early, first, tables)
		}
	}
}

// A plan starts git twice, whatever the number of functions and whether that
// was done before main: a process costs as much as two hundred files.
func TestPlanStartsTwoProcesses(t *testing.T) {
	l := newLab(t)
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("needs git")
	}
	bin, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nexec %s \"$@\"\n", log, git)
	if err := os.WriteFile(filepath.Join(bin, "git"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var yml strings.Builder
	yml.WriteString("version: 1\nservice: many\nprovider: {runtime: nodejs18}\ndeploy: {mode: independent}\nfunctions:\n")
	files := map[string]string{}
	for i := range 12 {
		fmt.Fprintf(&yml, "  f%d: {handler: f%d/index.handler, source: f%d, events: [{http: {path: /f%d}}]}\n", i, i, i, i)
		files[fmt.Sprintf("f%d/index.js", i)] = "exports.handler = async () => 1;\n"
	}
	files["faas.yml"] = yml.String()
	l.write(files)
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "-m", "all"}} {
		cmd := exec.Command(git, args...)
		cmd.Dir, cmd.Env = l.dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir, "GIT_CONFIG_NOSYSTEM=1"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	for _, look := range []*worktree.Look{nil, worktree.Begin(l.environ, l.dir, worktree.Cache(command{environ: l.environ}.getenv))} {
		l.ahead = look
		if p := l.plan(); len(p.Build.Images) != 12 {
			t.Errorf("%d images", len(p.Build.Images))
		}
		look.Close()
	}
	said, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(said), "\n"); n != 2*2 {
		t.Errorf("git was started %d times by two plans:\n%s", n, said)
	}
}
