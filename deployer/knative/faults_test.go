package knative

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// server is an API server that answers by script: what it says to each
// request of "METHOD /path", in order; the last answer stays.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	script map[string][]http.HandlerFunc
	asked  map[string]int
}

func serve(t *testing.T, script map[string][]http.HandlerFunc) (*server, *Target) {
	t.Helper()
	s := &server{script: script, asked: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := r.Method + " " + r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		s.mu.Lock()
		all := s.script[what]
		n := min(s.asked[what], len(all)-1)
		s.asked[what]++
		s.mu.Unlock()
		if n < 0 {
			fail(404, metav1.StatusReasonNotFound)(w, r)
			return
		}
		all[n](w, r)
	}))
	t.Cleanup(s.Close)
	k, err := New(Config{REST: &rest.Config{Host: s.URL}, Times: Times{Call: 2 * time.Second, Retry: time.Millisecond, Poll: 5 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	return s, k
}

func (s *server) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[what]
}

func reply(code int, v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
}

func fail(code int, reason metav1.StatusReason) http.HandlerFunc {
	return reply(code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: "no"})
}

// hang answers when the client has gone.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func aLease(t *testing.T, version string, h deployer.Head) coordination.Lease {
	t.Helper()
	l := coordination.Lease{TypeMeta: metav1.TypeMeta{Kind: "Lease", APIVersion: "coordination.k8s.io/v1"}}
	l.Name, l.ResourceVersion, l.Labels = recordName(scope), version, scopeLabels(scope)
	if err := setHead(&l, h); err != nil {
		t.Fatal(err)
	}
	return l
}

func aService(version, epoch string) servingv1.Service {
	s := servingv1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "serving.knative.dev/v1"}}
	s.Name, s.ResourceVersion, s.Labels, s.Annotations = "shop-main", version, scopeLabels(scope), map[string]string{AnnotationEpoch: epoch}
	return s
}

const getLease = "GET shop.prod"

func TestReadsAreRepeated(t *testing.T) {
	ok := reply(200, aLease(t, "5", deployer.Head{Live: "r1", Epoch: 2}))
	s, k := serve(t, map[string][]http.HandlerFunc{getLease: {fail(500, metav1.StatusReasonInternalError), fail(503, metav1.StatusReasonServiceUnavailable), ok}})
	h, err := k.Head(t.Context(), scope)
	if err != nil || h.Live != "r1" || h.Version != "5" {
		t.Errorf("head %+v, %v", h, err)
	}
	if n := s.count(getLease); n != 3 {
		t.Errorf("%d requests; want 3", n)
	}
}

func TestReadsGiveUp(t *testing.T) {
	s, k := serve(t, map[string][]http.HandlerFunc{getLease: {fail(500, metav1.StatusReasonInternalError)}})
	if _, err := k.Head(t.Context(), scope); !errors.Is(err, deployer.ErrUnavailable) {
		t.Errorf("error %v; want unavailable", err)
	}
	if n := s.count(getLease); n != tries {
		t.Errorf("%d requests; want %d", n, tries)
	}
}

func TestSlowServer(t *testing.T) {
	_, k := serve(t, map[string][]http.HandlerFunc{getLease: {hang, reply(200, aLease(t, "5", deployer.Head{}))}})
	k.cfg.Times.Call = 50 * time.Millisecond
	if _, err := k.Head(t.Context(), scope); err != nil {
		t.Errorf("one slow answer, then a quick one: %v", err)
	}
	_, k = serve(t, map[string][]http.HandlerFunc{getLease: {hang}})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := k.Head(ctx, scope); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	s, k := serve(t, nil)
	s.Close()
	if _, err := k.Head(t.Context(), scope); !errors.Is(err, deployer.ErrUnavailable) {
		t.Errorf("error %v; want unavailable", err)
	}
}

