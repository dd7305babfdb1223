package stages

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

const watched = `version: 1
service: shop
provider: {runtime: nodejs18}
routes: {basePath: /shop}
functions:
  list: {handler: a.list, events: [{http: {path: /list}}]}
  pay: {handler: a.pay, standalone: true, events: [{http: {path: /pay, method: post}}]}
rollout:
  strategy: canary
  steps: [{weight: 5, pause: 5m}, {weight: 30, pause: approval}]
  verify: [{request: {method: POST, path: "/shop/pay?x=1"}, expect: {status: 201, maxMs: 500}}]
  analysis: {interval: 20s, successRate: {min: 99.5}, p99: {max: 800ms}, queries: [{name: lag, query: "max(lag{r=\"{{revision}}\"})", max: 3}]}
  onFailure: hold
  keepWarm: 0s
environments: {test: {branch: master}}
`

// Everything that faas.yml says of a rollout arrives at the deployer.
func TestPolicyOfEverything(t *testing.T) {
	rate, lag := 99.5, 3.0
	got := policyOf(parse(t, watched))
	want := deployer.Policy{
		Strategy: "canary", OnFailure: "hold", KeepWarm: -1,
		Steps:  []deployer.Weight{{Weight: 5, Pause: 5 * time.Minute}, {Weight: 30, Approval: true}},
		Verify: []deployer.Verify{{Service: "shop-pay", Method: "POST", Path: "/shop/pay?x=1", Status: 201, Max: 500 * time.Millisecond}},
		Analysis: &analysis.Criteria{
			Interval: 20 * time.Second, SuccessRate: &rate, P99: 800 * time.Millisecond, Compare: "stable", MinRequests: 50, OnNoData: "wait",
			Queries: []analysis.Query{{Name: "lag", Query: `max(lag{r="{{revision}}"})`, Max: &lag}},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A rollout that the job's limit ends is refused; one that it may end, told.
func TestRolloutFitsTheJob(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		limit, pauses, ready time.Duration
		refused, told        bool
	}{
		{0, 5 * time.Hour, time.Hour, false, false}, // not in a job
		{time.Hour, 59 * time.Minute, time.Minute, false, true},
		{time.Hour, 40 * time.Minute, 5 * time.Minute, false, false},
		{time.Hour, time.Hour, 0, true, false},
		{10 * time.Minute, 0, 15 * time.Minute, false, true},
	} {
		var log bytes.Buffer
		s := &state{Runner: &Runner{Log: ci.Log{W: &log, Now: time.Now}, World: World{Now: func() time.Time { return now }}}}
		if tc.limit > 0 {
			s.Job.Deadline = now.Add(tc.limit)
		}
		err := s.fits(tc.pauses, tc.ready)
		if (err != nil) != tc.refused || strings.Contains(log.String(), "may take") != tc.told {
			t.Errorf("%+v: %v, log %q", tc, err, log.String())
		}
		if e := usererr.Of(err); err != nil && !strings.Contains(e.Next, "timeout: 70 minutes") {
			t.Errorf("%+v: next %q", tc, e.Next)
		}
	}
}

func TestRolloutNeedsItsGraph(t *testing.T) {
	p := parse(t, watched)
	for graph, refused := range map[string]bool{"two-job": true, "separate-tests": true, "approval": false, "": false} {
		err := checkGraph(p, graph)
		if (err != nil) != refused {
			t.Errorf("graph %q: %v", graph, err)
		}
		if e := usererr.Of(err); err != nil && (!strings.Contains(e.Next, "graph: approval}") || !strings.Contains(err.Error(), "line 10")) {
			t.Errorf("graph %q: %v, next %q; want the line, and the line to paste", graph, err, e.Next)
		}
	}
	if err := checkGraph(parse(t, strings.Replace(watched, "approval", "1m", 1)), "two-job"); err != nil {
		t.Errorf("a canary that waits for nobody: %v", err)
	}
	if err := checkGraph(parse(t, strings.Replace(watched, "canary", "manual", 1)), "two-job"); err == nil {
		t.Error("a manual rollout without a job to promote it")
	}
}

// A query that nobody would answer is refused before anything is built.
func TestQueriesNeedPrometheus(t *testing.T) {
	p := parse(t, watched)
	if out := badQueries(p, bundle.Site{Name: "hz"}); len(out) != 1 || !strings.Contains(out[0].String(), "hz has no metrics") || out[0].Line == 0 {
		t.Errorf("without prometheus: %v", out)
	}
	with := bundle.Site{Cluster: bundle.Cluster{Prometheus: "http://prom"}}
	if out := badQueries(p, with); len(out) > 0 {
		t.Errorf("with prometheus: %v", out)
	}
	if out := badQueries(parse(t, strings.Replace(watched, "{{revision}}", "{{pod}}", 1)), with); len(out) != 1 || !strings.Contains(out[0].String(), "{{pod}}") {
		t.Errorf("unknown variable: %v", out)
	}
}
