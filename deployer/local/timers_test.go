package local_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/local"
)

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// The clock calls the live revision, or runs the job, once for each time; a
// server that starts again goes on; nobody outside can play the clock.
func TestClock(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	s := start(t, dir)
	target := local.Dial(s.Socket())
	main, sum := unit("main", w.one), unit("sum", w.one)
	main.Timed = true
	sum.Job = &deployer.Job{Completions: 1, Parallelism: 1}
	tick := deployer.Timer{Function: "tick", Service: main.Name, Name: "every 1m", Schedule: "* * * * *", Payload: "p", Overlap: "skip"}
	sum1 := deployer.Timer{Function: "sum", Service: sum.Name, Name: "0 2 1 1 *", Schedule: "0 2 1 1 *", Timezone: "Asia/Shanghai", Payload: `{"sleep":3}`, Overlap: "skip"}
	out, err := deployer.Deploy(t.Context(), target, deployer.Plan{Scope: scope, Pipeline: 1, Units: []deployer.Spec{main, sum}, Timers: []deployer.Timer{tick, sum1}}, quick)
	if err != nil {
		t.Fatal(err)
	}
	calls := func(s *local.Server) []string {
		lines, err := local.Dial(s.Socket()).Logs(t.Context(), scope, main.Name, out.Units[0].Revision, 1000)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, l := range lines {
			if strings.HasPrefix(l, "timer ") {
				all = append(all, l)
			}
		}
		return all
	}

	// Two days late: the time that was missed comes once.
	at := time.Now().Add(48 * time.Hour)
	s.Tick(at)
	s.Tick(at)
	eventually(t, "a call", func() bool { return len(calls(s)) > 0 })
	if got := calls(s)[0]; !strings.HasPrefix(got, "timer "+out.Units[0].Revision+" ") || !strings.Contains(got, `"triggerName":"every 1m"`) || !strings.Contains(got, `"payload":"p"`) || !strings.Contains(got, `"id":"tick-`+tick.Key()+"-") {
		t.Errorf("call %q", got)
	}

	res, err := http.Post(s.URL()+"/"+main.Name+"/_faas/timer", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("a call from outside: %s", res.Status)
	}

	// The job's night comes in its own time zone.
	zone, err := time.LoadLocation("Asia/Shanghai")
	if err != nil {
		t.Fatal(err)
	}
	night := time.Date(time.Now().In(zone).Year()+1, 1, 1, 2, 0, 0, 0, zone)
	run := fmt.Sprintf("sum-%s-%d", sum1.Key(), night.Unix()/60)
	s.Tick(night.Add(-time.Second))
	if _, err := target.FollowRun(t.Context(), scope, run, nil); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("before its time: %v; want not found", err)
	}
	s.Tick(night)
	// The next night comes while it still runs, and is skipped.
	s.Tick(night.AddDate(1, 0, 0))
	var lines []string
	var result deployer.RunResult
	eventually(t, "the job's run", func() bool {
		lines = nil
		result, err = target.FollowRun(t.Context(), scope, run, func(l string) { lines = append(lines, l) })
		return err == nil
	})
	if result.Succeeded != 1 || !strings.Contains(strings.Join(lines, "\n"), `ran {"sleep":3}`) {
		t.Errorf("run %s: %+v\n%s", run, result, lines)
	}
	skipped := fmt.Sprintf("sum-%s-%d", sum1.Key(), night.AddDate(1, 0, 0).Unix()/60)
	if _, err := target.FollowRun(t.Context(), scope, skipped, nil); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("a time during the run before: %v; want skipped", err)
	}

	end(t, s)
	s = start(t, dir)
	timers, err := local.Dial(s.Socket()).Timers(t.Context(), scope)
	if err != nil || len(timers) != 2 {
		t.Fatalf("after a restart: %+v, %v", timers, err)
	}
	before := len(calls(s))
	s.Tick(at)
	eventually(t, "a call after the restart", func() bool { return len(calls(s)) > before })
}

// A run takes its completions, with retries and no more of them at once than
// asked for.
func TestRuns(t *testing.T) {
	w := newWorld(t)
	s := start(t, t.TempDir())
	target := local.Dial(s.Socket())
	u := unit("sum", w.one)
	u.Job = &deployer.Job{Completions: 3, Parallelism: 2, Retries: 1}
	deploy(t, target, 1, u)
	run := func(event string) (deployer.RunResult, string) {
		t.Helper()
		name, err := target.StartRun(t.Context(), scope, u, u.RevisionName(1), []byte(event))
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		r, err := target.FollowRun(t.Context(), scope, name, func(l string) { lines = append(lines, l) })
		if err != nil {
			t.Fatal(err)
		}
		return r, strings.Join(lines, "\n")
	}
	r, log := run(`{}`)
	if r.Succeeded != 3 || r.Failed != 0 || r.Failure != nil || !strings.Contains(log, "[0] ran {}") || !strings.Contains(log, "[2] ran {}") {
		t.Errorf("%+v\n%s", r, log)
	}
	r, log = run(`{"exit":3}`)
	if r.Succeeded != 0 || r.Failed != 6 || r.Failure == nil || r.Failure.ExitCode != 3 || strings.Count(log, "[1] ran") != 2 {
		t.Errorf("%+v, %v\n%s", r, r.Failure, log)
	}
	u.Job = &deployer.Job{Completions: 1, Parallelism: 1, Retries: 3, Timeout: 300 * time.Millisecond}
	deploy(t, target, 2, u)
	if r, log := run(`{"sleep":60}`); r.Failure == nil || r.Failure.Code != deployer.TooSlow {
		t.Errorf("%+v, %v\n%s", r, r.Failure, log)
	}
}