// A proxy's login page, half an answer, somebody else's annotation: an error,
// never the zero Head, which would mean that nothing is live.
func TestLies(t *testing.T) {
	var aside bytes.Buffer
	defer klog.CaptureState().Restore()
	klog.LogToStderr(false)
	klog.SetOutput(&aside)
	page := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>please log in") }
	half := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, `{"kind":"Lease","apiVersion":"coordination.k8s.io/v1","metadata":{`)
	}
	bare := aLease(t, "5", deployer.Head{})
	delete(bare.Annotations, AnnotationHead)
	for name, answer := range map[string]http.HandlerFunc{"page": page, "half": half, "bare": reply(200, bare), "empty": func(http.ResponseWriter, *http.Request) {}} {
		_, k := serve(t, map[string][]http.HandlerFunc{getLease: {answer}})
		if h, err := k.Head(t.Context(), scope); err == nil {
			t.Errorf("%s: head %+v without an error", name, h)
		}
	}
	// The error says it all: the client library's own log is nobody's.
	klog.Flush()
	if aside.Len() > 0 {
		t.Errorf("logged aside: %s", aside.String())
	}
}

// The write of a record is never repeated by itself: its answer may be lost
// though it had its effect, and only the caller knows what then.
func TestSwapIsNotRepeated(t *testing.T) {
	s, k := serve(t, map[string][]http.HandlerFunc{
		getLease:        {reply(200, aLease(t, "5", deployer.Head{Epoch: 2}))},
		"PUT shop.prod": {fail(500, metav1.StatusReasonInternalError)},
	})
	if _, err := k.SwapHead(t.Context(), scope, deployer.Head{Epoch: 2, Version: "5"}); !errors.Is(err, deployer.ErrUnavailable) {
		t.Errorf("error %v; want unavailable", err)
	}
	if n := s.count("PUT shop.prod"); n != 1 {
		t.Errorf("%d writes; want 1", n)
	}
	for _, answer := range []http.HandlerFunc{fail(409, metav1.StatusReasonConflict), fail(404, metav1.StatusReasonNotFound)} {
		_, k = serve(t, map[string][]http.HandlerFunc{getLease: {reply(200, aLease(t, "5", deployer.Head{}))}, "PUT shop.prod": {answer}})
		if _, err := k.SwapHead(t.Context(), scope, deployer.Head{Version: "5"}); !errors.Is(err, deployer.ErrConflict) {
			t.Errorf("error %v; want conflict", err)
		}
	}
}

// A write that meets somebody else's looks again, and goes on only if the
// other had no newer right.
func TestConflictIsReadAgain(t *testing.T) {
	f := deployer.Fence{Scope: scope, Epoch: 3}
	rev := servingv1.Revision{TypeMeta: metav1.TypeMeta{Kind: "Revision", APIVersion: "serving.knative.dev/v1"}}
	rev.Name, rev.Labels = "shop-main-1", scopeLabels(scope)
	rev.Labels["serving.knative.dev/service"] = "shop-main"
	rev.Spec.Containers = spec3()
	var put servingv1.Service
	script := func(second servingv1.Service) map[string][]http.HandlerFunc {
		return map[string][]http.HandlerFunc{
			getLease:          {reply(200, aLease(t, "5", deployer.Head{Epoch: 3}))},
			"GET shop-main":   {reply(200, aService("1", "3")), reply(200, second)},
			"GET shop-main-1": {reply(200, rev)},
			"PUT shop-main": {fail(409, metav1.StatusReasonConflict), func(w http.ResponseWriter, r *http.Request) {
				_ = json.NewDecoder(r.Body).Decode(&put)
				reply(200, put)(w, r)
			}},
		}
	}
	theirs := aService("2", "3")
	theirs.Annotations["somebody"] = "was here"
	s, k := serve(t, script(theirs))
	if err := k.RestoreTemplate(t.Context(), f, spec(t), "shop-main-1"); err != nil {
		t.Fatal(err)
	}
	if put.ResourceVersion != "2" || put.Annotations["somebody"] == "" || put.Annotations[AnnotationEpoch] != "3" || put.Spec.Template.Name != "shop-main-1" {
		t.Errorf("wrote %+v; want our change on their version", put)
	}
	if n := s.count("PUT shop-main"); n != 2 {
		t.Errorf("%d writes; want 2", n)
	}
	s, k = serve(t, script(aService("2", "4")))
	if err := k.RestoreTemplate(t.Context(), f, spec(t), "shop-main-1"); !errors.Is(err, deployer.ErrFenced) {
		t.Errorf("error %v; want fenced", err)
	}
	if n := s.count("PUT shop-main"); n != 1 {
		t.Errorf("%d writes; want 1, before the newer epoch was seen", n)
	}
}

