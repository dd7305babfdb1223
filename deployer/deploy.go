package deployer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Deploy makes p live, or leaves what was live serving and says why.
//
// Errors, before anything is written: [ErrInvalid], [ErrPlanned],
// [ErrForeign], [*HeldError], [*SupersededError], [*LockedError], and
// [*Failed] from preflight. After that: [*Failed], with the coded causes
// inside. A deploy whose process died is finished or undone by the next one.
//
// Deploying what is live already makes no release; that the pipeline asked for
// it is noted in the Head. An older pipeline than the
// newest one that was live is refused, unless its own release was live once:
// then this is a [Rollback] to it.
func Deploy(ctx context.Context, t Target, p Plan, o Options) (Outcome, error) {
	if err := p.validate(); err != nil {
		return Outcome{}, err
	}
	var out Outcome
	err := locked(ctx, t, p.Scope, o, p.Units, func(ctx context.Context, r *run) error {
		head := r.lease.current()
		if head.Held != "" {
			return &HeldError{Scope: p.Scope, Live: head.Live, Why: head.Held}
		}
		if was, err := superseded(p, head); err != nil {
			return err
		} else if was != "" {
			r.say(Event{Step: StepLease, Text: fmt.Sprintf("pipeline %d was live as %s: returning to it", p.Pipeline, was)})
			why := fmt.Sprintf("pipeline %d was run again by %s", p.Pipeline, r.o.Holder)
			if out, err = r.rollback(ctx, was, why); err == nil {
				out.Rollback = true
			}
			return err
		}
		var err error
		out, err = r.deploy(ctx, p)
		return err
	})
	return out, err
}

// Stage prepares what Deploy does before traffic moves: p's revisions exist,
// are Ready and proven at 0 %. A later Deploy of the same plan finds them.
func Stage(ctx context.Context, t Target, p Plan, o Options) ([]Revision, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	var revs []Revision
	err := locked(ctx, t, p.Scope, o, p.Units, func(ctx context.Context, r *run) error {
		head := r.lease.current()
		if head.Held != "" {
			return &HeldError{Scope: p.Scope, Live: head.Live, Why: head.Held}
		}
		if was, err := superseded(p, head); err != nil || was != "" {
			return err
		}
		state, err := r.recover(ctx, nil)
		if err != nil {
			return err
		}
		changes := Decide(p.Units, state)
		if _, err := r.stage(ctx, p.Units, changes, state); err != nil {
			return r.unstage(ctx, state, changes, err)
		}
		revs = r.revisions()
		return nil
	})
	return revs, err
}

// Rollback makes an earlier release live again, from its record alone:
// without a build, and without a plan. An empty id means the one that the
// live release replaced. The scope is held afterwards, so that the next
// pipeline does not undo it; [Resume] ends that. It works while held.
func Rollback(ctx context.Context, t Target, scope Scope, id string, o Options) (Outcome, error) {
	var out Outcome
	err := locked(ctx, t, scope, o, nil, func(ctx context.Context, r *run) error {
		head := r.lease.current()
		if id == "" {
			id = head.Previous
			switch open := head.Rollout; {
			case open != nil && open.OnDeath == OnDeathFinish:
				id = open.To // the rollback that has begun
			case open != nil && open.From != "":
				id = open.From // what the rollout is about to replace
			}
		}
		if id == "" {
			return fmt.Errorf("deployer: roll %s back: no earlier release: %w", scope, ErrNotFound)
		}
		if !slices.ContainsFunc(head.History, func(w WasLive) bool { return w.Release == id }) {
			return fmt.Errorf("deployer: roll %s back: release %s was never live: %w", scope, id, ErrNotFound)
		}
		why := fmt.Sprintf("rolled back from %s to %s by %s", cmp.Or(head.Live, "nothing"), id, r.o.Holder)
		var err error
		out, err = r.rollback(ctx, id, why)
		out.Rollback = err == nil
		return err
	})
	return out, err
}

// Resume lets deploys go on after a rollback.
func Resume(ctx context.Context, t Target, scope Scope, o Options) error {
	return locked(ctx, t, scope, o, nil, func(ctx context.Context, r *run) error {
		return r.lease.update(ctx, func(h *Head) { h.Held = "" })
	})
}

