package stages

import (
	"bytes"
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
)

// services are the names of all services that the repository holds, own (the
// job's) included, sorted: a watchdog can tell a service that was renamed from
// one beside it. nil: it can't be said for sure, and then nothing is.
func services(ctx context.Context, dir, own string) []string {
	files, err := projectFiles(ctx, dir)
	if err != nil {
		return nil
	}
	names := []string{own}
	for _, f := range files {
		data, err := readProjectFile(filepath.Dir(f))
		if err != nil {
			return nil // a sparse checkout, perhaps
		}
		h, err := project.ParseHeader(data)
		if err != nil {
			return nil
		}
		names = append(names, h.Service)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// projectFiles are the faas.yml files of the repository that dir is in; of dir
// alone where it is in none.
func projectFiles(ctx context.Context, dir string) ([]string, error) {
	inside := func() bool {
		for at := dir; ; at = filepath.Dir(at) {
			if _, err := os.Lstat(filepath.Join(at, ".git")); err == nil {
				return true
			}
			if at == filepath.Dir(at) {
				return false
			}
		}
	}
	var found []string
	if !inside() {
		all, err := worktree.Walk(dir, ".")
		for _, p := range all {
			if path.Base(p) == "faas.yml" {
				found = append(found, filepath.Join(dir, filepath.FromSlash(p)))
			}
		}
		return found, err
	}
	var out bytes.Buffer
	err := run.Command{
		Path: "git",
		Args: []string{"-c", "safe.directory=*", "-c", "core.fsmonitor=false", "ls-files", "-z", ":(top,glob)**/faas.yml"},
		Env:  []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C"}, Dir: dir, Stdout: &out,
	}.Run(ctx)
	for _, p := range strings.Split(out.String(), "\x00") {
		if p != "" {
			found = append(found, filepath.Join(dir, filepath.FromSlash(p)))
		}
	}
	return found, err
}
