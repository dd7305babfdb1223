package deployer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// verifyTries is how often a request of rollout.verify is sent at most: the
// first answer of a fresh instance may be slow.
const verifyTries = 3

// verify sends the policy's requests to a revision that has no traffic yet.
func (r *run) verify(ctx context.Context, u Spec, revision string) error {
	for _, v := range r.policy.Verify {
		if v.Service != u.Name {
			continue
		}
		said := ""
		for try := range verifyTries {
			if try > 0 {
				if err := sleep(ctx, r.o.ProbeEvery); err != nil {
					return err
				}
			}
			a, err := r.t.Ask(ctx, r.scope, u.Name, revision, Request{Method: v.Method, Path: v.Path})
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case errors.Is(err, ErrUnreachable):
				r.unproven(u, revision, true, "rollout.verify can't ask its own URL: "+err.Error())
				return nil
			case err != nil:
				said = err.Error()
			case a.Status != v.Status:
				said = fmt.Sprintf("status %d, want %d", a.Status, v.Status)
				if a.Body != "" {
					said += ": " + strings.Join(strings.Fields(a.Body), " ")
				}
			case v.Max > 0 && a.Took > v.Max:
				said = fmt.Sprintf("it took %s, at most %s is allowed", a.Took.Round(time.Millisecond), v.Max)
			default:
				said = ""
				r.say(Event{Step: StepVerify, Unit: u.Unit, Revision: revision, Text: fmt.Sprintf("%s %s: %d in %s", v.Method, v.Path, a.Status, a.Took.Round(time.Millisecond))})
			}
			if said == "" {
				break
			}
		}
		if said != "" {
			f := &Failure{
				Code: VerifyFailed, Unit: u.Unit, Revision: revision,
				Cause: fmt.Sprintf("%s %s: %s", v.Method, v.Path, said),
				Next:  "correct the function, or what rollout.verify expects of it",
			}
			f.Logs, _ = r.t.Logs(ctx, r.scope, u.Name, revision, LogLines)
			return f
		}
	}
	return nil
}

// watch lets a step's pause pass, and judges the release meanwhile.
func (r *run) watch(ctx context.Context, rel Release, m *moves, step Weight) *Failed {
	if rel.Policy.Analysis == nil || step.Approval {
		if step.Pause > 0 && !step.Approval {
			r.say(Event{Step: StepAnalysis, Text: fmt.Sprintf("%d %% for %s", step.Weight, step.Pause)})
			if err := sleep(ctx, step.Pause); err != nil {
				return failed(StepAnalysis, err)
			}
		}
		return nil
	}
	c := rel.Policy.Analysis.WithDefaults()
	r.say(Event{Step: StepAnalysis, Text: fmt.Sprintf("%d %% for %s, judged every %s", step.Weight, max(step.Pause, c.Interval), c.Interval)})
	start := time.Now()
	before := r.measure(ctx, m)
	for {
		left := step.Pause - time.Since(start)
		wait := c.Interval
		if left > 0 {
			wait = min(wait, left)
		}
		if err := sleep(ctx, wait); err != nil {
			return failed(StepAnalysis, err)
		}
		j, err := r.judgeAll(ctx, m, c, before, time.Since(start))
		if err != nil {
			return failed(StepAnalysis, err)
		}
		over := time.Since(start) >= step.Pause
		switch {
		case j.Verdict == analysis.Pass && over:
			r.say(Event{Step: StepAnalysis, Text: "good at " + fmt.Sprint(step.Weight) + " %: " + j.Why})
			return nil
		case j.Verdict == analysis.Pass:
			r.say(Event{Step: StepAnalysis, Text: "good so far: " + j.Why})
		case !over:
			r.say(Event{Step: StepAnalysis, Text: "waiting: " + j.Why})
		case c.OnNoData == "pass":
			r.warn(Event{Step: StepAnalysis, Text: fmt.Sprintf("not judged at %d %%: %s", step.Weight, j.Why)})
			return nil
		case c.OnNoData == "fail" || time.Since(start) >= step.Pause+r.o.NoDataTimeout:
			return failed(StepAnalysis, &Failure{
				Code: AnalysisNoData, Cause: fmt.Sprintf("at %d %%, after %s: %s", step.Weight, time.Since(start).Round(time.Second), j.Why),
				Next: "let more requests reach the service, or change analysis.minRequests or analysis.onNoData",
			})
		default:
			r.say(Event{Step: StepAnalysis, Text: "waiting for more: " + j.Why})
		}
	}
}

