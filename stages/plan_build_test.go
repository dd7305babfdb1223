package stages

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
)

const twoFunctions = `version: 1
service: shop
provider: {runtime: nodejs18}
deploy: {mode: independent}
functions:
  list:  {handler: list/index.handler, source: list, events: [{http: {path: /list}}]}
  quote: {handler: quote/index.handler, source: quote, events: [{http: {path: /quote}}]}
`

func parse(t *testing.T, text string) *project.Project {
	t.Helper()
	p, err := project.Parse([]byte(text), project.Options{Environment: "test", Runtimes: []project.RuntimeInfo{{Name: "nodejs18", Language: "node"}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func buildInput(p *project.Project, files ...string) BuildInput {
	in := BuildInput{
		Project: p, Environment: "test", Commit: "c0ffee", Bundle: "sha256:b", Repository: "registry.example/shop", Layout: "v1",
		Runtimes: map[string]RuntimeFacts{"nodejs18": {Language: "node", Base: "sha256:base", Build: "sha256:build", Adapter: "adapter"}},
	}
	for _, f := range files {
		name, text, _ := strings.Cut(f, "=")
		in.Files = append(in.Files, worktree.File{Path: name, Sum: sumOf(text)})
	}
	return in
}

func keys(t *testing.T, in BuildInput) map[string]string {
	t.Helper()
	plan, err := PlanBuild(in)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, i := range plan.Images {
		for _, u := range i.Units {
			out[u] = i.Key
		}
	}
	return out
}

func changed(a, b map[string]string) string {
	var out []string
	for _, u := range []string{"list", "quote"} {
		if a[u] != b[u] {
			out = append(out, u)
		}
	}
	return strings.Join(out, " ")
}

// What changes decides which images are built: exactly the users of it.
func TestBuildPlanKeys(t *testing.T) {
	p := parse(t, twoFunctions)
	base := func() BuildInput {
		return buildInput(p, "list/index.js=a", "package-lock.json=l", "package.json=p", "quote/index.js=b", "shared.js=s")
	}
	before := keys(t, base())
	tests := map[string]struct {
		change func(*BuildInput)
		want   string
	}{
		"nothing":         {func(*BuildInput) {}, ""},
		"one function":    {func(in *BuildInput) { in.Files[3].Sum = sumOf("new") }, "quote"},
		"a shared file":   {func(in *BuildInput) { in.Files[4].Sum = sumOf("new") }, "list quote"},
		"the lock file":   {func(in *BuildInput) { in.Files[1].Sum = sumOf("new") }, "list quote"},
		"only the bundle": {func(in *BuildInput) { in.Bundle = "sha256:other" }, ""},
		"only the commit": {func(in *BuildInput) { in.Commit = "decaf" }, ""},
		"base image":      {func(in *BuildInput) { r := in.Runtimes["nodejs18"]; r.Base = "sha256:new"; in.Runtimes["nodejs18"] = r }, "list quote"},
		"adapter":         {func(in *BuildInput) { r := in.Runtimes["nodejs18"]; r.Adapter = "new"; in.Runtimes["nodejs18"] = r }, "list quote"},
		"build image unused": {func(in *BuildInput) {
			r := in.Runtimes["nodejs18"]
			r.Build = "sha256:new"
			in.Runtimes["nodejs18"] = r
		}, ""},
		"build image of an installer": {func(in *BuildInput) {
			r := in.Runtimes["nodejs18"]
			r.Installs = true
			in.Runtimes["nodejs18"] = r
		}, "list quote"},
		"our layer format": {func(in *BuildInput) { in.Layout = "v2" }, "list quote"},
		"a renamed file":   {func(in *BuildInput) { in.Files[4].Path = "shared2.js" }, "list quote"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := base()
			tt.change(&in)
			if got := changed(before, keys(t, in)); got != tt.want {
				t.Errorf("changed %q, want %q", got, tt.want)
			}
		})
	}
}

// A Dockerfile's image depends on what its arguments are given, and on the
// build image where it names that.
func TestDockerfileKeys(t *testing.T) {
	in := func(build string, change func(*BuildInput)) BuildInput {
		p := parse(t, strings.Replace(twoFunctions, "deploy:", "build: "+build+"\ndeploy:", 1))
		in := buildInput(p, "Dockerfile=d", "list/index.js=a", "quote/index.js=b")
		change(&in)
		return in
	}
	same := func(*BuildInput) {}
	newBuildImage := func(in *BuildInput) {
		r := in.Runtimes["nodejs18"]
		r.Build = "sha256:new"
		in.Runtimes["nodejs18"] = r
	}
	onBuildImage := func(in *BuildInput) { in.OnBuildImage = map[string]bool{"Dockerfile": true} }
	const plain, one = "{builder: dockerfile}", "{builder: dockerfile, env: {A: \"1\"}}"
	tests := map[string]struct {
		before, after BuildInput
		want          string
	}{
		"nothing":             {in(one, same), in(one, same), ""},
		"an argument":         {in(plain, same), in(one, same), "list quote"},
		"another value":       {in(one, same), in("{builder: dockerfile, env: {A: \"2\"}}", same), "list quote"},
		"build image unused":  {in(plain, same), in(plain, newBuildImage), ""},
		"build image as FROM": {in(plain, onBuildImage), in(plain, func(in *BuildInput) { onBuildImage(in); newBuildImage(in) }), "list quote"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := changed(keys(t, tt.before), keys(t, tt.after)); got != tt.want {
				t.Errorf("changed %q, want %q", got, tt.want)
			}
		})
	}
}

func TestUnitsShareAnImage(t *testing.T) {
	p := parse(t, strings.ReplaceAll(strings.ReplaceAll(twoFunctions, "source: list, ", ""), "source: quote, ", ""))
	plan, err := PlanBuild(buildInput(p, "list/index.js=a", "quote/index.js=b"))
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Images) != 1 || plan.Images[0].Name != "nodejs18" || strings.Join(plan.Images[0].Units, " ") != "list quote" {
		t.Errorf("got %+v", plan.Images)
	}
}

func TestExistingImageIsReused(t *testing.T) {
	p := parse(t, twoFunctions)
	in := buildInput(p, "list/index.js=a", "quote/index.js=b")
	in.Exists = func(image, key string) string {
		if image == "nodejs18-quote" {
			return "sha256:there"
		}
		return ""
	}
	plan, err := PlanBuild(in)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, i := range plan.Images {
		got[i.Name] = i.Action + " " + i.Digest
	}
	if got["nodejs18-list"] != "build " || got["nodejs18-quote"] != "reuse sha256:there" {
		t.Errorf("got %v", got)
	}
}

// Equal inputs, equal plan, byte for byte.
func TestBuildPlanIsPure(t *testing.T) {
	p := parse(t, twoFunctions)
	var first string
	for range 5 {
		plan, err := PlanBuild(buildInput(p, "list/index.js=a", "quote/index.js=b"))
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(plan)
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = string(data)
		} else if first != string(data) {
			t.Fatalf("%s\n%s", first, data)
		}
	}
}

// Of several lock files the first counts, and another one is ordinary code.
func TestLockFileThatCounts(t *testing.T) {
	p := parse(t, twoFunctions)
	plan := func(files ...string) BuildPlan {
		t.Helper()
		out, err := PlanBuild(buildInput(p, files...))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, c := range []struct {
		files []string
		want  string
	}{
		{[]string{"package-lock.json=l", "package.json=p", "pnpm-lock.yaml=q", "yarn.lock=y"}, "package-lock.json"},
		{[]string{"package.json=p", "pnpm-lock.yaml=q", "yarn.lock=y"}, "pnpm-lock.yaml"},
		{[]string{"package.json=p", "yarn.lock=y"}, "yarn.lock"},
		{[]string{"package.json=p"}, ""},
	} {
		if got := plan(c.files...).Images[0].Lock; got != c.want {
			t.Errorf("%v: lock file %q, want %q", c.files, got, c.want)
		}
	}
	before := plan("package-lock.json=l", "package.json=p", "yarn.lock=y").Images[0].Key
	if after := plan("package-lock.json=l", "package.json=p", "yarn.lock=z").Images[0].Key; after == before {
		t.Error("a yarn.lock that is code changed, and the key did not")
	}
}
