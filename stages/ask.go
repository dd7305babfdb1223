package stages

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
)

// Ask is what a person wants to know beside what a pipeline would do.
type Ask struct {
	// Versus compares with this release instead of the live one.
	Versus string
	// Tree is the work tree from [Look]; nil lists and reads it now.
	Tree *Tree
}

// observeTime bounds the look at the cluster: a plan without it is still one.
const observeTime = 10 * time.Second

// Plan decides what the job's project would build and change, without building
// or writing anything: what `faas plan` prints. What can't be applied is part
// of the answer ([Plans.Err] makes an error of it), and so are a cluster and a
// registry that can't be reached.
func (r *Runner) Plan(ctx context.Context, ask Ask) (Plans, error) {
	s := &state{Runner: r, looked: ask.Tree}
	plans, err := s.ask(ctx, ask)
	if err != nil {
		return Plans{}, Explain(ctx, err)
	}
	return plans, nil
}

func (s *state) ask(ctx context.Context, ask Ask) (Plans, error) {
	p, err := s.project(ctx)
	if err != nil {
		return Plans{}, err
	}
	// Handlers and files are looked at while cluster and registry are asked.
	handlers := make(chan error, 1)
	go func() { handlers <- s.plannedHandlers(p) }()
	var files []worktree.File
	var sets project.FileSets
	var ferr error
	read := make(chan struct{})
	go func() {
		defer close(read)
		files, sets, ferr = s.files(ctx, p)
	}()
	s.reading = func() ([]worktree.File, project.FileSets, error) {
		<-read
		return files, sets, ferr
	}
	plans, err := s.plans(ctx, ask, p)
	<-read
	if herr := <-handlers; herr != nil { // of all that is wrong, the first to correct
		return Plans{}, herr
	}
	return plans, err
}

// plans makes them of a project whose files are being read.
func (s *state) plans(ctx context.Context, ask Ask, p *project.Project) (Plans, error) {
	scope, err := s.scope(ctx)
	if err != nil {
		return Plans{}, err
	}
	site, err := s.site(ctx)
	if err != nil {
		return Plans{}, err
	}
	plans := Plans{Version: 1, Project: p, Refused: slices.Concat(unsupported(p), unsupportedAt(p, site)), Notices: p.Notices}
	if s.Job.Project.ID != 0 { // else whose names they are is not known
		if plans.Reserved, err = s.reserved(p, scope); err != nil {
			return Plans{}, err
		}
	}
	seen, against, err := s.observe(ctx, scope, ask.Versus)
	if err != nil && ask.Versus != "" {
		return Plans{}, err
	}
	why := err
	if seen != nil {
		s.live = seen.Live
		if err := s.versions(ctx, scope, p, seen); err != nil {
			plans.Notes = append(plans.Notes, fmt.Sprintf("whether secrets were rotated is not known: %v", err))
		}
	}
	build, err := s.makeBuildPlan(ctx)
	if err != nil && build.Version == 0 {
		return Plans{}, err
	}
	if err != nil {
		plans.Notes = append(plans.Notes, fmt.Sprintf("which images exist is not known: %v", err))
	}
	if p.Build.Command != "" && !build.CommandSkipped {
		plans.Notes = append(plans.Notes, "planned with the files that are here; a pipeline plans again after build.command")
	}
	images := map[string]name.Digest{}
	for _, img := range build.Images {
		if img.Digest != "" {
			ref, err := name.NewDigest(build.Repository + "/" + img.Name + "@" + img.Digest)
			if err != nil {
				return Plans{}, err
			}
			images[img.Name] = ref
		}
	}
	plans.Build = build
	plans.Deploy, err = PlanDeploy(DeployInput{
		Job: s.Job, Scope: scope, Project: p, Bundle: s.Bundle.Digest, Build: build, Images: images, Observed: seen, Unbuilt: true, Now: s.now(),
	})
	if err != nil {
		return Plans{}, err
	}
	pre := Preflight{}
	switch {
	case why != nil:
		plans.Deploy.ObservedWhy, pre.Why = why.Error(), why.Error()
	case ask.Versus != "":
		plans.Deploy.Observed, pre.Why = against, "compared with "+against
	default:
		plans.Deploy.Observed = against
		pre = s.preflight(ctx, plans.Deploy, build, site)
	}
	plans.Deploy.Preflight = &pre
	return plans, nil
}

