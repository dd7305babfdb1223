package deployer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Lister is a target that knows which scopes it keeps records of.
type Lister interface {
	Target
	// Scopes lists every scope that has a record, in any order.
	Scopes(ctx context.Context) ([]Recorded, error)
}

// Recorded is a scope and its record.
type Recorded struct {
	Scope Scope
	Head  Head
}

// SweepOptions are a sweep's times. The zero value works.
type SweepOptions struct {
	Options
	// Leftover is how long a revision or record that no release needs stays
	// after it was made, for its log; default 1 h.
	Leftover time.Duration
	// Grace is how long a tombstone stands before what it names is removed;
	// default 72 h.
	Grace time.Duration
	// DryRun says what would be done.
	DryRun bool
}

// Sweeper does what no deploy is there to do: it takes back rollouts whose
// run died, and removes what no kept release needs. It takes the scope's lease
// like any other writer, never waits for it, and touches nothing that is held,
// foreign or serving as recorded.
//
// Whether a holder is alive is judged by whether its record moves while this
// Sweeper looks, so one Sweeper is kept between passes. It is safe for
// concurrent use with different scopes.
type Sweeper struct {
	target Target
	o      SweepOptions

	mu   sync.Mutex
	seen map[Scope]sighting
}

// sighting is since when, by our own clock, a record stands still.
type sighting struct {
	version string
	since   time.Time
}

// NewSweeper returns a Sweeper of t.
func NewSweeper(t Target, o SweepOptions) *Sweeper {
	o.Options = o.withDefaults()
	o.Leftover = cmp.Or(o.Leftover, time.Hour)
	o.Grace = cmp.Or(o.Grace, 72*time.Hour)
	return &Sweeper{target: t, o: o, seen: map[Scope]sighting{}}
}

// Swept is what one sweep of a scope came to.
type Swept struct {
	Scope Scope `json:"scope"`
	// Done are the actions, in order; with DryRun those that are due.
	Done []string `json:"done,omitempty"`
	// Waits says why something was left to a later pass: another run is
	// deploying, the scope is held.
	Waits string `json:"waits,omitempty"`
	// Notes are what a person should look at; nothing is done about them.
	Notes []string `json:"notes,omitempty"`
}

// Sweep sweeps one scope once. A run that is writing is watched for as long
// as it might be dead.
func Sweep(ctx context.Context, t Target, scope Scope, o SweepOptions) (Swept, error) {
	s := NewSweeper(t, o)
	start := time.Now()
	for {
		h, err := t.Head(ctx, scope)
		if err != nil || h.Version == "" {
			return Swept{Scope: scope}, err
		}
		sw, err := s.Sweep(ctx, Recorded{scope, h}, nil)
		if err != nil || sw.Waits == "" || h.Holder == "" || time.Since(start) > 2*max(h.LeaseFor, s.o.Lease.For) {
			return sw, err
		}
		if err := sleep(ctx, s.o.Lease.Poll); err != nil {
			return sw, err
		}
	}
}

// Due looks at rec without any request and reports whether a sweep has
// something to do that does not wait: its open rollout has nobody any more
// who goes on with it, or what it kept warm is to be given back.
func (s *Sweeper) Due(rec Recorded) bool {
	return (rec.Head.Rollout != nil || rec.Head.cold(s.o.Now())) && s.waits(rec) == ""
}

// waits says why rec can't be written now; empty: it can.
func (s *Sweeper) waits(rec Recorded) string {
	h := rec.Head
	s.mu.Lock()
	at := s.seen[rec.Scope]
	if at.version != h.Version {
		at = sighting{h.Version, time.Now()}
		s.seen[rec.Scope] = at
	}
	s.mu.Unlock()
	switch {
	case h.Holder != "" && time.Since(at.since) < max(h.LeaseFor, s.o.Lease.For):
		return h.Holder + " is writing"
	case h.Rollout != nil && !abandoned(h, s.o.Now()):
		return fmt.Sprintf("the rollout to %s waits for a person at %s until %s", h.Rollout.To, h.Rollout.Step, h.Rollout.Deadline.UTC().Format(time.RFC3339))
	}
	return ""
}

