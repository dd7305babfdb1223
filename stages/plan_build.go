package stages

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sort"
	"strings"

	"github.com/kuroko-faas/kuroko/project"
)

// BuildPlan says which images a project needs, which of them exist, and why
// the others must be built. It is pure: equal inputs, equal plan.
type BuildPlan struct {
	Version     int    `json:"version"` // 1
	Service     string `json:"service"`
	Environment string `json:"environment"`
	Commit      string `json:"commit"`
	// Bundle is provenance. It takes no part in any key: a bundle that alters
	// a script only rebuilds nothing.
	Bundle string `json:"bundle"`
	// Repository is where the images go; an image's is Repository/Name.
	Repository string         `json:"repository"`
	Images     []PlannedImage `json:"images"`
}

// PlannedImage is one image: one runtime and one set of files, shared by all
// units that need exactly these.
type PlannedImage struct {
	Name    string   `json:"name"`
	Runtime string   `json:"runtime"`
	Units   []string `json:"units"`
	// Key is the input key: everything that decides the image's content.
	Key    string  `json:"key"`
	Inputs []Input `json:"inputs"`
	Engine string  `json:"engine"` // layer, dockerfile, image
	// EngineWhy tells the user why this engine was taken.
	EngineWhy string `json:"engineWhy"`
	Action    string `json:"action"` // build, reuse
	Why       string `json:"why"`
	// Digest is set when the image exists already.
	Digest string `json:"digest,omitempty"`
	// Files are the paths in the code layer, sorted.
	Files []string `json:"files"`
	// Lock is the lock file that decides the dependency layer; empty without one.
	Lock string `json:"lock,omitempty"`
	// Dockerfile is the path of the instructions, for the dockerfile engine.
	Dockerfile string `json:"dockerfile,omitempty"`
}

// Input is one named part of a key, so that a changed key can be explained.
type Input struct {
	Name string `json:"name"` // code, dependencies, base, adapter, …
	Sum  string `json:"sum"`
}

// The engines a plan can choose.
const (
	EngineLayer      = "layer"
	EngineDockerfile = "dockerfile"
	EngineImage      = "image" // faas.yml names a finished image
)

// BuildInput is everything a BuildPlan is made of.
type BuildInput struct {
	Project     *project.Project
	Environment string
	Commit      string
	Bundle      string // digest, provenance only
	Repository  string
	// Runtimes of the bundle by name.
	Runtimes map[string]RuntimeFacts
	// Files are the work tree's, with the sums of all that take part.
	Files []File
	// Layout names our own layer format and compressor, so that a change of
	// either makes new keys.
	Layout string
	// Exists looks an image up by name and key; nil finds none.
	Exists func(image, key string) (digest string)
}

// RuntimeFacts are what of a runtime enters a key.
type RuntimeFacts struct {
	Language string
	Base     string // digest of the base image, without its registry
	Build    string // digest of the build image
	Adapter  string // sum of the adapter's tree
}

// PlanBuild decides the images. Units that run the same runtime with the same
// files and build settings share one.
func PlanBuild(in BuildInput) (BuildPlan, error) {
	plan := BuildPlan{
		Version: 1, Service: in.Project.Service.Name, Environment: in.Environment, Commit: in.Commit,
		Bundle: in.Bundle, Repository: in.Repository, Images: []PlannedImage{},
	}
	paths := make([]string, 0, len(in.Files))
	sums := map[string]string{}
	for _, f := range in.Files {
		paths = append(paths, f.Path)
		sums[f.Path] = f.Sum
	}
	sets := in.Project.FileSets(paths)
	groups := map[string]*PlannedImage{}
	var order []string
	for _, u := range in.Project.Units {
		rt, ok := in.Runtimes[u.Runtime]
		if !ok {
			return BuildPlan{}, fmt.Errorf("unit %s: the bundle has no runtime %q", u.Name, u.Runtime)
		}
		img := PlannedImage{Runtime: u.Runtime, Units: []string{u.Name}, Dockerfile: u.Build.Dockerfile}
		img.Engine, img.EngineWhy = chooseEngine(u.Build)
		img.Files = sets.Of(in.Project, u.Name, paths)
		if lock := lockFiles[rt.Language]; sums[lock] != "" {
			img.Lock = lock
		}
		img.Inputs = inputs(u, rt, img, sums, in.Layout)
		img.Key = keyOf(img.Inputs)
		if g, ok := groups[img.Key]; ok {
			g.Units = append(g.Units, u.Name)
			continue
		}
		groups[img.Key] = &img
		order = append(order, img.Key)
	}
	perRuntime := map[string]int{}
	for _, k := range order {
		perRuntime[groups[k].Runtime]++
	}
	for _, k := range order {
		img := groups[k]
		img.Name = strings.ReplaceAll(img.Runtime, ".", "-")
		if perRuntime[img.Runtime] > 1 {
			img.Name += "-" + img.Units[0]
		}
		img.Action, img.Why = "build", "no image has these inputs yet"
		if in.Exists != nil {
			if d := in.Exists(img.Name, img.Key); d != "" {
				img.Action, img.Why, img.Digest = "reuse", "an image with the same inputs exists", d
			}
		}
		plan.Images = append(plan.Images, *img)
	}
	return plan, nil
}