// Stop removes everything the scope runs. Its records stay, so that a
// rollback brings it back.
func Stop(ctx context.Context, t Target, scope Scope, o Options) error {
	return locked(ctx, t, scope, o, nil, func(ctx context.Context, r *run) error { return r.stop(ctx) })
}

// stop is Stop under the lease.
func (r *run) stop(ctx context.Context) error {
	services, err := r.t.Services(ctx, r.scope)
	if err != nil {
		return fmt.Errorf("deployer: observe %s: %w", r.scope, err)
	}
	// The record says so first: what is missing afterwards was meant to be.
	err = r.lease.update(ctx, func(h *Head) {
		if h.Live != "" {
			h.Previous = h.Live
		}
		h.Warm = time.Time{}
		h.Live, h.Rollout, h.Staged, h.Tombstones = "", nil, "", nil
	})
	if err != nil {
		return err
	}
	// Timers before what they call.
	if err := r.removeTimers(ctx); err != nil {
		return fmt.Errorf("deployer: stop %s: %w", r.scope, err)
	}
	for _, svc := range services {
		r.say(Event{Step: StepCleanup, Unit: svc.Unit, Text: "remove " + svc.Name})
		if err := r.t.RemoveService(ctx, r.lease.fence(), svc.Name); err != nil {
			return fmt.Errorf("deployer: remove %s: %w", svc.Name, err)
		}
	}
	if err := r.t.EndRuns(ctx, r.lease.fence()); err != nil {
		return fmt.Errorf("deployer: end the runs of %s: %w", r.scope, err)
	}
	return nil
}

// superseded decides the order of pipelines: nothing, a refusal, or the id of
// the release that this older pipeline once had live.
func superseded(p Plan, h Head) (was string, err error) {
	newest := h.Pipeline
	if h.Rollout != nil && h.Rollout.Absolute {
		newest = max(newest, h.Rollout.Pipeline)
	}
	if p.Pipeline == 0 || p.Pipeline >= newest {
		return "", nil
	}
	for _, w := range slices.Backward(h.History) {
		if w.Pipeline == p.Pipeline {
			return w.Release, nil
		}
	}
	return "", &SupersededError{Scope: p.Scope, Pipeline: p.Pipeline, By: newest, Live: h.Live}
}

// run is one holder's work in one scope.
type run struct {
	t     Target
	scope Scope
	o     Options
	lease *lease

	created map[string]bool // services that this run made
	policy  Policy          // of the release this run brings

	// Units are staged at once: mu guards what they share.
	mu   sync.Mutex
	made map[string]Revision // by service: Ready in this run
	// nonceless are services whose own URL doesn't know nonces.
	nonceless  map[string]bool
	unverified bool
	warnings   []string
}

func newRun(t Target, scope Scope, o Options, l *lease) *run {
	return &run{t: t, scope: scope, o: o, lease: l, made: map[string]Revision{}, nonceless: map[string]bool{}, created: map[string]bool{}}
}

// follow has the target follow the scope while this run works, which is about
// to wait for things there.
func (r *run) follow(ctx context.Context) {
	if w, ok := r.t.(Watcher); ok {
		w.Watch(ctx, r.scope)
	}
}

func (r *run) say(e Event) { r.o.say(e) }

func (r *run) warn(e Event) {
	e.Warning = true
	r.mu.Lock()
	r.warnings = append(r.warnings, e.Text)
	r.mu.Unlock()
	r.o.say(e)
}

// revisions are the run's revisions, by unit.
func (r *run) revisions() []Revision {
	var revs []Revision
	for _, rev := range r.made {
		revs = append(revs, rev)
	}
	slices.SortFunc(revs, func(a, b Revision) int { return cmp.Compare(a.Unit, b.Unit) })
	return revs
}

// locked runs f under the scope's lease, after preflight of units.
func locked(ctx context.Context, t Target, scope Scope, o Options, units []Spec, f func(context.Context, *run) error) error {
	o = o.withDefaults()
	head, err := t.Head(ctx, scope)
	if err != nil {
		return fmt.Errorf("deployer: read head of %s: %w", scope, err)
	}
	if head.Held != "" && units != nil {
		return &HeldError{Scope: scope, Live: head.Live, Why: head.Held}
	}
	o.say(Event{Step: StepPreflight, Text: "check rights, images and room"})
	if err := t.Preflight(ctx, scope, units); err != nil {
		if errors.Is(err, ErrForeign) {
			return fmt.Errorf("deployer: %w", err)
		}
		return &Failed{Scope: scope, Step: StepPreflight, Serving: head.Live, Err: err}
	}
	return leased(ctx, t, scope, o, f)
}

