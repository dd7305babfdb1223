package gitlabci

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/internal/run"
)

// Checkout is a developer's work tree. It is not safe for concurrent use.
type Checkout struct {
	Dir string

	server *Server
	bare   string
	runs   int
}

// Head is the checked-out commit.
func (c *Checkout) Head(ctx context.Context) (string, error) {
	return c.server.gitOutput(ctx, c.Dir, "rev-parse", "HEAD")
}

// Branch starts a branch at the checked-out commit and pushes it.
func (c *Checkout) Branch(ctx context.Context, name string) error {
	if err := c.server.git(ctx, c.Dir, "checkout", "--quiet", "-b", name); err != nil {
		return err
	}
	return c.push(ctx)
}

// Commit commits all changes of the work tree and pushes the branch.
func (c *Checkout) Commit(ctx context.Context, message string) error {
	if err := c.server.commit(ctx, c.Dir, message); err != nil {
		return err
	}
	return c.push(ctx)
}

// push goes past the server, which only reads, and lets the checkout know.
func (c *Checkout) push(ctx context.Context) error {
	if err := c.server.git(ctx, c.Dir, "push", "--quiet", c.bare, "HEAD"); err != nil {
		return err
	}
	return c.server.git(ctx, c.Dir, "fetch", "--quiet", "origin")
}

// Pipeline is what GitLab would know of a pipeline before it starts.
type Pipeline struct {
	Created   time.Time // CI_PIPELINE_CREATED_AT; zero is now
	ProjectID int64     // CI_PROJECT_ID; 0 is 1001
	IID       int64     // CI_PIPELINE_IID; 0 counts the checkout's pipelines from 1
	// Variables are further CI variables, those of the instance and the
	// project together. They reach the jobs literally and win over ours.
	Variables map[string]string
	// Path holds folders to search before the parent's PATH, for programs
	// that the job image would hold.
	Path []string
	// Manual are manual jobs that somebody starts.
	Manual []string
	// Output receives the log of all jobs as it comes; nil is nowhere.
	Output io.Writer
	// Timeout ends the pipeline; 0 is 10 minutes.
	Timeout time.Duration
}

// Status is how a job ended.
type Status string

// The ways a job ends. Warning is a failure that allow_failure names.
const (
	Success Status = "success"
	Warning Status = "warning"
	Failed  Status = "failed"
)

// Job is one job that ran.
type Job struct {
	Name   string
	Status Status
	Code   int    // exit code of its script
	Log    string // stdout and stderr, without section markers
	Dir    string // its own work tree, as it was left
}

// Result is a pipeline that ran to its end. A job that was not reached, or
// waits for a person, is not listed.
type Result struct {
	OK     bool // every job that ran succeeded or may fail
	Jobs   []Job
	Config string // the pipeline as YAML, with includes, inputs and extends resolved
	Output string // all that gitlab-ci-local said
}

// Job is the job of that name.
func (r Result) Job(name string) (Job, bool) {
	i := slices.IndexFunc(r.Jobs, func(j Job) bool { return j.Name == name })
	if i < 0 {
		return Job{}, false
	}
	return r.Jobs[i], true
}

// Run runs the pipeline of the checked-out commit: every job whose rules
// match, each in a fresh copy of the tracked files, artefacts handed on as
// GitLab does. A pipeline that GitLab would refuse (an input that is not
// allowed, a job that does not exist) is an error with its words; one whose
// jobs fail is a Result.
func (c *Checkout) Run(ctx context.Context, p Pipeline) (Result, error) {
	c.runs++
	return c.run(ctx, p)
}

// Retry runs one job of the last pipeline again, with the artefacts of the
// others as they are, as GitLab's button does.
func (c *Checkout) Retry(ctx context.Context, p Pipeline, job string) (Result, error) {
	if c.runs == 0 {
		return Result{}, errors.New("gitlabci: no pipeline to retry a job of")
	}
	return c.run(ctx, p, job)
}

