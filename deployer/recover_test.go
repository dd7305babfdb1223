package deployer_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

// Whatever call a run died at, a watchdog that knows no plan ends its intent:
// a deploy is undone, a rollback is finished, and the record says so.
func TestWatchdogEndsWhatIsLeft(t *testing.T) {
	for name, s := range stories() {
		if s.before == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			found := map[string]bool{}
			for at, last := 1, false; !last; at++ {
				for _, effect := range []bool{false, true} {
					synctest.Test(t, func(t *testing.T) {
						c, units := prepared(t, s.before)
						d := &deployertest.Dying{Target: c, At: at, Effect: effect, After: watch(t, c, units...)}
						_, _ = s.dies.run(t.Context(), d)
						last = d.Calls() < at
						was, err := c.Head(t.Context(), scope)
						if err != nil {
							t.Fatal(err)
						}
						done, err := deployer.Recover(t.Context(), &deployertest.Dying{Target: c, After: watch(t, c, units...)}, scope, deployer.Options{Holder: "the watchdog", Lease: deployer.LeaseTimes{Wait: time.Minute}})
						if err != nil {
							t.Fatal(err)
						}
						if waits(was, was) && done.Rollout == nil {
							return // for a person
						}
						if (done.Rollout != nil) != (was.Rollout != nil) {
							t.Fatalf("found %+v, there was %+v", done.Rollout, was.Rollout)
						}
						if done.Rollout == nil {
							return
						}
						ended(t, c, was, done)
						found[was.Rollout.OnDeath] = true
						if t.Failed() {
							t.Fatalf("%s died at call %d (effect %v)", s.dies.name, at, effect)
						}
					})
				}
				if t.Failed() {
					return
				}
			}
			if len(found) > 1 {
				t.Errorf("one run wrote intents of several kinds: %v", found)
			}
		})
	}
}

// ended checks that the intent in was is closed as it said.
func ended(t *testing.T, c *deployertest.Cluster, was deployer.Head, done deployer.Recovery) {
	t.Helper()
	h, err := c.Head(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	finish := was.Rollout.OnDeath == deployer.OnDeathFinish
	want := was.Rollout.From
	if finish {
		want = was.Rollout.To
	}
	if done.Finished != finish || h.Live != want || h.Rollout != nil || h.Holder != "" {
		t.Errorf("recovery %+v, head %+v; want %s live", done, h, want)
	}
	switch {
	case finish && h.Held == "":
		t.Error("the finished rollback does not hold")
	case !finish && (h.Undone == nil || h.Undone.To != was.Rollout.To || h.Undone.By != "the watchdog" || h.Undone.Why == ""):
		t.Errorf("undone %+v; want who, what and why", h.Undone)
	}
	live, err := c.Release(t.Context(), scope, h.Live)
	if err != nil {
		t.Fatal(err)
	}
	services, err := c.Services(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	if len(services) != len(live.Units) {
		t.Errorf("%d services, want %d", len(services), len(live.Units))
	}
	for _, svc := range services {
		for _, u := range live.Units {
			if u.Spec.Name == svc.Name && u.Spec.Job == nil && (!svc.Only(u.Revision) || svc.Template != u.Revision) {
				t.Errorf("%s: traffic %v, template %s; want %s", svc.Name, svc.Traffic, svc.Template, u.Revision)
			}
		}
	}
}

// A rollout whose holder lives is not touched.
func TestWatchdogLeavesTheLivingAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		h, err := c.Head(t.Context(), scope)
		if err != nil {
			t.Fatal(err)
		}
		h.Holder, h.Epoch, h.LeaseFor = "job 7", h.Epoch+1, 30*time.Second
		h.Rollout = &deployer.Rollout{To: "r3", From: "r2", OnDeath: deployer.OnDeathRestore, Deadline: time.Now().Add(time.Minute)}
		if h, err = c.SwapHead(t.Context(), scope, h); err != nil {
			t.Fatal(err)
		}
		go func() {
			for range 12 { // it renews
				time.Sleep(10 * time.Second)
				h, _ = c.SwapHead(t.Context(), scope, h)
			}
		}()
		_, err = deployer.Recover(t.Context(), c, scope, deployer.Options{Lease: deployer.LeaseTimes{Wait: time.Minute}})
		if !errors.Is(err, deployer.ErrLocked) {
			t.Errorf("got %v; want locked by the living", err)
		}
		time.Sleep(2 * time.Minute)
		h.Holder, h.Rollout.Absolute, h.Rollout.Deadline = "", true, time.Now().Add(time.Hour)
		if _, err = c.SwapHead(t.Context(), scope, h); err != nil {
			t.Fatal(err)
		}
		done, err := deployer.Recover(t.Context(), c, scope, deployer.Options{})
		if err != nil || done.Rollout != nil {
			t.Errorf("what waits for a person: %+v, %v; want untouched", done, err)
		}
		time.Sleep(61 * time.Minute)
		done, err = deployer.Recover(t.Context(), c, scope, deployer.Options{Holder: "the watchdog"})
		if now, _ := c.Head(t.Context(), scope); err != nil || done.Rollout == nil || now.Undone == nil || now.Undone.Why != "nobody promoted it in time" {
			t.Errorf("after its time: %+v, %v, %+v", done, err, now.Undone)
		}
	})
}
