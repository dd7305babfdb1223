package stages

import (
	"context"

	"github.com/kuroko-faas/kuroko/deployer"
)

// Plan decides the images of the job's project without building or writing
// anything: what `faas plan` prints.
func (r *Runner) Plan(ctx context.Context) (BuildPlan, error) {
	s := &state{Runner: r}
	p, err := s.project(ctx)
	if err == nil {
		err = refuse(p)
	}
	if err != nil {
		return BuildPlan{}, Explain(ctx, err)
	}
	plan, err := s.makeBuildPlan(ctx)
	if err != nil {
		return BuildPlan{}, Explain(ctx, err)
	}
	return plan, nil
}

// Open connects to where the job's service lives: its scope and its target.
func (r *Runner) Open(ctx context.Context) (deployer.Scope, Target, error) {
	s := &state{Runner: r}
	scope, err := s.scope(ctx)
	if err != nil {
		return deployer.Scope{}, Target{}, Explain(ctx, err)
	}
	t, err := s.open(ctx)
	if err != nil {
		return deployer.Scope{}, Target{}, Explain(ctx, err)
	}
	return scope, *t, nil
}
