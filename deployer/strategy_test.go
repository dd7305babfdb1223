package deployer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

// traffic is what a service's revisions have, newest content first.
func traffic(t *testing.T, c *deployertest.Cluster, service string) map[string]int {
	t.Helper()
	all, err := c.Services(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, svc := range all {
		if svc.Name == service {
			for _, s := range svc.Traffic {
				if s.Percent > 0 {
					out[s.Revision] += s.Percent
				}
			}
		}
	}
	return out
}

// Until the end, or until a person is asked.
func TestPauses(t *testing.T) {
	steps := []deployer.Weight{{Weight: 5, Pause: time.Minute}, {Weight: 30, Pause: 2 * time.Minute}, {Weight: 50, Approval: true}, {Weight: 80, Pause: 4 * time.Minute}, {Weight: 100, Pause: time.Hour}}
	p := deployer.Policy{Strategy: deployer.Canary, Steps: steps}
	judged := p
	judged.Analysis = &analysis.Criteria{Interval: 90 * time.Second}
	direct := p
	direct.Strategy = deployer.Direct
	for _, tc := range []struct {
		p    deployer.Policy
		next int
		want time.Duration
	}{{p, 0, 3 * time.Minute}, {p, 1, 2 * time.Minute}, {p, 2, 0}, {p, 3, 4 * time.Minute}, {p, 9, 0}, {judged, 0, 210 * time.Second}, {direct, 0, 0}} {
		if got := tc.p.Pauses(tc.next); got != tc.want {
			t.Errorf("%s from step %d: %s, want %s", tc.p.Strategy, tc.next, got, tc.want)
		}
	}
}

// The weight never moves before the new revision has the instances that its
// share of the old one's load needs, whatever the strategy; and the old one
// keeps its own, so that the way back is as safe.
func TestRoomBeforeWeight(t *testing.T) {
	for _, policy := range []deployer.Policy{
		{},
		{Strategy: deployer.BlueGreen},
		{Strategy: deployer.Canary, Steps: []deployer.Weight{{Weight: 5, Pause: time.Minute}, {Weight: 30, Pause: time.Minute}}},
	} {
		t.Run(policy.Strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pods := 6
				c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour {
					return deployertest.Behaviour{Delay: 7 * time.Second, Pods: pods}
				}}
				old := deploy(t, c, plan(1, unit("a", "a1"))).Units[0].Revision
				pods = 1
				p := plan(2, unit("a", "a2"))
				p.Policy = policy
				seen := []int{}
				d := &deployertest.Dying{Target: c}
				d.After = func(verb string) {
					if verb != "SetTraffic" {
						return
					}
					now := p.Units[0].RevisionName(1)
					weight := traffic(t, c, "shop-a")[now]
					if weight == 0 {
						return
					}
					seen = append(seen, weight)
					have, err := c.Instances(t.Context(), scope, "shop-a", now)
					if need := (6*weight + 99) / 100; err != nil || have < need {
						t.Errorf("%d %% with %d instances, %v; want %d", weight, have, err, need)
					}
					if have, err := c.Instances(t.Context(), scope, "shop-a", old); err != nil || have < 6 {
						t.Errorf("at %d %% the old revision has %d instances, %v", weight, have, err)
					}
				}
				out := deploy(t, d, p)
				want := []int{100}
				if policy.Strategy == deployer.Canary {
					want = []int{5, 30, 100}
				}
				if !slices.Equal(seen, want) {
					t.Errorf("weights %v, want %v", seen, want)
				}
				settled(t, c, out.Release)

				// Within keepWarm the way back needs no waiting at all.
				start := time.Now()
				back, err := deployer.Rollback(t.Context(), c, scope, "", deployer.Options{})
				if err != nil || back.ID != "r1" || time.Since(start) > 0 {
					t.Errorf("back to %s after %s, %v", back.ID, time.Since(start), err)
				}
				// Once its time is over, instances and tag are given back.
				time.Sleep(11 * time.Minute)
				if did, err := deployer.Tidy(t.Context(), c, scope, deployer.Options{}); !did || err != nil {
					t.Errorf("tidied %v, %v", did, err)
				}
				unfloored(t, c)
				if did, err := deployer.Tidy(t.Context(), c, scope, deployer.Options{}); did || err != nil {
					t.Errorf("tidied again: %v, %v", did, err)
				}
			})
		})
	}
}

