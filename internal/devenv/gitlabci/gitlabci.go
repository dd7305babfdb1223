// Package gitlabci is a GitLab small enough for a test: projects served over
// smart HTTP on loopback, and pipelines of a checkout run by gitlab-ci-local
// with the shell executor, exactly as the repository's own .gitlab-ci.yml says.
//
// What gitlab-ci-local ignores (resource_group, retry, timeout, interruptible,
// input regexes) is not tested by it.
package gitlabci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/internal/run"
)

// Unable says what this machine lacks to run pipelines. Callers skip with it;
// they never count it as passed.
type Unable struct {
	Missing []string // each with its remedy
}

func (e *Unable) Error() string {
	return "gitlabci: not on this machine: " + strings.Join(e.Missing, "; ")
}

// nodeOldest is the oldest Node.js that starts the gitlab-ci-local we lock.
const nodeOldest = 20

// Tools are the programs a pipeline needs, found by [Find].
type Tools struct {
	Git         string
	HTTPBackend string // git's CGI program
	Node        string
	Script      string // gitlab-ci-local's entry
}

// Find looks for the programs on PATH and for gitlab-ci-local in
// dir/node_modules, where dir is the repository's tools folder. What is
// missing is reported at once, as an [*Unable].
func Find(ctx context.Context, dir string) (Tools, error) {
	var t Tools
	var missing []string
	look := func(name, remedy string) string {
		path, err := exec.LookPath(name)
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s (%s)", name, remedy))
		}
		return path
	}
	t.Git = look("git", "apt-get install git")
	look("rsync", "apt-get install rsync; gitlab-ci-local copies work trees with it")
	look("bash", "apt-get install bash")
	t.Node = look("node", fmt.Sprintf("version %d or newer", nodeOldest))
	if t.Git != "" {
		out, err := output(ctx, t.Git, "--exec-path")
		t.HTTPBackend = filepath.Join(out, "git-http-backend")
		if _, statErr := os.Stat(t.HTTPBackend); err != nil || statErr != nil {
			missing = append(missing, "git http-backend (part of git)")
		}
	}
	if t.Node != "" {
		out, err := output(ctx, t.Node, "--version")
		major, _, _ := strings.Cut(strings.TrimPrefix(out, "v"), ".")
		if n, convErr := strconv.Atoi(major); err != nil || convErr != nil || n < nodeOldest {
			missing = append(missing, fmt.Sprintf("node %d or newer (found %q)", nodeOldest, out))
		}
	}
	if ok, err := installed(dir); err != nil {
		return Tools{}, err
	} else if !ok {
		missing = append(missing, "gitlab-ci-local (npm ci --prefix tools)")
	}
	t.Script = filepath.Join(dir, "node_modules", "gitlab-ci-local", "src", "index.js")
	if len(missing) > 0 {
		return Tools{}, &Unable{Missing: missing}
	}
	return t, nil
}

// Install runs `npm ci` in dir unless what its lock file names is there.
// Processes that install at the same time wait for each other. Without npm, or
// when npm can't reach its registry, the error is an [*Unable].
func Install(ctx context.Context, dir string) error {
	lock, err := os.Open(filepath.Join(dir, "package.json"))
	if err != nil {
		return fmt.Errorf("gitlabci: %w", err)
	}
	defer lock.Close()
	if err := flock(ctx, lock); err != nil {
		return fmt.Errorf("gitlabci: wait for another installation: %w", err)
	}
	if ok, err := installed(dir); err != nil || ok {
		return err
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return &Unable{Missing: []string{"npm"}}
	}
	ctx, stop := context.WithTimeout(ctx, 3*time.Minute)
	defer stop()
	// npm's own configuration says which registry; ours says nothing.
	err = run.Command{
		Path: npm, Args: []string{"ci", "--no-audit", "--no-fund", "--ignore-scripts"},
		Dir: dir, Env: os.Environ(),
	}.Run(ctx)
	var exit *run.ExitError
	switch {
	case errors.As(err, &exit):
		return &Unable{Missing: []string{"gitlab-ci-local (npm ci --prefix tools: " + lastLine(exit.Tail) + ")"}}
	case err != nil:
		return fmt.Errorf("gitlabci: npm ci: %w", err)
	}
	return nil
}

// flock takes an exclusive lock on f, which ends with f or the process.
func flock(ctx context.Context, f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// installed says whether the version that dir/package.json names is there.
func installed(dir string) (bool, error) {
	var want struct{ Dependencies map[string]string }
	if err := readJSON(filepath.Join(dir, "package.json"), &want); err != nil {
		return false, fmt.Errorf("gitlabci: %w", err)
	}
	var have struct{ Version string }
	err := readJSON(filepath.Join(dir, "node_modules", "gitlab-ci-local", "package.json"), &have)
	if err != nil {
		return false, nil // absent or half written: the same remedy
	}
	return have.Version == want.Dependencies["gitlab-ci-local"], nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func output(ctx context.Context, path string, args ...string) (string, error) {
	var out bytes.Buffer
	err := run.Command{Path: path, Args: args, Env: []string{"PATH=" + os.Getenv("PATH")}, Stdout: &out}.Run(ctx)
	return strings.TrimSpace(out.String()), err
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
