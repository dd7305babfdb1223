package deployer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Job is how a unit that runs to completion does so. Such a unit has no
// address and no traffic: its revisions are what its runs are made from.
type Job struct {
	// Completions is how many instances must end well, Parallelism how many
	// of them run at once.
	Completions int `json:"completions"`
	Parallelism int `json:"parallelism"`
	// Retries is how often one completion that failed is tried again.
	Retries int `json:"retries"`
	// Timeout bounds a whole run, retries included; in ns, 0 is no limit.
	Timeout time.Duration `json:"timeout,omitempty"`
	// TTL is how long an ended run and its log stay; in ns.
	TTL time.Duration `json:"ttl,omitempty"`
}

// Timer calls a function by the clock: a job's timer starts a run, any
// other's sends the event to the revision that is live. It is no part of a
// unit's content: another schedule makes no revision.
type Timer struct {
	Function string `json:"function"`
	// Service is the [Spec.Name] of the unit that has the function.
	Service string `json:"service"`
	// Name is what the event calls its trigger: the schedule as it was written.
	Name     string `json:"name"`
	Schedule string `json:"schedule"`           // five fields of cron
	Timezone string `json:"timezone,omitempty"` // IANA; empty is UTC
	Payload  string `json:"payload,omitempty"`
	// Overlap says what a time means that comes while the last call still
	// runs: skip, allow or replace.
	Overlap string `json:"overlap"`
	// Nth tells timers apart that fire at the same times for one function,
	// counted from 0.
	Nth int `json:"nth,omitempty"`
}

// Key is who the timer is: the function and the times it fires at. A timer
// that keeps its key is changed in place, wherever its function moves, so no
// time comes twice and none is lost. A timer at other times is another one: it
// owes nothing for the past.
func (t Timer) Key() string {
	return short("timer", t.Function, t.Schedule, t.Timezone, fmt.Sprint(t.Nth))
}

// Does is what the timer does when it calls the revision, as a short sum:
// equal ones need no write.
func (t Timer) Does(revision string) string {
	b, err := json.Marshal(t)
	if err != nil {
		b = fmt.Appendf(nil, "%#v", t) // strings and a number can't fail to encode
	}
	return short("does", string(b), revision)
}

func short(parts ...string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", parts))
	return hex.EncodeToString(sum[:5])
}

// Jobs keeps a scope's timers and runs its jobs.
type Jobs interface {
	// Timers observes every timer that carries the scope's labels.
	Timers(ctx context.Context, scope Scope) ([]ObservedTimer, error)
	// SetTimer makes the timer exist and call the revision of s from its next
	// time on. One of the same key changes in place; a call under way goes on.
	SetTimer(ctx context.Context, f Fence, t Timer, s Spec, revision string) error
	// RemoveTimer forgets the timer of that key; a run that it started goes
	// on. A missing one is no error.
	RemoveTimer(ctx context.Context, f Fence, key string) error
	// StartRun starts a job unit's revision by hand, once, and names the run.
	// event is JSON. It needs no lease: it changes nothing that is recorded.
	StartRun(ctx context.Context, scope Scope, s Spec, revision string, event []byte) (run string, err error)
	// FollowRun waits for the end of a run and calls out, which may be nil,
	// with the lines that it writes. When ctx ends first, the run goes on.
	FollowRun(ctx context.Context, scope Scope, run string, out func(line string)) (RunResult, error)
	// EndRuns ends and forgets every run of the scope.
	EndRuns(ctx context.Context, f Fence) error
}

// ObservedTimer is a timer as seen at the target.
type ObservedTimer struct {
	Key      string `json:"key"`
	Function string `json:"function"`
	Service  string `json:"service"`
	Schedule string `json:"schedule"`
	Timezone string `json:"timezone,omitempty"`
	Revision string `json:"revision"` // what it calls
	Does     string `json:"does"`     // Timer.Does
	// Off says that somebody has switched it off at the target.
	Off bool `json:"off,omitempty"`
	// Epoch is the lease epoch of the last write.
	Epoch int64 `json:"epoch"`
	// Last is when it fired last; Running is how many of its calls are under way.
	Last    time.Time `json:"last,omitzero"`
	Running int       `json:"running,omitempty"`
}

// RunResult is how a run ended.
type RunResult struct {
	Run       string `json:"run"`
	Succeeded int    `json:"succeeded"` // completions that ended well
	Failed    int    `json:"failed"`    // tries that failed
	// Failure is why the run as a whole failed; nil: it ended well.
	Failure *Failure `json:"failure,omitempty"`
}

// TimerChange is one timer's part of a plan.
type TimerChange struct {
	Key      string `json:"key"`
	Function string `json:"function"`
	Action   Action `json:"action"`
	Why      string `json:"why,omitempty"`
}

