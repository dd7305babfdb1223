package stages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

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
