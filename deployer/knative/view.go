package knative

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	knserving "knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// sight is a way to see what a unit is made of.
type sight interface {
	// parts are a Service, its Route and one of its revisions, each nil where
	// there is none.
	parts(ctx context.Context, service, revision string) (parts, error)
	// job is the revision of a job's unit; nil: there is none.
	job(ctx context.Context, service, revision string) (*batchv1.CronJob, error)
	pods(ctx context.Context, revision string) ([]corev1.Pod, error)
	// events are those of the pods that have trouble.
	events(ctx context.Context, pods []corev1.Pod) []corev1.Event
}

type parts struct {
	svc   *servingv1.Service
	route *servingv1.Route
	rev   *servingv1.Revision
}

// view is what watches show of a scope's units: the cluster as it was a moment
// ago. It serves all that wait in the scope at once, and asks for nothing
// more, however many they are. Nobody relies on it for an end: see [look].
type view struct {
	namespace                                       string
	services, routes, revisions, allPods, allEvents cache.SharedIndexInformer
	stop                                            context.CancelFunc
	users                                           int // guarded by Target.mu
	mu                                              sync.Mutex
	waiting                                         map[chan struct{}]string // who waits, by service
}

var _ sight = (*view)(nil)

// The indexes of pods and of events.
const (
	byRevision = "revision"
	byPod      = "pod"
)

// Watch implements [deployer.Watcher].
func (t *Target) Watch(ctx context.Context, scope deployer.Scope) { t.view(ctx, scope) }

// view is the scope's, which everybody shares who needs it at the same time.
// The caller needs it until ctx ends.
func (t *Target) view(ctx context.Context, scope deployer.Scope) *view {
	scope.Namespace = t.namespace(scope)
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.views[scope]
	if v == nil {
		v = t.open(context.WithoutCancel(ctx), scope)
		t.views[scope] = v
	}
	v.users++
	context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if v.users--; v.users == 0 {
			delete(t.views, scope)
			v.stop()
		}
	})
	return v
}

func (t *Target) open(ctx context.Context, scope deployer.Scope) *view {
	ns, mine := scope.Namespace, selector(scopeLabels(scope))
	v := &view{namespace: ns, waiting: map[chan struct{}]string{}}
	v.services = follow(v, t.serve.Services(ns), mine, "", &servingv1.Service{}, nil)
	v.routes = follow(v, t.serve.Routes(ns), mine, "", &servingv1.Route{}, nil)
	v.revisions = follow(v, t.serve.Revisions(ns), mine, "", &servingv1.Revision{}, nil)
	v.allPods = follow(v, t.kube.CoreV1().Pods(ns), mine, "", &corev1.Pod{}, cache.Indexers{byRevision: func(o any) ([]string, error) {
		return []string{o.(*corev1.Pod).Labels[knserving.RevisionLabelKey]}, nil
	}})
	// Events carry no labels; those of other pods of the namespace come too.
	v.allEvents = follow(v, t.kube.CoreV1().Events(ns), "", "involvedObject.kind=Pod", &corev1.Event{}, cache.Indexers{byPod: func(o any) ([]string, error) {
		return []string{string(o.(*corev1.Event).InvolvedObject.UID)}, nil
	}})
	// What goes wrong with a watch heals or shows at the requests themselves.
	ctx, v.stop = context.WithCancel(klog.NewContext(ctx, logr.Discard()))
	for _, i := range v.all() {
		go i.RunWithContext(ctx)
	}
	go func() {
		synced := make([]cache.InformerSynced, 0, 5)
		for _, i := range v.all() {
			synced = append(synced, i.HasSynced)
		}
		if cache.WaitForCacheSync(ctx.Done(), synced...) {
			v.wake(func(string) bool { return true })
		}
	}()
	return v
}

func (v *view) all() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{v.services, v.routes, v.revisions, v.allPods, v.allEvents}
}

// lister lists and watches one kind in a namespace.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (apiwatch.Interface, error)
}

// follow keeps a copy of the objects that the selectors name, and wakes those
// who wait when one of them changes.
func follow[L runtime.Object](v *view, from lister[L], labels, fields string, kind runtime.Object, by cache.Indexers) cache.SharedIndexInformer {
	narrow := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = labels, fields
		return o
	}
	i := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return from.List(ctx, narrow(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			return from.Watch(ctx, narrow(o))
		},
	}, kind, 0, by)
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: v.changed, UpdateFunc: func(_, now any) { v.changed(now) }, DeleteFunc: v.changed,
	})
	return i
}

