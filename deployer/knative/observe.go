package knative

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kn "knative.dev/client/pkg/serving/v1"
	knserving "knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// Services implements [deployer.Units].
func (t *Target) Services(ctx context.Context, scope deployer.Scope) ([]deployer.Service, error) {
	client := t.knative(scope)
	var with []kn.ListConfig
	for k, v := range scopeLabels(scope) {
		with = append(with, kn.WithLabel(k, v))
	}
	var svcs *servingv1.ServiceList
	var revs *servingv1.RevisionList
	var routes *servingv1.RouteList
	var crons []batchv1.CronJob
	var group errgroup.Group
	group.Go(func() (err error) {
		svcs, err = read(ctx, t, "list services of "+scope.String(), func(ctx context.Context) (*servingv1.ServiceList, error) {
			return client.ListServices(ctx, with...)
		})
		return err
	})
	group.Go(func() (err error) {
		revs, err = t.listRevisions(ctx, scope)
		return err
	})
	group.Go(func() (err error) {
		routes, err = read(ctx, t, "list routes of "+scope.String(), func(ctx context.Context) (*servingv1.RouteList, error) {
			return client.ListRoutes(ctx, with...)
		})
		return err
	})
	group.Go(func() (err error) {
		crons, err = t.crons(ctx, scope, scopeLabels(scope))
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	routeOf, revsOf := map[string]*servingv1.Route{}, map[string][]*servingv1.Revision{}
	for i := range routes.Items {
		routeOf[routes.Items[i].Name] = &routes.Items[i]
	}
	for i := range revs.Items {
		of := revs.Items[i].Labels[knserving.ServiceLabelKey]
		revsOf[of] = append(revsOf[of], &revs.Items[i])
	}
	pods := map[string][]corev1.Pod{}
	if slices.ContainsFunc(revs.Items, func(r servingv1.Revision) bool { return !r.IsReady() }) {
		list, err := read(ctx, t, "list pods of "+scope.String(), func(ctx context.Context) (*corev1.PodList, error) {
			return t.kube.CoreV1().Pods(t.namespace(scope)).List(ctx, metav1.ListOptions{LabelSelector: selector(scopeLabels(scope))})
		})
		if err != nil {
			return nil, err
		}
		for _, p := range list.Items {
			name := p.Labels[knserving.RevisionLabelKey]
			pods[name] = append(pods[name], p)
		}
	}
	var all []deployer.Service
	for _, svc := range svcs.Items {
		if svc.DeletionTimestamp != nil {
			continue
		}
		route := routeOf[svc.Name]
		s := deployer.Service{
			Name: svc.Name, Unit: svcUnit(&svc), Owner: scope.Owner, Epoch: epochOf(&svc), URL: routeURL(&svc, route),
			Template: svc.Spec.Template.Name, Traffic: shares(svc.Spec.Traffic),
		}
		for _, r := range revsOf[svc.Name] {
			if r.DeletionTimestamp != nil {
				continue
			}
			e := evidence{revision: r, scope: scope, pods: pods[r.Name], now: time.Now()}
			if !r.IsReady() {
				e.events = t.podEvents(ctx, scope, e.pods)
			}
			o := observed(e)
			o.URL = revisionURL(r.Name, route)
			s.Revisions = append(s.Revisions, o)
		}
		slices.SortFunc(s.Revisions, func(a, b deployer.Observed) int { return cmp.Compare(a.Name, b.Name) })
		all = append(all, s)
	}
	all = append(all, jobServices(scope, crons)...)
	slices.SortFunc(all, func(a, b deployer.Service) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// observed says what e shows of its revision.
func observed(e evidence) deployer.Observed {
	r := e.revision
	o := deployer.Observed{
		Name: r.Name, Hash: r.Annotations[AnnotationHash], Phase: deployer.Ready, Created: r.CreationTimestamp.Time,
		Floor: floorOf(r),
	}
	if c := unitContainer(r.Spec.Containers); c != nil {
		o.Image = c.Image
	}
	if r.IsReady() {
		return o
	}
	o.Phase = deployer.Pending
	if o.Failure, o.Why = diagnose(e); o.Failure != nil {
		o.Phase = deployer.Broken
		_ = about(r.Labels[LabelUnit], r.Name, o.Failure)
	}
	return o
}

// svcUnit is the unit's own name.
func svcUnit(svc *servingv1.Service) string {
	if svc == nil {
		return ""
	}
	return cmp.Or(svc.Annotations[group+"unit"], svc.Labels[LabelUnit])
}

// routeURL is where the Service answers; empty: nowhere yet.
func routeURL(svc *servingv1.Service, route *servingv1.Route) string {
	switch {
	case route != nil && route.Status.URL != nil:
		return route.Status.URL.String()
	case svc != nil && svc.Status.URL != nil:
		return svc.Status.URL.String()
	}
	return ""
}

// revisionURL is where the revision answers whatever the shares are; empty:
// no tag reaches it.
func revisionURL(revision string, route *servingv1.Route) string {
	if route == nil {
		return ""
	}
	for _, t := range route.Status.Traffic {
		if t.RevisionName == revision && t.URL != nil {
			return t.URL.String()
		}
	}
	return ""
}

// fresh asks the cluster itself, for all at once.
type fresh struct {
	t     *Target
	scope deployer.Scope
}

var _ sight = fresh{}

func (f fresh) parts(ctx context.Context, service, revision string) (p parts, err error) {
	var group errgroup.Group
	group.Go(func() (err error) {
		p.svc, err = f.t.getService(ctx, f.scope, service)
		return err
	})
	group.Go(func() (err error) {
		p.route, err = read(ctx, f.t, "read route "+service, func(ctx context.Context) (*servingv1.Route, error) {
			return f.t.knative(f.scope).GetRoute(ctx, service)
		})
		if errors.Is(err, deployer.ErrNotFound) {
			p.route, err = nil, nil
		}
		return err
	})
	if revision != "" {
		group.Go(func() (err error) {
			p.rev, err = f.t.getRevision(ctx, f.scope, service, revision)
			return err
		})
	}
	return p, group.Wait()
}

func (f fresh) job(ctx context.Context, service, revision string) (*batchv1.CronJob, error) {
	return f.t.getJob(ctx, f.scope, service, revision)
}

func (f fresh) pods(ctx context.Context, revision string) ([]corev1.Pod, error) {
	return f.t.pods(ctx, f.scope, revision)
}

func (f fresh) events(ctx context.Context, pods []corev1.Pod) []corev1.Event {
	return f.t.podEvents(ctx, f.scope, pods)
}

// routeOf reads a Service and its Route. Both may be nil.
func (t *Target) routeOf(ctx context.Context, scope deployer.Scope, service string) (*servingv1.Service, *servingv1.Route, error) {
	p, err := fresh{t, scope}.parts(ctx, service, "")
	return p.svc, p.route, err
}

// routed says why the route does not serve the Service's shares yet; empty:
// it does.
func routed(svc *servingv1.Service, route *servingv1.Route) string {
	switch {
	case route == nil:
		return "Knative has not made the route yet"
	case !sameShares(svc.Spec.Traffic, route.Spec.Traffic):
		return "Knative has not passed the shares to the route yet"
	case route.Status.ObservedGeneration != route.Generation:
		return "the route has not seen its shares yet"
	}
	if c := route.Status.GetCondition(servingv1.RouteConditionReady); !c.IsTrue() {
		why := "the route is not Ready"
		if c != nil && c.Message != "" {
			why = "the route waits: " + oneLine(c.Message)
		} else if c != nil && c.Reason != "" {
			why = "the route waits: " + c.Reason
		}
		return why
	}
	if !sameShares(svc.Spec.Traffic, route.Status.Traffic) {
		return "the route serves other shares"
	}
	return ""
}

func sameShares(a, b []servingv1.TrafficTarget) bool {
	order := func(x, y deployer.Share) int {
		return cmp.Or(cmp.Compare(x.Revision, y.Revision), cmp.Compare(x.Tag, y.Tag), cmp.Compare(x.Percent, y.Percent))
	}
	x, y := shares(a), shares(b)
	slices.SortFunc(x, order)
	slices.SortFunc(y, order)
	return slices.Equal(x, y)
}

// WaitReady implements [deployer.Units].
func (t *Target) WaitReady(ctx context.Context, scope deployer.Scope, service, revision string, progress func(why string)) (deployer.Revision, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wait := t.wait(ctx, scope, service)
	w := waiter{t: t, scope: scope, service: service, revision: revision, running: map[string]time.Time{}}
	said := ""
	for {
		rev, why, err := look(wait, func(from sight) (deployer.Revision, string, error) { return w.look(ctx, from) })
		switch {
		case ctx.Err() != nil:
			return deployer.Revision{}, context.Cause(ctx)
		case errors.Is(err, deployer.ErrUnavailable):
			why = "the cluster does not answer"
		case err != nil:
			return deployer.Revision{}, t.withLogs(ctx, scope, service, revision, err)
		case why == "":
			return rev, nil
		}
		if progress != nil && why != said {
			progress(why)
		}
		said = why
		if err := wait.next(ctx); err != nil {
			return deployer.Revision{}, err
		}
	}
}

// waiter is one wait for one revision.
type waiter struct {
	t                 *Target
	scope             deployer.Scope
	service, revision string
	// running says since when, by our own clock, a container runs without
	// being Ready, by pod and number of starts.
	running map[string]time.Time
	// ready says since when the revision is Ready and only the route is not.
	ready time.Time
}

// look returns the revision when it can answer, else why not yet, or the
// error that waiting won't heal.
func (w *waiter) look(ctx context.Context, from sight) (rev deployer.Revision, why string, err error) {
	p, err := from.parts(ctx, w.service, w.revision)
	if err != nil {
		return rev, "", err
	}
	svc, route, r := p.svc, p.route, p.rev
	if r == nil || svc == nil {
		if svc == nil {
			if job, err := from.job(ctx, w.service, w.revision); err != nil || job != nil {
				if err != nil {
					return rev, "", err
				}
				rev, err = w.t.readyJob(ctx, job)
				return rev, "", err
			}
		}
		if svc == nil || svc.Spec.Template.Name != w.revision {
			return rev, "", fmt.Errorf("knative: revision %s: %w", w.revision, deployer.ErrNotFound)
		}
		f, why := uncreated(svc)
		if f != nil {
			return rev, "", about(svcUnit(svc), w.revision, f)
		}
		return rev, why, nil
	}
	if !r.IsReady() {
		pods, err := from.pods(ctx, w.revision)
		if err != nil {
			return rev, "", err
		}
		e := evidence{revision: r, scope: w.scope, pods: pods, now: time.Now(), events: from.events(ctx, pods), since: w.since}
		f, why := diagnose(e)
		if f != nil {
			return rev, "", about(svcUnit(svc), w.revision, f)
		}
		return rev, why, nil
	}
	if tagOf(w.revision, svc.Spec.Traffic) != "" {
		if why := routed(svc, route); why != "" {
			if w.ready.IsZero() {
				w.ready = time.Now()
			}
			if limit := w.t.cfg.Times.Route; time.Since(w.ready) > limit {
				return rev, "", about(svcUnit(svc), w.revision, ingressLate(limit, why))
			}
			return rev, why, nil
		}
	}
	rev = deployer.Revision{Name: w.revision, Service: w.service, Unit: svcUnit(svc), URL: revisionURL(w.revision, route)}
	rev.Image, err = imageOf(r)
	return rev, "", err
}

// since is when we first saw the pod's container run: clocks of nodes are not
// ours.
func (w *waiter) since(p *corev1.Pod, c *corev1.ContainerStatus) time.Time {
	key := fmt.Sprintf("%s/%d", p.UID, c.RestartCount)
	if w.running[key].IsZero() {
		w.running[key] = time.Now()
	}
	return w.running[key]
}

func (t *Target) pods(ctx context.Context, scope deployer.Scope, revision string) ([]corev1.Pod, error) {
	list, err := read(ctx, t, "list pods of "+revision, func(ctx context.Context) (*corev1.PodList, error) {
		return t.kube.CoreV1().Pods(t.namespace(scope)).List(ctx, metav1.ListOptions{LabelSelector: ofRevision(revision)})
	})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// troubled are the pods whose events may say what is wrong with them.
func troubled(pods []corev1.Pod) []corev1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		c := unitStatus(&p)
		return p.DeletionTimestamp != nil || c != nil && c.State.Running != nil && ended(c) == nil
	})
}

// podEvents reads the events of the pods that have trouble. They only make a
// cause more exact, so an error is none.
func (t *Target) podEvents(ctx context.Context, scope deployer.Scope, pods []corev1.Pod) []corev1.Event {
	var all []corev1.Event
	for _, p := range troubled(pods) {
		list, err := once(ctx, t, "read events of "+p.Name, func(ctx context.Context) (*corev1.EventList, error) {
			return t.kube.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(p.UID)})
		})
		if err == nil {
			all = append(all, list.Items...)
		}
	}
	return all
}
