package stages

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// Report is what happened in one job, also when it failed: .faas/report.json
// and one line on stdout.
type Report struct {
	Version  int           `json:"version"` // 1
	Outcome  string        `json:"outcome"` // ok, failed, cancelled
	Exit     int           `json:"exit"`
	Error    *ReportError  `json:"error,omitempty"`
	Runner   string        `json:"runner"` // version of the stage runner
	Bundle   bundle.Choice `json:"bundle"`
	Project  string        `json:"project"`
	Commit   string        `json:"commit"`
	Pipeline int64         `json:"pipeline"` // IID
	Job      int64         `json:"job,omitempty"`
	Started  time.Time     `json:"started"`
	Seconds  float64       `json:"seconds"`
	Stages   []StageReport `json:"stages"`
	// Result is what the job produced, as far as it came.
	Result Result `json:"result"`
}

// Result is the part of a Report that other programs act on.
type Result struct {
	Images  []ImageResult `json:"images,omitempty"`
	Release string        `json:"release,omitempty"`
	// Awaiting says what Release waits for, where it is not live yet.
	Awaiting string        `json:"awaiting,omitempty"`
	Target   string        `json:"target,omitempty"`  // knative, local
	Sandbox  string        `json:"sandbox,omitempty"` // of the local target
	URLs     []FunctionURL `json:"urls,omitempty"`
}

// ImageResult is one image by digest.
type ImageResult struct {
	Name     string `json:"name"`
	Ref      string `json:"ref"`
	Engine   string `json:"engine"`
	Reused   bool   `json:"reused"`
	Requests int    `json:"requests"`
	Uploaded int64  `json:"uploaded"`
	// Sandbox is where foreign commands ran: namespaces, none, or, of a
	// Dockerfile, root or userns. BuildImage is the digest of their root.
	Sandbox    string `json:"sandbox,omitempty"`
	BuildImage string `json:"buildImage,omitempty"`
	// Referrers are what was stored beside a new image.
	Referrers []builder.Referrer `json:"referrers,omitempty"`
}

// FunctionURL is where a function answers.
type FunctionURL struct {
	Function string `json:"function"`
	Unit     string `json:"unit"`
	Revision string `json:"revision"`
	URL      string `json:"url"`
}

// StageReport is one stage of the job.
type StageReport struct {
	Name    string       `json:"name"`
	Outcome string       `json:"outcome"` // ok, failed
	Seconds float64      `json:"seconds"`
	Steps   []StepReport `json:"steps"`
}

// StepReport is one step. A step that did not run says why.
type StepReport struct {
	Name    string  `json:"name"`
	Outcome string  `json:"outcome"` // ok, skipped, failed
	Why     string  `json:"why,omitempty"`
	Exit    int     `json:"exit,omitempty"` // of a script or user command
	Seconds float64 `json:"seconds"`
	// Sandbox is where the repository's commands ran, namespaces or none, and
	// BuildImage the digest of the image that was their root; empty where the
	// step has none.
	Sandbox    string `json:"sandbox,omitempty"`
	BuildImage string `json:"buildImage,omitempty"`
}

// ReportError is the designed error, for programs.
type ReportError struct {
	Code string   `json:"code"`
	What string   `json:"what"`
	Why  []string `json:"why"`
	Who  string   `json:"who"`
}

func newReport(job ci.Job, runner string, started time.Time) Report {
	return Report{
		Version: 1, Runner: runner, Started: started.UTC().Truncate(time.Second),
		Project: job.Project.Path, Commit: job.Commit.SHA, Pipeline: job.Pipeline.IID, Job: job.ID,
		Stages: []StageReport{},
	}
}

// finish says how the job ended and writes the file. It needs no context: a
// report is due also when the job's has ended.
func (r Report) finish(ctx context.Context, dir string, took time.Duration, err error, secrets *redact.Redactor) (Report, error) {
	r.Seconds = took.Seconds()
	r.Outcome = "ok"
	if err != nil {
		err = Explain(ctx, err)
		r.Outcome, r.Exit, r.Error = "failed", usererr.Exit(err), reportError(err, secrets)
		if usererr.ClassOf(err) == usererr.Cancelled {
			r.Outcome = "cancelled"
		}
	}
	if werr := writeWork(dir, fileReport, r); werr != nil {
		werr = fmt.Errorf("write the report: %w", werr)
		if err == nil {
			return r, Explain(ctx, werr)
		}
		// The job's own failure is what its exit code must tell.
		designed := *usererr.Of(err)
		if len(designed.Problems) == 0 && designed.Err != nil {
			designed.Problems = []usererr.Problem{{Why: designed.Err.Error()}}
		}
		designed.Problems = append(slices.Clone(designed.Problems), usererr.Problem{Why: werr.Error()})
		return r, &designed
	}
	return r, err
}

// ReportFailure is the report of a job that ended before its first stage: no
// bundle could be chosen, or its runner not be started.
func ReportFailure(ctx context.Context, job ci.Job, runner string, started time.Time, err error) (Report, error) {
	return newReport(job, runner, started).finish(ctx, job.Dir, time.Since(started), err, nil)
}

// reportError keeps what a command printed last, which may be a secret, as the
// log has it.
func reportError(err error, secrets *redact.Redactor) *ReportError {
	e := usererr.Of(err)
	r := &ReportError{Code: string(e.Code), What: e.Title(), Who: usererr.ClassOf(err).Who()}
	for _, p := range e.Problems {
		r.Why = append(r.Why, p.Why)
	}
	if len(r.Why) == 0 && e.Err != nil {
		r.Why = []string{e.Err.Error()}
	}
	for i, why := range r.Why {
		r.Why[i] = secrets.String(why)
	}
	return r
}