// Sweep sweeps one scope. all are the records of the target, by which a
// renamed service is recognised; nil: it is not looked for. The error is of
// this scope alone.
func (s *Sweeper) Sweep(ctx context.Context, rec Recorded, all []Recorded) (Swept, error) {
	out := Swept{Scope: rec.Scope}
	if out.Waits = s.waits(rec); out.Waits != "" {
		return out, nil
	}
	h := rec.Head
	// Reads go before the lease: most sweeps find nothing to do, and write
	// nothing. The lease is taken on the very record that was judged.
	r := newRun(s.target, rec.Scope, s.o.Options, &lease{t: s.target, scope: rec.Scope, opts: s.o.Options, head: h})
	var due []chore
	switch {
	case h.Rollout != nil:
		verb := "take back"
		if h.Rollout.OnDeath == OnDeathFinish {
			verb = "finish"
		}
		due = []chore{{verb + " the rollout to " + h.Rollout.To + ", left at step " + h.Rollout.Step, func(ctx context.Context) error {
			_, err := r.recover(ctx, nil)
			return err
		}}}
	case h.Held != "":
		out.Waits = "held: " + h.Held
		if h.cold(s.o.Now()) { // it is held at what is live, not at what was
			due = []chore{coolDown(r)}
		}
	default:
		var err error
		if due, out.Notes, err = s.chores(ctx, r, all); err != nil {
			return out, fmt.Errorf("deployer: sweep %s: %w", rec.Scope, err)
		}
	}
	if h.Holder != "" && h.Rollout == nil {
		// Who deploys next need not wait for a dead run's lease.
		due = append(due, chore{"give back the lease of " + h.Holder + ", which ended", func(context.Context) error { return nil }})
	}
	if s.o.DryRun || len(due) == 0 {
		for _, c := range due {
			out.Done = append(out.Done, c.text)
		}
		return out, nil
	}
	l, held, err := s.take(ctx, rec)
	if errors.Is(err, ErrConflict) {
		out.Waits = "another run was faster"
		return out, nil
	}
	if err != nil {
		return out, err
	}
	r.lease = l
	var errs []error
	for _, c := range due {
		if err := c.do(held); err != nil {
			errs = append(errs, fmt.Errorf("deployer: sweep %s: %s: %w", rec.Scope, c.text, err))
			continue
		}
		out.Done = append(out.Done, c.text)
	}
	after, cancel := r.after(ctx)
	defer cancel()
	if err := l.release(after); err != nil && !errors.Is(err, ErrFenced) {
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// take takes the lease on just the record that was judged; [ErrConflict] when
// it has changed.
func (s *Sweeper) take(ctx context.Context, rec Recorded) (*lease, context.Context, error) {
	h := rec.Head
	h.Holder, h.LeaseFor, h.Renewed = s.o.Holder, s.o.Lease.For, s.o.Now().UTC()
	h.Epoch++
	h, err := s.target.SwapHead(ctx, rec.Scope, h)
	if errors.Is(err, ErrConflict) {
		return nil, nil, err
	}
	if err != nil {
		return nil, nil, fmt.Errorf("deployer: take lease of %s: %w", rec.Scope, err)
	}
	return hold(ctx, s.target, rec.Scope, s.o.Options, h)
}

// chore is one thing to do under the lease.
type chore struct {
	text string
	do   func(context.Context) error
}

// chores are what is due in a scope without an open rollout.
func (s *Sweeper) chores(ctx context.Context, r *run, all []Recorded) (due []chore, notes []string, err error) {
	h, now := r.lease.current(), s.o.Now()
	needed, old, err := s.records(ctx, r, now)
	if err != nil {
		return nil, nil, err
	}
	var live Release
	if h.Live != "" {
		if live, err = r.t.Release(ctx, r.scope, h.Live); err != nil {
			return nil, nil, fmt.Errorf("read release %s: %w", h.Live, err)
		}
	}
	services, err := r.t.Services(ctx, r.scope)
	if err != nil {
		return nil, nil, fmt.Errorf("observe: %w", err)
	}
	if h.cold(now) {
		due = append(due, coolDown(r))
	}
	stones := map[string]Tombstone{}
	stone := func(name, why string) (over bool) {
		at, ok := h.Tombstones[name]
		if !ok {
			at = Tombstone{Since: now.UTC(), Why: why}
		}
		stones[name] = at
		return now.Sub(at.Since) >= s.o.Grace
	}
	if by := successor(r.scope, h, all); by != "" {
		if stone(TombstoneAll, by) {
			return []chore{{"end the service: " + by, r.stop}}, nil, nil
		}
	}
	for _, svc := range services {
		u, ok := live.unit(svc.Name)
		if !ok {
			if stone(svc.Name, "no unit of the live release") {
				due = append(due, chore{"remove service " + svc.Name, func(ctx context.Context) error {
					return r.t.RemoveService(ctx, r.lease.fence(), svc.Name)
				}})
			}
			continue
		}
		if !svc.Only(u.Revision) {
			notes = append(notes, fmt.Sprintf("the traffic of %s is not as release %s says; the next deploy puts it right", svc.Name, h.Live))
			continue
		}
		if h.Staged == "" && !h.cold(now) {
			due = append(due, s.tidyLive(r, svc, u, needed, now)...)
		}
	}
	for _, id := range old {
		due = append(due, chore{"forget record " + id + ", which never went live", func(ctx context.Context) error {
			return r.t.RemoveRelease(ctx, r.lease.fence(), id)
		}})
	}
	if !maps.Equal(stones, h.Tombstones) {
		due = append([]chore{{marking(stones), func(ctx context.Context) error {
			return r.lease.update(ctx, func(h *Head) { h.Tombstones = stones })
		}}}, due...)
	}
	return due, notes, nil
}

// coolDown is due when a release's time to be kept warm is over.
func coolDown(r *run) chore {
	return chore{"give back what was kept warm for a rollback", func(ctx context.Context) error {
		_, err := r.cool(ctx)
		return err
	}}
}

// marking says what will have a tombstone.
func marking(stones map[string]Tombstone) string {
	if len(stones) == 0 {
		return "lift the tombstones"
	}
	text := ""
	for _, n := range slices.Sorted(maps.Keys(stones)) {
		if n == TombstoneAll {
			n = "the whole service"
		}
		text += ", " + n
	}
	return "mark with a tombstone: " + text[2:]
}

// records reads which revisions the records need, and which records a run
// left that died before its intent. How many are kept is the project's word
// at its deploys; a sweep takes none of those away.
func (s *Sweeper) records(ctx context.Context, r *run, now time.Time) (needed map[string]bool, old []string, err error) {
	h := r.lease.current()
	ids, err := r.t.Releases(ctx, r.scope)
	if err != nil {
		return nil, nil, fmt.Errorf("list releases: %w", err)
	}
	needed = map[string]bool{}
	for _, id := range ids {
		rel, err := r.t.Release(ctx, r.scope, id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read release %s: %w", id, err)
		}
		known := id == h.Live || id == h.Previous || id == h.Staged ||
			slices.ContainsFunc(h.History, func(w WasLive) bool { return w.Release == id })
		if !known && now.Sub(rel.Created) >= s.o.Leftover {
			old = append(old, id)
			continue
		}
		for _, u := range rel.Units {
			needed[u.Revision] = true
		}
	}
	return needed, old, nil
}

// tidyLive drops what a live unit no longer needs beside its revision.
func (s *Sweeper) tidyLive(r *run, svc Service, u Live, needed map[string]bool, now time.Time) []chore {
	var due []chore
	var shares []Share
	for _, sh := range svc.Traffic {
		if sh.Percent > 0 || sh.Tag == TagPrevious && needed[sh.Revision] {
			shares = append(shares, sh)
		}
	}
	if !slices.Equal(shares, svc.Traffic) {
		due = append(due, chore{"drop tags of " + svc.Name + " that nothing needs", func(ctx context.Context) error {
			return r.t.SetTraffic(ctx, r.lease.fence(), svc.Name, shares)
		}})
	}
	if svc.Template != u.Revision {
		due = append(due, chore{"let " + svc.Name + " describe " + u.Revision + " again", func(ctx context.Context) error {
			return r.t.RestoreTemplate(ctx, r.lease.fence(), u.Spec, u.Revision)
		}})
	}
	for _, rev := range svc.Revisions {
		if needed[rev.Name] || now.Sub(rev.Created) < s.o.Leftover {
			continue
		}
		due = append(due, chore{"remove revision " + rev.Name + ", which no release needs", func(ctx context.Context) error {
			return r.t.RemoveRevision(ctx, r.lease.fence(), svc.Name, rev.Name)
		}})
	}
	return due
}

// successor says which other service has taken this one's place; empty:
// none has. When the same project first deployed another name to the
// environment after this one's last deploy, and its repository has this one's
// name no more, it was renamed. A repository whose services nobody has counted
// says nothing.
func successor(scope Scope, h Head, all []Recorded) string {
	if h.Live == "" || len(h.History) == 0 {
		return ""
	}
	last := h.History[len(h.History)-1].At
	for _, other := range all {
		o := other.Scope
		if o.Owner != scope.Owner || o.Environment != scope.Environment || o.Service == scope.Service {
			continue
		}
		if in := other.Head.Services; len(in) == 0 || slices.Contains(in, scope.Service) {
			continue
		}
		if first := other.Head.History; other.Head.Live != "" && len(first) > 0 && first[0].At.After(last) {
			return "the project deploys as " + o.Service + " now"
		}
	}
	return ""
}
