package devtest

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
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kuroko-faas/kuroko/internal/devenv"
)

// Cluster is the full lab's, with a namespace for one test.
type Cluster struct {
	devenv.Lab
	Kube kubernetes.Interface
}

// NewCluster finds the lab by the variables that make e2e sets, and makes the
// namespace, which ends with the test. Without a lab it skips.
func NewCluster(t testing.TB) Cluster {
	t.Helper()
	c := Cluster{Lab: devenv.Lab{
		Kubeconfig: os.Getenv("KUBECONFIG"), Registry: os.Getenv("KUROKO_LAB_REGISTRY"),
		Ingress: os.Getenv("KUROKO_LAB_INGRESS"), Domain: os.Getenv("KUROKO_LAB_DOMAIN"),
		Namespace: "test-" + strings.ToLower(rand.Text()[:8]),
	}}
	if c.Kubeconfig == "" || c.Ingress == "" {
		t.Skip("needs the full lab: KUBECONFIG or KUROKO_LAB_INGRESS is not set; make e2e sets them")
	}
	r, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if c.Kube, err = kubernetes.NewForConfig(r); err != nil {
		t.Fatal(err)
	}
	all := c.Kube.CoreV1().Namespaces()
	if _, err := all.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.Namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := all.Delete(ctx, c.Namespace, metav1.DeleteOptions{}); err != nil {
			t.Errorf("remove namespace %s: %v", c.Namespace, err)
		}
	})
	return c
}

// Start is [Start] with the images in the cluster's registry, and functions in
// its namespace.
func (c Cluster) Start(t testing.TB, runtimes ...string) Lab {
	t.Helper()
	return start(t, &c, runtimes)
}
