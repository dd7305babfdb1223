package stages

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

// policyOf is the project's rollout as the deployer takes it.
func policyOf(p *project.Project) deployer.Policy {
	r := p.Rollout
	out := deployer.Policy{Strategy: r.Strategy, OnFailure: r.OnFailure, KeepWarm: r.KeepWarm.Std()}
	if out.KeepWarm == 0 {
		out.KeepWarm = -1 // said so: not at all
	}
	for _, s := range r.Steps {
		out.Steps = append(out.Steps, deployer.Weight{Weight: s.Weight, Pause: s.Pause.Std(), Approval: s.Approval})
	}
	services := map[string]string{}
	for _, u := range p.Units {
		services[u.Name] = u.ServiceName
	}
	for _, v := range r.Verify {
		out.Verify = append(out.Verify, deployer.Verify{Service: services[v.Unit], Method: v.Method, Path: v.Path, Status: v.Status, Max: v.Max.Std()})
	}
	if a := r.Analysis; a != nil {
		c := analysis.Criteria{
			Interval: a.Interval.Std(), SuccessRate: a.SuccessRate, P99: a.P99.Std(), Compare: a.Compare,
			MinRequests: max(1, a.MinRequests), OnNoData: a.OnNoData,
		}
		for _, q := range a.Queries {
			c.Queries = append(c.Queries, analysis.Query{Name: q.Name, Query: q.Query, Min: q.Min, Max: q.Max})
		}
		out.Analysis = &c
	}
	return out
}

// variable is a variable of the job.
func (s *state) variable(name string) string {
	for _, kv := range s.Environ {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}

// prometheus is the cluster's, for the queries of an analysis.
func (s *state) prometheus(ctx context.Context) (analysis.Prometheus, error) {
	site, err := s.site(ctx)
	return analysis.Prometheus{Endpoint: site.Cluster.Prometheus, Token: s.variable("FAAS_PROMETHEUS_TOKEN")}, err
}

// Prometheus is the cluster's of the job's environment, for the queries of an
// analysis.
func (r *Runner) Prometheus(ctx context.Context) (analysis.Prometheus, error) {
	return (&state{Runner: r}).prometheus(ctx)
}

// fits asserts that the job lasts until the rollout is over: GitLab ends it in
// the middle otherwise, and all that has moved is put back. pauses are certain;
// ready is how long the revisions may take before.
func (s *state) fits(pauses, ready time.Duration) error {
	if s.Job.Deadline.IsZero() {
		return nil
	}
	left := s.Job.Deadline.Sub(s.now()).Round(time.Second)
	limit := fmt.Sprintf("GitLab ends this job in %s (CI_JOB_TIMEOUT)", left)
	needs := (pauses + ready).Round(time.Minute) + 10*time.Minute
	next := fmt.Sprintf("give the job timeout: %d minutes in .gitlab-ci.yml (and the runner as much), shorten the pauses, or write pause: approval, where a person goes on in another job", int(needs.Minutes()))
	switch {
	case pauses >= left:
		return &usererr.Error{
			Code: usererr.CodeEnvironment, What: "fit the rollout into the job",
			Err: fmt.Errorf("rollout.steps takes at least %s, and %s", pauses, limit), Next: next,
		}
	case pauses+ready >= left:
		s.Log.Warn("the rollout may take %s (readyTimeout %s, pauses %s), and %s, which takes it back: %s", pauses+ready, ready, pauses, limit, next)
	}
	return nil
}

// fitsWhatWaits is fits for the release that a promotion goes on with.
func (s *state) fitsWhatWaits(ctx context.Context, t deployer.Target, scope deployer.Scope) error {
	if s.Job.Deadline.IsZero() {
		return nil
	}
	h, err := t.Head(ctx, scope)
	if err != nil {
		return err
	}
	id, next := h.Staged, 0
	if h.Rollout != nil {
		id, next = h.Rollout.To, h.Rollout.Next
	}
	if id == "" {
		return nil
	}
	rel, err := t.Release(ctx, scope, id)
	if err != nil {
		return err
	}
	return s.fits(rel.Policy.Pauses(next), 0)
}

// waits tells of a release that is not live yet, and how it gets there.
func (s *state) waits(out deployer.Outcome) error {
	s.result.Release, s.result.Awaiting = out.ID, out.Awaiting
	next := "faas release promote --env " + s.Job.Environment
	if s.variable("FAAS_GRAPH") == graphApproval {
		next = "the job promote:" + s.Job.Environment + " of this pipeline, or " + next
	}
	s.awaiting = fmt.Sprintf("%s; go on with %s, go back with faas release rollback", out.Awaiting, next)
	s.Log.Printf("%s", s.awaiting)
	return writeWork(s.Job.Dir, fileStaged, out.Release)
}

// promoteRelease goes on with a release that waits for a person, from the
// cluster's record alone. Where the deploy ran in the same process, nobody
// has had the time to look: then it only says what is waited for.
func promoteRelease(ctx context.Context, s *state) (string, error) {
	switch {
	case s.awaiting != "":
		return s.awaiting, nil
	case s.released != "":
		return s.released + " took the traffic in the deploy stage", nil
	}
	if err := s.mayDeploy(ctx); err != nil {
		return "", err
	}
	scope, err := s.scope(ctx)
	if err != nil {
		return "", err
	}
	t, err := s.open(ctx)
	if err != nil {
		return "", err
	}
	o := deployer.Options{Holder: s.holder(), Progress: Progress(s.Log)}
	if o.Prometheus, err = s.prometheus(ctx); err != nil {
		return "", err
	}
	if p, err := s.project(ctx); err == nil { // a broken faas.yml is not in the way
		o.ReadyTimeout, o.Keep = p.Rollout.ReadyTimeout.Std(), p.Rollout.Keep
	}
	if err := s.fitsWhatWaits(ctx, t, scope); err != nil {
		return "", err
	}
	out, err := deployer.Promote(ctx, t, scope, s.Job.Pipeline.IID, o)
	if errors.Is(err, deployer.ErrNotFound) {
		return "", &usererr.Error{Code: usererr.CodeSuperseded, What: "promote this pipeline's release", Err: err}
	}
	if err != nil {
		return "", err
	}
	for _, w := range out.Warnings {
		s.Log.Warn("%s", w)
	}
	if out.Awaiting != "" {
		return "", s.waits(out)
	}
	if err := s.published(out.Release); err != nil {
		return "", err
	}
	if out.NoChange {
		return "release " + out.ID + " is live already", nil
	}
	return "", nil
}
