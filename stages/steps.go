package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/run"
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

// runTests runs the project's test command.
func runTests(ctx context.Context, s *state) (string, error) {
	p, err := s.project(ctx)
	if err != nil {
		return "", err
	}
	if p.Test.Command == "" {
		return "faas.yml has no test.command", nil
	}
	if err := s.installDependencies(ctx, p); err != nil {
		return "", err
	}
	if err := s.command(ctx, p, "", p.Test.Command, nil); err != nil {
		return "", commandFailed(usererr.CodeTestFailed, "test.command", err)
	}
	return "", nil
}

// runBuildCommand runs the project's own build, then looks for the handlers
// that were to come out of it. It need not run when every image was made of
// just what it would read.
func runBuildCommand(ctx context.Context, s *state) (string, error) {
	p, err := s.project(ctx)
	if err != nil {
		return "", err
	}
	if p.Build.Command == "" {
		return "faas.yml has no build.command", nil
	}
	if s.reads == nil {
		// What it reads was not looked at by this job, or a script of the bundle
		// came after that. An earlier job's plan passed through the repository's
		// own commands.
		if _, err := planBuild(ctx, s); err != nil {
			return "", err
		}
	}
	if s.plan.CommandSkipped {
		return "nothing that build.command reads has changed since the images were made", nil
	}
	if err := s.installDependencies(ctx, p); err != nil {
		return "", err
	}
	if err := s.command(ctx, p, "", p.Build.Command, p.Build.Secrets); err != nil {
		return "", commandFailed(usererr.CodeBuildInput, "build.command", err)
	}
	if err := checkHandlers(p, s.Job.Dir, func(string) bool { return true }, nil); err != nil {
		return "", err
	}
	// What the command made is part of the images, so the plan is made again.
	s.commandRan = true
	return planBuild(ctx, s)
}

// installDependencies makes node_modules for the project's own commands, unless
// they are there: somebody else's, or ours for the same lock file. The image's
// dependency layer does not come from it.
func (s *state) installDependencies(ctx context.Context, p *project.Project) error {
	kind := s.nodeKind(p)
	if kind == "" {
		return nil
	}
	want, err := s.modules(ctx, p, kind)
	if err != nil {
		return err
	}
	have, there, err := s.installed()
	if err != nil || there && (have == "" || have == want) {
		return err
	}
	line, same := "", kind+" install --frozen-lockfile" // the lock file's own tool
	if kind == builder.KindNPM {
		line, same = "npm ci --no-audit --no-fund --loglevel=error", "npm ci"
	}
	s.Log.Printf("install dependencies: %s", same)
	if err := s.command(ctx, p, "node", line, p.Build.Secrets); err != nil {
		return commandFailed(usererr.CodeBuildInput, same, err)
	}
	s.noteInstalled(want)
	return nil
}

// modulesNote is where the runner notes what it installed node_modules for.
const modulesNote = "node_modules/.kuroko-installed"