// Watches are hints. Refused or closed at once, the wait goes on.
func TestWatchMayFail(t *testing.T) {
	svc := aService("1", "3")
	svc.Spec.Traffic = targets([]deployer.Share{{Revision: "shop-main-1", Percent: 100}})
	route := servingv1.Route{TypeMeta: metav1.TypeMeta{Kind: "Route", APIVersion: "serving.knative.dev/v1"}}
	route.Name, route.Labels = "shop-main", scopeLabels(scope)
	route.Spec.Traffic, route.Status.Traffic = svc.Spec.Traffic, svc.Spec.Traffic
	stale := *route.DeepCopy()
	route.Status.SetConditions([]apisCondition{{Type: "Ready", Status: "True"}})
	n := 0
	var mu sync.Mutex
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/services/shop-main"):
			reply(200, svc)(w, r)
		case strings.HasSuffix(r.URL.Path, "/routes/shop-main"):
			mu.Lock()
			n++
			late := n < 4
			mu.Unlock()
			if late {
				reply(200, stale)(w, r)
			} else {
				reply(200, route)(w, r)
			}
		case r.URL.Query().Get("watch") != "" && strings.HasSuffix(r.URL.Path, "/routes"):
			// closed at once
		default:
			fail(403, metav1.StatusReasonForbidden)(w, r)
		}
	}))
	defer s.Close()
	k, err := New(Config{REST: &rest.Config{Host: s.URL}, Times: Times{Retry: time.Millisecond, Poll: 5 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.settle(t.Context(), scope, "shop-main", svc.Spec.Traffic); err != nil {
		t.Errorf("settle: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if n < 4 {
		t.Errorf("looked %d times", n)
	}
}

// A route that never follows is a coded failure, in bounded time.
func TestRouteThatNeverFollows(t *testing.T) {
	svc := aService("1", "3")
	svc.Annotations[group+"unit"] = "main"
	_, k := serve(t, map[string][]http.HandlerFunc{"GET shop-main": {reply(200, svc)}})
	k.cfg.Times.Route = 30 * time.Millisecond
	svc.Spec.Traffic = targets([]deployer.Share{{Revision: "a", Percent: 100}})
	err := k.settle(t.Context(), scope, "shop-main", svc.Spec.Traffic)
	if all := deployer.Failures(err); len(all) != 1 || all[0].Code != deployer.IngressNotReady {
		t.Errorf("error %v; want ingress-not-ready", err)
	}
}

func TestProbeTellsUnreachableFromWrong(t *testing.T) {
	unit := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(deployer.HeaderNonce, r.Header.Get(deployer.HeaderNonce))
		w.Header().Set(deployer.HeaderRevision, r.Host)
	}))
	address := strings.TrimPrefix(unit.URL, "http://")
	ask := func(t *testing.T, url, ingress string) (deployer.Answer, error) {
		route := map[string]any{
			"kind": "Route", "apiVersion": "serving.knative.dev/v1", "metadata": map[string]any{"name": "shop-main", "labels": scopeLabels(scope)},
			"status": map[string]any{"url": url},
		}
		svc := aService("1", "1")
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/routes/") {
				reply(200, route)(w, r)
			} else {
				reply(200, svc)(w, r)
			}
		}))
		t.Cleanup(s.Close)
		k, err := New(Config{REST: &rest.Config{Host: s.URL}, IngressAddress: ingress})
		if err != nil {
			t.Fatal(err)
		}
		return k.Probe(t.Context(), scope, "shop-main", "", "n1")
	}
	if a, err := ask(t, "http://shop-main.team.example", address); err != nil || a.Nonce != "n1" || a.Revision != "shop-main.team.example" {
		t.Errorf("through the ingress: %+v, %v", a, err)
	}
	if a, err := ask(t, unit.URL, ""); err != nil || a.Nonce != "n1" {
		t.Errorf("by name: %+v, %v", a, err)
	}
	if _, err := ask(t, "http://shop-main.team.invalid", ""); !errors.Is(err, deployer.ErrUnreachable) {
		t.Errorf("a name that does not resolve: %v; want unreachable", err)
	}
	unit.Close()
	if _, err := ask(t, unit.URL, ""); !errors.Is(err, deployer.ErrUnreachable) {
		t.Errorf("nobody there: %v; want unreachable", err)
	}
	if _, err := ask(t, "http://shop-main.team.example", address); err == nil || errors.Is(err, deployer.ErrUnreachable) {
		t.Errorf("the ingress that was given is down: %v; want an error that counts", err)
	}
}

