package deployer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

var scope = deployer.Scope{Service: "shop", Environment: "prod", Namespace: "shop-prod", Owner: "42"}

// image makes a reference whose digest starts with the given hex.
func image(hex string) name.Digest {
	d, err := name.NewDigest("registry.example/shop@sha256:" + hex + strings.Repeat("0", 64-len(hex)))
	if err != nil {
		panic(err)
	}
	return d
}

// unit is a unit called n that runs the image v.
func unit(n, v string) deployer.Spec {
	return deployer.Spec{Name: "shop-" + n, Unit: n, Image: image(v), Key: "k-" + v, Table: `{"name":"` + n + `"}`}
}

func plan(pipeline int64, units ...deployer.Spec) deployer.Plan {
	return deployer.Plan{Scope: scope, Units: units, Pipeline: pipeline, Commit: fmt.Sprintf("c%d", pipeline), Bundle: "sha256:b"}
}

func deploy(t *testing.T, target deployer.Target, p deployer.Plan) deployer.Outcome {
	t.Helper()
	out, err := deployer.Deploy(t.Context(), target, p, deployer.Options{Holder: t.Name()})
	if err != nil {
		t.Fatalf("deploy pipeline %d: %v", p.Pipeline, err)
	}
	return out
}

// settled checks that what is live is whole: the record and every service
// agree, nothing else is left, nothing is open.
func settled(t *testing.T, target deployer.Target, want deployer.Release) {
	t.Helper()
	s, err := deployer.Observe(t.Context(), target, scope)
	if err != nil {
		t.Fatal(err)
	}
	if s.Head.Rollout != nil || s.Head.Holder != "" || s.Head.Live != want.ID {
		t.Errorf("head: rollout %+v, holder %q, live %s; want none, none, %s", s.Head.Rollout, s.Head.Holder, s.Head.Live, want.ID)
	}
	if len(s.Services) != len(want.Units) {
		t.Errorf("%d services, want %d", len(s.Services), len(want.Units))
	}
	timed(t, s, want)
	kept := map[string]bool{}
	ids, err := target.Releases(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		r, err := target.Release(t.Context(), scope, id)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(s.Head.History, func(w deployer.WasLive) bool { return w.Release == id }) {
			t.Errorf("release %s was never live and is still recorded", id)
		}
		for _, u := range r.Units {
			kept[u.Revision] = true
		}
	}
	for _, u := range want.Units {
		i := slices.IndexFunc(s.Services, func(svc deployer.Service) bool { return svc.Name == u.Spec.Name })
		if i < 0 {
			t.Errorf("no service %s", u.Spec.Name)
			continue
		}
		svc := s.Services[i]
		if svc.Job != (u.Spec.Job != nil) {
			t.Errorf("%s: job %v", svc.Name, svc.Job)
		}
		if svc.Job {
			if _, ok := svc.Revision(u.Revision); !ok {
				t.Errorf("%s has no revision %s", svc.Name, u.Revision)
			}
		} else if !svc.Only(u.Revision) || svc.Template != u.Revision {
			t.Errorf("%s: traffic %v, template %s; want all %s", svc.Name, svc.Traffic, svc.Template, u.Revision)
		}
		for _, r := range svc.Revisions {
			if !kept[r.Name] {
				t.Errorf("%s: revision %s belongs to no kept release", svc.Name, r.Name)
			}
		}
	}
}

// timed checks that the timers are the release's, each calling the revision
// that is live.
func timed(t *testing.T, s deployer.State, want deployer.Release) {
	t.Helper()
	if len(s.Timers) != len(want.Timers) {
		t.Errorf("%d timers, want %d: %+v", len(s.Timers), len(want.Timers), s.Timers)
	}
	for _, w := range want.Timers {
		var calls string
		for _, u := range want.Units {
			if u.Spec.Name == w.Service {
				calls = u.Revision
			}
		}
		i := slices.IndexFunc(s.Timers, func(o deployer.ObservedTimer) bool { return o.Key == w.Key() })
		if i < 0 || s.Timers[i].Revision != calls || s.Timers[i].Does != w.Does(calls) {
			t.Errorf("timer %s of %s: want it to call %s; have %+v", w.Name, w.Function, calls, s.Timers)
		}
	}
}

func TestDeployChangesOnlyWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour {
			return deployertest.Behaviour{Delay: 3 * time.Second}
		}}
		first := deploy(t, c, plan(1, unit("a", "aa"), unit("b", "bb")))
		settled(t, c, first.Release)
		if first.ID != "r1" || first.Previous != "" || !first.Verified {
			t.Errorf("first release %s after %q, verified %v; want r1, none, true", first.ID, first.Previous, first.Verified)
		}
		second := deploy(t, c, plan(2, unit("a", "aa"), unit("b", "b2")))
		settled(t, c, second.Release)
		if a, b := second.Units[0].Revision, second.Units[1].Revision; a != first.Units[0].Revision || b == first.Units[1].Revision {
			t.Errorf("revisions %s, %s after %s, %s; want only b changed", a, b, first.Units[0].Revision, first.Units[1].Revision)
		}
		if got := actions(second.Changes); got != "a:unchanged b:update" {
			t.Errorf("changes %s", got)
		}
		services, _ := c.Services(t.Context(), scope)
		if services[0].Epoch != 1 {
			t.Errorf("the untouched service was written under epoch %d", services[0].Epoch)
		}
		if len(services[1].Traffic) != 2 || services[1].Traffic[1].Tag != deployer.TagPrevious {
			t.Errorf("traffic %v; want the replaced revision tagged %s", services[1].Traffic, deployer.TagPrevious)
		}

		again := deploy(t, c, plan(2, unit("a", "aa"), unit("b", "b2")))
		if !again.NoChange || again.ID != "r2" {
			t.Errorf("again: %s, no change %v; want r2, true", again.ID, again.NoChange)
		}
		// Another pipeline with equal units makes neither revision nor release: a
		// rollback still means the release before.
		third := deploy(t, c, plan(3, unit("a", "aa"), unit("b", "b2")))
		if !third.NoChange || third.ID != "r2" || actions(third.Changes) != "a:unchanged b:unchanged" {
			t.Errorf("third: %s, no change %v, %s", third.ID, third.NoChange, actions(third.Changes))
		}
		settled(t, c, third.Release)
		head, err := c.Head(t.Context(), scope)
		if err != nil {
			t.Fatal(err)
		}
		if head.Pipeline != 3 || head.Previous != "r1" {
			t.Errorf("head: pipeline %d, previous %s; want 3, r1", head.Pipeline, head.Previous)
		}
		// It counts as live under that pipeline: a later re-run of its job is
		// welcome, and one of a pipeline that never deployed is not.
		fourth := deploy(t, c, plan(5, unit("a", "aa"), unit("b", "b3")))
		if fourth.ID != "r3" {
			t.Errorf("fourth: %s", fourth.ID)
		}
		if _, err := deployer.Deploy(t.Context(), c, plan(4, unit("a", "aa"), unit("b", "b2")), deployer.Options{Holder: t.Name()}); !errors.Is(err, deployer.ErrSuperseded) {
			t.Errorf("pipeline 4 gave %v", err)
		}
		if back := deploy(t, c, plan(3, unit("a", "aa"), unit("b", "b2"))); !back.Rollback || back.ID != "r2" {
			t.Errorf("re-run of pipeline 3: %s, rollback %v", back.ID, back.Rollback)
		}
	})
}

func actions(cs []deployer.Change) string {
	var s []string
	for _, c := range cs {
		s = append(s, c.Unit+":"+string(c.Action))
	}
	return strings.Join(s, " ")
}

