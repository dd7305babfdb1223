package deployer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// Plan is what should be live: every unit of the service, changed or not.
type Plan struct {
	Scope Scope  `json:"scope"`
	Units []Spec `json:"units"`
	// Timers of the units' functions, in an order that equal plans share.
	Timers    []Timer `json:"timers,omitempty"`
	Commit    string  `json:"commit"`
	Pipeline  int64   `json:"pipeline"` // IID; 0 outside pipelines: no order is kept then
	Bundle    string  `json:"bundle"`
	CreatedBy string  `json:"createdBy,omitempty"`
	// Policy is how traffic moves.
	Policy Policy `json:"policy,omitzero"`
	// Services are all services that the repository holds at this commit, this
	// one included; nil where the caller does not know.
	Services []string `json:"services,omitempty"`
	// Inputs says by service what each unit was made of: names and sums that
	// the caller understands. The release carries them, so that a later plan
	// can say what changed; no revision depends on them.
	Inputs map[string]map[string]string `json:"inputs,omitempty"`
}

// Options are how, not what. The zero value works.
type Options struct {
	// Holder names this run to others: the job's URL, or host and process.
	Holder string
	Lease  LeaseTimes
	// Parallel is how many units change at once; default 4.
	Parallel int
	// ReadyTimeout bounds the wait for one revision; default 5 min.
	ReadyTimeout time.Duration
	// Settle is how long other units may still report once one has failed;
	// default 5 s.
	Settle time.Duration
	// RouteTimeout bounds the wait until the route answers with the new
	// revision; default 30 s.
	RouteTimeout time.Duration
	// ProbeEvery is the time between two questions; default 200 ms. Checks is
	// how many right answers in a row are proof; default 3.
	ProbeEvery time.Duration
	Checks     int
	// Grace is the time for putting things back after the context ended;
	// default 20 s.
	Grace time.Duration
	// SkipCapacity moves traffic without waiting until the revision has as
	// many instances as it needs; for a rollback that can't wait.
	SkipCapacity bool
	// NoDataTimeout is how long an analysis that waits for data may last
	// beyond its step's pause; default 30 min.
	NoDataTimeout time.Duration
	// Prometheus answers an analysis' queries.
	Prometheus analysis.Prometheus
	// Keep is how many releases can be rolled back to; default 5.
	Keep int
	// Now is the clock of records; default time.Now.
	Now func() time.Time
	// Nonce makes a fresh nonce; default crypto/rand.
	Nonce func() string
	// Progress is told what happens, from several goroutines at once.
	Progress func(Event)
}

// LeaseTimes are the lease's times. Zero values mean 30 s, 10 s, 1 s, 10 min.
type LeaseTimes struct {
	For   time.Duration // stand-still after which another takes over
	Renew time.Duration // between renewals
	Poll  time.Duration // between looks at a lease somebody else holds
	Wait  time.Duration // how long to wait for it before ErrLocked; negative: not at all
}

// Step is a step of the one order.
type Step string

// The steps, in order. Restore takes the place of what comes after a failure.
const (
	StepPreflight Step = "preflight"
	StepLease     Step = "lease"
	StepRecover   Step = "recover"
	StepStage     Step = "stage"
	StepReady     Step = "ready"
	StepVerify    Step = "verify"
	StepRecord    Step = "record"
	StepIntent    Step = "intent"
	StepScale     Step = "scale"
	StepTraffic   Step = "traffic"
	StepAnalysis  Step = "analysis"
	StepCheck     Step = "check"
	StepTimers    Step = "timers"
	StepLive      Step = "live"
	StepCleanup   Step = "cleanup"
	StepRestore   Step = "restore"
)

// Event is one thing that happened, for the log.
type Event struct {
	Step     Step
	Unit     string // empty: the whole release
	Revision string
	Text     string // "waiting: pulling image, 2 of 5 layers"
	// Warning marks what a person should read though nothing failed.
	Warning bool
}