// A route out of reach is asked at the gateway inside the cluster, through the
// API server, under the route's inner name. What the API server says itself is
// no answer of the unit's.
func TestRouteThroughTheAPIServer(t *testing.T) {
	const passed = "/api/v1/namespaces/gateways/services/http:inner:80/proxy/"
	route := map[string]any{
		"kind": "Route", "apiVersion": "serving.knative.dev/v1", "metadata": map[string]any{"name": "shop-main", "labels": scopeLabels(scope)},
		"status": map[string]any{"url": "http://shop-main.team.invalid", "address": map[string]any{"url": "http://shop-main.team.svc.cluster.local"}},
	}
	gateway := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(deployer.HeaderNonce, r.Header.Get(deployer.HeaderNonce))
		w.Header().Set(deployer.HeaderRevision, r.Host)
		w.WriteHeader(404) // the unit's own, perhaps
	}
	ask := func(t *testing.T, service string, proxy http.HandlerFunc) (deployer.Answer, error) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.Contains(r.URL.Path, "/routes/"):
				reply(200, route)(w, r)
			case r.URL.Path == passed:
				proxy(w, r)
			default:
				reply(200, aService("1", "1"))(w, r)
			}
		}))
		t.Cleanup(s.Close)
		k, err := New(Config{REST: &rest.Config{Host: s.URL}, IngressService: service})
		if err != nil {
			t.Fatal(err)
		}
		return k.Probe(t.Context(), scope, "shop-main", "", "n1")
	}
	a, err := ask(t, "gateways/inner", gateway)
	if err != nil || a.Nonce != "n1" || a.Revision != "shop-main.team.svc.cluster.local" || !strings.Contains(a.Via, "from outside was not seen") {
		t.Errorf("%+v, %v; want the gateway's answer to the inner name, and by which way", a, err)
	}
	for name, tc := range map[string]struct {
		service, want string
		proxy         http.HandlerFunc
	}{
		"not configured": {"", "no ingressService", gateway},
		"forbidden":      {"gateways/inner", "API server's proxy: no", fail(403, metav1.StatusReasonForbidden)},
		"no pods":        {"gateways/inner", "API server's proxy: no", fail(503, metav1.StatusReasonServiceUnavailable)},
	} {
		if a, err := ask(t, tc.service, tc.proxy); !errors.Is(err, deployer.ErrUnreachable) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v; want unreachable: %s", name, a, err, tc.want)
		}
	}
}

