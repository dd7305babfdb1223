package debian

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Kind is what an image is for.
type Kind string

// The kinds. A base is what functions run on; a build image has the same
// libraries and the tools to install dependencies; a runner is the image of
// the CI job itself.
const (
	Base   Kind = "base"
	Build  Kind = "build"
	Runner Kind = "runner"
	// BuiltIn is a layer put on bases: what its packages have and a base has
	// not. Its images are made with [Builder.BuildLayer].
	BuiltIn Kind = "layer"
)

// Recipe says what an image is made of. It is data: dockerfiles/*.yml.
type Recipe struct {
	Name string `yaml:"name" json:"name"` // base/nodejs18
	Kind Kind   `yaml:"kind" json:"kind"`
	// Title is one line for people.
	Title string `yaml:"title" json:"title"`
	// Packages are asked of apt, recommended ones left out. A version pattern
	// (nodejs=18.*) holds the major where a machine knows several.
	Packages []string `yaml:"packages" json:"packages"`
	// Without names packages that are told to apt as installed, so that
	// neither they nor what only they need come in.
	Without []string `yaml:"without" json:"without,omitempty"`
	// Drop lists path patterns (path.Match, or a folder with its content)
	// left out besides documentation and package management.
	Drop []string `yaml:"drop" json:"drop,omitempty"`
	// Links are symbolic links that maintainer scripts would have made.
	// "{arch}" in a target is Debian's architecture name.
	Links map[string]string `yaml:"links" json:"links,omitempty"`
	// NPM puts npm itself, from its tarball, on top.
	NPM *NPM `yaml:"npm" json:"npm,omitempty"`
	// Expect is checked before and after the image is made.
	Expect Expect `yaml:"expect" json:"expect"`
	// Absent lists paths that must not exist: a slim image without a shell.
	Absent []string `yaml:"absent" json:"absent,omitempty"`
	// ABI becomes the label [LabelABI]. "{version:PKG}" is the major.minor of
	// an installed package, "{arch}" Debian's architecture name.
	ABI string `yaml:"abi" json:"abi"`

	Env        map[string]string `yaml:"env" json:"env,omitempty"`
	Workdir    string            `yaml:"workdir" json:"workdir,omitempty"`
	User       string            `yaml:"user" json:"user,omitempty"` // uid:gid
	Entrypoint []string          `yaml:"entrypoint" json:"entrypoint,omitempty"`
	Cmd        []string          `yaml:"cmd" json:"cmd,omitempty"`
	Labels     map[string]string `yaml:"labels" json:"labels,omitempty"`

	// Files are copied from the folder given to the build, as a layer of
	// their own, so that changing them keeps the packages' layer.
	Files []File `yaml:"files" json:"files,omitempty"`
}

// NPM pins npm's tarball.
type NPM struct {
	Version   string `yaml:"version" json:"version"`
	Integrity string `yaml:"integrity" json:"integrity"` // sha512-<base64>
}

// Expect is what an image's name promises.
type Expect struct {
	Package string `yaml:"package" json:"package"` // nodejs
	// Program must exist and be executable.
	Program string `yaml:"program" json:"program"` // usr/bin/node
	// Major is the beginning of the package's upstream version, and the end
	// of the image's name: 18, 3.11.
	Major string `yaml:"major" json:"major"`
}

// File is a file or a folder copied into an image.
type File struct {
	From string `yaml:"from" json:"from"` // relative to the folder given
	To   string `yaml:"to" json:"to"`     // absolute
	// Optional files may be missing; the result says so.
	Optional bool `yaml:"optional" json:"optional,omitempty"`
}

// LabelABI is the image label that changes when native code built against an
// older image breaks.
const LabelABI = "abi"

const maxRecipe = 64 << 10

var (
	nameRE      = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+([._-][a-z0-9]+)*)*$`)
	packageRE   = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	wantedRE    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~*-]+)?$`)
	majorRE     = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`)
	versionRE   = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`)
	userRE      = regexp.MustCompile(`^[0-9]{1,9}:[0-9]{1,9}$`)
	nameMajorRE = regexp.MustCompile(`[0-9]+(\.[0-9]+)*$`)
	abiRE       = regexp.MustCompile(`\{([^{}]*)\}`)
)

// ParseRecipe reads one recipe, strictly: unknown and doubled keys are errors,
// and every problem is reported at once.
func ParseRecipe(data []byte) (Recipe, error) {
	if len(data) > maxRecipe {
		return Recipe{}, fmt.Errorf("larger than %d KiB", maxRecipe>>10)
	}
	var r Recipe
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&r); err != nil {
		if errors.Is(err, io.EOF) {
			return Recipe{}, errors.New("empty")
		}
		return Recipe{}, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Recipe{}, errors.New("more than one document")
	}
	return r, r.validate()
}

