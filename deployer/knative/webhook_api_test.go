//go:build api

package knative_test

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	review "k8s.io/api/admission/v1"
	admission "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// admit is a webhook's judgement: changes, or why not.
type admit func(*servingv1.Service) (changes []map[string]any, denial string)

// webhook makes a mutating admission webhook for the Knative Services of the
// namespace, served by this test.
func (c cluster) webhook(t *testing.T, ns string, effects admission.SideEffectClass, judge admit) {
	t.Helper()
	host := cmp.Or(os.Getenv("KUROKO_LAB_HOST"), "127.0.0.1")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.ParseIP(host)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in review.AdmissionReview
		var svc servingv1.Service
		if err := errors.Join(json.NewDecoder(r.Body).Decode(&in), json.Unmarshal(in.Request.Object.Raw, &svc)); err != nil {
			t.Error(err)
		}
		changes, denial := judge(&svc)
		out := review.AdmissionResponse{UID: in.Request.UID, Allowed: denial == ""}
		if denial != "" {
			out.Result = &metav1.Status{Message: denial}
		} else if len(changes) > 0 {
			kind := review.PatchTypeJSONPatch
			out.PatchType = &kind
			if out.Patch, err = json.Marshal(changes); err != nil {
				t.Error(err)
			}
		}
		_ = json.NewEncoder(w).Encode(review.AdmissionReview{TypeMeta: in.TypeMeta, Response: &out})
	}))
	srv.Listener.Close()
	if srv.Listener, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
		t.Fatal(err)
	}
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	fail, url := admission.Fail, srv.URL
	hooks := c.kube.AdmissionregistrationV1().MutatingWebhookConfigurations()
	_, err = hooks.Create(t.Context(), &admission.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Webhooks: []admission.MutatingWebhook{{
			Name: "platform.example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: &effects, FailurePolicy: &fail,
			ClientConfig:      admission.WebhookClientConfig{URL: &url, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}},
			Rules: []admission.RuleWithOperations{{
				Operations: []admission.OperationType{admission.Create, admission.Update},
				Rule:       admission.Rule{APIGroups: []string{"serving.knative.dev"}, APIVersions: []string{"v1"}, Resources: []string{"services"}},
			}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := hooks.Delete(ctx, ns, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	var last error
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("asked for a Service, the server says: ", last)
		}
	})
	eventually(t, "the webhook is asked", func() bool {
		probe := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: "probe", Labels: map[string]string{"probe": "1"}}}
		probe.Spec.Template.Spec.Containers = []corev1.Container{{Image: "registry.invalid/unit:1"}}
		got, err := c.serve.Services(ns).Create(t.Context(), probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		last = err
		return err != nil && strings.Contains(err.Error(), "platform.example.com") || err == nil && got.Spec.Template.Annotations["example.com/injected"] != ""
	})
}

// What a platform's webhook adds to every Service makes no unit look changed,
// and does not stand in the way of a rollback.
func TestMutatingWebhookIsNoChangeReadinessPatched(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	scope := scopeIn(ns)
	k := apiTarget(t, c.rest)
	var asked atomic.Int64
	c.webhook(t, ns, admission.SideEffectClassNone, func(s *servingv1.Service) ([]map[string]any, string) {
		asked.Add(1)
		var changes []map[string]any
		add := func(path string, v any) {
			changes = append(changes, map[string]any{"op": "add", "path": path, "value": v})
		}
		if s.Spec.Template.Annotations == nil {
			add("/spec/template/metadata", map[string]any{"annotations": map[string]string{}})
		}
		add("/spec/template/metadata/annotations/example.com~1injected", "yes")
		env := s.Spec.Template.Spec.Containers[0].Env
		if len(env) > 0 && env[len(env)-1].Name != "INJECTED" {
			add("/spec/template/spec/containers/0/env/-", map[string]string{"name": "INJECTED", "value": "by the platform"})
		}
		return changes, ""
	})
	makeReady(t, c, ns)
	do := func(pipeline int64, digest string) deployer.Outcome {
		t.Helper()
		out, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: pipeline, Units: []deployer.Spec{apiUnit(t, "main", digest), apiUnit(t, "side", "1")}},
			deployer.Options{ProbeEvery: 10 * time.Millisecond, RouteTimeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := do(1, "1")
	rev, err := c.serve.Revisions(ns).Get(t.Context(), first.Units[0].Revision, metav1.GetOptions{})
	if err != nil || rev.Annotations["example.com/injected"] != "yes" || !strings.Contains(fmt.Sprint(rev.Spec.Containers[0].Env), "INJECTED") {
		t.Fatalf("the webhook changed nothing: %v, %v", rev, err)
	}
	before := asked.Load()
	if again := do(2, "1"); !again.NoChange || asked.Load() != before {
		t.Errorf("an unchanged release: %+v, and %d writes", again.Changes, asked.Load()-before)
	}
	if second := do(3, "2"); second.Changes[0].Action != deployer.Update || second.Changes[1].Action != deployer.Unchanged {
		t.Errorf("one of two changed: %+v", second.Changes)
	}
	back, err := deployer.Rollback(t.Context(), k, scope, "", deployer.Options{})
	if err != nil || back.Units[0].Revision != first.Units[0].Revision {
		t.Fatalf("rollback: %+v, %v", back.Release, err)
	}
	eventually(t, "the Service is Ready on the old revision", func() bool {
		s, err := c.serve.Services(ns).Get(t.Context(), "app-main", metav1.GetOptions{})
		return err == nil && s.IsReady() && s.Status.ObservedGeneration == s.Generation && s.Spec.Template.Name == first.Units[0].Revision && s.Status.LatestReadyRevisionName == first.Units[0].Revision
	})
}

// A policy on Services is heard before anything is written.
func TestPolicyOnServices(t *testing.T) {
	for _, effects := range []admission.SideEffectClass{admission.SideEffectClassNone, admission.SideEffectClassNoneOnDryRun} {
		t.Run(string(effects), func(t *testing.T) {
			c := lab(t)
			ns := c.namespace(t)
			c.webhook(t, ns, effects, func(*servingv1.Service) ([]map[string]any, string) {
				return nil, "images come from registry.example alone"
			})
			_, err := deployer.Deploy(t.Context(), apiTarget(t, c.rest), deployer.Plan{Scope: scopeIn(ns), Pipeline: 1, Units: []deployer.Spec{apiUnit(t, "main", "1")}}, deployer.Options{})
			all := deployer.Failures(err)
			var failed *deployer.Failed
			if len(all) != 1 || all[0].Code != deployer.Denied || all[0].Cause != "the cluster's webhook platform.example.com refuses it: images come from registry.example alone" ||
				!errors.As(err, &failed) || failed.Step != deployer.StepPreflight {
				t.Errorf("got %v; want denied at preflight", err)
			}
			if left, err := c.kube.CoordinationV1().Leases(ns).List(t.Context(), metav1.ListOptions{}); err != nil || len(left.Items) != 0 {
				t.Errorf("a preflight wrote %v, %v", left.Items, err)
			}
		})
	}
}
