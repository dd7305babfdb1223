package knative

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// maxLog bounds what is read of a log, in bytes.
const maxLog = 1 << 20

// Logs implements [deployer.Units]. The newest pod that wrote anything
// speaks; of a restarted container, the run before.
func (t *Target) Logs(ctx context.Context, scope deployer.Scope, service, revision string, n int) ([]string, error) {
	pods, err := t.pods(ctx, scope, revision)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	for i := range pods {
		if err := owned(scope, "pod", pods[i].Name, pods[i].Labels); err != nil {
			return nil, err
		}
		c := unitStatus(&pods[i])
		if c == nil {
			continue
		}
		// A container that waits to be started again has written nothing yet.
		order := []bool{false, true}
		if c.RestartCount > 0 && c.State.Terminated == nil && !podReady(&pods[i]) {
			order = []bool{true, false}
		}
		for _, previous := range order {
			if previous && c.RestartCount == 0 {
				continue
			}
			got, err := t.tail(ctx, &pods[i], c.Name, n, previous)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err == nil && len(got) > 0 {
				return got, nil
			}
		}
	}
	if len(pods) == 0 {
		rev, err := t.getRevision(ctx, scope, service, revision)
		if err != nil {
			return nil, err
		}
		if rev == nil {
			return nil, fmt.Errorf("knative: revision %s: %w", revision, deployer.ErrNotFound)
		}
		if f, _ := (evidence{revision: rev, scope: scope}).conditions(); f != nil {
			return f.Logs[max(0, len(f.Logs)-n):], nil // Knative keeps its last words
		}
	}
	return nil, nil
}

func (t *Target) tail(ctx context.Context, p *corev1.Pod, container string, n int, previous bool) ([]string, error) {
	count, limit := int64(n), int64(maxLog)
	b, err := once(ctx, t, "read the log of "+p.Name, func(ctx context.Context) ([]byte, error) {
		r, err := t.kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
			Container: container, TailLines: &count, Previous: previous, LimitBytes: &limit,
		}).Stream(ctx)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(io.LimitReader(r, maxLog))
	})
	if err != nil {
		return nil, err
	}
	all := lines(string(b))
	return all[max(0, len(all)-n):], nil
}

// withLogs adds the last lines to the causes that a log explains.
func (t *Target) withLogs(ctx context.Context, scope deployer.Scope, service, revision string, err error) error {
	for _, f := range deployer.Failures(err) {
		switch f.Code {
		case deployer.Crash, deployer.OutOfMemory, deployer.ProbeNeverPasses, deployer.ImageUnusable:
			got, logErr := t.Logs(ctx, scope, service, revision, deployer.LogLines)
			// A container that has been started again meanwhile has other last
			// lines than the one that ended.
			had := len(f.Logs)
			if logErr == nil && len(got) > 0 && (had == 0 || slices.Contains(got, f.Logs[had-1])) {
				f.Logs = got
			} else if errors.Is(logErr, context.Canceled) {
				return err
			}
		}
	}
	return err
}
