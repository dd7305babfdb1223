package deployer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// recover finishes or undoes what an earlier run left open, and returns the
// state to go on from. An open intent towards just what p asks for stays
// open: this run finishes it. Any other is undone.
func (r *run) recover(ctx context.Context, p *Plan) (State, error) {
	state, err := r.observe(ctx)
	if err != nil {
		return State{}, err
	}
	open := state.Head.Rollout
	if open == nil {
		return state, nil
	}
	if p != nil && open.OnDeath == OnDeathRestore {
		to, err := r.t.Release(ctx, r.scope, open.To)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return State{}, fmt.Errorf("deployer: read release %s of %s: %w", open.To, r.scope, err)
		}
		if err == nil && to.Previous == open.From && same(to, *p) && (open.Absolute || stillThere(to, Decide(p.Units, state))) {
			if open.Absolute {
				return state, nil
			}
			r.say(Event{Step: StepRecover, Text: fmt.Sprintf("an earlier run ended while %s went live (%s): finishing it", open.To, open.Step)})
			return state, nil
		}
	}
	if open.OnDeath == OnDeathFinish {
		r.say(Event{Step: StepRecover, Text: fmt.Sprintf("an earlier run ended on its way back to %s (%s): finishing it first", open.To, open.Step)})
		_, err := r.bringBack(ctx, state, open.To, open.Why)
		var f *Failed
		if err != nil && (!errors.As(err, &f) || f.Restore != nil) {
			return State{}, err
		}
		// What can't be finished was undone.
		return r.observe(ctx)
	}
	why, text := "its run ended before it had finished", fmt.Sprintf("an earlier run ended while %s went live (%s): undoing it first", open.To, open.Step)
	if open.Absolute {
		why = "another run took over while it waited for a person"
		if open.Expired(r.o.Now()) {
			why = "nobody promoted it in time"
		}
		text = fmt.Sprintf("%s waits at %d %% (%s): taking it back first", open.To, open.Weight, open.Step)
	}
	r.say(Event{Step: StepRecover, Text: text})
	if err := r.restore(ctx, why); err != nil {
		return State{}, &Failed{Scope: r.scope, Step: StepRecover, Serving: open.From, Restore: err, Err: err}
	}
	return r.observe(ctx)
}

// observe reads the scope's state, with the Head as this run's lease has it.
func (r *run) observe(ctx context.Context) (State, error) {
	state, err := Observe(ctx, r.t, r.scope)
	if err != nil {
		return State{}, err
	}
	state.Head = r.lease.current()
	return state, nil
}

// stillThere reports whether going on would use the very revisions that the
// record names: one of them may have failed since.
func stillThere(to Release, changes []Change) bool {
	for _, c := range changes {
		if c.Action == Remove {
			continue
		}
		if u, ok := to.unit(c.Service); !ok || u.Revision != c.To {
			return false
		}
	}
	return true
}

// stage brings the changed units' revisions to Ready at 0 % and proves each
// at its own URL. It returns the units as a release would record them. All
// failing units are reported, not only the first.
func (r *run) stage(ctx context.Context, units []Spec, changes []Change, state State) ([]Live, error) {
	if differ(changes, nil) {
		r.follow(ctx)
	}
	var group errgroup.Group
	group.SetLimit(r.o.Parallel)
	// Once one has failed, the others get a moment to report too.
	waiting, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	var errs []error
	var step Step // where the first one failed
	var settle *time.Timer
	for i, u := range units {
		c := changes[i]
		if c.Action == Unchanged {
			continue
		}
		if _, there := state.service(u.Name); !there {
			r.created[u.Name] = true
		}
		group.Go(func() error {
			rev, at, err := r.stageOne(waiting, u, c, state)
			r.mu.Lock()
			defer r.mu.Unlock()
			if err == nil {
				r.made[u.Name] = rev
				return nil
			}
			if len(errs) > 0 && waiting.Err() != nil && len(Failures(err)) == 0 {
				return nil // only ended because all were to end
			}
			if len(errs) == 0 {
				step = at
				settle = time.AfterFunc(r.o.Settle, func() { giveUp(errGivenUp) })
			}
			errs = append(errs, err)
			return nil
		})
	}
	_ = group.Wait() // the functions above keep their errors themselves
	if settle != nil {
		settle.Stop()
	}
	if len(errs) > 0 {
		return nil, failed(step, errors.Join(errs...))
	}
	now := state
	if !addressed(units, changes, state) {
		services, err := r.t.Services(ctx, r.scope)
		if err != nil {
			return nil, failed(StepVerify, fmt.Errorf("observe: %w", err))
		}
		now = State{Services: services}
	}
	live := make([]Live, len(units))
	for i, u := range units {
		svc, _ := now.service(u.Name)
		live[i] = Live{Unit: u.Unit, Revision: changes[i].To, Image: ref(u.Image), URL: svc.URL, Spec: u}
		if changes[i].Action == Unchanged {
			// What runs is what was recorded, the image's key included.
			was, _ := state.Live.unit(u.Name)
			live[i].Spec = was.Spec
		}
	}
	return live, nil
}