// chooseEngine names the engine and the reason, both for the user.
func chooseEngine(b project.Build) (engine, why string) {
	switch b.Builder {
	case "dockerfile":
		return EngineDockerfile, "build.builder is dockerfile"
	case "none":
		return EngineImage, "build.image names a finished image"
	}
	return EngineLayer, "no Dockerfile: layers on the runtime's base"
}

// inputs lists what decides an image's content, in a fixed order.
func inputs(u project.Unit, rt RuntimeFacts, img PlannedImage, sums map[string]string, layout string) []Input {
	code := make([]string, 0, len(img.Files))
	for _, f := range img.Files {
		code = append(code, f+"\x00"+sums[f])
	}
	list := []Input{
		{"layout", sumOf(layout)},
		{"runtime", sumOf(u.Runtime)},
		{"base", sumOf(rt.Base, u.Build.Base)},
		{"adapter", rt.Adapter},
		{"code", sumOf(code...)},
		{"dependencies", sumOf(img.Lock, sums[img.Lock], sums[manifests[rt.Language]])},
	}
	b := u.Build
	env := make([]string, 0, len(b.Env))
	for k, v := range b.Env {
		env = append(env, k+"\x00"+v)
	}
	sort.Strings(env)
	// Build image and command take part only where they run: a project
	// without a build command is not rebuilt for a new build image.
	if b.Command != "" || b.Install != "" {
		list = append(list, Input{"build", sumOf(append([]string{rt.Build, b.Install, b.Command, b.Output}, env...)...)})
	}
	if b.Builder != "" && b.Builder != "layer" {
		list = append(list, Input{"builder", sumOf(b.Builder, b.Dockerfile, b.Image)})
	}
	if b.Builder == "dockerfile" {
		// The instructions take part also when `package` leaves them out.
		list = append(list, Input{"dockerfile", sums[b.Dockerfile]})
	}
	if len(u.Layers) > 0 {
		list = append(list, Input{"layers", sumOf(u.Layers...)})
	}
	return list
}

// lockFiles decide a language's dependency layer, together with manifests.
// They take part wherever they are, also when `package` leaves them out.
var (
	lockFiles = map[string]string{"node": "package-lock.json"}
	manifests = map[string]string{"node": "package.json"}
)

// sumOf hashes parts so that no two different lists collide.
func sumOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func keyOf(list []Input) string {
	parts := make([]string, 0, 2*len(list))
	for _, i := range list {
		parts = append(parts, i.Name, i.Sum)
	}
	return sumOf(parts...)
}

// String is the plan as a readable table.
func (p BuildPlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s: %d images in %s\n", p.Service, p.Environment, len(p.Images), p.Repository)
	for _, i := range p.Images {
		fmt.Fprintf(&b, "  %-6s %-20s for %s: %s\n", i.Action, i.Name, strings.Join(i.Units, ", "), i.Why)
		fmt.Fprintf(&b, "         engine %s (%s), %d files, key %.12s\n", i.Engine, i.EngineWhy, len(i.Files), i.Key)
	}
	return b.String()
}
