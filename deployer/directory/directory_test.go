package directory_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
	"github.com/kuroko-faas/kuroko/deployer/directory"
)

var scope = deployer.Scope{Service: "shop", Environment: "prod", Namespace: "shop-prod", Owner: "42"}

func open(t *testing.T) (*directory.Target, string) {
	t.Helper()
	dir := t.TempDir()
	k, err := directory.Open(directory.Config{Dir: dir, Domain: "faas.example"})
	if err != nil {
		t.Fatal(err)
	}
	return k, dir
}

func image(hex string) name.Digest {
	d, err := name.NewDigest("127.0.0.1:1/shop@sha256:" + hex + strings.Repeat("0", 64-len(hex)))
	if err != nil {
		panic(err)
	}
	return d
}

func unit(n, v string) deployer.Spec {
	return deployer.Spec{Name: "shop-" + n, Unit: n, Image: image(v), Key: "k", Table: `{"name":"` + n + `"}`, Memory: "64Mi", MaxScale: 3}
}

func options() deployer.Options {
	return deployer.Options{Holder: "test", ProbeEvery: time.Millisecond, Lease: deployer.LeaseTimes{For: 50 * time.Millisecond, Renew: 20 * time.Millisecond, Poll: 5 * time.Millisecond}}
}

func deploy(t *testing.T, k deployer.Target, n int64, units ...deployer.Spec) deployer.Outcome {
	t.Helper()
	out, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: n, Units: units}, options())
	if err != nil {
		t.Fatalf("pipeline %d: %v", n, err)
	}
	return out
}

// manifest reads what would be applied.
func manifest(t *testing.T, dir, service string) *servingv1.Service {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "shop-prod", "service-"+service+".yaml"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var s servingv1.Service
	if err := yaml.UnmarshalStrict(data, &s); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	if strings.Contains(string(data), "resourceVersion") || strings.Contains(string(data), "uid:") || strings.Contains(string(data), "status:") {
		t.Errorf("a server's own fields in\n%s", data)
	}
	return &s
}

// serves checks that the manifest describes the revision and sends it
// everything.
func serves(t *testing.T, dir string, u deployer.Spec) {
	t.Helper()
	s := manifest(t, dir, u.Name)
	if s == nil {
		t.Fatalf("no manifest of %s", u.Name)
	}
	want := u.RevisionName(1)
	if s.APIVersion != "serving.knative.dev/v1" || s.Kind != "Service" || s.Namespace != scope.Namespace || s.Labels["kuroko.dev/owner"] != "42" || s.Spec.Template.Name != want || s.Spec.Template.Spec.Containers[0].Image != u.Image.String() {
		t.Errorf("manifest of %s: %+v", u.Name, s)
	}
	if len(s.Spec.Traffic) != 1 || s.Spec.Traffic[0].RevisionName != want || *s.Spec.Traffic[0].Percent != 100 || s.Spec.Traffic[0].Tag != "" {
		t.Errorf("traffic of %s: %+v; want all to %s", u.Name, s.Spec.Traffic, want)
	}
}

func TestRecords(t *testing.T) {
	deployertest.TestRecords(t, func(t *testing.T) deployertest.Env {
		k, _ := open(t)
		return deployertest.Env{Target: k, Scope: scope, One: image("1"), Patience: time.Minute}
	})
}

