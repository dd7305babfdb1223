package analysis_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

func counts(instance string, requests, failed int, took time.Duration) analysis.Counts {
	c := analysis.Counts{Instance: instance}
	for i := range requests {
		status := 200
		if i < failed {
			status = 503
		}
		c.Add(status, took)
	}
	return c
}

func TestBetween(t *testing.T) {
	before := []analysis.Counts{counts("a", 100, 50, time.Millisecond), counts("gone", 9, 9, time.Millisecond), counts("again", 100, 0, time.Second)}
	now := []analysis.Counts{counts("a", 150, 50, time.Millisecond), counts("new", 10, 1, 90*time.Millisecond), counts("again", 40, 0, 90*time.Millisecond)}
	w := analysis.Between(before, now)
	if w.Requests != 100 || w.Failed != 1 || w.SuccessRate() != 99 {
		t.Errorf("%d requests, %d failed; want 50 + 10 + 40 of the one that started again, 1", w.Requests, w.Failed)
	}
	if p50, known := w.Quantile(0.5); !known || p50 > time.Millisecond {
		t.Errorf("p50 %s", p50)
	}
	if p99, known := w.Quantile(0.99); !known || p99 <= 70*time.Millisecond || p99 > 100*time.Millisecond {
		t.Errorf("p99 %s; want between 70 and 100 ms", p99)
	}
	slow := analysis.Between(nil, []analysis.Counts{counts("a", 10, 0, time.Hour)})
	if _, known := slow.Quantile(0.99); known {
		t.Error("the time of what no bucket has is known")
	}
}

