//go:build e2e

package knative_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

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
	url := first.Units[0].URL
	stop := load(t, url, 200)
	for n := 1; n <= 3; n++ {
		if _, err := deploy(t, k, scope, int64(1+n), round(unit("main", one), n)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second) // of load on what is live
	}
	all := stop()
	all.unbroken(t)
	if len(all.answers) != 4 {
		t.Errorf("answered: %v; want all four revisions", all.answers)
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
	stop().unbroken(t)
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
	c.serves(t, scope.Namespace, svc.Name, live)
}
