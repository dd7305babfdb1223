package deployer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// shift moves traffic to the recorded release: intent, then in steps room and
// traffic and a look at what became of it, check at the route, live, cleanup.
// intent says where to begin, and what becomes of the shift when this run
// dies.
func (r *run) shift(ctx context.Context, rel Release, state State, changes []Change, intent Rollout) (Outcome, error) {
	intent.To, intent.From, intent.Step, intent.Absolute = rel.ID, state.Head.Live, string(StepTraffic), false
	if intent.OnDeath == OnDeathRestore {
		intent.Strategy, intent.Pipeline = rel.Policy.Strategy, rel.Pipeline
	}
	out := Outcome{Release: rel, Changes: changes}
	r.follow(ctx)
	steps := intent.steps(rel.Policy)
	m := r.moving(rel, state, changes)
	if len(m.pairs) == 0 {
		steps = steps[len(steps)-1:] // there is nothing to share with
	}
	for n := min(intent.Next, len(steps)-1); n < len(steps); n++ {
		step := steps[n]
		err := r.lease.update(ctx, func(h *Head) {
			open := intent
			open.Next, open.Weight = n, step.Weight
			h.Rollout = &open
		})
		if err != nil {
			return Outcome{}, r.undo(ctx, state, changes, failed(StepIntent, err))
		}
		if f := r.step(ctx, rel, state, changes, m, step); f != nil {
			return Outcome{}, r.failStep(ctx, rel, state, changes, step, f)
		}
		if step.Approval {
			if out.Awaiting, err = r.await(ctx, rel, n+1, step.Weight); err != nil {
				return Outcome{}, r.undo(ctx, state, changes, failed(StepIntent, err))
			}
			out.Verified, out.Warnings = !r.unverified, r.warnings
			return out, nil
		}
	}
	out.Timers = DecideTimers(rel.Timers, revisionsOf(rel), state)
	if err := r.switchTimers(ctx, rel); err != nil {
		return Outcome{}, r.undo(ctx, state, changes, failed(StepTimers, err))
	}
	if err := r.golive(ctx, rel, intent); err != nil && !r.isLive(ctx, rel) {
		return Outcome{}, r.undo(ctx, state, changes, failed(StepLive, err))
	}
	r.say(Event{Step: StepLive, Text: rel.ID + " is live"})
	r.cleanup(ctx, rel, m.changed)
	out.Verified, out.Warnings = !r.unverified, r.warnings
	return out, nil
}

// step gives the release step.Weight percent of the traffic, and sees what
// becomes of it.
func (r *run) step(ctx context.Context, rel Release, state State, changes []Change, m *moves, step Weight) *Failed {
	// New units first: a function that moves into one is proven there before
	// the unit that it leaves changes.
	for _, created := range []bool{true, false} {
		wave := slices.DeleteFunc(slices.Clone(changes), func(c Change) bool {
			_, has := rel.unit(c.Service)
			return !has || c.Action == Unchanged || m.done[c.Service] || (c.Action == Create) != created
		})
		if f := r.switchOver(ctx, rel, state, wave, m, step.Weight); f != nil {
			return f
		}
	}
	if step.Weight < 100 && len(m.pairs) > 0 {
		return r.watch(ctx, rel, m, step)
	}
	return nil
}

