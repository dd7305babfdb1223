package deployer_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
)

func TestCanRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history[:1])
		ask := func() deployer.Readiness {
			t.Helper()
			s, err := deployer.Observe(t.Context(), c, scope)
			if err != nil {
				t.Fatal(err)
			}
			r, err := deployer.CanRollback(t.Context(), c, scope, s, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if r := ask(); r.Ready || r.To != "" || r.Why == "" {
			t.Errorf("after the first release: %+v", r)
		}
		deploy(t, c, history[1])
		if r := ask(); !r.Ready || r.To != "r1" {
			t.Errorf("after the second: %+v", r)
		}
		h, _ := c.Head(t.Context(), scope)
		a1 := unit("a", "a1")
		if err := c.RemoveRevision(t.Context(), deployer.Fence{Scope: scope, Epoch: h.Epoch}, a1.Name, a1.RevisionName(1)); err != nil {
			t.Fatal(err)
		}
		if r := ask(); r.Ready || !strings.Contains(r.Why, a1.RevisionName(1)) {
			t.Errorf("without its revision: %+v", r)
		}
		if err := c.RemoveRelease(t.Context(), deployer.Fence{Scope: scope, Epoch: h.Epoch}, "r1"); err != nil {
			t.Fatal(err)
		}
		if r := ask(); r.Ready || !strings.Contains(r.Why, "record of r1 is gone") {
			t.Errorf("without its record: %+v", r)
		}
	})
}

func TestWarnings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		warnings := func() string {
			t.Helper()
			s, err := deployer.Observe(t.Context(), c, scope)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(s.Warnings(time.Now()), "\n")
		}
		if w := warnings(); w != "" {
			t.Errorf("a whole release: %s", w)
		}
		h, _ := c.Head(t.Context(), scope)
		h.Undone = &deployer.Undone{To: "r3", Step: "check", Why: "wrong answer", By: "job 7"}
		h.Tombstones = map[string]deployer.Tombstone{deployer.TombstoneAll: {Why: "renamed"}, "shop-x": {Why: "no unit"}}
		h.Holder, h.LeaseFor, h.Renewed = "job 8", 30*time.Second, time.Now()
		h, err := c.SwapHead(t.Context(), scope, h)
		if err != nil {
			t.Fatal(err)
		}
		f := deployer.Fence{Scope: scope, Epoch: h.Epoch}
		a1, a2 := unit("a", "a1").RevisionName(1), unit("a", "a2").RevisionName(1)
		if err := c.SetTraffic(t.Context(), f, "shop-a", []deployer.Share{{Revision: a1, Percent: 40}, {Revision: a2, Percent: 60}}); err != nil {
			t.Fatal(err)
		}
		if err := c.RemoveService(t.Context(), f, "shop-b"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		got := warnings()
		for _, want := range []string{
			"job 8 took the lease and has not renewed it", "rollout to r3 was taken back at step check", "wrong answer",
			"everything here is an orphan", "service shop-x is an orphan", "shop-b is gone from the target", "shop-a: traffic was changed by hand: 40 % to " + a1,
		} {
			if !strings.Contains(got, want) {
				t.Errorf("no word of %q in\n%s", want, got)
			}
		}
	})
}
