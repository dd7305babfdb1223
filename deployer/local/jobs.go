package local

import (
	"context"
	"fmt"

	"github.com/kuroko-faas/kuroko/deployer"
)

// Timers implements [deployer.Jobs].
func (t *Target) Timers(ctx context.Context, _ deployer.Scope) ([]deployer.ObservedTimer, error) {
	return nil, ctx.Err()
}

// SetTimer implements [deployer.Jobs].
func (t *Target) SetTimer(context.Context, deployer.Fence, deployer.Timer, deployer.Spec, string) error {
	return fmt.Errorf("local: timers: %w", deployer.ErrPlanned)
}

// RemoveTimer implements [deployer.Jobs].
func (t *Target) RemoveTimer(context.Context, deployer.Fence, string) error {
	return fmt.Errorf("local: timers: %w", deployer.ErrPlanned)
}

// StartRun implements [deployer.Jobs].
func (t *Target) StartRun(context.Context, deployer.Scope, deployer.Spec, string, []byte) (string, error) {
	return "", fmt.Errorf("local: jobs: %w", deployer.ErrPlanned)
}

// FollowRun implements [deployer.Jobs].
func (t *Target) FollowRun(context.Context, deployer.Scope, string, func(string)) (deployer.RunResult, error) {
	return deployer.RunResult{}, fmt.Errorf("local: jobs: %w", deployer.ErrPlanned)
}

// EndRuns implements [deployer.Jobs].
func (t *Target) EndRuns(ctx context.Context, _ deployer.Fence) error { return ctx.Err() }