// changed wakes who waits for the object's service.
func (v *view) changed(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	switch o := object.(type) {
	case *corev1.Event: // a pod's name starts with its service's
		v.wake(func(service string) bool { return strings.HasPrefix(o.InvolvedObject.Name, service+"-") })
	case *servingv1.Service, *servingv1.Route:
		name := o.(metav1.Object).GetName()
		v.wake(func(service string) bool { return service == name })
	case metav1.Object:
		of := o.GetLabels()[knserving.ServiceLabelKey]
		v.wake(func(service string) bool { return service == of })
	}
}

func (v *view) wake(who func(service string) bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for hint, service := range v.waiting {
		if who(service) {
			select {
			case hint <- struct{}{}:
			default: // it will look anyway
			}
		}
	}
}

// synced reports whether everything has been seen once.
func (v *view) synced() bool {
	for _, i := range v.all() {
		if !i.HasSynced() {
			return false
		}
	}
	return true
}

// get is a copy of the object of that name; nil: there is none.
func get[O any](from cache.SharedIndexInformer, namespace, name string) *O {
	o, ok, err := from.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	found := *o.(*O)
	return &found
}

func (v *view) parts(_ context.Context, service, revision string) (parts, error) {
	p := parts{
		svc:   get[servingv1.Service](v.services, v.namespace, service),
		route: get[servingv1.Route](v.routes, v.namespace, service),
		rev:   get[servingv1.Revision](v.revisions, v.namespace, revision),
	}
	if p.rev != nil && p.rev.Labels[knserving.ServiceLabelKey] != service {
		p.rev = nil
	}
	return p, nil
}

// job implements [sight]: nobody waits long for a job.
func (v *view) job(context.Context, string, string) (*batchv1.CronJob, error) { return nil, nil }

func (v *view) pods(_ context.Context, revision string) ([]corev1.Pod, error) {
	found, err := v.allPods.GetIndexer().ByIndex(byRevision, revision)
	all := make([]corev1.Pod, len(found))
	for i, o := range found {
		all[i] = *o.(*corev1.Pod)
	}
	return all, err
}

func (v *view) events(_ context.Context, pods []corev1.Pod) []corev1.Event {
	var all []corev1.Event
	for _, p := range troubled(pods) {
		found, _ := v.allEvents.GetIndexer().ByIndex(byPod, string(p.UID)) // only fails on another index
		for _, o := range found {
			all = append(all, *o.(*corev1.Event))
		}
	}
	return all
}

// wait is one wait for something about a unit of the scope.
type wait struct {
	t    *Target
	v    *view
	now  sight // the cluster itself
	hint chan struct{}
	// asked is when the cluster itself was asked last.
	asked time.Time
}

// wait begins a wait about a service, which ends with ctx.
func (t *Target) wait(ctx context.Context, scope deployer.Scope, service string) *wait {
	w := &wait{t: t, v: t.view(ctx, scope), now: fresh{t, scope}, hint: make(chan struct{}, 1)}
	if w.v.synced() {
		w.asked = time.Now()
	}
	w.v.mu.Lock()
	defer w.v.mu.Unlock()
	w.v.waiting[w.hint] = service
	context.AfterFunc(ctx, func() {
		w.v.mu.Lock()
		defer w.v.mu.Unlock()
		delete(w.v.waiting, w.hint)
	})
	return w
}

// watchedPolls is how many polls of the cluster itself pass by while watches
// say what it looks like.
const watchedPolls = 5

// look says why there is still to be waited, empty: no longer. What the view
// shows is good enough to wait on. An end, good or bad, counts when the
// cluster itself says so.
func look[T any](w *wait, at func(sight) (T, string, error)) (T, string, error) {
	if w.v.synced() && time.Since(w.asked) < watchedPolls*w.t.cfg.Times.Poll {
		if v, why, err := at(w.v); err == nil && why != "" {
			return v, why, nil
		}
	}
	w.asked = time.Now()
	return at(w.now)
}

// next waits until something about the unit may have changed, until
// Times.Poll is over, or for the end of ctx, whose cause is its error.
func (w *wait) next(ctx context.Context) error {
	poll := time.NewTimer(w.t.cfg.Times.Poll)
	defer poll.Stop()
	select {
	case <-w.hint:
		if w.v.synced() {
			return nil
		}
		// Each look is requests, and changes come in swarms.
		return sleep(ctx, min(w.t.cfg.Times.Poll, 50*time.Millisecond))
	case <-poll.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
