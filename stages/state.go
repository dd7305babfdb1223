package stages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
)

// World is what touches the outside, as parameters: a test or another program
// hands in others.
type World struct {
	// Engines by the name a BuildPlan uses: layer, dockerfile.
	Engines map[string]builder.Engine
	// Exists looks an image up by its input key.
	Exists func(ctx context.Context, repo name.Repository, key string) (name.Digest, bool, error)
	// FindMade and MarkMade are the same by what the project's build command
	// reads.
	FindMade func(ctx context.Context, repo name.Repository, key string) (name.Digest, bool, error)
	MarkMade func(ctx context.Context, image name.Digest, key string) error
	// Inspect, Rebase and Verify are the layer engine's, for programs.
	Inspect InspectFunc
	Rebase  func(ctx context.Context, r builder.Rebase) (builder.Image, error)
	Verify  func(ctx context.Context, ref name.Reference, keys *attest.Verifier) ([]builder.Verified, error)
	// Installs says whether dependencies need the package manager itself.
	Installs func(d *builder.Dependencies) bool
	// MavenMirror is the same for Java's; "" is Maven's own place.
	MavenMirror func(ctx context.Context) (string, error)
	// Relay shows a package registry on a loopback address, with credentials.
	Relay func(address string) (here string, stop func(), err error)
	// Shell puts a kind of dependencies' package manager into a shell command's
	// PATH; "" is the command that installs them.
	Shell func(kind, command string) (line string, home map[string][]byte)
	// Run runs a command of the repository in a build image.
	Run func(ctx context.Context, c builder.Command) (builder.Ran, error)
	// Secret is a secret of the job, for builds that name it; the engines have
	// the same. Reveals looks for secrets in files.
	Secret  func(name string) (builder.Secret, error)
	Reveals func(ctx context.Context, fsys fs.FS, paths, names []string) (file, name string, err error)
	// Target opens the deploy target of a site.
	Target func(ctx context.Context, s bundle.Site) (Target, error)
	// NPMRegistry finds the package registry that lock files are resolved
	// against. It is asked only when a package is needed.
	NPMRegistry func(ctx context.Context) (string, error)
	// PipIndex is the same for Python's packages: a simple index.
	PipIndex func(ctx context.Context) (string, error)
	// Layout is the builder's own format, part of every input key.
	Layout string
	Now    func() time.Time
}

// InspectFunc describes the image behind a reference.
type InspectFunc func(ctx context.Context, ref name.Reference) (builder.Inspection, error)

// Target is a deploy target and what the report says of it.
type Target struct {
	deployer.Target
	Kind    string // knative, local, directory
	Sandbox string // of a local target: root, userns, none
}

// state is what the steps of one job have made so far. Each value is made at
// most once, from the files of earlier jobs where those exist.
type state struct {
	*Runner
	proj   *project.Project
	plan   *BuildPlan
	images map[string]name.Digest
	deploy *DeployPlan
	target *Target
	where  *bundle.Site
	live   *deployer.Release // what to compare a build plan with, when known
	looked *Tree             // for a plan that only people read
	// reading waits for the work tree's files; nil where nobody reads them yet.
	reading func() ([]worktree.File, project.FileSets, error)
	tree    *os.Root // the work tree; closed at the end of Run
	result  Result
	// awaiting and released say what deploy came to in this process: a release
	// that waits for a person, and how it goes on; or one that is live.
	awaiting, released string
	// commandRan: build.command has made what it makes.
	commandRan bool
	// reads is what build.command can read; nil where nobody has looked.
	reads *reads
	ran   builder.Ran // where the step's commands of the repository ran
}

// now is the time by the job's clock; the zero time where it has none.
func (s *state) now() time.Time {
	if s.World.Now == nil {
		return time.Time{}
	}
	return s.World.Now()
}

// project reads faas.yml for the job's environment, once.
func (s *state) project(context.Context) (*project.Project, error) {
	if s.proj != nil {
		return s.proj, nil
	}
	f, err := s.looked.project(s.Job.Dir)
	if err != nil {
		return nil, err
	}
	opts, err := projectOptions(s.Job, s.Bundle, s.Environ)
	if err != nil {
		return nil, err
	}
	p, err := f.Parse(opts)
	var problems project.Problems
	if errors.As(err, &problems) {
		return nil, projectError(problems)
	}
	if err != nil {
		return nil, err
	}
	if err := withConvention(p, s.Job.Dir); err != nil {
		return nil, err
	}
	s.proj = p
	return p, nil
}