// DecideTimers compares the timers that should be with those that are,
// without any I/O. revisions are the ones that will be live, by service.
// Removals come last.
func DecideTimers(timers []Timer, revisions map[string]string, s State) []TimerChange {
	there := make(map[string]ObservedTimer, len(s.Timers))
	for _, o := range s.Timers {
		there[o.Key] = o
	}
	live := map[string]Timer{}
	if s.Live != nil {
		for _, t := range s.Live.Timers {
			live[t.Key()] = t
		}
	}
	var changes []TimerChange
	for _, t := range timers {
		key := t.Key()
		o, ok := there[key]
		delete(there, key)
		was, recorded := live[key]
		c := TimerChange{Key: key, Function: t.Function, Action: Update}
		switch {
		case !ok && recorded:
			c.Action, c.Why = Create, "the timer is gone from the target"
		case !ok:
			c.Action, c.Why = Create, "new timer"
		case o.Off:
			c.Why = "the timer was switched off behind our back"
		case o.Does == t.Does(revisions[t.Service]):
			c.Action = Unchanged
		case recorded && was != t:
			c.Why = timerDifference(was, t)
		default:
			c.Why = "calls " + revisions[t.Service] + " instead of " + o.Revision
		}
		changes = append(changes, c)
	}
	for _, o := range s.Timers {
		if _, left := there[o.Key]; left {
			changes = append(changes, TimerChange{Key: o.Key, Function: o.Function, Action: Remove, Why: "no longer a timer of the service"})
		}
	}
	return changes
}

func timerDifference(was, now Timer) string {
	switch {
	case was.Service != now.Service:
		return "the function moved to " + now.Service
	case was.Payload != now.Payload:
		return "changed: payload"
	case was.Overlap != now.Overlap:
		return "changed: overlap " + was.Overlap + " → " + now.Overlap
	}
	return "changed: how the schedule is written"
}

// timersDiffer reports whether any change does something.
func timersDiffer(changes []TimerChange) bool {
	return slices.ContainsFunc(changes, func(c TimerChange) bool { return c.Action != Unchanged })
}

// revisionsOf are the release's revisions by service.
func revisionsOf(rel Release) map[string]string {
	out := make(map[string]string, len(rel.Units))
	for _, u := range rel.Units {
		out[u.Spec.Name] = u.Revision
	}
	return out
}

// switchTimers makes the target's timers the release's. What goes away goes
// first: a changed schedule is another timer, and one time of both must not
// fire twice.
func (r *run) switchTimers(ctx context.Context, rel Release) error {
	there, err := r.t.Timers(ctx, r.scope)
	if err != nil {
		return fmt.Errorf("observe timers: %w", err)
	}
	if len(there) == 0 && len(rel.Timers) == 0 {
		return nil
	}
	revisions := revisionsOf(rel)
	wanted := make(map[string]Timer, len(rel.Timers))
	for _, t := range rel.Timers {
		wanted[t.Key()] = t
	}
	var errs []error
	right := map[string]bool{}
	for _, o := range there {
		t, ok := wanted[o.Key]
		if !ok {
			r.say(Event{Step: StepTimers, Unit: o.Function, Text: "remove the timer " + o.Schedule})
			if err := r.t.RemoveTimer(ctx, r.lease.fence(), o.Key); err != nil {
				errs = append(errs, fmt.Errorf("remove the timer %s of %s: %w", o.Schedule, o.Function, err))
			}
			continue
		}
		right[o.Key] = !o.Off && o.Does == t.Does(revisions[t.Service])
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for _, t := range rel.Timers {
		if right[t.Key()] {
			continue
		}
		u, ok := rel.unit(t.Service)
		if !ok {
			errs = append(errs, fmt.Errorf("the timer %s of %s: the release has no unit %s", t.Name, t.Function, t.Service))
			continue
		}
		r.say(Event{Step: StepTimers, Unit: t.Function, Revision: u.Revision, Text: t.Name + " calls " + u.Revision})
		if err := r.t.SetTimer(ctx, r.lease.fence(), t, u.Spec, u.Revision); err != nil {
			errs = append(errs, fmt.Errorf("set the timer %s of %s: %w", t.Name, t.Function, err))
		}
	}
	return errors.Join(errs...)
}

// removeTimers ends all calling by the clock.
func (r *run) removeTimers(ctx context.Context) error {
	return r.switchTimers(ctx, Release{})
}

// validateTimers reports what the caller got wrong about the plan's timers.
func (p Plan) validateTimers(services map[string]bool) error {
	var bad []error
	seen := map[string]bool{}
	for _, t := range p.Timers {
		switch {
		case !services[t.Service]:
			bad = append(bad, fmt.Errorf("deployer: timer of %s: no unit %s", t.Function, t.Service))
		case t.Function == "" || t.Schedule == "":
			bad = append(bad, errors.New("deployer: a timer without function or schedule"))
		case !slices.Contains([]string{"skip", "allow", "replace"}, t.Overlap):
			bad = append(bad, fmt.Errorf("deployer: timer of %s: overlap %q", t.Function, t.Overlap))
		case seen[t.Key()]:
			bad = append(bad, fmt.Errorf("deployer: timer of %s: %s twice", t.Function, t.Schedule))
		}
		seen[t.Key()] = true
	}
	return errors.Join(bad...)
}
