package analysis

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Verdict is what a look says of a release.
type Verdict string

// The verdicts.
const (
	Pass   Verdict = "pass"
	Fail   Verdict = "fail"
	NoData Verdict = "no data" // too few requests, or no answer
)

// Judgement is a verdict with what it is based on, in a sentence.
type Judgement struct {
	Verdict Verdict
	Why     string
}

// Defaults of Criteria.
const (
	DefaultInterval    = 30 * time.Second
	DefaultMinRequests = 50
)

// WithDefaults fills in what the zero values mean.
func (c Criteria) WithDefaults() Criteria {
	if c.Interval <= 0 {
		c.Interval = DefaultInterval
	}
	if c.MinRequests <= 0 {
		c.MinRequests = DefaultMinRequests
	}
	if c.OnNoData == "" {
		c.OnNoData = "wait"
	}
	if c.Compare == "" {
		c.Compare = "stable"
	}
	return c
}

// Judge compares the release's window with the bounds and with the stable
// one's. A bound that is broken fails the release whatever the stable one
// does. Compared with it, the release fails when it is worse beyond chance,
// and by more than a request in 200, or more than twice as slow.
func (c Criteria) Judge(release, stable Window) Judgement {
	c = c.WithDefaults()
	if release.Requests < uint64(c.MinRequests) {
		return Judgement{NoData, fmt.Sprintf("%d requests so far, %d are needed", release.Requests, c.MinRequests)}
	}
	comparable := c.Compare == "stable" && stable.Requests >= uint64(c.MinRequests)
	beside := ""
	if comparable {
		beside = fmt.Sprintf(" (stable: %s)", percent(stable.SuccessRate()))
	}
	said := []string{fmt.Sprintf("%d requests, %s succeeded%s", release.Requests, percent(release.SuccessRate()), beside)}
	if c.SuccessRate != nil && release.SuccessRate() < *c.SuccessRate {
		return Judgement{Fail, fmt.Sprintf("%s of %d requests succeeded, at least %s must%s", percent(release.SuccessRate()), release.Requests, percent(*c.SuccessRate), beside)}
	}
	if comparable && worse(release, stable) {
		return Judgement{Fail, fmt.Sprintf("%s of %d requests succeeded, of the stable release's %d in the same time %s", percent(release.SuccessRate()), release.Requests, stable.Requests, percent(stable.SuccessRate()))}
	}
	if c.P99 > 0 {
		p99, known := release.Quantile(0.99)
		old, oldKnown := stable.Quantile(0.99)
		beside := ""
		if comparable && oldKnown {
			beside = fmt.Sprintf(" (stable: %s)", short(old))
		}
		switch {
		case !known && p99 == 0:
			return Judgement{NoData, "no times are measured, and p99 is to be judged"}
		case !known, p99 > c.P99:
			return Judgement{Fail, fmt.Sprintf("p99 is %s, at most %s is allowed%s", short(p99), c.P99, beside)}
		// Below a few milliseconds twice as much is noise.
		case comparable && oldKnown && p99 > 2*old && p99-old > 20*time.Millisecond:
			return Judgement{Fail, fmt.Sprintf("p99 is %s, more than twice the stable release's %s in the same time", short(p99), short(old))}
		}
		said = append(said, "p99 "+short(p99)+beside)
	}
	return Judgement{Pass, strings.Join(said, ", ")}
}

// worse reports whether the release fails clearly more often than the stable
// one: by more than half a percent and three standard errors of the
// difference, which chance alone exceeds about once in 700 looks.
func worse(release, stable Window) bool {
	p, q := float64(release.Failed)/float64(release.Requests), float64(stable.Failed)/float64(stable.Requests)
	if p-q <= 0.005 {
		return false
	}
	n, m := float64(release.Requests), float64(stable.Requests)
	all := float64(release.Failed+stable.Failed) / (n + m)
	return p-q > 3*math.Sqrt(all*(1-all)*(1/n+1/m))
}

// Bounds reports whether v keeps to the query's.
func (q Query) judge(v float64) Judgement {
	switch {
	case q.Min != nil && v < *q.Min:
		return Judgement{Fail, fmt.Sprintf("%s is %.6g, at least %.6g is wanted", q.Name, v, *q.Min)}
	case q.Max != nil && v > *q.Max:
		return Judgement{Fail, fmt.Sprintf("%s is %.6g, at most %.6g is wanted", q.Name, v, *q.Max)}
	}
	return Judgement{Pass, fmt.Sprintf("%s is %.6g", q.Name, v)}
}

func percent(v float64) string {
	// Rounded down: 99.96 of 100 is not "100 %".
	return fmt.Sprintf("%.6g %%", math.Floor(v*100)/100)
}

func short(d time.Duration) string {
	if d > 10*time.Millisecond {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