func (c *Checkout) run(ctx context.Context, p Pipeline, jobs ...string) (Result, error) {
	// Each pipeline has its own state: fetched includes, artefacts and work
	// trees of an earlier one must not help it.
	state := ".gitlab-ci-local/" + strconv.Itoa(c.runs)
	said, err := c.tool(ctx, p, state, jobs...)
	for tries := 1; err != nil && tries < 3 && fetchedTwice(said); tries++ {
		said, err = c.tool(ctx, p, state, jobs...)
	}
	var exit *run.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Result{}, fmt.Errorf("gitlabci: run the pipeline: %w", err)
	}
	r := Result{OK: err == nil, Output: said}
	for _, m := range finished.FindAllStringSubmatch(r.Output, -1) {
		j := Job{Name: m[1], Status: Success, Dir: filepath.Join(c.Dir, state, "builds", safeName(m[1]))}
		switch m[2] {
		case "WARN":
			j.Status = Warning
		case "FAIL":
			j.Status = Failed
		}
		if m[3] != "" {
			if j.Code, err = strconv.Atoi(m[3]); err != nil {
				return Result{}, fmt.Errorf("gitlabci: exit code of job %s: %w", j.Name, err)
			}
		}
		log, err := os.ReadFile(filepath.Join(c.Dir, state, "output", safeName(m[1])+".log"))
		if errors.Is(err, fs.ErrNotExist) && m[1] == "pipeline" {
			continue // "pipeline finished in …" is about the whole
		}
		if err != nil {
			return Result{}, fmt.Errorf("gitlabci: log of job %s: %w", j.Name, err)
		}
		j.Log = ansi.ReplaceAllString(string(log), "")
		r.Jobs = append(r.Jobs, j)
	}
	failed := slices.ContainsFunc(r.Jobs, func(j Job) bool { return j.Status == Failed })
	if !r.OK && !failed {
		return r, fmt.Errorf("gitlabci: the pipeline was refused: %s", strings.TrimSpace(r.Output))
	}
	r.OK = !failed // gitlab-ci-local's own code forgives every code where a job may end with some
	config, err := os.ReadFile(filepath.Join(c.Dir, state, "expanded-gitlab-ci.yml"))
	if err != nil {
		return r, fmt.Errorf("gitlabci: the resolved configuration: %w", err)
	}
	r.Config = string(config)
	return r, nil
}

// fetchedTwice recognises a race of gitlab-ci-local with itself: a file that is
// included more than once is fetched as often, at the same time, and the copy
// that comes last finds it there. No job has run then.
func fetchedTwice(said string) bool {
	return strings.Contains(said, "Project include could not be fetched") && strings.Contains(said, ": File exists")
}

// tool runs gitlab-ci-local and returns what it said, without colours.
func (c *Checkout) tool(ctx context.Context, p Pipeline, state string, args ...string) (string, error) {
	if p.Timeout == 0 {
		p.Timeout = 10 * time.Minute
	}
	ctx, stop := context.WithTimeout(ctx, p.Timeout)
	defer stop()
	all := []string{
		c.server.tools.Script,
		"--force-shell-executor", "--shell-isolation", "--no-artifacts-to-source",
		"--state-dir", state, "--home", c.server.home,
	}
	for _, m := range p.Manual {
		all = append(all, "--manual", m)
	}
	vars := c.variables(p)
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		// A dollar would be taken for a variable.
		all = append(all, "--variable", k+"="+strings.ReplaceAll(vars[k], "$", "$$"))
	}
	var said strings.Builder
	out := io.Writer(&said)
	if p.Output != nil {
		out = io.MultiWriter(&said, p.Output)
	}
	err := run.Command{
		Path: c.server.tools.Node, Args: append(all, args...),
		Dir: c.Dir, Env: environment(os.Environ(), p.Path), Stdout: out, Stderr: out,
	}.Run(ctx)
	return ansi.ReplaceAllString(said.String(), ""), err
}

func (c *Checkout) variables(p Pipeline) map[string]string {
	if p.Created.IsZero() {
		p.Created = time.Now()
	}
	if p.ProjectID == 0 {
		p.ProjectID = 1001
	}
	if p.IID == 0 {
		p.IID = int64(c.runs)
	}
	vars := map[string]string{
		// gitlab-ci-local says false, to be told from the real one.
		"GITLAB_CI":               "true",
		"CI_PIPELINE_CREATED_AT":  p.Created.UTC().Format(time.RFC3339),
		"CI_PROJECT_ID":           strconv.FormatInt(p.ProjectID, 10),
		"CI_PIPELINE_IID":         strconv.FormatInt(p.IID, 10),
		"CI_PIPELINE_ID":          strconv.FormatInt(100000+p.IID, 10),
		"CI_COMMIT_REF_PROTECTED": "true",
	}
	maps.Copy(vars, p.Variables)
	return vars
}

var (
	ansi = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")
	// finished is the line that ends a job; what a job says itself stands
	// behind "> ".
	finished = regexp.MustCompile(`(?m)^(\S+) +finished in [0-9.]+ \S+(?: +(WARN|FAIL) (\d+) *)?$`)
	unsafe   = regexp.MustCompile(`[^A-Za-z0-9_-]+`)
)

// safeName is the file name gitlab-ci-local makes of a job's.
func safeName(job string) string {
	return unsafe.ReplaceAllStringFunc(job, func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) })
}

// inherited are the variables of the machine that a job image would have too.
// Everything else stays out: GCL_* are options of gitlab-ci-local, CI_* and
// FAAS_* would pretend to be GitLab's.
var inherited = regexp.MustCompile(`(?i)^(PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|LANG|LC_[A-Z]+|TZ|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR)|NODE_EXTRA_CA_CERTS|npm_config_.*)$`)

func environment(parent, path []string) []string {
	var env []string
	for _, kv := range parent {
		k, v, _ := strings.Cut(kv, "=")
		if !inherited.MatchString(k) {
			continue
		}
		if k == "PATH" {
			v = strings.Join(append(slices.Clone(path), v), string(os.PathListSeparator))
		}
		env = append(env, k+"="+v)
	}
	return append(env, "FORCE_COLOR=0", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_TERMINAL_PROMPT=0")
}