// switchOver moves the traffic of the wave's units, then asks at each route
// that is all the release's who answers.
func (r *run) switchOver(ctx context.Context, rel Release, state State, wave []Change, m *moves, weight int) *Failed {
	each := func(at Step, do func(Change, Live) error) *Failed {
		var group errgroup.Group
		group.SetLimit(r.o.Parallel)
		for _, c := range wave {
			u, _ := rel.unit(c.Service)
			m.changed[c.Service] = true
			if u.Spec.Job != nil {
				continue // timers and runs name the revision
			}
			group.Go(func() error { return do(c, u) })
		}
		if err := group.Wait(); err != nil {
			return failed(at, err)
		}
		return nil
	}
	if f := each(StepScale, func(c Change, u Live) error { return r.makeRoom(ctx, m, c, u, weight) }); f != nil {
		return f
	}
	f := each(StepTraffic, func(c Change, u Live) error {
		svc, _ := state.service(c.Service)
		shares := m.shares(c, u, svc, weight)
		r.say(Event{Step: StepTraffic, Unit: u.Unit, Revision: u.Revision, Text: fmt.Sprintf("%d %% to %s", shares[0].Percent, u.Revision)})
		if err := r.t.SetTraffic(ctx, r.lease.fence(), c.Service, shares); err != nil {
			return fmt.Errorf("move traffic of %s: %w", c.Service, err)
		}
		return nil
	})
	if f != nil {
		return f
	}
	return each(StepCheck, func(c Change, u Live) error {
		if _, pair := m.pairs[c.Service]; pair && weight < 100 {
			return nil // two answer
		}
		proof, err := r.prove(ctx, u.Spec, u.Revision, false)
		if err != nil {
			return err
		}
		r.mark(m, c.Service, weight)
		if proof != "" {
			r.say(Event{Step: StepCheck, Unit: u.Unit, Revision: u.Revision, Text: proof})
		}
		return nil
	})
}

// golive closes the intent and moves the pointer, in one write.
func (r *run) golive(ctx context.Context, rel Release, intent Rollout) error {
	at := r.o.Now().UTC()
	return r.lease.update(ctx, func(h *Head) {
		h.Live, h.Previous, h.Rollout = rel.ID, rel.Previous, nil
		if intent.OnDeath == OnDeathRestore {
			h.Staged = "" // a rollback leaves what waits
		}
		h.Services = rel.Services
		h.Warm = at.Add(max(rel.Policy.warm(), floorTime))
		h.Pipeline = max(h.Pipeline, rel.Pipeline)
		h.Seq = max(h.Seq, seqOf(rel.ID))
		h.remember(WasLive{Release: rel.ID, Pipeline: rel.Pipeline, At: at})
		h.Held, h.Undone, h.Tombstones = intent.Why, nil, nil
	})
}

// remember adds a line to the history. A write whose answer was lost is
// applied again to what it left, so the same line twice is one.
func (h *Head) remember(w WasLive) {
	n := len(h.History)
	if n > 0 && h.History[n-1].Release == w.Release && h.History[n-1].Pipeline == w.Pipeline && h.History[n-1].At.Equal(w.At) {
		return
	}
	h.History = append(slices.Clone(h.History), w)
	h.History = h.History[max(0, len(h.History)-HistoryLimit):]
}

// isLive looks whether the write that failed had its effect after all.
func (r *run) isLive(ctx context.Context, rel Release) bool {
	ctx, cancel := r.after(ctx)
	defer cancel()
	h, err := r.t.Head(ctx, r.scope)
	return err == nil && h.Epoch == r.lease.fence().Epoch && h.Live == rel.ID && h.Rollout == nil
}

