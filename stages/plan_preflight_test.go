package stages

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

const twoUnits = `version: 1
service: shop
provider: {runtime: nodejs18}
deploy: {mode: independent}
functions:
  list:  {handler: list.handler, events: [{http: {path: /list}}]}
  quote: {handler: quote.handler, events: [{http: {path: /quote}}]}
`

// onCluster is an asker whose target is the cluster.
func onCluster(t *testing.T, c *deployertest.Cluster, yml string) *Runner {
	t.Helper()
	r := asker(t, "test", map[string]string{"faas.yml": yml, "list.js": "", "quote.js": "", "package.json": "{}"})
	r.World.Target = func(context.Context, bundle.Site) (Target, error) {
		return Target{Target: c, Kind: bundle.KindKnative}, nil
	}
	r.World.Now = time.Now
	return r
}

// What the target holds against a plan is in every form of it, all at once;
// of an image that is not built yet nothing is said.
func TestPreflightInThePlan(t *testing.T) {
	refuse := map[string]*deployer.Failure{
		"list":  {Code: deployer.SecretMissing, Unit: "list", Cause: "secret shop has no key token", Next: "faas secret set shop/token"},
		"quote": {Code: deployer.ImageMissing, Unit: "quote", Cause: "no such image"},
	}
	var asked []string
	cluster := &deployertest.Cluster{Behave: func(s deployer.Spec) deployertest.Behaviour {
		asked = append(asked, s.Unit+" "+s.Image.RepositoryStr())
		return deployertest.Behaviour{Refuse: refuse[s.Unit]}
	}}
	r := onCluster(t, cluster, twoUnits)
	plans, err := r.Plan(t.Context(), Ask{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(asked, ", "); got != "list faas/base/nodejs18, quote faas/base/nodejs18" {
		t.Errorf("asked about %s", got)
	}
	data, err := json.Marshal(plans)
	if err != nil {
		t.Fatal(err)
	}
	for form, text := range map[string]string{"table": plans.String(), "Markdown": plans.Markdown(), "JSON": string(data)} {
		for _, want := range []string{"secret-missing", "secret shop has no key token", "faas secret set shop/token"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q:\n%s", form, want, text)
			}
		}
		if strings.Contains(text, "no such image") {
			t.Errorf("%s speaks of an image that is not built:\n%s", form, text)
		}
	}
	if !strings.Contains(string(data), `"preflight":{"checked":true,`) {
		t.Errorf("JSON: %s", data)
	}
	if err := plans.Err(false); err != nil {
		t.Errorf("the plan fails for what only this access sees: %v", err)
	}
	if err := plans.Err(true); err == nil || !strings.Contains(err.Error(), "secret shop has no key token") {
		t.Errorf("strict: %v", err)
	}

	// With nothing against it the plan says that it was asked.
	clear(refuse)
	if plans, err = r.Plan(t.Context(), Ask{}); err != nil || !strings.Contains(plans.String(), "preflight: the target holds nothing against it") {
		t.Errorf("%v\n%s", err, plans)
	}
	// A service that is another project's is a problem, not a failed plan.
	other := onCluster(t, cluster, twoUnits)
	if _, err := deployer.Deploy(t.Context(), cluster, planOf(t, other), deployer.Options{Holder: "them"}); err != nil {
		t.Fatal(err)
	}
	r.Job.Project.ID = 7
	if plans, err = r.Plan(t.Context(), Ask{}); err != nil || plans.Deploy.Observed != ObservedNone || plans.Deploy.Preflight.Checked {
		t.Errorf("%v\n%s", err, plans)
	}
}

// planOf is a deployable plan of the runner's project, whose images have their
// key as digest.
func planOf(t *testing.T, r *Runner) deployer.Plan {
	t.Helper()
	s := prepared(t, r)
	if _, err := planDeploy(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s.deploy.Deploy
}

// prepared is the state of a deploy job.
func prepared(t *testing.T, r *Runner) *state {
	t.Helper()
	r.Log = ci.Log{W: new(bytes.Buffer), Now: time.Now}
	s := &state{Runner: r}
	build, err := s.makeBuildPlan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.plan, s.images = &build, map[string]name.Digest{}
	for _, i := range build.Images {
		s.images[i.Name] = digestFor(t, i)
	}
	return s
}

// What was planned before the lease was held may be wrong by then: the deploy
// decides again, and its log says what is otherwise.
func TestDecidedAgainUnderTheLease(t *testing.T) {
	cluster := new(deployertest.Cluster)
	first := onCluster(t, cluster, twoUnits)
	if _, err := deployer.Deploy(t.Context(), cluster, planOf(t, first), deployer.Options{Holder: "first"}); err != nil {
		t.Fatal(err)
	}
	// Two jobs plan the same change: more memory for quote.
	changed := strings.Replace(twoUnits, "quote: {", "quote: {memory: 512Mi, ", 1)
	mine, theirs := onCluster(t, cluster, changed), onCluster(t, cluster, changed)
	s := prepared(t, mine)
	if _, err := planDeploy(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := changes(*s.deploy); got != "update quote: setting memory: 256Mi → 512Mi" {
		t.Fatalf("planned %s", got)
	}
	// The other one is first.
	if _, err := deployer.Deploy(t.Context(), cluster, planOf(t, theirs), deployer.Options{Holder: "theirs"}); err != nil {
		t.Fatal(err)
	}
	if _, err := deployRelease(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	log := s.Log.W.(*bytes.Buffer).String()
	if !strings.Contains(log, "decided again under the lease: shop-quote: planned update shop-quote-") || !strings.Contains(log, "now unchanged shop-quote-") {
		t.Errorf("the log does not say what was decided otherwise:\n%s", log)
	}
	if strings.Contains(log, "shop-list: planned") {
		t.Errorf("the log names a unit that is as planned:\n%s", log)
	}

	// Without anybody in between there is nothing to say.
	again := prepared(t, onCluster(t, cluster, strings.Replace(changed, "512Mi", "300Mi", 1)))
	if _, err := planDeploy(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if _, err := deployRelease(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if log := again.Log.W.(*bytes.Buffer).String(); strings.Contains(log, "decided again") {
		t.Errorf("the log speaks of a difference:\n%s", log)
	}
}

// Names that the policy gives to others are told by the plan and refused by
// the pipeline, each at its place.
func TestReservedNames(t *testing.T) {
	r := asker(t, "test", map[string]string{"list.js": "", "quote.js": "", "faas.yml": twoUnits + `routes: {host: api.example.internal, basePath: /bff/shop}
preview: {namespace: secret-previews}
environments: {test: {namespace: kube-system}}
`})
	r.Bundle.FS.(fstest.MapFS)["policy.yml"] = &fstest.MapFile{Data: []byte(`version: 1
services: {shop: [fe/shop]}
namespaces: {kube-system: ["1"], secret-previews: ["1"]}
hosts:
  - {host: api.example.internal, basePath: /bff, owners: ["fe/**"]}
  - {host: api.example.internal, basePath: /bff/shop, owners: [fe/shop]}
`)}
	plans, err := r.Plan(t.Context(), Ask{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range plans.Reserved {
		got = append(got, p.String())
	}
	want := `line 2, column 10: service: service name "shop" is reserved for other projects by the platform's policy.yml
line 10, column 34: environment.namespace: namespace "kube-system" is reserved for other projects by the platform's policy.yml
line 8, column 16: routes.host: api.example.internal/bff/shop is not this project's in the table of hosts in the platform's policy.yml
line 9, column 22: preview.namespace: namespace "secret-previews" is reserved for other projects by the platform's policy.yml`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	for form, text := range map[string]string{"table": plans.String(), "Markdown": plans.Markdown()} {
		if strings.Count(text, "reserved for other projects") != 3 || !strings.Contains(text, "table of hosts") {
			t.Errorf("%s:\n%s", form, text)
		}
	}
	// The same place belongs to the project that the table names.
	r.Job.Project.Path, r.Job.Project.ID = "fe/shop", 1
	if plans, err = r.Plan(t.Context(), Ask{}); err != nil || len(plans.Reserved) > 0 {
		t.Errorf("%v, %v", plans.Reserved, err)
	}
}

// A function that is gone from faas.yml while its files stay: they are
// everybody's now, and the plan says so.
func TestFilesOfAFunctionThatIsGone(t *testing.T) {
	shop := newShop(independent)
	_, first := shop.plans(t, &deployer.State{}, true)
	state := deployed(t, first)
	without := func(s *shopTree) {
		s.yml = s.yml[:strings.Index(s.yml, "  quote:")]
	}
	build, deploy := shop.with(without).plans(t, state, true)
	if got := changes(deploy); got != "update list: shared code\nupdate detail: shared code\nremove quote: function quote removed from faas.yml" {
		t.Errorf("got\n%s", got)
	}
	if got := strings.Join(build.Notes, "\n"); got != "functions/quote is no function's source any more, so its files are shared by all units: remove them, or leave them out with package.exclude" {
		t.Errorf("notes: %s", got)
	}
	// With its files the note goes, and nobody else changes.
	build, deploy = shop.with(without).with(func(s *shopTree) { delete(s.files, "functions/quote/index.js") }).plans(t, state, true)
	if got := changes(deploy); got != "remove quote: function quote removed from faas.yml" || len(build.Notes) > 0 {
		t.Errorf("got %s, notes %q", got, build.Notes)
	}
}

func TestVersionsOf(t *testing.T) {
	fsys := fstest.MapFS{
		"runtimes/node/package.json": {Data: []byte(`{"version": "1.5.0"}`)},
		"runtimes/python/VERSION":    {Data: []byte("0.9\n")},
		"runtimes/java/package.json": {Data: []byte("rubbish")},
	}
	digest := "@sha256:" + strings.Repeat("a", 64)
	for _, c := range []struct {
		rt   bundle.Runtime
		want map[string]string
	}{
		{bundle.Runtime{Base: "base/nodejs18:12.5" + digest, Build: "host:5000/build/nodejs18" + digest, Adapter: "runtimes/node"}, map[string]string{inputBase: "12.5", inputAdapter: "1.5.0"}},
		{bundle.Runtime{Base: "base/python" + digest, Build: "build/python:7" + digest, Adapter: "runtimes/python"}, map[string]string{inputBuildImage: "7", inputAdapter: "0.9"}},
		{bundle.Runtime{Base: "base/java" + digest, Adapter: "runtimes/java"}, map[string]string{}},
		{bundle.Runtime{Base: "base/app" + digest}, map[string]string{}},
	} {
		got := versionsOf(fsys, c.rt)
		if a, b := mustJSON(t, got), mustJSON(t, c.want); a != b {
			t.Errorf("%+v: got %s, want %s", c.rt, a, b)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