// leased runs f under the scope's lease.
func leased(ctx context.Context, t Target, scope Scope, o Options, f func(context.Context, *run) error) error {
	l, held, err := acquire(ctx, t, scope, o)
	if err != nil {
		return err
	}
	r := newRun(t, scope, o, l)
	work, done := context.WithCancel(held)
	err = f(work, r)
	done()
	after, cancel := r.after(ctx)
	defer cancel()
	if rel := l.release(after); rel != nil && !errors.Is(rel, ErrFenced) {
		r.say(Event{Step: StepLease, Warning: true, Text: "the lease was not given back and runs out by itself: " + rel.Error()})
	}
	return err
}

// after is the context for what must be done even when ctx has ended.
func (r *run) after(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), r.o.Grace)
}

// deploy is Deploy under the lease.
func (r *run) deploy(ctx context.Context, p Plan) (Outcome, error) {
	state, err := r.recover(ctx, &p)
	if err != nil {
		return Outcome{}, err
	}
	if state.Head.Held != "" { // a rollback whose run had died is finished now
		return Outcome{}, &HeldError{Scope: p.Scope, Live: state.Head.Live, Why: state.Head.Held}
	}
	r.policy = p.Policy
	if waits, err := r.waiting(ctx, p, state.Head); err != nil {
		return Outcome{}, err
	} else if waits != nil {
		return *waits, nil
	}
	changes := Decide(p.Units, state)
	timers := DecideTimers(p.Timers, targets(changes), state)
	open := state.Head.Rollout
	if open == nil && state.Live != nil && sameContent(*state.Live, p) && !differ(changes, timers) {
		r.say(Event{Step: StepLive, Text: "nothing to change, " + state.Live.ID + " is live"})
		if !same(*state.Live, p) {
			// A release for every pipeline that changes nothing would push the
			// one that a rollback means out of reach. The pipeline is noted as
			// one under which this release was live.
			if err := r.confirm(ctx, *state.Live, p); err != nil {
				return Outcome{}, fmt.Errorf("deployer: note pipeline %d at %s: %w", p.Pipeline, state.Live.ID, err)
			}
		}
		r.cleanup(ctx, *state.Live, nil)
		return Outcome{Release: *state.Live, Changes: changes, Timers: timers, NoChange: true, Verified: true, Warnings: r.warnings}, nil
	}
	units, err := r.stage(ctx, p.Units, changes, state)
	if err != nil {
		return Outcome{}, r.unstage(ctx, state, changes, err)
	}
	for i := range units {
		units[i].Inputs = p.Inputs[units[i].Spec.Name]
	}
	rel := Release{
		Scope: p.Scope, Created: r.o.Now().UTC(), Commit: p.Commit, Pipeline: p.Pipeline, Bundle: p.Bundle,
		CreatedBy: p.CreatedBy, Units: units, Timers: p.Timers, Policy: p.Policy, Previous: state.Head.Live, Services: p.Services,
	}
	intent := Rollout{OnDeath: OnDeathRestore}
	if open != nil {
		intent = *open
		// The same plan died after it had written record and intent.
		if rel, err = r.t.Release(ctx, r.scope, open.To); err != nil {
			return Outcome{}, r.unstage(ctx, state, changes, failed(StepRecover, err))
		}
	} else if rel, err = r.record(ctx, rel); err != nil {
		return Outcome{}, r.unstage(ctx, state, changes, failed(StepRecord, err))
	}
	if p.Policy.Strategy == Manual && open == nil {
		return r.leaveStaged(ctx, rel, state, changes)
	}
	return r.shift(ctx, rel, state, changes, intent)
}

// confirm notes that the live release is also what a newer pipeline asks for.
func (r *run) confirm(ctx context.Context, live Release, p Plan) error {
	at := r.o.Now().UTC()
	return r.lease.update(ctx, func(h *Head) {
		h.Pipeline, h.Services = max(h.Pipeline, p.Pipeline), p.Services
		h.remember(WasLive{Release: live.ID, Pipeline: p.Pipeline, At: at})
	})
}

