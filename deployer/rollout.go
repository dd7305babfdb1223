package deployer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// The strategies.
const (
	Direct    = "direct"    // all at once; also what an empty strategy means
	Canary    = "canary"    // in steps, watched at each
	BlueGreen = "bluegreen" // all at once, the old release kept ready
	Manual    = "manual"    // at 0 %, until a person promotes it
)

// Policy is how traffic moves to a release. It is part of the release's
// record, so that whoever finishes a rollout needs nothing else.
type Policy struct {
	Strategy string `json:"strategy,omitempty"`
	// Steps of a canary, with growing weights. The whole traffic follows the
	// last one.
	Steps []Weight `json:"steps,omitempty"`
	// Verify are requests that the new revisions must answer as expected
	// before they get any traffic.
	Verify   []Verify           `json:"verify,omitempty"`
	Analysis *analysis.Criteria `json:"analysis,omitempty"`
	// OnFailure is rollback (also when empty), or hold: then a canary that
	// fails its analysis stays where it is until a person decides, and what
	// failed earlier keeps later pipelines from deploying.
	OnFailure string `json:"onFailure,omitempty"`
	// KeepWarm is how long the replaced revisions stay ready for a rollback,
	// in ns; 0 means [DefaultKeepWarm], negative: not at all.
	KeepWarm time.Duration `json:"keepWarm,omitempty"`
}

// DefaultKeepWarm is how long replaced revisions stay ready.
const DefaultKeepWarm = 10 * time.Minute

// Pauses is how long the way from step next, counted from 0, lasts at least:
// until the release has all of the traffic, or a person is asked.
func (p Policy) Pauses(next int) time.Duration {
	all := Rollout{OnDeath: OnDeathRestore}.steps(p)
	var sum time.Duration
	for _, s := range all[min(next, len(all)):] {
		if s.Approval {
			break
		}
		if s.Weight == 100 {
			continue
		}
		pause := s.Pause
		if p.Analysis != nil {
			pause = max(pause, p.Analysis.WithDefaults().Interval)
		}
		sum += pause
	}
	return sum
}

// Weight is one step of a canary: a share in percent, and what follows it.
type Weight struct {
	Weight int `json:"weight"`
	// Pause is how long it lasts, in ns.
	Pause time.Duration `json:"pause,omitempty"`
	// Approval ends the run: a person goes on with [Promote].
	Approval bool `json:"approval,omitempty"`
}

// Verify is a request to one unit and the answer it must get.
type Verify struct {
	Service string        `json:"service"`
	Method  string        `json:"method"`
	Path    string        `json:"path"` // with query
	Status  int           `json:"status"`
	Max     time.Duration `json:"max,omitempty"` // in ns; 0: not measured
}

// Rollout is an intent written before traffic moves.
type Rollout struct {
	To   string `json:"to"`             // release id
	From string `json:"from,omitempty"` // release id to restore
	Step string `json:"step"`
	// Strategy moves the traffic. Weight is the share in percent that To has
	// or is about to get, by step number Next, counted from 0, of its policy.
	Strategy string `json:"strategy,omitempty"`
	Weight   int    `json:"weight,omitempty"`
	Next     int    `json:"next,omitempty"`
	// Deadline is the holder's last renewal + the lease's time: after it the
	// holder is gone. Where Absolute is set no holder is needed until then:
	// the rollout waits for a person.
	Deadline time.Time `json:"deadline"`
	Absolute bool      `json:"absolute,omitempty"`
	// OnDeath is what anybody may do who finds the intent after its deadline:
	// [OnDeathRestore] or [OnDeathFinish].
	OnDeath string `json:"onDeath"`
	// Pipeline is To's: an older one does not undo it.
	Pipeline int64 `json:"pipeline,omitempty"`
	// Why is what holds the scope once To is live; set by a rollback.
	Why string `json:"why,omitempty"`
}

// What to do with an intent that nobody works on any more. A deploy is
// undone; a rollback was a person's decision, and is finished.
const (
	OnDeathRestore = "restore"
	OnDeathFinish  = "finish"
)

// Expired reports whether nobody works on the rollout any more, by the
// clocks of who wrote it and who asks.
func (r Rollout) Expired(now time.Time) bool { return now.After(r.Deadline) }

// steps are the weights that lead to all of the traffic.
func (r Rollout) steps(p Policy) []Weight {
	all := []Weight{{Weight: 100}}
	if r.OnDeath == OnDeathRestore && p.Strategy == Canary {
		all = append(slices.DeleteFunc(slices.Clone(p.Steps), func(w Weight) bool { return w.Weight >= 100 && !w.Approval }), all...)
	}
	return all
}

// warm is how long the policy keeps replaced revisions ready.
func (p Policy) warm() time.Duration {
	if p.KeepWarm == 0 {
		return DefaultKeepWarm
	}
	return p.KeepWarm
}

// Undone says of a rollout that was taken back what happened; the record of
// an intent is gone by then.
type Undone struct {
	To     string    `json:"to"`
	Step   string    `json:"step"`
	Weight int       `json:"weight,omitempty"`
	Why    string    `json:"why"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
}

// ApprovalTime is how long a rollout waits for a person before it is undone.
const ApprovalTime = 24 * time.Hour

// Recovery is what [Recover] did.
type Recovery struct {
	// Rollout is the intent that was found; nil: there was nothing to do.
	Rollout *Rollout `json:"rollout,omitempty"`
	// Finished says that Rollout.To is live now; otherwise Rollout.From is.
	Finished bool `json:"finished,omitempty"`
}

// Recover finishes or undoes, from the records alone, an open intent that
// nobody works on any more. It is what a watchdog does, and needs no plan.
// A rollout that waits for a person and whose time is not over, and one
// whose holder lives ([*LockedError]), are left alone. Options.Lease.Wait
// bounds how long the holder is watched for signs of life; it must be longer
// than Options.Lease.For to find a dead one.
func Recover(ctx context.Context, t Target, scope Scope, o Options) (Recovery, error) {
	o = o.withDefaults()
	head, err := t.Head(ctx, scope)
	if err != nil {
		return Recovery{}, fmt.Errorf("deployer: read head of %s: %w", scope, err)
	}
	if !abandoned(head, o.Now()) {
		return Recovery{}, nil
	}
	var done Recovery
	err = leased(ctx, t, scope, o, func(ctx context.Context, r *run) error {
		head := r.lease.current()
		if !abandoned(head, o.Now()) {
			return nil // whoever held the lease has finished
		}
		open := *head.Rollout
		done.Rollout = &open
		state, err := r.recover(ctx, nil)
		done.Finished = err == nil && open.From != state.Head.Live
		return err
	})
	return done, err
}

// abandoned reports whether h has an intent that may be taken over by who
// holds the lease.
func abandoned(h Head, now time.Time) bool {
	return h.Rollout != nil && (!h.Rollout.Absolute || h.Rollout.Expired(now))
}
