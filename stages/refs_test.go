package stages

import (
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/project"
)

// Everything that a unit asks of the cluster arrives in its Spec.
func TestSpecOfEverything(t *testing.T) {
	p := parse(t, `version: 1
service: shop
provider:
  runtime: nodejs18
  memory: 1Gi
  cpu: "2"
  timeout: 90s
  initTimeout: 20s
  idleTimeout: 5s
  concurrency: 7
  network: internal
  environment: {LOG: info}
  secrets: {TOKEN: shop/token, CA: {secret: certs, key: ca.pem, path: /etc/shop/ca.pem}}
  config: {LIMIT: limits/max}
  scale: {min: 2, max: 9, target: 12.5, metric: rps}
functions: {a: {handler: a.handler}}
`)
	image, err := name.NewDigest("registry.example/shop/nodejs18@sha256:" + strings.Repeat("a", 64))
	if err != nil {
		t.Fatal(err)
	}
	have := map[deployer.Source]string{"secret/shop": "3", "secret/certs": "4", "config/limits": "5", "secret/other": "6"}
	got, err := specOf(p.Units[0], "key", image, have)
	if err != nil {
		t.Fatal(err)
	}
	want := deployer.Spec{
		Name: "shop-main", Unit: "main", Image: image, Key: "key", Table: got.Table, Environment: map[string]string{"LOG": "info"},
		Memory: "1Gi", CPU: "2", Concurrency: 7, Timeout: 90 * time.Second, InitTimeout: 20 * time.Second, IdleTimeout: 5 * time.Second,
		MinScale: 2, MaxScale: 9, ScaleMetric: "rps", ScaleTarget: 12.5, Internal: true,
		Secrets:  map[string]deployer.Ref{"TOKEN": {Name: "shop", Key: "token"}, "CA": {Name: "certs", Key: "ca.pem", Path: "/etc/shop/ca.pem"}},
		Config:   map[string]deployer.Ref{"LIMIT": {Name: "limits", Key: "max"}},
		Versions: map[deployer.Source]string{"secret/shop": "3", "secret/certs": "4", "config/limits": "5"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if s := fmt.Sprint(sources(p)); s != "[config/limits secret/certs secret/shop]" {
		t.Errorf("sources %s", s)
	}
	// What is new in a Spec and not asked for is not in it: a revision from
	// before keeps its name.
	plain, err := specOf(parse(t, "version: 1\nservice: shop\nprovider: {runtime: nodejs18}\nfunctions: {a: {handler: a.handler}}\n").Units[0], "key", image, have)
	if err != nil {
		t.Fatal(err)
	}
	plain.Table = ""
	if name := plain.RevisionName(1); name != "shop-main-e51064b6" {
		t.Errorf("an old unit's revision is %s now", name)
	}
}

// A rotation is a change of its own, said in the plan and made by a deploy.
func TestRotation(t *testing.T) {
	shop := newShop(independent)
	shop.yml = strings.Replace(shop.yml, "quote:  {", "quote:  {secrets: {TOKEN: shop/token}, config: {LIMIT: limits/max}, ", 1)
	before := map[deployer.Source]string{"secret/shop": "1", "config/limits": "1"}
	_, first := shop.plans(t, &deployer.State{Versions: before}, true)
	for _, c := range []struct{ now, want string }{
		{"", ""},
		{"secret/shop=2", "update quote: secret shop/token rotated"},
		{"config/limits=2", "update quote: config limits/max rotated"},
		{"secret/shop=", "update quote: secret shop/token is missing"},
		{"secret/other=2", ""},
	} {
		live := deployed(t, first)
		live.Versions = maps.Clone(before)
		if source, version, _ := strings.Cut(c.now, "="); version == "" {
			delete(live.Versions, deployer.Source(source))
		} else {
			live.Versions[deployer.Source(source)] = version
		}
		_, plan := shop.plans(t, live, true)
		if got := changes(plan); got != c.want {
			t.Errorf("%q: got %q, want %q", c.now, got, c.want)
		}
	}
	// Read under another name, or as a file.
	live := deployed(t, first)
	live.Versions = before
	shop.yml = strings.Replace(shop.yml, "config: {LIMIT: limits/max}", "config: {LIMIT: {configmap: limits, key: max, path: /etc/limit}}", 1)
	if _, plan := shop.plans(t, live, true); changes(plan) != "update quote: config LIMIT" {
		t.Errorf("got %q", changes(plan))
	}
	for _, c := range []struct{ add, want string }{
		{"scale: {target: 60}", "update quote: setting scale.target: none → 60"},
		{"scale: {metric: rps}", "update quote: setting scale.metric: concurrency → rps"},
		{"idleTimeout: 5s", "setting idleTimeout: none → 5s"},
		{"network: internal", "setting network: public → internal"},
	} {
		shop := newShop(independent)
		_, first := shop.plans(t, nil, true)
		if strings.HasPrefix(c.want, "update") {
			shop.yml = strings.Replace(shop.yml, "quote:  {", "quote:  {"+c.add+", ", 1)
		} else {
			shop.yml = strings.Replace(shop.yml, "{runtime: nodejs18,", "{runtime: nodejs18, "+c.add+",", 1)
		}
		if _, plan := shop.plans(t, deployed(t, first), true); !strings.Contains(changes(plan), c.want) {
			t.Errorf("%s: got %q, want %q", c.add, changes(plan), c.want)
		}
	}
}

// What works elsewhere and not here is refused with its place.
func TestRefusedHere(t *testing.T) {
	const file = `version: 1
service: shop
provider:
  runtime: nodejs18
  network: internal
  secrets: {TOKEN: shop/token}
functions:
  a: {handler: a.handler, standalone: true, scale: {min: 1, metric: cpu}}
  b: {handler: b.handler, standalone: true, config: {LIMIT: limits/max}}
`
	refused := func(clusters string) string {
		r := asker(t, "test", map[string]string{"faas.yml": file, "a.js": "", "b.js": ""})
		r.Bundle.FS.(fstest.MapFS)["clusters.yml"] = &fstest.MapFile{Data: []byte("version: 1\nclusters:\n  here: " + clusters + "\nenvironments: {test: {cluster: here}}\n")}
		plans, err := r.Plan(t.Context(), Ask{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range plans.Refused {
			got = append(got, fmt.Sprintf("%d:%d %s: %s", p.Line, p.Column, p.Path, p.Why))
			if p.Next == "" || p.Code != project.CodeConflict {
				t.Errorf("%s: code %s, next %q", p.Path, p.Code, p.Next)
			}
		}
		return strings.Join(got, "\n")
	}
	for clusters, want := range map[string]string{
		"{kind: knative, registry: r.example/x, features: [hpa]}": "",
		"{kind: knative, registry: r.example/x}":                  "8:69 functions.a.scale.metric: cluster here does not scale by CPU",
		"{kind: local, registry: r.example/x, endpoint: /run/l}": `5:12 provider.network: the local target has no inside that hides a unit
6:12 provider.secrets: the local target has no secrets
9:53 functions.b.config: the local target has no config maps`,
	} {
		if got := refused(clusters); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", clusters, got, want)
		}
	}
}

// A new bundle's default for scale alone is another revision of the image that
// runs: nothing is built.
func TestScaleOfANewBundle(t *testing.T) {
	plan := func(most int, observed *deployer.State) (BuildPlan, DeployPlan) {
		t.Helper()
		p, err := project.Parse([]byte(newShop(aggregated).yml), project.Options{
			Environment: "test", Runtimes: []project.RuntimeInfo{{Name: "nodejs18", Language: "node"}},
			Policy: project.Policy{Tiers: map[project.Tier]project.TierPolicy{project.Standard: {Defaults: project.Defaults{MaxScale: most}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		build, err := PlanBuild(buildInput(p, "functions/list/index.js=list"))
		if err != nil {
			t.Fatal(err)
		}
		images := map[string]name.Digest{}
		for _, i := range build.Images {
			images[i.Name] = digestFor(t, i)
		}
		deploy, err := PlanDeploy(DeployInput{Scope: deployer.Scope{Service: "shop", Environment: "test", Owner: "1"}, Project: p, Build: build, Images: images, Observed: observed})
		if err != nil {
			t.Fatal(err)
		}
		return build, deploy
	}
	builtFirst, first := plan(20, &deployer.State{})
	builtSecond, second := plan(10, deployed(t, first))
	if builtFirst.Images[0].Key != builtSecond.Images[0].Key {
		t.Error("the bounds are part of the image")
	}
	if got := changes(second); got != "update main: setting scale.max: 20 → 10" {
		t.Errorf("got %q", got)
	}
	if a, b := first.Changes[0].To, second.Changes[0].To; a == b || b == "" {
		t.Errorf("revisions %s and %s", a, b)
	}
}
