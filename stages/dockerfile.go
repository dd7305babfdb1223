package stages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

// argBase is the build argument with the runtime's base image, so that a
// Dockerfile can stand on it without naming the platform's registry:
//
//	ARG FAAS_BASE
//	FROM $FAAS_BASE
const argBase = "FAAS_BASE"

// argBuild is the one with the runtime's build image, which has a shell and the
// package manager, for stages that only make something.
const argBuild = "FAAS_BUILD_IMAGE"

// buildArgs are what a Dockerfile's ARGs are given: build.env, and the
// platform's images.
func buildArgs(p *project.Project, img PlannedImage, c bundle.Cluster, rt bundle.Runtime) map[string]string {
	args := map[string]string{}
	maps.Copy(args, buildOf(p, img).Env)
	for name, ref := range map[string]string{argBase: rt.Base, argBuild: rt.Build} {
		delete(args, name)
		if ref != "" {
			args[name] = c.Image(ref)
		}
	}
	return args
}

// onBuildImages are the Dockerfiles among the units' that name [argBuild]: the
// build image takes part in what they make. One that can't be read is told when
// it is looked at.
func (s *state) onBuildImages(p *project.Project) (map[string]bool, error) {
	out := map[string]bool{}
	tree, err := os.OpenRoot(s.Job.Dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	for _, u := range p.Units {
		if u.Build.Builder != "dockerfile" {
			continue
		}
		if text, err := tree.ReadFile(u.Build.Dockerfile); err == nil && bytes.Contains(text, []byte(argBuild)) {
			out[u.Build.Dockerfile] = true
		}
	}
	return out, nil
}

// onTop makes function images from Dockerfiles: one engine carries the
// instructions out, then the adapter, the entry point, the working directory
// and the user come on top as they do for every other image. So the
// developer's Dockerfile has to know no contract but two: the code is under
// /app, and the language's program is where the runtime's base has it.
type onTop struct {
	instructions builder.Engine
	layers       builder.Engine
}

var _ builder.Engine = onTop{}

// Build implements [builder.Engine]. Nothing is tagged with the request's key
// before the whole image is there.
func (e onTop) Build(ctx context.Context, req builder.Request) (builder.Image, error) {
	built, err := e.instructions.Build(ctx, builder.Request{
		Name: req.Name, Key: req.Key, Repository: req.Repository, Code: req.Code, Dockerfile: req.Dockerfile,
		Origin: req.Origin, Secrets: req.Secrets,
	})
	if err != nil {
		return built, err
	}
	// The instructions have put the code there. A server without adapter keeps
	// their entry point; only the user is held to be nobody special.
	image, err := e.layers.Build(ctx, builder.Request{
		Name: req.Name, Key: req.Key, Repository: req.Repository, Base: built.Ref,
		Made: built.Made, Layers: req.Layers, Config: req.Config, Origin: req.Origin,
	})
	image.Engine, image.Sandbox = built.Engine, built.Sandbox
	image.Requests += built.Requests
	image.Uploaded += built.Uploaded
	// What the instructions made is below ours; the table shows whether it was
	// sent, which the layer engine can't know.
	sent := map[string]builder.Layer{}
	for _, l := range built.Layers {
		sent[l.Digest] = l
	}
	for i, l := range image.Layers {
		if b, ok := sent[l.Digest]; ok && l.Title == "base" {
			image.Layers[i] = b
		}
	}
	return image, err
}

// dockerfiles are the files beside the context that decide what a Dockerfile
// makes. They take part also when `package` leaves them out.
func dockerfiles(file string) []string {
	if file == "" {
		return nil
	}
	return []string{file, file + ".dockerignore", ".dockerignore"}
}

// instructionCache is where layers of Dockerfiles are kept: beside the images.
// What protected refs find there only protected refs have written; the others
// have a repository of their own, and may read both.
func (s *state) instructionCache(plan *BuildPlan) (builder.Cache, error) {
	shared, err := name.NewRepository(plan.Repository + "/cache")
	if err != nil {
		return builder.Cache{}, err
	}
	if s.Job.Protected {
		return builder.Cache{Read: []name.Repository{shared}, Write: &shared}, nil
	}
	own, err := name.NewRepository(plan.Repository + "/cache-unprotected")
	if err != nil {
		return builder.Cache{}, err
	}
	return builder.Cache{Read: []name.Repository{shared, own}, Write: &own}, nil
}

// readDockerfiles puts what there is to say about the plan's Dockerfiles into
// the plan: what is refused, by kaniko or the platform's policy, and advice.
func (s *state) readDockerfiles(ctx context.Context, p *project.Project, plan *BuildPlan) error {
	if !slices.ContainsFunc(plan.Images, func(i PlannedImage) bool { return i.Engine == EngineDockerfile }) {
		return nil
	}
	policy, err := s.Bundle.Policy()
	if err != nil {
		return err
	}
	site, err := s.site(ctx)
	if err != nil {
		return err
	}
	own := map[string]bool{}
	for _, rt := range s.Bundle.Meta.Runtimes {
		own[site.Cluster.Image(rt.Base)] = true
		if rt.Build != "" {
			own[site.Cluster.Image(rt.Build)] = true
		}
	}
	tree, err := os.OpenRoot(s.Job.Dir)
	if err != nil {
		return err
	}
	defer tree.Close()
	for i := range plan.Images {
		img := &plan.Images[i]
		if img.Engine != EngineDockerfile {
			continue
		}
		args := buildArgs(p, *img, site.Cluster, s.Bundle.Meta.Runtimes[img.Runtime])
		look := look{tree: tree.FS(), file: img.Dockerfile, paths: plan.Files(*img), args: args, own: own, policy: policy, secrets: buildOf(p, *img).Secrets,
			// What the command is yet to make can't be looked for.
			early: p.Build.Command != "" && !s.commandRan}
		if img.Findings, err = look.findings(); err != nil {
			return err
		}
	}
	return nil
}

// look is one Dockerfile and what it is held against.
type look struct {
	tree   fs.FS
	file   string
	paths  []string
	args   map[string]string
	own    map[string]bool // the bundle's images
	policy bundle.Policy
	early  bool
	// secrets are the names that build.secrets lists.
	secrets []string
}

func (l look) findings() ([]kaniko.Problem, error) {
	text, err := fs.ReadFile(l.tree, l.file)
	if err != nil {
		return nil, &builder.InputError{What: "read " + l.file, Next: "check build.dockerfile in faas.yml", Err: err}
	}
	var found kaniko.Problems
	d, err := kaniko.Parse(text, l.args, "")
	if errors.As(err, &found) {
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	found = append(l.bases(d.Bases), kaniko.Lint(text)...)
	found = append(found, d.MissingSecrets(l.secrets, "build.secrets does not list")...)
	var missing kaniko.Problems
	if err := d.Check(l.tree, l.paths, l.file); err != nil && !errors.As(err, &missing) {
		return nil, err
	}
	if !l.early {
		found = append(found, missing...)
	}
	slices.SortStableFunc(found, func(a, b kaniko.Problem) int { return a.Line - b.Line })
	return found, nil
}

// bases holds the images that a Dockerfile names against the policy.
func (l look) bases(list []kaniko.Base) (found kaniko.Problems) {
	for _, b := range list {
		say := func(rule string, advice bool, text string) {
			found = append(found, kaniko.Problem{Line: b.Line, Column: b.Column, Rule: rule, Text: b.String() + ": " + text, Advice: advice})
		}
		switch pinned := kaniko.Pinned(b.Ref); {
		case l.own[b.Ref]:
		case !l.policy.MayUseBase(b.Ref):
			say("BaseNotAllowed", false, "the platform's policy does not allow this image; stand on $"+argBase+" or $"+argBuild+", or ask the platform team to list it in policy.yml, bases")
		case !pinned && !l.policy.MayFloat(b.Ref):
			say("BaseNotPinned", false, "name the image by digest (…@sha256:…): what a tag points to may change without a change here")
		case !pinned:
			say("BaseNotPinned", true, "an image of equal inputs is not built again when this tag moves")
		}
	}
	return found
}

// findings are the plan's findings as lines: file and place, then what.
func (p BuildPlan) findings() [][]string {
	var rows [][]string
	seen := map[string]bool{}
	for _, i := range p.Images {
		for _, f := range i.Findings {
			word := "refused"
			if f.Advice {
				word = "advice"
			}
			if f.Rule != "" {
				word += " " + f.Rule
			}
			row := []string{fmt.Sprintf("%s: %s (%s)", i.Dockerfile, f, word)}
			if !seen[row[0]] {
				rows = append(rows, row)
			}
			seen[row[0]] = true
		}
	}
	return rows
}

// refused is the error for Dockerfiles that can't or mustn't be built.
func (p BuildPlan) refused() error {
	e := &usererr.Error{Code: usererr.CodeBuildInput, Next: "correct the lines named above"}
	for _, i := range p.Images {
		for _, f := range i.Findings {
			problem := usererr.Problem{Why: i.Dockerfile + ": " + f.String()}
			if !f.Advice && !slices.Contains(e.Problems, problem) {
				e.Problems = append(e.Problems, problem)
			}
		}
	}
	if len(e.Problems) == 0 {
		return nil
	}
	return e
}
