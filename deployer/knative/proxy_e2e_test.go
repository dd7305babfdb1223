//go:build e2e

package knative_test

import (
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
	clusterfiles "github.com/kuroko-faas/kuroko/deployer/knative/cluster"
)

// The lab's gateway inside the cluster.
const innerGateway = "knative-serving/kingress-local"

// A job that reaches no unit by its name proves a release through the API
// server, with the rendered account and nothing more. Without the gateway's
// name it says what it could not see.
func TestRouteOutOfReach(t *testing.T) {
	c := lab(t)
	one := image(t, "one")
	setup, ns, owned := rendered(t)
	setup.IngressService, setup.Images = innerGateway, []string{registry(t) + "/"}
	c.apply(t, setup)
	t.Cleanup(func() { c.dropNamespaces(t, setup.System, ns, owned) })
	t.Cleanup(func() { c.dropRouteRight(t, "knative-serving", ns, owned) })
	account, scope := c.account(t, ns, clusterfiles.DeployRole), scopeIn(ns)
	out := func(pipeline int64, service string, u deployer.Spec) (deployer.Outcome, string) {
		t.Helper()
		k, err := knative.New(knative.Config{REST: account, IngressService: service})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the roles count", func() bool { return k.Preflight(t.Context(), scope, nil) == nil })
		o, said := quick(), ""
		o.Progress = func(e deployer.Event) { said += e.Text + "\n" }
		got, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: pipeline, Units: []deployer.Spec{u}}, o)
		if err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		return got, said
	}
	u := unit("main", one)
	u.CPU, u.MaxScale = "100m", 1
	if got, said := out(1, innerGateway, u); !got.Verified || !strings.Contains(said, "the route answers with "+u.RevisionName(1)+", asked through the API server's proxy and the gateway inside the cluster; the way from outside was not seen") {
		t.Errorf("verified %v\n%s\nwant the route's answer, and by which way", got.Verified, said)
	}
	if got, said := out(2, "", round(u, 2)); got.Verified || strings.Contains(said, "the route answers") || !strings.Contains(said, "is unverified: the route can't be asked") {
		t.Errorf("verified %v\n%s\nwant unverified, and why", got.Verified, said)
	}
	u.Internal = true
	if got, said := out(3, innerGateway, u); !got.Verified {
		t.Errorf("an internal unit: not verified\n%s", said)
	}
}
