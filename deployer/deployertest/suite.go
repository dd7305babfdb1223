package deployertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
)

// Env is a target under test, and what it needs to be tested.
type Env struct {
	Target deployer.Target
	// Scope is free for the test. Other projects use the same namespace with
	// Scope.Owner + "0".
	Scope deployer.Scope
	// One and Two are images that answer nonces, and as a job's write "ran",
	// a space and their event, sleep for event.sleep seconds and exit with
	// code event.exit; Crash writes the line
	// "boom" to its standard error and exits with code 3; Mute runs and never
	// becomes Ready; Missing does not exist in its registry.
	One, Two, Crash, Mute, Missing name.Digest
	// Options are the times of Deploy.
	Options deployer.Options
	// Patience bounds every wait; default 30 s.
	Patience time.Duration
}

// TestTarget runs the behaviour suite. start makes a fresh Env for each test;
// what it started ends with t.
func TestTarget(t *testing.T, start func(t *testing.T) Env) {
	for _, tc := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"Head", testHead},
		{"Releases", testReleases},
		{"RevisionAtZero", testRevisionAtZero},
		{"Split", testSplit},
		{"Idempotent", testIdempotent},
		{"Remove", testRemove},
		{"Failures", testFailures},
		{"Foreign", testForeign},
		{"Fence", testFence},
		{"Cancel", testCancel},
		{"Loads", testLoads},
		{"Deploy", testDeploy},
		{"Timers", testTimers},
		{"Jobs", testJobs},
		{"DeployTimers", testDeployTimers},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := start(t)
			if env.Patience == 0 {
				env.Patience = 30 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), 4*env.Patience)
			t.Cleanup(cancel)
			tc.test(t, &suite{T: t, Env: env, ctx: ctx})
		})
	}
}

// TestRecords runs the part of the suite that is about records alone, for a
// target at which nothing runs.
func TestRecords(t *testing.T, start func(t *testing.T) Env) {
	for name, test := range map[string]func(*testing.T, *suite){"Head": testHead, "Releases": testReleases} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			t.Cleanup(cancel)
			test(t, &suite{T: t, Env: start(t), ctx: ctx})
		})
	}
}

type suite struct {
	*testing.T
	Env
	ctx context.Context
}

// lease takes the scope's lease by hand.
func (s *suite) lease() deployer.Fence {
	s.Helper()
	h, err := s.Target.Head(s.ctx, s.Scope)
	s.ok("read head", err)
	h.Epoch++
	h.Holder = "the suite"
	_, err = s.Target.SwapHead(s.ctx, s.Scope, h)
	s.ok("take lease", err)
	return deployer.Fence{Scope: s.Scope, Epoch: h.Epoch}
}