// counted are the counts of both revisions of each moving unit.
type counted map[string][2][]analysis.Counts // new, old

// measure asks what both revisions have counted. What can't be asked now
// shows as nothing counted: the next look may know more.
func (r *run) measure(ctx context.Context, m *moves) counted {
	all := counted{}
	for service, p := range m.pairs {
		var c [2][]analysis.Counts
		for i, revision := range []string{p.new, p.old} {
			c[i], _ = r.t.Measure(ctx, r.scope, service, revision)
		}
		all[service] = c
	}
	return all
}

// judgeAll is one look at all moving units. The error is a [*Failure] where a
// unit has failed, or the run's end. A unit that hardly anybody calls does not
// hold up the others: enough requests in all are enough.
func (r *run) judgeAll(ctx context.Context, m *moves, c analysis.Criteria, before counted, since time.Duration) (analysis.Judgement, error) {
	now := r.measure(ctx, m)
	if ctx.Err() != nil {
		return analysis.Judgement{}, context.Cause(ctx)
	}
	measured := c.SuccessRate != nil || c.P99 > 0 || len(c.Queries) == 0
	var good, thin []string
	for _, service := range slices.Sorted(maps.Keys(m.pairs)) {
		p := m.pairs[service]
		fail := func(why string) error {
			f := &Failure{Code: AnalysisFailed, Unit: p.unit, Revision: p.new, Cause: why, Next: "look at the revision's log and correct the function"}
			f.Logs, _ = r.t.Logs(ctx, r.scope, service, p.new, LogLines)
			return f
		}
		note := func(j analysis.Judgement) error {
			switch j.Verdict {
			case analysis.Fail:
				return fail(j.Why)
			case analysis.Pass:
				good = append(good, p.unit+": "+j.Why)
			default:
				thin = append(thin, p.unit+": "+j.Why)
			}
			return nil
		}
		if measured {
			j := c.Judge(analysis.Between(before[service][0], now[service][0]), analysis.Between(before[service][1], now[service][1]))
			if err := note(j); err != nil {
				return j, err
			}
		}
		for _, q := range c.Queries {
			j, err := r.o.Prometheus.Judge(ctx, q, analysis.Variables{Service: service, Revision: p.new, Stable: p.old, Namespace: r.scope.Namespace, Window: since})
			if ctx.Err() != nil {
				return j, context.Cause(ctx)
			}
			switch {
			case errors.Is(err, analysis.ErrNoData):
				// What was asked for by name must be answered.
				return analysis.Judgement{Verdict: analysis.NoData, Why: p.unit + ": " + err.Error()}, nil
			case err != nil:
				return j, fail(err.Error())
			}
			if err := note(j); err != nil {
				return j, err
			}
		}
	}
	if len(good) == 0 {
		return analysis.Judgement{Verdict: analysis.NoData, Why: strings.Join(thin, "; ")}, nil
	}
	return analysis.Judgement{Verdict: analysis.Pass, Why: strings.Join(good, "; ")}, nil
}

// await leaves the rollout where it is, for a person.
func (r *run) await(ctx context.Context, rel Release, next, weight int) (string, error) {
	until := r.o.Now().UTC().Add(ApprovalTime)
	err := r.lease.update(ctx, func(h *Head) {
		if h.Rollout != nil {
			h.Rollout.Step, h.Rollout.Next, h.Rollout.Absolute, h.Rollout.Deadline = stepApproval, next, true, until
		}
	})
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%s has %d %% and waits for a person until %s", rel.ID, weight, until.Format(time.RFC3339))
	r.say(Event{Step: StepAnalysis, Text: text})
	return text, nil
}

// What a rollout's Step is while it needs no holder.
const (
	stepApproval = "approval"
	stepHeld     = "held"
)

