package main

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/devenv"
)

// callers keeps asking url until the test ends.
func (l *lab) callers(url string) (stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return
			}
			if res, err := http.DefaultClient.Do(req); err == nil {
				res.Body.Close()
			}
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

const canary = shop + `rollout:
  strategy: canary
  steps: [{weight: 30, pause: 1s}]
  verify: [{request: {path: /hello}, expect: {status: 200}}]
  analysis: {interval: 1s, successRate: {min: 99}, minRequests: 20}
`

// A canary of a real repository: one that fails its verification gets no
// traffic, one that fails under traffic gives it back (80), a good one is live.
func TestCanary(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.write(map[string]string{"faas.yml": canary})
	l.newPipeline()
	url := l.ok(whole).report.Result.URLs[0].URL
	defer l.callers(url)()

	l.write(map[string]string{"index.js": "exports.handler = async () => { throw new Error('no base'); };\n"})
	l.newPipeline()
	l.refused(l.run(whole), 1, "GET /hello: status 500, want 200", "release r1 still serves")

	// Good for who looks at it once, bad under load.
	l.write(map[string]string{"index.js": "let n = 0;\nexports.handler = async () => { if (++n > 3) throw new Error('worn out'); return {greeting: 'hello'}; };\n"})
	l.newPipeline()
	l.refused(l.run(whole), 80, "at least 99 % must", "release r1 still serves")
	for range 20 {
		if status, _, _ := l.get(url); status != 200 {
			t.Fatalf("status %d after it was put back", status)
		}
	}

	// Pauses that the job does not live through are refused before anything moves.
	l.write(map[string]string{
		"faas.yml": strings.Replace(canary, "pause: 1s", "pause: 40m", 1),
		"index.js": "exports.handler = async () => ({greeting: 'servus'});\n",
	})
	l.newPipeline()
	l.refused(l.run(whole, "CI_JOB_STARTED_AT="+time.Now().UTC().Format(time.RFC3339), "CI_JOB_TIMEOUT=1800"), 1, "takes at least 40m0s", "timeout: 55 minutes")

	l.write(map[string]string{"faas.yml": canary})
	l.newPipeline()
	o := l.ok(whole)
	if !strings.Contains(o.log, "good at 30 %") || !strings.Contains(o.log, "30 % to ") {
		t.Errorf("the log does not tell of the canary:\n%s", o.log)
	}
	if _, body, _ := l.get(url); body != `{"greeting":"servus"}` {
		t.Errorf("the route says %s", body)
	}
}

// An approval ends the job; the promotion is another process that knows only
// the record.
func TestApproval(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.write(map[string]string{"faas.yml": strings.Replace(canary, "pause: 1s", "pause: approval", 1)})
	l.newPipeline()
	l.refused(l.run(whole, "FAAS_GRAPH=two-job"), 1, "waits for a person", "graph: approval}")
	graph := "FAAS_GRAPH=approval"
	url := l.ok(whole, graph).report.Result.URLs[0].URL

	l.write(map[string]string{"index.js": "exports.handler = async () => ({greeting: 'servus'});\n"})
	l.newPipeline()
	o := l.ok(whole, graph)
	if o.report.Result.Awaiting == "" || !strings.Contains(o.log, "promote:test") {
		t.Errorf("report %+v, want that it waits for the job promote:test\n%s", o.report.Result, o.log)
	}
	seen := map[string]bool{}
	for range 20 {
		_, body, _ := l.get(url)
		seen[body] = true
	}
	if len(seen) != 2 {
		t.Errorf("answers %v; want both releases'", seen)
	}
	// Nothing of the pipeline's files is there, and faas.yml is broken by now.
	was := l.iid
	l.newPipeline()
	l.iid = was
	l.write(map[string]string{"index.js": "broken"})
	if got := l.ok("promote", graph).report.Result; got.Release != "r2" || got.Awaiting != "" {
		t.Errorf("promoted: %+v", got)
	}
	for range 10 {
		if _, body, _ := l.get(url); body != `{"greeting":"servus"}` {
			t.Errorf("after the promotion: %s", body)
		}
	}
	if o := l.ok("promote", graph); !strings.Contains(o.log, "live already") {
		t.Errorf("promoted again:\n%s", o.log)
	}
	l.newPipeline()
	l.refused(l.run("promote", graph), 79, "no release waits")
}
