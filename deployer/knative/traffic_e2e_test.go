//go:build e2e

package knative_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// visitor is a client that goes to the lab's ingress, whatever name it asks
// for.
func visitor(connections int) *http.Client {
	dial := &net.Dialer{Timeout: 5 * time.Second}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		MaxIdleConns: connections, MaxIdleConnsPerHost: connections, DisableKeepAlives: connections == 0,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dial.DialContext(ctx, network, ingress())
		},
	}}
}

// get asks once.
func get(ctx context.Context, client *http.Client, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// asked is what the unit's route answers to a path.
func asked(t *testing.T, service, ns, path string) (int, string) {
	t.Helper()
	code, body, err := get(t.Context(), visitor(0), "http://"+service+"."+ns+"."+os.Getenv("KUROKO_LAB_DOMAIN")+path)
	if err != nil {
		return 0, err.Error()
	}
	return code, body
}

// atOnce is how many requests of a load are under way at most. Beyond that a
// machine that is busy with other things would drown in requests nobody has
// answered yet, whatever is rolled out; so it falls behind the rate, and says so.
const atOnce = 64

// load asks the unit's route, rate times a second, until stop is called, which
// returns what came of it. It doesn't wait for answers up to [atOnce], and what
// it missed it asks as soon as it can.
func load(t *testing.T, url string, rate int) (stop func() tally) {
	t.Helper()
	client := visitor(atOnce)
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var asking sync.WaitGroup
	all := tally{rate: rate, answers: map[string]int{}}
	slots := make(chan struct{}, atOnce)
	ask := func() {
		defer func() { <-slots }()
		start := time.Now()
		code, body, err := get(context.Background(), client, url)
		took := time.Since(start)
		mu.Lock()
		defer mu.Unlock()
		all.times = append(all.times, took)
		switch {
		case err != nil:
			all.wrong = append(all.wrong, err.Error())
		case code != http.StatusOK:
			all.wrong = append(all.wrong, fmt.Sprintf("%d %s", code, body))
		default:
			all.answers[body]++
		}
	}
	start := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sent := 0; ; sent++ {
			select {
			case <-time.After(time.Until(start.Add(time.Duration(sent) * time.Second / time.Duration(rate)))):
			case <-ctx.Done():
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				all.took = time.Since(start)
				return
			}
			asking.Go(ask)
		}
	}()
	var once sync.Once
	stop = func() tally {
		once.Do(func() { cancel(); <-done; asking.Wait(); client.CloseIdleConnections() })
		return all
	}
	t.Cleanup(func() { stop() })
	return stop
}

// tally is what came of a load.
type tally struct {
	rate    int           // asked for, per second
	took    time.Duration // while it was asked
	answers map[string]int
	wrong   []string
	times   []time.Duration // of all requests, in no order
}

// good is how many requests were answered well.
func (l tally) good() int {
	n := 0
	for _, m := range l.answers {
		n += m
	}
	return n
}

// slowest is the 99th of 100 times.
func (l tally) slowest() time.Duration {
	if len(l.times) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(l.times))[len(l.times)*99/100]
}

// unbroken fails the test when a request of the load failed. That this machine
// was too busy to ask as often as it should is said too, and fails only where
// so few were asked that they show nothing.
func (l tally) unbroken(t *testing.T) {
	t.Helper()
	reached := float64(len(l.times)) / l.took.Seconds()
	t.Logf("%d requests in %s, %.0f a second (asked for %d), p99 %s; answers %v, %d failed",
		len(l.times), l.took.Round(100*time.Millisecond), reached, l.rate, l.slowest().Round(time.Millisecond), l.answers, len(l.wrong))
	if len(l.wrong) > 0 {
		t.Errorf("%d of %d requests failed, among them %q", len(l.wrong), len(l.times), l.wrong[:min(3, len(l.wrong))])
	}
	switch {
	case reached < float64(l.rate)/10:
		t.Errorf("no request failed for that, but the load could not reach its rate: %.0f requests a second of %d are too few to say anything", reached, l.rate)
	case reached < float64(l.rate)*9/10:
		t.Logf("the load could not reach its rate: %.0f requests a second of %d", reached, l.rate)
	}
}

// onlyAt says how long it took until the route was all the revision's: the
// start of the last ten answers in a row.
func onlyAt(t *testing.T, url, revision string, since time.Time) time.Duration {
	t.Helper()
	client := visitor(0)
	right := 0
	var first time.Duration
	eventually(t, "the route is all "+revision, func() bool {
		_, body, err := get(t.Context(), client, url)
		if err != nil || body != revision {
			right = 0
			return false
		}
		if right == 0 {
			first = time.Since(since)
		}
		right++
		return right == 10
	})
	return first
}
