//go:build api || e2e

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
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	review "k8s.io/api/admission/v1"
	admission "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
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