// rollback makes the recorded release live again, under the lease, and holds
// it for that reason.
func (r *run) rollback(ctx context.Context, id, why string) (Outcome, error) {
	state, err := r.observe(ctx)
	if err != nil {
		return Outcome{}, err
	}
	// One to the same release that died is gone on with, any other is ended.
	if open := state.Head.Rollout; open != nil && (open.OnDeath != OnDeathFinish || open.To != id) {
		if state, err = r.recover(ctx, nil); err != nil {
			return Outcome{}, err
		}
	}
	return r.bringBack(ctx, state, id, why)
}

// bringBack is rollback from a known state, where an intent may be open
// towards the same release.
func (r *run) bringBack(ctx context.Context, state State, id, why string) (Outcome, error) {
	rel, err := r.t.Release(ctx, r.scope, id)
	if err != nil {
		return Outcome{}, fmt.Errorf("deployer: read release %s of %s: %w", id, r.scope, err)
	}
	specs := make([]Spec, len(rel.Units))
	for i, u := range rel.Units {
		specs[i] = u.Spec
	}
	changes := Decide(specs, state)
	for i, u := range rel.Units {
		changes[i].To = u.Revision // by the record, whatever its content would be called now
	}
	timers := DecideTimers(rel.Timers, targets(changes), state)
	if state.Head.Live == id && state.Head.Rollout == nil && !differ(changes, timers) {
		if err := r.lease.update(ctx, func(h *Head) { h.Held = why }); err != nil {
			return Outcome{}, err
		}
		r.cleanup(ctx, rel, nil) // an earlier run may have died on its way elsewhere
		return Outcome{Release: rel, Changes: changes, Timers: timers, NoChange: true, Verified: true, Warnings: r.warnings}, nil
	}
	if id != state.Head.Live && !state.Head.warm(id, r.o.Now()) {
		text := id + " is not kept warm: its pods are started before traffic moves"
		if r.o.SkipCapacity {
			text = id + " is not kept warm: its pods start while traffic moves"
		}
		r.say(Event{Step: StepStage, Text: text})
	}
	if _, err := r.stage(ctx, specs, changes, state); err != nil {
		return Outcome{}, r.unstage(ctx, state, changes, err)
	}
	return r.shift(ctx, rel, state, changes, Rollout{OnDeath: OnDeathFinish, Why: why})
}

// same reports whether the live release is what the plan asks for, provenance
// included.
func same(live Release, p Plan) bool {
	if live.Commit != p.Commit || live.Pipeline != p.Pipeline || live.Bundle != p.Bundle {
		return false
	}
	return sameContent(live, p)
}

// sameContent reports whether the release has the plan's units and timers.
func sameContent(rel Release, p Plan) bool {
	if len(rel.Units) != len(p.Units) || !slices.Equal(rel.Timers, p.Timers) {
		return false
	}
	for _, u := range p.Units {
		l, ok := rel.unit(u.Name)
		if !ok || l.Spec.Hash() != u.Hash() {
			return false
		}
	}
	return true
}

// differ reports whether anything is to be done.
func differ(changes []Change, timers []TimerChange) bool {
	return timersDiffer(timers) || slices.ContainsFunc(changes, func(c Change) bool { return c.Action != Unchanged })
}

// targets are the revisions that the changes lead to, by service.
func targets(changes []Change) map[string]string {
	out := make(map[string]string, len(changes))
	for _, c := range changes {
		if c.Action != Remove {
			out[c.Service] = c.To
		}
	}
	return out
}

// failed marks err with the step it came from.
func failed(s Step, err error) *Failed { return &Failed{Step: s, Err: err} }

// record writes the release under the next free id.
func (r *run) record(ctx context.Context, rel Release) (Release, error) {
	for n := r.lease.current().Seq + 1; ; n++ {
		rel.ID = fmt.Sprintf("r%d", n)
		err := r.t.CreateRelease(ctx, r.lease.fence(), rel)
		if err == nil {
			r.say(Event{Step: StepRecord, Text: "release " + rel.ID})
			return rel, nil
		}
		// An id is taken when a run died before it wrote its intent, or when
		// the answer to our own write was lost. Neither is worth reusing.
		if !errors.Is(err, ErrExists) {
			return Release{}, fmt.Errorf("write release %s: %w", rel.ID, err)
		}
	}
}