// A rollback says before anything that it has to start pods, once the release
// that it returns to is no longer kept warm; before that there is nothing to
// say.
func TestLateRollbackSaysSo(t *testing.T) {
	for name, tc := range map[string]struct {
		after time.Duration
		now   bool
		want  string
	}{
		"warm":      {time.Minute, false, ""},
		"cold":      {11 * time.Minute, false, "r1 is not kept warm: its pods are started before traffic moves"},
		"cold, now": {11 * time.Minute, true, "r1 is not kept warm: its pods start while traffic moves"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &deployertest.Cluster{}
				deploy(t, c, plan(1, unit("a", "a1")))
				deploy(t, c, plan(2, unit("a", "a2")))
				time.Sleep(tc.after)
				var said []string
				o := deployer.Options{SkipCapacity: tc.now, Progress: func(e deployer.Event) {
					if strings.Contains(e.Text, "kept warm") {
						said = append(said, e.Text)
					}
				}}
				if _, err := deployer.Rollback(t.Context(), c, scope, "", o); err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(said, "; "); got != tc.want {
					t.Errorf("it says %q, want %q", got, tc.want)
				}
			})
		})
	}
}

// No room: nothing moves, the old release serves.
func TestNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := deployertest.Behaviour{Pods: 6}
		c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour { return b }}
		live := deploy(t, c, plan(1, unit("a", "a1")))
		b = deployertest.Behaviour{}
		full := &full{c}
		_, err := deployer.Deploy(t.Context(), full, plan(2, unit("a", "a2")), deployer.Options{})
		var f *deployer.Failed
		causes := deployer.Failures(err)
		if !errors.As(err, &f) || f.Moved || len(causes) != 1 || causes[0].Code != deployer.NoRoom {
			t.Fatalf("got %v; want no room, nothing moved", err)
		}
		settledLive(t, c, live.Release)
		// A rollback can be told not to wait.
		deploy(t, c, plan(3, unit("a", "a3")))
		out, err := deployer.Rollback(t.Context(), full, scope, "", deployer.Options{SkipCapacity: true})
		if err != nil || out.ID != "r1" {
			t.Errorf("rollback without waiting: %s, %v", out.ID, err)
		}
	})
}

// full is a cluster without room for another instance.
type full struct{ *deployertest.Cluster }

func (f *full) Instances(ctx context.Context, s deployer.Scope, service, revision string) (int, error) {
	n, err := f.Cluster.Instances(ctx, s, service, revision)
	if n != 6 || revision != unit("a", "a1").RevisionName(1) {
		n = min(n, 1)
	}
	return n, err
}

func settledLive(t *testing.T, c *deployertest.Cluster, want deployer.Release) {
	t.Helper()
	h, err := c.Head(t.Context(), scope)
	if err != nil || h.Live != want.ID || h.Rollout != nil {
		t.Errorf("head %+v, %v; want %s live, nothing open", h, err, want.ID)
	}
	for _, u := range want.Units {
		if got := traffic(t, c, u.Spec.Name); got[u.Revision] != 100 {
			t.Errorf("%s: traffic %v, want all at %s", u.Spec.Name, got, u.Revision)
		}
	}
}

// counter counts 100 requests a second from its start, with failures.
func counter(failed float64, took time.Duration) func() []analysis.Counts {
	start := time.Now()
	return func() []analysis.Counts {
		var c analysis.Counts
		n := int(100 * time.Since(start).Seconds())
		for i := range n {
			status := 200
			if float64(i%1000) < failed*1000 {
				status = 500
			}
			c.Add(status, took)
		}
		c.Instance = "one"
		return []analysis.Counts{c}
	}
}