func (s *suite) ok(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

func (s *suite) unit(n string, image name.Digest) deployer.Spec {
	return deployer.Spec{
		Name: s.Scope.Service + "-" + n, Unit: n, Image: image, Key: "key-" + n,
		Table: `{"name":"` + n + `","functions":[]}`, InitTimeout: s.Patience / 3,
	}
}

// up makes the spec's revision Ready.
func (s *suite) up(f deployer.Fence, u deployer.Spec) deployer.Revision {
	s.Helper()
	s.ok("ensure", s.Target.Ensure(s.ctx, f, u, u.RevisionName(1)))
	r, err := s.Target.WaitReady(s.ctx, s.Scope, u.Name, u.RevisionName(1), nil)
	s.ok("wait for "+u.RevisionName(1), err)
	return r
}

// answers asks until want answers at the revision's own URL (revision) or at
// the route ("").
func (s *suite) answers(u deployer.Spec, revision, want string) {
	s.Helper()
	deadline := time.Now().Add(s.Patience)
	for {
		a, err := s.Target.Probe(s.ctx, s.Scope, u.Name, revision, "n1")
		if err == nil && a.Nonce == "n1" && a.Revision == want {
			if want == u.RevisionName(1) && (a.Image != u.Image.String() || a.Key != u.Key) {
				s.Errorf("%s answers image %s, key %s; want %s, %s", want, a.Image, a.Key, u.Image, u.Key)
			}
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("ask %q: got %+v, %v; want %s", revision, a, err, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *suite) service(n string) (deployer.Service, bool) {
	s.Helper()
	all, err := s.Target.Services(s.ctx, s.Scope)
	s.ok("observe", err)
	for _, svc := range all {
		if svc.Unit == n {
			return svc, true
		}
	}
	return deployer.Service{}, false
}

func testHead(t *testing.T, s *suite) {
	h, err := s.Target.Head(s.ctx, s.Scope)
	if err != nil || h.Version != "" || h.Epoch != 0 {
		t.Fatalf("head of a new scope: %+v, %v", h, err)
	}
	at := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	want := deployer.Head{
		Live: "r2", Previous: "r1", Held: "because", Pipeline: 7, Seq: 2, Holder: "me", Epoch: 3, Renewed: at, LeaseFor: time.Minute,
		Rollout: &deployer.Rollout{To: "r3", From: "r2", Step: "traffic", Deadline: at, OnDeath: "restore"},
		History: []deployer.WasLive{{Release: "r1", Pipeline: 5, At: at}, {Release: "r2", Pipeline: 7, At: at}},
	}
	first, err := s.Target.SwapHead(s.ctx, s.Scope, want)
	s.ok("create head", err)
	got, err := s.Target.Head(s.ctx, s.Scope)
	s.ok("read head", err)
	if got.Version == "" || got.Version != first.Version {
		t.Errorf("version %q, written as %q", got.Version, first.Version)
	}
	if got.Rollout == nil || *got.Rollout != *want.Rollout || !slices.Equal(got.History, want.History) || got.Held != "because" || got.LeaseFor != time.Minute || !got.Renewed.Equal(at) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := s.Target.SwapHead(s.ctx, s.Scope, want); !errors.Is(err, deployer.ErrConflict) {
		t.Errorf("create again: %v; want conflict", err)
	}
	got.Rollout, got.Live = nil, "r3"
	second, err := s.Target.SwapHead(s.ctx, s.Scope, got)
	s.ok("swap", err)
	if second.Version == first.Version {
		t.Error("the version did not change with the record")
	}
	if _, err := s.Target.SwapHead(s.ctx, s.Scope, got); !errors.Is(err, deployer.ErrConflict) {
		t.Errorf("swap of an old version: %v; want conflict", err)
	}
	if now, _ := s.Target.Head(s.ctx, s.Scope); now.Live != "r3" || now.Rollout != nil {
		t.Errorf("after a refused swap: %+v", now)
	}
	// An equal record is a renewal: its version changes all the same.
	third, err := s.Target.SwapHead(s.ctx, s.Scope, second)
	s.ok("renew", err)
	if third.Version == second.Version {
		t.Error("a renewal can't be seen from outside")
	}
	// Eight at once from one version: one wins.
	won := make(chan bool)
	for range 8 {
		go func() {
			_, err := s.Target.SwapHead(s.ctx, s.Scope, third)
			won <- err == nil
		}()
	}
	n := 0
	for range 8 {
		if <-won {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of 8 swaps of one version won", n)
	}
}

func testReleases(t *testing.T, s *suite) {
	f := s.lease()
	u := s.unit("main", s.One)
	want := deployer.Release{ID: "r1", Scope: s.Scope, Commit: "c", Pipeline: 4, Units: []deployer.Live{{Unit: "main", Revision: "x", Spec: u}}}
	s.ok("create", s.Target.CreateRelease(s.ctx, f, want))
	changed := want
	changed.Commit = "other"
	if err := s.Target.CreateRelease(s.ctx, f, changed); !errors.Is(err, deployer.ErrExists) {
		t.Errorf("create again: %v; want exists", err)
	}
	got, err := s.Target.Release(s.ctx, s.Scope, "r1")
	s.ok("read", err)
	if got.Commit != "c" || len(got.Units) != 1 || got.Units[0].Spec.Hash() != u.Hash() || got.Units[0].Spec.Key != u.Key {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := s.Target.Release(s.ctx, s.Scope, "r2"); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("read a missing one: %v; want not found", err)
	}
	want.ID = "r2"
	s.ok("create", s.Target.CreateRelease(s.ctx, f, want))
	ids, err := s.Target.Releases(s.ctx, s.Scope)
	s.ok("list", err)
	slices.Sort(ids)
	if !slices.Equal(ids, []string{"r1", "r2"}) {
		t.Errorf("ids %q", ids)
	}
	s.ok("remove", s.Target.RemoveRelease(s.ctx, f, "r1"))
	s.ok("remove again", s.Target.RemoveRelease(s.ctx, f, "r1"))
	if ids, _ := s.Target.Releases(s.ctx, s.Scope); !slices.Equal(ids, []string{"r2"}) {
		t.Errorf("ids %q after removal", ids)
	}
}

func testRevisionAtZero(t *testing.T, s *suite) {
	f := s.lease()
	one, two := s.unit("main", s.One), s.unit("main", s.Two)
	s.ok("preflight", s.Target.Preflight(s.ctx, s.Scope, []deployer.Spec{one, two}))
	r1 := s.up(f, one)
	if r1.URL == "" || r1.Name != one.RevisionName(1) {
		t.Errorf("revision %+v", r1)
	}
	s.answers(one, r1.Name, r1.Name)
	s.ok("traffic", s.Target.SetTraffic(s.ctx, f, one.Name, []deployer.Share{{Revision: r1.Name, Percent: 100}}))
	s.answers(one, "", r1.Name)

	r2 := s.up(f, two)
	s.answers(two, r2.Name, r2.Name)
	for range 10 {
		s.answers(one, "", r1.Name)
	}
	svc, _ := s.service("main")
	if !svc.Only(r1.Name) || svc.Template != r2.Name || svc.Owner != s.Scope.Owner || svc.Epoch != f.Epoch || svc.URL == "" {
		t.Errorf("service %+v; want all traffic at %s, template %s", svc, r1.Name, r2.Name)
	}
	for i, u := range []deployer.Spec{one, two} {
		o, ok := svc.Revision(u.RevisionName(1))
		if !ok || o.Hash != u.Hash() || o.Phase != deployer.Ready || o.Image != u.Image.String() || o.Created.IsZero() {
			t.Errorf("revision %d observed as %+v", i+1, o)
		}
	}
	s.ok("restore", s.Target.RestoreTemplate(s.ctx, f, one, r1.Name))
	if svc, _ := s.service("main"); svc.Template != r1.Name || len(svc.Revisions) != 2 {
		t.Errorf("template %s with %d revisions; want %s, 2", svc.Template, len(svc.Revisions), r1.Name)
	}
	s.ok("traffic", s.Target.SetTraffic(s.ctx, f, one.Name, []deployer.Share{{Revision: r2.Name, Percent: 100}, {Revision: r1.Name, Tag: deployer.TagPrevious}}))
	s.answers(two, "", r2.Name)
	s.answers(one, r1.Name, r1.Name) // by its tag
}

func testSplit(t *testing.T, s *suite) {
	f := s.lease()
	one, two := s.unit("main", s.One), s.unit("main", s.Two)
	r1, r2 := s.up(f, one).Name, s.up(f, two).Name
	for _, bad := range [][]deployer.Share{nil, {{Revision: r1, Percent: 99}}, {{Revision: r1, Percent: 150}, {Revision: r2, Percent: -50}}, {{Revision: "nobody", Percent: 100}}} {
		if err := s.Target.SetTraffic(s.ctx, f, one.Name, bad); err == nil {
			t.Errorf("shares %v were accepted", bad)
		}
	}
	s.ok("split", s.Target.SetTraffic(s.ctx, f, one.Name, []deployer.Share{{Revision: r1, Percent: 50}, {Revision: r2, Percent: 50}}))
	s.answers(one, "", r1)
	s.answers(two, "", r2)
	svc, _ := s.service("main")
	if svc.Only(r1) || svc.Only(r2) || len(svc.Traffic) != 2 {
		t.Errorf("traffic %v", svc.Traffic)
	}
}

func testIdempotent(t *testing.T, s *suite) {
	f := s.lease()
	u := s.unit("main", s.One)
	shares := []deployer.Share{{Revision: u.RevisionName(1), Percent: 100}}
	for range 3 {
		s.up(f, u)
		s.ok("traffic", s.Target.SetTraffic(s.ctx, f, u.Name, shares))
		s.ok("restore", s.Target.RestoreTemplate(s.ctx, f, u, u.RevisionName(1)))
	}
	svc, _ := s.service("main")
	if len(svc.Revisions) != 1 {
		t.Errorf("%d revisions", len(svc.Revisions))
	}
	other := s.unit("main", s.Two)
	if err := s.Target.Ensure(s.ctx, f, other, u.RevisionName(1)); err == nil {
		t.Error("a revision's content was replaced under its name")
	}
	s.answers(u, "", u.RevisionName(1))
}

func testRemove(t *testing.T, s *suite) {
	f := s.lease()
	one, two := s.unit("main", s.One), s.unit("main", s.Two)
	r1, r2 := s.up(f, one), s.up(f, two)
	s.ok("traffic", s.Target.SetTraffic(s.ctx, f, one.Name, []deployer.Share{{Revision: r2.Name, Percent: 100}}))
	for range 2 {
		s.ok("remove revision", s.Target.RemoveRevision(s.ctx, f, one.Name, r1.Name))
	}
	if svc, _ := s.service("main"); len(svc.Revisions) != 1 {
		t.Errorf("revisions %v; want %s alone", svc.Revisions, r2.Name)
	}
	s.answers(two, "", r2.Name)
	// A removed revision comes back under its own name.
	s.answers(one, s.up(f, one).Name, r1.Name)
	for range 2 {
		s.ok("remove service", s.Target.RemoveService(s.ctx, f, one.Name))
	}
	if all, err := s.Target.Services(s.ctx, s.Scope); err != nil || len(all) != 0 {
		t.Errorf("services %v, %v after removal", all, err)
	}
	if a, err := s.Target.Probe(s.ctx, s.Scope, one.Name, "", "n"); err == nil && a.Nonce != "" {
		t.Errorf("%+v answered after removal", a)
	}
	if _, err := s.Target.WaitReady(s.ctx, s.Scope, one.Name, r1.Name, nil); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("wait for a removed revision: %v; want not found", err)
	}
	s.up(f, one) // the name is free again
}

func testFailures(t *testing.T, s *suite) {
	f := s.lease()
	fail := func(n string, image name.Digest, initTimeout time.Duration, want deployer.Code) *deployer.Failure {
		t.Helper()
		u := s.unit(n, image)
		if initTimeout != 0 {
			u.InitTimeout = initTimeout
		}
		name := u.RevisionName(1)
		s.ok("ensure", s.Target.Ensure(s.ctx, f, u, name))
		_, err := s.Target.WaitReady(s.ctx, s.Scope, u.Name, name, nil)
		all := deployer.Failures(err)
		if len(all) != 1 || all[0].Code != want {
			t.Fatalf("%s: %v; want %s", n, err, want)
		}
		if all[0].Revision != name || all[0].Unit != n || all[0].Cause == "" || all[0].Next == "" {
			t.Errorf("%s: failure %+v lacks who, why or what next", n, all[0])
		}
		if svc, _ := s.service(n); len(svc.Revisions) != 1 || svc.Revisions[0].Phase != deployer.Broken || svc.Revisions[0].Failure == nil {
			t.Errorf("%s observed as %+v; want failed with its cause", n, svc.Revisions)
		}
		return all[0]
	}
	crash := fail("crash", s.Crash, 0, deployer.Crash)
	if crash.ExitCode != 3 || !slices.Contains(crash.Logs, "boom") {
		t.Errorf("crash %+v; want exit code 3 and its last line", crash)
	}
	logs, err := s.Target.Logs(s.ctx, s.Scope, s.unit("crash", s.Crash).Name, crash.Revision, 1)
	if err != nil || len(logs) != 1 {
		t.Errorf("last line of the log: %q, %v", logs, err)
	}
	fail("mute", s.Mute, time.Second, deployer.ProbeNeverPasses)
	fail("missing", s.Missing, 0, deployer.ImageMissing)
	missing := s.unit("missing", s.Missing)
	if all := deployer.Failures(s.Target.Preflight(s.ctx, s.Scope, []deployer.Spec{missing, s.unit("main", s.One)})); len(all) != 1 || all[0].Code != deployer.ImageMissing {
		t.Errorf("preflight of a missing image: %v", all)
	}
}

func testForeign(t *testing.T, s *suite) {
	f := s.lease()
	u := s.unit("main", s.One)
	s.up(f, u)
	s.ok("traffic", s.Target.SetTraffic(s.ctx, f, u.Name, []deployer.Share{{Revision: u.RevisionName(1), Percent: 100}}))
	theirs := s.Scope
	theirs.Owner += "0"
	if _, err := s.Target.Head(s.ctx, theirs); !errors.Is(err, deployer.ErrForeign) {
		t.Errorf("read another project's head: %v; want foreign", err)
	}
	// Their own scope, our service's name.
	theirs.Service += "x"
	if err := s.Target.Preflight(s.ctx, theirs, []deployer.Spec{u}); !errors.Is(err, deployer.ErrForeign) {
		t.Errorf("preflight: %v; want foreign", err)
	}
	if _, err := s.Target.SwapHead(s.ctx, theirs, deployer.Head{Epoch: 9, Holder: "they"}); err != nil {
		t.Fatal(err)
	}
	g := deployer.Fence{Scope: theirs, Epoch: 9}
	for verb, err := range map[string]error{
		"ensure":  s.Target.Ensure(s.ctx, g, u, u.RevisionName(1)),
		"traffic": s.Target.SetTraffic(s.ctx, g, u.Name, []deployer.Share{{Revision: u.RevisionName(1), Percent: 100}}),
		"restore": s.Target.RestoreTemplate(s.ctx, g, u, u.RevisionName(1)),
		"remove":  s.Target.RemoveRevision(s.ctx, g, u.Name, u.RevisionName(1)),
		"end":     s.Target.RemoveService(s.ctx, g, u.Name),
	} {
		if !errors.Is(err, deployer.ErrForeign) {
			t.Errorf("%s on another project's service: %v; want foreign", verb, err)
		}
	}
	if all, err := s.Target.Services(s.ctx, theirs); err != nil || len(all) != 0 {
		t.Errorf("they see %v, %v", all, err)
	}
	s.answers(u, "", u.RevisionName(1))
}

func testFence(t *testing.T, s *suite) {
	old := s.lease()
	u := s.unit("main", s.One)
	r := s.up(old, u).Name
	shares := []deployer.Share{{Revision: r, Percent: 100}}
	s.ok("traffic", s.Target.SetTraffic(s.ctx, old, u.Name, shares))
	s.lease() // another holder
	for verb, err := range map[string]error{
		"ensure":         s.Target.Ensure(s.ctx, old, s.unit("main", s.Two), s.unit("main", s.Two).RevisionName(1)),
		"create":         s.Target.Ensure(s.ctx, old, s.unit("new", s.Two), s.unit("new", s.Two).RevisionName(1)),
		"traffic":        s.Target.SetTraffic(s.ctx, old, u.Name, shares),
		"restore":        s.Target.RestoreTemplate(s.ctx, old, u, r),
		"remove":         s.Target.RemoveRevision(s.ctx, old, u.Name, r),
		"end":            s.Target.RemoveService(s.ctx, old, u.Name),
		"release":        s.Target.CreateRelease(s.ctx, old, deployer.Release{ID: "r9", Scope: s.Scope}),
		"forget release": s.Target.RemoveRelease(s.ctx, old, "r9"),
	} {
		if !errors.Is(err, deployer.ErrFenced) {
			t.Errorf("%s under an old epoch: %v; want fenced", verb, err)
		}
	}
	s.answers(u, "", r)
	if all, _ := s.Target.Services(s.ctx, s.Scope); len(all) != 1 {
		t.Errorf("%d services; a fenced write made one", len(all))
	}
}

func testCancel(t *testing.T, s *suite) {
	f := s.lease()
	u := s.unit("mute", s.Mute)
	u.InitTimeout = 4 * s.Patience // it ends by the cancellation, however late that comes
	s.ok("ensure", s.Target.Ensure(s.ctx, f, u, u.RevisionName(1)))
	ctx, cancel := context.WithCancel(s.ctx)
	var start time.Time // of the end
	ended := make(chan struct{})
	time.AfterFunc(100*time.Millisecond, func() { start = time.Now(); close(ended); cancel() })
	_, err := s.Target.WaitReady(ctx, s.Scope, u.Name, u.RevisionName(1), nil)
	<-ended
	if !errors.Is(err, context.Canceled) || time.Since(start) > s.Patience {
		t.Errorf("cancelled wait: %v after %s", err, time.Since(start))
	}
	if _, err := s.Target.Head(ctx, s.Scope); !errors.Is(err, context.Canceled) {
		t.Errorf("call with an ended context: %v", err)
	}
	s.ok("remove while starting", s.Target.RemoveService(s.ctx, f, u.Name))
}

func testDeploy(t *testing.T, s *suite) {
	p := deployer.Plan{Scope: s.Scope, Pipeline: 1, Commit: "c1", Units: []deployer.Spec{s.unit("main", s.One), s.unit("gone", s.One)}}
	r1, err := deployer.Deploy(s.ctx, s.Target, p, s.Options)
	s.ok("deploy", err)
	if !r1.Verified || len(r1.Warnings) > 0 || r1.Units[0].URL == "" {
		t.Errorf("outcome %+v; want verified, with URLs", r1)
	}
	again, err := deployer.Deploy(s.ctx, s.Target, p, s.Options)
	s.ok("deploy again", err)
	if !again.NoChange {
		t.Errorf("deployed twice: changes %v", again.Changes)
	}
	p.Pipeline, p.Units = 2, []deployer.Spec{s.unit("main", s.Crash)}
	_, err = deployer.Deploy(s.ctx, s.Target, p, s.Options)
	var f *deployer.Failed
	if !errors.As(err, &f) || f.Serving != r1.ID || f.Moved || f.Restore != nil {
		t.Fatalf("a crash at start: %v; want failed, %s serving", err, r1.ID)
	}
	if cs := deployer.Failures(err); len(cs) != 1 || cs[0].Code != deployer.Crash || !strings.Contains(strings.Join(cs[0].Logs, "\n"), "boom") {
		t.Errorf("causes %+v; want one crash with its log", cs)
	}
	for _, u := range r1.Units {
		s.answers(u.Spec, "", u.Revision)
		svc, _ := s.service(u.Unit)
		if !svc.Only(u.Revision) || svc.Template != u.Revision {
			t.Errorf("%s after a failed deploy: %+v", u.Unit, svc)
		}
	}
	p.Pipeline, p.Units = 3, []deployer.Spec{s.unit("main", s.Two)}
	r2, err := deployer.Deploy(s.ctx, s.Target, p, s.Options)
	s.ok("deploy", err)
	s.answers(p.Units[0], "", r2.Units[0].Revision)
	if _, ok := s.service("gone"); ok {
		t.Error("the removed unit is still there")
	}
	if _, err := deployer.Rollback(s.ctx, s.Target, s.Scope, "", s.Options); err != nil {
		t.Fatal(err)
	}
	for _, u := range r1.Units {
		s.answers(u.Spec, "", u.Revision)
	}
	s.ok("resume", deployer.Resume(s.ctx, s.Target, s.Scope, s.Options))
	s.ok("stop", deployer.Stop(s.ctx, s.Target, s.Scope, s.Options))
	if all, err := s.Target.Services(s.ctx, s.Scope); err != nil || len(all) != 0 {
		t.Errorf("services %v, %v after stop", all, err)
	}
}

func testLoads(t *testing.T, s *suite) {
	f := s.lease()
	u := s.unit("main", s.One)
	u.MaxScale = 2
	r := s.up(f, u).Name
	s.ok("traffic", s.Target.SetTraffic(s.ctx, f, u.Name, []deployer.Share{{Revision: r, Percent: 100}}))
	s.answers(u, "", r)
	s.ok("floor", s.Target.SetFloor(s.ctx, f, u.Name, r, 3))
	s.ok("floor again", s.Target.SetFloor(s.ctx, f, u.Name, r, 3))
	svc, _ := s.service("main")
	seen, _ := svc.Revision(r)
	if seen.Floor != 0 && seen.Floor != 2 {
		t.Errorf("floor %d; want 2, or 0 where there is one instance of each", seen.Floor)
	}
	if svc.Template != r || len(svc.Revisions) != 1 || seen.Hash != u.Hash() {
		t.Errorf("a floor changed the service: %+v", svc)
	}
	want := max(1, seen.Floor)
	deadline := time.Now().Add(s.Patience)
	for {
		n, err := s.Target.Instances(s.ctx, s.Scope, u.Name, r)
		s.ok("count instances", err)
		if n == want {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d instances; want %d", n, want)
		}
		time.Sleep(100 * time.Millisecond)
	}
	// While the floor holds: an instance that goes takes its counts with it.
	for range 3 {
		a, err := s.Target.Ask(s.ctx, s.Scope, u.Name, r, deployer.Request{Method: "GET", Path: "/hello?x=1", Limit: s.Patience})
		s.ok("ask", err)
		if a.Status == 0 || a.Took < 0 {
			t.Errorf("reply %+v", a)
		}
	}
	// An answer may be here before it is counted there.
	for deadline := time.Now().Add(s.Patience); ; time.Sleep(20 * time.Millisecond) {
		counts, err := s.Target.Measure(s.ctx, s.Scope, u.Name, r)
		if errors.Is(err, deployer.ErrNotFound) {
			break // nothing counts here
		}
		s.ok("measure", err)
		var sum uint64
		for _, c := range counts {
			sum += c.Requests
		}
		if sum >= 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("counted %d requests of 3 at least: %+v", sum, counts)
		}
	}
	s.ok("restore", s.Target.RestoreTemplate(s.ctx, f, u, r)) // with a floor set
	s.ok("release the floor", s.Target.SetFloor(s.ctx, f, u.Name, r, 0))
	svc, _ = s.service("main")
	if seen, _ := svc.Revision(r); seen.Floor != 0 || len(svc.Revisions) != 1 {
		t.Errorf("%+v after the floor was given back", svc)
	}
	if _, err := s.Target.Measure(s.ctx, s.Scope, u.Name, u.RevisionName(2)); !errors.Is(err, deployer.ErrNotFound) {
		t.Errorf("measure what is not there: %v; want not found", err)
	}
	s.lease()
	if err := s.Target.SetFloor(s.ctx, f, u.Name, r, 2); !errors.Is(err, deployer.ErrFenced) && seen.Floor > 0 {
		t.Errorf("floor under an old epoch: %v; want fenced", err)
	}
}
