package stages

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/worktree"
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
	// CommandSkipped: nothing that build.command reads has changed since the
	// images were made, so that it does not run.
	CommandSkipped bool `json:"commandSkipped,omitempty"`
	// Shared are the files that every image's code layer has, sorted; an
	// image's Files are its own beside them.
	Shared []string `json:"shared"`
	// Notes are advice for people about this plan.
	Notes []string `json:"notes,omitempty"`

	oneCode bool     // several units, and no function has a source
	orphans []string // folders that were a function's and are everybody's now
}

// PlannedImage is one image: one runtime and one set of files, shared by all
// units that need exactly these.
type PlannedImage struct {
	Name    string   `json:"name"`
	Runtime string   `json:"runtime"`
	Units   []string `json:"units"`
	// Key is the input key: everything that decides the image's content.
	// Where build.command need not run, it is the CommandKey, and the inputs are
	// those before it.
	Key    string  `json:"key"`
	Inputs []Input `json:"inputs"`
	// CommandKey is everything that decides the image before build.command has
	// run; empty without one, or where what it reads is not known.
	CommandKey string `json:"commandKey,omitempty"`
	// Versions are what people call inputs, by name, where they have one. They
	// are no part of the key.
	Versions map[string]string `json:"versions,omitempty"`
	Engine   string            `json:"engine"` // layer, dockerfile, image
	// EngineWhy tells the user why this engine was taken.
	EngineWhy string `json:"engineWhy"`
	Action    string `json:"action"` // build, reuse
	Why       string `json:"why"`
	// Causes are what differs from the live release; none where that is not
	// known.
	Causes []Cause `json:"causes,omitempty"`
	// Digest is set when the image exists already.
	Digest string `json:"digest,omitempty"`
	// Files are the paths in the code layer beside those that all share,
	// sorted; see [BuildPlan.Files].
	Files []string `json:"files,omitempty"`
	// Lock is the lock file that decides the dependency layer; empty without one.
	Lock string `json:"lock,omitempty"`
	// Dockerfile is the path of the instructions, for the dockerfile engine.
	Dockerfile string `json:"dockerfile,omitempty"`
	// Findings are what there is to say about the Dockerfile.
	Findings []kaniko.Problem `json:"findings,omitempty"`
	// Base is what faas.yml has the image built on instead of the runtime's
	// base, by digest.
	Base string `json:"base,omitempty"`
	// Layers are the built-in layers, as faas.yml names them.
	Layers []string `json:"layers,omitempty"`
	// App is the function whose own server the image runs; empty for images
	// with an adapter.
	App string `json:"app,omitempty"`
	// Image is the finished image of the image engine, by digest.
	Image string `json:"image,omitempty"`
}

// Input is one named part of a key, so that a changed key can be explained.
type Input struct {
	Name string `json:"name"` // code, code of DIR, package-lock.json, platform: adapter, …
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
	Files []worktree.File
	// OnBuildImage are the Dockerfiles that name the runtime's build image.
	OnBuildImage map[string]bool
	// Sets are the project's of Files; nil sorts them.
	Sets *project.FileSets
	// Reads is the sum of what build.command can read; empty where there is
	// nothing to go by.
	Reads string
	// Layout names our own layer format and compressor, so that a change of
	// either makes new keys.
	Layout string
	// Exists looks an image up by name and key; nil finds none.
	Exists func(image, key string) (digest string)
	// Live is the release that serves, for saying what changed; nil when it is
	// not known. It decides nothing.
	Live *deployer.Release
}

// RuntimeFacts are what of a runtime enters a key.
type RuntimeFacts struct {
	Language string
	Base     string // digest of the base image, without its registry
	Build    string // digest of the build image
	Adapter  string // sum of the adapter's tree
	// Installs says that the project's lock file needs the package manager
	// itself, which runs in the build image.
	Installs bool
	// Layers are the digests of the built-in layers that the bundle has for it.
	Layers map[string]string
	// Versions are what people call base, build image and adapter, by the
	// names of their inputs; none where nobody gave one.
	Versions map[string]string
}

