package deployer_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

// job is a unit that runs to completion.
func job(n, v string) deployer.Spec {
	u := unit(n, v)
	u.Job = &deployer.Job{Completions: 2, Parallelism: 2, Retries: 1, Timeout: time.Hour}
	return u
}

func hourly(function, unit string) deployer.Timer {
	return deployer.Timer{Function: function, Service: "shop-" + unit, Name: "every 1h", Schedule: "0 * * * *", Overlap: "skip"}
}

func nightly(function, unit string) deployer.Timer {
	return deployer.Timer{Function: function, Service: "shop-" + unit, Name: "0 2 * * *", Schedule: "0 2 * * *", Timezone: "Asia/Shanghai", Overlap: "skip"}
}

func timing(p deployer.Plan, timers ...deployer.Timer) deployer.Plan {
	p.Timers = timers
	return p
}

func timerActions(changes []deployer.TimerChange) string {
	var out []string
	for _, c := range changes {
		out = append(out, c.Function+":"+string(c.Action))
	}
	return strings.Join(out, " ")
}

// A timer follows the release: it changes with it, moves with its function in
// place, and a rollback brings back what it was.
func TestTimersFollowTheRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		first := deploy(t, c, timing(plan(1, unit("a", "aa"), job("sum", "cc")), hourly("tick", "a"), nightly("sum", "sum")))
		settled(t, c, first.Release)
		if got := timerActions(first.Timers); got != "tick:create sum:create" {
			t.Errorf("first: %s", got)
		}
		if again := deploy(t, c, timing(plan(2, unit("a", "aa"), job("sum", "cc")), hourly("tick", "a"), nightly("sum", "sum"))); !again.NoChange {
			t.Errorf("again: %+v", again)
		}

		// Another payload is another release with the same revisions.
		loud := nightly("sum", "sum")
		loud.Payload = "all"
		second := deploy(t, c, timing(plan(3, unit("a", "ab"), job("sum", "cc")), hourly("tick", "a"), loud))
		settled(t, c, second.Release)
		if got := timerActions(second.Timers); got != "tick:update sum:update" || second.Timers[1].Why != "changed: payload" || second.Units[1].Revision != first.Units[1].Revision {
			t.Errorf("second: %s, %+v", got, second.Timers)
		}

		// tick moves, sum ends.
		third := deploy(t, c, timing(plan(4, unit("a", "ab"), unit("b", "bb")), hourly("tick", "b")))
		settled(t, c, third.Release)
		if got := timerActions(third.Timers); got != "tick:update sum:remove" || third.Timers[0].Why != "the function moved to shop-b" {
			t.Errorf("third: %s, %+v", got, third.Timers)
		}

		back, err := deployer.Rollback(t.Context(), c, scope, first.ID, deployer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		settled(t, c, back.Release)
		if len(back.Release.Timers) != 2 || back.Release.Timers[1].Payload != "" {
			t.Errorf("timers after the rollback: %+v", back.Release.Timers)
		}
		if err := deployer.Resume(t.Context(), c, scope, deployer.Options{}); err != nil {
			t.Fatal(err)
		}

		// What somebody switched off at the target is on again.
		c.SwitchOff(scope, hourly("tick", "a").Key())
		fourth := deploy(t, c, timing(plan(5, unit("a", "aa"), job("sum", "cc")), hourly("tick", "a"), nightly("sum", "sum")))
		settled(t, c, fourth.Release)
		if got := timerActions(fourth.Timers); got != "tick:update sum:unchanged" {
			t.Errorf("switched off behind our back: %s", got)
		}

		if err := deployer.Stop(t.Context(), c, scope, deployer.Options{}); err != nil {
			t.Fatal(err)
		}
		if left, err := c.Timers(t.Context(), scope); err != nil || len(left) > 0 {
			t.Errorf("after stop: %+v, %v", left, err)
		}
	})
}

// The old timers stay whatever a failed deploy got as far as.
func TestFailedDeployLeavesTimers(t *testing.T) {
	crash := &deployer.Failure{Code: deployer.Crash, Cause: "exited", Next: "look"}
	for name, behaves := range map[string]deployertest.Behaviour{
		"at start":     {Failure: crash},
		"at its timer": {RefuseTimer: crash},
		"at the nonce": {Answer: func(a deployer.Answer) (deployer.Answer, error) { a.Nonce = "x"; return a, nil }},
		"at a webhook": {RefuseTimer: errors.New("a webhook said no")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &deployertest.Cluster{Behave: func(s deployer.Spec) deployertest.Behaviour {
					if strings.Contains(s.Image.String(), "sha256:bad") {
						return behaves
					}
					return deployertest.Behaviour{}
				}}
				first := deploy(t, c, timing(plan(1, unit("a", "aa"), job("sum", "cc")), hourly("tick", "a"), nightly("sum", "sum")))
				_, err := deployer.Deploy(t.Context(), c, timing(plan(2, unit("a", "bad"), unit("b", "bb")), hourly("tick", "a"), nightly("other", "b")), deployer.Options{})
				var f *deployer.Failed
				if !errors.As(err, &f) || f.Restore != nil || f.Serving != first.ID {
					t.Fatalf("%v; want failed, %s serving", err, first.ID)
				}
				s, err := deployer.Observe(t.Context(), c, scope)
				if err != nil {
					t.Fatal(err)
				}
				timed(t, s, first.Release)
			})
		})
	}
}

// A unit is switched before what calls it by the clock, and a timer that
// leaves goes before one that comes: no time of both fires twice.
func TestOrderOfTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		deploy(t, c, timing(plan(1, unit("a", "aa")), hourly("tick", "a")))
		var order []string
		d := &deployertest.Dying{Target: c, After: func(verb string) {
			if slices.Contains([]string{"SetTraffic", "SetTimer", "RemoveTimer", "RemoveService"}, verb) {
				order = append(order, verb)
			}
		}}
		deploy(t, d, timing(plan(2, unit("b", "bb")), nightly("tick", "b")))
		if want := []string{"SetTraffic", "RemoveTimer", "SetTimer", "RemoveService"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

func TestPlanWithBadTimers(t *testing.T) {
	c := &deployertest.Cluster{}
	bad := hourly("tick", "nobody")
	bad.Overlap = "maybe"
	for _, timers := range [][]deployer.Timer{{bad}, {hourly("tick", "a"), hourly("tick", "a")}, {{Service: "shop-a"}}} {
		_, err := deployer.Deploy(context.Background(), c, timing(plan(1, unit("a", "aa")), timers...), deployer.Options{})
		if !errors.Is(err, deployer.ErrInvalid) {
			t.Errorf("%+v: %v; want invalid", timers, err)
		}
	}
}
