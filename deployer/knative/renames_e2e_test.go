//go:build e2e

package knative_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// A unit under another name is proven before the old one goes; a rollback
// brings the old name back.
func TestRenamedUnit(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	ns := c.namespace(t)
	k, scope := target(t, c), scopeIn(ns)
	first, err := deploy(t, k, scope, 1, unit("old", one))
	if err != nil {
		t.Fatal(err)
	}
	answers := func(unit string, want int) {
		t.Helper()
		eventually(t, unit+" answers as it should", func() bool { code, _ := asked(t, "app-"+unit, ns, "/"); return code == want })
	}
	stop := load(t, first.Units[0].URL, 20)
	o := quick()
	o.Progress = func(e deployer.Event) {
		t.Logf("%s %s: %s", e.Step, e.Unit, e.Text)
		if e.Step == deployer.StepLive {
			stop() // from here on callers know the new name
		}
	}
	second, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: 2, Units: []deployer.Spec{unit("new", one)}}, o)
	if err != nil {
		t.Fatal(err)
	}
	until := stop()
	until.unbroken(t)
	if len(until.answers) != 1 {
		t.Errorf("the old name answered %v until the new one was live; want its own revision alone", until.answers)
	}
	if len(second.Changes) != 2 || second.Changes[0].Action != deployer.Create || second.Changes[1].Action != deployer.Remove || second.Changes[1].Service != "app-old" {
		t.Errorf("changes %+v; want app-new created and app-old removed", second.Changes)
	}
	c.unharmed(t, k, scope, second.Release)
	answers("new", 200)
	answers("old", 404)

	back, err := deployer.Rollback(t.Context(), k, scope, "", quick())
	if err != nil || back.ID != first.ID {
		t.Fatalf("rolled back to %+v, %v", back.Release, err)
	}
	c.unharmed(t, k, scope, back.Release)
	answers("old", 200)
	answers("new", 404)
}

// A service under another name stands beside the old one, which serves on
// under a tombstone until its grace is over; then the watchdog ends it, and a
// unit that no release names. Another service of the repository, deployed as
// long ago, is not touched. The records stay: a rollback brings the old name
// back.
func TestRenamedServiceEndsAfterItsGrace(t *testing.T) {
	t.Parallel() // it waits more than it does
	c := lab(t)
	one := image(t, "one")
	ns := c.namespace(t)
	k, before := target(t, c), scopeIn(ns)
	after, beside := before, before
	after.Service, beside.Service = "shop", "other"
	named := func(service, n string) deployer.Spec {
		u := unit(n, one)
		u.Name = service + "-" + n
		return u
	}
	first, err := deploy(t, k, before, 1, unit("main", one))
	if err != nil {
		t.Fatal(err)
	}
	third, err := deploy(t, k, beside, 1, named("other", "main"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := deployer.Deploy(t.Context(), k, deployer.Plan{
		Scope: after, Pipeline: 2, Units: []deployer.Spec{named("shop", "main")}, Services: []string{"other", "shop"},
	}, quick())
	if err != nil {
		t.Fatal(err)
	}
	h, err := k.Head(t.Context(), after)
	if err != nil {
		t.Fatal(err)
	}
	h.Epoch++
	if h, err = k.SwapHead(t.Context(), after, h); err != nil {
		t.Fatal(err)
	}
	stray := named("shop", "stray")
	if err := k.Ensure(t.Context(), deployer.Fence{Scope: after, Epoch: h.Epoch}, stray, stray.RevisionName(1)); err != nil {
		t.Fatal(err)
	}
	old, now := load(t, first.Units[0].URL, 10), load(t, second.Units[0].URL, 10)

	watched, err := knative.New(knative.Config{REST: c.rest, IngressAddress: ingress(), Namespaces: []string{ns}})
	if err != nil {
		t.Fatal(err)
	}
	const grace = 20 * time.Second
	o := deployer.SweepOptions{Options: quick(), Grace: grace}
	o.Holder = "the watchdog"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		deployer.NewSweeper(watched, o).Watch(ctx, watched, deployer.WatchOptions{Every: 500 * time.Millisecond, Full: time.Second, Report: func(s deployer.Swept, err error) {
			line, _ := json.Marshal(s)
			t.Logf("the watchdog: %s %v", line, err)
		}})
	}()
	unwatch := func() { cancel(); <-ended }
	t.Cleanup(unwatch)

	marked := map[string]time.Time{}
	eventually(t, "the renamed service and the stray unit have tombstones", func() bool {
		for scope, name := range map[deployer.Scope]string{before: deployer.TombstoneAll, after: stray.Name} {
			if h, err := k.Head(t.Context(), scope); err == nil && !h.Tombstones[name].Since.IsZero() {
				marked[name] = h.Tombstones[name].Since
			}
		}
		return len(marked) == 2
	})
	state, err := deployer.Observe(t.Context(), k, before)
	if err != nil {
		t.Fatal(err)
	}
	says := func(s string) bool {
		return strings.Contains(s, "everything here is an orphan") && strings.Contains(s, "the project deploys as shop now")
	}
	if w := state.Warnings(time.Now()); !slices.ContainsFunc(w, says) {
		t.Errorf("status says %q; want that it is an orphan, and why", w)
	}
	time.Sleep(time.Until(marked[deployer.TombstoneAll].Add(grace * 3 / 4)))
	served := old()
	if stopped := time.Since(marked[deployer.TombstoneAll]); stopped < grace {
		served.unbroken(t)
	} else {
		t.Logf("this machine is too busy to say how the old name serves within its grace of %s: the load ended after %s", grace, stopped)
	}
	eventually(t, "the watchdog ends the renamed service and the stray unit", func() bool {
		all, err := c.serve.Services(ns).List(t.Context(), metav1.ListOptions{})
		return err == nil && len(all.Items) == 2 && all.Items[0].Name == "other-main" && all.Items[1].Name == "shop-main"
	})
	if over := time.Since(marked[deployer.TombstoneAll]); over < grace {
		t.Errorf("ended %s after its tombstone; want at least %s", over, grace)
	}
	eventually(t, "the old name is gone", func() bool { code, _ := asked(t, "app-main", ns, "/"); return code == 404 })
	eventually(t, "the watchdog has put the pen down", func() bool {
		a, errA := k.Head(t.Context(), before)
		b, errB := k.Head(t.Context(), after)
		return errA == nil && errB == nil && a.Holder == "" && b.Holder == "" && len(b.Tombstones) == 0
	})
	unwatch()
	c.unharmed(t, k, before, deployer.Release{})
	c.unharmed(t, k, after, second.Release)
	c.unharmed(t, k, beside, third.Release)
	now().unbroken(t)

	if back, err := deployer.Rollback(t.Context(), k, before, "", quick()); err != nil || back.ID != first.ID {
		t.Fatalf("from the record: %+v, %v", back.Release, err)
	}
	c.unharmed(t, k, before, first.Release)
	if code, body := asked(t, "app-main", ns, "/"); code != 200 || body != first.Units[0].Revision {
		t.Errorf("brought back, %d %s answers", code, body)
	}
}
