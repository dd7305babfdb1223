package stages

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// A dependency has a flag -update already.
var update = flag.Bool("golden", false, "write what is planned into testdata")

// wholeBundle has every runtime, plugin and cluster that the documentation
// speaks of.
func wholeBundle() *bundle.Bundle {
	hex := strings.Repeat("0123456789abcdef", 4)
	b := &bundle.Bundle{
		Choice: bundle.Choice{Digest: "sha256:" + hex, Version: "1"},
		FS: fstest.MapFS{
			"clusters.yml": {Data: []byte(`version: 1
clusters:
  test-1: {kind: knative, registry: registry.example.internal/faas}
  hz-1: {kind: knative, registry: registry.example.internal/faas}
environments: {test: {cluster: test-1}, prod: {cluster: hz-1}}
`)},
			"policy.yml":                     {Data: []byte("version: 1\nhosts: [{host: api.example.internal, basePath: /bff, owners: [fe/order]}]\n")},
			"plugins/request-log/plugin.yml": {Data: []byte("x")},
		},
		Meta: bundle.Meta{Version: "1", Runtimes: map[string]bundle.Runtime{}},
	}
	for n, lang := range map[string]string{"nodejs18": "node", "python3.11": "python", "java17": "java"} {
		b.Meta.Runtimes[n] = bundle.Runtime{Language: lang, Base: "base/" + n + "@sha256:" + hex, Build: "build/" + n + "@sha256:" + hex, ABI: "1", Adapter: "runtimes/" + lang,
			Layers: map[string]string{"ffmpeg": "layer/ffmpeg/" + n + "@sha256:" + hex}}
		b.FS.(fstest.MapFS)["runtimes/"+lang+"/main"] = &fstest.MapFile{Data: []byte(lang)}
	}
	return b
}

// asker plans a repository of the given files, without cluster or registry.
func asker(t *testing.T, environment string, files map[string]string) *Runner {
	t.Helper()
	dir := t.TempDir()
	for n, text := range files {
		p := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := &Runner{Bundle: wholeBundle(), Job: ci.Job{Dir: dir, Environment: environment}}
	r.Job.Project.Path, r.Job.Project.ID = "fe/order", 4711
	r.Job.Commit.SHA = "c0ffee"
	r.World.Exists = func(context.Context, name.Repository, string) (name.Digest, bool, error) {
		return name.Digest{}, false, nil
	}
	r.World.FindMade = r.World.Exists
	r.World.Shell = func(_, command string) (string, map[string][]byte) { return command, nil }
	r.World.Target = func(context.Context, bundle.Site) (Target, error) { return Target{}, errors.New("no credentials here") }
	return r
}

// Both examples of the documentation go through both plans, and every field
// that can't be applied yet is named at its place.
func TestExamplesOfThePage(t *testing.T) {
	data, err := os.ReadFile("../docs/faas-yml.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```yaml\n(version: 1\nservice: \\{name: ([a-z-]+),.*?)```").FindAllSubmatch(data, -1)
	if len(found) != 2 {
		t.Fatalf("the page has %d examples, want 2", len(found))
	}
	for _, m := range found {
		for _, env := range []string{"test", "prod"} {
			t.Run(string(m[2])+"-"+env, func(t *testing.T) {
				r := asker(t, env, map[string]string{"faas.yml": string(m[1]), "package.json": "{}", "src/upload.py": "", "dist/list.js": ""})
				plans, err := r.Plan(t.Context(), Ask{})
				if err != nil {
					t.Fatal(err)
				}
				golden(t, string(m[2])+"-"+env+".txt", plans.String())
				golden(t, string(m[2])+"-"+env+".md", plans.Markdown())
				p, err := r.Project(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				golden(t, string(m[2])+"-"+env+"-origins.txt", OriginsText(p.Origins()))
				if err := plans.Err(false); usererr.Exit(err) != 1 || !strings.Contains(err.Error(), "not supported by this platform version yet: ") {
					t.Errorf("the plan ends with %v", err)
				}
				for _, r := range plans.Refused {
					if r.Line == 0 {
						t.Errorf("refused without a place: %s", r)
					}
				}
			})
		}
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	file = filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./stages -golden writes it); got\n%s", file, got)
	}
}

// Every field that is refused is named where it stands: the event's, not the
// function's; provider's once, not once for each function.
func TestRefusedFieldsHavePlaces(t *testing.T) {
	const file = `version: 1
service: shop
provider:
  runtime: nodejs18
  network: internal
  secrets: {TOKEN: shop/token}
routes: {auth: jwt}
functions:
  a:
    handler: a.handler
    events:
      - http: {path: /a}
      - timer: {every: 1h}
      - http:
          path: /b
          auth: none
          cors: {origins: ["*"]}
  b: {handler: b.handler, contract: web, standalone: true}
rollout: {keepWarm: 5m, strategy: direct}
`
	r := asker(t, "test", map[string]string{"faas.yml": file, "a.js": "", "b.js": ""})
	plans, err := r.Plan(t.Context(), Ask{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range plans.Refused {
		got = append(got, fmt.Sprintf("%d:%d %s", p.Line, p.Column, p.Path))
	}
	want := `7:16 routes.auth
17:17 functions.a.events[2].http.cors
18:37 functions.b.contract`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
}

// Notices fail a strict plan, with their places.
func TestStrict(t *testing.T) {
	r := asker(t, "test", map[string]string{"index.js": "", "faas.yml": `version: 1
service: shop
provider: {runtime: nodejs18}
functions: {hello: {handler: index.handler}}
rollout: {strategy: direct, steps: [{weight: 5, pause: 5m}]}
`})
	plans, err := r.Plan(t.Context(), Ask{})
	if err != nil {
		t.Fatal(err)
	}
	if err := plans.Err(false); err != nil {
		t.Errorf("not strict: %v", err)
	}
	if err := plans.Err(true); usererr.Exit(err) != 1 || !strings.Contains(err.Error(), "line 5") {
		t.Errorf("strict: %v", err)
	}
}

// What stands in Markdown can't become more than text.
func TestMarkdownIsText(t *testing.T) {
	for in, want := range map[string]string{
		"a|b": `a\|b`, "<img>": "&lt;img&gt;", "[x](http://y)": `\[x\](http://y)`, "@all": "&#64;all", "a\nb": "a b",
	} {
		if got := cell(in); got != want {
			t.Errorf("cell(%q) = %q, want %q", in, got, want)
		}
	}
}

// A registry that does not answer leaves the plan standing and says so.
func TestPlanWithoutRegistry(t *testing.T) {
	r := asker(t, "test", map[string]string{"index.js": "", "faas.yml": "version: 1\nservice: shop\nprovider: {runtime: nodejs18}\nfunctions: {hello: {handler: index.handler}}\n"})
	r.World.Exists = func(context.Context, name.Repository, string) (name.Digest, bool, error) {
		return name.Digest{}, false, errors.New("registry.example.internal: no route")
	}
	plans, err := r.Plan(t.Context(), Ask{})
	if err != nil || len(plans.Build.Images) != 1 || !strings.Contains(plans.String(), "which images exist is not known: registry.example.internal: no route") {
		t.Errorf("%v\n%s", err, plans)
	}
	if _, err := r.Plan(t.Context(), Ask{Versus: "r1"}); err == nil {
		t.Error("a comparison with a release that nobody can read gives a plan")
	}
}