func (r Recipe) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !nameRE.MatchString(r.Name) {
		bad("name: %q is not an image name", r.Name)
	}
	if !slices.Contains([]Kind{Base, Build, Runner, BuiltIn}, r.Kind) {
		bad("kind: %q is none of base, build, runner, layer", r.Kind)
	}
	if len(r.Packages) == 0 {
		bad("packages: none")
	}
	for _, p := range r.Packages {
		if !wantedRE.MatchString(p) {
			bad("packages: %q is not a package name", p)
		}
	}
	for _, p := range r.Without {
		if !packageRE.MatchString(p) {
			bad("without: %q is not a package name", p)
		}
	}
	for _, p := range r.Drop {
		if _, err := path.Match(p, ""); err != nil || path.IsAbs(p) || path.Clean(p) != p {
			bad("drop: %q is not a relative path pattern", p)
		}
	}
	for from, to := range r.Links {
		if !fs.ValidPath(from) || from == "." || to == "" || !staysInside(from, to) {
			bad("links: %s: %q leaves the image", from, to)
		}
	}
	if r.Kind == BuiltIn {
		r.validateLayer(bad)
	}
	for _, p := range append([]string{r.Expect.Program}, r.Absent...) {
		if p == "" && r.Kind == BuiltIn {
			continue // a layer of data has no program
		}
		if !fs.ValidPath(p) || p == "." {
			bad("%q is not a path relative to the image's root", p)
		}
	}
	if !packageRE.MatchString(r.Expect.Package) {
		bad("expect.package: %q is not a package name", r.Expect.Package)
	}
	if r.Expect.Major == "" && r.Kind == BuiltIn {
		// Any version will do.
	} else if !majorRE.MatchString(r.Expect.Major) {
		bad("expect.major: %q is not a version", r.Expect.Major)
	} else if m := nameMajorRE.FindString(r.Name); m != r.Expect.Major && r.Kind != BuiltIn && (r.Kind != Runner || m != "") {
		bad("expect.major: %s is not the version in the name %s", r.Expect.Major, r.Name)
	}
	if r.NPM != nil {
		if !versionRE.MatchString(r.NPM.Version) {
			bad("npm.version: %q is not an exact version", r.NPM.Version)
		}
		sum, ok := strings.CutPrefix(r.NPM.Integrity, "sha512-")
		if b, err := base64.StdEncoding.DecodeString(sum); !ok || err != nil || len(b) != 64 {
			bad("npm.integrity: not sha512-<base64>")
		}
	}
	for _, m := range abiRE.FindAllStringSubmatch(r.ABI, -1) {
		if pkg, ok := strings.CutPrefix(m[1], "version:"); m[1] != "arch" && (!ok || !packageRE.MatchString(pkg)) {
			bad("abi: {%s} is none of {arch}, {version:PACKAGE}", m[1])
		}
	}
	if r.ABI == "" && r.Kind != BuiltIn {
		bad("abi: missing")
	}
	if _, ok := r.Labels[LabelABI]; ok {
		bad("labels: %q is set by the field abi", LabelABI)
	}
	if r.User != "" && !userRE.MatchString(r.User) {
		bad("user: %q is not uid:gid in numbers", r.User)
	}
	if r.Workdir != "" && (!path.IsAbs(r.Workdir) || path.Clean(r.Workdir) != r.Workdir) {
		bad("workdir: %q is not an absolute path", r.Workdir)
	}
	for k := range r.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			bad("env: %q is not a variable name", k)
		}
	}
	for _, f := range r.Files {
		if !fs.ValidPath(f.From) || f.From == "." {
			bad("files: from: %q leaves the folder", f.From)
		}
		if !path.IsAbs(f.To) || path.Clean(f.To) != f.To || f.To == "/" {
			bad("files: to: %q is not an absolute path", f.To)
		}
	}
	return errors.Join(errs...)
}

// validateLayer refuses what a layer takes from its base.
func (r Recipe) validateLayer(bad func(string, ...any)) {
	if !strings.HasPrefix(r.Name, "layer/") || strings.Count(r.Name, "/") != 1 {
		bad("name: a layer is called layer/NAME")
	}
	if r.ABI != "" || r.NPM != nil || r.User != "" || r.Workdir != "" || len(r.Entrypoint)+len(r.Cmd)+len(r.Env)+len(r.Files) > 0 {
		bad("kind layer: abi, npm, env, workdir, user, entrypoint, cmd and files are the base's")
	}
}

// LoadRecipes reads every *.yml of fsys that is a recipe, by name. Base images
// come first, the runner last: later ones may need earlier ones' digests.
func LoadRecipes(fsys fs.FS) ([]Recipe, error) {
	files, err := fs.Glob(fsys, "*.yml")
	if err != nil {
		return nil, fmt.Errorf("debian: recipes: %w", err)
	}
	var all []Recipe
	var errs []error
	from := map[string]string{}
	for _, f := range files {
		data, err := fs.ReadFile(fsys, f)
		if err != nil {
			return nil, fmt.Errorf("debian: recipes: %w", err)
		}
		r, err := ParseRecipe(data)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
			continue
		}
		if other := from[r.Name]; other != "" {
			errs = append(errs, fmt.Errorf("%s: name %s is taken by %s", f, r.Name, other))
		}
		from[r.Name] = f
		all = append(all, r)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("debian: recipes: no *.yml there: %w", fs.ErrNotExist)
	}
	rank := map[Kind]int{Base: 0, Build: 1, BuiltIn: 2, Runner: 3}
	slices.SortFunc(all, func(a, b Recipe) int {
		if d := rank[a.Kind] - rank[b.Kind]; d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all, errors.Join(errs...)
}

// staysInside tells whether a symbolic link at name (relative to the root)
// with that target names something below the root without climbing over it.
// The kernel would stop at the root; other readers of an image may not.
func staysInside(name, target string) bool {
	if strings.ContainsRune(target, 0) {
		return false
	}
	depth := strings.Count(name, "/")
	if path.IsAbs(target) {
		depth = 0
	}
	for _, part := range strings.Split(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return false
			}
		default:
			depth++
		}
	}
	return true
}
