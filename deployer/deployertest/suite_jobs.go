package deployertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
)

// jobUnit is a unit that runs to completion.
func (s *suite) jobUnit(n string) deployer.Spec {
	u := s.unit(n, s.One)
	u.Job = &deployer.Job{Completions: 1, Parallelism: 1, Timeout: 4 * s.Patience, TTL: time.Hour}
	return u
}

func (s *suite) timer(function string, u deployer.Spec) deployer.Timer {
	return deployer.Timer{Function: function, Service: u.Name, Name: "0 3 29 2 *", Schedule: "0 3 29 2 *", Timezone: "Asia/Shanghai", Payload: `{"n":"$(HOME)"}`, Overlap: "skip"}
}

func (s *suite) timers() []deployer.ObservedTimer {
	s.Helper()
	all, err := s.Target.Timers(s.ctx, s.Scope)
	s.ok("observe timers", err)
	return all
}

func testTimers(t *testing.T, s *suite) {
	f := s.lease()
	one, two, j := s.unit("main", s.One), s.unit("main", s.Two), s.jobUnit("sum")
	one.Timed, two.Timed = true, true
	r1, r2, rj := s.up(f, one).Name, s.up(f, two).Name, s.up(f, j).Name
	if all := s.timers(); len(all) != 0 {
		t.Fatalf("timers before there is any: %+v", all)
	}
	tick, sum := s.timer("tick", one), s.timer("sum", j)
	for range 2 {
		s.ok("set a timer", s.Target.SetTimer(s.ctx, f, tick, one, r1))
		s.ok("set a job's timer", s.Target.SetTimer(s.ctx, f, sum, j, rj))
	}
	check := func(timer deployer.Timer, revision string) {
		t.Helper()
		i := slices.IndexFunc(s.timers(), func(o deployer.ObservedTimer) bool { return o.Key == timer.Key() })
		if i < 0 {
			t.Fatalf("no timer %s among %+v", timer.Function, s.timers())
		}
		o := s.timers()[i]
		if o.Function != timer.Function || o.Service != timer.Service || o.Schedule != timer.Schedule || o.Timezone != timer.Timezone ||
			o.Revision != revision || o.Does != timer.Does(revision) || o.Off || o.Epoch != f.Epoch || o.Running != 0 || !o.Last.IsZero() {
			t.Errorf("observed %+v; want %+v calling %s", o, timer, revision)
		}
	}
	check(tick, r1)
	check(sum, rj)

	// Another revision, payload and overlap are the same timer.
	tick.Payload, tick.Overlap = "", "replace"
	s.ok("change a timer", s.Target.SetTimer(s.ctx, f, tick, two, r2))
	check(tick, r2)
	if all := s.timers(); len(all) != 2 {
		t.Errorf("%d timers after a change, want 2", len(all))
	}
	// Another time zone is another one.
	east := tick
	east.Timezone = ""
	s.ok("set another", s.Target.SetTimer(s.ctx, f, east, two, r2))
	check(east, r2)
	if err := s.Target.SetTimer(s.ctx, f, tick, two, two.RevisionName(7)); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("a timer of a missing revision: %v; want not found", err)
	}

	theirs := s.Scope
	theirs.Owner += "0"
	if all, err := s.Target.Timers(s.ctx, theirs); err != nil || len(all) != 0 {
		t.Errorf("another project sees %+v, %v", all, err)
	}
	for range 2 {
		s.ok("remove", s.Target.RemoveTimer(s.ctx, f, east.Key()))
	}
	if all := s.timers(); len(all) != 2 {
		t.Errorf("%d timers after a removal, want 2", len(all))
	}
	old := f
	s.lease() // another holder
	for verb, err := range map[string]error{
		"set":    s.Target.SetTimer(s.ctx, old, tick, one, r1),
		"create": s.Target.SetTimer(s.ctx, old, east, two, r2),
		"remove": s.Target.RemoveTimer(s.ctx, old, tick.Key()),
		"end":    s.Target.EndRuns(s.ctx, old),
	} {
		if !errors.Is(err, deployer.ErrFenced) {
			t.Errorf("%s under an old epoch: %v; want fenced", verb, err)
		}
	}
	check(tick, r2)
}

