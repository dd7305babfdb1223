package stages

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

const timed = `version: 1
service: shop
provider: {runtime: nodejs18}
functions:
  list: {handler: a.list, events: [{http: {path: /list}}, {timer: {every: 1h, overlap: allow, payload: x}}, {timer: {cron: "0 * * * *"}}]}
  report:
    kind: job
    handler: b.report
    memory: 1Gi
    job: {parallelism: 4, completions: 8, retries: 2, timeout: 2h, ttl: 1d}
    events: [{timer: {cron: "0 2 * * *", timezone: Asia/Shanghai}}]
  byhand: {kind: job, handler: c.main}
`

func timedPlan(t *testing.T, text string, state *deployer.State, now time.Time) DeployPlan {
	t.Helper()
	p := parse(t, text)
	if problems := unsupported(p); len(problems) > 0 {
		t.Fatalf("refused: %v", problems)
	}
	hex := strings.Repeat("0123456789abcdef", 4)
	image, err := name.NewDigest("registry.example/shop@sha256:" + hex)
	if err != nil {
		t.Fatal(err)
	}
	build := BuildPlan{Images: []PlannedImage{{Name: "nodejs18", Key: "key"}}}
	for _, u := range p.Units {
		build.Images[0].Units = append(build.Images[0].Units, u.Name)
	}
	plan, err := PlanDeploy(DeployInput{
		Scope: deployer.Scope{Service: "shop", Environment: "test", Namespace: "n", Owner: "1"}, Project: p,
		Build: build, Images: map[string]name.Digest{"nodejs18": image}, Observed: state, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// From the file to the target, and what a plan says at each change.
func TestTimersInThePlan(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	c := &deployertest.Cluster{}
	scope := deployer.Scope{Service: "shop", Environment: "test", Namespace: "n", Owner: "1"}
	see := func() *deployer.State {
		s, err := deployer.Observe(t.Context(), c, scope)
		if err != nil {
			t.Fatal(err)
		}
		return &s
	}
	rows := func(p DeployPlan) string {
		var out []string
		for _, r := range timerRows(p.Timers) {
			out = append(out, strings.Join(r, " | "))
		}
		return strings.Join(out, "\n")
	}
	apply := func(p DeployPlan) {
		t.Helper()
		if _, err := deployer.Deploy(t.Context(), c, p.Deploy, deployer.Options{}); err != nil {
			t.Fatal(err)
		}
	}

	first := timedPlan(t, timed, see(), now)
	var report, byhand, list deployer.Spec
	for _, u := range first.Deploy.Units {
		switch u.Unit {
		case "report":
			report = u
		case "byhand":
			byhand = u
		default:
			list = u
		}
	}
	if report.Name != "shop-report-job" || report.Job == nil || *report.Job != (deployer.Job{Completions: 8, Parallelism: 4, Retries: 2, Timeout: 2 * time.Hour, TTL: 24 * time.Hour}) ||
		report.Timed || report.Concurrency != 0 || report.MaxScale != 0 || report.Timeout != 0 || report.Memory != "1Gi" {
		t.Errorf("job %+v, %+v", report, report.Job)
	}
	if !strings.Contains(report.Table, `"job":{"completions":8,"parallelism":4}`) || !strings.Contains(report.Table, `"timeoutMs":7200000`) {
		t.Errorf("table %s", report.Table)
	}
	if byhand.Job == nil || !list.Timed || list.Job != nil {
		t.Errorf("byhand %+v, list %+v", byhand, list)
	}
	want := `create | list | 0 * * * *, overlap skip | next 2026-03-04 06:00 UTC, 2026-03-04 07:00 UTC | 
create | list | every 1h, overlap allow | next 2026-03-04 06:00 UTC, 2026-03-04 07:00 UTC | 
create | report | 0 2 * * * Asia/Shanghai, overlap skip | next 2026-03-05 02:00 CST, 2026-03-06 02:00 CST | `
	if got := rows(first); !sameLines(got, want) {
		t.Errorf("timers:\n%s\nwant\n%s", got, want)
	}
	apply(first)
	for name, s := range map[string]deployer.State{"live": *see(), "the release": asLive(*see().Live)} {
		if again := timedPlan(t, timed, &s, now); again.Changed() {
			t.Errorf("against %s, the same again changes:\n%s", name, again.String())
		}
	}

	// Another payload is no revision; a function that moves takes its timer
	// along; what is not in the file any more goes.
	moved := strings.NewReplacer("payload: x", "payload: y", "list: {handler", "list: {standalone: true, handler", "Asia/Shanghai", "Europe/Berlin").Replace(timed)
	second := timedPlan(t, moved, see(), now)
	want = `update | list | 0 * * * *, overlap skip | next 2026-03-04 06:00 UTC, 2026-03-04 07:00 UTC | the function moved to shop-list
update | list | every 1h, overlap allow | next 2026-03-04 06:00 UTC, 2026-03-04 07:00 UTC | the function moved to shop-list
create | report | 0 2 * * * Europe/Berlin, overlap skip | next 2026-03-05 02:00 CET, 2026-03-06 02:00 CET | new timer
remove | report | 0 2 * * * Asia/Shanghai, overlap skip |  | no longer in faas.yml`
	if got := rows(second); !sameLines(got, want) {
		t.Errorf("timers:\n%s\nwant\n%s", got, want)
	}
	apply(second)

	// A job that becomes a function that answers requests is another unit.
	online := strings.Replace(moved, "byhand: {kind: job, handler: c.main}", "byhand: {handler: c.main, standalone: true, events: [{http: {path: /x}}]}", 1)
	third := timedPlan(t, online, see(), now)
	var what []string
	for _, change := range third.Changes {
		if change.Action != Unchanged {
			what = append(what, string(change.Action)+" "+change.Service+": "+change.Why)
		}
	}
	if got := strings.Join(what, "\n"); got != "create shop-byhand: kind of byhand\nremove shop-byhand-job: kind of byhand" {
		t.Errorf("changes:\n%s", got)
	}
	apply(third)
	if again := timedPlan(t, online, see(), now); again.Changed() {
		t.Errorf("the same again changes:\n%s", again.String())
	}
	if without := timedPlan(t, online, nil, time.Time{}); without.Timers[0].Action != Unknown || without.Timers[0].Next != nil {
		t.Errorf("without a cluster or a clock: %+v", without.Timers[0])
	}
}

func sameLines(a, b string) bool {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if strings.TrimRight(x[i], " ") != strings.TrimRight(y[i], " ") {
			return false
		}
	}
	return true
}

// Where nobody would answer the clock, the plan says so.
func TestTimersRefused(t *testing.T) {
	p := parse(t, `version: 1
service: shop
provider: {runtime: nodejs18}
functions:
  a: {handler: a.a, contract: http, events: [{http: {path: /a}}, {timer: {every: 1h}}]}
  b: {kind: job, contract: http, handler: a.b}
`)
	var got []string
	for _, r := range unsupported(p) {
		got = append(got, r.String())
	}
	want := `line 5, column 74: functions.a.events[1].timer: not supported by this platform version yet: a timer event of a function with contract: http
line 6, column 28: functions.b.contract: not supported by this platform version yet: a job with contract: http`
	if strings.Join(got, "\n") != want {
		t.Errorf("refused:\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}