// modules is the sum of what decides node_modules.
func (s *state) modules(ctx context.Context, p *project.Project, kind string) (string, error) {
	image, err := s.buildImage(ctx, commandRuntime(p, "node"))
	if err != nil {
		return "", err
	}
	root, err := os.OpenRoot(s.Job.Dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	parts := []string{kind, image.Identifier()}
	for _, file := range []string{manifests["node"], s.nodeLock(), ".npmrc"} {
		data, _ := root.ReadFile(file) // without one of them, the installer has its say
		parts = append(parts, string(data))
	}
	return sumOf(parts...), nil
}

// installed tells whether there is a node_modules, and the note of the runner
// that installed it; none where somebody else did.
func (s *state) installed() (note string, there bool, err error) {
	root, err := os.OpenRoot(s.Job.Dir)
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	if _, err := root.Lstat(path.Dir(modulesNote)); err != nil {
		return "", false, nil
	}
	data, _ := root.ReadFile(modulesNote)
	return string(data), true, nil
}

// noteInstalled leaves the note. Where that fails, they are as good as those
// of somebody else.
func (s *state) noteInstalled(note string) {
	if root, err := os.OpenRoot(s.Job.Dir); err == nil { // commands may have made links
		_ = root.WriteFile(modulesNote, []byte(note), 0o644)
		root.Close()
	}
}

// nodeKind is the package manager of the project's Node.js dependencies; empty
// where there are none.
func (s *state) nodeKind(p *project.Project) string {
	if !slices.ContainsFunc(p.Functions, func(f project.Function) bool { return f.Language == "node" }) {
		return ""
	}
	return kinds[s.nodeLock()]
}

// nodeLock is the lock file of Node.js that counts; empty for none.
func (s *state) nodeLock() string {
	return lockOf("node", func(lock string) bool {
		_, err := os.Stat(filepath.Join(s.Job.Dir, lock))
		return err == nil
	})
}

// command runs a shell command of the repository in the build image of a
// language's runtime, "" for the project's. It sees build.env, the secrets of
// those names, and nothing else of the job: no token, no FAAS_*, no CI_*.
func (s *state) command(ctx context.Context, p *project.Project, language, line string, secrets []string) error {
	if len(secrets) > 0 { // an earlier job may have read faas.yml
		if err := s.hideSecrets(p); err != nil {
			return err
		}
	}
	image, err := s.buildImage(ctx, commandRuntime(p, language))
	if err != nil {
		return err
	}
	vars, home, stop, err := s.registries(ctx, p)
	if err != nil {
		return err
	}
	defer stop()
	vars = append(vars, "CI=true")
	for k, v := range p.Build.Env {
		vars = append(vars, k+"="+v)
	}
	slices.Sort(vars)
	runtime := s.Bundle.Meta.Runtimes[commandRuntime(p, language)]
	var instead map[string][]byte
	if runtime.Language == "node" {
		if line == "" {
			instead = s.yarnLock(vars)
		}
		var files map[string][]byte
		line, files = s.World.Shell(s.nodeKind(p), line)
		for file, data := range files {
			home[file] = data
		}
	}
	if runtime.Language == "java" && fewClasses(s.Job.Dir) {
		home[".mavenrc"] = []byte(mavenStart)
	}
	out := &lineWriter{log: s.Log}
	defer out.flush()
	ran, err := s.World.Run(ctx, builder.Command{
		Image: image, Argv: []string{"/bin/sh", "-c", line}, Env: vars, Secrets: secrets, Dir: s.Job.Dir, Home: home, Instead: instead, Stdout: out, Stderr: out,
		Notice: func(text string) { s.Log.Printf("%s", text) },
	})
	if ran.Sandbox != "" {
		out.flush()
		s.ran = ran
		s.reads.ranIn(ran)
		s.tellWhere(ran, "commands of the repository")
	}
	return err
}

// yarnLock is the project's yarn.lock as it is installed from the registry that
// variables name; none without either.
func (s *state) yarnLock(vars []string) map[string][]byte {
	const lock = "yarn.lock"
	if s.nodeLock() != lock {
		return nil
	}
	for _, kv := range vars {
		registry, ok := strings.CutPrefix(kv, "npm_config_registry=")
		if !ok {
			continue
		}
		root, err := os.OpenRoot(s.Job.Dir)
		if err != nil {
			return nil // yarn says what is wrong
		}
		defer root.Close()
		if data, err := root.ReadFile(lock); err == nil {
			return map[string][]byte{lock: builder.YarnLock(data, registry)}
		}
	}
	return nil
}

// registries are where a command's package managers find the packages: as
// variables, and as files of its home. They read the machine's configuration
// from places that the command does not see. A registry that nothing names is
// left to them.
func (s *state) registries(ctx context.Context, p *project.Project) (vars []string, home map[string][]byte, stop func(), err error) {
	home = map[string][]byte{}
	var stops []func()
	stop = func() {
		for _, f := range stops {
			f()
		}
	}
	used := map[string]bool{}
	for _, f := range p.Functions {
		used[f.Language] = true
	}
	for _, k := range []struct {
		language, kind string
		machine        func(context.Context) (string, error)
		tell           func(address string)
	}{
		{"node", "npm", s.World.NPMRegistry, func(a string) {
			vars = append(vars, "npm_config_registry="+a, "npm_config_replace_registry_host=always")
		}},
		{"python", "pip", s.World.PipIndex, func(a string) { vars = append(vars, "PIP_INDEX_URL="+a) }},
		{"java", "maven", s.World.MavenMirror, func(a string) { home[".m2/settings.xml"] = mavenSettings(a) }},
	} {
		if !used[k.language] {
			continue
		}
		address, err := s.mirror(ctx, k.kind, k.machine)
		var unset *usererr.Error
		if errors.As(err, &unset) || err == nil && address == "" {
			continue
		}
		if err != nil {
			stop()
			return nil, nil, nil, err
		}
		here, done, err := s.World.Relay(address)
		if err != nil {
			stop()
			return nil, nil, nil, err
		}
		stops = append(stops, done)
		k.tell(here)
	}
	return vars, home, stop, nil
}

// tellWhere tells people where foreign commands ran.
func (s *state) tellWhere(ran builder.Ran, what string) {
	switch ran.Sandbox {
	case builder.SandboxNone:
		s.Log.Warn("sandbox: none: %s ran in the job container itself (%s)", what, ran.Why)
	case builder.SandboxNamespaces:
		s.Log.Printf("sandbox: namespaces, build image %s", ran.Image)
	}
}

// commandRuntime is the runtime whose build image a command runs in: of the
// provider, else of the first function; with a language, of the first function
// in it.
func commandRuntime(p *project.Project, language string) string {
	if language == "" && p.Provider.Runtime != "" {
		return p.Provider.Runtime
	}
	for _, f := range p.Functions {
		if f.Runtime != "" && (language == "" || f.Language == language) {
			return f.Runtime
		}
	}
	return ""
}

// buildImage is a runtime's build image; the zero value where the bundle has
// none.
func (s *state) buildImage(ctx context.Context, runtime string) (name.Digest, error) {
	rt := s.Bundle.Meta.Runtimes[runtime]
	if rt.Build == "" {
		return name.Digest{}, nil
	}
	site, err := s.site(ctx)
	if err != nil {
		return name.Digest{}, err
	}
	ref, err := name.NewDigest(site.Cluster.Image(rt.Build))
	if err != nil {
		return name.Digest{}, &usererr.Error{Code: usererr.CodeBundleContent, Err: fmt.Errorf("bundle.yml: runtimes.%s.build: %w", runtime, err)}
	}
	return ref, nil
}

func commandFailed(code usererr.Code, what string, err error) error {
	var exit *run.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	return &usererr.Error{Code: code, What: "run " + what, Err: exit, Class: usererr.Project, Next: "read the command's output above"}
}

// buildImages builds and pushes what the plan says, and writes the digests.
func buildImages(ctx context.Context, s *state) (string, error) {
	plan, err := s.buildPlan(ctx)
	if err != nil {
		return "", err
	}
	p, err := s.project(ctx)
	if err != nil {
		return "", err
	}
	if err := s.hideSecrets(p); err != nil {
		return "", err
	}
	if err := s.checkRevealed(ctx, p, plan); err != nil {
		return "", err
	}
	built := 0
	refs := map[string]name.Digest{}
	for _, img := range plan.Images {
		if img.Engine == EngineImage {
			ref, err := name.NewDigest(img.Image)
			if err != nil {
				return "", err
			}
			refs[img.Name] = ref
			s.result.Images = append(s.result.Images, ImageResult{Name: img.Name, Ref: ref.String(), Engine: img.Engine, Reused: true})
			s.Log.Printf("image %s: %s, as build.image says", img.Name, ref)
			continue
		}
		req, err := s.request(ctx, p, plan, img)
		if err != nil {
			return "", err
		}
		if img.Action == "reuse" {
			refs[img.Name] = req.Repository.Digest(img.Digest)
			s.result.Images = append(s.result.Images, ImageResult{Name: img.Name, Ref: refs[img.Name].String(), Engine: img.Engine, Reused: true})
			s.Log.Printf("image %s: unchanged, %s", img.Name, img.Digest)
			continue
		}
		engine, ok := s.World.Engines[img.Engine]
		if !ok {
			return "", &usererr.Error{Code: usererr.CodeUnable, What: "build image " + img.Name, Err: fmt.Errorf("this job has no %s engine", img.Engine),
				Next: "use the platform's job image, which has every engine"}
		}
		got, err := engine.Build(ctx, req)
		if err != nil {
			return "", fmt.Errorf("image %s: %w", img.Name, err)
		}
		built++
		refs[img.Name] = got.Ref
		s.result.Images = append(s.result.Images, ImageResult{
			Name: img.Name, Ref: got.Ref.String(), Engine: got.Engine, Reused: got.Reused,
			Requests: got.Requests, Uploaded: got.Uploaded, Sandbox: got.Sandbox, BuildImage: got.BuildImage, Referrers: got.Referrers,
		})
		s.layerTable(got)
	}
	if err := s.writeImages(plan, refs); err != nil {
		return "", err
	}
	if err := s.rememberCommand(ctx, plan, refs); err != nil {
		return "", err
	}
	if built == 0 {
		return "every image exists already", nil
	}
	return "", nil
}

// layerTable is what was in the image, what had to be sent, and how long it
// took to be there.
func (s *state) layerTable(img builder.Image) {
	s.Log.Printf("image %s: %s", img.Name, img.Ref)
	if len(img.Layers) > 0 {
		s.Log.Printf("  %-14s %9s  %-6s  time", "layer", "size", "")
	}
	for _, l := range img.Layers {
		how, took := "pushed", ""
		if l.Reused {
			how = "reused"
		}
		if l.Took > 0 {
			took = ci.Took(l.Took)
		}
		s.Log.Printf("%s", strings.TrimRight(fmt.Sprintf("  %-14s %9s  %-6s  %s", l.Title, Size(l.Size), how, took), " "))
	}
	s.Log.Printf("  %d registry requests, %s sent", img.Requests, Size(img.Uploaded))
	if len(img.Referrers) > 0 {
		var beside []string
		for _, r := range img.Referrers {
			what := map[string]string{attest.Predicate: "provenance", attest.PredicateBOM: "bill of materials"}[r.Predicate]
			if r.Signed {
				what += " (signed)"
			}
			beside = append(beside, what)
		}
		s.Log.Printf("  beside it: %s", strings.Join(beside, ", "))
	}
	for _, w := range img.Warnings {
		s.Log.Warn("%s", w)
	}
	s.tellWhere(builder.Ran{Sandbox: img.Sandbox, Image: img.BuildImage, Why: img.Unboxed}, "installers")
}

// Size renders a number of bytes for people.
func Size(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// imagesFile is .faas/images.json: the digests that the deploy job uses.
type imagesFile struct {
	Version int               `json:"version"`
	Commit  string            `json:"commit"`
	Images  map[string]string `json:"images"` // planned image → reference by digest
}

func (s *state) writeImages(plan *BuildPlan, refs map[string]name.Digest) error {
	f := imagesFile{Version: 1, Commit: plan.Commit, Images: map[string]string{}}
	for n, r := range refs {
		f.Images[n] = r.String()
	}
	s.images = refs
	return writeWork(s.Job.Dir, fileImages, f)
}

// builtImages are the digests of the plan's images, from this job or an
// earlier one. Every planned image must have one.
func (s *state) builtImages(ctx context.Context) (map[string]name.Digest, error) {
	if s.images != nil {
		return s.images, nil
	}
	var f imagesFile
	if err := readWork(s.Job.Dir, fileImages, &f); err != nil {
		return nil, err
	}
	plan, err := s.buildPlan(ctx)
	if err != nil {
		return nil, err
	}
	refs := map[string]name.Digest{}
	var problems []usererr.Problem
	for _, img := range plan.Images {
		ref, err := name.NewDigest(f.Images[img.Name])
		if err != nil {
			problems = append(problems, usererr.Problem{Why: fmt.Sprintf("image %s: no digest in %s/%s", img.Name, WorkDir, fileImages)})
			continue
		}
		// The file passed through the repository's own commands.
		if img.Engine == EngineImage {
			if want, err := name.NewDigest(img.Image); err != nil || ref.Name() != want.Name() {
				problems = append(problems, usererr.Problem{Why: fmt.Sprintf("image %s: %s/%s names %s, faas.yml %s", img.Name, WorkDir, fileImages, ref, img.Image)})
				continue
			}
		} else if want, err := name.NewRepository(plan.Repository + "/" + img.Name); err != nil || ref.Context().Name() != want.Name() {
			problems = append(problems, usererr.Problem{Why: fmt.Sprintf("image %s: %s/%s names %s, the plan pushes to %s", img.Name, WorkDir, fileImages, ref.Context().Name(), want)})
			continue
		}
		refs[img.Name] = ref
	}
	if len(problems) > 0 {
		return nil, &usererr.Error{Code: usererr.CodeNoDigest, Problems: problems}
	}
	s.images = refs
	return refs, nil
}

var digestText = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// collectImages takes the digests that a bundle's own build script left.
func collectImages(ctx context.Context, s *state) (string, error) {
	plan, err := s.buildPlan(ctx)
	if err != nil {
		return "", err
	}
	root, err := os.OpenRoot(s.digestDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	refs := map[string]name.Digest{}
	var problems []usererr.Problem
	for _, img := range plan.Images {
		var digest string
		if root != nil {
			data, _ := root.ReadFile(img.Name)
			digest = digestText.FindString(string(data[:min(len(data), 4<<10)]))
		}
		if digest == "" {
			problems = append(problems, usererr.Problem{Why: fmt.Sprintf("image %s: no sha256:… in %s", img.Name, path.Join(WorkDir, "digests", img.Name))})
			continue
		}
		ref, err := name.NewDigest(plan.Repository + "/" + img.Name + "@" + digest)
		if err != nil {
			return "", err
		}
		refs[img.Name] = ref
		s.result.Images = append(s.result.Images, ImageResult{Name: img.Name, Ref: ref.String(), Engine: "script"})
		s.Log.Printf("image %s: %s", img.Name, ref)
	}
	if len(problems) > 0 {
		return "", &usererr.Error{Code: usererr.CodeNoDigest, Problems: problems}
	}
	return "", s.writeImages(plan, refs)
}