func TestMoveProvesTheNewUnitBeforeTheOldEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		deploy(t, c, plan(1, unit("main", "aa"), unit("quote", "aa")))
		// quote moves into main.
		moved := unit("main", "aa")
		moved.Table = `{"name":"main","functions":["hello","quote"]}`
		var order []string
		d := &deployertest.Dying{Target: c}
		d.After = func(verb string) { order = append(order, verb) }
		out := deploy(t, d, plan(2, moved))
		settled(t, c, out.Release)
		if got := actions(out.Changes); got != "main:update quote:remove" {
			t.Errorf("changes %s", got)
		}
		if gone, proof := slices.Index(order, "RemoveService"), lastIndex(order, "Probe"); gone < proof {
			t.Errorf("the old unit was removed at call %d, the new one proven at %d", gone, proof)
		}
	})
}

func lastIndex(s []string, v string) int {
	for i, x := range slices.Backward(s) {
		if x == v {
			return i
		}
	}
	return -1
}

func TestCrashLeavesOldServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := true
		c := &deployertest.Cluster{Behave: func(s deployer.Spec) deployertest.Behaviour {
			if bad && strings.Contains(s.Image.DigestStr(), ":bad") {
				return deployertest.Behaviour{Delay: time.Second, Failure: &deployer.Failure{
					Code: deployer.Crash, Cause: "exited with code 3", ExitCode: 3, Logs: []string{"boom"},
				}}
			}
			return deployertest.Behaviour{}
		}}
		live := deploy(t, c, plan(1, unit("a", "aa"), unit("b", "bb")))
		broken := plan(2, unit("a", "bad"), unit("b", "bad"), unit("c", "bad"))
		_, err := deployer.Deploy(t.Context(), c, broken, deployer.Options{})
		var f *deployer.Failed
		if !errors.As(err, &f) {
			t.Fatalf("error %v; want *Failed", err)
		}
		if f.Step != deployer.StepReady || f.Serving != "r1" || f.Moved || f.Restore != nil {
			t.Errorf("failed %+v; want at ready, r1 serving, nothing moved", f)
		}
		if !strings.Contains(err.Error(), "release r1 still serves") {
			t.Errorf("error %q doesn't say what serves", err)
		}
		causes := deployer.Failures(err)
		if len(causes) != 3 || causes[0].ExitCode != 3 || causes[0].Logs[0] != "boom" {
			t.Errorf("causes %+v; want all three crashes with their logs", causes)
		}
		services, _ := c.Services(t.Context(), scope)
		if len(services) != 2 {
			t.Errorf("%d services; the one that never served should be gone", len(services))
		}
		for i, svc := range services {
			if u := live.Units[i]; !svc.Only(u.Revision) || svc.Template != u.Revision {
				t.Errorf("%s: traffic %v, template %s; want %s", svc.Name, svc.Traffic, svc.Template, u.Revision)
			}
		}
		// The same content again, healed: another name, because the failed one is taken.
		bad = false
		broken.Units = broken.Units[:2]
		out := deploy(t, c, broken)
		if rev := out.Units[0].Revision; !strings.HasSuffix(rev, "-2") {
			t.Errorf("revision %s; want the second attempt", rev)
		}
		settled(t, c, out.Release)
	})
}

func TestRouteThatLiesIsRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		live := deploy(t, c, plan(1, unit("a", "aa")))
		asked := 0
		c.Behave = func(s deployer.Spec) deployertest.Behaviour {
			return deployertest.Behaviour{Answer: func(a deployer.Answer) (deployer.Answer, error) {
				if strings.Contains(s.Image.DigestStr(), ":a2") {
					if asked++; asked > 1 { // its own URL first, the route then
						a.Revision = live.Units[0].Revision
					}
				}
				return a, nil
			}}
		}
		_, err := deployer.Deploy(t.Context(), c, plan(2, unit("a", "a2")), deployer.Options{})
		var f *deployer.Failed
		if !errors.As(err, &f) || f.Step != deployer.StepCheck || !f.Moved || f.Restore != nil || f.Serving != "r1" {
			t.Fatalf("error %+v; want a failed check that was restored to r1", err)
		}
		if cs := deployer.Failures(err); len(cs) != 1 || cs[0].Code != deployer.WrongAnswer {
			t.Errorf("causes %v; want %s", cs, deployer.WrongAnswer)
		}
		s, _ := deployer.Observe(t.Context(), c, scope)
		if s.Head.Live != "r1" || s.Head.Rollout != nil || !s.Services[0].Only(live.Units[0].Revision) {
			t.Errorf("head %+v, traffic %v; want r1 alone", s.Head, s.Services[0].Traffic)
		}
	})
}

