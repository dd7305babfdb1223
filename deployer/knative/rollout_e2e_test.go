//go:build e2e

package knative_test

import (
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// roll deploys the one unit main under a policy.
func roll(t *testing.T, target deployer.Target, scope deployer.Scope, pipeline int64, policy deployer.Policy, u deployer.Spec) (deployer.Outcome, error) {
	t.Helper()
	o := quick()
	start := time.Now()
	o.Progress = func(e deployer.Event) {
		t.Logf("%5.1fs %s %s: %s", time.Since(start).Seconds(), e.Step, e.Revision, e.Text)
	}
	return deployer.Deploy(t.Context(), target, deployer.Plan{Scope: scope, Pipeline: pipeline, Policy: policy, Units: []deployer.Spec{u}}, o)
}

// byHand changes every share of a service's traffic, as a person would who
// tries again when Knative has written in between.
func (c cluster) byHand(t *testing.T, scope deployer.Scope, name string, change func(*servingv1.TrafficTarget)) {
	t.Helper()
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		svc, err := c.serve.Services(scope.Namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for i := range svc.Spec.Traffic {
			if n := svc.Spec.Traffic[i].Percent; n != nil && *n > 0 {
				change(&svc.Spec.Traffic[i])
			}
		}
		_, err = c.serve.Services(scope.Namespace).Update(t.Context(), svc, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stepped is a canary that is judged by what the adapter's port says.
func stepped(steps ...int) deployer.Policy {
	rate := 98.0
	p := deployer.Policy{
		Strategy: deployer.Canary, KeepWarm: 10 * time.Minute,
		Analysis: &analysis.Criteria{Interval: 2 * time.Second, SuccessRate: &rate, MinRequests: 20},
	}
	for _, w := range steps {
		p.Steps = append(p.Steps, deployer.Weight{Weight: w, Pause: 4 * time.Second})
	}
	return p
}

// No request fails while a judged canary and a rollback pass under 200
// requests a second; the rollback within keepWarm is quick.
func TestCanaryAndRollbackUnderLoad(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	first, err := deploy(t, k, scope, 1, round(unit("main", one), 0))
	if err != nil {
		t.Fatal(err)
	}
	url := first.Units[0].URL
	stop := load(t, url, 200)
	second, err := roll(t, k, scope, 2, stepped(10, 50), round(unit("main", one), 1))
	if err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	out, err := deployer.Rollback(t.Context(), k, scope, "", quick())
	took := time.Since(back)
	if err != nil || out.ID != first.ID {
		t.Fatalf("rolled back to %s, %v", out.ID, err)
	}
	at := onlyAt(t, url, first.Units[0].Revision, back)
	t.Logf("rollback: command %s, at the route after %s", took.Round(time.Millisecond), at.Round(time.Millisecond))
	all := stop()
	all.unbroken(t)
	if all.answers[second.Units[0].Revision] == 0 {
		t.Errorf("answers %v; want some of the canary's", all.answers)
	}
	if h, err := k.Head(t.Context(), scope); err != nil || h.Held == "" {
		t.Errorf("head %+v, %v; want it held after a rollback", h, err)
	}
}

// Once a release is no longer kept warm, a rollback says that it starts the
// pods that its traffic needs, and moves no request before they are ready.
func TestRollbackBeyondKeepWarm(t *testing.T) {
	t.Parallel() // it waits more than it does
	c := lab(t)
	one := image(t, "one")
	ns := c.namespace(t)
	k, scope := target(t, c), scopeIn(ns)
	least := func(n int) deployer.Spec {
		u := round(unit("main", one), n)
		u.CPU, u.MinScale, u.MaxScale = "20m", n, 6
		return u
	}
	first, err := deploy(t, k, scope, 1, least(0))
	if err != nil {
		t.Fatal(err)
	}
	second, err := deploy(t, k, scope, 2, least(3))
	if err != nil {
		t.Fatal(err)
	}
	late := quick()
	late.Now = func() time.Time { return time.Now().Add(deployer.DefaultKeepWarm + time.Minute) }
	if did, err := deployer.Tidy(t.Context(), k, scope, late); err != nil || !did {
		t.Fatalf("after keepWarm: gave back %v, %v", did, err)
	}
	cold := first.Units[0].Revision
	for deadline := time.Now().Add(4 * time.Minute); ; time.Sleep(time.Second) {
		pods, err := c.kube.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "serving.knative.dev/revision=" + cold})
		if err == nil && len(pods.Items) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s still runs, four minutes after it was given back: %v", cold, err)
		}
	}
	state, err := deployer.Observe(t.Context(), k, scope)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := deployer.CanRollback(t.Context(), k, scope, state, late.Now()); err != nil || !r.Ready || r.Warm || r.Why != "its pods are started first" {
		t.Errorf("status says %+v, %v; want ready, and that pods are started first", r, err)
	}
	url := second.Units[0].URL
	stop := load(t, url, 200)
	start := time.Now()
	o := quick()
	var said []string                     // of the capacity
	o.Progress = func(e deployer.Event) { // of one unit, in order
		t.Logf("%5.1fs %s: %s", time.Since(start).Seconds(), e.Step, e.Text)
		switch {
		case e.Step == deployer.StepScale, strings.Contains(e.Text, "kept warm"):
			said = append(said, e.Text)
		case e.Step == deployer.StepTraffic:
			if n, err := k.Instances(t.Context(), scope, "app-main", cold); err != nil || n < 3 {
				t.Errorf("traffic moves to %d instances, %v; want 3", n, err)
			}
		}
	}
	back, err := deployer.Rollback(t.Context(), k, scope, "", o)
	if err != nil || back.ID != first.ID {
		t.Fatalf("rolled back to %+v, %v", back.Release, err)
	}
	took := time.Since(start)
	onlyAt(t, url, cold, start)
	all := stop()
	all.unbroken(t)
	t.Logf("the command took %s", took.Round(10*time.Millisecond))
	if n := len(said); n < 3 || said[0] != "r1 is not kept warm: its pods are started before traffic moves" ||
		!strings.HasPrefix(said[1], "waiting: ") || !strings.HasSuffix(said[1], " of 3 instances are ready for the traffic") || said[n-1] != "3 instances are ready for the traffic" {
		t.Errorf("it said %q; want that it starts pods, waits for 3 instances, and has them", said)
	}
	c.unharmed(t, k, scope, back.Release)
}

// A canary that fails under traffic is put back, or held where it is; a person
// ends it, and pipelines deploy again once he says so.
func TestFailingCanary(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	first, err := deploy(t, k, scope, 1, round(unit("main", one), 0))
	if err != nil {
		t.Fatal(err)
	}
	live := first.Units[0].Revision
	stop := load(t, first.Units[0].URL, 50)
	defer stop()
	bad := round(unit("main", one), 1)
	bad.Environment["FAIL"] = "3"
	_, err = roll(t, k, scope, 2, stepped(30), bad)
	var f *deployer.Failed
	causes := deployer.Failures(err)
	if !errors.As(err, &f) || !f.Moved || f.Restore != nil || len(causes) != 1 || causes[0].Code != deployer.AnalysisFailed {
		t.Fatalf("got %v; want analysis failed and traffic put back", err)
	}
	onlyAt(t, first.Units[0].URL, live, time.Now())
	c.unharmed(t, k, scope, first.Release)
	h, err := k.Head(t.Context(), scope)
	if err != nil || h.Undone == nil || h.Undone.Weight != 30 || !strings.Contains(h.Undone.Why, "succeeded") {
		t.Errorf("the record says %+v, %v", h.Undone, err)
	}

	hold := stepped(30)
	hold.OnFailure = "hold"
	bad.Environment = map[string]string{"FAIL": "3", "ROUND": "2"}
	if _, err = roll(t, k, scope, 3, hold, bad); !errors.Is(err, deployer.ErrHeld) {
		t.Fatalf("got %v; want it held", err)
	}
	svc := only(t, k, scope)
	if i := slices.IndexFunc(svc.Traffic, func(s deployer.Share) bool { return s.Revision == bad.RevisionName(1) && s.Percent == 30 }); i < 0 {
		t.Errorf("traffic %v; want 30 %% left at the held release", svc.Traffic)
	}
	if _, err := deploy(t, k, scope, 4, round(unit("main", one), 4)); !errors.Is(err, deployer.ErrHeld) {
		t.Errorf("the next pipeline: %v; want held", err)
	}
	if out, err := deployer.Rollback(t.Context(), k, scope, "", quick()); err != nil || out.ID != first.ID {
		t.Fatalf("rolled back to %s, %v; want what serves the others", out.ID, err)
	}
	onlyAt(t, first.Units[0].URL, live, time.Now())
	if err := deployer.Resume(t.Context(), k, scope, quick()); err != nil {
		t.Fatal(err)
	}
	out, err := deploy(t, k, scope, 4, round(unit("main", one), 4))
	if err != nil || out.Pipeline != 4 {
		t.Errorf("after resume: %+v, %v", out, err)
	}
}

func only(t *testing.T, k *knative.Target, scope deployer.Scope) deployer.Service {
	t.Helper()
	all, err := k.Services(t.Context(), scope)
	if err != nil || len(all) != 1 {
		t.Fatalf("services %v, %v; want one", all, err)
	}
	return all[0]
}

// An approval leaves its share, and the promotion knows only the record.
func TestApprovalIsPromoted(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	if _, err := deploy(t, k, scope, 1, round(unit("main", one), 0)); err != nil {
		t.Fatal(err)
	}
	u := round(unit("main", one), 1)
	policy := deployer.Policy{
		Strategy: deployer.Canary, Steps: []deployer.Weight{{Weight: 25, Approval: true}},
		Verify: []deployer.Verify{{Service: u.Name, Method: "GET", Path: "/hello", Status: 200, Max: 10 * time.Second}},
	}
	out, err := roll(t, k, scope, 2, policy, u)
	if err != nil || out.Awaiting == "" {
		t.Fatalf("got %+v, %v; want it to wait", out, err)
	}
	// Traffic that somebody has changed by hand is put right by the promotion.
	c.byHand(t, scope, u.Name, func(to *servingv1.TrafficTarget) {
		half := int64(50)
		to.Percent = &half
	})
	done, err := deployer.Promote(t.Context(), target(t, c), scope, 2, quick())
	if err != nil || done.Awaiting != "" || done.ID != out.ID {
		t.Fatalf("promoted: %+v, %v", done, err)
	}
	clean(t, c, k, done)
}

// Two pipelines at once, an older one after a newer one, re-runs of one that
// was live and of one that never was, and traffic changed by hand.
func TestPipelinesInOrder(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	first, err := deploy(t, k, scope, 1, round(unit("main", one), 1))
	if err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	for _, n := range []int{3, 4} {
		both.Go(func() {
			_, err := deployer.Deploy(t.Context(), target(t, c), deployer.Plan{Scope: scope, Pipeline: int64(n), Units: []deployer.Spec{round(unit("main", one), n)}}, quick())
			if err != nil && (n == 4 || !errors.Is(err, deployer.ErrSuperseded)) {
				t.Errorf("pipeline %d: %v", n, err)
			}
		})
	}
	both.Wait()
	newest := round(unit("main", one), 4).RevisionName(1)
	if svc := only(t, k, scope); !svc.Only(newest) {
		t.Fatalf("traffic %v; want all at %s", svc.Traffic, newest)
	}
	if _, err := deploy(t, k, scope, 2, round(unit("main", one), 2)); !errors.Is(err, deployer.ErrSuperseded) {
		t.Errorf("one that was never live: %v; want superseded", err)
	}
	out, err := deploy(t, k, scope, 1, round(unit("main", one), 1))
	if err != nil || !out.Rollback || out.ID != first.ID {
		t.Fatalf("one that was live: %+v, %v; want a rollback to %s", out, err, first.ID)
	}
	if err := deployer.Resume(t.Context(), k, scope, quick()); err != nil {
		t.Fatal(err)
	}
	c.byHand(t, scope, "app-main", func(to *servingv1.TrafficTarget) {
		latest := true
		to.LatestRevision, to.RevisionName = &latest, ""
	})
	out, err = deploy(t, k, scope, 5, round(unit("main", one), 1))
	if err != nil || len(out.Changes) != 1 || !strings.Contains(out.Changes[0].Why, "behind our back") {
		t.Errorf("traffic changed by hand: %+v, %v", out.Changes, err)
	}
	if svc := only(t, k, scope); !svc.Only(first.Units[0].Revision) {
		t.Errorf("traffic %v", svc.Traffic)
	}
}

// From six busy pods all at once: the new revision has six before the share
// moves, and callers notice no more than of pods that only start.
func TestDirectFromSixPods(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	six := round(unit("main", one), 0)
	six.CPU, six.MinScale, six.MaxScale = "20m", 6, 8
	first, err := deploy(t, k, scope, 1, six)
	if err != nil {
		t.Fatal(err)
	}
	url := first.Units[0].URL
	const rate = 40 // of a request that costs next to nothing
	control := round(six, 1)
	control.CPU, control.MinScale, control.MaxScale = six.CPU, 6, 8
	stop := load(t, url, rate)
	if _, err := deployer.Stage(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: 2, Units: []deployer.Spec{control}}, quick()); err != nil {
		t.Fatal(err)
	}
	beside := stop()
	beside.unbroken(t)
	next := round(six, 2)
	next.CPU, next.MinScale, next.MaxScale = six.CPU, 0, 8
	var ready int
	o := quick()
	o.Progress = func(e deployer.Event) {
		t.Logf("%s: %s", e.Step, e.Text)
		if e.Step == deployer.StepTraffic {
			ready, _ = k.Instances(t.Context(), scope, next.Name, next.RevisionName(1))
		}
	}
	before, start := c.work(t, scope.Namespace), time.Now()
	stop = load(t, url, rate)
	if _, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: 3, Units: []deployer.Spec{next}}, o); err != nil {
		t.Fatal(err)
	}
	during := stop()
	share := (c.work(t, scope.Namespace) - before).Seconds() / time.Since(start).Seconds()
	during.unbroken(t)
	a, b := beside.slowest(), during.slowest()
	t.Logf("p99 %s during the shift, %s while the same pods only start; %d instances before the share moved; all pods of the unit, their start included, used %.0f %% of one core",
		b, a, ready, 100*share)
	if ready < 6 {
		t.Errorf("the share moved to %d instances; want 6", ready)
	}
	if share > 0.4 {
		t.Errorf("the unit's pods used %.0f %% of one core; want at most 40 %%, or this says nothing about the shift", 100*share)
	}
	// Twice the control, and what chance adds to the few slowest of some hundred
	// requests: a turn of a core that six starting pods share, or of one that
	// other work keeps busy.
	chance := 500 * time.Millisecond
	if quiet(t) {
		chance = 100 * time.Millisecond
	}
	if b > 2*a+chance {
		t.Errorf("p99 %s, control %s", b, a)
	}
}

// work is the CPU time that the containers now in the namespace have used, as
// their nodes count it.
func (c cluster) work(t *testing.T, ns string) time.Duration {
	t.Helper()
	nodes, err := c.kube.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, n := range nodes.Items {
		raw, err := c.kube.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/"+n.Name+"/proxy/stats/summary").Param("only_cpu_and_memory", "true").DoRaw(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var said struct {
			Pods []struct {
				PodRef     struct{ Namespace string }
				Containers []struct {
					CPU struct{ UsageCoreNanoSeconds uint64 }
				}
			}
		}
		if err := json.Unmarshal(raw, &said); err != nil {
			t.Fatal(err)
		}
		for _, p := range said.Pods {
			for _, container := range p.Containers {
				if p.PodRef.Namespace == ns {
					sum += container.CPU.UsageCoreNanoSeconds
				}
			}
		}
	}
	return time.Duration(sum)
}

// quiet reports whether this machine has had, for a minute, no more to do than
// its cores can: only then its times say something about us.
func quiet(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return false
	}
	load, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	return err == nil && load <= float64(runtime.NumCPU())
}
