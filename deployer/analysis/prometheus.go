package analysis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Prometheus answers queries over Prometheus' HTTP API, or that of anything
// that speaks it. The zero value has no endpoint; every query is ErrNoData.
type Prometheus struct {
	// Endpoint is the address in front of /api/v1.
	Endpoint string
	// Token is sent as a bearer token; empty: none is.
	Token string
	// Client is how it is reached; nil: a client with a time-out of 10 s.
	Client *http.Client
	// Retry is the time before the first of two repetitions; default 500 ms.
	Retry time.Duration
}

// ErrNoData: nothing was measured, or nobody answered. Asking later may help.
var ErrNoData = errors.New("no data")

// Variables are what a query may name as {{revision}}.
type Variables struct {
	Service, Revision, Stable, Namespace string
	// Window is how long the release has been watched so far.
	Window time.Duration
}

var variable = regexp.MustCompile(`\{\{\s*([A-Za-z]*)\s*\}\}`)

func (v Variables) all() map[string]string {
	return map[string]string{
		"service": v.Service, "revision": v.Revision, "stable": v.Stable, "namespace": v.Namespace,
		"window": strconv.Itoa(max(1, int(math.Ceil(v.Window.Seconds())))) + "s",
	}
}

// Check reports what is wrong with the query's text, before anything runs.
func (q Query) Check() error {
	known := Variables{}.all()
	for _, m := range variable.FindAllStringSubmatch(q.Query, -1) {
		if _, ok := known[m[1]]; !ok {
			return fmt.Errorf("unknown variable {{%s}}; known: service, revision, stable, namespace, window", m[1])
		}
	}
	if rest := variable.ReplaceAllString(q.Query, ""); strings.Contains(rest, "{{") {
		return errors.New("{{ without a variable's name and }}")
	}
	return nil
}

// Judge asks for the query's value. The error is [ErrNoData] where a later
// look may say more; any other means that the query can't work.
func (p Prometheus) Judge(ctx context.Context, q Query, v Variables) (Judgement, error) {
	if err := q.Check(); err != nil {
		return Judgement{}, fmt.Errorf("query %s: %w", q.Name, err)
	}
	all := v.all()
	text := variable.ReplaceAllStringFunc(q.Query, func(s string) string { return all[variable.FindStringSubmatch(s)[1]] })
	n, err := p.value(ctx, text)
	if err != nil {
		return Judgement{}, fmt.Errorf("query %s: %w", q.Name, err)
	}
	return q.judge(n), nil
}

const (
	promTries  = 3
	promAnswer = 1 << 20 // bytes
)

func (p Prometheus) value(ctx context.Context, query string) (float64, error) {
	if p.Endpoint == "" {
		return 0, fmt.Errorf("the cluster names no prometheus: %w", ErrNoData)
	}
	var last error
	for try := range promTries {
		if try > 0 {
			base := p.Retry << (try - 1)
			if p.Retry <= 0 {
				base = 500 * time.Millisecond << (try - 1)
			}
			timer := time.NewTimer(base/2 + rand.N(base))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return 0, context.Cause(ctx)
			}
		}
		v, again, err := p.once(ctx, query)
		if err == nil || ctx.Err() != nil || !again {
			return v, err
		}
		last = err
	}
	return 0, fmt.Errorf("%w: %w", ErrNoData, last)
}

// once asks once; again says that a repetition may help.
func (p Prometheus) once(ctx context.Context, query string) (v float64, again bool, err error) {
	form := url.Values{"query": {query}, "timeout": {"8s"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(p.Endpoint, "/")+"/api/v1/query", strings.NewReader(form.Encode()))
	if err != nil {
		return 0, false, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if p.Token != "" {
		req.Header.Set("Authorization", "Bearer "+p.Token)
	}
	client := p.Client
	if client == nil {
		client = &http.Client{Timeout: 10 * time.Second}
	}
	res, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return 0, false, context.Cause(ctx)
		}
		return 0, true, fmt.Errorf("prometheus: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, promAnswer+1))
	if err != nil {
		return 0, true, fmt.Errorf("prometheus: read its answer: %w", err)
	}
	if len(body) > promAnswer {
		return 0, false, errors.New("prometheus answered more than 1 MiB: aggregate the query to one number")
	}
	var a struct {
		Status, ErrorType, Error string
		Data                     struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	bad := json.Unmarshal(body, &a)
	switch {
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		return 0, false, fmt.Errorf("prometheus answered %s: set FAAS_PROMETHEUS_TOKEN", res.Status)
	case res.StatusCode == http.StatusBadRequest || res.StatusCode == http.StatusUnprocessableEntity:
		return 0, false, fmt.Errorf("prometheus refused it: %s", orElse(a.Error, res.Status))
	case res.StatusCode != http.StatusOK:
		return 0, true, fmt.Errorf("prometheus answered %s %s", res.Status, a.Error)
	case bad != nil || a.Status != "success":
		return 0, true, fmt.Errorf("what answered is no prometheus: status %q %s", a.Status, a.Error)
	}
	v, err = number(a.Data.ResultType, a.Data.Result)
	return v, false, err
}

// number is the one value of a result.
func number(kind string, raw json.RawMessage) (float64, error) {
	var point []any
	switch kind {
	case "scalar":
		if err := json.Unmarshal(raw, &point); err != nil {
			return 0, fmt.Errorf("prometheus: its answer: %w", err)
		}
	case "vector":
		var series []struct{ Value []any }
		if err := json.Unmarshal(raw, &series); err != nil {
			return 0, fmt.Errorf("prometheus: its answer: %w", err)
		}
		switch len(series) {
		case 0:
			return 0, ErrNoData
		case 1:
			point = series[0].Value
		default:
			return 0, fmt.Errorf("it gives %d series: aggregate it to one number, with sum(…) for example", len(series))
		}
	default:
		return 0, fmt.Errorf("it gives a %q, not a number", kind)
	}
	if len(point) != 2 {
		return 0, errors.New("prometheus: its answer has no value")
	}
	s, _ := point[1].(string)
	v, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil:
		return 0, fmt.Errorf("prometheus: its answer's value is %q", s)
	case math.IsNaN(v) || math.IsInf(v, 0):
		return 0, ErrNoData // a rate over nothing
	}
	return v, nil
}

func orElse(all ...string) string {
	return all[max(0, slices.IndexFunc(all, func(s string) bool { return s != "" }))]
}
