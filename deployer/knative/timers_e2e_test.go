//go:build e2e

package knative_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// cronOf is the CronJob of a timer.
func cronOf(t *testing.T, c cluster, scope deployer.Scope, timer deployer.Timer) *batchv1.CronJob {
	t.Helper()
	list, err := c.kube.BatchV1().CronJobs(scope.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: knative.LabelTimer + "=" + timer.Key()})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%d cron jobs of %s, %v; want one", len(list.Items), timer.Function, err)
	}
	return &list.Items[0]
}

// fireAt makes the run that the cluster would make for that minute, and waits
// for its end.
func fireAt(t *testing.T, c cluster, cron *batchv1.CronJob, minute int64) *batchv1.Job {
	t.Helper()
	name := fmt.Sprintf("%s-%d", cron.Name, minute)
	_, err := c.kube.BatchV1().Jobs(cron.Namespace).Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: cron.Spec.JobTemplate.Labels}, Spec: cron.Spec.JobTemplate.Spec,
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var j *batchv1.Job
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if j, err = c.kube.BatchV1().Jobs(cron.Namespace).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
		if j.Status.Succeeded+j.Status.Failed > 0 {
			return j
		}
		if time.Now().After(deadline) {
			t.Fatalf("run %s has not ended: %+v", name, j.Status)
		}
	}
}

// A timer calls the revision that is live, once for each time, by pods of the
// cluster; it is the same timer over deploys and rollbacks.
func TestTimerCallsTheLiveRevision(t *testing.T) {
	c := lab(t)
	one, two := image(t, "one"), image(t, "two")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	tick := deployer.Timer{Function: "tick", Service: "app-main", Name: "every 1m", Schedule: "* * * * *", Payload: `{"n":"$(HOME)"}`, Overlap: "skip"}
	deploy := func(pipeline int64, u deployer.Spec) deployer.Release {
		t.Helper()
		u.Timed, u.MinScale = true, 1
		out, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: pipeline, Units: []deployer.Spec{u}, Timers: []deployer.Timer{tick}}, quick())
		if err != nil {
			t.Fatal(err)
		}
		return out.Release
	}
	calls := func(revision string, minute int64) int {
		t.Helper()
		lines, err := k.Logs(t.Context(), scope, "app-main", revision, 1000)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, l := range lines {
			if strings.HasPrefix(l, "timer "+revision+" ") && strings.HasSuffix(l, fmt.Sprintf("-%d", minute)) && strings.Contains(l, `"payload":"{\"n\":\"$(HOME)\"}"`) {
				n++
			}
		}
		return n
	}
	first := deploy(1, unit("main", one))
	cron := cronOf(t, c, scope, tick)
	if cron.Spec.ConcurrencyPolicy != batchv1.ForbidConcurrent || *cron.Spec.TimeZone != "Etc/UTC" || len(cron.Name) > 52 {
		t.Errorf("cron job %s: %+v", cron.Name, cron.Spec)
	}
	r1 := first.Units[0].Revision
	if j := fireAt(t, c, cron, 20000001); j.Status.Succeeded != 1 {
		t.Errorf("the call failed: %+v", j.Status)
	}
	if n := calls(r1, 20000001); n != 1 {
		t.Errorf("%d calls of %s, want 1", n, r1)
	}

	second := deploy(2, unit("main", two))
	after := cronOf(t, c, scope, tick)
	if after.UID != cron.UID {
		t.Error("the timer was made again: a time may be lost or come twice")
	}
	r2 := second.Units[0].Revision
	fireAt(t, c, after, 20000002)
	if a, b := calls(r1, 20000002), calls(r2, 20000002); a != 0 || b != 1 {
		t.Errorf("calls: %d to the old revision, %d to the new one; want 0, 1", a, b)
	}
	if _, err := deployer.Rollback(t.Context(), k, scope, first.ID, quick()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	fireAt(t, c, cronOf(t, c, scope, tick), 20000003)
	if a, b := calls(r1, 20000003), calls(r2, 20000003); a != 1 || b != 0 {
		t.Errorf("calls after the rollback: %d to the live revision, %d to the other; want 1, 0", a, b)
	}

	// The cluster's own clock, once for its minute.
	var last time.Time
	for deadline := time.Now().Add(2 * time.Minute); !last.After(back); time.Sleep(time.Second) {
		timers, err := k.Timers(t.Context(), scope)
		if err != nil || len(timers) != 1 {
			t.Fatalf("%+v, %v", timers, err)
		}
		last = timers[0].Last
		if time.Now().After(deadline) {
			t.Fatal("the cluster did not fire the timer within two minutes")
		}
	}
	minute := last.Unix() / 60
	for deadline := time.Now().Add(2 * time.Minute); calls(r1, minute) == 0; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatalf("no call of the live revision for minute %d", minute)
		}
	}
	if n := calls(r1, minute); n != 1 {
		t.Errorf("%d calls for minute %d, want 1", n, minute)
	}
}

// A run in the cluster has its completions, each with tries of its own.
func TestRunsInTheCluster(t *testing.T) {
	c := lab(t)
	k, scope := target(t, c), scopeIn(c.namespace(t))
	u := unit("sum", image(t, "one"))
	u.Job = &deployer.Job{Completions: 3, Parallelism: 2, Retries: 1, Timeout: 5 * time.Minute, TTL: time.Hour}
	if _, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: 1, Units: []deployer.Spec{u}}, quick()); err != nil {
		t.Fatal(err)
	}
	run := func(event string) (deployer.RunResult, string) {
		t.Helper()
		name, err := k.StartRun(t.Context(), scope, u, u.RevisionName(1), []byte(event))
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		r, err := k.FollowRun(t.Context(), scope, name, func(l string) { log.WriteString(l + "\n") })
		if err != nil {
			t.Fatal(err)
		}
		return r, log.String()
	}
	if r, log := run(`{}`); r.Succeeded != 3 || r.Failed != 0 || r.Failure != nil || !strings.Contains(log, "[0] ran {}") || !strings.Contains(log, "[2] ran {}") {
		t.Errorf("%+v, %v\n%s", r, r.Failure, log)
	}
	if r, log := run(`{"exit":4}`); r.Succeeded != 0 || r.Failed != 6 || r.Failure == nil || r.Failure.ExitCode != 4 || strings.Count(log, "[1] ran") != 2 {
		t.Errorf("%+v, %v\n%s", r, r.Failure, log)
	}
	u.Job = &deployer.Job{Completions: 1, Parallelism: 1, Timeout: 5 * time.Second}
	if _, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: 2, Units: []deployer.Spec{u}}, quick()); err != nil {
		t.Fatal(err)
	}
	if r, log := run(`{"sleep":3600}`); r.Failure == nil || r.Failure.Code != deployer.TooSlow {
		t.Errorf("%+v, %v\n%s", r, r.Failure, log)
	}
}