func TestReleaseRecord(t *testing.T) {
	r := deployer.Release{ID: "r1", Units: []deployer.Live{{Unit: "main", Spec: spec(t)}}}
	b, err := packRelease(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := unpackRelease(b)
	if err != nil || got.Units[0].Spec.Hash() != r.Units[0].Spec.Hash() {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzUnpackRelease(f *testing.F) {
	b, err := packRelease(deployer.Release{ID: "r1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = unpackRelease(b) // must end, and not panic
	})
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "no kubeconfig") {
		t.Errorf("no kubeconfig: %v", err)
	}
	if _, err := New(Config{Kubeconfig: t.TempDir() + "/none"}); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a missing file: %v", err)
	}
}

func spec3() []corev1.Container { return []corev1.Container{{Name: container, Image: "i"}} }

// A revision that is Ready behind a route that does not follow is the
// ingress's trouble, told in bounded time and not only when all time is over.
func TestReadyBehindADeadIngress(t *testing.T) {
	svc := aService("1", "3")
	svc.Annotations[group+"unit"] = "main"
	svc.Spec.Template.Name = "shop-main-1"
	svc.Spec.Traffic = targets([]deployer.Share{{Revision: "shop-main-0", Percent: 100}, {Revision: "shop-main-1", Tag: TagNext}})
	rev := servingv1.Revision{TypeMeta: metav1.TypeMeta{Kind: "Revision", APIVersion: "serving.knative.dev/v1"}}
	rev.Name, rev.Labels = "shop-main-1", scopeLabels(scope)
	rev.Labels["serving.knative.dev/service"] = "shop-main"
	rev.Spec.Containers = spec3()
	rev.Status.SetConditions([]apisCondition{{Type: "Ready", Status: "True"}})
	route := servingv1.Route{TypeMeta: metav1.TypeMeta{Kind: "Route", APIVersion: "serving.knative.dev/v1"}}
	route.Name, route.Labels, route.Spec.Traffic = "shop-main", scopeLabels(scope), svc.Spec.Traffic
	route.Status.SetConditions([]apisCondition{{Type: "Ready", Status: "Unknown", Message: "Ingress has not yet been reconciled."}})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/services/shop-main"):
			reply(200, svc)(w, r)
		case strings.HasSuffix(r.URL.Path, "/routes/shop-main"):
			reply(200, route)(w, r)
		case strings.HasSuffix(r.URL.Path, "/revisions/shop-main-1"):
			reply(200, rev)(w, r)
		default:
			fail(403, metav1.StatusReasonForbidden)(w, r)
		}
	}))
	defer s.Close()
	k, err := New(Config{REST: &rest.Config{Host: s.URL}, Times: Times{Retry: time.Millisecond, Poll: 5 * time.Millisecond, Route: 30 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	_, err = k.WaitReady(t.Context(), scope, "shop-main", "shop-main-1", func(why string) { said = append(said, why) })
	all := deployer.Failures(err)
	if len(all) != 1 || all[0].Code != deployer.IngressNotReady || !strings.Contains(all[0].Cause, "Ingress has not yet been reconciled") || all[0].Unit != "main" {
		t.Errorf("got %v; want ingress-not-ready", err)
	}
	if len(said) != 1 || !strings.Contains(said[0], "the route waits") {
		t.Errorf("said %q meanwhile", said)
	}
}

// A unit that only the cluster's inside reaches is not asked through the
// ingress that was given: its 404 would count as a wrong answer.
func TestProbeOfAnInternalUnit(t *testing.T) {
	asked := 0
	ingress := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked++; w.WriteHeader(404) }))
	defer ingress.Close()
	svc := aService("1", "1")
	setNetwork(&svc, true)
	route := map[string]any{
		"kind": "Route", "apiVersion": "serving.knative.dev/v1", "metadata": map[string]any{"name": "shop-main", "labels": scopeLabels(scope)},
		"status": map[string]any{"url": "http://shop-main.team.svc.cluster.invalid"},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/routes/") {
			reply(200, route)(w, r)
		} else {
			reply(200, svc)(w, r)
		}
	}))
	defer s.Close()
	k, err := New(Config{REST: &rest.Config{Host: s.URL}, IngressAddress: strings.TrimPrefix(ingress.URL, "http://")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Probe(t.Context(), scope, "shop-main", "", "n1"); !errors.Is(err, deployer.ErrUnreachable) || asked > 0 {
		t.Errorf("got %v after %d questions at the ingress; want unreachable, unasked", err, asked)
	}
}

// A release that is not recorded leaves no tags behind, and does not touch
// those of the one whose id it wanted.
func TestTagsOfAReleaseThatIsNot(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	repo, err := name.NewRepository(strings.TrimPrefix(srv.URL, "http://") + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Tag("built"), empty.Image); err != nil {
		t.Fatal(err)
	}
	digest, _ := empty.Image.Digest()
	u := spec(t)
	u.Image = repo.Digest(digest.String())
	r := deployer.Release{ID: "r5", Scope: scope, Units: []deployer.Live{{Unit: "main", Spec: u}}}
	f := deployer.Fence{Scope: scope, Epoch: 2}
	create := func(there, answer http.HandlerFunc) ([]string, error) {
		_, k := serve(t, map[string][]http.HandlerFunc{
			getLease: {reply(200, aLease(t, "5", deployer.Head{Epoch: 2}))}, "GET shop.prod.r5": {there}, "POST configmaps": {answer},
		})
		k.cfg.Artefacts = true
		err := k.CreateRelease(t.Context(), f, r)
		tags, lerr := remote.List(repo)
		if lerr != nil {
			t.Fatal(lerr)
		}
		return tags, err
	}
	none, no := fail(404, metav1.StatusReasonNotFound), fail(403, metav1.StatusReasonForbidden)
	if tags, err := create(none, no); len(deployer.Failures(err)) != 1 || len(tags) != 1 {
		t.Errorf("refused: %v, tags %q; want the refusal, and the image's own tag alone", err, tags)
	}
	taken := metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"}}
	if tags, err := create(reply(200, taken), no); !errors.Is(err, deployer.ErrExists) || len(tags) != 1 {
		t.Errorf("taken: %v, tags %q; want that it exists, untouched", err, tags)
	}
	if tags, err := create(none, fail(500, metav1.StatusReasonInternalError)); !errors.Is(err, deployer.ErrUnavailable) || len(tags) != 3 {
		t.Errorf("no answer: %v, tags %q; want them kept, for it may be recorded", err, tags)
	}
}

// The values of a Secret are skipped while it is read, whatever they hold.
func TestContentsAreKeysAlone(t *testing.T) {
	body := `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"app","resourceVersion":"5"},"data":{"token":"czNjcmV0","odd":{"a":[1]},"none":null},"type":"Opaque"}`
	_, k := serve(t, map[string][]http.HandlerFunc{"GET app": {fail(500, metav1.StatusReasonInternalError), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, body)
	}}})
	c, err := k.contents(t.Context(), scope, "secret/app")
	if err != nil || !c.has("token") || !c.has("odd") || c.has("other") || c.ResourceVersion != "5" {
		t.Fatalf("got %+v, %v", c, err)
	}
	if s := fmt.Sprintf("%+v", c); strings.Contains(s, "czNjcmV0") {
		t.Errorf("a value was kept: %s", s)
	}
	for name, answer := range map[string]http.HandlerFunc{
		"half": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, body[:80])
		},
		"page": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>please log in") },
	} {
		_, k := serve(t, map[string][]http.HandlerFunc{"GET app": {answer}})
		if c, err := k.contents(t.Context(), scope, "secret/app"); err == nil {
			t.Errorf("%s: keys %+v without an error", name, c)
		}
	}
	_, k = serve(t, nil)
	if c, err := k.contents(t.Context(), scope, "secret/none"); c != nil || err != nil {
		t.Errorf("no such secret: %v, %v", c, err)
	}
	_, k = serve(t, map[string][]http.HandlerFunc{"GET app": {fail(403, metav1.StatusReasonForbidden)}})
	if _, err := k.Versions(t.Context(), scope, []deployer.Source{"secret/app"}); len(deployer.Failures(err)) != 1 {
		t.Errorf("no right: %v; want denied", err)
	}
}

