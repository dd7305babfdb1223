package cluster_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	admission "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery/fake"
	kube "k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/kuroko-faas/kuroko/deployer/knative/cluster"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// guarded is a registry with one image, behind a password.
func guarded(t *testing.T) (host string) {
	t.Helper()
	inner := registry.New()
	open := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); !open && (user != "puller" || pass != "secret") {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	host = strings.TrimPrefix(srv.URL, "http://")
	tag, err := name.NewTag(host + "/fn/unit:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, empty.Image); err != nil {
		t.Fatal(err)
	}
	open = false
	return host
}

// whole is a cluster where all is well.
func whole(host, password string) map[string]runtime.Object {
	one, holder := int32(1), "dog"
	at := metav1.NewMicroTime(now.Add(-3 * time.Second))
	deployment := func(ns, name string) runtime.Object {
		return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"app.kubernetes.io/version": "1.20.0"}}, Status: appsv1.DeploymentStatus{AvailableReplicas: one}}
	}
	settings := func(name string, data map[string]string) runtime.Object {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "knative-serving", Name: name}, Data: data}
	}
	auth := base64.StdEncoding.EncodeToString([]byte("puller:" + password))
	all := map[string]runtime.Object{
		"domain":     settings("config-domain", map[string]string{"_example": "x", "faas.example": ""}),
		"network":    settings("config-network", map[string]string{"ingress-class": "kourier.ingress.networking.knative.dev"}),
		"autoscaler": settings("config-autoscaler", nil), "features": settings("config-features", nil), "gc": settings("config-gc", nil),
		"policy":  &admission.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: cluster.Policy}},
		"binding": &admission.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: cluster.Policy}, Spec: admission.ValidatingAdmissionPolicyBindingSpec{ValidationActions: []admission.ValidationAction{admission.Deny}}},
		"dog":     deployment("kuroko-system", cluster.Watchdog),
		"lease":   &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kuroko-system", Name: "kuroko-watchdog"}, Spec: coordination.LeaseSpec{HolderIdentity: &holder, RenewTime: &at}},
		"ns":      &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "order", Labels: map[string]string{cluster.LabelManaged: "true", cluster.LabelTier: "core"}}},
		"account": &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "order", Name: "default"}, ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}}},
		"secret":  &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "order", Name: "pull"}, Data: map[string][]byte{corev1.DockerConfigJsonKey: fmt.Appendf(nil, `{"auths":{"http://%s/v2/":{"auth":%q}}}`, host, auth)}},
	}
	for _, n := range []string{"controller", "webhook", "activator", "autoscaler"} {
		all["knative "+n] = deployment("knative-serving", n)
	}
	return all
}

