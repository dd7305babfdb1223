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

// called is how often the timer called the revision for that minute, as its
// instances say.
func called(t *testing.T, k *knative.Target, scope deployer.Scope, service, revision, payload string, minute int64) int {
	t.Helper()
	lines, err := k.Logs(t.Context(), scope, service, revision, 1000)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range lines {
		if strings.HasPrefix(l, "timer "+revision+" ") && strings.HasSuffix(l, fmt.Sprintf("-%d", minute)) && strings.Contains(l, payload) {
			n++
		}
	}
	return n
}

// firedBy waits until the cluster's own clock has fired the timer after that
// time, and says for which minute.
func firedBy(t *testing.T, k *knative.Target, scope deployer.Scope, timer deployer.Timer, after time.Time) int64 {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		all, err := k.Timers(t.Context(), scope)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			if o.Key == timer.Key() && o.Last.After(after) {
				return o.Last.Unix() / 60
			}
		}
	}
	t.Fatalf("the cluster did not fire the timer of %s within three minutes", timer.Function)
	return 0
}

// A timer calls the revision that is live, once for each time, by pods of the
// cluster; it is the same timer over deploys and rollbacks.
func TestTimerCallsTheLiveRevision(t *testing.T) {
	t.Parallel() // it waits more than it does
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
		return called(t, k, scope, "app-main", revision, `"payload":"{\"n\":\"$(HOME)\"}"`, minute)
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
	minute := firedBy(t, k, scope, tick, back)
	for deadline := time.Now().Add(2 * time.Minute); calls(r1, minute) == 0; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatalf("no call of the live revision for minute %d", minute)
		}
	}
	if n := calls(r1, minute); n != 1 {
		t.Errorf("%d calls for minute %d, want 1", n, minute)
	}
}

// A function goes, and its unit and its timer with it: nothing calls for it any
// more, and the other function's timer neither misses nor repeats a time. A
// rollback brings function and timer back.
func TestRemovedFunctionWithTimer(t *testing.T) {
	t.Parallel() // it waits more than it does
	c := lab(t)
	one := image(t, "one")
	ns := c.namespace(t)
	k, scope := target(t, c), scopeIn(ns)
	timer := func(function, service string) deployer.Timer {
		return deployer.Timer{Function: function, Service: service, Name: "every 1m", Schedule: "* * * * *", Overlap: "allow"}
	}
	stays, goes := timer("stays", "app-main"), timer("goes", "app-side")
	main, side := unit("main", one), unit("side", one)
	for _, u := range []*deployer.Spec{&main, &side} {
		u.Timed, u.MinScale = true, 1
	}
	first, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: 1, Units: []deployer.Spec{main, side}, Timers: []deployer.Timer{stays, goes}}, quick())
	if err != nil {
		t.Fatal(err)
	}
	cron := cronOf(t, c, scope, goes)
	second, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: 2, Units: []deployer.Spec{main}, Timers: []deployer.Timer{stays}}, quick())
	if err != nil {
		t.Fatal(err)
	}
	removed := time.Now()
	record, err := k.Release(t.Context(), scope, second.ID)
	if err != nil || len(record.Units) != 1 || len(record.Timers) != 1 || record.Timers[0].Function != "stays" {
		t.Errorf("the record: %+v, %v; want main and its timer alone", record, err)
	}
	c.unharmed(t, k, scope, second.Release)
	left, err := c.kube.BatchV1().CronJobs(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(left.Items) != 1 || left.Items[0].Name != cronOf(t, c, scope, stays).Name {
		t.Errorf("cron jobs %v, %v; want the other function's alone", left.Items, err)
	}
	eventually(t, "the removed function is gone", func() bool { code, _ := asked(t, "app-side", ns, "/"); return code == 404 })
	// A time of the cluster's clock passes.
	once := func(service, revision string, timer deployer.Timer, after time.Time) {
		t.Helper()
		minute := firedBy(t, k, scope, timer, after)
		for deadline := time.Now().Add(2 * time.Minute); called(t, k, scope, service, revision, "", minute) == 0; time.Sleep(time.Second) {
			if time.Now().After(deadline) {
				t.Fatalf("no call of %s for minute %d", revision, minute)
			}
		}
		if n := called(t, k, scope, service, revision, "", minute); n != 1 {
			t.Errorf("%d calls of %s for minute %d, want 1", n, revision, minute)
		}
	}
	once("app-main", first.Units[0].Revision, stays, removed)
	runs, err := c.kube.BatchV1().Jobs(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range runs.Items {
		if strings.HasPrefix(j.Name, cron.Name+"-") && j.CreationTimestamp.Time.After(removed) {
			t.Errorf("%s was started at %s, after its timer had gone", j.Name, j.CreationTimestamp)
		}
	}

	back, err := deployer.Rollback(t.Context(), k, scope, "", quick())
	if err != nil || back.ID != first.ID {
		t.Fatalf("rolled back to %+v, %v", back.Release, err)
	}
	returned := time.Now()
	c.unharmed(t, k, scope, back.Release)
	if code, body := asked(t, "app-side", ns, "/"); code != 200 || body != back.Units[1].Revision {
		t.Errorf("brought back, %d %s answers; want %s", code, body, back.Units[1].Revision)
	}
	once("app-side", back.Units[1].Revision, goes, returned)
	once("app-main", back.Units[0].Revision, stays, returned)
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