// PlanBuild decides the images. Units that run the same runtime with the same
// files and build settings share one. It takes time linear in the number of
// files and units.
func PlanBuild(in BuildInput) (BuildPlan, error) {
	plan := BuildPlan{
		Version: 1, Service: in.Project.Service.Name, Environment: in.Environment, Commit: in.Commit,
		Bundle: in.Bundle, Repository: in.Repository, Images: []PlannedImage{},
	}
	code := codeOf(in.Project, in.Files, in.Sets)
	code.onBuildImage = in.OnBuildImage
	plan.Shared = code.sets.Shared
	commandBuild := in.Runtimes[commandRuntime(in.Project, "")].Build
	groups := map[string]*PlannedImage{}
	var order []string
	for _, u := range in.Project.Units {
		rt, ok := in.Runtimes[u.Runtime]
		if !ok && u.Runtime != "" {
			return BuildPlan{}, fmt.Errorf("unit %s: the bundle has no runtime %q", u.Name, u.Runtime)
		}
		img := PlannedImage{Runtime: u.Runtime, Units: []string{u.Name}, Dockerfile: u.Build.Dockerfile}
		img.Engine, img.EngineWhy = chooseEngine(u.Build)
		if img.Engine == EngineLayer {
			img.Layers, img.Base = u.Layers, u.Build.Base
		}
		if f, ok := appOf(u); ok {
			img.App = f.Name
		}
		if img.Engine == EngineImage {
			img.Image = u.Build.Image
		}
		img.Lock = lockOf(rt.Language, func(f string) bool { return code.sums[f] != "" })
		sources := code.sources(u)
		img.Inputs = inputs(u, rt, img, code, sources, commandBuild, in.Layout)
		img.Versions = rt.Versions
		img.Key = keyOf(img.Inputs)
		if in.Reads != "" && img.Engine != EngineImage {
			img.CommandKey = commandKey(in.Reads, in.Project, img)
		}
		if g, ok := groups[img.Key]; ok {
			g.Units = append(g.Units, u.Name)
			continue
		}
		for _, dir := range sources {
			img.Files = append(img.Files, code.sets.Own[dir]...)
		}
		slices.Sort(img.Files)
		groups[img.Key] = &img
		order = append(order, img.Key)
	}
	perRuntime := map[string]int{}
	for _, k := range order {
		perRuntime[groups[k].Runtime]++
	}
	live := liveUnits(in.Live)
	service := map[string]string{}
	for _, u := range in.Project.Units {
		service[u.Name] = u.ServiceName
	}
	for _, k := range order {
		img := groups[k]
		img.Name = strings.ReplaceAll(or(img.Runtime, "image"), ".", "-")
		if perRuntime[img.Runtime] > 1 {
			img.Name += "-" + img.Units[0]
		}
		if img.Engine == EngineImage {
			img.Action, img.Why, img.Digest = "reuse", img.EngineWhy, img.Image[strings.LastIndex(img.Image, "@")+1:]
			plan.Images = append(plan.Images, *img)
			continue
		}
		img.Action, img.Why = "build", "no image has these inputs yet"
		for _, u := range img.Units {
			// Its units run the same image; one of them may be new.
			if l, ok := live[service[u]]; ok && l.Inputs != nil {
				img.Causes = inputCauses(l.Inputs, img.record(), false)
				break
			}
		}
		if len(img.Causes) > 0 {
			img.Why = causeText(img.Causes)
		}
		plan.Images = append(plan.Images, *img)
	}
	plan.oneCode = !code.split && len(in.Project.Units) > 1
	plan.orphans = code.orphans(live)
	return plan.reuse(in.Exists), nil
}

// reuse takes the images that exist already. exists may be nil.
func (p BuildPlan) reuse(exists func(image, key string) string) BuildPlan {
	p.Images = slices.Clone(p.Images)
	for i := range p.Images {
		img := &p.Images[i]
		if exists == nil {
			break
		}
		if img.Engine == EngineImage {
			continue
		}
		if d := exists(img.Name, img.Key); d != "" {
			img.Action, img.Why, img.Digest = "reuse", "an image with the same inputs exists", d
		}
	}
	p.Notes = p.advice()
	return p
}

// advice is what there is to say about the plan as it is.
func (p BuildPlan) advice() []string {
	var notes []string
	for _, dir := range p.orphans {
		notes = append(notes, fmt.Sprintf("%s is no function's source any more, so its files are shared by all units: remove them, or leave them out with package.exclude", dir))
	}
	if p.oneCode && slices.ContainsFunc(p.Images, rebuildsForCode) {
		notes = append(notes, "all units share all code: declare functions.<fn>.source to separate them")
	}
	return notes
}

// rebuildsForCode reports whether the image is built for its code, among
// other reasons.
func rebuildsForCode(i PlannedImage) bool {
	return i.Action == "build" && (len(i.Causes) == 0 || slices.ContainsFunc(i.Causes, func(c Cause) bool { return c.Kind == CauseCode }))
}

// Files are the paths in the image's code layer, sorted.
func (p BuildPlan) Files(i PlannedImage) []string {
	files := slices.Concat(p.Shared, i.Files)
	slices.Sort(files)
	return files
}