// maxProjectFile is where reading faas.yml stops; the parser refuses from
// 1 MiB on with its own message.
const maxProjectFile = 1<<20 + 1

func readProjectFile(dir string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// Looked at before it is opened: opening a named pipe waits for its writer.
	info, err := root.Stat("faas.yml")
	if errors.Is(err, fs.ErrNotExist) {
		why := fmt.Errorf("%s has no faas.yml", dir)
		if _, err := root.Stat("faas.yaml"); err == nil {
			why = errors.New("there is a faas.yaml, but the file's name is faas.yml")
		}
		return nil, &usererr.Error{Code: usererr.CodeProjectMissing, Err: why}
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("faas.yml is %s, not a file", kindOf(info.Mode()))
	}
	if err != nil {
		return nil, unreadable(err)
	}
	f, err := root.Open("faas.yml")
	if err != nil {
		return nil, unreadable(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProjectFile))
	if err != nil {
		return nil, unreadable(err)
	}
	return data, nil
}

// unreadable is the error of a faas.yml that is there and can't be read.
func unreadable(err error) error {
	return &usererr.Error{
		Code: usererr.CodeProjectFile, Err: err,
		Next: "make faas.yml a regular file in the repository's top folder, readable in the job",
	}
}

// kindOf names what is no regular file.
func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a folder"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSymlink != 0:
		return "a link"
	}
	return "a special file"
}

func projectError(problems project.Problems) error {
	e := &usererr.Error{Code: usererr.CodeProjectFile, Err: problems}
	for _, p := range problems {
		e.Problems = append(e.Problems, usererr.Problem{Why: p.String(), Next: p.Next})
	}
	return e
}

// projectOptions are the facts faas.yml is read under.
func projectOptions(job ci.Job, b *bundle.Bundle, environ []string) (project.Options, error) {
	opts := project.Options{
		Environment: job.Environment,
		Git:         project.Git{SHA: job.Commit.SHA, Branch: job.Commit.Branch, Tag: job.Commit.Tag},
		Variables: func(n string) (string, bool, bool) {
			for _, kv := range environ {
				if k, v, _ := strings.Cut(kv, "="); k == n {
					return v, ci.Masked(n), true
				}
			}
			return "", false, false
		},
	}
	for _, n := range slices.Sorted(maps.Keys(b.Meta.Runtimes)) {
		opts.Runtimes = append(opts.Runtimes, project.RuntimeInfo{Name: n, Language: b.Meta.Runtimes[n].Language})
	}
	opts.Plugins, opts.Layers = folders(b.FS, "plugins"), builtInLayers(b.Meta)
	clusters, err := b.Clusters()
	if err != nil {
		return project.Options{}, err
	}
	opts.Clusters = slices.Sorted(maps.Keys(clusters.Clusters))
	policy, err := b.Policy()
	if err != nil {
		return project.Options{}, err
	}
	opts.Policy, opts.Tier = projectPolicy(policy), project.Tier(b.Choice.Tier)
	return opts, nil
}

// buildPlan is the plan of this job, or of the job that planned before it.
func (s *state) buildPlan(ctx context.Context) (*BuildPlan, error) {
	if s.plan != nil {
		return s.plan, nil
	}
	var plan BuildPlan
	if err := readWork(s.Job.Dir, fileBuildPlan, &plan); err != nil {
		return nil, err
	}
	if plan.Commit != s.Job.Commit.SHA || plan.Environment != s.Job.Environment {
		return nil, fmt.Errorf("%s/%s is of commit %s in %s: %w", WorkDir, fileBuildPlan, plan.Commit, plan.Environment, errNoFile)
	}
	s.plan = &plan
	return s.plan, nil
}

