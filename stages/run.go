package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// RunJob runs a job of the live release once, by hand, and follows it to its
// end. event is JSON; started is told the run's name, out each line it writes.
// When ctx ends first, the run goes on.
func RunJob(ctx context.Context, t deployer.Target, scope deployer.Scope, function string, event []byte, started, out func(string)) (deployer.RunResult, error) {
	usage := func(next, why string, args ...any) error {
		return &usererr.Error{Code: usererr.CodeUsage, What: "run " + function, Err: fmt.Errorf(why, args...), Next: next}
	}
	if !json.Valid(event) {
		return deployer.RunResult{}, usage(`write it like --event '{"day": "2026-01-31"}'`, "the event is not JSON")
	}
	head, err := t.Head(ctx, scope)
	if err != nil {
		return deployer.RunResult{}, Explain(ctx, err)
	}
	if head.Live == "" {
		return deployer.RunResult{}, usage("deploy it first", "nothing is live in %s", scope)
	}
	rel, err := t.Release(ctx, scope, head.Live)
	if err != nil {
		return deployer.RunResult{}, Explain(ctx, err)
	}
	unit, next, err := jobOf(rel, function)
	if err != nil {
		return deployer.RunResult{}, usage(next, "%w", err)
	}
	run, err := t.StartRun(ctx, scope, unit.Spec, unit.Revision, event)
	if err != nil {
		return deployer.RunResult{}, Explain(ctx, err)
	}
	started(run)
	result, err := t.FollowRun(ctx, scope, run, out)
	switch {
	case err != nil && ctx.Err() != nil:
		return result, &usererr.Error{Code: usererr.CodeCancelled, What: "follow run " + run, Err: context.Cause(ctx), Next: "the run goes on; the cluster keeps its log until job.ttl after its end"}
	case err != nil:
		return result, Explain(ctx, err)
	case result.Failure == nil:
		return result, nil
	}
	f := result.Failure
	e := &usererr.Error{Code: usererr.CodeRunFailed, Class: usererr.Project, Err: errors.New(f.Cause), Next: f.Next}
	if c, ok := classOf[f.Code]; ok && f.Code != deployer.TooSlow {
		e.Class = c
	}
	return result, e
}

// jobOf finds the job in a release.
func jobOf(rel deployer.Release, function string) (u deployer.Live, next string, err error) {
	var jobs []string
	for _, u := range rel.Units {
		for _, f := range table(u.Spec).Functions {
			switch {
			case f.Name == function && u.Spec.Job != nil:
				return u, "", nil
			case f.Name == function:
				return deployer.Live{}, "call it at " + u.URL, errors.New("it answers requests, it is no job")
			case u.Spec.Job != nil:
				jobs = append(jobs, f.Name)
			}
		}
	}
	if len(jobs) == 0 {
		return deployer.Live{}, "add a function with kind: job to faas.yml and deploy it", fmt.Errorf("release %s has no jobs", rel.ID)
	}
	slices.Sort(jobs)
	return deployer.Live{}, "name one of: " + strings.Join(jobs, ", "), fmt.Errorf("release %s has no function %s", rel.ID, function)
}

// TimerLines are the timers that run, one a line, with their next times: what
// is there, not what should be.
func TimerLines(timers []deployer.ObservedTimer, now time.Time) []string {
	var rows [][]string
	for _, o := range timers {
		when := strings.TrimSpace(o.Schedule + " " + o.Timezone)
		next := nextText(nextTimes(deployer.Timer{Schedule: o.Schedule, Timezone: o.Timezone}, now))
		var more []string
		if o.Off {
			next, more = "", append(more, "switched off at the target; the next deploy switches it on")
		}
		if !o.Last.IsZero() {
			more = append(more, "last "+o.Last.UTC().Format("2006-01-02 15:04 MST"))
		}
		if o.Running > 0 {
			more = append(more, fmt.Sprintf("%d under way", o.Running))
		}
		rows = append(rows, []string{o.Function, when, "calls " + o.Revision, next, strings.Join(more, ", ")})
	}
	var b strings.Builder
	section(&b, "timers", rows)
	if b.Len() == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}
