package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/stages"
)

// status is what `faas status --json` prints.
type status struct {
	Scope    deployer.Scope           `json:"scope"`
	Head     deployer.Head            `json:"head"`
	Live     *deployer.Release        `json:"live,omitempty"`
	Services []deployer.Service       `json:"services"`
	Timers   []deployer.ObservedTimer `json:"timers,omitempty"`
	Rollback deployer.Readiness       `json:"rollback"`
	Warnings []string                 `json:"warnings"`
	now      time.Time                // when it was seen
}

func (c command) status(ctx *cli.Context) error {
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	s, err := deployer.Observe(ctx.Context, t, scope)
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	now := time.Now()
	out := status{Scope: scope, Head: s.Head, Live: s.Live, Services: s.Services, Timers: s.Timers, now: now, Warnings: s.Warnings(now)}
	if out.Rollback, err = deployer.CanRollback(ctx.Context, t, scope, s, now); err != nil {
		return stages.Explain(ctx.Context, err)
	}
	return c.print(ctx, out, out.String())
}

// String is the status for people: what is live first, what to do last.
func (s status) String() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if s.Live == nil {
		say("%s: nothing is live", s.Scope)
	} else {
		say("%s: release %s is live, commit %.12s, pipeline %d", s.Scope, s.Live.ID, s.Live.Commit, s.Live.Pipeline)
		for _, u := range s.Live.Units {
			say("  %-16s %-40s %s", u.Unit, u.Revision, u.URL)
		}
	}
	for _, line := range stages.TimerLines(s.Timers, s.now) {
		say("%s", line)
	}
	if h := s.Head.Held; h != "" {
		say("held: %s; continue with: faas release resume", h)
	}
	if r := s.Head.Rollout; r != nil {
		at := r.Step
		if r.Weight > 0 {
			at += fmt.Sprintf(", %d %% of the traffic", r.Weight)
		}
		switch {
		case r.Absolute:
			say("waits for a person: rollout to %s at %s, until %s; go on with: faas release promote", r.To, at, r.Deadline.UTC().Format(time.RFC3339))
		case s.Head.Holder != "":
			say("under way: rollout to %s at %s, by %s", r.To, at, s.Head.Holder)
		default:
			say("unfinished: rollout to %s at %s; the watchdog or the next deploy ends it", r.To, at)
		}
	}
	if id := s.Head.Staged; id != "" {
		say("waits for a person: %s is ready at 0 %%; go on with: faas release promote", id)
	}
	switch r := s.Rollback; {
	case r.To == "" && s.Live != nil:
		say("rollback not possible: %s", r.Why)
	case r.Warm:
		say("rollback ready: to %s, at once", r.To)
	case r.Ready:
		say("rollback ready: to %s, %s", r.To, r.Why)
	case r.To != "":
		say("rollback not ready: to %s: %s", r.To, r.Why)
	}
	for _, w := range s.Warnings {
		say("warning: %s", w)
	}
	return b.String()
}

// stop removes what the environment runs. It asks for --yes, because the
// functions are gone the next moment.
func (c command) stop(ctx *cli.Context) error {
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	s, err := deployer.Observe(ctx.Context, t, scope)
	if err != nil && !errors.Is(err, deployer.ErrNotFound) { // a lost record is no reason to go on running
		return stages.Explain(ctx.Context, err)
	}
	if !ctx.Bool("yes") {
		var names []string
		for _, svc := range s.Services {
			names = append(names, svc.Name)
		}
		what := "nothing that is seen now"
		if len(names) > 0 {
			what = strings.Join(names, ", ")
		}
		return cliapp.Usagef("this ends %s: %s; say --yes to do it", scope, what)
	}
	if err := deployer.Stop(ctx.Context, t, scope, c.options()); err != nil {
		return stages.Explain(ctx.Context, err)
	}
	text := scope.String() + " is stopped; its records stay\n"
	if was := s.Head.Live; was != "" {
		text += "bring it back with: faas release rollback --to " + was + "\n"
	}
	return c.print(ctx, map[string]string{"stopped": scope.String(), "was": s.Head.Live}, text)
}