func testJobs(t *testing.T, s *suite) {
	f := s.lease()
	j := s.jobUnit("sum")
	s.ok("preflight", s.Target.Preflight(s.ctx, s.Scope, []deployer.Spec{j}))
	for range 2 {
		s.up(f, j)
	}
	revision := j.RevisionName(1)
	svc, ok := s.service("sum")
	if r, there := svc.Revision(revision); !ok || !svc.Job || svc.Name != j.Name || svc.Owner != s.Scope.Owner || svc.Epoch != f.Epoch || len(svc.Traffic) > 0 ||
		!there || r.Phase != deployer.Ready || r.Hash != j.Hash() || r.Image != j.Image.String() || r.Created.IsZero() {
		t.Errorf("job observed as %+v", svc)
	}
	other := j
	other.Environment = map[string]string{"A": "b"}
	if err := s.Target.Ensure(s.ctx, f, other, revision); err == nil {
		t.Error("a job's content was replaced under its name")
	}

	run := func(event string) (deployer.RunResult, string) {
		t.Helper()
		name, err := s.Target.StartRun(s.ctx, s.Scope, j, revision, []byte(event))
		s.ok("start a run", err)
		var mu sync.Mutex
		var lines []string
		r, err := s.Target.FollowRun(s.ctx, s.Scope, name, func(line string) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, line)
		})
		s.ok("follow "+name, err)
		mu.Lock()
		defer mu.Unlock()
		if r.Run != name {
			t.Errorf("run %s, followed %s", name, r.Run)
		}
		return r, strings.Join(lines, "\n")
	}
	if r, log := run(`{"exit":0,"word":"$(HOME)"}`); r.Failure != nil || r.Succeeded != 1 || r.Failed != 0 || !strings.Contains(log, `ran {"exit":0,"word":"$(HOME)"}`) {
		t.Errorf("a run that ends well: %+v\n%s", r, log)
	}
	if r, log := run(`{"exit":4}`); r.Failure == nil || r.Failure.Code != deployer.Crash || r.Failure.ExitCode != 4 || r.Succeeded != 0 || r.Failed != 1 || !strings.Contains(log, `ran {"exit":4}`) {
		t.Errorf("a run that fails: %+v, %+v\n%s", r, r.Failure, log)
	}
	if _, err := s.Target.StartRun(s.ctx, s.Scope, j, j.RevisionName(5), nil); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("a run of a missing revision: %v; want not found", err)
	}
	if _, err := s.Target.FollowRun(s.ctx, s.Scope, "nothing", nil); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("follow nothing: %v; want not found", err)
	}
	// What is followed goes on when nobody follows any more, and ends with stop.
	name, err := s.Target.StartRun(s.ctx, s.Scope, j, revision, []byte(`{"sleep":3600}`))
	s.ok("start a long run", err)
	short, cancel := context.WithTimeout(s.ctx, s.Patience/10)
	_, err = s.Target.FollowRun(short, s.Scope, name, nil)
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("follow for a while: %v", err)
	}
	s.ok("end all runs", s.Target.EndRuns(s.ctx, f))
	short, cancel = context.WithTimeout(s.ctx, s.Patience)
	defer cancel()
	if _, err := s.Target.FollowRun(short, s.Scope, name, nil); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("follow an ended run: %v; want not found", err)
	}

	theirs := s.Scope
	theirs.Owner += "0"
	theirs.Service += "x"
	if err := s.Target.Preflight(s.ctx, theirs, []deployer.Spec{j}); !errors.Is(err, deployer.ErrForeign) {
		t.Errorf("another project's preflight: %v; want foreign", err)
	}
	missing := s.jobUnit("missing")
	missing.Image = s.Missing
	if all := deployer.Failures(s.Target.Preflight(s.ctx, s.Scope, []deployer.Spec{missing})); len(all) != 1 || all[0].Code != deployer.ImageMissing {
		t.Errorf("preflight of a job without image: %v", all)
	}
	for range 2 {
		s.ok("remove revision", s.Target.RemoveRevision(s.ctx, f, j.Name, revision))
	}
	s.up(f, j)
	for range 2 {
		s.ok("remove job", s.Target.RemoveService(s.ctx, f, j.Name))
	}
	if all, err := s.Target.Services(s.ctx, s.Scope); err != nil || len(all) != 0 {
		t.Errorf("services %v, %v after removal", all, err)
	}
}

// testDeployTimers is the way of a release with both kinds of units.
func testDeployTimers(t *testing.T, s *suite) {
	main, j := s.unit("main", s.One), s.jobUnit("sum")
	main.Timed = true
	tick, sum := s.timer("tick", main), s.timer("sum", j)
	p := deployer.Plan{Scope: s.Scope, Pipeline: 1, Commit: "c1", Units: []deployer.Spec{main, j}, Timers: []deployer.Timer{tick, sum}}
	first, err := deployer.Deploy(s.ctx, s.Target, p, s.Options)
	s.ok("deploy", err)
	calls := func(rel deployer.Release) {
		t.Helper()
		all := s.timers()
		if len(all) != len(rel.Timers) {
			t.Errorf("%d timers, want %d", len(all), len(rel.Timers))
		}
		for _, w := range rel.Timers {
			i := slices.IndexFunc(all, func(o deployer.ObservedTimer) bool { return o.Key == w.Key() })
			k := slices.IndexFunc(rel.Units, func(u deployer.Live) bool { return u.Spec.Name == w.Service })
			if i < 0 || k < 0 || all[i].Revision != rel.Units[k].Revision || all[i].Does != w.Does(rel.Units[k].Revision) {
				t.Errorf("timer %s of release %s: %+v", w.Function, rel.ID, all)
			}
		}
	}
	calls(first.Release)
	again, err := deployer.Deploy(s.ctx, s.Target, p, s.Options)
	s.ok("deploy again", err)
	if !again.NoChange {
		t.Errorf("deployed twice: changes %+v, timers %+v", again.Changes, again.Timers)
	}

	// The job goes, the function moves to another content.
	p.Pipeline, p.Units, p.Timers = 2, []deployer.Spec{s.unit("main", s.Two)}, []deployer.Timer{tick}
	p.Units[0].Timed = true
	second, err := deployer.Deploy(s.ctx, s.Target, p, s.Options)
	s.ok("deploy without the job", err)
	calls(second.Release)
	if _, ok := s.service("sum"); ok {
		t.Error("the removed job is still there")
	}

	// A failed deploy leaves the timers.
	p.Pipeline, p.Units = 3, []deployer.Spec{s.unit("main", s.Crash)}
	if _, err := deployer.Deploy(s.ctx, s.Target, p, s.Options); err == nil {
		t.Fatal("a crash at start was deployed")
	}
	calls(second.Release)

	back, err := deployer.Rollback(s.ctx, s.Target, s.Scope, first.ID, s.Options)
	s.ok("roll back", err)
	calls(back.Release)
	if svc, ok := s.service("sum"); !ok || !svc.Job {
		t.Errorf("the job after the rollback: %+v", svc)
	}
	s.ok("stop", deployer.Stop(s.ctx, s.Target, s.Scope, s.Options))
	if all := s.timers(); len(all) != 0 {
		t.Errorf("timers after stop: %+v", all)
	}
}