// The life of a service: the folder always says what is live, in the Knative
// target's own objects, and the records do what they do everywhere.
func TestLife(t *testing.T) {
	k, dir := open(t)
	first := deploy(t, k, 1, unit("a", "1"), unit("b", "1"))
	if first.Verified || len(first.Warnings) == 0 {
		t.Error("a release that nobody has seen running counts as verified")
	}
	serves(t, dir, unit("a", "1"))
	if url := first.Units[0].URL; url != "http://shop-a.shop-prod.faas.example" {
		t.Errorf("url %s", url)
	}
	deploy(t, k, 2, unit("a", "2"))
	serves(t, dir, unit("a", "2"))
	if manifest(t, dir, "shop-b") != nil {
		t.Error("the manifest of a removed unit is there")
	}
	before := tree(t, filepath.Join(dir, "shop-prod"))
	if again := deploy(t, k, 3, unit("a", "2")); !again.NoChange {
		t.Error("a release for a pipeline that changes nothing")
	}
	if tree(t, filepath.Join(dir, "shop-prod")) != before {
		t.Error("manifests differ after a pipeline that changes nothing")
	}
	if _, err := deployer.Rollback(t.Context(), k, scope, "r1", options()); err != nil {
		t.Fatal(err)
	}
	serves(t, dir, unit("a", "1"))
	serves(t, dir, unit("b", "1"))
	// Another process, another checkout of the same folder.
	other, err := directory.Open(directory.Config{Dir: dir, Domain: "faas.example"})
	if err != nil {
		t.Fatal(err)
	}
	if h, err := other.Head(t.Context(), scope); err != nil || h.Live != "r1" || h.Held == "" {
		t.Errorf("head %+v, %v", h, err)
	}
	foreign := scope
	foreign.Owner = "43"
	if _, err := other.Head(t.Context(), foreign); !errors.Is(err, deployer.ErrForeign) {
		t.Errorf("another project: %v", err)
	}
	if err := deployer.Stop(t.Context(), other, scope, options()); err != nil {
		t.Fatal(err)
	}
	if left := tree(t, filepath.Join(dir, "shop-prod")); left != "" {
		t.Errorf("after a stop there is\n%s", left)
	}
}

// A run that dies anywhere leaves a folder that the next one ends well.
func TestDeath(t *testing.T) {
	for at := 1; ; at++ {
		k, dir := open(t)
		deploy(t, k, 1, unit("a", "1"))
		d := &deployertest.Dying{Target: k, At: at, Effect: at%2 == 0}
		_, _ = deployer.Deploy(t.Context(), d, deployer.Plan{Scope: scope, Pipeline: 2, Units: []deployer.Spec{unit("a", "2")}}, options())
		deploy(t, k, 3, unit("a", "3"))
		serves(t, dir, unit("a", "3"))
		if t.Failed() {
			t.Fatalf("died at call %d", at)
		}
		if d.Calls() < at {
			return
		}
	}
}

// What needs a live cluster is refused, and says so.
func TestRefused(t *testing.T) {
	k, _ := open(t)
	if _, err := directory.Open(directory.Config{Dir: "relative"}); err == nil {
		t.Error("a relative folder was taken")
	}
	if _, ok := deployer.Target(k).(deployer.Secrets); ok {
		t.Error("a folder offers to keep secrets")
	}
	ctx := t.Context()
	_, logs := k.Logs(ctx, scope, "s", "r", 1)
	_, start := k.StartRun(ctx, scope, unit("a", "1"), "r", nil)
	_, follow := k.FollowRun(ctx, scope, "r", nil)
	_, ask := k.Ask(ctx, scope, "s", "r", deployer.Request{})
	_, measure := k.Measure(ctx, scope, "s", "r")
	secret := unit("a", "1")
	secret.Secrets = map[string]deployer.Ref{"PASSWORD": {Name: "s", Key: "k"}}
	for what, err := range map[string]error{"logs": logs, "start": start, "follow": follow, "ask": ask, "measure": measure, "secrets": k.Preflight(ctx, scope, []deployer.Spec{secret})} {
		all := deployer.Failures(err)
		if len(all) != 1 || all[0].Code != deployer.Unable || !strings.Contains(all[0].Cause, "live cluster") || all[0].Next == "" {
			t.Errorf("%s: %v; want it refused by name", what, err)
		}
	}
}

// tree is every file below dir, with its content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(f + "\n" + string(data))
	}
	return b.String()
}
