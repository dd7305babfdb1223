package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/stages"
)

// job is one execution of `stage-runner run`.
type job struct {
	environ, args  []string
	stdout, stderr io.Writer
	// secrets masks what passes to both.
	secrets *redact.Redactor
	// docs receives the bundle's base URL of help pages, for error messages.
	docs *string
}

// getenv looks a variable up in the job's environment. The last one wins, as
// in a shell.
func (j job) getenv(name string) string {
	value := ""
	for _, kv := range j.environ {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value = v
		}
	}
	return value
}

func (j job) run(ctx context.Context, names []string) error {
	facts, err := ci.FromEnv(j.getenv)
	if err != nil {
		return &usererr.Error{Code: usererr.CodeJobEnv, Err: err}
	}
	// Making the folder would hide the mistake until nothing is found in it.
	if info, err := os.Stat(facts.Dir); err != nil || !info.IsDir() {
		return &usererr.Error{Code: usererr.CodeJobEnv, Err: fmt.Errorf("CI_PROJECT_DIR: %s is no folder", facts.Dir)}
	}
	log := ci.Log{W: j.stderr, GitLab: j.getenv("GITLAB_CI") == "true" && j.getenv("NO_COLOR") == "", Now: time.Now}

	if !facts.Deadline.IsZero() {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadlineCause(ctx, facts.Deadline.Add(-timeToReport), errTimeLimit)
		defer stop()
	}
	started := time.Now()
	var b *bundle.Bundle
	err = log.Do(ctx, "bundle", "Platform bundle", func(ctx context.Context) error {
		b, err = j.bundle(ctx, facts, log)
		return err
	})
	if err != nil {
		return j.report(stages.ReportFailure(ctx, facts, version, started, err))
	}
	defer b.Close()
	*j.docs = b.Meta.Docs

	j.environ = append(slices.Clone(j.environ), b.Meta.Proxy.Variables()...)
	w, err := stages.Connect(j.getenv, facts, j.stderr)
	if err != nil {
		return j.report(stages.ReportFailure(ctx, facts, version, started, err))
	}
	r := stages.Runner{Job: facts, Log: log, Bundle: b, World: w, Version: version, Environ: j.environ, Secrets: j.secrets}
	return j.report(r.Run(ctx, names))
}

// timeToReport is what a job keeps of its time limit for putting things back
// and saying what happened.
const timeToReport = 30 * time.Second

// errTimeLimit is why a job's context ended before GitLab would have killed it.
var errTimeLimit = fmt.Errorf("the job's time limit (CI_JOB_TIMEOUT) is almost over: %w", context.DeadlineExceeded)

// report prints the one structured line and passes the job's error on.
func (j job) report(rep stages.Report, err error) error {
	line, merr := json.Marshal(rep)
	if merr == nil {
		_, merr = fmt.Fprintf(j.stdout, "%s\n", line)
	}
	if err == nil {
		return merr
	}
	return err
}

// bundle chooses, verifies and opens the platform bundle, hands it on to later
// jobs, and becomes the runner that it names. It does not return when another
// runner takes over.
func (j job) bundle(ctx context.Context, facts ci.Job, log ci.Log) (*bundle.Bundle, error) {
	client, platform, err := stages.Platform(j.getenv)
	if err != nil {
		return nil, err
	}
	b, err := stages.ChooseBundle(ctx, client, platform, facts, nil, version, j.getenv("FAAS_TIER"))
	if err != nil {
		return nil, err
	}
	for _, w := range b.Warnings {
		log.Warn("%s", w)
	}
	log.Printf("%s (%s)", b.Digest, b.Choice.Why)
	plan, err := bundle.PlanRunner(b.Meta, version, runtime.GOOS+"/"+runtime.GOARCH, j.getenv(bundle.RunnerMarker))
	if err != nil {
		b.Close()
		return nil, err
	}
	log.Printf("%s", plan.Why)
	if err := b.HandOn(filepath.Join(facts.Dir, stages.WorkDir)); err != nil {
		b.Close()
		return nil, err
	}
	if !plan.Exec {
		return b, nil
	}
	defer b.Close()
	path, err := client.Runner(ctx, *b.Meta.Runner, runtime.GOOS+"/"+runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	// The next program does not run our deferred calls.
	b.Close()
	err = syscall.Exec(path, append([]string{path}, j.args[1:]...), append(j.environ, plan.Env...))
	return nil, &usererr.Error{Code: usererr.CodeRunnerBlob, Err: fmt.Errorf("start %s: %w", path, err)}
}
