package deployer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// floorTime is how long floors stay after traffic has moved: an autoscaler
// judges by the last minute, in which the revision did not have its load yet.
const floorTime = 2 * time.Minute

// moves are the units of a shift that go from one revision to another.
type moves struct {
	pairs   map[string]pair // by service
	changed map[string]bool // services that the shift has written
	done    map[string]bool // services that are all the release's, and proven
	keep    bool            // the replaced revisions stay reachable
}

// pair is a unit's old and new revision, both able to answer.
type pair struct {
	unit     string
	old, new string
	oldSpec  Spec
	most     int // instances of old at most seen, as if it had all the traffic
}

// moving finds the units that have something to move from.
func (r *run) moving(rel Release, state State, changes []Change) *moves {
	m := &moves{pairs: map[string]pair{}, changed: map[string]bool{}, done: map[string]bool{}, keep: rel.Policy.warm() > 0}
	if state.Live != nil && seqOf(state.Live.ID) > seqOf(rel.ID) {
		m.keep = false // a rollback leaves nothing worth returning to
	}
	for _, c := range changes {
		u, ok := rel.unit(c.Service)
		if !ok || c.Action != Update || c.From == u.Revision || u.Spec.Job != nil || state.Live == nil {
			continue
		}
		svc, _ := state.service(c.Service)
		if old, ok := svc.Revision(c.From); ok && old.Phase == Ready {
			was, _ := state.Live.unit(c.Service)
			m.pairs[c.Service] = pair{unit: c.Unit, old: c.From, new: u.Revision, oldSpec: was.Spec}
		}
	}
	return m
}

// shares are the unit's at that weight of the release.
func (m *moves) shares(c Change, u Live, svc Service, weight int) []Share {
	p, moving := m.pairs[c.Service]
	switch {
	case moving && weight < 100:
		return []Share{{Revision: u.Revision, Percent: weight}, {Revision: p.old, Percent: 100 - weight}}
	case moving && m.keep:
		return []Share{{Revision: u.Revision, Percent: 100}, {Revision: p.old, Tag: TagPrevious}}
	}
	return []Share{{Revision: u.Revision, Percent: 100}}
}

// mark notes that a unit is all the release's.
func (r *run) mark(m *moves, service string, weight int) {
	if _, moving := m.pairs[service]; moving && weight < 100 {
		return
	}
	r.mu.Lock()
	m.done[service] = true
	r.mu.Unlock()
}

// makeRoom brings the new revision to as many Ready instances as its share of
// the old one's load needs, before it gets the share. The old one keeps the
// instances it has, so that taking the share back is as safe.
func (r *run) makeRoom(ctx context.Context, m *moves, c Change, u Live, weight int) error {
	r.mu.Lock()
	p, ok := m.pairs[c.Service]
	r.mu.Unlock()
	if !ok {
		return nil
	}
	var have, ready int
	var count errgroup.Group
	count.Go(func() (err error) {
		if have, err = r.t.Instances(ctx, r.scope, c.Service, p.old); err != nil {
			return fmt.Errorf("count instances of %s: %w", p.old, err)
		}
		return nil
	})
	count.Go(func() (err error) {
		if ready, err = r.t.Instances(ctx, r.scope, c.Service, p.new); err != nil {
			return fmt.Errorf("count instances of %s: %w", p.new, err)
		}
		return nil
	})
	if err := count.Wait(); err != nil {
		return err
	}
	p.most = max(p.most, have)
	r.mu.Lock()
	m.pairs[c.Service] = p
	r.mu.Unlock()
	if have > 0 && (m.keep || weight < 100) {
		if err := r.t.SetFloor(ctx, r.lease.fence(), c.Service, p.old, p.most); err != nil {
			return fmt.Errorf("keep instances of %s: %w", p.old, err)
		}
	}
	need := (p.most*weight + 99) / 100
	if u.Spec.MaxScale > 0 {
		need = min(need, u.Spec.MaxScale)
	}
	if r.o.SkipCapacity || need == 0 || need == 1 && ready >= 1 {
		return nil
	}
	if err := r.t.SetFloor(ctx, r.lease.fence(), c.Service, p.new, need); err != nil {
		return fmt.Errorf("scale %s: %w", p.new, err)
	}
	return r.waitInstances(ctx, c, p.new, ready, need)
}

