package stages

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Definition is one stage as the bundle defines it: stages/<name>.yml. The
// platform adds, replaces and reorders steps here without a new runner.
type Definition struct {
	Name  string `yaml:"-"`
	Title string `yaml:"title"`
	Steps []Step `yaml:"steps"`
}

// Step is one thing to do: exactly one of Uses and Run.
type Step struct {
	// Uses names a built-in step of the runner.
	Uses string `yaml:"uses,omitempty"`
	// Run is a script in the bundle, with arguments separated by spaces.
	Run string `yaml:"run,omitempty"`
	// Title is the section's heading; built-ins bring their own.
	Title string `yaml:"title,omitempty"`
	// When is a condition over plan facts; empty means always. See [Facts].
	When string `yaml:"when,omitempty"`
}

// maxDefinition bounds a stage file; the default ones are under 1 KiB.
const maxDefinition = 64 << 10

// LoadDefinition reads stages/<name>.yml from a bundle. Unknown keys, unknown
// built-ins, scripts that the bundle lacks and conditions that don't parse are
// errors, all at once, before anything runs. builtins are the names the runner
// knows.
func LoadDefinition(bundle fs.FS, name string, builtins []string) (Definition, error) {
	file := path.Join("stages", name+".yml")
	if !fs.ValidPath(file) || strings.ContainsAny(name, "/\\") {
		return Definition{}, fmt.Errorf("%q is no stage name", name)
	}
	f, err := bundle.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Definition{}, fmt.Errorf("the bundle has no stage %q; it has: %s", name, strings.Join(StageNames(bundle), ", "))
	}
	if err != nil {
		return Definition{}, err
	}
	defer f.Close()
	dec := yaml.NewDecoder(io.LimitReader(f, maxDefinition))
	dec.KnownFields(true)
	d := Definition{Name: name}
	if err := dec.Decode(&d); err != nil {
		return Definition{}, fmt.Errorf("%s: %w", file, err)
	}
	var problems []error
	for i, s := range d.Steps {
		bad := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf("%s: step %d: %s", file, i+1, fmt.Sprintf(format, args...)))
		}
		switch {
		case (s.Uses == "") == (s.Run == ""):
			bad("needs exactly one of uses and run")
		case s.Uses != "" && !slices.Contains(builtins, s.Uses):
			bad("uses %q, which this runner does not have; it has: %s", s.Uses, strings.Join(builtins, ", "))
		case s.Run != "":
			script := strings.Fields(s.Run)[0]
			if info, err := fs.Stat(bundle, script); err != nil || !info.Mode().IsRegular() {
				bad("runs %s, which is no file of the bundle", script)
			} else if info.Mode()&0o111 == 0 {
				bad("runs %s, which is not executable", script)
			}
		}
		if _, err := parseCondition(s.When); err != nil {
			bad("when: %v", err)
		}
	}
	if len(d.Steps) == 0 {
		problems = append(problems, fmt.Errorf("%s: has no steps", file))
	}
	if d.Title == "" {
		d.Title = strings.ToUpper(name[:1]) + name[1:]
	}
	return d, errors.Join(problems...)
}

// StageNames lists the stages a bundle defines, sorted.
func StageNames(bundle fs.FS) []string {
	files, _ := fs.Glob(bundle, "stages/*.yml")
	names := make([]string, 0, len(files))
	for _, f := range files {
		names = append(names, strings.TrimSuffix(path.Base(f), ".yml"))
	}
	slices.Sort(names)
	return names
}

// Facts are what `when:` can ask: names of plan facts, true or false. The list
// is documented in docs/stages.md; a name that is not in it is an error, never
// false.
type Facts map[string]bool

// factNames are all facts there are.
var factNames = []string{
	"changed",          // the deploy plan creates, updates, moves or removes a unit
	"images-to-build",  // the build plan has an image that does not exist yet
	"merge-request",    // the pipeline belongs to a merge request
	"protected",        // the ref is protected
	"runtime-java",     // a function of this language takes part
	"runtime-node",     //
	"runtime-python",   //
	"has-build",        // faas.yml has a build command
	"has-test",         // faas.yml has a test command
	"dockerfile-build", // an image of the plan is built from a Dockerfile
}

// condition is a conjunction of facts: "has-test && !merge-request".
type condition []struct {
	fact string
	want bool
}

func parseCondition(s string) (condition, error) {
	var c condition
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	for _, part := range strings.Split(s, "&&") {
		part = strings.TrimSpace(part)
		name, negated := strings.CutPrefix(part, "!")
		name = strings.TrimSpace(name)
		if !slices.Contains(factNames, name) {
			return nil, fmt.Errorf("unknown fact %q; there are: %s (join with &&, negate with !)", name, strings.Join(factNames, ", "))
		}
		c = append(c, struct {
			fact string
			want bool
		}{name, !negated})
	}
	return c, nil
}

// unmet is the first fact that keeps c from holding, as a reason for people;
// empty when c holds.
func (c condition) unmet(f Facts) string {
	for _, t := range c {
		if f[t.fact] != t.want {
			if t.want {
				return "not " + t.fact
			}
			return t.fact
		}
	}
	return ""
}
