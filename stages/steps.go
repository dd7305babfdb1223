package stages

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
)

// readProject reads faas.yml and checks what can be checked before anything
// is built.
func readProject(ctx context.Context, s *state) (string, error) {
	p, err := s.project(ctx)
	if err != nil {
		return "", err
	}
	site, err := s.site(ctx)
	if err != nil {
		return "", err
	}
	if err := refuse(p, site); err != nil {
		return "", err
	}
	scope, err := s.scope(ctx)
	if err != nil {
		return "", err
	}
	taken, err := s.reserved(p, scope)
	if err != nil {
		return "", err
	}
	if len(taken) > 0 {
		return "", reservedError(taken)
	}
	if err := s.hideSecrets(p); err != nil {
		return "", err
	}
	if err := checkGraph(p, s.variable("FAAS_GRAPH")); err != nil {
		return "", err
	}
	env := p.Environment
	if env.Branch != "" && s.Job.Commit.Branch != env.Branch {
		return "", assertion(env.Name, "branch", env.Branch, s.Job.Commit.Branch)
	}
	if env.Tag != "" && s.Job.Commit.Tag == "" {
		return "", assertion(env.Name, "tag", env.Tag, s.Job.Commit.Tag)
	}
	s.Log.Printf("service %s, tier %s, environment %s: %s in %s (%s)", p.Service.Name, p.Service.Tier,
		s.Job.Environment, count(len(p.Functions), "function"), count(len(p.Units), "unit"), p.Deploy.Mode)
	for _, n := range p.Notices {
		s.Log.Printf("note: %s: %s", n.Path, n.Why)
	}
	return "", nil
}

// reserved are the names in faas.yml that the policy's tables of owners give
// to other projects.
func (s *state) reserved(p *project.Project, scope deployer.Scope) ([]project.Problem, error) {
	policy, err := s.Bundle.Policy()
	if err != nil {
		return nil, err
	}
	who := bundle.Project{ID: s.Job.Project.ID, Path: s.Job.Project.Path}
	var problems []project.Problem
	no := func(path, format string, args ...any) {
		problems = append(problems, p.Problem(path, project.CodeName, fmt.Sprintf(format, args...), ""))
	}
	if !policy.MayUseService(who, scope.Service) {
		no("service", "service name %q is reserved for other projects by the platform's policy.yml", scope.Service)
	}
	if !policy.MayUseNamespace(who, scope.Namespace) {
		no("environment.namespace", "namespace %q is reserved for other projects by the platform's policy.yml", scope.Namespace)
	}
	if r := p.Routes; r.Host != "" && !policy.MayUseHost(who, r.Host, r.BasePath) {
		no("routes.host", "%s%s is not this project's in the table of hosts in the platform's policy.yml", r.Host, or(r.BasePath, "/"))
	}
	if v := p.Preview; v != nil && !policy.MayUseNamespace(who, v.Namespace) {
		no("preview.namespace", "namespace %q is reserved for other projects by the platform's policy.yml", v.Namespace)
	}
	return problems, nil
}

func reservedError(problems []project.Problem) error {
	e := &usererr.Error{Code: usererr.CodeForeignObject}
	for _, p := range problems {
		e.Problems = append(e.Problems, usererr.Problem{Why: p.String()})
	}
	return e
}

func assertion(env, input, want, got string) error {
	if got == "" {
		got = "none"
	}
	return &usererr.Error{
		Code: usererr.CodeEnvironment,
		Err:  fmt.Errorf("faas.yml says environments.%s.%s is %s, this pipeline's %s is %s", env, input, want, input, got),
		Next: fmt.Sprintf("in .gitlab-ci.yml, include the template with inputs: {environment: %s, %s: %s}", env, input, want),
	}
}

