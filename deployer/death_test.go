package deployer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

// step is a command somebody runs.
type command struct {
	name string
	run  func(context.Context, deployer.Target) (deployer.Outcome, error)
}

func deploying(p deployer.Plan) command {
	return command{fmt.Sprintf("deploy of pipeline %d", p.Pipeline), func(ctx context.Context, t deployer.Target) (deployer.Outcome, error) {
		return deployer.Deploy(ctx, t, p, deployer.Options{Parallel: 1})
	}}
}

func rollingBack(to string) command {
	return command{"rollback to " + to, func(ctx context.Context, t deployer.Target) (deployer.Outcome, error) {
		return deployer.Rollback(ctx, t, scope, to, deployer.Options{})
	}}
}

// waits reports whether what waited for a person in was still does in h.
func waits(was, h deployer.Head) bool {
	return was.Rollout != nil && was.Rollout.Absolute && h.Rollout != nil && *h.Rollout == *was.Rollout
}

// promoting goes on with what waits; where nothing does any more, what is live
// is deployed again.
func promoting() command {
	return command{"promotion", func(ctx context.Context, t deployer.Target) (deployer.Outcome, error) {
		out, err := deployer.Promote(ctx, t, scope, 0, deployer.Options{Parallel: 1})
		if errors.Is(err, deployer.ErrNotFound) {
			return deployer.Deploy(ctx, t, history[1], deployer.Options{Parallel: 1})
		}
		return out, err
	}}
}

// stepping is the plan as a canary.
func stepping(p deployer.Plan, steps ...deployer.Weight) deployer.Plan {
	p.Policy = deployer.Policy{Strategy: deployer.Canary, Steps: steps}
	return p
}

// history is what was deployed before the story starts.
var history = []deployer.Plan{
	timing(plan(1, unit("a", "a1"), unit("b", "b1"), unit("gone", "aa")), hourly("tick", "a"), nightly("clean", "gone")),
	timing(plan(2, unit("a", "a2"), unit("b", "b1"), unit("gone", "aa")), hourly("tick", "a"), nightly("clean", "gone")),
}

// stories are a run that dies and the run after it.
func stories() map[string]struct {
	before     []deployer.Plan
	dies, next command
} {
	// The timer of tick goes on while its function moves; clean goes away with
	// its unit, and a job comes.
	p3 := timing(plan(3, unit("a", "a3"), unit("b", "b1"), unit("new", "aa"), job("sum", "cc")), hourly("tick", "new"), nightly("sum", "sum"))
	p4 := timing(plan(4, unit("a", "a4"), unit("b", "b1"), job("sum", "cd")), hourly("tick", "b"))
	type story = struct {
		before     []deployer.Plan
		dies, next command
	}
	c3, c4, waits := stepping(p3, deployer.Weight{Weight: 30, Pause: time.Minute}), stepping(p4, deployer.Weight{Weight: 10}), stepping(p3, deployer.Weight{Weight: 5, Approval: true}, deployer.Weight{Weight: 40, Pause: time.Second})
	waiting := append(slices.Clone(history), waits)
	return map[string]story{
		"canary, same again":                   {history, deploying(c3), deploying(c3)},
		"canary, another next":                 {history, deploying(c3), deploying(c4)},
		"canary, rollback next":                {history, deploying(c3), rollingBack("r1")},
		"canary, direct next":                  {history, deploying(c3), deploying(p4)},
		"promotion, same again":                {waiting, promoting(), promoting()},
		"promotion, another next":              {waiting, promoting(), deploying(p4)},
		"promotion, rollback next":             {waiting, promoting(), rollingBack("r1")},
		"waiting, rollback, again":             {waiting, rollingBack("r1"), rollingBack("r1")},
		"waiting, another, again":              {waiting, deploying(c4), deploying(c4)},
		"first deploy, same again":             {nil, deploying(p3), deploying(p3)},
		"first deploy, another next":           {nil, deploying(p3), deploying(p4)},
		"change, same again":                   {history, deploying(p3), deploying(p3)},
		"change, another next":                 {history, deploying(p3), deploying(p4)},
		"change, rollback next":                {history, deploying(p3), rollingBack("r1")},
		"rollback, same again":                 {history, rollingBack("r1"), rollingBack("r1")},
		"rollback, roll forward next":          {history, rollingBack("r1"), rollingBack("r2")},
		"nothing to change, same again":        {history, deploying(history[1]), deploying(history[1])},
		"older pipeline once live, same again": {history, deploying(history[0]), rollingBack("r1")},
	}
}

