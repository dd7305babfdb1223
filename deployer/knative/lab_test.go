//go:build api || e2e

package knative_test

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	servingclient "knative.dev/serving/pkg/client/clientset/versioned/typed/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// cluster is the lab's API server.
type cluster struct {
	rest  *rest.Config
	kube  kubernetes.Interface
	serve servingclient.ServingV1Interface
}

// lab finds the lab by KUBECONFIG, or skips.
func lab(t *testing.T) cluster {
	t.Helper()
	file := os.Getenv("KUBECONFIG")
	if file == "" {
		t.Skip("needs the lab: KUBECONFIG is not set; make test-api and make e2e set it")
	}
	r, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	r.QPS, r.Burst = 100, 200
	r.WarningHandler = rest.NoWarnings{}
	c := cluster{rest: r}
	if c.kube, err = kubernetes.NewForConfig(r); err != nil {
		t.Fatal(err)
	}
	if c.serve, err = servingclient.NewForConfig(r); err != nil {
		t.Fatal(err)
	}
	return c
}

// namespace makes a namespace that ends with the test.
func (c cluster) namespace(t *testing.T) string {
	t.Helper()
	ns := "test-" + strings.ToLower(rand.Text()[:8])
	if _, err := c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		// Services first: nothing shall be scaled while it is removed.
		_ = c.serve.Services(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
		now := int64(0)
		_ = c.kube.CoreV1().Pods(ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
		if err := c.kube.CoreV1().Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}); err != nil {
			t.Errorf("remove namespace %s: %v", ns, err)
		}
	})
	return ns
}

func scopeIn(ns string) deployer.Scope {
	return deployer.Scope{Service: "app", Environment: "test", Namespace: ns, Owner: "1"}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
