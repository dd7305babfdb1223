//go:build api

package knative_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// faulty is the way to the API server, with one fault at one place.
type faulty struct {
	next  http.RoundTripper
	fault fault
	at    place // none: no fault
	mu    sync.Mutex
	hit   string
	// How far the deploy is: how often the Service was written, and whether
	// its release is recorded.
	written  int
	recorded bool
}

// fault is something that an API server does to a request.
type fault struct {
	name string
	at   []place
	// lasts says that all requests after the first meet it too.
	lasts bool
	do    func(*http.Request, http.RoundTripper) (*http.Response, error)
}

// place is what a request is for, in a deploy of one changed unit.
type place string

const (
	none    place = ""
	apply   place = "apply"   // the new template
	wait    place = "wait"    // a look at what becomes of it
	watches place = "watches" // a watch of it
	record  place = "record"  // the release
	intent  place = "intent"  // the Head, before traffic
	look    place = "look"    // a look before and after traffic moves
	traffic place = "traffic" // the new shares
)

// place says what r is for, and notes how far the deploy is.
func (f *faulty) place(r *http.Request) place {
	path := r.URL.Path
	switch {
	case r.URL.Query().Has("watch"):
		return watches
	case r.URL.Query().Has("dryRun"):
		return none // preflight's rehearsal
	case r.Method == http.MethodGet && f.written > 0 && f.recorded:
		return look
	case r.Method == http.MethodGet && f.written > 0:
		return wait
	case r.Method == http.MethodPost && strings.HasSuffix(path, "/configmaps"):
		f.recorded = true
		return record
	case r.Method == http.MethodPut && strings.Contains(path, "/leases/") && f.recorded && f.written == 1:
		return intent
	case r.Method == http.MethodPut && strings.HasSuffix(path, "/services/app-main"):
		f.written++
		if f.recorded {
			return traffic
		}
		return apply
	}
	return none
}

func (f *faulty) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	at := f.place(r)
	hit := f.at != none && (f.hit == "" && at == f.at || f.hit != "" && f.fault.lasts && (f.at != watches || at == watches))
	if hit && f.hit == "" {
		f.hit = fmt.Sprintf("%s %s", r.Method, r.URL.Path)
	}
	f.mu.Unlock()
	if hit {
		return f.fault.do(r, f.next)
	}
	return f.next.RoundTrip(r)
}

func (f *faulty) arm(at place, kind fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.fault, f.hit, f.written, f.recorded = at, kind, "", 0, false
}

func (f *faulty) met() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hit
}

func answer(r *http.Request, code int, reason metav1.StatusReason, header ...string) *http.Response {
	b, _ := json.Marshal(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: "injected"})
	h := http.Header{"Content-Type": {"application/json"}}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Body: io.NopCloser(bytes.NewReader(b)), ContentLength: int64(len(b)), Request: r}
}

// said is a fault that is an answer.
func said(code int, reason metav1.StatusReason, header ...string) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		return answer(r, code, reason, header...), nil
	}
}

