package local

import (
	"context"

	"github.com/kuroko-faas/kuroko/deployer"
)

// Timers implements deployer.Jobs.
func (t *Target) Timers(ctx context.Context, s deployer.Scope) ([]deployer.ObservedTimer, error) {
	out, err := t.call(ctx, "timers", request{Scope: s})
	return out.Timers, err
}

// SetTimer implements deployer.Jobs. Timers fire while the server runs; a
// time that passes without one is not made up for.
func (t *Target) SetTimer(ctx context.Context, f deployer.Fence, timer deployer.Timer, s deployer.Spec, revision string) error {
	_, err := t.call(ctx, "set-timer", request{Fence: f, Timer: &timer, Service: s.Name, Revision: revision})
	return err
}

// RemoveTimer implements deployer.Jobs.
func (t *Target) RemoveTimer(ctx context.Context, f deployer.Fence, key string) error {
	_, err := t.call(ctx, "remove-timer", request{Fence: f, ID: key})
	return err
}

// StartRun implements deployer.Jobs. A run ends with the server.
func (t *Target) StartRun(ctx context.Context, scope deployer.Scope, s deployer.Spec, revision string, event []byte) (string, error) {
	out, err := t.call(ctx, "start-run", request{Scope: scope, Service: s.Name, Revision: revision, Event: event})
	return out.ID, err
}

// FollowRun implements deployer.Jobs.
func (t *Target) FollowRun(ctx context.Context, scope deployer.Scope, run string, out func(string)) (deployer.RunResult, error) {
	seen := 0
	for {
		r, err := t.call(ctx, "follow-run", request{Scope: scope, ID: run, N: seen})
		if err != nil {
			return deployer.RunResult{}, err
		}
		seen = r.N
		for _, line := range r.Lines {
			if out != nil {
				out(line)
			}
		}
		// What came with the result is the last of it.
		if r.Result != nil {
			return *r.Result, nil
		}
	}
}

// EndRuns implements deployer.Jobs.
func (t *Target) EndRuns(ctx context.Context, f deployer.Fence) error {
	_, err := t.call(ctx, "end-runs", request{Fence: f})
	return err
}