// seqOf is the number in a release id; 0 for what isn't one.
func seqOf(id string) int64 {
	n, err := strconv.ParseInt(strings.TrimPrefix(id, "r"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// undo is what follows a failure after the intent was, or may have been,
// written. Which of the two, the record says.
func (r *run) undo(ctx context.Context, state State, changes []Change, cause *Failed) error {
	f := &Failed{Scope: r.scope, Step: cause.Step, Serving: state.Head.Live, Err: cause.Err}
	if lost := fenced(ctx, cause.Err); lost != nil {
		f.Err, f.Restore = lost, lost // another run's business now
		return f
	}
	r.say(Event{Step: StepRestore, Text: "taking back: " + cause.Err.Error()})
	after, cancel := r.after(ctx)
	defer cancel()
	if err := r.lease.update(after, func(*Head) {}); err != nil {
		f.Restore = err
		return f
	}
	if r.lease.current().Rollout == nil {
		return r.unstage(ctx, state, changes, cause)
	}
	f.Moved = cause.Step != StepIntent && cause.Step != StepScale || r.lease.current().Rollout.Next > 0
	f.Restore = r.restore(after, cause.Err.Error())
	return f
}

// cleanup removes what no kept release needs. The release is live already, so
// what goes wrong here is a warning, and the next run's work.
func (r *run) cleanup(ctx context.Context, rel Release, changed map[string]bool) {
	if err := r.tidy(ctx, rel, changed); err != nil {
		r.warn(Event{Step: StepCleanup, Text: "clean up: " + err.Error()})
	}
}

func (r *run) tidy(ctx context.Context, rel Release, changed map[string]bool) error {
	var kept map[string]Release
	var services []Service
	var ids []string
	var look errgroup.Group
	look.Go(func() (err error) {
		kept, err = r.kept(ctx, rel)
		return err
	})
	look.Go(func() (err error) {
		if services, err = r.t.Services(ctx, r.scope); err != nil {
			return fmt.Errorf("observe: %w", err)
		}
		return nil
	})
	look.Go(func() (err error) {
		ids, err = r.t.Releases(ctx, r.scope)
		return err
	})
	if err := look.Wait(); err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, k := range kept {
		for _, u := range k.Units {
			needed[u.Revision] = true
		}
	}
	var mu sync.Mutex
	var errs []error
	var group errgroup.Group
	group.SetLimit(r.o.Parallel)
	each := func(do func() error) {
		group.Go(func() error {
			err := do()
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			return nil
		})
	}
	for _, svc := range services {
		u, ok := rel.unit(svc.Name)
		if !ok {
			r.say(Event{Step: StepCleanup, Unit: svc.Unit, Text: "remove " + svc.Name})
			each(func() error { return r.t.RemoveService(ctx, r.lease.fence(), svc.Name) })
			continue
		}
		each(func() error { return r.tidyService(ctx, svc, u, needed) })
	}
	for _, id := range ids {
		if _, ok := kept[id]; !ok {
			each(func() error { return r.t.RemoveRelease(ctx, r.lease.fence(), id) })
		}
	}
	_ = group.Wait() // the functions keep their errors themselves
	if _, err := r.cool(ctx); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// tidyService drops shares and revisions that nothing needs. An untouched
// service costs no write.
func (r *run) tidyService(ctx context.Context, svc Service, live Live, needed map[string]bool) error {
	var shares []Share
	for _, s := range svc.Traffic {
		if s.Percent > 0 || s.Tag == TagPrevious && needed[s.Revision] {
			shares = append(shares, s)
		}
	}
	if live.Spec.Job == nil && !slices.Equal(shares, svc.Traffic) {
		if err := r.t.SetTraffic(ctx, r.lease.fence(), svc.Name, shares); err != nil {
			return fmt.Errorf("drop tags of %s: %w", svc.Name, err)
		}
	}
	if live.Spec.Job == nil && svc.Template != live.Revision {
		if err := r.t.RestoreTemplate(ctx, r.lease.fence(), live.Spec, live.Revision); err != nil {
			return fmt.Errorf("restore template of %s: %w", svc.Name, err)
		}
	}
	for _, rev := range svc.Revisions {
		if !needed[rev.Name] {
			if err := r.t.RemoveRevision(ctx, r.lease.fence(), svc.Name, rev.Name); err != nil {
				return fmt.Errorf("remove %s: %w", rev.Name, err)
			}
		}
	}
	return nil
}

// kept are the releases that can be rolled back to, rel among them.
func (r *run) kept(ctx context.Context, rel Release) (map[string]Release, error) {
	kept := map[string]Release{rel.ID: rel}
	head := r.lease.current()
	ids := []string{head.Staged, rel.Previous}
	for _, w := range slices.Backward(head.History) {
		if !slices.Contains(ids, w.Release) {
			ids = append(ids, w.Release)
		}
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == "" || id == rel.ID })
	read := func(id string) (*Release, error) {
		old, err := r.t.Release(ctx, r.scope, id)
		if errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read release %s: %w", id, err)
		}
		return &old, nil
	}
	// So many are kept if none is gone: they are read at once.
	newest := make([]*Release, min(r.o.Keep, len(ids)))
	var group errgroup.Group
	for i := range newest {
		group.Go(func() (err error) { newest[i], err = read(ids[i]); return err })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, id := range ids {
		if _, ok := kept[id]; ok || len(kept) > r.o.Keep && id != rel.Previous {
			continue
		}
		var old *Release
		if i < len(newest) {
			old = newest[i]
		} else {
			var err error
			if old, err = read(id); err != nil {
				return nil, err
			}
		}
		if old != nil {
			kept[id] = *old
		}
	}
	return kept, nil
}
