//go:build api || e2e

package knative_test

import (
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