func TestUnverifiedIsSaid(t *testing.T) {
	for name, answer := range map[string]func(deployer.Answer) (deployer.Answer, error){
		"no nonce":    func(deployer.Answer) (deployer.Answer, error) { return deployer.Answer{Status: 404}, nil },
		"unreachable": func(deployer.Answer) (deployer.Answer, error) { return deployer.Answer{}, deployer.ErrUnreachable },
	} {
		t.Run(name, func(t *testing.T) {
			c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour {
				return deployertest.Behaviour{Answer: answer}
			}}
			out, err := deployer.Deploy(t.Context(), c, plan(1, unit("a", "aa")), deployer.Options{Progress: func(e deployer.Event) {
				if strings.Contains(e.Text, "answers with") {
					t.Errorf("said %q of what nobody saw", e.Text)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			if out.Verified || len(out.Warnings) == 0 || !strings.Contains(out.Warnings[0], "unverified") {
				t.Errorf("verified %v, warnings %q; want unverified, said", out.Verified, out.Warnings)
			}
			settled(t, c, out.Release)
		})
	}
}

func TestReadyTimeoutNamesWhatItWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour {
			return deployertest.Behaviour{Delay: time.Hour}
		}}
		_, err := deployer.Deploy(t.Context(), c, plan(1, unit("a", "aa")), deployer.Options{ReadyTimeout: time.Minute})
		cs := deployer.Failures(err)
		if len(cs) != 1 || cs[0].Code != deployer.TooSlow || !strings.Contains(cs[0].Cause, "still starting") || len(cs[0].Logs) == 0 {
			t.Fatalf("causes %+v of %v; want %s with what it waited for and logs", cs, err, deployer.TooSlow)
		}
		if services, _ := c.Services(t.Context(), scope); len(services) != 0 {
			t.Errorf("services %v are left", services)
		}
	})
}

func TestCancelPutsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		live := deploy(t, c, plan(1, unit("a", "aa")))
		c.Behave = func(deployer.Spec) deployertest.Behaviour { return deployertest.Behaviour{Delay: time.Minute} }
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Second, cancel)
		_, err := deployer.Deploy(ctx, c, plan(2, unit("a", "a2")), deployer.Options{})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v; want cancelled", err)
		}
		time.Sleep(time.Hour)
		s, _ := deployer.Observe(t.Context(), c, scope)
		if s.Head.Holder != "" || s.Head.Live != "r1" || !s.Services[0].Only(live.Units[0].Revision) || len(s.Services[0].Traffic) != 1 {
			t.Errorf("head %+v, traffic %v; want it as before", s.Head, s.Services[0].Traffic)
		}
	})
}

