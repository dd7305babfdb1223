package knative

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	coordination "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/kuroko-faas/kuroko/deployer"
)

var _ deployer.Lister = (*Target)(nil)

// scopesPage is how many records one request lists.
const scopesPage = 500

// Scopes implements [deployer.Lister] over all namespaces, or over
// Config.Namespaces where those are named. The scopes are as the labels spell
// them, which names the same objects. A record that can't be read does not
// hide the others: it is an error beside them.
func (t *Target) Scopes(ctx context.Context) ([]deployer.Recorded, error) {
	namespaces := t.cfg.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	var all []deployer.Recorded
	var errs []error
	for _, ns := range namespaces {
		for next := ""; ; {
			page, err := read(ctx, t, "list leases", func(ctx context.Context) (*coordination.LeaseList, error) {
				return t.kube.CoordinationV1().Leases(ns).List(ctx, metav1.ListOptions{LabelSelector: LabelOwner + "," + LabelService + "," + LabelEnvironment, Limit: scopesPage, Continue: next})
			})
			if err != nil {
				errs = append(errs, err)
				break
			}
			for _, l := range page.Items {
				if l.DeletionTimestamp != nil {
					continue
				}
				h, err := headOf(&l)
				if err != nil {
					errs = append(errs, fmt.Errorf("namespace %s: %w", l.Namespace, err))
					continue
				}
				all = append(all, deployer.Recorded{Head: h, Scope: deployer.Scope{
					Service: l.Labels[LabelService], Environment: l.Labels[LabelEnvironment], Namespace: l.Namespace, Owner: l.Labels[LabelOwner],
				}})
			}
			if next = page.Continue; next == "" {
				break
			}
		}
	}
	return all, errors.Join(errs...)
}

// WatchdogLease is the name of the lease by which watchdogs agree on who
// works, in the watchdog's own namespace.
const WatchdogLease = "kuroko-watchdog"

// Lead runs work while this process holds the watchdog's lease, again and
// again until ctx ends. work's context ends when the lease is lost. The times
// are client-go's own for controllers: 15 s until another takes over.
func (t *Target) Lead(ctx context.Context, namespace, identity string, work func(context.Context)) error {
	ctx = klog.NewContext(ctx, logr.Discard()) // the election's own log is of no use to anybody
	var working sync.Mutex
	for ctx.Err() == nil {
		lock := &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: WatchdogLease}, Client: t.kube.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		}
		e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
			ReleaseOnCancel: true, Name: WatchdogLease,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					working.Lock()
					defer working.Unlock()
					if ctx.Err() == nil {
						work(ctx)
					}
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("knative: lease %s: %w", WatchdogLease, err)
		}
		e.Run(ctx)
		working.Lock()
		//lint:ignore SA2001 waits until work has ended
		working.Unlock()
	}
	return nil
}