// code is the work tree as images are made of it: sums of what all units
// share and of each source folder, computed once.
type code struct {
	sets   project.FileSets
	sums   map[string]string // by file
	shared string
	own    map[string]string // by source folder; none for an empty one
	// split reports whether any function has a source of its own.
	split        bool
	onBuildImage map[string]bool // by Dockerfile
}

func codeOf(p *project.Project, files []worktree.File, sets *project.FileSets) code {
	c := code{sums: make(map[string]string, len(files)), own: map[string]string{}}
	for _, f := range files {
		c.sums[f.Path] = f.Sum
	}
	if sets == nil {
		sets = new(p.FileSets(pathsOf(files)))
	}
	c.sets = *sets
	c.split = len(c.sets.Own) > 0
	// Lock file and manifest are inputs of their own: what changes in them is
	// not the code. Whether they are in the layer is.
	apart := map[string]bool{}
	for lang := range lockFiles {
		lock := lockOf(lang, func(f string) bool { return c.sums[f] != "" })
		apart[lock], apart[manifests[lang]] = true, true
	}
	sum := func(files []string) string {
		s := newSummer()
		for _, f := range files {
			if apart[f] {
				s.add(f)
				continue
			}
			s.add(f, "\x00", c.sums[f])
		}
		return s.sum()
	}
	c.shared = sum(c.sets.Shared)
	for dir, files := range c.sets.Own {
		// What build.command is yet to make will be there: the units that have it
		// are others than those without it already now.
		if len(files) > 0 || p.Build.Output != "" && within(dir, p.Build.Output) {
			c.own[dir] = sum(files)
		}
	}
	return c
}

func pathsOf(files []worktree.File) []string {
	paths := make([]string, 0, len(files))
	for _, f := range files {
		paths = append(paths, f.Path)
	}
	return paths
}