// failStep is what follows a step that failed: the shift is undone, or held
// where it is for a person.
func (r *run) failStep(ctx context.Context, rel Release, state State, changes []Change, step Weight, f *Failed) error {
	hold := rel.Policy.OnFailure == "hold" && r.lease.current().Rollout != nil && r.lease.current().Rollout.OnDeath == OnDeathRestore
	causes := Failures(f.Err)
	if !hold || len(causes) == 0 || fenced(ctx, f.Err) != nil {
		return r.undo(ctx, state, changes, f)
	}
	after, cancel := r.after(ctx)
	defer cancel()
	why := fmt.Sprintf("%s failed at %d %%: %s", rel.ID, step.Weight, causes[0])
	if f.Step != StepAnalysis {
		err := r.undo(ctx, state, changes, f)
		if held := r.lease.update(after, func(h *Head) { h.Held = why }); held != nil {
			r.warn(Event{Step: StepRestore, Text: "the release could not be held: " + held.Error()})
		}
		return err
	}
	until := r.o.Now().UTC().Add(ApprovalTime)
	err := r.lease.update(after, func(h *Head) {
		h.Held = why
		if h.Rollout != nil {
			h.Rollout.Step, h.Rollout.Absolute, h.Rollout.Deadline = stepHeld, true, until
		}
	})
	if err != nil {
		return r.undo(ctx, state, changes, f)
	}
	r.say(Event{Step: StepAnalysis, Warning: true, Text: why})
	return &HeldError{Scope: r.scope, Live: state.Head.Live, Why: why, Next: "it keeps its share; end it with faas release promote or faas release rollback"}
}

// waiting is the outcome of a deploy whose very release waits for a person
// already; nil: it does not. What a newer pipeline has staged is not replaced.
func (r *run) waiting(ctx context.Context, p Plan, h Head) (*Outcome, error) {
	id := h.Staged
	if h.Rollout != nil {
		if !h.Rollout.Absolute {
			return nil, nil
		}
		id = h.Rollout.To
	}
	if id == "" {
		return nil, nil
	}
	rel, err := r.t.Release(ctx, r.scope, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("deployer: read release %s of %s: %w", id, r.scope, err)
	case p.Pipeline != 0 && p.Pipeline < rel.Pipeline:
		return nil, &SupersededError{Scope: r.scope, Pipeline: p.Pipeline, By: rel.Pipeline, Live: h.Live}
	case !same(rel, p) || rel.Previous != h.Live:
		return nil, nil
	}
	text := id + " waits at 0 % for a person"
	if h.Rollout != nil {
		text = fmt.Sprintf("%s waits at %d %% for a person", id, h.Rollout.Weight)
	}
	r.say(Event{Step: StepLive, Text: text})
	return &Outcome{Release: rel, NoChange: true, Awaiting: text, Verified: true}, nil
}

// leaveStaged leaves the release ready at 0 %, for a person.
func (r *run) leaveStaged(ctx context.Context, rel Release, state State, changes []Change) (Outcome, error) {
	err := r.lease.update(ctx, func(h *Head) {
		h.Staged, h.Seq = rel.ID, max(h.Seq, seqOf(rel.ID))
	})
	if err != nil {
		return Outcome{}, r.unstage(ctx, state, changes, failed(StepLive, err))
	}
	text := rel.ID + " is ready at 0 % and waits for a person"
	r.say(Event{Step: StepLive, Text: text})
	return Outcome{Release: rel, Changes: changes, Awaiting: text, Verified: !r.unverified, Warnings: r.warnings}, nil
}