// addressed reports whether state says where all the units answer: none is
// new, and none has been hidden since.
func addressed(units []Spec, changes []Change, state State) bool {
	for i, u := range units {
		svc, _ := state.service(u.Name)
		if changes[i].Action != Unchanged && u.Job == nil && (svc.URL == "" || u.Internal) {
			return false
		}
	}
	return true
}

var errGivenUp = errors.New("given up because another unit failed")

func (r *run) stageOne(ctx context.Context, u Spec, c Change, state State) (Revision, Step, error) {
	if c.To == "" {
		return Revision{}, StepStage, &Failure{
			Code: Exhausted, Unit: u.Unit,
			Cause: fmt.Sprintf("this content failed %d times", maxAttempt),
			Next:  "change the code or the settings, or remove the failed revisions",
		}
	}
	svc, _ := state.service(u.Name)
	_, reused := svc.Revision(c.To)
	r.say(Event{Step: StepStage, Unit: u.Unit, Revision: c.To, Text: string(c.Action) + ": " + c.Why})
	if err := r.t.Ensure(ctx, r.lease.fence(), u, c.To); err != nil {
		return Revision{}, StepStage, fmt.Errorf("create revision %s: %w", c.To, err)
	}
	limit := r.o.ReadyTimeout
	wait, cancel := context.WithTimeoutCause(ctx, limit, errTooSlow)
	defer cancel()
	var mu sync.Mutex
	why := ""
	start := time.Now()
	rev, err := r.t.WaitReady(wait, r.scope, u.Name, c.To, func(s string) {
		mu.Lock()
		why = s
		mu.Unlock()
		r.say(Event{Step: StepReady, Unit: u.Unit, Revision: c.To, Text: "waiting: " + s})
	})
	if err != nil {
		if cause := context.Cause(wait); cause != nil && len(Failures(err)) == 0 {
			err = cause
		}
		if errors.Is(err, errTooSlow) {
			mu.Lock()
			defer mu.Unlock()
			f := &Failure{Code: TooSlow, Unit: u.Unit, Revision: c.To, Cause: fmt.Sprintf("not Ready after %s", limit)}
			if why != "" {
				f.Cause += ", still " + why
			}
			f.Logs, _ = r.t.Logs(ctx, r.scope, u.Name, c.To, LogLines)
			err = f
		}
		return Revision{}, StepReady, err
	}
	rev.Unit, rev.Service, rev.Image, rev.Replaces, rev.Reused = u.Unit, u.Name, u.Image, c.From, reused
	r.say(Event{Step: StepReady, Unit: u.Unit, Revision: c.To, Text: "ready after " + time.Since(start).Round(10*time.Millisecond).String()})
	if u.Job != nil {
		return rev, "", nil // it has no address to be asked at
	}
	if _, err := r.prove(ctx, u, rev.Name, true); err != nil {
		return Revision{}, StepVerify, err
	}
	if err := r.verify(ctx, u, rev.Name); err != nil {
		return Revision{}, StepVerify, err
	}
	return rev, "", nil
}

var errTooSlow = errors.New("not Ready in time")

// LogLines is how many of a revision's last lines a [Failure] carries.
const LogLines = 20

