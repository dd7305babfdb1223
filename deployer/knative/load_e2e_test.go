//go:build e2e

package knative_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// load asks the unit's route, rate times a second, until stop is called, which
// returns how many answered, by revision, and what went wrong. It doesn't wait
// for answers, and what a busy machine made it miss it asks as soon as it can:
// as many requests are sent as the rate and the time say.
func load(t *testing.T, url string, rate int) (stop func() (map[string]int, []string)) {
	t.Helper()
	dial := &net.Dialer{Timeout: 5 * time.Second}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		MaxIdleConns: 64, MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dial.DialContext(ctx, network, ingress())
		},
	}}
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var asking sync.WaitGroup
	answers, wrong := map[string]int{}, []string(nil)
	ask := func() {
		defer asking.Done()
		res, err := client.Get(url)
		var body []byte
		if err == nil {
			body, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			wrong = append(wrong, err.Error())
		case res.StatusCode != http.StatusOK:
			wrong = append(wrong, res.Status+" "+string(body))
		default:
			answers[string(body)]++
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		start, sent := time.Now(), 0
		for {
			select {
			case <-tick.C:
				for due := int(time.Since(start).Seconds() * float64(rate)); sent < due; sent++ {
					asking.Add(1)
					go ask()
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	var once sync.Once
	stop = func() (map[string]int, []string) {
		once.Do(func() { cancel(); <-done; asking.Wait(); client.CloseIdleConnections() })
		return answers, wrong
	}
	t.Cleanup(func() { stop() })
	return stop
}

// round is the unit with content of its own.
func round(u deployer.Spec, n int) deployer.Spec {
	u.Environment = map[string]string{"ROUND": strconv.Itoa(n)}
	return u
}

// No request fails while three rollouts pass under 200 requests a second.
func TestRolloutsUnderLoad(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	first, err := deploy(t, k, scope, 1, round(unit("main", one), 0))
	if err != nil {
		t.Fatal(err)
	}
	const rate = 200
	start := time.Now()
	stop := load(t, first.Units[0].URL, rate)
	for n := 1; n <= 3; n++ {
		if _, err := deploy(t, k, scope, int64(1+n), round(unit("main", one), n)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second) // of load on what is live
	}
	took := time.Since(start)
	answers, wrong := stop()
	sum := 0
	for _, n := range answers {
		sum += n
	}
	t.Logf("%d answers in %s, %.0f a second, from %d revisions; %d failed", sum, took.Round(time.Second), float64(sum)/took.Seconds(), len(answers), len(wrong))
	if len(wrong) > 0 {
		t.Errorf("%d requests failed, among them %q", len(wrong), wrong[:min(3, len(wrong))])
	}
	if len(answers) != 4 {
		t.Errorf("answered: %v; want all four revisions", answers)
	}
	// The last moments' are asked after the clock was read, or not at all.
	if want := int((took.Seconds() - 1) * rate); sum+len(wrong) < want {
		t.Errorf("only %d requests; want at least %d, which is %d a second", sum, want, rate)
	}
}

// child, in the environment, makes this program a deploy that is to be
// killed.
const child = "KUROKO_TEST_DEPLOY"

type doomed struct {
	Plan deployer.Plan
	// At is the request to the API server at which it dies; 0: none.
	At int
	// Sent says that the request still reaches the server. Late is when it
	// dies after that.
	Sent bool
	Late time.Duration
}

func TestMain(m *testing.M) {
	if in := os.Getenv(child); in != "" {
		if err := die(in); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// die runs the doomed deploy. It prints how many requests it made, if it
// lives to tell.
func die(in string) error {
	var d doomed
	if err := json.Unmarshal([]byte(in), &d); err != nil {
		return err
	}
	r, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	var n atomic.Int64
	kill := func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }
	r.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return transport(func(req *http.Request) (*http.Response, error) {
			if int(n.Add(1)) == d.At {
				if !d.Sent {
					kill()
				}
				time.AfterFunc(d.Late, kill)
			}
			return next.RoundTrip(req)
		})
	})
	k, err := knative.New(knative.Config{REST: r, IngressAddress: ingress()})
	if err != nil {
		return err
	}
	o := killOptions()
	o.Holder = "the doomed"
	_, err = deployer.Deploy(context.Background(), k, d.Plan, o)
	fmt.Println(n.Load())
	return err
}

func killOptions() deployer.Options {
	o := quick()
	o.Lease.For, o.Keep = 2*time.Second, 1
	return o
}

// A deploy that is killed at any request is finished or undone by the next
// one, while the route answers; nothing is left over.
func TestKilledDeployConverges(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KUROKO_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	points := 10
	if os.Getenv("KUROKO_LAB_LONG") != "" {
		points = 60
	}
	t.Logf("seed %d, %d points; KUROKO_TEST_SEED=%d repeats them", seed, points, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spawn := func(d doomed) (string, error) {
		in, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), child+"="+string(in))
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%w %s", err, errs.String())
		}
		return strings.TrimSpace(string(out)), err
	}
	// Every other pipeline is a canary, and so is the one whose requests are
	// counted: it makes the most.
	plan := func(pipeline int) deployer.Plan {
		p := deployer.Plan{Scope: scope, Pipeline: int64(pipeline), Units: []deployer.Spec{round(unit("main", one), pipeline)}}
		if pipeline%2 == 0 {
			p.Policy = deployer.Policy{Strategy: deployer.Canary, Steps: []deployer.Weight{{Weight: 30, Pause: 300 * time.Millisecond}, {Weight: 60}}}
		}
		return p
	}
	out, err := deployer.Deploy(t.Context(), k, plan(1), killOptions())
	if err != nil {
		t.Fatal(err)
	}
	said, err := spawn(doomed{Plan: plan(2)}) // lives, and says how many requests that takes
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.Atoi(said)
	if err != nil {
		t.Fatalf("the child said %q", said)
	}
	stop := load(t, out.Units[0].URL, 20)
	pipeline := 2
	for range points {
		pipeline++
		d := doomed{Plan: plan(pipeline), At: 1 + random.IntN(most), Sent: random.IntN(2) == 0, Late: time.Duration(random.IntN(30)) * time.Millisecond}
		_, err := spawn(d)
		t.Logf("killed at request %d of about %d (sent %v, %s): %v", d.At, most, d.Sent, d.Late, err)
		if random.IntN(2) == 0 {
			pipeline++ // another pipeline comes next, not the same again
		}
		out, err := deployer.Deploy(t.Context(), k, plan(pipeline), killOptions())
		if err != nil {
			t.Fatal(err)
		}
		clean(t, c, k, out)
		if t.Failed() {
			return
		}
	}
	if _, wrong := stop(); len(wrong) > 0 {
		t.Errorf("%d requests failed, among them %q", len(wrong), wrong[:min(3, len(wrong))])
	}
}

// clean checks that out is live, that all agrees on it, and that there is
// nothing that no kept release needs.
func clean(t *testing.T, c cluster, k *knative.Target, out deployer.Outcome) {
	t.Helper()
	scope := out.Scope
	h, err := k.Head(t.Context(), scope)
	if err != nil || h.Live != out.ID || h.Rollout != nil || h.Holder != "" {
		t.Errorf("head %+v, %v; want %s live, nothing open, nobody holding", h, err, out.ID)
	}
	ids, err := k.Releases(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	needed := map[string]bool{}
	for _, id := range ids {
		r, err := k.Release(t.Context(), scope, id)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range r.Units {
			needed[u.Revision] = true
		}
	}
	if len(ids) > 2 || !slices.Contains(ids, out.ID) {
		t.Errorf("records %v; want at most %s and the one before", ids, out.ID)
	}
	all, err := k.Services(t.Context(), scope)
	if err != nil || len(all) != 1 {
		t.Fatalf("services %v, %v; want one", all, err)
	}
	svc, live := all[0], out.Units[0].Revision
	if !svc.Only(live) || svc.Template != live {
		t.Errorf("service %+v; want all of it on %s", svc, live)
	}
	for _, r := range svc.Revisions {
		if !needed[r.Name] {
			t.Errorf("revision %s is an orphan", r.Name)
		}
	}
	eventually(t, "the Service is Ready", func() bool {
		s, err := c.serve.Services(scope.Namespace).Get(t.Context(), svc.Name, metav1.GetOptions{})
		return err == nil && s.IsReady() && s.Status.ObservedGeneration == s.Generation
	})
}