// watch checks after every call that what could be reached before can be
// reached still.
func watch(t *testing.T, c *deployertest.Cluster, units ...string) func(string) {
	tick := hourly("tick", "a").Key()
	return func(verb string) {
		for _, u := range units {
			if rev, err := c.Route(scope, "shop-"+u); err != nil {
				t.Errorf("after %s the route of %s (%s): %v", verb, u, rev, err)
			}
		}
		if len(units) == 0 {
			return
		}
		timers, err := c.Timers(t.Context(), scope)
		if err != nil {
			t.Error(err)
		}
		if !slices.ContainsFunc(timers, func(o deployer.ObservedTimer) bool { return o.Key == tick }) {
			t.Errorf("after %s the timer that all releases have is gone", verb)
		}
	}
}

// prepared is a cluster after the deploys of before.
func prepared(t *testing.T, before []deployer.Plan) (*deployertest.Cluster, []string) {
	t.Helper()
	c := &deployertest.Cluster{}
	for _, p := range before {
		deploy(t, c, p)
	}
	if before == nil {
		return c, nil
	}
	return c, []string{"a", "b"} // the units of all plans
}

// A run may be killed at any call, before or after the call's effect: the
// route answers all the time, and the next run leaves nothing behind.
func TestDeathAtEveryCall(t *testing.T) {
	for name, s := range stories() {
		t.Run(name, func(t *testing.T) {
			for at, last := 1, false; !last; at++ {
				for _, effect := range []bool{false, true} {
					synctest.Test(t, func(t *testing.T) {
						c, units := prepared(t, s.before)
						d := &deployertest.Dying{Target: c, At: at, Effect: effect, After: watch(t, c, units...)}
						_, _ = s.dies.run(t.Context(), d)
						last = d.Calls() < at
						out, err := s.next.run(t.Context(), &deployertest.Dying{Target: c, After: watch(t, c, units...)})
						if err != nil {
							t.Fatalf("after death at call %d (effect %v) %s: %v", at, effect, s.next.name, err)
						}
						settled(t, c, out.Release)
						if t.Failed() {
							t.Fatalf("%s died at call %d (effect %v), then %s", s.dies.name, at, effect, s.next.name)
						}
					})
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// Two deaths in a row, the second at every call of the repair.
func TestDeathDuringRepair(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for _, name := range []string{"change, another next", "first deploy, another next", "rollback, same again"} {
		s := stories()[name]
		t.Run(name, func(t *testing.T) {
			for at, last := 1, false; !last; at += stride {
				for second, lastSecond := 1, false; !lastSecond; second += stride {
					synctest.Test(t, func(t *testing.T) {
						c, units := prepared(t, s.before)
						d := &deployertest.Dying{Target: c, At: at, Effect: at%2 == 0, After: watch(t, c, units...)}
						_, _ = s.dies.run(t.Context(), d)
						last = d.Calls() < at
						d = &deployertest.Dying{Target: c, At: second, Effect: second%2 == 0, After: watch(t, c, units...)}
						_, _ = s.next.run(t.Context(), d)
						lastSecond = d.Calls() < second
						out, err := s.next.run(t.Context(), &deployertest.Dying{Target: c, After: watch(t, c, units...)})
						if err != nil {
							t.Fatal(err)
						}
						settled(t, c, out.Release)
						if t.Failed() {
							t.Fatalf("%s died at call %d, %s at call %d", s.dies.name, at, s.next.name, second)
						}
					})
					if t.Failed() {
						return
					}
				}
			}
		})
	}
}

// One call fails, or only its answer is lost, and the run lives on: it ends
// live or restored, and says which.
func TestFaultAtEveryCall(t *testing.T) {
	for name, s := range stories() {
		t.Run(name, func(t *testing.T) {
			for at, last := 1, false; !last; at++ {
				for _, effect := range []bool{false, true} {
					for _, fault := range []error{deployer.ErrUnavailable, errors.New("refused")} {
						synctest.Test(t, func(t *testing.T) {
							c, units := prepared(t, s.before)
							was, _ := c.Head(t.Context(), scope)
							d := &deployertest.Dying{Target: c, At: at, Effect: effect, Once: true, Err: fault, After: watch(t, c, units...)}
							out, err := s.dies.run(t.Context(), d)
							last = d.Calls() < at
							h, _ := c.Head(t.Context(), scope)
							var f *deployer.Failed
							switch {
							case err == nil:
								if h.Live != out.ID || h.Rollout != nil {
									t.Errorf("success with head %+v", h)
								}
							case errors.As(err, &f) && f.Restore == nil:
								if h.Live != was.Live || h.Rollout != nil && !waits(was, h) {
									t.Errorf("restored (%v) with head %+v", err, h)
								}
							}
							out, err = s.next.run(t.Context(), c)
							if err != nil {
								t.Fatal(err)
							}
							settled(t, c, out.Release)
							if t.Failed() {
								t.Fatalf("%s, call %d failed with %v (effect %v)", s.dies.name, at, fault, effect)
							}
						})
						if t.Failed() {
							return
						}
					}
				}
			}
		})
	}
}

// A holder that stood still for longer than the lease has lost it: what it
// still wants to write is refused.
func TestPausedHolderIsFenced(t *testing.T) {
	for _, verb := range []string{"Ensure", "WaitReady", "CreateRelease", "SwapHead", "SetTraffic", "Probe", "SetTimer", "RemoveTimer"} {
		t.Run(verb, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, units := prepared(t, history)
				// The paused process has no timers: its renewals stand still too.
				pause := make(chan struct{})
				var once bool
				p := &deployertest.Dying{Target: c}
				paused := make(chan struct{})
				p.After = func(v string) {
					if h, _ := c.Head(t.Context(), scope); v == verb && !once && h.Holder == "slow" {
						once = true
						close(paused)
						<-pause
					}
				}
				o := deployer.Options{Holder: "slow", Parallel: 1}
				o.Lease.Renew = time.Hour
				result := make(chan error, 1)
				go func() {
					_, err := deployer.Deploy(t.Context(), p, timing(plan(3, unit("a", "a3"), unit("b", "b3")), hourly("tick", "a")), o)
					result <- err
				}()
				<-paused
				out, err := deployer.Deploy(t.Context(), &deployertest.Dying{Target: c, After: watch(t, c, units...)}, timing(plan(4, unit("a", "a4"), unit("b", "b4")), hourly("tick", "a")), deployer.Options{Holder: "quick"})
				if err != nil {
					t.Fatal(err)
				}
				close(pause)
				if err := <-result; !errors.Is(err, deployer.ErrFenced) {
					t.Errorf("the woken holder's error: %v; want fenced", err)
				}
				settled(t, c, out.Release)
			})
		})
	}
}

func TestLeaseIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour {
			return deployertest.Behaviour{Delay: 2 * time.Minute}
		}}
		first := make(chan error, 1)
		go func() {
			_, err := deployer.Deploy(t.Context(), c, plan(1, unit("a", "a1")), deployer.Options{Holder: "job 1"})
			first <- err
		}()
		time.Sleep(time.Second)
		var locked *deployer.LockedError
		_, err := deployer.Deploy(t.Context(), c, plan(2, unit("a", "a2")), deployer.Options{Lease: deployer.LeaseTimes{Wait: time.Minute}})
		if !errors.As(err, &locked) || locked.Holder != "job 1" {
			t.Errorf("error %v; want locked by job 1: its renewals show that it lives", err)
		}
		var said []string
		out, err := deployer.Deploy(t.Context(), c, plan(2, unit("a", "a2")), deployer.Options{Holder: "job 2", Progress: func(e deployer.Event) {
			if e.Step == deployer.StepLease {
				said = append(said, e.Text)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-first; err != nil {
			t.Errorf("the first deploy: %v", err)
		}
		if !slices.Contains(said, "waiting: job 1 is deploying") {
			t.Errorf("said %q; want who is waited for", said)
		}
		settled(t, c, out.Release)
	})
}

func TestLostLeaseEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour {
			return deployertest.Behaviour{Delay: 4 * time.Minute}
		}}
		time.AfterFunc(30*time.Second, func() {
			h, _ := c.Head(t.Context(), scope)
			h.Epoch, h.Holder = h.Epoch+1, "operator"
			if _, err := c.SwapHead(t.Context(), scope, h); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		_, err := deployer.Deploy(t.Context(), c, plan(1, unit("a", "a1")), deployer.Options{})
		if took := time.Since(start); !errors.Is(err, deployer.ErrFenced) || took > time.Minute {
			t.Errorf("error %v after %s; want fenced within one renewal", err, took)
		}
	})
}
