package stages

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// open connects to the environment's target, once.
func (s *state) open(ctx context.Context) (*Target, error) {
	if s.target != nil {
		return s.target, nil
	}
	site, err := s.site(ctx)
	if err != nil {
		return nil, err
	}
	t, err := s.World.Target(ctx, site)
	if err != nil {
		return nil, err
	}
	s.target = &t
	s.result.Target, s.result.Sandbox = t.Kind, t.Sandbox
	return s.target, nil
}

// planDeploy compares what should run with what does.
func planDeploy(ctx context.Context, s *state) (string, error) {
	if err := s.mayDeploy(ctx); err != nil {
		return "", err
	}
	p, err := s.project(ctx)
	if err != nil {
		return "", err
	}
	plan, err := s.buildPlan(ctx)
	if err != nil {
		return "", err
	}
	images, err := s.builtImages(ctx)
	if err != nil {
		return "", err
	}
	scope, err := s.scope(ctx)
	if err != nil {
		return "", err
	}
	t, err := s.open(ctx)
	if err != nil {
		return "", err
	}
	in := DeployInput{Job: s.Job, Scope: scope, Project: p, Bundle: s.Bundle.Digest, Build: *plan, Images: images, Now: s.now(), Services: services(ctx, s.Job.Dir, p.Service.Name)}
	state, err := deployer.Observe(ctx, t, scope)
	if err != nil {
		return "", err
	}
	if from := sources(p); len(from) > 0 {
		if state.Versions, err = t.Versions(ctx, scope, from); err != nil {
			return "", err
		}
	}
	in.Observed = &state
	deploy, err := PlanDeploy(in)
	if err != nil {
		return "", err
	}
	s.deploy = &deploy
	s.lines(deploy.String())
	if deploy.Changed() {
		var pauses time.Duration
		if state.Head.Live != "" { // a first release shares no traffic
			pauses = deploy.Deploy.Policy.Pauses(0)
		}
		if err := s.fits(pauses, p.Rollout.ReadyTimeout.Std()); err != nil {
			return "", err
		}
	}
	return "", writeWork(s.Job.Dir, fileDeployPlan, deploy)
}

// mayDeploy refuses jobs that GitLab says must not move traffic, and deploys of
// tiers that don't go on under an old word of the platform.
func (s *state) mayDeploy(ctx context.Context) error {
	switch s.Job.Action {
	case "", "start", "prepare":
		if !s.Bundle.Choice.Stale {
			return nil
		}
		p, err := s.project(ctx)
		if err != nil {
			return err
		}
		policy, err := s.Bundle.Policy()
		if err != nil {
			return err
		}
		if policy.Tier(string(p.Service.Tier)).RefuseStale {
			return &usererr.Error{Code: usererr.CodeStale, Err: fmt.Errorf("%s; tier %s needs a current one", s.Bundle.Choice.Why, p.Service.Tier)}
		}
		return nil
	}
	return &usererr.Error{
		Code: usererr.CodeEnvironment, What: "deploy", Err: fmt.Errorf("the job's environment:action is %s, which does not deploy", s.Job.Action),
		Next: "use the template's deploy job",
	}
}

// deployRelease rolls the plan out and writes what is live now.
func deployRelease(ctx context.Context, s *state) (string, error) {
	if s.deploy == nil {
		var plan DeployPlan
		if err := readWork(s.Job.Dir, fileDeployPlan, &plan); err != nil {
			return "", err
		}
		s.deploy = &plan
	}
	t, err := s.open(ctx)
	if err != nil {
		return "", err
	}
	p, err := s.project(ctx)
	if err != nil {
		return "", err
	}
	metrics, err := s.prometheus(ctx)
	if err != nil {
		return "", err
	}
	out, err := deployer.Deploy(ctx, t, s.deploy.Deploy, deployer.Options{
		Prometheus: metrics,
		Holder:     s.holder(), ReadyTimeout: p.Rollout.ReadyTimeout.Std(), Keep: p.Rollout.Keep,
		Progress: Progress(s.Log),
	})
	if err != nil {
		return "", err
	}
	for _, w := range out.Warnings {
		s.Log.Warn("%s", w)
	}
	if !out.Rollback {
		for _, d := range s.deploy.redecided(out.Changes) {
			s.Log.Printf("decided again under the lease: %s", d)
		}
	}
	if out.Awaiting != "" {
		return "", s.waits(out)
	}
	s.released = "release " + out.ID
	if err := s.published(out.Release); err != nil {
		return "", err
	}
	if out.NoChange {
		return "release " + out.ID + " is live already", nil
	}
	return "", nil
}

// Progress prints the deployer's events, which come from several goroutines.
func Progress(log ci.Log) func(deployer.Event) {
	var mu sync.Mutex
	return func(e deployer.Event) {
		mu.Lock()
		defer mu.Unlock()
		who := ""
		if e.Unit != "" {
			who = e.Unit + ": "
		}
		if e.Warning {
			log.Warn("%s%s", who, e.Text)
			return
		}
		log.Printf("%s: %s%s", e.Step, who, e.Text)
	}
}

// holder names this run to others who want the lock.
func (s *state) holder() string {
	if s.Job.URL != "" {
		return s.Job.URL
	}
	return fmt.Sprintf("job %d of %s", s.Job.ID, s.Job)
}

// published writes release.json and the addresses of the functions.
func (s *state) published(r deployer.Release) error {
	s.result.Release = r.ID
	s.result.URLs = nil
	var routes []PlannedRoute
	if s.deploy != nil {
		routes = s.deploy.Routes
	}
	for _, u := range r.Units {
		if u.Spec.Job != nil {
			continue // it has no address
		}
		found := false
		for _, rt := range routes {
			if rt.Unit == u.Unit {
				found = true
				s.result.URLs = append(s.result.URLs, FunctionURL{rt.Function, u.Unit, u.Revision, strings.TrimSuffix(u.URL, "/") + rt.Path})
			}
		}
		if !found {
			s.result.URLs = append(s.result.URLs, FunctionURL{"", u.Unit, u.Revision, u.URL})
		}
	}
	s.Log.Printf("release %s is live", r.ID)
	for _, u := range s.result.URLs {
		s.Log.Printf("  %s  (%s)", u.URL, u.Revision)
	}
	return writeWork(s.Job.Dir, fileRelease, r)
}

// rollbackRelease returns to the previous release, from the record alone: a
// broken faas.yml does not stand in the way, only its header is read.
func rollbackRelease(ctx context.Context, s *state) (string, error) {
	scope, err := s.scope(ctx)
	if err != nil {
		return "", err
	}
	t, err := s.open(ctx)
	if err != nil {
		return "", err
	}
	out, err := deployer.Rollback(ctx, t, scope, "", deployer.Options{Holder: s.holder(), Progress: Progress(s.Log)})
	if err != nil {
		return "", err
	}
	return "", s.published(out.Release)
}
