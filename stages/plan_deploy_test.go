package stages

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/worktree"
)

// shopTree is a repository as the planner sees it.
type shopTree struct {
	yml   string
	files map[string]string
	facts RuntimeFacts
}

func newShop(mode string) shopTree {
	return shopTree{
		yml: `version: 1
service: shop
provider: {runtime: nodejs18, environment: {LOG_LEVEL: info}}
` + mode + `
functions:
  list:   {handler: functions/list/index.handler, source: functions/list, events: [{http: {path: /list}}]}
  detail: {handler: functions/detail/index.handler, source: functions/detail, events: [{http: {path: /detail}}]}
  quote:  {handler: functions/quote/index.handler, source: functions/quote, events: [{http: {path: /quote}}]}
`,
		files: map[string]string{
			"functions/list/index.js": "list", "functions/detail/index.js": "detail", "functions/quote/index.js": "quote",
			"lib/shared.js": "shared", "README.md": "text", "package.json": "{}", "package-lock.json": "lock",
		},
		facts: RuntimeFacts{Language: "node", Base: "sha256:base", Build: "sha256:build", Adapter: "adapter", Versions: map[string]string{inputAdapter: "1.4"}},
	}
}

func (s shopTree) with(change func(*shopTree)) shopTree {
	files := map[string]string{}
	for k, v := range s.files {
		files[k] = v
	}
	s.files = files
	change(&s)
	return s
}

// digestFor is an image whose digest depends on the key alone.
func digestFor(t *testing.T, img PlannedImage) name.Digest {
	t.Helper()
	ref, err := name.NewDigest("registry.example/shop/" + img.Name + "@sha256:" + img.Key)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// plans makes both plans against what is observed. built says whether the
// images exist.
func (s shopTree) plans(t *testing.T, observed *deployer.State, built bool) (BuildPlan, DeployPlan) {
	t.Helper()
	p := parse(t, s.yml)
	in := buildInput(p)
	for f := range s.files {
		in.Files = append(in.Files, worktree.File{Path: f, Sum: sumOf(s.files[f])})
	}
	slices.SortFunc(in.Files, func(a, b worktree.File) int { return strings.Compare(a.Path, b.Path) })
	in.Runtimes["nodejs18"] = s.facts
	if observed != nil {
		in.Live = observed.Live
	}
	build, err := PlanBuild(in)
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]name.Digest{}
	if built {
		for _, i := range build.Images {
			images[i.Name] = digestFor(t, i)
		}
	}
	deploy, err := PlanDeploy(DeployInput{
		Job: ci.Job{}, Scope: deployer.Scope{Service: "shop", Environment: "test", Owner: "1"},
		Project: p, Build: build, Images: images, Observed: observed, Unbuilt: !built,
	})
	if err != nil {
		t.Fatal(err)
	}
	return build, deploy
}

// deployed is the state after the plan was applied.
func deployed(t *testing.T, p DeployPlan) *deployer.State {
	t.Helper()
	rel := &deployer.Release{ID: "r1"}
	s := &deployer.State{Head: deployer.Head{Live: "r1"}, Live: rel}
	for _, u := range p.Deploy.Units {
		rev := u.RevisionName(1)
		rel.Units = append(rel.Units, deployer.Live{Unit: u.Unit, Revision: rev, Image: u.Image.String(), Spec: u, Inputs: p.Deploy.Inputs[u.Name]})
		s.Services = append(s.Services, deployer.Service{
			Name: u.Name, Unit: u.Unit, Template: rev, Traffic: []deployer.Share{{Revision: rev, Percent: 100}},
			Revisions: []deployer.Observed{{Name: rev, Hash: u.Hash(), Phase: deployer.Ready}},
		})
	}
	// What a target returns went through JSON.
	data, err := json.Marshal(rel)
	if err != nil {
		t.Fatal(err)
	}
	*rel = deployer.Release{}
	if err := json.Unmarshal(data, rel); err != nil {
		t.Fatal(err)
	}
	return s
}

func changes(p DeployPlan) string {
	var out []string
	for _, c := range p.Changes {
		if c.Action != Unchanged {
			out = append(out, fmt.Sprintf("%s %s: %s", c.Action, c.Unit, c.Why))
		}
	}
	return strings.Join(out, "\n")
}

const (
	independent = "deploy: {mode: independent}"
	aggregated  = ""
	mixed       = "aggregation: {front: {functions: [list, detail]}}"
)