func TestRefusals(t *testing.T) {
	c := &deployertest.Cluster{}
	deploy(t, c, plan(5, unit("a", "aa")))
	foreign := plan(6, unit("a", "a2"))
	foreign.Scope.Owner = "43"
	canary := plan(6, unit("a", "a2"))
	canary.Policy.Strategy = "rainbow"
	long := plan(6, unit(strings.Repeat("x", 40), "aa"))
	for _, tc := range []struct {
		name string
		plan deployer.Plan
		want error
	}{
		{"foreign owner", foreign, deployer.ErrForeign},
		{"older pipeline", plan(4, unit("a", "a4")), deployer.ErrSuperseded},
		{"strategy", canary, deployer.ErrInvalid},
		{"long name", long, deployer.ErrInvalid},
		{"no unit", plan(6), deployer.ErrInvalid},
		{"two of a name", plan(6, unit("a", "a1"), unit("a", "a2")), deployer.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := &deployertest.Dying{Target: c}
			d.After = func(verb string) {
				if verb == "Ensure" || verb == "SetTraffic" || verb == "CreateRelease" {
					t.Errorf("%s was called", verb)
				}
			}
			if _, err := deployer.Deploy(t.Context(), d, tc.plan, deployer.Options{}); !errors.Is(err, tc.want) {
				t.Errorf("error %v; want %v", err, tc.want)
			}
		})
	}
	// A service name that another scope's project owns.
	other := deployer.Plan{Scope: deployer.Scope{Service: "x", Environment: "prod", Namespace: "shop-prod", Owner: "7"}, Units: []deployer.Spec{unit("a", "aa")}}
	var foreignErr *deployer.ForeignError
	if _, err := deployer.Deploy(t.Context(), c, other, deployer.Options{}); !errors.As(err, &foreignErr) || foreignErr.Owner != "42" {
		t.Errorf("error %v; want foreign, owner 42", err)
	}
}

func TestPreflightReportsAll(t *testing.T) {
	c := &deployertest.Cluster{Behave: func(s deployer.Spec) deployertest.Behaviour {
		return deployertest.Behaviour{Refuse: &deployer.Failure{Code: deployer.ImageMissing, Unit: s.Unit, Cause: "no such image"}}
	}}
	_, err := deployer.Deploy(t.Context(), c, plan(1, unit("a", "aa"), unit("b", "bb")), deployer.Options{})
	if cs := deployer.Failures(err); len(cs) != 2 {
		t.Errorf("causes %v; want both units'", cs)
	}
	h, _ := c.Head(t.Context(), scope)
	if !reflect.DeepEqual(h, deployer.Head{}) {
		t.Errorf("head %+v was written before preflight passed", h)
	}
}

func TestRollbackHoldsAndResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		r1 := deploy(t, c, plan(1, unit("a", "aa"), unit("gone", "aa")))
		r2 := deploy(t, c, plan(2, unit("a", "a2")))
		out, err := deployer.Rollback(t.Context(), c, scope, "", deployer.Options{Holder: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		settled(t, c, r1.Release)
		if !out.Rollback || out.ID != "r1" {
			t.Errorf("outcome %s, rollback %v", out.ID, out.Rollback)
		}
		var held *deployer.HeldError
		if _, err := deployer.Deploy(t.Context(), c, plan(3, unit("a", "a3")), deployer.Options{}); !errors.As(err, &held) || !strings.Contains(held.Why, "ann") {
			t.Fatalf("error %v; want held, by whom", err)
		}
		// Forward again, by hand, while held.
		if _, err := deployer.Rollback(t.Context(), c, scope, r2.ID, deployer.Options{}); err != nil {
			t.Fatal(err)
		}
		settled(t, c, r2.Release)
		if err := deployer.Resume(t.Context(), c, scope, deployer.Options{}); err != nil {
			t.Fatal(err)
		}
		settled(t, c, deploy(t, c, plan(3, unit("a", "a3"))).Release)
		for _, id := range []string{"r77", "r0"} {
			if _, err := deployer.Rollback(t.Context(), c, scope, id, deployer.Options{}); !errors.Is(err, deployer.ErrNotFound) {
				t.Errorf("rollback to %s: %v; want not found", id, err)
			}
		}
	})
}

func TestRerunOfOnceLivePipelineIsRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		first := deploy(t, c, plan(10, unit("a", "aa")))
		deploy(t, c, plan(20, unit("a", "a2")))
		// The old job doesn't even rebuild the same image.
		out := deploy(t, c, plan(10, unit("a", "ff")))
		if !out.Rollback || out.ID != first.ID {
			t.Errorf("outcome %s, rollback %v; want %s, true", out.ID, out.Rollback, first.ID)
		}
		settled(t, c, first.Release)
		h, _ := c.Head(t.Context(), scope)
		if h.Held == "" || h.Pipeline != 20 {
			t.Errorf("held %q, newest pipeline %d; want held, 20", h.Held, h.Pipeline)
		}
	})
}

func TestStageThenDeployReuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		live := deploy(t, c, plan(1, unit("a", "aa")))
		revs, err := deployer.Stage(t.Context(), c, plan(2, unit("a", "a2")), deployer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(revs) != 1 || revs[0].Replaces != live.Units[0].Revision || revs[0].URL == "" {
			t.Errorf("staged %+v", revs)
		}
		if got, _ := c.Route(scope, "shop-a"); got != live.Units[0].Revision {
			t.Errorf("%s answers while %s is only staged", got, revs[0].Name)
		}
		out := deploy(t, c, plan(2, unit("a", "a2")))
		if out.Units[0].Revision != revs[0].Name {
			t.Errorf("deployed %s, staged %s", out.Units[0].Revision, revs[0].Name)
		}
		settled(t, c, out.Release)
	})
}

func TestStopAndComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		r1 := deploy(t, c, plan(1, unit("a", "aa"), unit("b", "bb")))
		if err := deployer.Stop(t.Context(), c, scope, deployer.Options{}); err != nil {
			t.Fatal(err)
		}
		if services, _ := c.Services(t.Context(), scope); len(services) != 0 {
			t.Errorf("%d services are left", len(services))
		}
		if _, err := deployer.Rollback(t.Context(), c, scope, "", deployer.Options{}); err != nil {
			t.Fatal(err)
		}
		settled(t, c, r1.Release)
	})
}

func TestDriftIsHealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		deploy(t, c, plan(1, unit("a", "aa")))
		r2 := deploy(t, c, plan(2, unit("a", "a2")))
		h, _ := c.Head(t.Context(), scope)
		old := r2.Changes[0].From
		by := deployer.Fence{Scope: scope, Epoch: h.Epoch}
		if err := c.SetTraffic(t.Context(), by, "shop-a", []deployer.Share{{Revision: old, Percent: 60}, {Revision: r2.Units[0].Revision, Percent: 40}}); err != nil {
			t.Fatal(err)
		}
		out := deploy(t, c, plan(2, unit("a", "a2")))
		if out.NoChange || !strings.Contains(out.Changes[0].Why, "traffic") {
			t.Errorf("changes %+v; want the traffic put right", out.Changes)
		}
		settled(t, c, out.Release)
	})
}

func TestSpecNames(t *testing.T) {
	s := unit("a", "aa")
	// Names of revisions are for good: a change here is a needless rollout of
	// every unit of every repository.
	if got, want := s.RevisionName(1), "shop-a-fe29067f"; got != want {
		t.Errorf("revision %s, want %s", got, want)
	}
	other := s
	other.Key = "another"
	if s.Hash() != other.Hash() {
		t.Error("the image's key is part of the content")
	}
	s.Name = strings.Repeat("x", deployer.MaxServiceName)
	if n := len(s.RevisionName(9)); n > deployer.MaxRevisionName {
		t.Errorf("revision name of %d characters", n)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	want := deployer.Release{ID: "r1", Scope: scope, Units: []deployer.Live{{Unit: "a", Revision: "x", Spec: unit("a", "aa")}}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got deployer.Release
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Units[0].Spec.Hash() != want.Units[0].Spec.Hash() || got.Units[0].Spec.Image.String() != want.Units[0].Spec.Image.String() {
		t.Errorf("got %+v from %s", got, b)
	}
	rev := deployer.Revision{Name: "x", Image: image("aa")}
	b, _ = json.Marshal(rev)
	var back deployer.Revision
	if err := json.Unmarshal(b, &back); err != nil || back.Image.String() != rev.Image.String() {
		t.Errorf("got %+v, %v from %s", back, err, b)
	}
	if err := json.Unmarshal([]byte(`{"image":"no digest"}`), &back); err == nil {
		t.Error("an image without digest was accepted")
	}
}