// facts are what `when:` may ask now.
func (s *state) facts(ctx context.Context) (Facts, error) {
	p, err := s.project(ctx)
	if err != nil {
		return nil, err
	}
	f := Facts{
		"merge-request": s.Job.Commit.MergeRequestIID != 0,
		"protected":     s.Job.Protected,
		"has-test":      p.Test.Command != "",
		"has-build":     p.Build.Command != "",
	}
	for _, fn := range p.Functions {
		f["runtime-"+fn.Language] = true
	}
	if plan, err := s.buildPlan(ctx); err == nil {
		for _, i := range plan.Images {
			f["images-to-build"] = f["images-to-build"] || i.Action == "build"
			f["dockerfile-build"] = f["dockerfile-build"] || i.Engine == EngineDockerfile
		}
	}
	if s.deploy != nil {
		f["changed"] = s.deploy.Changed()
	}
	return f, nil
}

// site is where the job's environment lives: cluster and namespace.
func (s *state) site(ctx context.Context) (bundle.Site, error) {
	if s.where != nil {
		return *s.where, nil
	}
	at, err := s.placement(ctx)
	if err != nil {
		return bundle.Site{}, err
	}
	clusters, err := s.Bundle.Clusters()
	if err != nil {
		return bundle.Site{}, err
	}
	site, err := clusters.Site(at.Service, s.Job.Environment, at.Cluster, at.Namespace)
	if errors.Is(err, bundle.ErrNone) {
		return bundle.Site{}, &usererr.Error{
			Code: usererr.CodeEnvironment, Err: err,
			Next: "name one of these in environments." + s.Job.Environment + ".cluster of faas.yml, or use another environment in .gitlab-ci.yml",
		}
	}
	if err != nil {
		return bundle.Site{}, err
	}
	s.where = &site
	return site, nil
}

// placement is what the runner was told, or faas.yml says, of where the
// service lives. Of a broken faas.yml the place is enough, so that a rollback
// still finds its way.
func (s *state) placement(ctx context.Context) (project.Place, error) {
	if s.Place.Service != "" {
		return s.Place, nil
	}
	p, err := s.project(ctx)
	if err == nil {
		return project.Place{Service: p.Service.Name, Cluster: p.Environment.Cluster, Namespace: p.Environment.Namespace}, nil
	}
	data, rerr := readProjectFile(s.Job.Dir)
	if rerr != nil {
		return project.Place{}, err
	}
	place, perr := project.ParsePlace(data, s.Job.Environment)
	var problems project.Problems
	if errors.As(perr, &problems) {
		return project.Place{}, projectError(problems)
	}
	return place, perr
}

// scope is the service in the job's environment, as its records know it.
func (s *state) scope(ctx context.Context) (deployer.Scope, error) {
	site, err := s.site(ctx)
	if err != nil {
		return deployer.Scope{}, err
	}
	at, err := s.placement(ctx)
	if err != nil {
		return deployer.Scope{}, err
	}
	return deployer.Scope{
		Service: at.Service, Environment: s.Job.Environment, Namespace: site.Namespace,
		Owner: strconv.FormatInt(s.Job.Project.ID, 10),
	}, nil
}

// repository is where the project's images go: the cluster's registry and the
// project's path, or GitLab's own registry where the cluster names none.
func (s *state) repository(ctx context.Context) (string, error) {
	site, err := s.site(ctx)
	if err != nil {
		return "", err
	}
	repository := s.Job.Registry.Image
	if site.Cluster.Registry != "" {
		repository = site.Cluster.Registry + "/" + strings.ToLower(s.Job.Project.Path)
	}
	if _, err := name.NewRepository(repository); err != nil && repository != "" {
		return "", &usererr.Error{
			Code: usererr.CodeEnvironment, Class: usererr.Config, What: "choose an image repository", Err: err,
			Next: "check registry in clusters.yml, CI_REGISTRY_IMAGE and CI_PROJECT_PATH (the folder's name where faas has no such variable)",
		}
	}
	if repository != "" {
		return repository, nil
	}
	return "", &usererr.Error{
		Code: usererr.CodeEnvironment, Class: usererr.Config, What: "choose an image registry",
		Err:  errors.New("clusters.yml names no registry, and CI_REGISTRY_IMAGE is not set"),
		Next: "set registry in clusters.yml, or turn on the project's container registry",
	}
}

// treeSum is the sum of a folder of the bundle, by content alone.
func treeSum(fsys fs.FS, dir string) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(fsys, dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s\x00%x\n", strings.TrimPrefix(p, dir+"/"), sha256.Sum256(data))
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
