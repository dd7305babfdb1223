//go:build api

package knative_test

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// counting counts the requests that pass, by verb and resource.
type counting struct {
	next http.RoundTripper
	mu   *sync.Mutex
	by   map[string]int
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	verb, at := r.Method, strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Query().Get("watch") != "":
		verb = "WATCH"
	case r.URL.Query().Get("dryRun") != "":
		verb = "REHEARSE"
	}
	what := at[len(at)-1]
	if i := slices.Index(at, "namespaces"); i >= 0 && i+2 < len(at) {
		what = at[i+2]
		if verb == http.MethodGet && i+3 == len(at) {
			verb = "LIST"
		}
	}
	c.mu.Lock()
	c.by[verb+" "+what]++
	c.mu.Unlock()
	return c.next.RoundTrip(r)
}

// begin forgets what was counted.
func (c counting) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.by)
}

// sum is how many there were, and how many of which.
func (c counting) sum() (n int, which string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for what, of := range c.by {
		n += of
		all = append(all, fmt.Sprintf("%s %d", what, of))
	}
	slices.Sort(all)
	return n, strings.Join(all, ", ")
}

// heap notes the largest heap until the returned function is called, in MiB.
func heap() func() uint64 {
	runtime.GC()
	done, most := make(chan struct{}), make(chan uint64)
	go func() {
		var largest uint64
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			largest = max(largest, m.HeapInuse)
			select {
			case <-done:
				most <- largest >> 20
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(done); return <-most }
}

// A release of many units costs each unit what it costs a few: requests are
// linear, and an unchanged unit costs next to nothing.
func TestManyUnitsReadinessPatched(t *testing.T) {
	c := lab(t)
	perUnit := map[int]float64{}
	for _, n := range []int{20, 200} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			ns := c.namespace(t)
			scope := scopeIn(ns)
			requests := counting{mu: new(sync.Mutex), by: map[string]int{}}
			r := rest.CopyConfig(c.rest)
			r.QPS, r.Burst = 0, 0 // as the target sets them itself
			r.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return counting{next, requests.mu, requests.by}
			})
			// Watches alone say when to look: how long this tier takes for many
			// units is Knative's business, and shall not show in the count.
			k, err := knative.New(knative.Config{REST: r, Times: knative.Times{Poll: 20 * time.Second, Remove: 100 * time.Millisecond, Image: time.Second}})
			if err != nil {
				t.Fatal(err)
			}
			makeReady(t, c, ns)
			var units []deployer.Spec
			for i := range n {
				units = append(units, apiUnit(t, fmt.Sprintf("u%d", i), "1"))
			}
			do := func(what string, pipeline int64) deployer.Outcome {
				t.Helper()
				requests.begin()
				most, start := heap(), time.Now()
				out, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: pipeline, Units: units},
					deployer.Options{Parallel: 16, ProbeEvery: 10 * time.Millisecond, RouteTimeout: 5 * time.Second})
				if err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				sum, which := requests.sum()
				t.Logf("%d units, %s: %.1f s (%.0f ms a unit), %d requests (%.1f a unit), heap at most %d MiB: %s", n, what,
					took.Seconds(), float64(took.Milliseconds())/float64(n), sum, float64(sum)/float64(n), most(), which)
				return out
			}
			do("all new", 1)
			sum, _ := requests.sum()
			perUnit[n] = float64(sum) / float64(n)
			out := do("none changed", 2)
			if sum, _ = requests.sum(); !out.NoChange || sum > 30 {
				t.Errorf("nothing changed, with %d requests: %v", sum, out.NoChange)
			}
			units[n/2] = apiUnit(t, fmt.Sprintf("u%d", n/2), "2")
			changed := 0
			for _, ch := range do("one changed", 3).Changes {
				if ch.Action != deployer.Unchanged {
					changed++
				}
			}
			if changed != 1 {
				t.Errorf("%d units changed; want 1", changed)
			}
		})
	}
	if perUnit[20] > 40 {
		t.Errorf("%.1f requests a unit; want half of the 79 that there were when each asked for itself", perUnit[20])
	}
	if perUnit[200] > 1.5*perUnit[20] {
		t.Errorf("requests a unit: %.1f at 200, %.1f at 20; want them linear", perUnit[200], perUnit[20])
	}
}
