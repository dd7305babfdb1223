//go:build e2e

package knative_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
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
	svc, err := c.serve.Services(scope.Namespace).Get(t.Context(), "app-main", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Service is Ready", func() bool {
		svc, err = c.serve.Services(scope.Namespace).Get(t.Context(), "app-main", metav1.GetOptions{})
		return err == nil && svc.IsReady() && svc.Status.ObservedGeneration == svc.Generation
	})
	if svc.Spec.Template.Name != first.Units[0].Revision || svc.Status.LatestReadyRevisionName != first.Units[0].Revision {
		t.Errorf("template %s, latest ready %s; want %s", svc.Spec.Template.Name, svc.Status.LatestReadyRevisionName, first.Units[0].Revision)
	}
	for _, s := range svc.Status.Traffic {
		if s.LatestRevision != nil && *s.LatestRevision {
			t.Errorf("traffic %+v follows the latest revision", s)
		}
	}
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
	// A first deploy that fails leaves nothing.
	if all, err := k.Services(t.Context(), scope); err != nil || len(all) != 0 {
		t.Errorf("services %v, %v; want none", all, err)
	}
}