// Project reads faas.yml for the job's environment.
func (r *Runner) Project(ctx context.Context) (*project.Project, error) {
	s := &state{Runner: r}
	p, err := s.project(ctx)
	if err != nil {
		return nil, Explain(ctx, err)
	}
	return p, nil
}

// plannedHandlers looks for the handlers' files, but for those that the build
// command is yet to make.
func (s *state) plannedHandlers(p *project.Project) error {
	var seen func(string) bool
	if s.looked != nil {
		seen = s.looked.look.Known().Holds
	}
	return checkHandlers(p, s.Job.Dir, func(h string) bool { return p.Build.Output == "" || !within(h, p.Build.Output) }, seen)
}

// observe is what a plan is compared with: what is live, or a recorded
// release. Nil with the reason when nobody here may look.
func (s *state) observe(ctx context.Context, scope deployer.Scope, versus string) (*deployer.State, string, error) {
	if s.Job.Project.ID == 0 {
		return nil, "", &usererr.Error{
			Code: usererr.CodeUsage, What: "compare with a release", Err: errors.New("which GitLab project this is is not known"),
			Next: "give --project-id, or set CI_PROJECT_ID",
		}
	}
	look, cancel := context.WithTimeout(ctx, observeTime)
	defer cancel()
	t, err := s.open(look)
	if err != nil {
		return nil, "", err
	}
	if versus != "" {
		rel, err := t.Release(look, scope, versus)
		if errors.Is(err, deployer.ErrNotFound) {
			return nil, "", &usererr.Error{Code: usererr.CodeUsage, What: "find release " + versus, Err: err, Next: "faas release list prints what there is"}
		}
		if err != nil {
			return nil, "", err
		}
		state := asLive(rel)
		return &state, "release " + rel.ID, nil
	}
	state, err := deployer.Observe(look, t, scope)
	if err != nil {
		return nil, "", err
	}
	return &state, ObservedLive, nil
}

// versions adds to state which Secrets and ConfigMaps the project's units
// would find. Who may not look is shown those that are live.
func (s *state) versions(ctx context.Context, scope deployer.Scope, p *project.Project, state *deployer.State) error {
	from := sources(p)
	if len(from) == 0 {
		return nil
	}
	look, cancel := context.WithTimeout(ctx, observeTime)
	defer cancel()
	var err error
	if state.Versions, err = s.target.Versions(look, scope, from); err != nil {
		state.Versions = map[deployer.Source]string{}
		for _, u := range liveUnits(state.Live) {
			maps.Copy(state.Versions, u.Spec.Versions)
		}
	}
	return err
}

// asLive is the state of a scope that runs just what the release records.
func asLive(rel deployer.Release) deployer.State {
	state := deployer.State{Head: deployer.Head{Live: rel.ID}, Live: &rel}
	revisions := map[string]string{}
	for _, u := range rel.Units {
		revisions[u.Spec.Name] = u.Revision
		state.Services = append(state.Services, deployer.Service{
			Name: u.Spec.Name, Unit: u.Unit, Job: u.Spec.Job != nil, Template: u.Revision, Traffic: []deployer.Share{{Revision: u.Revision, Percent: 100}},
			Revisions: []deployer.Observed{{Name: u.Revision, Hash: u.Spec.Hash(), Phase: deployer.Ready}},
		})
	}
	for _, t := range rel.Timers {
		state.Timers = append(state.Timers, deployer.ObservedTimer{
			Key: t.Key(), Function: t.Function, Service: t.Service, Schedule: t.Schedule, Timezone: t.Timezone,
			Revision: revisions[t.Service], Does: t.Does(revisions[t.Service]),
		})
	}
	return state
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
