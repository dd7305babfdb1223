package knative

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiwatch "k8s.io/apimachinery/pkg/watch"

	"github.com/kuroko-faas/kuroko/deployer"
)

// watched is one thing whose changes matter.
type watched func(ctx context.Context, t *Target, namespace string) (apiwatch.Interface, error)

func services(name string) watched {
	return func(ctx context.Context, t *Target, ns string) (apiwatch.Interface, error) {
		return t.serve.Services(ns).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	}
}

func routes(name string) watched {
	return func(ctx context.Context, t *Target, ns string) (apiwatch.Interface, error) {
		return t.serve.Routes(ns).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	}
}

func revisions(name string) watched {
	return func(ctx context.Context, t *Target, ns string) (apiwatch.Interface, error) {
		return t.serve.Revisions(ns).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	}
}

func podsOf(revision string) watched {
	return func(ctx context.Context, t *Target, ns string) (apiwatch.Interface, error) {
		return t.kube.CoreV1().Pods(ns).Watch(ctx, metav1.ListOptions{LabelSelector: ofRevision(revision)})
	}
}

// eventsOf are those of the revision's pods, whose names start with its own.
// Events can't be selected by prefix, so others of the namespace are dropped
// here.
func eventsOf(revision string) watched {
	return func(ctx context.Context, t *Target, ns string) (apiwatch.Interface, error) {
		w, err := t.kube.CoreV1().Events(ns).Watch(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Pod"})
		if err != nil {
			return nil, err
		}
		return apiwatch.Filter(w, func(e apiwatch.Event) (apiwatch.Event, bool) {
			ev, ok := e.Object.(*corev1.Event)
			return e, !ok || strings.HasPrefix(ev.InvolvedObject.Name, revision+"-")
		}), nil
	}
}

// watch returns a function that waits until one of the things may have
// changed, until Times.Poll is over, or for the end of its context, whose
// cause is its error. Watches are hints: whoever waits reads afresh
// afterwards, so nothing is lost when one is refused, closed or late. They end
// with ctx.
func (t *Target) watch(ctx context.Context, scope deployer.Scope, things ...watched) func(context.Context) error {
	hint := make(chan struct{}, 1)
	for _, thing := range things {
		go func() {
			for n := 1; ctx.Err() == nil; n++ {
				w, err := thing(ctx, t, t.namespace(scope))
				if err == nil {
					for range w.ResultChan() {
						n = 0
						select {
						case hint <- struct{}{}:
						default: // somebody will look anyway
						}
					}
					w.Stop()
				}
				if t.pause(ctx, n+1) != nil {
					return
				}
			}
		}()
	}
	return func(ctx context.Context) error {
		poll := time.NewTimer(t.cfg.Times.Poll)
		defer poll.Stop()
		select {
		case <-hint:
			// Changes come in swarms.
			return sleep(ctx, min(t.cfg.Times.Poll, 50*time.Millisecond))
		case <-poll.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