func examine(t *testing.T, host string, objects map[string]runtime.Object, change func(*kube.Clientset)) []cluster.Finding {
	t.Helper()
	var list []runtime.Object
	for _, o := range objects {
		list = append(list, o)
	}
	c := kube.NewClientset(list...)
	c.Discovery().(*fake.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: "v1.35.4"}
	c.Resources = []*metav1.APIResourceList{
		{GroupVersion: "coordination.k8s.io/v1", APIResources: []metav1.APIResource{{Name: "leases"}}},
		{GroupVersion: "admissionregistration.k8s.io/v1", APIResources: []metav1.APIResource{{Name: "validatingadmissionpolicies"}}},
		{GroupVersion: "serving.knative.dev/v1", APIResources: []metav1.APIResource{{Name: "services"}, {Name: "revisions"}}},
	}
	if change != nil {
		change(c)
	}
	d := cluster.Doctor{Kube: c, Domain: "faas.example", Namespaces: []string{"order"}, Image: host + "/fn/unit:1", Now: func() time.Time { return now }}
	all, err := d.Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Every single thing that is wrong is found, with a fix, and nothing else is.
func TestExamine(t *testing.T) {
	host := guarded(t)
	for _, f := range examine(t, host, whole(host, "secret"), nil) {
		if f.Level != cluster.OK || f.Fix != "" {
			t.Errorf("a whole cluster: %+v", f)
		}
	}
	set := func(key, k, v string) func(map[string]runtime.Object, *kube.Clientset) {
		return func(m map[string]runtime.Object, _ *kube.Clientset) {
			m[key].(*corev1.ConfigMap).Data = map[string]string{k: v}
		}
	}
	without := func(key string) func(map[string]runtime.Object, *kube.Clientset) {
		return func(m map[string]runtime.Object, _ *kube.Clientset) { delete(m, key) }
	}
	for what, tc := range map[string]struct {
		change func(map[string]runtime.Object, *kube.Clientset)
		check  string
		level  cluster.Level
		want   string
	}{
		"old kubernetes": {func(_ map[string]runtime.Object, c *kube.Clientset) {
			if c != nil {
				c.Discovery().(*fake.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: "v1.29.0-eks-1"}
			}
		}, "kubernetes", cluster.Fail, "older than 1.30"},
		"no knative": {func(_ map[string]runtime.Object, c *kube.Clientset) {
			if c != nil {
				c.Resources[2].APIResources = []metav1.APIResource{{Name: "revisions"}}
			}
		}, "knative api", cluster.Fail, "no services"},
		"old knative": {func(m map[string]runtime.Object, _ *kube.Clientset) {
			m["knative controller"].(*appsv1.Deployment).Labels = map[string]string{"app.kubernetes.io/version": "1.9.2"}
		}, "knative controller", cluster.Fail, "older than 1.18"},
		"no activator": {without("knative activator"), "knative activator", cluster.Fail, "no deployment"},
		"dead webhook": {func(m map[string]runtime.Object, _ *kube.Clientset) {
			m["knative webhook"].(*appsv1.Deployment).Status.AvailableReplicas = 0
		}, "knative webhook", cluster.Fail, "no pod"},
		"no domain":      {set("domain", "_example", ""), "config-domain", cluster.Fail, "no domain is set"},
		"another domain": {set("domain", "other.example", ""), "config-domain", cluster.Fail, "other.example"},
		"no ingress":     {set("network", "a", ""), "config-network", cluster.Warn, "no ingress class"},
		"never stops":    {set("autoscaler", "enable-scale-to-zero", "False"), "config-autoscaler", cluster.Warn, "never stop"},
		"no empty dirs":  {set("features", "kubernetes.podspec-volumes-emptydir", "Disabled"), "config-features", cluster.Warn, "disabled"},
		"no policy":      {without("policy"), "admission policy", cluster.Fail, "there is none"},
		"no binding":     {without("binding"), "admission policy", cluster.Fail, "bound to nothing"},
		"only warns": {func(m map[string]runtime.Object, _ *kube.Clientset) {
			m["binding"].(*admission.ValidatingAdmissionPolicyBinding).Spec.ValidationActions = []admission.ValidationAction{admission.Warn}
		}, "admission policy", cluster.Fail, "only warns"},
		"no watchdog": {without("dog"), "watchdog", cluster.Fail, "has none"},
		"never led":   {without("lease"), "watchdog", cluster.Fail, "never led"},
		"stuck watchdog": {func(m map[string]runtime.Object, _ *kube.Clientset) {
			at := metav1.NewMicroTime(now.Add(-2 * time.Minute))
			m["lease"].(*coordination.Lease).Spec.RenewTime = &at
		}, "watchdog", cluster.Fail, "nobody renews"},
		"unguarded namespace": {func(m map[string]runtime.Object, _ *kube.Clientset) { m["ns"].(*corev1.Namespace).Labels = nil }, "namespace order", cluster.Fail, "lacks the labels"},
		"lost pull secret":    {without("secret"), "registry from order", cluster.Fail, "pull"},
		"broken pull secret": {func(m map[string]runtime.Object, _ *kube.Clientset) {
			m["secret"].(*corev1.Secret).Data = map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths": hunter2`)}
		}, "registry from order", cluster.Unknown, "no docker configuration"},
		"old password": {func(m map[string]runtime.Object, _ *kube.Clientset) { m["secret"] = whole(host, "old")["secret"] }, "registry from order", cluster.Fail, "refuses"},
		"not allowed to look": {func(_ map[string]runtime.Object, c *kube.Clientset) {
			if c != nil {
				c.PrependReactor("get", "deployments", func(a ktesting.Action) (bool, runtime.Object, error) {
					if a.GetNamespace() != "kuroko-system" {
						return false, nil, nil
					}
					return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "deployments"}, "x", errors.New("no"))
				})
			}
		}, "watchdog", cluster.Unknown, "could not be read"},
	} {
		objects := whole(host, "secret")
		tc.change(objects, nil)
		all := examine(t, host, objects, func(c *kube.Clientset) { tc.change(whole(host, "secret"), c) })
		i := slices.IndexFunc(all, func(f cluster.Finding) bool { return f.Level != cluster.OK })
		if i < 0 || all[i].Check != tc.check || all[i].Level != tc.level || !strings.Contains(all[i].Text, tc.want) || all[i].Fix == "" {
			t.Errorf("%s: %+v; want %s, %s, %q and a fix", what, all, tc.check, tc.level, tc.want)
			continue
		}
		if strings.Contains(fmt.Sprint(all), "hunter2") {
			t.Errorf("%s: a secret is shown", what)
		}
		for _, f := range all[i+1:] {
			if f.Level != cluster.OK {
				t.Errorf("%s: also %+v", what, f)
			}
		}
	}
}