// waitInstances waits until need instances are Ready.
func (r *run) waitInstances(ctx context.Context, c Change, revision string, ready, need int) error {
	wait, cancel := context.WithTimeoutCause(ctx, r.o.ReadyTimeout, errTooSlow)
	defer cancel()
	said := -1
	for ready < need {
		if ready != said {
			said = ready
			r.say(Event{Step: StepScale, Unit: c.Unit, Revision: revision, Text: fmt.Sprintf("waiting: %d of %d instances are ready for the traffic", ready, need)})
		}
		err := sleep(wait, r.o.ProbeEvery)
		if err == nil {
			var n int
			if n, err = r.t.Instances(wait, r.scope, c.Service, revision); err == nil {
				ready = n
			} else if errors.Is(err, ErrUnavailable) {
				continue
			}
		}
		if errors.Is(err, errTooSlow) || errors.Is(context.Cause(wait), errTooSlow) {
			return &Failure{
				Code: NoRoom, Unit: c.Unit, Revision: revision,
				Cause: fmt.Sprintf("%d of the %d instances that its traffic needs became ready in %s", ready, need, r.o.ReadyTimeout),
				Next:  "look for room in the cluster and in the namespace's quota; a rollback can skip the wait with --now",
			}
		}
		if err != nil {
			return err
		}
	}
	if said >= 0 {
		r.say(Event{Step: StepScale, Unit: c.Unit, Revision: revision, Text: fmt.Sprintf("%d instances are ready for the traffic", ready)})
	}
	return nil
}

// Tidy gives back what a rollout kept for a quick rollback, once its time is
// over: instances beyond what the scale asks for, and the tag that holds the
// replaced revisions. It is a watchdog's work; deploys do it too. It takes no
// lease when nothing is due, and reports whether it did anything.
func Tidy(ctx context.Context, t Target, scope Scope, o Options) (bool, error) {
	o = o.withDefaults()
	head, err := t.Head(ctx, scope)
	if err != nil {
		return false, fmt.Errorf("deployer: read head of %s: %w", scope, err)
	}
	if !head.cold(o.Now()) {
		return false, nil
	}
	did := false
	err = leased(ctx, t, scope, o, func(ctx context.Context, r *run) error {
		did, err = r.cool(ctx)
		return err
	})
	return did, err
}

// cold reports whether what was kept warm is due to be given back.
func (h Head) cold(now time.Time) bool {
	return h.Rollout == nil && !h.Warm.IsZero() && now.After(h.Warm)
}

// warm reports whether the release's instances are kept ready.
func (h Head) warm(id string, now time.Time) bool {
	return id == h.Previous && now.Before(h.Warm)
}

// cool gives back what is due. The Head is written last, so that whoever
// finds it half done does it again.
func (r *run) cool(ctx context.Context) (bool, error) {
	if !r.lease.current().cold(r.o.Now()) {
		return false, nil
	}
	services, err := r.t.Services(ctx, r.scope)
	if err != nil {
		return false, fmt.Errorf("observe: %w", err)
	}
	var errs []error
	for _, svc := range services {
		if svc.Job {
			continue
		}
		for _, rev := range svc.Revisions {
			if rev.Floor > 0 {
				errs = append(errs, r.t.SetFloor(ctx, r.lease.fence(), svc.Name, rev.Name, 0))
			}
		}
		var shares []Share
		for _, s := range svc.Traffic {
			if s.Percent > 0 || s.Tag != TagPrevious {
				shares = append(shares, s)
			}
		}
		if len(shares) < len(svc.Traffic) {
			r.say(Event{Step: StepCleanup, Unit: svc.Unit, Text: "the release before is no longer kept warm"})
			errs = append(errs, r.t.SetTraffic(ctx, r.lease.fence(), svc.Name, shares))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return false, err
	}
	return true, r.lease.update(ctx, func(h *Head) { h.Warm = time.Time{} })
}