var faults = []fault{
	{name: "409 conflict", at: []place{apply, intent, traffic}, do: said(409, metav1.StatusReasonConflict)},
	{name: "429 with Retry-After", at: []place{apply, record, traffic}, do: said(429, metav1.StatusReasonTooManyRequests, "Retry-After", "1")},
	{name: "500", at: []place{apply, wait, record, intent, look, traffic}, do: said(500, metav1.StatusReasonInternalError)},
	{name: "410 gone", at: []place{wait, look}, do: said(410, metav1.StatusReasonExpired)},
	{name: "an answer that is lost", at: []place{apply, record, intent, traffic}, do: func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		res, err := next.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return nil, errors.New("connection reset by peer")
	}},
	{name: "silence", at: []place{wait, record, traffic}, do: func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}},
	{name: "half an answer", at: []place{wait, record, traffic}, do: func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		res, err := next.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(b[:len(b)/2]), broken{}))
		return res, nil
	}},
	{name: "an expired token", at: []place{apply, wait, record, traffic}, lasts: true, do: said(401, metav1.StatusReasonUnauthorized)},
	{name: "watches that are refused", at: []place{watches}, lasts: true, do: said(500, metav1.StatusReasonInternalError)},
	{name: "watches that are closed", at: []place{watches}, lasts: true, do: func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		res := answer(r, 200, "")
		res.Body, res.ContentLength = http.NoBody, 0
		return res, nil
	}},
	{name: "watches that end with 410", at: []place{watches}, lasts: true, do: func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		res := answer(r, 410, metav1.StatusReasonExpired)
		b, _ := io.ReadAll(res.Body)
		event := append([]byte(`{"type":"ERROR","object":`), append(b, '}')...)
		res.StatusCode, res.Body, res.ContentLength = 200, io.NopCloser(bytes.NewReader(event)), int64(len(event))
		return res, nil
	}},
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// explained looks, until ctx ends, for live traffic that no record explains: a
// revision that neither the live release nor the open rollout names.
func explained(ctx context.Context, t *testing.T, c cluster, k *knative.Target, scope deployer.Scope) {
	names := map[string]map[string]bool{} // by release
	of := func(id string) map[string]bool {
		if id == "" || names[id] != nil {
			return names[id]
		}
		r, err := k.Release(ctx, scope, id)
		if err != nil {
			return nil
		}
		names[id] = map[string]bool{}
		for _, u := range r.Units {
			names[id][u.Revision] = true
		}
		return names[id]
	}
	for ctx.Err() == nil {
		before, err1 := k.Head(ctx, scope)
		svc, err2 := c.serve.Services(scope.Namespace).Get(ctx, "app-main", metav1.GetOptions{})
		after, err3 := k.Head(ctx, scope)
		if err1 == nil && err2 == nil && err3 == nil && before.Live != "" && before.Version == after.Version {
			for _, share := range svc.Spec.Traffic {
				if share.Percent == nil || *share.Percent == 0 || of(after.Live)[share.RevisionName] {
					continue
				}
				if open := after.Rollout; open == nil || of(open.To) != nil && !of(open.To)[share.RevisionName] && !of(open.From)[share.RevisionName] {
					t.Errorf("%s has traffic, and no record says why: live %s, rollout %+v", share.RevisionName, after.Live, open)
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// Whatever the API server does to one request of a deploy, or from one request
// on: it is repeated or told, live traffic is never without a record that
// explains it, and the same deploy again makes it true.
func TestAPIFaultsReadinessPatched(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	scope := scopeIn(ns)
	way := &faulty{}
	r := rest.CopyConfig(c.rest)
	r.Wrap(func(next http.RoundTripper) http.RoundTripper { way.next = next; return way })
	k, err := knative.New(knative.Config{REST: r, Times: knative.Times{
		Call: 3 * time.Second, Retry: 20 * time.Millisecond, Poll: 200 * time.Millisecond, Route: time.Minute, Remove: 100 * time.Millisecond, Image: 200 * time.Millisecond,
	}})
	if err != nil {
		t.Fatal(err)
	}
	sound := apiTarget(t, c.rest)
	makeReady(t, c, ns)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { explained(ctx, t, c, sound, scope) })
	defer watching.Wait()
	defer cancel()
	pipeline := int64(0)
	o := deployer.Options{
		ProbeEvery: 10 * time.Millisecond, RouteTimeout: time.Minute, ReadyTimeout: 2 * time.Minute, Settle: 100 * time.Millisecond, Grace: 20 * time.Second,
		Lease: deployer.LeaseTimes{For: 2 * time.Second, Renew: 500 * time.Millisecond, Poll: 50 * time.Millisecond},
	}
	plan := func() deployer.Plan {
		pipeline++
		u := apiUnit(t, "main", "1")
		u.Environment["N"] = fmt.Sprint(pipeline) // new content: nothing here collects what a removed revision leaves
		return deployer.Plan{Scope: scope, Pipeline: pipeline, Units: []deployer.Spec{u}}
	}
	if _, err := deployer.Deploy(t.Context(), k, plan(), o); err != nil {
		t.Fatal(err)
	}
	retried, told := 0, 0
	for _, kind := range faults {
		for _, at := range kind.at {
			p := plan()
			way.arm(at, kind)
			_, err := deployer.Deploy(t.Context(), k, p, o)
			met := way.met()
			way.arm(none, kind)
			if met == "" && err == nil {
				t.Errorf("%s at %s: no request met it", kind.name, at)
			}
			if err == nil {
				retried++
			} else {
				told++
				if !errors.Is(err, deployer.ErrUnavailable) && len(deployer.Failures(err)) == 0 && !strings.Contains(err.Error(), "injected") {
					t.Errorf("%s at %s (%s): told as %v", kind.name, at, met, err)
				}
			}
			t.Logf("%-26s at %-8s %-60s %v", kind.name, at, met, err)
			out, err := deployer.Deploy(t.Context(), k, p, o)
			for try := 0; try < 5 && errors.Is(err, deployer.ErrUnavailable); try++ { // a busy machine's own silence
				out, err = deployer.Deploy(t.Context(), k, p, o)
			}
			if err != nil {
				t.Fatalf("after %s at %s (%s): %v", kind.name, at, met, err)
			}
			head, err := sound.Head(t.Context(), scope)
			if err != nil || head.Live != out.ID || head.Rollout != nil || head.Holder != "" {
				t.Errorf("after %s at %s: head %+v, %v; want %s live and nothing open", kind.name, at, head, err, out.ID)
			}
			svc, err := c.serve.Services(ns).Get(t.Context(), "app-main", metav1.GetOptions{})
			want := p.Units[0].RevisionName(1)
			if err != nil || svc.Spec.Template.Name != out.Units[0].Revision || !strings.HasPrefix(out.Units[0].Revision, want) {
				t.Errorf("after %s at %s: the Service describes %s, the release %s, the plan %s; %v", kind.name, at, svc.Spec.Template.Name, out.Units[0].Revision, want, err)
			}
		}
	}
	t.Logf("%d deploys went on by themselves, %d were told and went on when run again", retried, told)
}
