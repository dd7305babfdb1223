package devenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/internal/devenv/gitlabci"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/stages"
)

// GitLab is a small GitLab that knows the platform's templates.
type GitLab struct {
	server *gitlabci.Server
	dir    string
}

// StartGitLab serves the template project, made from checkout's ci-templates,
// as platform/faas-ci at tag v1, the way a repository's include names it. The
// error is a *gitlabci.Unable where a program is missing.
func StartGitLab(ctx context.Context, checkout, dir string) (*GitLab, error) {
	tools := filepath.Join(checkout, "tools")
	if err := gitlabci.Install(ctx, tools); err != nil {
		return nil, err
	}
	found, err := gitlabci.Find(ctx, tools)
	if err != nil {
		return nil, err
	}
	server, err := gitlabci.NewServer(ctx, found, filepath.Join(dir, "gitlab"))
	if err != nil {
		return nil, err
	}
	err = server.Add(ctx, gitlabci.Project{
		Path: "platform/faas-ci", Files: map[string]string{"ci-templates": filepath.Join(checkout, "ci-templates")}, Tags: []string{"v1"},
	})
	if err != nil {
		server.Close()
		return nil, err
	}
	return &GitLab{server: server, dir: dir}, nil
}

// Close stops serving.
func (g *GitLab) Close() error { return g.server.Close() }

// Repository is a function repository: a project on the GitLab, and a
// developer's clone of it.
type Repository struct {
	*gitlabci.Checkout
	ProjectID int64
	Path      string
	// Env are the variables that the platform sets for every project.
	Env map[string]string
	// Bin is the folder with stage-runner, as the job image would have it.
	Bin string

	shim string
	iid  int64
}

// NewRepository makes a project of the files in example and clones it. The
// branch is develop, which the example deploys to environment test.
func (g *GitLab) NewRepository(ctx context.Context, path, example string, id int64) (*Repository, error) {
	if err := g.server.Add(ctx, gitlabci.Project{Path: path, Files: map[string]string{".": example}, Branch: "develop"}); err != nil {
		return nil, err
	}
	c, err := g.server.Clone(ctx, path, "develop", filepath.Join(g.dir, "clones", filepath.Base(path)))
	if err != nil {
		return nil, err
	}
	r := &Repository{Checkout: c, ProjectID: id, Path: path, shim: filepath.Join(g.dir, "shim")}
	return r, writeFile(r.shim, "stage-runner*", shim)
}

// shim stands before stage-runner in jobs: with a forced shell executor,
// gitlab-ci-local names a work tree in CI_PROJECT_DIR that only a container
// would have. In GitLab the variable is the job's folder.
const shim = `#!/bin/sh
PATH=${PATH#*:}
CI_PROJECT_DIR=$PWD exec stage-runner "$@"
`

// Outcome is a pipeline that ran, with the reports of its jobs by name.
type Outcome struct {
	gitlabci.Result
	Reports map[string]stages.Report
}

// Failure is the first failed job's log, for messages.
func (o Outcome) Failure() string {
	for _, j := range o.Jobs {
		if j.Status == gitlabci.Failed {
			return fmt.Sprintf("job %s ended with code %d:\n%s", j.Name, j.Code, j.Log)
		}
	}
	return o.Output
}

// Pipeline runs a new pipeline of the checked-out commit. The human log goes
// to output, which may be nil.
func (r *Repository) Pipeline(ctx context.Context, output io.Writer) (Outcome, error) {
	r.iid++
	quiet := &filter{w: output}
	defer quiet.flush()
	res, err := r.Run(ctx, r.pipeline(quiet))
	if err != nil {
		return Outcome{}, err
	}
	return outcome(res)
}

// RetryJob runs one job of the last pipeline again.
func (r *Repository) RetryJob(ctx context.Context, job string, output io.Writer) (Outcome, error) {
	quiet := &filter{w: output}
	defer quiet.flush()
	res, err := r.Retry(ctx, r.pipeline(quiet), job)
	if err != nil {
		return Outcome{}, err
	}
	return outcome(res)
}

func (r *Repository) pipeline(output io.Writer) gitlabci.Pipeline {
	return gitlabci.Pipeline{
		Created: time.Now().UTC().Truncate(time.Second), ProjectID: r.ProjectID, IID: r.iid,
		Variables: r.Env, Path: []string{r.shim, r.Bin}, Output: output,
	}
}

// filter leaves out the lines in which gitlab-ci-local explains itself. A nil w
// takes nothing.
type filter struct {
	w    io.Writer
	rest []byte
}

func (f *filter) Write(p []byte) (int, error) {
	f.rest = append(f.rest, p...)
	for {
		i := bytes.IndexByte(f.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		line := f.rest[:i+1]
		f.rest = f.rest[i+1:]
		if err := f.line(line); err != nil {
			return 0, err
		}
	}
}

func (f *filter) line(line []byte) error {
	if f.w == nil || bytes.Contains(line, []byte(" WARN ")) {
		return nil
	}
	_, err := f.w.Write(line)
	return err
}

func (f *filter) flush() { _ = f.line(f.rest) }

func outcome(res gitlabci.Result) (Outcome, error) {
	o := Outcome{Result: res, Reports: map[string]stages.Report{}}
	for _, j := range res.Jobs {
		data, err := os.ReadFile(filepath.Join(j.Dir, stages.WorkDir, "report.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Outcome{}, err
		}
		var rep stages.Report
		if err := json.Unmarshal(data, &rep); err != nil {
			return Outcome{}, fmt.Errorf("report of %s: %w", j.Name, err)
		}
		o.Reports[j.Name] = rep
	}
	return o, nil
}

// Write changes files of the clone; a name that ends in "*" is executable.
func (r *Repository) Write(files map[string]string) error {
	for name, text := range files {
		if err := writeFile(r.Dir, name, text); err != nil {
			return err
		}
	}
	return nil
}

// Where finds the repository's root from this process's folder: the one with
// go.mod.
func Where() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		data, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module github.com/kuroko-faas/kuroko\n") {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", &usererr.Error{
				Code: usererr.CodeUsage, What: "find Kuroko's own files", Err: fmt.Errorf("%s is in no checkout of Kuroko", dir),
				Next: "run this in a checkout of Kuroko; --dir names another repository",
			}
		}
	}
}
