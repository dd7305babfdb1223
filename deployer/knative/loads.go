package knative

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/serving/pkg/apis/autoscaling"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// MetricsPort is where the adapter offers its counts, beside the port that
// routes lead to: no route of a unit reaches it.
const MetricsPort = 9095

// Annotations on a Revision, not on the Service's template: a floor is no
// part of the unit's content.
const (
	annotationFloor = group + "floor"
	// annotationScale is the revision's own min-scale while a floor is set.
	annotationScale = group + "own-min-scale"
)

// Instances implements [deployer.Loads].
func (t *Target) Instances(ctx context.Context, scope deployer.Scope, _, revision string) (int, error) {
	pods, err := t.pods(ctx, scope, revision)
	return len(readyPods(pods)), err
}

func readyPods(pods []corev1.Pod) []corev1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		return p.DeletionTimestamp != nil || !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	})
}

// floorOf is what [Target.SetFloor] asked for.
func floorOf(r *servingv1.Revision) int {
	n, _ := strconv.Atoi(r.Annotations[annotationFloor])
	return n
}

// SetFloor implements [deployer.Loads]. It changes min-scale on the Revision,
// which Knative passes to its autoscaler at once.
func (t *Target) SetFloor(ctx context.Context, f deployer.Fence, service, revision string, n int) error {
	var last error
	for try := 1; try <= tries; try++ {
		err := t.setFloor(ctx, f, service, revision, n)
		if err == nil || !passing(err) {
			return err
		}
		last = err
		if err := t.pause(ctx, try); err != nil {
			return err
		}
	}
	return last
}

func (t *Target) setFloor(ctx context.Context, f deployer.Fence, service, revision string, n int) error {
	if err := t.fence(ctx, f); err != nil {
		return err
	}
	var svc *servingv1.Service
	var rev *servingv1.Revision
	var group errgroup.Group
	group.Go(func() (err error) {
		svc, err = t.getService(ctx, f.Scope, service)
		return err
	})
	group.Go(func() (err error) {
		rev, err = t.getRevision(ctx, f.Scope, service, revision)
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := fenced(f, svc); err != nil {
		return err
	}
	if rev == nil {
		return fmt.Errorf("knative: revision %s: %w", revision, deployer.ErrNotFound)
	}
	if most, err := strconv.Atoi(rev.Annotations[autoscaling.MaxScaleAnnotationKey]); err == nil && most > 0 {
		n = min(n, most)
	}
	own, set := rev.Annotations[annotationScale]
	if !set {
		own = rev.Annotations[autoscaling.MinScaleAnnotationKey]
	}
	least, _ := strconv.Atoi(own)
	change := map[string]any{annotationFloor: strconv.Itoa(n), annotationScale: own, autoscaling.MinScaleAnnotationKey: strconv.Itoa(max(n, least))}
	if n <= 0 {
		if !set && rev.Annotations[annotationFloor] == "" {
			return nil
		}
		change = map[string]any{annotationFloor: nil, annotationScale: nil, autoscaling.MinScaleAnnotationKey: own}
		if own == "" {
			change[autoscaling.MinScaleAnnotationKey] = nil
		}
	} else if rev.Annotations[annotationFloor] == strconv.Itoa(n) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": rev.ResourceVersion, "annotations": change}})
	if err != nil {
		return err
	}
	_, err = once(ctx, t, "scale revision "+revision, func(ctx context.Context) (*servingv1.Revision, error) {
		return t.serve.Revisions(rev.Namespace).Patch(ctx, revision, types.MergePatchType, patch, metav1.PatchOptions{})
	})
	return err
}

// withoutFloor takes a floor out of a revision's annotations, for the
// template.
func withoutFloor(annotations map[string]string) {
	own, set := annotations[annotationScale]
	if !set {
		return
	}
	delete(annotations, annotationFloor)
	delete(annotations, annotationScale)
	delete(annotations, autoscaling.MinScaleAnnotationKey)
	if own != "" {
		annotations[autoscaling.MinScaleAnnotationKey] = own
	}
}

// Ask implements [deployer.Loads].
func (t *Target) Ask(ctx context.Context, scope deployer.Scope, service, revision string, q deployer.Request) (deployer.Reply, error) {
	at, err := t.address(ctx, scope, service, revision)
	if err != nil {
		return deployer.Reply{}, err
	}
	if at.url == "" {
		return deployer.Reply{}, fmt.Errorf("knative: revision %s has no address: %w", revision, deployer.ErrNotFound)
	}
	if q.Limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, q.Limit)
		defer cancel()
	}
	start := time.Now()
	res, body, _, err := t.ask(ctx, scope, at, revision, q.Method, q.Path, "")
	if err != nil {
		return deployer.Reply{}, err
	}
	return deployer.Reply{Status: res.StatusCode, Took: time.Since(start), Body: string(body[:min(len(body), deployer.MaxReplyBody)])}, nil
}

// place is an address; url is empty where nothing answers.
type place struct {
	url string
	// hidden says that only the cluster's own network reaches it.
	hidden bool
	// inside is the route's host name inside the cluster; empty for a revision.
	inside string
}

