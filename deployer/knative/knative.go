// Package knative is the deployer's target for Knative Serving: units are
// Services with named revisions, the Head is a Lease, a Release is an
// immutable ConfigMap.
//
// It reads objects, changes them and writes them back under their resource
// version, after it has looked at the owner on the object and at the epoch on
// the object and on the Lease. It never overwrites blindly, and it sends no
// traffic to "the latest revision": a share always names its revision.
package knative

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-containerregistry/pkg/authn"
	coordination "k8s.io/api/coordination/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	kn "knative.dev/client/pkg/serving/v1"
	serving "knative.dev/serving/pkg/client/clientset/versioned/typed/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// Config says where the cluster is and how it is reached.
type Config struct {
	// REST is the way to the API server; nil: as Kubeconfig says.
	REST *rest.Config
	// Kubeconfig is a file, or a list of files as in the variable KUBECONFIG.
	Kubeconfig string
	// Context names an entry of Kubeconfig; empty: its current one.
	Context string
	// Namespace is used for scopes without one; empty: the context's.
	Namespace string
	// Namespaces are those that [Target.Scopes] looks into; empty: all.
	Namespaces []string
	// IngressAddress, host:port, is where requests to units are sent,
	// whatever DNS says about their names. Empty: DNS decides.
	IngressAddress string
	// IngressService, NAMESPACE/NAME, is the Service in front of Knative's
	// gateway inside the cluster. A route that is out of reach is asked there,
	// through the API server. Empty: such a route is not asked.
	IngressService string
	// Keychain is what Preflight looks at images with; nil: anonymous.
	Keychain authn.Keychain
	// Artefacts also keeps each release's full record in the repository of its
	// images, and gives those images tags that clean-up policies respect.
	// Whatever of that does not work is told to Notice, which may be nil.
	Artefacts bool
	Notice    func(string)
	// Transport is the way to registries; nil: go-containerregistry's.
	Transport http.RoundTripper
	// ProgressDeadline is how long Knative lets a revision try to become
	// Ready, beside the unit's own start-up budget; default 10 min. It only
	// matters where nobody waits for the revision any more.
	ProgressDeadline time.Duration
	Times            Times
}

// Times bound the target's calls. Zero values are the defaults.
type Times struct {
	Call   time.Duration // one request to the API server; default 15 s
	Retry  time.Duration // base delay before a repeated request, with jitter; default 100 ms
	Poll   time.Duration // between looks at what is waited for; five times that where watches show it; default 1 s
	Route  time.Duration // until the route has taken new shares over; default 60 s
	Remove time.Duration // until a removed object's parts are gone; default 30 s
	Probe  time.Duration // one request to a unit; default 10 s
	Image  time.Duration // one look at a registry; default 10 s
}

// parallel is how many requests one verb sends at once.
const parallel = 8

// tries is how often one request is sent at most.
const tries = 5

// Target is a cluster. It is safe for concurrent use and needs no closing.
type Target struct {
	cfg   Config
	kube  kubernetes.Interface
	meta  metadata.Interface
	serve serving.ServingV1Interface
	units *http.Client
	// inside reaches units that are internal, where this process may.
	inside *http.Client
	// api is the way to the API server for what its client can't: requests
	// to units, with their answers' headers. server is its address.
	api    *http.Client
	server string

	mu     sync.Mutex
	views  map[deployer.Scope]*view               // those that somebody needs now
	leases map[deployer.Scope]*coordination.Lease // those that somebody here holds
}

var (
	_ deployer.Target  = (*Target)(nil)
	_ deployer.Watcher = (*Target)(nil)
)

