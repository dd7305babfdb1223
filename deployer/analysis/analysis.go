// Package analysis judges a release while it takes traffic: measurements in,
// a verdict out. It compares what the new revision's requests looked like
// with fixed bounds and with those of the stable revision in the same window.
package analysis

import (
	"time"
)

// Criteria are what a release must keep to. The zero value judges nothing.
type Criteria struct {
	// Interval is the time between two looks; default 30 s.
	Interval time.Duration `json:"interval,omitempty"`
	// SuccessRate is the least share of requests, in percent, that were not
	// answered with a 5xx; nil: not judged.
	SuccessRate *float64 `json:"successRate,omitempty"`
	// P99 is the most that 99 of 100 requests may take; 0: not judged.
	P99 time.Duration `json:"p99,omitempty"`
	// Compare is none, or stable (also when empty): then the release must also
	// not be clearly worse than the stable one in the same window.
	Compare string `json:"compare,omitempty"`
	// MinRequests is how many requests make a judgement; default 50.
	MinRequests int `json:"minRequests,omitempty"`
	// OnNoData is what fewer requests than that mean: wait (also when empty),
	// pass or fail.
	OnNoData string `json:"onNoData,omitempty"`
	// Queries are measurements of the platform's Prometheus.
	Queries []Query `json:"queries,omitempty"`
}

// Query is a PromQL expression that gives one number, and its bounds.
type Query struct {
	Name  string   `json:"name"`
	Query string   `json:"query"`
	Min   *float64 `json:"min,omitempty"`
	Max   *float64 `json:"max,omitempty"`
}