// address is where the revision (empty: the service) answers.
func (t *Target) address(ctx context.Context, scope deployer.Scope, service, revision string) (place, error) {
	svc, route, err := t.routeOf(ctx, scope, service)
	if err != nil || svc == nil {
		return place{}, err
	}
	at := place{url: routeURL(svc, route), hidden: svc.Labels[networking.VisibilityLabelKey] != ""}
	if revision == "" {
		if route != nil && route.Status.Address != nil && route.Status.Address.URL != nil {
			at.inside = route.Status.Address.URL.Host
		}
		return at, nil
	}
	if own := revisionURL(revision, route); own != "" || !onlyTraffic(svc, revision) {
		at.url = own
	}
	return at, nil
}

// The ways through the API server: to the revision's own pods, and to the
// gateway that the route passes inside the cluster.
const (
	viaProxy   = "the API server's proxy"
	viaGateway = viaProxy + " and the gateway inside the cluster; the way from outside was not seen"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 10

// ask sends a request to at or, where this process can't reach at, lets the
// API server pass it on.
func (t *Target) ask(ctx context.Context, scope deployer.Scope, at place, revision, method, path, nonce string) (res *http.Response, body []byte, via string, err error) {
	url, by, given := strings.TrimSuffix(at.url, "/")+"/"+strings.TrimPrefix(path, "/"), t.units, t.cfg.IngressAddress != ""
	if at.hidden {
		by, given = t.inside, false
	}
	res, body, err = t.send(ctx, by, t.cfg.Times.Probe, url, "", method, nonce)
	if err == nil {
		return res, body, "", nil
	}
	if ctx.Err() != nil {
		return nil, nil, "", context.Cause(ctx)
	}
	if given || !unreachable(err) {
		// An address that was given is one that ought to answer.
		return nil, nil, "", fmt.Errorf("knative: ask %s: %w", url, err)
	}
	out := func(why string) error {
		return fmt.Errorf("knative: %w: ask %s: %w; %s", deployer.ErrUnreachable, url, err, why)
	}
	// Knative's private Service of the revision selects its pods.
	ns, service, host := t.namespace(scope), revision+"-private", ""
	via = viaProxy
	if revision == "" {
		var named bool
		if ns, service, named = strings.Cut(t.cfg.IngressService, "/"); !named {
			return nil, nil, "", out("clusters.yml names no ingressService to ask through the API server instead")
		}
		if host, via = at.inside, viaGateway; host == "" {
			return nil, nil, "", out("the route has no name inside the cluster yet")
		}
	}
	// The API server itself gives an address up after 30 s.
	proxy := t.server + "/api/v1/namespaces/" + ns + "/services/" + proxied(service) + "/proxy/"
	res, body, no := t.send(ctx, t.api, 4*t.cfg.Times.Probe, proxy+strings.TrimPrefix(path, "/"), host, method, nonce)
	if ctx.Err() != nil {
		return nil, nil, "", context.Cause(ctx)
	}
	if no != nil {
		return nil, nil, "", out(viaProxy + ": " + no.Error())
	}
	if why := apiSays(res, body); why != "" {
		return nil, nil, "", out(viaProxy + ": " + why)
	}
	return res, body, via, nil
}

// proxied is how a Service's plain HTTP port is named in a request for the
// API server to pass on, and in the right to send one.
func proxied(service string) string { return "http:" + service + ":80" }

// apiSays is why the API server did not pass a request on; empty: it did.
func apiSays(res *http.Response, body []byte) string {
	var status metav1.Status
	if res.StatusCode < 400 || res.Header.Get(deployer.HeaderNonce) != "" || json.Unmarshal(body, &status) != nil || status.Kind != "Status" {
		return ""
	}
	return oneLine(status.Message)
}

// send sends one request; host is its Host header where that is not the
// address's.
func (t *Target) send(ctx context.Context, by *http.Client, limit time.Duration, url, host, method, nonce string) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Host = host
	if nonce != "" {
		req.Header.Set(deployer.HeaderNonce, nonce)
	}
	res, err := by.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	return res, body, err
}

// Measure implements [deployer.Loads]: every Ready pod is asked through the
// API server, so that the job needs no way into the cluster's network.
func (t *Target) Measure(ctx context.Context, scope deployer.Scope, _, revision string) ([]analysis.Counts, error) {
	pods, err := t.pods(ctx, scope, revision)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var all []analysis.Counts
	var errs []error
	var group errgroup.Group
	group.SetLimit(8)
	for _, p := range readyPods(pods) {
		group.Go(func() error {
			c, err := t.podCounts(ctx, &p)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				all = append(all, c)
			}
			return nil
		})
	}
	_ = group.Wait() // the functions keep their errors themselves
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("knative: revision %s: no instance says what it has counted: %w", revision, errors.Join(append(errs, deployer.ErrNotFound)...))
	}
	return all, nil
}

func (t *Target) podCounts(ctx context.Context, p *corev1.Pod) (analysis.Counts, error) {
	url := fmt.Sprintf("%s/api/v1/namespaces/%s/pods/%s:%d/proxy/metrics", t.server, p.Namespace, p.Name, MetricsPort)
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Times.Probe)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return analysis.Counts{}, err
	}
	res, err := t.api.Do(req)
	if err != nil {
		return analysis.Counts{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return analysis.Counts{}, fmt.Errorf("pod %s answered %s %s", p.Name, res.Status, bytes.TrimSpace(said))
	}
	return analysis.Parse(p.Name, res.Body)
}
