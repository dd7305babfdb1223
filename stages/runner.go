package stages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

// Runner runs the stages of one job under one bundle.
type Runner struct {
	Job    ci.Job
	Log    ci.Log
	Bundle *bundle.Bundle
	World  World
	// Version is the stage runner's own, for the report.
	Version string
	// Environ is the job's environment, from which scripts and user commands
	// get the few variables they may see.
	Environ []string
	// Secrets masks what is written; it is told about more of them as files that
	// name secrets are read. nil masks nothing.
	Secrets *redact.Redactor
	// Place says where the service lives without faas.yml; the zero value
	// leaves it to faas.yml. Only what looks at or ends releases reads it.
	Place project.Place
}

// step is a built-in: what a bundle's `uses:` can name.
type step struct {
	title string
	// run does the step. A non-empty skipped says why there was nothing to do.
	run func(ctx context.Context, s *state) (skipped string, err error)
}

// builtins maps the names bundles may use to what they do. It is part of the
// bundle format: names are never reused for another meaning.
func builtins() map[string]step {
	return map[string]step{
		"read-project":   {"Read faas.yml", readProject},
		"plan-build":     {"Plan the images", planBuild},
		"test":           {"Run the tests", runTests},
		"build-command":  {"Run the build command", runBuildCommand},
		"build-images":   {"Build the images", buildImages},
		"collect-images": {"Check the images", collectImages},
		"plan-deploy":    {"Plan the release", planDeploy},
		"deploy":         {"Roll out the release", deployRelease},
		"promote":        {"Promote the release", promoteRelease},
		"rollback":       {"Roll back", rollbackRelease},
		"stop":           {"Stop the service", stopService},
		"sweep":          {"Clean up after earlier jobs", sweepService},
	}
}

// Builtins lists the names a bundle's `uses:` may have, sorted.
func Builtins() []string { return slices.Sorted(maps.Keys(builtins())) }

// Run runs the named stages in order and stops at the first that fails. The
// Report is valid and written to .faas/report.json in every case, also after
// ctx ended; the error is the designed one.
func (r *Runner) Run(ctx context.Context, names []string) (Report, error) {
	started := r.World.Now()
	s := &state{Runner: r}
	// Digests of an earlier run in the same folder are not this run's.
	_ = os.RemoveAll(s.digestDir())
	rep := newReport(r.Job, r.Version, started)
	rep.Bundle = r.Bundle.Choice
	err := r.run(ctx, s, names, &rep)
	if s.tree != nil {
		s.tree.Close()
	}
	rep.Result = s.result
	return rep.finish(ctx, r.Job.Dir, r.World.Now().Sub(started), err, r.Secrets)
}

func (r *Runner) run(ctx context.Context, s *state, names []string, rep *Report) error {
	// Every definition is read before anything runs: a typo in the last stage
	// is not worth a build.
	defs := make([]Definition, 0, len(names))
	var problems []usererr.Problem
	for _, n := range names {
		d, err := LoadDefinition(r.Bundle.FS, n, Builtins())
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				problems = append(problems, usererr.Problem{Why: line})
			}
			continue
		}
		defs = append(defs, d)
	}
	if len(problems) > 0 {
		return &usererr.Error{Code: usererr.CodeStage, Problems: problems}
	}
	for _, d := range defs {
		if err := r.stage(ctx, s, d, rep); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) stage(ctx context.Context, s *state, d Definition, rep *Report) error {
	start := r.World.Now()
	sr := StageReport{Name: d.Name, Outcome: "ok", Steps: []StepReport{}}
	var failed error
	for i, st := range d.Steps {
		if err := ctx.Err(); err != nil {
			failed = context.Cause(ctx)
			break
		}
		rp := r.step(ctx, s, d, i, st)
		sr.Steps = append(sr.Steps, rp.StepReport)
		if rp.err != nil {
			failed = rp.err
			break
		}
	}
	if failed != nil {
		sr.Outcome = "failed"
	}
	sr.Seconds = r.World.Now().Sub(start).Seconds()
	rep.Stages = append(rep.Stages, sr)
	return failed
}

type stepResult struct {
	StepReport
	err error
}

func (r *Runner) step(ctx context.Context, s *state, d Definition, i int, st Step) stepResult {
	b := builtins()[st.Uses]
	name, title := st.Uses, b.title
	if st.Run != "" {
		name = st.Run
		title = "Run " + strings.Fields(st.Run)[0]
	}
	if st.Title != "" {
		title = st.Title
	}
	res := stepResult{StepReport: StepReport{Name: name, Outcome: "ok"}}
	cond, err := parseCondition(st.When) // LoadDefinition has checked it
	if err == nil && cond != nil {
		var facts Facts
		if facts, err = s.facts(ctx); err == nil {
			if why := cond.unmet(facts); why != "" {
				r.Log.Skip(title, why)
				res.Outcome, res.Why = "skipped", why
				return res
			}
		}
	}
	start := r.World.Now()
	s.ran = builder.Ran{}
	if err == nil {
		id := fmt.Sprintf("%s_%d", d.Name, i+1)
		err = r.Log.Do(ctx, id, title, func(ctx context.Context) error {
			if st.Run != "" {
				return r.script(ctx, s, d.Name, strings.Fields(st.Run))
			}
			why, err := b.run(ctx, s)
			if why != "" && err == nil {
				r.Log.Skip(title, why)
				res.Outcome, res.Why = "skipped", why
			}
			return err
		})
	}
	res.Seconds = r.World.Now().Sub(start).Seconds()
	res.Sandbox, res.BuildImage = s.ran.Sandbox, s.ran.Image
	if err != nil {
		res.err, res.Outcome, res.Why = err, "failed", s.Secrets.String(Explain(ctx, err).Error())
		var exit *run.ExitError
		if errors.As(err, &exit) {
			res.Exit = exit.Code
		}
	}
	return res
}