// prove asks until the revision has answered its nonce [Options.Checks] times
// in a row: at its own URL, or at the route. proof says how it did; empty: it
// could not be asked, or not so that it proves anything, which was told.
func (r *run) prove(ctx context.Context, u Spec, revision string, own bool) (proof string, err error) {
	at, where, n := revision, "its own URL", 1
	if !own {
		at, where, n = "", "the route", r.o.Checks
	}
	deadline := time.Now().Add(r.o.RouteTimeout)
	said, right := "", 0
	for {
		nonce := r.o.Nonce()
		a, err := r.t.Probe(ctx, r.scope, u.Name, at, nonce)
		ok, why := r.judge(a, err, u, revision, nonce, own)
		switch {
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case errors.Is(err, ErrUnreachable):
			r.unproven(u, revision, own, where+" can't be asked: "+err.Error())
			return "", nil
		case errors.Is(err, ErrFenced), errors.Is(err, ErrForeign):
			return "", err
		case ok:
			right++
		default:
			right, said = 0, why
		}
		if right >= n {
			if a.Nonce == "" {
				r.unproven(u, revision, own, where+" answers, but not to nonces")
				return "", nil
			}
			proof = where + " answers with " + revision
			if a.Via != "" {
				proof += ", asked through " + a.Via
			}
			return proof, nil
		}
		if !ok && time.Now().After(deadline) {
			f := &Failure{Code: WrongAnswer, Unit: u.Unit, Revision: revision, Cause: fmt.Sprintf("%s did not prove itself in %s: %s", where, r.o.RouteTimeout, said)}
			f.Logs, _ = r.t.Logs(ctx, r.scope, u.Name, revision, LogLines)
			return "", f
		}
		if !ok {
			if err := sleep(ctx, r.o.ProbeEvery); err != nil {
				return "", err
			}
		}
	}
}

// judge says whether a is the answer we want, and what is wrong with it.
func (r *run) judge(a Answer, err error, u Spec, revision, nonce string, own bool) (ok bool, why string) {
	proofless := own || r.isNonceless(u.Name)
	switch {
	case err != nil:
		return false, err.Error()
	case a.Nonce == "" && proofless && a.Status != 0 && a.Status < 500:
		return true, ""
	case a.Nonce == "":
		return false, "status " + strconv.Itoa(a.Status) + ", no answer to the nonce"
	case a.Nonce != nonce:
		return false, "the answer to another nonce; is a cache in between?"
	case a.Revision != revision:
		return false, "revision " + a.Revision + " answered"
	case a.Image != "" && digestPart(a.Image) != digestPart(ref(u.Image)):
		return false, "image " + a.Image + " answered"
	}
	return true, ""
}

func digestPart(image string) string { return image[strings.LastIndex(image, "@")+1:] }

func (r *run) isNonceless(service string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nonceless[service]
}

func (r *run) unproven(u Spec, revision string, own bool, why string) {
	r.mu.Lock()
	if own {
		r.nonceless[u.Name] = true
	}
	r.unverified = true
	r.mu.Unlock()
	r.warn(Event{Step: StepVerify, Unit: u.Unit, Revision: revision, Text: fmt.Sprintf("unit %s is unverified: %s", u.Unit, why)})
}

// unstage takes back what staging did: the live revisions' templates and
// traffic stand as before, and a service that never served is gone.
func (r *run) unstage(ctx context.Context, state State, changes []Change, cause error) error {
	f := &Failed{Scope: r.scope, Step: StepStage, Serving: state.Head.Live, Err: cause}
	var inner *Failed
	if errors.As(cause, &inner) {
		f.Step, f.Err = inner.Step, inner.Err
	}
	if lost := fenced(ctx, f.Err); lost != nil {
		f.Err, f.Restore = lost, lost // another run's business now
		return f
	}
	r.say(Event{Step: StepRestore, Text: "taking back: " + f.Err.Error()})
	ctx, cancel := r.after(ctx)
	defer cancel()
	if state.Head.Rollout != nil {
		// This run was finishing another's intent: traffic may have moved.
		f.Moved = true
		f.Serving = state.Head.Rollout.From
		f.Restore = r.restore(ctx, f.Err.Error())
		return f
	}
	services, err := r.t.Services(ctx, r.scope)
	if err != nil {
		f.Restore = fmt.Errorf("observe: %w", err)
		return f
	}
	now := State{Services: services}
	var errs []error
	for _, c := range changes {
		svc, there := now.service(c.Service)
		if c.Action == Unchanged || c.Action == Remove || !there {
			continue
		}
		var live Live
		if state.Live != nil {
			live, _ = state.Live.unit(c.Service)
		}
		switch {
		case live.Revision == "" && (r.created[c.Service] || !svc.serving()):
			errs = append(errs, r.t.RemoveService(ctx, r.lease.fence(), c.Service))
		case live.Revision != "":
			errs = append(errs, r.putBack(ctx, live, svc))
		}
	}
	f.Restore = errors.Join(errs...)
	return f
}

