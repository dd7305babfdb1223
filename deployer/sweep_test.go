package deployer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

// guarded runs a watchdog over c for d, and returns what it did.
func guarded(t *testing.T, c deployer.Lister, d time.Duration, o deployer.SweepOptions) []string {
	t.Helper()
	return guardedEvery(t, c, d, 0, o)
}

func guardedEvery(t *testing.T, c deployer.Lister, d, every time.Duration, o deployer.SweepOptions) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var mu sync.Mutex
	var done []string
	o.Holder = "watchdog"
	deployer.NewSweeper(c, o).Watch(ctx, c, deployer.WatchOptions{Every: every, Report: func(s deployer.Swept, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			t.Errorf("sweep: %v", err)
		}
		done = append(done, s.Done...)
	}})
	return done
}

// However a run dies, a watchdog alone brings the route back to one recorded
// release in 90 s, and the record says why.
func TestWatchdogAfterDeathAtEveryCall(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 5
	}
	for name, s := range stories() {
		t.Run(name, func(t *testing.T) {
			for at, last := 1, false; !last; at += stride {
				for _, effect := range []bool{false, true} {
					synctest.Test(t, func(t *testing.T) {
						c, units := prepared(t, s.before)
						d := &deployertest.Dying{Target: c, At: at, Effect: effect, After: watch(t, c, units...)}
						_, _ = s.dies.run(t.Context(), d)
						last = d.Calls() < at
						before, err := c.Head(t.Context(), scope)
						if err != nil {
							t.Fatal(err)
						}
						guarded(t, c, 90*time.Second, deployer.SweepOptions{})
						after, err := c.Head(t.Context(), scope)
						if err != nil {
							t.Fatal(err)
						}
						// A rollback was a person's decision, and is finished.
						want, finish := before.Live, before.Rollout != nil && before.Rollout.OnDeath == deployer.OnDeathFinish
						if finish {
							want = before.Rollout.To
						}
						left := before.Rollout != nil && !waits(before, after)
						if left && after.Rollout != nil || after.Live != want {
							t.Errorf("rollout %+v, live %q after 90 s; want none, %q", after.Rollout, after.Live, want)
						}
						if left && !finish && (after.Undone == nil || after.Undone.By != "watchdog" || after.Undone.Why == "" || after.Undone.To != before.Rollout.To) {
							t.Errorf("the record says %+v of the rollout to %s", after.Undone, before.Rollout.To)
						}
						if after.Held != "" { // else a sweep leaves it as it is
							if err := deployer.Resume(t.Context(), c, scope, deployer.Options{}); err != nil {
								t.Fatal(err)
							}
						}
						// In the end nothing is left but what the releases name.
						guardedEvery(t, c, 74*time.Hour, 20*time.Minute, deployer.SweepOptions{})
						var live deployer.Release
						if after.Live != "" {
							if live, err = c.Release(t.Context(), scope, after.Live); err != nil {
								t.Fatal(err)
							}
						}
						settled(t, c, live)
						unfloored(t, c)
						if t.Failed() {
							t.Fatalf("%s died at call %d (effect %v)", s.dies.name, at, effect)
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

// A rollout whose holder lives is left alone, however long it takes.
func TestWatchdogLeavesALiveRunAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{Behave: func(s deployer.Spec) deployertest.Behaviour {
			return deployertest.Behaviour{Delay: 4 * time.Minute}
		}}
		errs := make(chan error, 1)
		go func() {
			_, err := deployer.Deploy(t.Context(), c, plan(1, unit("a", "aa")), deployer.Options{})
			errs <- err
		}()
		if did := guarded(t, c, 5*time.Minute, deployer.SweepOptions{Leftover: time.Second, Grace: time.Second}); len(did) > 0 {
			t.Errorf("swept under a live run: %q", did)
		}
		if err := <-errs; err != nil {
			t.Error(err)
		}
	})
}

// What is kept warm for a rollback is given back when its time is over, and
// no sooner; of a held release too.
func TestWatchdogCools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		tagged := func() bool {
			t.Helper()
			all, err := c.Services(t.Context(), scope)
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(all[0].Traffic, func(s deployer.Share) bool { return s.Tag == deployer.TagPrevious })
		}
		guarded(t, c, 9*time.Minute, deployer.SweepOptions{})
		if !tagged() {
			t.Error("cold within keepWarm")
		}
		h, _ := c.Head(t.Context(), scope)
		h.Held = "because"
		if _, err := c.SwapHead(t.Context(), scope, h); err != nil {
			t.Fatal(err)
		}
		guarded(t, c, 2*time.Minute, deployer.SweepOptions{})
		if h, _ = c.Head(t.Context(), scope); tagged() || !h.Warm.IsZero() || h.Held == "" {
			t.Errorf("after keepWarm: tagged %v, warm %s, held %q", tagged(), h.Warm, h.Held)
		}
	})
}

// An intent without a holder waits for people until its own deadline.
func TestWatchdogKeepsAnApprovalsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		h, _ := c.Head(t.Context(), scope)
		h.Rollout = &deployer.Rollout{To: "r2", From: "r2", Step: "weight 30 %", OnDeath: deployer.OnDeathRestore, Absolute: true, Deadline: time.Now().Add(time.Hour)}
		h.Renewed = time.Now()
		if _, err := c.SwapHead(t.Context(), scope, h); err != nil {
			t.Fatal(err)
		}
		if did := guarded(t, c, 59*time.Minute, deployer.SweepOptions{}); len(did) > 0 {
			t.Errorf("before the deadline: %q", did)
		}
		if did := guarded(t, c, 2*time.Minute, deployer.SweepOptions{}); len(did) != 1 {
			t.Errorf("after the deadline: %q; want it taken back", did)
		}
	})
}

