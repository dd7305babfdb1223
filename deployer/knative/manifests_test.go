//go:build api || e2e

package knative_test

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"

	authentication "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"

	clusterfiles "github.com/kuroko-faas/kuroko/deployer/knative/cluster"
)

// rendered is a setup of two places of functions, one of which has an owner.
func rendered(t *testing.T) (clusterfiles.Setup, string, string) {
	id := strings.ToLower(rand.Text()[:8])
	free, owned := "test-"+id, "test-owned-"+id
	return clusterfiles.Setup{
		System: "test-system-" + id, IngressService: "default/inner-" + id, Image: "registry.invalid/runner@sha256:" + strings.Repeat("1", 64), Images: []string{"registry.invalid/"},
		Tiers: map[string]clusterfiles.Limits{"standard": {Memory: "128Mi", CPU: "1", MaxScale: 3}, "core": {Memory: "1Gi"}},
		Namespaces: []clusterfiles.Namespace{
			{Name: free, Tier: "standard", Readers: []clusterfiles.Subject{{Kind: "Group", Name: "developers-" + id}}},
			{Name: owned, Tier: "core", Owner: "1"},
		},
	}, free, owned
}

// apply sends rendered manifests, as kubectl apply would.
func (c cluster) apply(t *testing.T, s clusterfiles.Setup) {
	t.Helper()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	groups, err := restmapper.GetAPIGroupResources(c.kube.Discovery())
	if err != nil {
		t.Fatal(err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	dyn, err := dynamic.NewForConfig(c.rest)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.Files() {
		text, err := f.YAML()
		if err != nil {
			t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(text), "---\n") {
			var u unstructured.Unstructured
			if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			if u.Object == nil {
				continue
			}
			gvk := u.GroupVersionKind()
			m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
			if err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			var to dynamic.ResourceInterface = dyn.Resource(m.Resource)
			if u.GetNamespace() != "" {
				to = dyn.Resource(m.Resource).Namespace(u.GetNamespace())
			}
			if _, err := to.Apply(t.Context(), u.GetName(), &u, metav1.ApplyOptions{FieldManager: "test", Force: true}); err != nil {
				t.Fatalf("%s: %s %s: %v", f.Name, gvk.Kind, u.GetName(), err)
			}
		}
	}
}

// account is a client with a ServiceAccount's token and nothing else.
func (c cluster) account(t *testing.T, ns, name string) *rest.Config {
	t.Helper()
	token, err := c.kube.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), name, &authentication.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := rest.AnonymousClientConfig(c.rest)
	r.BearerToken = token.Status.Token
	return r
}

// dropNamespaces removes what apply made in a namespace; the cluster-wide
// roles and policies are the next test's too.
func (c cluster) dropNamespaces(t *testing.T, names ...string) {
	for _, ns := range names {
		if err := c.kube.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}); err != nil && t.Context().Err() == nil {
			t.Errorf("remove namespace %s: %v", ns, err)
		}
	}
}

// dropRouteRight removes what apply made in the gateway's namespace.
func (c cluster) dropRouteRight(t *testing.T, gateway string, namespaces ...string) {
	for _, ns := range namespaces {
		if err := c.kube.RbacV1().RoleBindings(gateway).Delete(context.Background(), clusterfiles.RouteRole+"-"+ns, metav1.DeleteOptions{}); err != nil {
			t.Errorf("remove the binding of %s: %v", ns, err)
		}
	}
}