// planBuild decides the images and writes the plan for later jobs.
func planBuild(ctx context.Context, s *state) (string, error) {
	plan, err := s.makeBuildPlan(ctx)
	if err != nil {
		return "", err
	}
	p, err := s.project(ctx)
	if err != nil {
		return "", err
	}
	if err := plan.refused(); err != nil {
		return "", err
	}
	// A handler under build.output appears only once the build command ran.
	if err := s.plannedHandlers(p); err != nil {
		return "", err
	}
	s.lines(plan.String())
	s.plan = &plan
	return "", writeWork(s.Job.Dir, fileBuildPlan, plan)
}

// lines prints a table, each line an event of its own.
func (s *state) lines(table string) {
	for line := range strings.Lines(table) {
		s.Log.Printf("%s", strings.TrimSuffix(line, "\n"))
	}
}

func (s *state) makeBuildPlan(ctx context.Context) (BuildPlan, error) {
	p, err := s.project(ctx)
	if err != nil {
		return BuildPlan{}, err
	}
	site, err := s.site(ctx)
	if err != nil {
		return BuildPlan{}, err
	}
	repository, err := s.repository(ctx)
	if err != nil {
		return BuildPlan{}, err
	}
	read := s.reading
	if read == nil {
		read = func() ([]worktree.File, project.FileSets, error) { return s.files(ctx, p) }
	}
	files, sets, err := read()
	if err != nil {
		return BuildPlan{}, treeError(err)
	}
	in := BuildInput{
		Project: p, Environment: s.Job.Environment, Commit: s.Job.Commit.SHA, Bundle: s.Bundle.Digest,
		Repository: repository, Runtimes: map[string]RuntimeFacts{}, Files: files, Sets: &sets, Layout: s.World.Layout,
	}
	used := map[string]bool{}
	for _, f := range p.Functions {
		used[f.Runtime] = true
	}
	for n, rt := range s.Bundle.Meta.Runtimes {
		base, err := name.NewDigest(site.Cluster.Image(rt.Base))
		if err != nil {
			return BuildPlan{}, &usererr.Error{Code: usererr.CodeBundleContent, Err: fmt.Errorf("bundle.yml: runtimes.%s.base: %w", n, err)}
		}
		build := ""
		if rt.Build != "" {
			ref, err := s.buildImage(ctx, n)
			if err != nil {
				return BuildPlan{}, err
			}
			build = ref.DigestStr()
		}
		adapter := ""
		if rt.Adapter != "" {
			adapter, err = treeSum(s.Bundle.FS, rt.Adapter)
		}
		if err != nil {
			return BuildPlan{}, &usererr.Error{Code: usererr.CodeBundleContent, Err: fmt.Errorf("bundle.yml: runtimes.%s.adapter: %w", n, err)}
		}
		in.Runtimes[n] = RuntimeFacts{
			Language: rt.Language, Base: base.DigestStr(), Build: build, Adapter: adapter, Versions: versionsOf(s.Bundle.FS, rt),
			Layers: map[string]string{}, Installs: used[n] && s.installs(rt, files),
		}
		for layer, ref := range rt.Layers {
			in.Runtimes[n].Layers[layer] = ref[strings.LastIndex(ref, "@")+1:]
		}
	}
	if err := haveLayers(p, in.Runtimes); err != nil {
		return BuildPlan{}, err
	}
	in.Live = s.live
	if in.OnBuildImage, err = s.onBuildImages(p); err != nil {
		return BuildPlan{}, err
	}
	if p.Build.Command != "" && !s.commandRan {
		read, err := s.commandReads(ctx, p, files)
		if err != nil {
			return BuildPlan{}, err
		}
		s.reads = &read
	}
	if s.reads != nil {
		in.Reads = s.reads.sum
	}
	plan, err := PlanBuild(in)
	if err != nil {
		return BuildPlan{}, err
	}
	if err := s.readDockerfiles(ctx, p, &plan); err != nil {
		return BuildPlan{}, err
	}
	if !s.commandRan && in.Reads != "" {
		if found := s.unchanged(ctx, plan); found != nil {
			return plan.withoutCommand(found), nil
		}
	}
	found, err := existing(ctx, plan, s.byKey)
	return plan.reuse(func(image, _ string) string { return found[image] }), err
}

