package bundle

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/aliyun"
	"github.com/kuroko-faas/kuroko/oss/ossd"
	"github.com/kuroko-faas/kuroko/oss/osstest"
)

// service is a publisher with a real object store behind it: writing through
// the SDK, reading over plain HTTP without credentials.
func service(t *testing.T, acl ossd.ACL) (*lab, *osstest.Server, oss.Store, *Client) {
	t.Helper()
	srv := osstest.Serve(t, acl)
	open := func(id string) oss.Store {
		s, err := aliyun.New(aliyun.Config{
			Endpoint: srv.Endpoint, Region: osstest.Region, Bucket: osstest.Bucket, Prefix: "platform/",
			AccessKeyID: id, AccessKeySecret: osstest.KeySecret,
		})
		if err != nil {
			t.Fatal(err)
		}
		return oss.Retry(s, oss.RetryOptions{Base: time.Millisecond})
	}
	h, err := oss.NewHTTP(srv.Base+"/platform", oss.HTTPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	c := l.client()
	c.Store = oss.RetryReader(h, oss.RetryOptions{Base: time.Millisecond})
	return l, srv, open(osstest.KeyID), c
}

func publishTo(t *testing.T, l *lab, s oss.Store, version string, extra ...string) string {
	t.Helper()
	p := l.build(version, extra...)
	if _, err := Publish(t.Context(), s, p); err != nil {
		t.Fatal(err)
	}
	id := strings.TrimPrefix(p.Digest, "sha256:")
	n, err := Next(l.last, Entry{Manifest: id, Version: version, Percent: 100}, l.terms())
	if err != nil {
		t.Fatal(err)
	}
	if err := Move(t.Context(), s, n, l.key); err != nil {
		t.Fatal(err)
	}
	l.last = n
	return id
}

func TestThroughTheService(t *testing.T) {
	l, srv, s, c := service(t, ossd.PublicRead)
	id := publishTo(t, l, s, "1.0.0")
	c.Cache = t.TempDir()
	srv.ResetCounts()
	if b := l.must(c, l.query()); b.Digest != digest(id) || len(b.Warnings) > 0 {
		t.Errorf("got %+v %q", b.Choice, b.Warnings)
	}
	if n := srv.Requests(); n != 3 {
		t.Errorf("a cold job made %d requests, want 3: channel, manifest, pack", n)
	}
	srv.ResetCounts()
	l.must(c, l.query())
	if n, counts := srv.Requests(), srv.Counts(); n != 1 || counts["GET 304"] != 1 {
		t.Errorf("a warm job made %v", counts)
	}

	// Two errors and a dropped connection, then fine.
	srv.SetFault(ossd.Script(ossd.Fault{Status: 503, Code: "TotalQpsLimitExceeded"}, ossd.Fault{Drop: true}))
	if b := l.must(c, l.query()); b.Choice.Source != SourceChannel {
		t.Errorf("after two errors: %+v", b.Choice)
	}
	// A bit flips on the way, once, in each body.
	cold := l.client()
	cold.Store = c.Store
	srv.SetFault(ossd.Script(ossd.Fault{Body: ossd.Flip, BodyAt: 40}, ossd.Fault{}, ossd.Fault{Body: ossd.Cut, BodyAt: 40}, ossd.Fault{}))
	if b := l.must(cold, l.query()); b.Digest != digest(id) {
		t.Errorf("after damaged transfers: %+v", b.Choice)
	}
	srv.SetFault(ossd.Always(ossd.Fault{Status: 503, Code: "ServiceUnavailable"}))
	if b := l.must(c, l.query()); b.Choice.Source != SourceCache || !strings.Contains(b.Warnings[0], "503") || !strings.Contains(b.Warnings[0], "tried 4 times") {
		t.Errorf("outage: %+v %q", b.Choice, b.Warnings)
	}
	if _, err := cold.Resolve(t.Context(), l.query()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("outage, nothing here: %v", err)
	}
	// A store that accepts connections and says nothing.
	srv.SetFault(ossd.Always(ossd.Fault{Delay: time.Hour}))
	cold.ChannelTimeout = 20 * time.Millisecond
	if _, err := cold.Resolve(t.Context(), l.query()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("hanging store: %v", err)
	}
	srv.SetFault(nil)
	cold.ChannelTimeout = 0

	q := l.query()
	q.Channel = "stabel"
	if _, err := cold.Resolve(t.Context(), q); !errors.Is(err, ErrNone) {
		t.Errorf("no such channel: %v", err)
	}
}

// One answer in the middle of publishing is lost: the work was done, and doing
// it again is no conflict.
func TestLostAnswers(t *testing.T) {
	l, srv, s, c := service(t, ossd.PublicRead)
	lost := 0
	var mu sync.Mutex
	srv.SetFault(func(r *http.Request) ossd.Fault {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodPut {
			if lost++; lost%3 == 0 {
				return ossd.Fault{LoseAnswer: true}
			}
		}
		return ossd.Fault{}
	})
	id := publishTo(t, l, s, "1.0.0")
	l.now = l.now.Add(time.Hour)
	id2 := publishTo(t, l, s, "1.1.0", "platform/scripts/new.sh", "x")
	srv.SetFault(nil)
	if b := l.must(c, l.query()); b.Digest != digest(id2) || id == id2 {
		t.Errorf("got %+v", b.Choice)
	}
}

func TestPrivateStoreIsDenied(t *testing.T) {
	l, _, s, c := service(t, ossd.Private)
	publishTo(t, l, s, "1.0.0")
	if _, err := c.Resolve(t.Context(), l.query()); !errors.Is(err, oss.ErrDenied) {
		t.Errorf("got %v", err)
	}
}

func TestPublishersRaceThroughTheService(t *testing.T) {
	l, _, s, _ := service(t, ossd.PublicRead)
	publishTo(t, l, s, "1.0.0")
	base := l.last
	var wg sync.WaitGroup
	var mu sync.Mutex
	won, lost := 0, 0
	for i := range 8 {
		wg.Go(func() {
			terms := l.terms()
			terms.Now, terms.Who = t0.Add(time.Hour), string(rune('a'+i))
			c, err := Next(base, Entry{Manifest: sumOf(i), Version: "x", Percent: 100}, terms)
			if err == nil {
				err = Move(t.Context(), s, c, l.key)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case errors.Is(err, ErrConflict):
				lost++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != 7 {
		t.Errorf("%d won, %d lost", won, lost)
	}
}
