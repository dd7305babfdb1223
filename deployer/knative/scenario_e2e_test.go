//go:build e2e

package knative_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// deploy deploys the one unit main.
func deploy(t *testing.T, target deployer.Target, scope deployer.Scope, pipeline int64, units ...deployer.Spec) (deployer.Outcome, error) {
	t.Helper()
	o := quick()
	start := time.Now()
	o.Progress = func(e deployer.Event) {
		t.Logf("%5.1fs %s %s %s: %s", time.Since(start).Seconds(), e.Step, e.Unit, e.Revision, e.Text)
	}
	return deployer.Deploy(t.Context(), target, deployer.Plan{Scope: scope, Pipeline: pipeline, Units: units}, o)
}

// serves waits until the Service is Ready on the revision, which is also what
// it describes, and follows no latest one.
func (c cluster) serves(t *testing.T, ns, service, revision string) {
	t.Helper()
	var last string
	defer func() {
		if t.Failed() {
			t.Log(last)
		}
	}()
	eventually(t, service+" is Ready on "+revision, func() bool {
		svc, err := c.serve.Services(ns).Get(t.Context(), service, metav1.GetOptions{})
		if err != nil {
			last = err.Error()
			return false
		}
		last = fmt.Sprintf("template %s, latest ready %s, conditions %v, traffic %v", svc.Spec.Template.Name, svc.Status.LatestReadyRevisionName, svc.Status.Conditions, svc.Status.Traffic)
		follows := slices.ContainsFunc(svc.Status.Traffic, func(s servingv1.TrafficTarget) bool { return s.LatestRevision != nil && *s.LatestRevision })
		return svc.IsReady() && svc.Status.ObservedGeneration == svc.Generation && !follows &&
			svc.Spec.Template.Name == revision && svc.Status.LatestReadyRevisionName == revision
	})
}

// unharmed checks what has to hold after every deploy, a failed one above all:
// live, the zero Release where nothing was, is what the record says, nothing is
// open and nobody writes; its Services, and no others, are there and Ready; and
// the next plan is right: none for the same, and an update for what is other.
func (c cluster) unharmed(t *testing.T, k *knative.Target, scope deployer.Scope, live deployer.Release) {
	t.Helper()
	state, err := deployer.Observe(t.Context(), k, scope)
	if err != nil {
		t.Fatal(err)
	}
	if h := state.Head; h.Live != live.ID || h.Rollout != nil || h.Holder != "" {
		t.Errorf("head %+v; want %q live, nothing open, nobody writing", h, live.ID)
	}
	there, err := c.serve.Services(scope.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: knative.LabelService + "=" + scope.Service})
	if err != nil {
		t.Fatal(err)
	}
	var names, want []string
	for _, s := range there.Items {
		names = append(names, s.Name)
	}
	specs, other := []deployer.Spec{}, []deployer.Spec{}
	for _, u := range live.Units {
		if u.Spec.Job == nil {
			want = append(want, u.Spec.Name)
			c.serves(t, scope.Namespace, u.Spec.Name, u.Revision)
		}
		specs, other = append(specs, u.Spec), append(other, round(u.Spec, -1))
	}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("services %q; want %q", names, want)
	}
	for _, plan := range []struct {
		units []deployer.Spec
		want  deployer.Action
	}{{specs, deployer.Unchanged}, {other, deployer.Update}} {
		for _, change := range deployer.Decide(plan.units, state) {
			if change.Action != plan.want {
				t.Errorf("the next plan: %+v; want %s", change, plan.want)
			}
		}
	}
	to := map[string]string{}
	for _, u := range live.Units {
		to[u.Spec.Name] = u.Revision
	}
	for _, change := range deployer.DecideTimers(live.Timers, to, state) {
		if change.Action != deployer.Unchanged {
			t.Errorf("the next plan: %+v; want the timers unchanged", change)
		}
	}
}

// A crash at start is told within seconds of the first exit, and leaves the
// Service Ready on the old revision.
func TestCrashAtStart(t *testing.T) {
	c := lab(t)
	one, crash := image(t, "one"), image(t, "crash")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	first, err := deploy(t, k, scope, 1, unit("main", one))
	if err != nil {
		t.Fatal(err)
	}
	bad := unit("main", crash)
	_, err = deploy(t, k, scope, 2, bad)
	told := time.Now()
	var f *deployer.Failed
	if !errors.As(err, &f) || f.Restore != nil || f.Serving != first.ID {
		t.Fatalf("got %v; want failed with %s serving", err, first.ID)
	}
	causes := deployer.Failures(err)
	if len(causes) != 1 || causes[0].Code != deployer.Crash || causes[0].ExitCode != 3 || !slices.Contains(causes[0].Logs, "boom") {
		t.Errorf("causes %v; want one crash with code 3 and the line boom; logs: %q", causes, causes[0].Logs)
	}
	// The first exit that the cluster knows of.
	pods, err := c.kube.CoreV1().Pods(scope.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "serving.knative.dev/revision=" + bad.RevisionName(1)})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("pods of the crash: %v, %v", pods, err)
	}
	started := pods.Items[0].Status.StartTime.Time
	if took := told.Sub(started); took > 15*time.Second {
		t.Errorf("told %s after the pod had started; want within 15 s of its exit, which comes at once", took)
	}
	c.unharmed(t, k, scope, first.Release)
	again, err := deploy(t, k, scope, 3, unit("main", one))
	if err != nil || again.Units[0].Revision != first.Units[0].Revision || again.Changes[0].Action != deployer.Unchanged {
		t.Errorf("deploy of what serves: %+v, %v; want unchanged", again.Changes, err)
	}
}

// Who needs more memory than he may have is told so, not that he crashed.
func TestOutOfMemory(t *testing.T) {
	c := lab(t)
	k, scope := target(t, c), scopeIn(c.namespace(t))
	_, err := deploy(t, k, scope, 1, unit("main", image(t, "greedy")))
	causes := deployer.Failures(err)
	if len(causes) != 1 || causes[0].Code != deployer.OutOfMemory {
		t.Errorf("got %v; want out-of-memory", err)
	}
	c.unharmed(t, k, scope, deployer.Release{}) // a first deploy that fails leaves nothing
}