// script runs a script of the bundle from the bundle's own folder, which the
// job's other processes can't write, in the work tree.
func (r *Runner) script(ctx context.Context, s *state, stage string, words []string) error {
	env, err := s.scriptEnv(ctx, stage)
	if err != nil {
		return err
	}
	s.reads = nil // it may make what build.command reads
	digests := s.digestDir()
	if err := os.MkdirAll(digests, 0o755); err != nil {
		return err
	}
	out := &lineWriter{log: r.Log}
	defer out.flush()
	err = run.Command{
		Path: filepath.Join(r.Bundle.Dir, filepath.FromSlash(words[0])), Args: words[1:],
		Dir: r.Job.Dir, Env: env, Stdout: out, Stderr: out,
	}.Run(ctx)
	var exit *run.ExitError
	if errors.As(err, &exit) {
		return &usererr.Error{
			Code: usererr.CodeScript, Err: fmt.Errorf("%s of the platform bundle: %w", words[0], err),
			What: "run " + words[0],
		}
	}
	return err
}

// inherited are the job's variables that a bundle's scripts may see beside
// FAAS_*: where programs are, and the registry that images go to. Cluster
// credentials and tokens are not among them.
var inherited = []string{
	"PATH", "HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
	"CI", "GITLAB_CI", "CI_COMMIT_SHA", "CI_COMMIT_BRANCH", "CI_COMMIT_TAG", "CI_PROJECT_ID", "CI_PROJECT_PATH", "CI_PIPELINE_ID", "CI_PIPELINE_IID",
	"CI_REGISTRY", "CI_REGISTRY_IMAGE", "CI_REGISTRY_USER", "CI_REGISTRY_PASSWORD", "DOCKER_CONFIG",
}

func pick(environ, names []string) []string {
	var out []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if slices.Contains(names, name) {
			out = append(out, kv)
		}
	}
	return out
}

// scriptEnv is the documented environment of bundle scripts (docs/stages.md).
func (s *state) scriptEnv(ctx context.Context, stage string) ([]string, error) {
	env := pick(s.Environ, inherited)
	add := func(k, v string) { env = append(env, k+"="+v) }
	add("FAAS_STAGE", stage)
	add("FAAS_ENVIRONMENT", s.Job.Environment)
	add("FAAS_PROJECT_DIR", s.Job.Dir)
	add("FAAS_WORK_DIR", filepath.Join(s.Job.Dir, WorkDir))
	add("FAAS_BUNDLE_DIR", s.Bundle.Dir)
	add("FAAS_BUNDLE_DIGEST", s.Bundle.Digest)
	add("FAAS_BUNDLE_VERSION", s.Bundle.Meta.Version)
	add("FAAS_COMMIT", s.Job.Commit.SHA)
	add("FAAS_PIPELINE", strconv.FormatInt(s.Job.Pipeline.IID, 10))
	add("FAAS_DIGESTS", s.digestDir())
	if p, err := s.project(ctx); err == nil {
		add("FAAS_SERVICE", p.Service.Name)
	}
	if plan, err := s.buildPlan(ctx); err == nil {
		var names []string
		for _, i := range plan.Images {
			names = append(names, i.Name)
		}
		add("FAAS_IMAGES", strings.Join(names, " "))
		add("FAAS_REPOSITORY", plan.Repository)
	}
	return env, nil
}

// digestDir is where scripts leave the digest of each image they built.
func (s *state) digestDir() string { return filepath.Join(s.Job.Dir, WorkDir, "digests") }

// lineWriter passes whole lines of a child's output to the log.
//
// The lock is for a child that was given up on: its last write may meet flush.
type lineWriter struct {
	log  ci.Log
	mu   sync.Mutex
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		i := slices.Index(w.rest, '\n')
		if i < 0 {
			// A child without newlines must not grow our memory.
			if len(w.rest) > 64<<10 {
				w.drain()
			}
			return len(p), nil
		}
		w.log.Printf("%s", w.rest[:i])
		w.rest = w.rest[i+1:]
	}
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drain()
}

func (w *lineWriter) drain() {
	if len(w.rest) > 0 {
		w.log.Printf("%s", w.rest)
		w.rest = nil
	}
}

var _ io.Writer = (*lineWriter)(nil)

// Explain turns what a leaf reported into the message the developer reads.
// Errors that were designed already pass through.
func Explain(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return &usererr.Error{Code: usererr.CodeTimeout, Err: err}
	}
	if errors.Is(err, context.Canceled) || (ctx.Err() != nil && errors.Is(err, context.Cause(ctx))) {
		return &usererr.Error{Code: usererr.CodeCancelled, Err: err}
	}
	var designed *usererr.Error
	if errors.As(err, &designed) {
		return err
	}
	if usererr.DiskFull(err) {
		return &usererr.Error{Code: usererr.CodeDiskFull, Err: err}
	}
	if errors.Is(err, errNoFile) {
		return &usererr.Error{Code: usererr.CodeWorkFiles, Err: err}
	}
	e := explainLeaf(err)
	// A file system that says no is the machine's matter unless a leaf knew
	// better: a work tree mounted read-only, a TMPDIR that is not there.
	var path *fs.PathError
	var link *os.LinkError
	if usererr.Of(e).Code == usererr.CodeInternal && (errors.As(err, &path) || errors.As(err, &link)) {
		return &usererr.Error{
			Code: usererr.CodeUnable, What: "use the job's files", Err: err,
			Next: "check that the path is there, and that this job may read and write it (TMPDIR, FAAS_CACHE_DIR, the work tree and .faas in it)",
		}
	}
	return e
}