// Outcome is the release that is live now, and how that came about.
type Outcome struct {
	Release
	Changes []Change      `json:"changes"`
	Timers  []TimerChange `json:"timerChanges,omitempty"`
	// NoChange: the plan was live already; no record was written.
	NoChange bool `json:"noChange,omitempty"`
	// Rollback: this was an older pipeline's release, returned to.
	Rollback bool `json:"rollback,omitempty"`
	// Awaiting says what a release that is not live yet waits for: a person,
	// who goes on with [Promote]; empty: it is live.
	Awaiting string `json:"awaiting,omitempty"`
	// Verified: every changed unit's nonce was answered at the route by its
	// revision. Warnings say why not.
	Verified bool     `json:"verified"`
	Warnings []string `json:"warnings,omitempty"`
}

// Action is what a deploy does to a unit.
type Action string

// The actions. A function's move between units shows as one unit's update or
// creation and the other's update or removal; the new one is proven before
// the old one ends.
const (
	Create    Action = "create"
	Update    Action = "update"
	Unchanged Action = "unchanged"
	Remove    Action = "remove"
)

// Change is one unit's part of a plan.
type Change struct {
	Unit    string `json:"unit"`
	Service string `json:"service"`
	Action  Action `json:"action"`
	Why     string `json:"why,omitempty"`
	// From and To are revisions.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// State is what is there: the record and the reality.
type State struct {
	Head     Head
	Live     *Release // nil: nothing is
	Services []Service
	// Versions are those of the Secrets and ConfigMaps that a plan's units
	// read. Observe leaves it empty: it knows no plan.
	Versions map[Source]string
	Timers   []ObservedTimer
}

// Observe reads a scope's state without any write.
func Observe(ctx context.Context, t Target, scope Scope) (State, error) {
	var s State
	var err error
	if s.Head, err = t.Head(ctx, scope); err != nil {
		return State{}, fmt.Errorf("deployer: read head of %s: %w", scope, err)
	}
	var group errgroup.Group
	if s.Head.Live != "" {
		group.Go(func() error {
			r, err := t.Release(ctx, scope, s.Head.Live)
			if err != nil {
				return fmt.Errorf("deployer: read release %s of %s: %w", s.Head.Live, scope, err)
			}
			s.Live = &r
			return nil
		})
	}
	group.Go(func() (err error) {
		if s.Services, err = t.Services(ctx, scope); err != nil {
			return fmt.Errorf("deployer: observe %s: %w", scope, err)
		}
		return nil
	})
	group.Go(func() (err error) {
		if s.Timers, err = t.Timers(ctx, scope); err != nil {
			return fmt.Errorf("deployer: observe timers of %s: %w", scope, err)
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return State{}, err
	}
	return s, nil
}

// Decide compares what should be with what is, without any I/O. Removals come
// last.
func Decide(units []Spec, s State) []Change {
	wanted := make(map[string]bool, len(units))
	services, live := make(map[string]Service, len(s.Services)), map[string]Live{}
	for _, svc := range s.Services {
		services[svc.Name] = svc
	}
	if s.Live != nil {
		for _, u := range s.Live.Units {
			live[u.Spec.Name] = u
		}
	}
	var changes []Change
	for _, u := range units {
		wanted[u.Name] = true
		svc, there := services[u.Name]
		changes = append(changes, decide(u, svc, there, live[u.Name]))
	}
	for _, svc := range s.Services {
		if wanted[svc.Name] {
			continue
		}
		c := Change{Unit: svc.Unit, Service: svc.Name, Action: Remove, Why: "no longer a unit of the service"}
		c.From = live[svc.Name].Revision
		changes = append(changes, c)
	}
	return changes
}

// decide is Decide for one unit; there says whether svc exists, and the zero
// Live that the live release doesn't have the unit.
func decide(u Spec, svc Service, there bool, live Live) Change {
	c := Change{Unit: u.Unit, Service: u.Name}
	hash := u.Hash() // once: it writes the whole of u
	c.To = nextRevision(u, hash, svc)
	switch {
	case live.Revision == "":
		c.Action, c.Why = Create, "new unit"
		return c
	case !there:
		c.Action, c.Why = Create, "the service is gone from the target"
		return c
	}
	c.From, c.Action = live.Revision, Update
	if live.Spec.Hash() != hash {
		c.Why = difference(live.Spec, u)
		return c
	}
	now, ok := svc.Revision(live.Revision)
	switch {
	case !ok:
		c.Why = "the live revision is gone from the target"
	case now.Phase == Broken:
		c.Why = "the live revision has failed"
	case u.Job == nil && !svc.Only(live.Revision):
		c.To, c.Why = live.Revision, "traffic was changed behind our back"
	default:
		c.Action, c.To = Unchanged, live.Revision
	}
	return c
}

func (s State) service(name string) (Service, bool) {
	for _, svc := range s.Services {
		if svc.Name == name {
			return svc, true
		}
	}
	return Service{Name: name}, false
}

// nextRevision is the first name for u's content, whose hash is given, that is
// free or holds a revision of this content that has not failed; empty when all
// are used up.
func nextRevision(u Spec, hash string, svc Service) string {
	for n := 1; n <= maxAttempt; n++ {
		name := u.revisionName(hash, n)
		there, ok := svc.Revision(name)
		if !ok || there.Phase != Broken && there.Hash == hash {
			return name
		}
	}
	return ""
}

// difference names what differs between two specs, for people.
func difference(a, b Spec) string {
	var what []string
	add := func(differs bool, name string) {
		if differs {
			what = append(what, name)
		}
	}
	add(ref(a.Image) != ref(b.Image), "image")
	add(a.Table != b.Table, "functions or routes")
	add(!maps.Equal(a.Environment, b.Environment), "environment")
	add(a.Memory != b.Memory || a.CPU != b.CPU, "resources")
	add(a.Timeout != b.Timeout || a.InitTimeout != b.InitTimeout || a.IdleTimeout != b.IdleTimeout, "time-outs")
	add(a.Concurrency != b.Concurrency || a.MinScale != b.MinScale || a.MaxScale != b.MaxScale ||
		a.ScaleMetric != b.ScaleMetric || a.ScaleTarget != b.ScaleTarget, "scale")
	add(a.Internal != b.Internal, "network")
	add(!maps.Equal(a.Secrets, b.Secrets) || !maps.Equal(a.Config, b.Config), "secrets or config")
	add(!maps.Equal(a.Versions, b.Versions), "a rotated secret or config")
	if len(what) == 0 {
		return "content changed"
	}
	return "changed: " + strings.Join(what, ", ")
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Lease.For, 30*time.Second)
	def(&o.Lease.Renew, o.Lease.For/3)
	def(&o.Lease.Poll, time.Second)
	def(&o.Lease.Wait, 10*time.Minute)
	def(&o.ReadyTimeout, 5*time.Minute)
	def(&o.Settle, 5*time.Second)
	def(&o.RouteTimeout, 30*time.Second)
	def(&o.ProbeEvery, 200*time.Millisecond)
	def(&o.Grace, 20*time.Second)
	def(&o.NoDataTimeout, 30*time.Minute)
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.Checks <= 0 {
		o.Checks = 3
	}
	if o.Keep <= 0 {
		o.Keep = 5
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Nonce == nil {
		o.Nonce = rand.Text
	}
	if o.Holder == "" {
		host, _ := os.Hostname()
		o.Holder = fmt.Sprintf("process %d on %s", os.Getpid(), host)
	}
	return o
}

// validate reports what the caller got wrong.
func (p Plan) validate() error {
	var bad []error
	if p.Scope.Service == "" || p.Scope.Environment == "" || p.Scope.Owner == "" {
		bad = append(bad, fmt.Errorf("deployer: scope %+v: service, environment and owner are needed", p.Scope))
	}
	if len(p.Units) == 0 {
		bad = append(bad, errors.New("deployer: no unit to deploy"))
	}
	seen := map[string]bool{}
	for _, u := range p.Units {
		if err := u.Validate(); err != nil {
			bad = append(bad, err)
		}
		if seen[u.Name] {
			bad = append(bad, fmt.Errorf("deployer: two units are called %s", u.Name))
		}
		seen[u.Name] = true
	}
	if err := p.Policy.validate(seen); err != nil {
		bad = append(bad, err)
	}
	if err := p.validateTimers(seen); err != nil {
		bad = append(bad, err)
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w: %w", ErrInvalid, errors.Join(bad...))
	}
	return nil
}