// Promote goes on with a release that waits for a person: one that was staged
// at 0 %, or whose rollout stands at an approval or was held. pipeline, when
// it isn't 0, must be the release's own. What is live already is no error.
//
// Errors: [ErrNotFound] when nothing waits, [*SupersededError] when another
// pipeline's release does, and those of [Deploy].
func Promote(ctx context.Context, t Target, scope Scope, pipeline int64, o Options) (Outcome, error) {
	var out Outcome
	err := locked(ctx, t, scope, o, nil, func(ctx context.Context, r *run) error {
		state, err := r.observe(ctx)
		if err != nil {
			return err
		}
		head := state.Head
		intent := Rollout{OnDeath: OnDeathRestore}
		id := head.Staged
		if open := head.Rollout; open != nil {
			if !open.Absolute {
				if state, err = r.recover(ctx, nil); err != nil {
					return err
				}
				head = state.Head
			} else {
				id, intent = open.To, *open
				if open.Step == stepHeld {
					intent.Next++ // the person has judged this step
				}
			}
		}
		if id == "" || head.Rollout == nil && head.Staged == "" {
			return r.nothingWaits(head, pipeline, &out, state)
		}
		rel, err := r.t.Release(ctx, scope, id)
		if err != nil {
			return fmt.Errorf("deployer: read release %s of %s: %w", id, scope, err)
		}
		if pipeline != 0 && rel.Pipeline != pipeline {
			return &SupersededError{Scope: scope, Pipeline: pipeline, By: rel.Pipeline, Live: head.Live}
		}
		if head.Held != "" && intent.Step != stepHeld {
			return &HeldError{Scope: scope, Live: head.Live, Why: head.Held}
		}
		r.policy = rel.Policy
		out, err = r.goTo(ctx, rel, state, intent)
		return err
	})
	return out, err
}

// nothingWaits is Promote where there is nothing to promote.
func (r *run) nothingWaits(head Head, pipeline int64, out *Outcome, state State) error {
	mine := pipeline == 0 || slices.ContainsFunc(head.History, func(w WasLive) bool { return w.Pipeline == pipeline && w.Release == head.Live })
	if state.Live != nil && mine && pipeline != 0 {
		*out = Outcome{Release: *state.Live, NoChange: true, Verified: true}
		return nil
	}
	if pipeline != 0 && head.Pipeline > pipeline {
		return &SupersededError{Scope: r.scope, Pipeline: pipeline, By: head.Pipeline, Live: head.Live}
	}
	why := ""
	if u := head.Undone; u != nil {
		why = fmt.Sprintf(" (%s was taken back: %s)", u.To, u.Why)
	}
	return fmt.Errorf("deployer: promote in %s: no release waits%s: %w", r.scope, why, ErrNotFound)
}

// goTo stages a recorded release's revisions and moves the traffic there.
func (r *run) goTo(ctx context.Context, rel Release, state State, intent Rollout) (Outcome, error) {
	specs := make([]Spec, len(rel.Units))
	for i, u := range rel.Units {
		specs[i] = u.Spec
	}
	changes := Decide(specs, state)
	for i, u := range rel.Units {
		changes[i].To = u.Revision // by the record, whatever its content would be called now
	}
	if intent.To != "" {
		// From here on a holder is needed again.
		intent.Absolute = false
		err := r.lease.update(ctx, func(h *Head) {
			open := intent
			h.Rollout = &open
		})
		if err != nil {
			return Outcome{}, fmt.Errorf("deployer: go on with %s: %w", rel.ID, err)
		}
		state.Head = r.lease.current()
	}
	if _, err := r.stage(ctx, specs, changes, state); err != nil {
		return Outcome{}, r.unstage(ctx, state, changes, err)
	}
	return r.shift(ctx, rel, state, changes, intent)
}

// validate reports what the caller got wrong about the policy.
func (p Policy) validate(services map[string]bool) error {
	var bad []error
	if !slices.Contains([]string{"", Direct, Canary, BlueGreen, Manual}, p.Strategy) {
		bad = append(bad, fmt.Errorf("deployer: strategy %q", p.Strategy))
	}
	last := 0
	for _, s := range p.Steps {
		if s.Weight <= last || s.Weight > 100 || s.Pause < 0 {
			bad = append(bad, fmt.Errorf("deployer: step of weight %d after %d, pause %s", s.Weight, last, s.Pause))
		}
		last = s.Weight
	}
	for _, v := range p.Verify {
		if !services[v.Service] || v.Method == "" || !strings.HasPrefix(v.Path, "/") || v.Status < 100 || v.Status > 599 {
			bad = append(bad, fmt.Errorf("deployer: verify %+v", v))
		}
	}
	if !slices.Contains([]string{"", "rollback", "hold"}, p.OnFailure) {
		bad = append(bad, fmt.Errorf("deployer: onFailure %q", p.OnFailure))
	}
	return errors.Join(bad...)
}
