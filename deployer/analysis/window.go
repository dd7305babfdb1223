package analysis

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Counts are what one instance has counted since it started.
type Counts struct {
	// Instance tells instances apart: a pod's name.
	Instance string `json:"instance"`
	// Requests are those that ended, Failed those answered with a 5xx.
	Requests uint64 `json:"requests"`
	Failed   uint64 `json:"failed"`
	// Buckets count the requests that took at most Le; growing in both.
	Buckets []Bucket `json:"buckets,omitempty"`
}

// Bucket is a number of requests and the most that they took.
type Bucket struct {
	Le    time.Duration `json:"le"`
	Count uint64        `json:"count"`
}

// Bounds are the upper bounds of the buckets that our own adapters and
// targets count in: about 1.4 apart where p99 bounds usually lie.
func Bounds() []time.Duration {
	var all []time.Duration
	for _, ms := range []int{1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 400, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 7000, 10000, 15000, 20000, 30000, 60000} {
		all = append(all, time.Duration(ms)*time.Millisecond)
	}
	return all
}

// Add counts one request.
func (c *Counts) Add(status int, took time.Duration) {
	if c.Buckets == nil {
		for _, b := range Bounds() {
			c.Buckets = append(c.Buckets, Bucket{Le: b})
		}
	}
	c.Requests++
	if status >= 500 {
		c.Failed++
	}
	for i := range c.Buckets {
		if took <= c.Buckets[i].Le {
			c.Buckets[i].Count++
		}
	}
}

// Window is what happened between two looks, over all instances.
type Window struct {
	Requests uint64
	Failed   uint64
	buckets  map[time.Duration]uint64
}

// Between is what was counted from one look to the next. An instance that is
// new, or whose numbers fell because it started again, counts from zero; one
// that has ended since is left out.
func Between(before, now []Counts) Window {
	w := Window{buckets: map[time.Duration]uint64{}}
	for _, n := range now {
		var b Counts
		if i := slices.IndexFunc(before, func(c Counts) bool { return c.Instance == n.Instance }); i >= 0 {
			if b = before[i]; b.Requests > n.Requests || b.Failed > n.Failed {
				b = Counts{}
			}
		}
		// Numbers that can't be (more failures than requests) are not believed
		// further than they can.
		requests := n.Requests - b.Requests
		w.Requests += requests
		w.Failed += min(n.Failed-b.Failed, requests)
		for _, k := range n.Buckets {
			var was uint64
			if i := slices.IndexFunc(b.Buckets, func(o Bucket) bool { return o.Le == k.Le }); i >= 0 {
				was = b.Buckets[i].Count
			}
			if k.Count >= was {
				w.buckets[k.Le] += min(k.Count-was, requests)
			}
		}
	}
	return w
}

// SuccessRate is the share of requests, in percent, that did not fail; 100
// where there were none.
func (w Window) SuccessRate() float64 {
	if w.Requests == 0 {
		return 100
	}
	return 100 * float64(w.Requests-w.Failed) / float64(w.Requests)
}

// Quantile is the time that the share q, from 0 to 1, of the requests took at
// most, interpolated within its bucket. known is false where no bucket
// reaches that far.
func (w Window) Quantile(q float64) (took time.Duration, known bool) {
	var les []time.Duration
	for le := range w.buckets {
		les = append(les, le)
	}
	slices.Sort(les)
	want := q * float64(w.Requests)
	var below time.Duration
	var count uint64
	for _, le := range les {
		n := max(w.buckets[le], count)
		if float64(n) >= want && n > count {
			return below + time.Duration(float64(le-below)*(want-float64(count))/float64(n-count)), true
		}
		below, count = le, n
	}
	return below, false
}

// Names of the metrics that adapters offer.
const (
	metricRequests = "faas_requests_total"
	metricDuration = "faas_request_duration_seconds"
)

// maxMetrics bounds what one instance may say, in bytes.
const maxMetrics = 4 << 20

// Parse reads an instance's metrics in Prometheus' text format: the counter
// faas_requests_total with the label code (2xx, 5xx) and the histogram
// faas_request_duration_seconds, both by function. Other metrics are passed
// over; it is an error when there is neither.
func Parse(instance string, text io.Reader) (Counts, error) {
	limited := &io.LimitedReader{R: text, N: maxMetrics + 1}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(limited)
	if limited.N <= 0 {
		return Counts{}, fmt.Errorf("analysis: metrics of %s: more than %d bytes", instance, maxMetrics)
	}
	if err != nil {
		return Counts{}, fmt.Errorf("analysis: metrics of %s: %w", instance, err)
	}
	c := Counts{Instance: instance}
	requests := families[metricRequests]
	if requests == nil || requests.GetType() != dto.MetricType_COUNTER {
		return Counts{}, fmt.Errorf("analysis: metrics of %s: no counter %s", instance, metricRequests)
	}
	for _, m := range requests.Metric {
		n, ok := whole(m.GetCounter().GetValue())
		if !ok {
			return Counts{}, fmt.Errorf("analysis: metrics of %s: %s is %v", instance, metricRequests, m.GetCounter().GetValue())
		}
		c.Requests += n
		for _, l := range m.Label {
			if l.GetName() == "code" && strings.HasPrefix(l.GetValue(), "5") {
				c.Failed += n
			}
		}
	}
	buckets := map[time.Duration]uint64{}
	if f := families[metricDuration]; f != nil && f.GetType() == dto.MetricType_HISTOGRAM {
		for _, m := range f.Metric {
			for _, b := range m.GetHistogram().Bucket {
				if le := b.GetUpperBound(); le > 0 && le < 1e6 {
					buckets[time.Duration(math.Round(le*1e6))*time.Microsecond] += b.GetCumulativeCount()
				}
			}
		}
	}
	for le, n := range buckets {
		c.Buckets = append(c.Buckets, Bucket{le, n})
	}
	slices.SortFunc(c.Buckets, func(a, b Bucket) int { return cmp.Compare(a.Le, b.Le) })
	return c, nil
}

func whole(v float64) (uint64, bool) {
	if math.IsNaN(v) || v < 0 || v > 1<<53 {
		return 0, false
	}
	return uint64(v), true
}