// Whatever a webhook, a kubelet or a registry says, it is judged without a
// panic, and a cause always has something to do next.
func FuzzDiagnosis(f *testing.F) {
	for _, s := range []string{
		`admission webhook "x" denied the request: y`, `ValidatingAdmissionPolicy 'a' with binding 'b' denied request: c`, `violates PodSecurity "a": b`,
		`exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1`, `secret "a" not found`, "couldn't find key a in Secret b/c", "references non-existent secret key: a", "",
	} {
		f.Add("FailedCreate", s)
		f.Add("CreateContainerConfigError", s)
		f.Add("ContainerCreating", s)
	}
	f.Fuzz(func(t *testing.T, reason, msg string) {
		r := servingv1.Revision{}
		r.Spec.Containers = spec3()
		r.Status.SetConditions([]apisCondition{{Type: "ResourcesAvailable", Status: "False", Reason: reason, Message: msg}})
		p := pod(isWaiting(reason, msg), corev1.ContainerState{})
		events := []corev1.Event{{InvolvedObject: corev1.ObjectReference{UID: p.UID}, Reason: "FailedMount", Message: msg}}
		for _, e := range []evidence{{revision: &r, scope: scope}, {revision: &r, scope: scope, pods: []corev1.Pod{p}, events: events}} {
			failure, why := diagnose(e)
			if failure == nil && why == "" || failure != nil && (failure.Cause == "" || failure.Next == "") {
				t.Errorf("%q %q: %+v, %q", reason, msg, failure, why)
			}
		}
	})
}
