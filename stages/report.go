package stages

import (
	"time"

	"github.com/kuroko-faas/kuroko/bundle"
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
	Target  string        `json:"target,omitempty"`  // knative, local
	Sandbox string        `json:"sandbox,omitempty"` // of the local target
	URLs    []FunctionURL `json:"urls,omitempty"`
}

// ImageResult is one image by digest.
type ImageResult struct {
	Name     string `json:"name"`
	Ref      string `json:"ref"`
	Engine   string `json:"engine"`
	Reused   bool   `json:"reused"`
	Requests int    `json:"requests"`
	Uploaded int64  `json:"uploaded"`
	Sandbox  string `json:"sandbox,omitempty"`
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
}

// ReportError is the designed error, for programs.
type ReportError struct {
	Code string   `json:"code"`
	What string   `json:"what"`
	Why  []string `json:"why"`
	Who  string   `json:"who"`
}

func reportError(err error) *ReportError {
	e := usererr.Of(err)
	r := &ReportError{Code: string(e.Code), What: e.Title(), Who: usererr.ClassOf(err).Who()}
	for _, p := range e.Problems {
		r.Why = append(r.Why, p.Why)
	}
	if len(r.Why) == 0 && e.Err != nil {
		r.Why = []string{e.Err.Error()}
	}
	return r
}