func sweepOnce(t *testing.T, c *deployertest.Cluster, s *deployer.Sweeper, scope deployer.Scope) deployer.Swept {
	t.Helper()
	all, err := c.Scopes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(r deployer.Recorded) bool { return r.Scope == scope })
	sw, err := s.Sweep(t.Context(), all[i], all)
	if err != nil {
		t.Fatal(err)
	}
	return sw
}

func TestSweepTouchesNothingThatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		if _, err := deployer.Rollback(t.Context(), c, scope, "", deployer.Options{Holder: "me"}); err != nil {
			t.Fatal(err)
		}
		h, _ := c.Head(t.Context(), scope)
		sw := sweepOnce(t, c, deployer.NewSweeper(c, deployer.SweepOptions{Leftover: 1, Grace: 1}), scope)
		if len(sw.Done) > 0 || !strings.HasPrefix(sw.Waits, "held: ") {
			t.Errorf("swept %+v; want it left, held", sw)
		}
		if now, _ := c.Head(t.Context(), scope); now.Version != h.Version {
			t.Error("the record was written")
		}
	})
}

// A service of the scope that the release doesn't have gets a tombstone, then
// goes; a dry run and a clean scope write nothing.
func TestSweepOrphans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		h, _ := c.Head(t.Context(), scope)
		f := deployer.Fence{Scope: scope, Epoch: h.Epoch}
		odd := unit("odd", "0d")
		if err := c.Ensure(t.Context(), f, odd, odd.RevisionName(1)); err != nil {
			t.Fatal(err)
		}
		dry := deployer.NewSweeper(c, deployer.SweepOptions{DryRun: true})
		if sw := sweepOnce(t, c, dry, scope); len(sw.Done) != 1 || !strings.Contains(sw.Done[0], "shop-odd") {
			t.Errorf("dry run: %+v", sw)
		}
		if now, _ := c.Head(t.Context(), scope); now.Version != h.Version {
			t.Error("a dry run wrote the record")
		}
		s := deployer.NewSweeper(c, deployer.SweepOptions{})
		there := func() bool {
			all, err := c.Services(t.Context(), scope)
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(all, func(s deployer.Service) bool { return s.Unit == "odd" })
		}
		sweepOnce(t, c, s, scope)
		marked, _ := c.Head(t.Context(), scope)
		if _, ok := marked.Tombstones["shop-odd"]; !ok || !there() {
			t.Errorf("tombstones %v, there %v; want a tombstone first", marked.Tombstones, there())
		}
		time.Sleep(71 * time.Hour)
		if sw := sweepOnce(t, c, s, scope); len(sw.Done) != 1 || !strings.Contains(sw.Done[0], "warm") {
			t.Errorf("after keepWarm: %+v", sw)
		}
		if sw := sweepOnce(t, c, s, scope); len(sw.Done) > 0 || !there() {
			t.Errorf("within the grace: %+v", sw)
		}
		time.Sleep(2 * time.Hour)
		if sweepOnce(t, c, s, scope); there() {
			t.Error("it is there after the grace")
		}
		sweepOnce(t, c, s, scope) // lifts the tombstone
		clean, _ := c.Head(t.Context(), scope)
		if sw := sweepOnce(t, c, s, scope); len(sw.Done) > 0 || len(clean.Tombstones) > 0 {
			t.Errorf("a clean scope: %+v, tombstones %v", sw, clean.Tombstones)
		}
		if now, _ := c.Head(t.Context(), scope); now.Version != clean.Version {
			t.Error("a clean scope was written")
		}
	})
}