func TestParse(t *testing.T) {
	text := `# TYPE other gauge
other 3
# TYPE faas_requests_total counter
faas_requests_total{function="a",code="2xx"} 7
faas_requests_total{function="b",code="5xx"} 3
# TYPE faas_request_duration_seconds histogram
faas_request_duration_seconds_bucket{function="a",le="0.1"} 5
faas_request_duration_seconds_bucket{function="a",le="+Inf"} 7
faas_request_duration_seconds_sum{function="a"} 1
faas_request_duration_seconds_count{function="a"} 7
faas_request_duration_seconds_bucket{function="b",le="0.1"} 1
faas_request_duration_seconds_bucket{function="b",le="+Inf"} 3
faas_request_duration_seconds_sum{function="b"} 1
faas_request_duration_seconds_count{function="b"} 3
`
	c, err := analysis.Parse("pod", strings.NewReader(text))
	if err != nil || c.Requests != 10 || c.Failed != 3 || len(c.Buckets) != 1 || c.Buckets[0] != (analysis.Bucket{Le: 100 * time.Millisecond, Count: 6}) {
		t.Errorf("got %+v, %v", c, err)
	}
	for name, bad := range map[string]string{
		"nothing": "", "html": "<html>no</html>", "no counter": "# TYPE faas_requests_total gauge\nfaas_requests_total 1\n",
		"negative": "# TYPE faas_requests_total counter\nfaas_requests_total{code=\"2xx\"} -1\n",
		"NaN":      "# TYPE faas_requests_total counter\nfaas_requests_total{code=\"2xx\"} NaN\n",
		"endless":  "# " + strings.Repeat("x", 5<<20),
	} {
		if c, err := analysis.Parse("pod", strings.NewReader(bad)); err == nil {
			t.Errorf("%s: got %+v", name, c)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("# TYPE faas_requests_total counter\nfaas_requests_total{code=\"5xx\"} 3\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := analysis.Parse("pod", strings.NewReader(text))
		if err != nil {
			return
		}
		w := analysis.Between(nil, []analysis.Counts{c})
		if w.Failed > w.Requests || w.SuccessRate() < 0 || w.SuccessRate() > 100 {
			t.Errorf("window %+v of %+v", w, c)
		}
		w.Quantile(0.99)
	})
}

func TestJudge(t *testing.T) {
	rate := 99.0
	window := func(n, failed int, took time.Duration) analysis.Window {
		return analysis.Between(nil, []analysis.Counts{counts("a", n, failed, took)})
	}
	ms := time.Millisecond
	for _, tc := range []struct {
		name            string
		c               analysis.Criteria
		release, stable analysis.Window
		want            analysis.Verdict
		says            string
	}{
		{"few", analysis.Criteria{SuccessRate: &rate}, window(49, 49, ms), window(1000, 0, ms), analysis.NoData, "49 requests so far, 50 are needed"},
		{"good", analysis.Criteria{SuccessRate: &rate, P99: 100 * ms}, window(1000, 5, ms), window(1000, 4, ms), analysis.Pass, "99.5 %"},
		{"bound", analysis.Criteria{SuccessRate: &rate}, window(1000, 11, ms), window(1000, 11, ms), analysis.Fail, "98.9 % of 1000 requests succeeded, at least 99 % must (stable: 98.9 %)"},
		{"worse", analysis.Criteria{}, window(1000, 30, ms), window(1000, 1, ms), analysis.Fail, "of the stable release's 1000"},
		{"worse by chance", analysis.Criteria{}, window(60, 1, ms), window(1000, 1, ms), analysis.Pass, ""},
		{"not compared", analysis.Criteria{Compare: "none"}, window(1000, 30, ms), window(1000, 1, ms), analysis.Pass, ""},
		{"stable idle", analysis.Criteria{SuccessRate: &rate}, window(1000, 1, ms), window(3, 0, ms), analysis.Pass, ""},
		{"slow", analysis.Criteria{P99: 100 * ms}, window(100, 0, 300*ms), window(100, 0, 300*ms), analysis.Fail, "at most 100ms is allowed"},
		{"off the scale", analysis.Criteria{P99: 100 * ms}, window(100, 0, time.Hour), window(100, 0, ms), analysis.Fail, "at most 100ms"},
		{"slower", analysis.Criteria{P99: time.Second}, window(100, 0, 300*ms), window(100, 0, 50*ms), analysis.Fail, "more than twice"},
		{"slower, tiny", analysis.Criteria{P99: time.Second}, window(100, 0, 9*ms), window(100, 0, ms), analysis.Pass, ""},
	} {
		if j := tc.c.Judge(tc.release, tc.stable); j.Verdict != tc.want || !strings.Contains(j.Why, tc.says) {
			t.Errorf("%s: %s: %s; want %s with %q", tc.name, j.Verdict, j.Why, tc.want, tc.says)
		}
	}
}

// A Prometheus that is down, slow or lying is no data; a query that can't
// work is an error of its own.
func TestPrometheus(t *testing.T) {
	most := 5.0
	q := analysis.Query{Name: "lag", Query: `max(lag{r="{{ revision }}",s="{{stable}}"}[{{window}}])`, Max: &most}
	answer := func(kind, result string) string {
		return `{"status":"success","data":{"resultType":"` + kind + `","result":` + result + `}}`
	}
	for _, tc := range []struct {
		name   string
		codes  []int
		body   string
		want   analysis.Verdict
		noData bool
		says   string
		asked  int
	}{
		{name: "good", body: answer("vector", `[{"metric":{},"value":[1,"4.5"]}]`), want: analysis.Pass, asked: 1},
		{name: "scalar, bad", body: answer("scalar", `[1,"6"]`), want: analysis.Fail, says: "lag is 6, at most 5", asked: 1},
		{name: "down, then up", codes: []int{503, 502}, body: answer("scalar", `[1,"1"]`), want: analysis.Pass, asked: 3},
		{name: "down", codes: []int{503, 503, 503}, noData: true, says: "503", asked: 3},
		{name: "nothing", body: answer("vector", `[]`), noData: true, asked: 1},
		{name: "NaN", body: answer("scalar", `[1,"NaN"]`), noData: true, asked: 1},
		{name: "a web page", body: "<html>", noData: true, says: "no prometheus", asked: 3},
		{name: "lies", body: answer("vector", `[{"value":["x"]}]`), says: "no value", asked: 1},
		{name: "many", body: answer("vector", `[{"value":[1,"1"]},{"value":[1,"2"]}]`), says: "2 series", asked: 1},
		{name: "matrix", body: answer("matrix", `[]`), says: "matrix", asked: 1},
		{name: "bad query", codes: []int{400}, body: `{"status":"error","error":"parse error"}`, says: "parse error", asked: 1},
		{name: "denied", codes: []int{401}, says: "FAAS_PROMETHEUS_TOKEN", asked: 1},
		{name: "endless", body: strings.Repeat("x", 2<<20), says: "more than 1 MiB", asked: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				if got := r.FormValue("query"); got != `max(lag{r="new-1",s="old-1"}[91s])` {
					t.Errorf("query %s", got)
				}
				if r.URL.Path != "/prom/api/v1/query" || r.Header.Get("Authorization") != "Bearer secret" {
					t.Errorf("asked %s as %q", r.URL, r.Header.Get("Authorization"))
				}
				if asked <= len(tc.codes) {
					w.WriteHeader(tc.codes[asked-1])
				}
				fmt.Fprint(w, tc.body)
			}))
			defer srv.Close()
			p := analysis.Prometheus{Endpoint: srv.URL + "/prom/", Token: "secret", Retry: time.Millisecond}
			j, err := p.Judge(t.Context(), q, analysis.Variables{Revision: "new-1", Stable: "old-1", Window: 90100 * time.Millisecond})
			if errors.Is(err, analysis.ErrNoData) != tc.noData || (err == nil) != (tc.want != "") || j.Verdict != tc.want || asked != tc.asked {
				t.Errorf("got %+v, %v after %d requests; want %s, no data %v, %d requests", j, err, asked, tc.want, tc.noData, tc.asked)
			}
			if !strings.Contains(fmt.Sprint(j.Why, err), tc.says) || strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("said %q, %v; want %q and no token", j.Why, err, tc.says)
			}
		})
	}
	t.Run("slow", func(t *testing.T) {
		over := make(chan struct{})
		srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }))
		defer srv.Close()
		defer close(over)
		p := analysis.Prometheus{Endpoint: srv.URL, Client: &http.Client{Timeout: 20 * time.Millisecond}, Retry: time.Millisecond}
		if _, err := p.Judge(t.Context(), q, analysis.Variables{}); !errors.Is(err, analysis.ErrNoData) {
			t.Errorf("got %v; want no data", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Judge(ctx, q, analysis.Variables{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v; want cancelled", err)
		}
	})
	if _, err := (analysis.Prometheus{}).Judge(t.Context(), q, analysis.Variables{}); !errors.Is(err, analysis.ErrNoData) {
		t.Errorf("without an endpoint: %v", err)
	}
	for _, bad := range []string{"a{{x}}", "a{{", "{{revision"} {
		if err := (analysis.Query{Query: bad}).Check(); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
