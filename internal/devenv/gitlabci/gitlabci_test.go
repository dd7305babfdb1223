package gitlabci_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/devenv/gitlabci"
)

// root is the repository's top folder, seen from this package.
const root = "../../.."

// tools finds what a pipeline needs, installing gitlab-ci-local if npm can, or
// skips and says what is missing.
func tools(t *testing.T) gitlabci.Tools {
	t.Helper()
	if testing.Short() {
		t.Skip("runs whole pipelines, seconds each")
	}
	dir := filepath.Join(root, "tools")
	skip := func(err error) {
		t.Helper()
		var unable *gitlabci.Unable
		if errors.As(err, &unable) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	skip(gitlabci.Install(t.Context(), dir))
	found, err := gitlabci.Find(t.Context(), abs(t, dir))
	skip(err)
	return found
}

func server(t *testing.T) *gitlabci.Server {
	t.Helper()
	s, err := gitlabci.NewServer(t.Context(), tools(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// checkout makes a project of the files and checks it out on a branch.
func checkout(t *testing.T, s *gitlabci.Server, branch string, files map[string]string) *gitlabci.Checkout {
	t.Helper()
	dir := folder(t, files)
	if err := s.Add(t.Context(), gitlabci.Project{Path: "team/hello", Files: map[string]string{".": dir}, Branch: branch}); err != nil {
		t.Fatal(err)
	}
	c, err := s.Clone(t.Context(), "team/hello", "", filepath.Join(t.TempDir(), "hello"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const trivial = `
make:
  stage: build
  image: registry.example/never-pulled
  script:
    - echo "$GREETING from $CI_PROJECT_PATH, project $CI_PROJECT_ID, pipeline $CI_PIPELINE_IID at $CI_PIPELINE_CREATED_AT, $GITLAB_CI"
    - mkdir -p out && echo made > out/file
    - test ! -e .env-leak && test -z "$FAAS_LEAK" && echo clean
  artifacts: {paths: [out/]}
use:
  stage: test
  needs: [make]
  script: [cat out/file, tool]
may-fail:
  stage: test
  needs: []
  script: [echo held >&2, exit 76]
  allow_failure: {exit_codes: [76]}
by-hand:
  stage: deploy
  needs: []
  when: manual
  script: [echo pushed]
`

func TestPipeline(t *testing.T) {
	t.Setenv("GCL", "breaks it when it is passed on")
	t.Setenv("FAAS_LEAK", "1")
	s := server(t)
	c := checkout(t, s, "", map[string]string{".gitlab-ci.yml": trivial})
	bin := folder(t, map[string]string{"tool": "#!/bin/sh\necho tool ran\n"})
	if err := os.Chmod(filepath.Join(bin, "tool"), 0o755); err != nil {
		t.Fatal(err)
	}
	var live strings.Builder
	p := gitlabci.Pipeline{
		Created:   time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		ProjectID: 7, IID: 3,
		Variables: map[string]string{"GREETING": `a $b 'c' "d" = e`},
		Path:      []string{bin},
		Output:    &live,
	}
	r, err := c.Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK || len(r.Jobs) != 3 {
		t.Fatalf("OK %v, %d jobs:\n%s", r.OK, len(r.Jobs), r.Output)
	}
	job := func(name string) gitlabci.Job {
		t.Helper()
		j, ok := r.Job(name)
		if !ok {
			t.Fatalf("no job %s in\n%s", name, r.Output)
		}
		return j
	}
	want := `a $b 'c' "d" = e from team/hello, project 7, pipeline 3 at 2026-01-02T03:04:05Z, true`
	if log := job("make").Log; !strings.Contains(log, want+"\n") || !strings.Contains(log, "\nclean\n") {
		t.Errorf("make said\n%s\nwant\n%s", log, want)
	}
	if log := job("use").Log; !strings.Contains(log, "made\n") || !strings.Contains(log, "tool ran\n") {
		t.Errorf("use said\n%s", log)
	}
	if j := job("may-fail"); j.Status != gitlabci.Warning || j.Code != 76 || !strings.Contains(j.Log, "held") {
		t.Errorf("may-fail: %+v", j)
	}
	if _, err := os.Stat(filepath.Join(job("make").Dir, "out/file")); err != nil {
		t.Errorf("the job's work tree: %v", err)
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "out")); err == nil {
		t.Error("an artefact came into the developer's checkout")
	}
	if !strings.Contains(live.String(), "tool ran") {
		t.Error("nothing came to Output")
	}

	again, err := c.Retry(t.Context(), p, "use")
	if err != nil {
		t.Fatal(err)
	}
	if len(again.Jobs) != 1 || again.Jobs[0].Name != "use" || !strings.Contains(again.Jobs[0].Log, "made\n") {
		t.Errorf("retry: %+v", again.Jobs)
	}
}

// A job that may end with some codes has failed with another.
func TestPipelineThatFails(t *testing.T) {
	t.Parallel()
	c := checkout(t, server(t), "", map[string]string{".gitlab-ci.yml": "a:\n  script: [exit 5]\n  allow_failure:\n    exit_codes: [76]\n"})
	r, err := c.Run(t.Context(), gitlabci.Pipeline{})
	if err != nil {
		t.Fatal(err)
	}
	if j, _ := r.Job("a"); r.OK || j.Status != gitlabci.Failed || j.Code != 5 {
		t.Errorf("OK %v, %+v", r.OK, j)
	}
}

func TestPipelineThatGitLabRefuses(t *testing.T) {
	t.Parallel()
	s := server(t)
	c := checkout(t, s, "", map[string]string{".gitlab-ci.yml": "a:\n  scrip: [x]\n"})
	if _, err := c.Run(t.Context(), gitlabci.Pipeline{}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestPipelineIsEnded(t *testing.T) {
	t.Parallel()
	s := server(t)
	c := checkout(t, s, "", map[string]string{".gitlab-ci.yml": "a:\n  script: [echo begun, sleep 600]\n"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var start time.Time // of the end
	begun := &trigger{word: "> begun", do: sync.OnceFunc(func() { start = time.Now(); cancel() })}
	if _, err := c.Run(ctx, gitlabci.Pipeline{Output: begun}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if d := time.Since(start); d > 5*time.Minute {
		t.Errorf("it went on for %v", d)
	}
}

// trigger calls do when word was written.
type trigger struct {
	word string
	do   func()
	all  strings.Builder
}

func (w *trigger) Write(p []byte) (int, error) {
	w.all.Write(p)
	if strings.Contains(w.all.String(), w.word) {
		w.do()
	}
	return len(p), nil
}

func TestServer(t *testing.T) {
	t.Parallel()
	s := server(t)
	ctx := t.Context()
	c := checkout(t, s, "develop", map[string]string{"a": "1\n", "run.sh": "x"})
	first, err := c.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// The same files are the same commit on another server.
	other := checkout(t, server(t), "develop", map[string]string{"a": "1\n", "run.sh": "x"})
	if second, err := other.Head(ctx); err != nil || first != second {
		t.Errorf("got commits %s and %s (%v)", first, second, err)
	}
	if err := c.Branch(ctx, "master"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "a"), []byte("2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(ctx, "Change a"); err != nil {
		t.Fatal(err)
	}
	again, err := s.Clone(ctx, "team/hello", "master", filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(again.Dir, "a")); err != nil || string(data) != "2\n" {
		t.Errorf("master has %q (%v)", data, err)
	}
	if _, err := s.Clone(ctx, "team/none", "", filepath.Join(t.TempDir(), "x")); err == nil {
		t.Error("a project that is not there was cloned")
	}
	if _, err := s.Clone(ctx, "team/hello", "", filepath.Join(t.TempDir(), "a b")); err == nil {
		t.Error("a folder with a space was taken")
	}
	for _, path := range []string{"hello", "../x/y", "a//b", "a/../b", ""} {
		if err := s.Add(ctx, gitlabci.Project{Path: path}); err == nil {
			t.Errorf("project path %q was taken", path)
		}
	}
	if err := s.Add(ctx, gitlabci.Project{Path: "team/hello"}); err == nil {
		t.Error("the same project was taken twice")
	}
	for _, path := range []string{"/../../../etc/passwd", "/team/hello.git/../../../etc/passwd", "/team/hello.git/config"} {
		req, err := http.NewRequestWithContext(ctx, "GET", s.URL(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path = path
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode == 200 {
			t.Errorf("%s was served", path)
		}
	}
}

func TestFindNamesWhatIsMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dir := folder(t, map[string]string{"package.json": `{"dependencies":{"gitlab-ci-local":"4.63.0"}}`})
	_, err := gitlabci.Find(t.Context(), dir)
	var unable *gitlabci.Unable
	if !errors.As(err, &unable) || len(unable.Missing) != 5 {
		t.Fatalf("got %v, want git, rsync, bash, node and gitlab-ci-local", err)
	}
	if err := gitlabci.Install(t.Context(), dir); !errors.As(err, &unable) || !slices.Equal(unable.Missing, []string{"npm"}) {
		t.Errorf("install: got %v", err)
	}
	if _, err := gitlabci.Find(t.Context(), t.TempDir()); err == nil || errors.As(err, &unable) {
		t.Errorf("a folder without package.json: got %v", err)
	}
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func abs(t *testing.T, path string) string {
	t.Helper()
	a, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
