package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/stages"
)

// tree is a repository that is edited at random.
type tree struct {
	mode      string
	functions []string
	settings  map[string]string
	version   map[string]int // of each file's content
	made      int            // functions so far
}

var modes = []string{"independent", "aggregated", "mixed"}

func newTree() *tree {
	t := &tree{mode: "aggregated", settings: map[string]string{"memory": "256Mi"}, version: map[string]int{}}
	for range 3 {
		t.add()
	}
	return t
}

func (t *tree) add() string {
	t.made++
	name := fmt.Sprintf("f%d", t.made)
	t.functions = append(t.functions, name)
	return name
}

// files are the work tree.
func (t *tree) files() map[string]string {
	var b strings.Builder
	b.WriteString("version: 1\nservice: shop\nprovider:\n  runtime: nodejs18\n")
	for _, k := range slices.Sorted(maps.Keys(t.settings)) {
		fmt.Fprintf(&b, "  %s: %s\n", k, t.settings[k])
	}
	if t.mode == "independent" {
		b.WriteString("deploy: {mode: independent}\n")
	}
	b.WriteString("functions:\n")
	for i, f := range t.functions {
		alone := ""
		if t.mode == "mixed" && i%2 == 0 {
			alone = ", standalone: true"
		}
		fmt.Fprintf(&b, "  %s: {handler: functions/%s/index.handler, source: functions/%s%s, events: [{http: {path: /%s}}]}\n", f, f, f, alone, f)
	}
	files := map[string]string{
		"faas.yml":          b.String(),
		"README.md":         fmt.Sprintf("version %d\n", t.version["README.md"]),
		"lib/shared.js":     fmt.Sprintf("module.exports = %d;\n", t.version["lib/shared.js"]),
		"package.json":      `{"name": "shop", "version": "1.0.0"}`,
		"package-lock.json": fmt.Sprintf(`{"name": "shop", "version": "1.0.%d", "lockfileVersion": 3, "packages": {"": {"name": "shop", "version": "1.0.0"}}}`, t.version["package-lock.json"]),
	}
	for _, f := range t.functions {
		file := "functions/" + f + "/index.js"
		files[file] = fmt.Sprintf("const shared = require('../../lib/shared.js');\nexports.handler = async () => ({name: %q, version: %d, shared});\n", f, t.version[file])
	}
	return files
}

// edit changes one thing and says what.
func (t *tree) edit(r *rand.Rand) string {
	touch := func(file string) string { t.version[file]++; return "change " + file }
	switch r.IntN(9) {
	case 0, 1:
		return touch("functions/" + t.functions[r.IntN(len(t.functions))] + "/index.js")
	case 2:
		return touch("lib/shared.js")
	case 3:
		return touch("README.md")
	case 4:
		return touch("package-lock.json")
	case 5:
		t.mode = modes[r.IntN(len(modes))]
		return "mode " + t.mode
	case 6:
		choices := map[string][]string{
			"memory": {"256Mi", "320Mi"}, "timeout": {"10s", "20s"}, "scale": {"{max: 3}", "{max: 4}"},
			"environment": {"{LOG_LEVEL: info}", "{LOG_LEVEL: debug}"},
		}
		key := slices.Sorted(maps.Keys(choices))[r.IntN(len(choices))]
		t.settings[key] = choices[key][r.IntN(2)]
		return key + ": " + t.settings[key]
	case 7:
		if len(t.functions) < 4 {
			return "add " + t.add()
		}
		fallthrough
	default:
		if len(t.functions) == 1 {
			return "add " + t.add()
		}
		i := r.IntN(len(t.functions))
		gone := t.functions[i]
		t.functions = slices.Delete(t.functions, i, i+1)
		return "remove " + gone
	}
}

// Whatever is edited in whatever order: what the plan says is what the
// pipeline does, and afterwards the plan is empty.
func TestAnyEditsEndInAnEmptyPlan(t *testing.T) {
	l := newLab(t)
	const seed, steps = 9, 12 // every kind of edit is among them
	r := rand.New(rand.NewPCG(seed, 1))
	tree := newTree()
	l.write(tree.files())
	l.apply()
	for step := range steps {
		what := tree.edit(r)
		l.remove("functions")
		l.write(tree.files())
		planned := l.plan()
		rep := l.apply()
		t.Logf("step %d: %s: %s", step, what, summary(planned))

		if got := rep.Result.Release != planned.Deploy.RollbackTo; got != planned.Deploy.Changed() {
			t.Errorf("step %d, %s: planned %s, but release %s follows %s", step, what, summary(planned), rep.Result.Release, planned.Deploy.RollbackTo)
		}
		if strings.HasPrefix(what, "change README") && planned.Deploy.Changed() {
			t.Errorf("step %d: a README changes %s", step, summary(planned))
		}
		after := l.plan()
		if after.Deploy.Changed() || slices.ContainsFunc(after.Build.Images, func(i stages.PlannedImage) bool { return i.Action == "build" }) {
			t.Fatalf("step %d, %s: the plan afterwards is not empty:\n%s\n%s", step, what, after.Deploy, after.Build)
		}
		for _, c := range planned.Deploy.Changes {
			if c.Action != stages.Unchanged && c.Why == "" {
				t.Errorf("step %d, %s: no cause for %+v", step, what, c)
			}
		}
		for _, f := range tree.functions {
			want := fmt.Sprintf(`{"name":%q,"version":%d,"shared":%d}`, f, tree.version["functions/"+f+"/index.js"], tree.version["lib/shared.js"])
			if status, body, err := get(http.DefaultClient, l.url(rep, f)); err != nil || status != 200 || body != want {
				t.Errorf("step %d, %s: %s answers %d %s %v, want %s", step, what, f, status, body, err, want)
			}
		}
	}
}

func (l *lab) url(rep stages.Report, function string) string {
	l.t.Helper()
	for _, u := range rep.Result.URLs {
		if u.Function == function {
			return u.URL
		}
	}
	l.t.Fatalf("%s has no address in %+v", function, rep.Result.URLs)
	return ""
}

func summary(p stages.Plans) string {
	var out []string
	for _, c := range p.Deploy.Changes {
		if c.Action != stages.Action(deployer.Unchanged) {
			out = append(out, fmt.Sprintf("%s %s (%s)", c.Action, c.Unit, c.Why))
		}
	}
	if out == nil {
		return "nothing"
	}
	return strings.Join(out, ", ")
}