func TestAnalysis(t *testing.T) {
	rate := 99.0
	judged := &analysis.Criteria{Interval: 10 * time.Second, SuccessRate: &rate, P99: 200 * time.Millisecond}
	for _, tc := range []struct {
		name      string
		failed    float64
		took      time.Duration
		mute      bool
		onNoData  string
		onFailure string
		want      deployer.Code
		held      bool
	}{
		{name: "good"},
		{name: "fails often", failed: 0.02, want: deployer.AnalysisFailed},
		{name: "worse than stable", failed: 0.009, want: deployer.AnalysisFailed},
		{name: "slow", took: time.Second, want: deployer.AnalysisFailed},
		{name: "slower than stable", took: 150 * time.Millisecond, want: deployer.AnalysisFailed},
		{name: "no data, wait", mute: true, want: deployer.AnalysisNoData},
		{name: "no data, fail", mute: true, onNoData: "fail", want: deployer.AnalysisNoData},
		{name: "no data, pass", mute: true, onNoData: "pass"},
		{name: "fails, hold", failed: 0.5, onFailure: "hold", held: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failed, took := 0.0, 10*time.Millisecond
				mute := false
				c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour {
					if mute {
						return deployertest.Behaviour{}
					}
					return deployertest.Behaviour{Count: counter(failed, took)}
				}}
				live := deploy(t, c, plan(1, unit("a", "a1")))
				failed, mute = tc.failed, tc.mute
				if tc.took > 0 {
					took = tc.took
				}
				crit := *judged
				crit.OnNoData = tc.onNoData
				p := stepping(plan(2, unit("a", "a2")), deployer.Weight{Weight: 30, Pause: time.Minute})
				p.Policy.Analysis, p.Policy.OnFailure = &crit, tc.onFailure
				out, err := deployer.Deploy(t.Context(), c, p, deployer.Options{Holder: t.Name()})
				h, _ := c.Head(t.Context(), scope)
				var f *deployer.Failed
				switch {
				case tc.held:
					if !errors.Is(err, deployer.ErrHeld) || h.Held == "" || traffic(t, c, "shop-a")[p.Units[0].RevisionName(1)] != 30 {
						t.Fatalf("got %v, head %+v, traffic %v; want it held at 30 %%", err, h, traffic(t, c, "shop-a"))
					}
					if _, err := deployer.Deploy(t.Context(), c, plan(3, unit("a", "a3")), deployer.Options{}); !errors.Is(err, deployer.ErrHeld) {
						t.Errorf("the next pipeline: %v; want held", err)
					}
					out, err := deployer.Promote(t.Context(), c, scope, 0, deployer.Options{})
					if err != nil {
						t.Fatal(err)
					}
					settled(t, c, out.Release)
					if h, _ := c.Head(t.Context(), scope); h.Held != "" {
						t.Errorf("held after a person's promotion: %s", h.Held)
					}
				case tc.want != "":
					if causes := deployer.Failures(err); !errors.As(err, &f) || !f.Moved || len(causes) != 1 || causes[0].Code != tc.want {
						t.Fatalf("got %v; want %s, traffic put back", err, tc.want)
					}
					settledLive(t, c, live.Release)
					if h.Undone == nil || h.Undone.Weight != 30 || h.Undone.Why == "" {
						t.Errorf("undone %+v", h.Undone)
					}
				case err != nil:
					t.Fatal(err)
				default:
					settled(t, c, out.Release)
				}
			})
		})
	}
}

func TestVerifyBeforeTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reply := deployer.Reply{Status: 200, Took: time.Millisecond}
		asked := 0
		c := &deployertest.Cluster{Behave: func(deployer.Spec) deployertest.Behaviour {
			return deployertest.Behaviour{Reply: func(q deployer.Request) (deployer.Reply, error) {
				asked++
				if asked == 1 {
					return deployer.Reply{}, errors.New("connection refused") // once is no verdict
				}
				if q.Method != "POST" || q.Path != "/ping?x=1" {
					t.Errorf("asked %+v", q)
				}
				return reply, nil
			}}
		}}
		p := plan(1, unit("a", "a1"), unit("b", "b1"))
		p.Policy.Verify = []deployer.Verify{{Service: "shop-a", Method: "POST", Path: "/ping?x=1", Status: 200, Max: 100 * time.Millisecond}}
		live := deploy(t, c, p)
		if asked != 2 {
			t.Errorf("asked %d times", asked)
		}
		for _, bad := range []deployer.Reply{{Status: 500, Body: "no\nbase"}, {Status: 200, Took: time.Second}} {
			reply = bad
			p.Pipeline++
			p.Units[0] = unit("a", fmt.Sprintf("a%d", p.Pipeline))
			_, err := deployer.Deploy(t.Context(), c, p, deployer.Options{})
			var f *deployer.Failed
			if causes := deployer.Failures(err); !errors.As(err, &f) || f.Moved || f.Step != deployer.StepVerify || len(causes) != 1 || causes[0].Code != deployer.VerifyFailed || !strings.Contains(err.Error(), "POST /ping") {
				t.Errorf("got %v; want verify failed before any traffic", err)
			}
			settledLive(t, c, live.Release)
		}
	})
}

func TestManualAndApproval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &deployertest.Cluster{}
		live := deploy(t, c, plan(1, unit("a", "a1")))
		o := deployer.Options{Holder: t.Name()}
		if _, err := deployer.Promote(t.Context(), c, scope, 0, o); !errors.Is(err, deployer.ErrNotFound) {
			t.Errorf("nothing to promote: %v", err)
		}
		p2 := plan(2, unit("a", "a2"))
		p2.Policy.Strategy = deployer.Manual
		for range 2 {
			out := deploy(t, c, p2)
			if out.Awaiting == "" || out.ID != "r2" {
				t.Errorf("staged: %+v", out)
			}
			settledLive(t, c, live.Release)
		}
		if _, err := deployer.Promote(t.Context(), c, scope, 3, o); !errors.Is(err, deployer.ErrSuperseded) {
			t.Errorf("another pipeline's promotion: %v", err)
		}
		second, err := deployer.Promote(t.Context(), c, scope, 2, o)
		if err != nil || second.Awaiting != "" || second.Previous != "r1" {
			t.Fatalf("promoted: %+v, %v", second, err)
		}
		settled(t, c, second.Release)
		if again, err := deployer.Promote(t.Context(), c, scope, 2, o); err != nil || !again.NoChange {
			t.Errorf("promoted again: %+v, %v", again, err)
		}

		p5 := stepping(plan(5, unit("a", "a5")), deployer.Weight{Weight: 5, Approval: true}, deployer.Weight{Weight: 40, Approval: true})
		for range 2 {
			if out := deploy(t, c, p5); out.Awaiting == "" {
				t.Errorf("outcome %+v; want it to wait", out)
			}
			if got := traffic(t, c, "shop-a")[p5.Units[0].RevisionName(1)]; got != 5 {
				t.Errorf("%d %%, want 5", got)
			}
		}
		if _, err := deployer.Deploy(t.Context(), c, plan(4, unit("a", "a4")), o); !errors.Is(err, deployer.ErrSuperseded) {
			t.Errorf("an older pipeline: %v", err)
		}
		next, err := deployer.Promote(t.Context(), c, scope, 5, o)
		if err != nil || next.Awaiting == "" || traffic(t, c, "shop-a")[p5.Units[0].RevisionName(1)] != 40 {
			t.Fatalf("after one promotion: %+v, %v", next, err)
		}
		// An operator who rolls back means what serves the others.
		back, err := deployer.Rollback(t.Context(), c, scope, "", o)
		if err != nil || back.ID != second.ID {
			t.Fatalf("rolled back to %s, %v; want %s", back.ID, err, second.ID)
		}
		settledLive(t, c, second.Release)
		if err := deployer.Resume(t.Context(), c, scope, o); err != nil {
			t.Fatal(err)
		}
		deploy(t, c, p5)
		if _, err := deployer.Promote(t.Context(), c, scope, 5, o); err != nil {
			t.Fatal(err)
		}
		last, err := deployer.Promote(t.Context(), c, scope, 5, o)
		if err != nil || last.Awaiting != "" {
			t.Fatalf("after the last promotion: %+v, %v", last, err)
		}
		settled(t, c, last.Release)
	})
}