// After a rename the old service serves until the grace is over, then ends;
// its records stay. One of another project, environment, or deployed since,
// does not count.
func TestSweepRename(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		other := func(change func(*deployer.Scope)) {
			p := plan(3, unit("main", "aa"))
			change(&p.Scope)
			p.Services = []string{p.Scope.Service}
			p.Units[0].Name = p.Scope.Service + "-main"
			deploy(t, c, p)
		}
		s := deployer.NewSweeper(c, deployer.SweepOptions{})
		time.Sleep(time.Minute)
		other(func(s *deployer.Scope) { s.Service, s.Namespace, s.Owner = "bazaar", "bazaar-prod", "43" })
		other(func(s *deployer.Scope) { s.Service, s.Namespace, s.Environment = "bazaar", "bazaar-test", "test" })
		if sw := sweepOnce(t, c, s, scope); len(sw.Done) > 0 {
			t.Fatalf("not renamed, swept %+v", sw)
		}
		other(func(s *deployer.Scope) { s.Service, s.Namespace = "market", "market-prod" })
		sweepOnce(t, c, s, scope)
		h, _ := c.Head(t.Context(), scope)
		if at := h.Tombstones[deployer.TombstoneAll]; !strings.Contains(at.Why, "market") || h.Live != "r2" {
			t.Fatalf("tombstones %v, live %s", h.Tombstones, h.Live)
		}
		time.Sleep(70 * time.Hour)
		deploy(t, c, plan(4, unit("a", "a2"), unit("b", "b4"))) // somebody still wants it
		time.Sleep(3 * time.Hour)
		sweepOnce(t, c, s, scope) // what was kept warm
		if sw := sweepOnce(t, c, s, scope); len(sw.Done) > 0 {
			t.Errorf("deployed since, swept %+v", sw)
		}
		other(func(s *deployer.Scope) { s.Service, s.Namespace = "fair", "fair-prod" })
		sweepOnce(t, c, s, scope)
		time.Sleep(73 * time.Hour)
		sweepOnce(t, c, s, scope)
		all, err := c.Services(t.Context(), scope)
		if h, _ = c.Head(t.Context(), scope); err != nil || len(all) > 0 || h.Live != "" || h.Previous != "r3" {
			t.Errorf("services %v, live %q, previous %q, %v; want it ended", all, h.Live, h.Previous, err)
		}
		if _, err := deployer.Rollback(t.Context(), c, scope, "r3", deployer.Options{}); err != nil {
			t.Errorf("back from the record: %v", err)
		}
	})
}

// A record that never went live is forgotten after an hour; one that is live,
// was, or waits for a person stays.
func TestSweepForgetsWhatNeverWentLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		waits := plan(3, unit("a", "a3"), unit("b", "b1"), unit("gone", "aa"))
		waits.Policy.Strategy = deployer.Manual
		staged := deploy(t, c, waits)
		h, _ := c.Head(t.Context(), scope)
		ids := func() []string {
			t.Helper()
			all, err := c.Releases(t.Context(), scope)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(all)
			return all
		}
		before := ids()
		dead := deployer.Release{ID: "r99", Scope: scope, Created: time.Now()}
		if err := c.CreateRelease(t.Context(), deployer.Fence{Scope: scope, Epoch: h.Epoch}, dead); err != nil {
			t.Fatal(err)
		}
		s := deployer.NewSweeper(c, deployer.SweepOptions{})
		sweepOnce(t, c, s, scope)
		if !slices.Contains(ids(), "r99") {
			t.Error("forgotten at once")
		}
		time.Sleep(5 * time.Hour)
		sweepOnce(t, c, s, scope)
		sweepOnce(t, c, s, scope)
		if got := ids(); !slices.Equal(got, before) || !slices.Contains(got, staged.ID) || !slices.Contains(got, h.Previous) || !slices.Contains(got, h.Live) {
			t.Errorf("records %q; want %q: live %s, before it %q, waiting %s", got, before, h.Live, h.Previous, staged.ID)
		}
	})
}