// orphans are folders that the live release knows as a function's source, and
// whose files are still there without being one: they are shared code now,
// because nothing tells them from code that all functions import.
func (c code) orphans(live map[string]deployer.Live) []string {
	gone := map[string]bool{}
	for _, u := range live {
		for n := range u.Inputs {
			if dir, ok := strings.CutPrefix(n, inputCodeOf); ok {
				if _, source := c.sets.Own[dir]; !source {
					gone[dir] = true
				}
			}
		}
	}
	var out []string
	for dir := range gone {
		if slices.ContainsFunc(c.sets.Shared, func(f string) bool { return strings.HasPrefix(f, dir+"/") }) {
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return out
}

// sources are the folders whose files only this unit has, sorted: of its
// functions, without those inside another one.
func (c code) sources(u project.Unit) []string {
	all := map[string]bool{}
	for _, f := range u.Functions {
		if c.own[f.Source] != "" {
			all[f.Source] = true
		}
	}
	var out []string
	for dir := range all {
		inside := false
		for up := path.Dir(dir); up != "." && up != "/"; up = path.Dir(up) {
			inside = inside || all[up]
		}
		if !inside {
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return out
}

// buildOf is how a planned image is built, as faas.yml has it: the units that
// share an image have the same.
func buildOf(p *project.Project, img PlannedImage) project.Build {
	for _, u := range p.Units {
		if slices.Contains(img.Units, u.Name) {
			return u.Build
		}
	}
	return project.Build{}
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

// inputs lists what decides an image's content, in a fixed order. The names
// are the words in which a plan explains a change.
func inputs(u project.Unit, rt RuntimeFacts, img PlannedImage, c code, sources []string, commandBuild, layout string) []Input {
	if img.Engine == EngineImage {
		return []Input{{"builder", sumOf("none", u.Build.Image)}}
	}
	list := []Input{
		{inputLayout, sumOf(layout)},
		{inputRuntime, u.Runtime},
		{inputBase, sumOf(or(img.Base[strings.LastIndex(img.Base, "@")+1:], rt.Base))},
		{inputAdapter, rt.Adapter},
		{inputCode, c.shared},
	}
	for _, dir := range sources {
		list = append(list, Input{inputCodeOf + dir, c.own[dir]})
	}
	for _, f := range []string{img.Lock, manifests[rt.Language]} {
		if c.sums[f] != "" {
			list = append(list, Input{f, c.sums[f]})
		}
	}
	b := u.Build
	// Build images take part only where they run: the project's, where there is
	// a command; the runtime's, where a package manager has to install. Others
	// are not rebuilt for a new build image.
	var builds []string
	if rt.Installs && img.Lock != "" && img.Engine == EngineLayer {
		builds = append(builds, rt.Build)
	}
	if b.Command != "" || b.Install != "" {
		if !slices.Contains(builds, commandBuild) {
			builds = append(builds, commandBuild)
		}
	}
	if img.Engine == EngineDockerfile && c.onBuildImage[b.Dockerfile] && !slices.Contains(builds, rt.Build) {
		builds = append(builds, rt.Build)
	}
	if len(builds) > 0 {
		list = append(list, Input{inputBuildImage, sumOf(builds...)})
	}
	env := make([]string, 0, len(b.Env))
	for k, v := range b.Env {
		env = append(env, k+"\x00"+v)
	}
	slices.Sort(env)
	if b.Command != "" || b.Install != "" {
		list = append(list, Input{"build command", sumOf(append([]string{b.Install, b.Command, b.Output}, env...)...)})
	}
	if len(b.Secrets) > 0 { // their names alone: another value is no other input
		list = append(list, Input{"build secrets", sumOf(b.Secrets...)})
	}
	if b.Builder != "" && b.Builder != "layer" {
		list = append(list, Input{"builder", sumOf(b.Builder, b.Dockerfile, b.Image)})
	}
	if b.Builder == "dockerfile" {
		if len(env) > 0 {
			list = append(list, Input{"build arguments", sumOf(env...)})
		}
		// The instructions take part also when `package` leaves them out.
		for _, f := range dockerfiles(b.Dockerfile) {
			if f == b.Dockerfile || c.sums[f] != "" {
				list = append(list, Input{f, c.sums[f]})
			}
		}
	}
	if f, ok := appOf(u); ok && b.Builder != "dockerfile" {
		list = append(list, Input{"start command", sumOf(f.Handler, c.sums[procfile])})
	}
	if len(u.Layers) > 0 {
		var parts []string
		for _, l := range u.Layers {
			parts = append(parts, l, rt.Layers[builtInName(l)])
		}
		list = append(list, Input{"layers", sumOf(parts...)})
	}
	return list
}

// lockFiles decide a language's dependency layer, together with manifests.
// They take part wherever they are, also when `package` leaves them out.
var (
	lockFiles = map[string][]string{"node": {"package-lock.json", "pnpm-lock.yaml", "yarn.lock"}, "python": {"requirements.txt"}}
	manifests = map[string]string{"node": "package.json"}
	kinds     = map[string]string{
		"package-lock.json": builder.KindNPM, "pnpm-lock.yaml": builder.KindPNPM, "yarn.lock": builder.KindYarn, "requirements.txt": builder.KindPip,
	}
)

// lockOf is the lock file that counts: the first of the language's that is
// there; empty for none.
func lockOf(language string, there func(string) bool) string {
	for _, f := range lockFiles[language] {
		if there(f) {
			return f
		}
	}
	return ""
}

// builtInName is NAME of builtin:NAME.
func builtInName(layer string) string { return strings.TrimPrefix(layer, "builtin:") }

// sumOf hashes parts so that no two different lists collide.
func sumOf(parts ...string) string {
	s := newSummer()
	for _, p := range parts {
		s.add(p)
	}
	return s.sum()
}

// summer is [sumOf] for a list that comes part by part.
type summer struct {
	hash hash.Hash
	buf  []byte
}

func newSummer() *summer { return &summer{hash: sha256.New()} }

// add adds one part, which may be given in pieces.
func (s *summer) add(pieces ...string) {
	size := 0
	for _, p := range pieces {
		size += len(p)
	}
	s.buf = append(strconv.AppendInt(s.buf[:0], int64(size), 10), ':')
	for _, p := range pieces {
		s.buf = append(s.buf, p...)
	}
	s.buf = append(s.buf, ',')
	s.hash.Write(s.buf)
}

func (s *summer) sum() string { return hex.EncodeToString(s.hash.Sum(nil)) }

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
	fmt.Fprintf(&b, "%s in %s: %s in %s\n", p.Service, p.Environment, count(len(p.Images), "image"), p.Repository)
	for _, i := range p.Images {
		fmt.Fprintf(&b, "  %-6s %-20s for %s: %s\n", i.Action, i.Name, strings.Join(i.Units, ", "), i.Why)
		fmt.Fprintf(&b, "         engine %s (%s), %s, key %.12s\n", i.Engine, i.EngineWhy, count(len(p.Shared)+len(i.Files), "file"), i.Key)
	}
	for _, row := range p.findings() {
		fmt.Fprintf(&b, "  %s\n", strings.Join(row, " "))
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "  note: %s\n", n)
	}
	return b.String()
}