// What is edited decides what changes, and the plan says it in the words of
// whoever edited it.
func TestCauses(t *testing.T) {
	set := func(file, text string) func(*shopTree) { return func(s *shopTree) { s.files[file] = text } }
	yml := func(old, new string) func(*shopTree) {
		return func(s *shopTree) {
			if !strings.Contains(s.yml, old) {
				panic("the file has no " + old)
			}
			s.yml = strings.Replace(s.yml, old, new, 1)
		}
	}
	mode := func(m string) func(*shopTree) { return func(s *shopTree) { s.yml = newShop(m).yml } }
	without := func(s *shopTree) {
		yml("  quote:  {handler: functions/quote/index.handler, source: functions/quote, events: [{http: {path: /quote}}]}\n", "")(s)
		delete(s.files, "functions/quote/index.js")
	}
	tests := []struct {
		name   string
		from   string // mode
		change func(*shopTree)
		want   string
	}{
		{"nothing", independent, func(*shopTree) {}, ""},
		{"a README", independent, set("README.md", "new"), ""},
		{"a test", independent, set("functions/list/index.test.js", "new"), ""},
		{"code, independent", independent, set("functions/quote/index.js", "new"), "update quote: code of functions/quote"},
		{"a new file, independent", independent, set("functions/quote/more.js", "new"), "update quote: code of functions/quote"},
		{"code, aggregated", aggregated, set("functions/quote/index.js", "new"), "update main: code of functions/quote"},
		{"code, mixed", mixed, set("functions/list/index.js", "new"), "update front: code of functions/list"},
		{"code of the rest, mixed", mixed, set("functions/quote/index.js", "new"), "update main: code of functions/quote"},
		{"shared code, independent", independent, set("lib/shared.js", "new"), "update list: shared code\nupdate detail: shared code\nupdate quote: shared code"},
		{"shared code, mixed", mixed, set("lib/shared.js", "new"), "update main: shared code\nupdate front: shared code"},
		{"lock file", mixed, set("package-lock.json", "new"), "update main: package-lock.json\nupdate front: package-lock.json"},
		{"no lock file", aggregated, func(s *shopTree) { delete(s.files, "package-lock.json") }, "update main: shared code, package-lock.json removed"},
		{"adapter", mixed, func(s *shopTree) { s.facts.Adapter = "new" }, "update main: platform: adapter\nupdate front: platform: adapter"},
		{"adapter with another version", mixed, func(s *shopTree) {
			s.facts.Adapter, s.facts.Versions = "new", map[string]string{inputAdapter: "1.5", inputBase: "12.3"}
		}, "update main: platform: adapter 1.4 → 1.5\nupdate front: platform: adapter 1.4 → 1.5"},
		{"another version of the same", mixed, func(s *shopTree) { s.facts.Versions = map[string]string{inputAdapter: "1.5"} }, ""},
		{"base image", aggregated, func(s *shopTree) { s.facts.Base = "sha256:new" }, "update main: platform: base image"},
		{"build image, unused", aggregated, func(s *shopTree) { s.facts.Build = "sha256:new" }, ""},
		{"a setting of one", independent, yml("source: functions/quote,", "source: functions/quote, memory: 512Mi,"), "update quote: setting memory: 256Mi → 512Mi"},
		{"settings of all", aggregated, yml("runtime: nodejs18,", "runtime: nodejs18, memory: 1Gi, timeout: 5s, concurrency: 7, scale: {min: 1, max: 3},"),
			"update main: setting memory: 256Mi → 1Gi, setting timeout: 1m → 5s, setting concurrency: 100 → 7, setting scale.min: 0 → 1, setting scale.max: 20 → 3"},
		{"a variable", aggregated, yml("LOG_LEVEL: info", "LOG_LEVEL: debug"), "update main: environment LOG_LEVEL"},
		{"a variable of one", aggregated, yml("source: functions/quote,", "source: functions/quote, environment: {RATE: fast},"), "update main: environment RATE"},
		{"a route", aggregated, yml("path: /quote", "path: /price"), "update main: routes of quote"},
		{"a handler", aggregated, yml("quote/index.handler", "quote/index.other"), "update main: handler of quote: functions/quote/index.handler → functions/quote/index.other"},
		{"code and setting", independent, func(s *shopTree) {
			s.files["functions/quote/index.js"] = "new"
			s.yml = strings.Replace(s.yml, "source: functions/quote,", "source: functions/quote, memory: 512Mi,", 1)
		}, "update quote: code of functions/quote, setting memory: 256Mi → 512Mi"},
		{"a function less, independent", independent, without,
			"remove quote: function quote removed from faas.yml"},
		{"a function less, aggregated", aggregated, without,
			"update main: function quote removed from faas.yml"},
		{"a function more", independent, func(s *shopTree) {
			s.files["functions/new/index.js"] = "new"
			s.yml += "  new: {handler: functions/new/index.handler, source: functions/new}\n"
		}, "create new: function new added"},
		{"to aggregated", independent, mode(aggregated),
			"move main: function list moved here from list, function detail moved here from detail, function quote moved here from quote\n" +
				"remove list: function list moved to main\nremove detail: function detail moved to main\nremove quote: function quote moved to main"},
		{"out of the aggregate", aggregated, mode(mixed),
			"update main: function list moved to front, function detail moved to front\n" +
				"move front: function list moved here from main, function detail moved here from main"},
		{"into the aggregate", mixed, mode(aggregated),
			"move main: function list moved here from front, function detail moved here from front\n" +
				"remove front: function list moved to main, function detail moved to main"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := newShop(tt.from)
			_, first := before.plans(t, &deployer.State{}, true)
			state := deployed(t, first)
			after := before.with(tt.change)
			for _, built := range []bool{true, false} {
				_, plan := after.plans(t, state, built)
				if got := changes(plan); got != tt.want {
					t.Errorf("images built %v: got\n%s\nwant\n%s", built, got, tt.want)
				}
				if plan.Changed() != (tt.want != "") || plan.RollbackTo != "r1" || plan.Observed != ObservedLive {
					t.Errorf("changed %v, rollback to %s, observed %s", plan.Changed(), plan.RollbackTo, plan.Observed)
				}
			}
		})
	}
}

