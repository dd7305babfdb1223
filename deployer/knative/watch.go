package knative

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"

	"github.com/kuroko-faas/kuroko/deployer"
)

// watched is one thing whose changes matter.
type watched func(ctx context.Context, t *Target, namespace string) (apiwatch.Interface, error)

// watch returns a function that waits until one of the things may have
// changed, until Times.Poll is over, or for the end of its context, whose
// cause is its error. Watches are hints: whoever waits reads afresh
// afterwards, so nothing is lost when one is refused, closed or late. They end
// with ctx.
func (t *Target) watch(ctx context.Context, scope deployer.Scope, things ...watched) func(context.Context) error {
	hint := make(chan struct{}, 1)
	ctx = klog.NewContext(ctx, logr.Discard())
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