// New returns the cluster that c names. It reads the kubeconfig and sends
// nothing: a cluster that does not answer shows at the first call, as
// [deployer.ErrUnavailable].
func New(c Config) (*Target, error) {
	if c.REST == nil {
		if c.Kubeconfig == "" {
			return nil, errors.New("knative: no kubeconfig given")
		}
		rules := &clientcmd.ClientConfigLoadingRules{Precedence: splitList(c.Kubeconfig)}
		loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: c.Context})
		r, err := loader.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("knative: read kubeconfig %s: %w", c.Kubeconfig, err)
		}
		if c.Namespace == "" {
			if c.Namespace, _, err = loader.Namespace(); err != nil {
				return nil, fmt.Errorf("knative: read kubeconfig %s: %w", c.Kubeconfig, err)
			}
		}
		c.REST = r
	}
	r := rest.CopyConfig(c.REST)
	if r.UserAgent == "" {
		r.UserAgent = "kuroko"
	}
	// client-go's own 5 requests a second are for chatty controllers, not for
	// a deploy of many units; the API server has fairness of its own.
	if r.QPS == 0 {
		r.QPS, r.Burst = 200, 400
	}
	r.WarningHandler = rest.NoWarnings{}
	api, err := rest.HTTPClientFor(r)
	if err != nil {
		return nil, fmt.Errorf("knative: %w", err)
	}
	server, _, err := rest.DefaultServerUrlFor(r)
	if err != nil {
		return nil, fmt.Errorf("knative: %w", err)
	}
	kube, err := kubernetes.NewForConfig(r)
	if err != nil {
		return nil, fmt.Errorf("knative: %w", err)
	}
	meta, err := metadata.NewForConfig(r)
	if err != nil {
		return nil, fmt.Errorf("knative: %w", err)
	}
	serve, err := serving.NewForConfig(r)
	if err != nil {
		return nil, fmt.Errorf("knative: %w", err)
	}
	c.ProgressDeadline = cmp.Or(c.ProgressDeadline, 10*time.Minute)
	t := &c.Times
	t.Call = cmp.Or(t.Call, 15*time.Second)
	t.Retry = cmp.Or(t.Retry, 100*time.Millisecond)
	t.Poll = cmp.Or(t.Poll, time.Second)
	t.Route = cmp.Or(t.Route, time.Minute)
	t.Remove = cmp.Or(t.Remove, 30*time.Second)
	t.Probe = cmp.Or(t.Probe, 10*time.Second)
	t.Image = cmp.Or(t.Image, 10*time.Second)
	c.Namespace = cmp.Or(c.Namespace, "default")
	return &Target{cfg: c, kube: kube, meta: meta, serve: serve, units: unitClient(c), inside: insideClient(c), api: api, server: strings.TrimSuffix(server.String(), "/"), views: map[deployer.Scope]*view{}, leases: map[deployer.Scope]*coordination.Lease{}}, nil
}

// Kube is the client of the cluster's own kinds, with the target's account.
func (t *Target) Kube() kubernetes.Interface { return t.kube }

// namespace is where the scope lives.
func (t *Target) namespace(s deployer.Scope) string { return cmp.Or(s.Namespace, t.cfg.Namespace) }

// knative is knative.dev/client's view of the scope's namespace.
func (t *Target) knative(s deployer.Scope) kn.KnServingClient {
	return kn.NewKnServingClient(t.serve, t.namespace(s))
}

// once sends one request. Its error is one of the contract's.
func once[T any](ctx context.Context, t *Target, what string, f func(context.Context) (T, error)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	call, cancel := context.WithTimeout(ctx, t.cfg.Times.Call)
	defer cancel()
	v, err := f(klog.NewContext(call, logr.Discard())) // an error says it all
	if err != nil {
		if ctx.Err() != nil {
			return none, context.Cause(ctx)
		}
		return none, apiError(what, err)
	}
	return v, nil
}

// read sends a request that may be repeated.
func read[T any](ctx context.Context, t *Target, what string, f func(context.Context) (T, error)) (T, error) {
	for n := 1; ; n++ {
		v, err := once(ctx, t, what, f)
		if err == nil || !errors.Is(err, deployer.ErrUnavailable) || n == tries {
			return v, err
		}
		if err := t.pause(ctx, n); err != nil {
			return v, err
		}
	}
}

// pause waits before the n-th repetition: twice as long each time, with
// jitter, so that runs that failed together don't come back together.
func (t *Target) pause(ctx context.Context, n int) error {
	d := t.cfg.Times.Retry << min(n-1, 5)
	return sleep(ctx, d/2+rand.N(d))
}

// sleep waits for d or the end of ctx, whose cause it returns.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