// The build plan says the same, and marks what the platform changed.
func TestBuildPlanSaysWhy(t *testing.T) {
	before := newShop(independent)
	_, first := before.plans(t, &deployer.State{}, true)
	state := deployed(t, first)
	after := before.with(func(s *shopTree) { s.files["functions/quote/index.js"], s.facts.Adapter = "new", "new" })
	plan, _ := after.plans(t, state, true)
	got := map[string]string{}
	for _, i := range plan.Images {
		got[i.Name] = i.Why
		if i.Causes[len(i.Causes)-1].Kind != CausePlatform {
			t.Errorf("%s: causes %+v, want the last one the platform's", i.Name, i.Causes)
		}
	}
	want := map[string]string{
		"nodejs18-list": "platform: adapter", "nodejs18-detail": "platform: adapter", "nodejs18-quote": "code of functions/quote, platform: adapter",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Units without sources of their own all change with any file, and the plan
// says what to do about that; only when it matters.
func TestAllUnitsShareAllCode(t *testing.T) {
	shop := newShop(independent)
	for _, f := range []string{"list", "detail", "quote"} {
		shop.yml = strings.ReplaceAll(shop.yml, "source: functions/"+f+", ", "")
	}
	_, first := shop.plans(t, &deployer.State{}, true)
	state := deployed(t, first)
	build, deploy := shop.with(func(s *shopTree) { s.files["functions/quote/index.js"] = "new" }).plans(t, state, true)
	if got := changes(deploy); got != "update list: code\nupdate detail: code\nupdate quote: code" {
		t.Errorf("got\n%s", got)
	}
	if want := "all units share all code: declare functions.<fn>.source to separate them"; strings.Join(build.Notes, "") != want || !strings.Contains(build.String(), want) {
		t.Errorf("notes %q", build.Notes)
	}
	build, _ = shop.with(func(s *shopTree) { s.files["package-lock.json"] = "new" }).plans(t, state, true)
	if len(build.Notes) != 0 {
		t.Errorf("a changed lock file gives notes %q", build.Notes)
	}
}

// Without access to the cluster nobody can say what changes.
func TestNothingObserved(t *testing.T) {
	_, plan := newShop(independent).plans(t, nil, true)
	for _, c := range plan.Changes {
		if c.Action != Unknown {
			t.Errorf("%s: %s", c.Unit, c.Action)
		}
	}
	if plan.Observed != ObservedNone || !strings.Contains(plan.String(), "observed: none") {
		t.Errorf("observed %s:\n%s", plan.Observed, plan)
	}
}

// Something that happened to what runs is no change of the repository's.
func TestCauseAtTheTarget(t *testing.T) {
	shop := newShop(aggregated)
	_, first := shop.plans(t, &deployer.State{}, true)
	state := deployed(t, first)
	state.Services[0].Traffic = nil
	_, plan := shop.plans(t, state, true)
	if c := plan.Changes[0]; c.Action != Update || c.Causes[0].Kind != CauseTarget || c.Why != "traffic was changed behind our back" {
		t.Errorf("got %+v", c)
	}
	// A release made before inputs were recorded still gives a plan.
	state = deployed(t, first)
	state.Live.Units[0].Inputs = nil
	_, plan = shop.with(func(s *shopTree) { s.files["lib/shared.js"] = "new" }).plans(t, state, true)
	if got := changes(plan); got != "update main: another image than the live one" {
		t.Errorf("got %s", got)
	}
}