// fenced is the error that says this run has lost its lease; nil: it has not.
func fenced(ctx context.Context, err error) error {
	if errors.Is(err, ErrFenced) {
		return err
	}
	if cause := context.Cause(ctx); errors.Is(cause, ErrFenced) {
		return cause
	}
	return nil
}

// putBack makes the unit serve and describe its recorded revision, and keeps
// at most the newest failed one beside it, for its log.
func (r *run) putBack(ctx context.Context, live Live, svc Service) error {
	now, ok := svc.Revision(live.Revision)
	if !ok || now.Phase == Broken {
		if !ok {
			if err := r.t.Ensure(ctx, r.lease.fence(), live.Spec, live.Revision); err != nil {
				return fmt.Errorf("bring %s back: %w", live.Revision, err)
			}
		}
		if _, err := r.t.WaitReady(ctx, r.scope, svc.Name, live.Revision, nil); err != nil {
			return fmt.Errorf("bring %s back: %w", live.Revision, err)
		}
	}
	if live.Spec.Job != nil {
		return r.dropBroken(ctx, live, svc)
	}
	shares := []Share{{Revision: live.Revision, Percent: 100}}
	for _, s := range svc.Traffic {
		if s.Tag == TagPrevious && s.Revision != live.Revision {
			shares = append(shares, Share{Revision: s.Revision, Tag: s.Tag})
		}
	}
	if !slices.Equal(shares, svc.Traffic) {
		if err := r.t.SetTraffic(ctx, r.lease.fence(), svc.Name, shares); err != nil {
			return fmt.Errorf("put traffic of %s back: %w", svc.Name, err)
		}
	}
	if svc.Template != live.Revision {
		if err := r.t.RestoreTemplate(ctx, r.lease.fence(), live.Spec, live.Revision); err != nil {
			return fmt.Errorf("restore template of %s: %w", svc.Name, err)
		}
	}
	return r.dropBroken(ctx, live, svc)
}

// dropBroken removes all failed revisions but the newest one.
func (r *run) dropBroken(ctx context.Context, live Live, svc Service) error {
	var broken []Observed
	for _, rev := range svc.Revisions {
		if rev.Phase == Broken && rev.Name != live.Revision {
			broken = append(broken, rev)
		}
	}
	slices.SortFunc(broken, func(a, b Observed) int { return b.Created.Compare(a.Created) })
	for _, rev := range broken[min(1, len(broken)):] {
		if err := r.t.RemoveRevision(ctx, r.lease.fence(), svc.Name, rev.Name); err != nil {
			return fmt.Errorf("remove %s: %w", rev.Name, err)
		}
	}
	return nil
}

// restore undoes the open intent: every unit of the release it came from
// serves as recorded, what that release did not have is removed, and the
// intent is closed. The Head says why.
func (r *run) restore(ctx context.Context, why string) error {
	open, at := r.lease.current().Rollout, r.o.Now().UTC()
	if open == nil {
		return nil
	}
	var from Release
	if open.From != "" {
		var err error
		if from, err = r.t.Release(ctx, r.scope, open.From); err != nil {
			return fmt.Errorf("read release %s: %w", open.From, err)
		}
	}
	services, err := r.t.Services(ctx, r.scope)
	if err != nil {
		return fmt.Errorf("observe: %w", err)
	}
	now := State{Services: services}
	var errs []error
	for _, u := range from.Units {
		svc, _ := now.service(u.Spec.Name)
		errs = append(errs, r.putBack(ctx, u, svc))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := r.switchTimers(ctx, from); err != nil {
		return err
	}
	for _, svc := range services {
		if _, ok := from.unit(svc.Name); !ok {
			if err := r.t.RemoveService(ctx, r.lease.fence(), svc.Name); err != nil {
				return fmt.Errorf("remove %s: %w", svc.Name, err)
			}
		}
	}
	if err := r.lease.update(ctx, func(h *Head) {
		h.Rollout = nil
		if warm := at.Add(floorTime); h.Warm.Before(warm) {
			h.Warm = warm
		}
		h.Undone = &Undone{To: open.To, Step: open.Step, Weight: open.Weight, Why: why, By: r.o.Holder, At: at}
	}); err != nil {
		return err
	}
	r.say(Event{Step: StepRestore, Text: "traffic is as before"})
	return nil
}
