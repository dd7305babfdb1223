package stages

import (
	"context"
	"errors"
	"fmt"

	"github.com/kuroko-faas/kuroko/deployer"
)

// stopService removes what the environment runs. It needs no artefact and no
// plan: only the header of faas.yml, and the records. They stay, so that a
// rollback brings everything back.
func stopService(ctx context.Context, s *state) (string, error) {
	scope, err := s.scope(ctx)
	if err != nil {
		return "", err
	}
	t, err := s.open(ctx)
	if err != nil {
		return "", err
	}
	now, err := deployer.Observe(ctx, t, scope)
	if err != nil && !errors.Is(err, deployer.ErrNotFound) { // a lost record is no reason to go on running
		return "", err
	}
	if err == nil && now.Live == nil && now.Head.Rollout == nil && len(now.Services) == 0 && len(now.Timers) == 0 {
		return "nothing runs for " + scope.String(), nil
	}
	if err := deployer.Stop(ctx, t, scope, deployer.Options{Holder: s.holder(), Progress: Progress(s.Log)}); err != nil {
		return "", err
	}
	s.Log.Printf("%s is stopped; its records stay", scope)
	if was := or(now.Head.Live, now.Head.Previous); was != "" {
		s.Log.Printf("this brings it back: faas release rollback --to %s", was)
	}
	return "", nil
}

// sweepService cleans up in the job's own scope: what `faasctl sweep` does
// for a whole cluster.
func sweepService(ctx context.Context, s *state) (string, error) {
	scope, err := s.scope(ctx)
	if err != nil {
		return "", err
	}
	t, err := s.open(ctx)
	if err != nil {
		return "", err
	}
	sw, err := deployer.Sweep(ctx, t, scope, deployer.SweepOptions{Options: deployer.Options{Holder: s.holder(), Progress: Progress(s.Log)}})
	for _, d := range sw.Done {
		s.Log.Printf("%s", d)
	}
	for _, n := range sw.Notes {
		s.Log.Warn("%s", n)
	}
	switch {
	case err != nil:
		return "", err
	case sw.Waits != "":
		return fmt.Sprintf("left as it is: %s", sw.Waits), nil
	case len(sw.Done) == 0:
		return "nothing is left over for " + scope.String(), nil
	}
	return "", nil
}