// installs says whether a runtime's package manager has to run for the
// project's lock file. One that can't be read is told when it is built.
func (s *state) installs(rt bundle.Runtime, files []worktree.File) bool {
	lock := lockOf(rt.Language, func(lock string) bool {
		return slices.ContainsFunc(files, func(f worktree.File) bool { return f.Path == lock })
	})
	if lock == "" {
		return false
	}
	root, err := os.OpenRoot(s.Job.Dir)
	if err != nil {
		return false
	}
	defer root.Close()
	d := &builder.Dependencies{Kind: kinds[lock], FS: root.FS(), Manifest: manifests[rt.Language], Lock: lock, ABI: rt.ABI}
	return s.World.Installs(d)
}

// versionsOf are what people call a runtime's parts: the tags of its images,
// and the version in the adapter's package.json, or its file VERSION.
func versionsOf(fsys fs.FS, rt bundle.Runtime) map[string]string {
	out := map[string]string{}
	for input, ref := range map[string]string{inputBase: rt.Base, inputBuildImage: rt.Build} {
		ref, _, _ = strings.Cut(ref, "@")
		if _, tag, tagged := strings.Cut(ref[strings.LastIndexByte(ref, '/')+1:], ":"); tagged {
			out[input] = tag
		}
	}
	if rt.Adapter == "" {
		return out
	}
	var manifest struct{ Version string }
	if data, err := fs.ReadFile(fsys, rt.Adapter+"/package.json"); err == nil && json.Unmarshal(data, &manifest) == nil && manifest.Version != "" {
		out[inputAdapter] = manifest.Version
	} else if data, err := fs.ReadFile(fsys, rt.Adapter+"/VERSION"); err == nil {
		out[inputAdapter] = strings.TrimSpace(string(data[:min(len(data), 64)]))
	}
	return out
}

// files are the tree's files that take part in an image, with their sums: what
// the units share, their own, and what decides the dependencies.
func (s *state) files(ctx context.Context, p *project.Project) ([]worktree.File, project.FileSets, error) {
	var paths []string
	var known worktree.Known
	var err error
	if s.looked == nil {
		paths, err = worktree.List(ctx, s.Job.Dir, p.Build.Output)
	} else if paths, err = s.looked.look.Files(); err == nil {
		known = s.looked.look.Known()
		paths, err = worktree.WithOutput(s.Job.Dir, p.Build.Output, paths)
	}
	if err != nil {
		return nil, project.FileSets{}, err
	}
	extra := map[string]bool{procfile: true}
	for _, f := range dockerfiles(p.Build.Dockerfile) {
		extra[f] = true
	}
	for lang, locks := range lockFiles {
		extra[manifests[lang]] = true
		for _, lock := range locks {
			extra[lock] = true
		}
	}
	sets := p.FileSets(paths)
	left := map[string]bool{}
	for _, f := range sets.Left {
		left[f] = !extra[f]
	}
	paths = slices.DeleteFunc(paths, func(f string) bool { return left[f] })
	files, err := known.Sum(s.Job.Dir, paths)
	if len(files) < len(paths) { // some are gone
		sets = p.FileSets(pathsOf(files))
	}
	return files, sets, err
}

// haveLayers refuses built-in layers that the bundle has for other runtimes
// alone.
func haveLayers(p *project.Project, runtimes map[string]RuntimeFacts) error {
	var problems []usererr.Problem
	for _, u := range p.Units {
		for _, l := range u.Layers {
			if runtimes[u.Runtime].Layers[builtInName(l)] == "" {
				problems = append(problems, usererr.Problem{Why: fmt.Sprintf("unit %s: the platform has no %s for runtime %s", u.Name, l, u.Runtime)})
			}
		}
	}
	if len(problems) > 0 {
		return &usererr.Error{Code: usererr.CodeProjectRefused, Problems: problems}
	}
	return nil
}