// Of a repository with several services none is taken for another's old name,
// however seldom it is deployed; one whose file is gone is.
func TestSweepMonorepo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		market := func(pipeline int64, services ...string) {
			p := plan(pipeline, unit("main", "aa"))
			p.Scope.Service, p.Scope.Namespace, p.Services = "market", "market-prod", services
			p.Units[0].Name = "market-main"
			deploy(t, c, p)
		}
		s := deployer.NewSweeper(c, deployer.SweepOptions{})
		stone := func() bool {
			t.Helper()
			time.Sleep(80 * time.Hour)
			sweepOnce(t, c, s, scope) // what was kept warm
			sweepOnce(t, c, s, scope)
			h, err := c.Head(t.Context(), scope)
			if err != nil || h.Live != "r2" {
				t.Fatalf("head %+v, %v; want r2 live", h, err)
			}
			_, marked := h.Tombstones[deployer.TombstoneAll]
			return marked
		}
		time.Sleep(time.Minute)
		market(3) // by a runner that does not count
		if stone() {
			t.Error("marked on the word of a deploy that says nothing of others")
		}
		market(4, "market", scope.Service)
		if stone() {
			t.Error("marked beside another service of its repository")
		}
		market(5, "market")
		if !stone() {
			t.Error("not marked when its repository has it no more")
		}
		market(6, "market", scope.Service)
		if stone() {
			t.Error("the tombstone stays though it is there again")
		}
	})
}

// A failed revision stays an hour for its log; a sweep that does not get an
// answer writes nothing and says so.
func TestSweepFailedRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		c.Behave = func(deployer.Spec) deployertest.Behaviour {
			return deployertest.Behaviour{Failure: &deployer.Failure{Code: deployer.Crash, Cause: "boom"}}
		}
		if _, err := deployer.Deploy(t.Context(), c, plan(3, unit("a", "bad"), unit("b", "b1"), unit("gone", "aa")), deployer.Options{}); err == nil {
			t.Fatal("a broken unit went live")
		}
		s := deployer.NewSweeper(c, deployer.SweepOptions{})
		if sw := sweepOnce(t, c, s, scope); len(sw.Done) > 0 {
			t.Errorf("at once: %q", sw.Done)
		}
		time.Sleep(61 * time.Minute)
		sweepOnce(t, c, s, scope) // what was kept warm
		if sw := sweepOnce(t, c, s, scope); len(sw.Done) != 1 || !strings.Contains(sw.Done[0], unit("a", "bad").RevisionName(1)) {
			t.Errorf("after an hour: %q", sw.Done)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c, _ := prepared(t, history)
		deaf := silent{c}
		all, _ := c.Scopes(t.Context())
		if _, err := deployer.NewSweeper(deaf, deployer.SweepOptions{}).Sweep(t.Context(), all[0], all); !errors.Is(err, deployer.ErrUnavailable) {
			t.Errorf("got %v; want unavailable", err)
		}
	})
}

// silent is a cluster that does not say what it runs.
type silent struct{ *deployertest.Cluster }

func (silent) Services(context.Context, deployer.Scope) ([]deployer.Service, error) {
	return nil, fmt.Errorf("list services: %w", deployer.ErrUnavailable)
}

// unfloored checks that no rollout's floor is left.
func unfloored(t *testing.T, c *deployertest.Cluster) {
	t.Helper()
	all, err := c.Services(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	for _, svc := range all {
		for _, r := range svc.Revisions {
			if r.Floor > 0 {
				t.Errorf("%s still has a floor of %d", r.Name, r.Floor)
			}
		}
	}
}
