package deployer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Readiness says how a rollback would go now.
type Readiness struct {
	// To is the release it returns to; empty: there is none.
	To string `json:"to,omitempty"`
	// Ready: every revision of To is there and has not failed, so that no
	// image is needed.
	Ready bool `json:"ready"`
	// Warm: they also still run, so that it takes about two seconds.
	Warm bool `json:"warm"`
	// Why says what is missing; empty when Warm.
	Why string `json:"why,omitempty"`
}

// CanRollback looks, without any write, at what a rollback would find.
func CanRollback(ctx context.Context, t Target, scope Scope, s State, now time.Time) (Readiness, error) {
	r := Readiness{To: s.Head.Previous}
	if r.To == "" {
		r.Why = "no earlier release is recorded"
		return r, nil
	}
	rel, err := t.Release(ctx, scope, r.To)
	if errors.Is(err, ErrNotFound) {
		r.Why = "the record of " + r.To + " is gone"
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("deployer: read release %s of %s: %w", r.To, scope, err)
	}
	var gone []string
	for _, u := range rel.Units {
		svc, _ := s.service(u.Spec.Name)
		if rev, ok := svc.Revision(u.Revision); !ok || rev.Phase == Broken {
			gone = append(gone, u.Revision)
		}
	}
	switch {
	case len(gone) > 0:
		r.Why = strings.Join(gone, ", ") + " will be made again from the record, which needs the image and a start"
	case s.Head.warm(r.To, now):
		r.Ready, r.Warm = true, true
	default:
		r.Ready, r.Why = true, "its pods are started first"
	}
	return r, nil
}

// Warnings are what somebody on call should know of the state, in plain
// words; none where all is as recorded.
func (s State) Warnings(now time.Time) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	h := s.Head
	if h.Holder != "" && now.Sub(h.Renewed) > 2*h.LeaseFor {
		add("%s took the lease and has not renewed it since %s; it is taken over by who comes next", h.Holder, h.Renewed.UTC().Format(time.RFC3339))
	}
	if u := h.Undone; u != nil {
		add("the rollout to %s was taken back at step %s, %s, by %s: %s", u.To, u.Step, u.At.UTC().Format(time.RFC3339), u.By, u.Why)
	}
	for _, name := range slices.Sorted(maps.Keys(h.Tombstones)) {
		what := "service " + name
		if name == TombstoneAll {
			what = "everything here"
		}
		add("%s is an orphan since %s (%s); a sweep removes it", what, h.Tombstones[name].Since.UTC().Format(time.RFC3339), h.Tombstones[name].Why)
	}
	var live Release
	if s.Live != nil {
		live = *s.Live
	}
	for _, u := range live.Units {
		svc, ok := s.service(u.Spec.Name)
		rev, there := svc.Revision(u.Revision)
		switch {
		case !ok:
			add("%s is gone from the target; the next deploy makes it again", u.Spec.Name)
		case !there:
			add("%s: the live revision %s is gone from the target", svc.Name, u.Revision)
		case rev.Phase == Broken:
			add("%s: the live revision %s has failed: %v", svc.Name, u.Revision, rev.Failure)
		case u.Spec.Job == nil && h.Rollout == nil && !svc.Only(u.Revision):
			add("%s: traffic was changed by hand: %s", svc.Name, shareText(svc.Traffic))
		}
	}
	if h.Rollout == nil {
		for _, c := range DecideTimers(live.Timers, revisionsOf(live), s) {
			if c.Action != Unchanged {
				add("a timer of %s is not as recorded: %s", c.Function, c.Why)
			}
		}
	}
	return out
}

func shareText(all []Share) string {
	var parts []string
	for _, s := range all {
		if s.Percent > 0 {
			parts = append(parts, fmt.Sprintf("%d %% to %s", s.Percent, s.Revision))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}
