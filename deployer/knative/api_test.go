//go:build api

package knative_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-containerregistry/pkg/name"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	networking "knative.dev/networking/pkg/apis/networking/v1alpha1"
	networkingclient "knative.dev/networking/pkg/client/clientset/versioned"
	autoscaling "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingclient "knative.dev/serving/pkg/client/clientset/versioned"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// The rootless tier has the API server and Knative's webhook and controller,
// but no pods: where a test needs readiness, it patches it, and says so in its
// name.

func apiTarget(t *testing.T, r *rest.Config) *knative.Target {
	t.Helper()
	k, err := knative.New(knative.Config{REST: r, Times: knative.Times{
		Remove: 100 * time.Millisecond, // nothing collects garbage here
		Image:  time.Second, Poll: 200 * time.Millisecond,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func apiUnit(t *testing.T, n, digest string) deployer.Spec {
	t.Helper()
	image, err := name.NewDigest("registry.invalid/unit@sha256:" + strings.Repeat(digest, 64))
	if err != nil {
		t.Fatal(err)
	}
	return deployer.Spec{
		Name: "app-" + n, Unit: n, Image: image, Key: "key", Table: `{"name":"` + n + `"}`, Environment: map[string]string{"PRICE": "$(HOME) $5"},
		Memory: "64Mi", CPU: "100m", Concurrency: 5, Timeout: 10 * time.Second, InitTimeout: 20 * time.Second, MinScale: 1, MaxScale: 3,
	}
}

// makeReady patches what pods, autoscaler and ingress would report, for
// everything in the namespace that refuse does not name, until the test ends.
func makeReady(t *testing.T, c cluster, ns string, refuse ...string) {
	t.Helper()
	kn, err := servingclient.NewForConfig(c.rest)
	if err != nil {
		t.Fatal(err)
	}
	net, err := networkingclient.NewForConfig(c.rest)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	// Watched, not listed: what this costs shall not grow with all there is.
	deps := copies(ctx, &appsv1.Deployment{}, c.kube.AppsV1().Deployments(ns))
	pas := copies(ctx, &autoscaling.PodAutoscaler{}, kn.AutoscalingV1alpha1().PodAutoscalers(ns))
	ings := copies(ctx, &networking.Ingress{}, net.NetworkingV1alpha1().Ingresses(ns))
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			// Errors are conflicts with the controller: the next turn has another try.
			for _, o := range deps.List() {
				d := o.(*appsv1.Deployment).DeepCopy()
				if slices.Contains(refuse, d.Labels["serving.knative.dev/revision"]) || d.Status.AvailableReplicas == *d.Spec.Replicas && d.Status.ObservedGeneration == d.Generation {
					continue
				}
				n := *d.Spec.Replicas
				d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, ReadyReplicas: n, AvailableReplicas: n, UpdatedReplicas: n,
					Conditions: []appsv1.DeploymentCondition{
						{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue}, {Type: appsv1.DeploymentAvailable, Status: corev1.ConditionTrue},
					}}
				_, _ = c.kube.AppsV1().Deployments(ns).UpdateStatus(ctx, d, metav1.UpdateOptions{})
			}
			for _, o := range pas.List() {
				pa := o.(*autoscaling.PodAutoscaler).DeepCopy()
				if slices.Contains(refuse, pa.Name) || pa.IsReady() {
					continue
				}
				pa.Status.InitializeConditions()
				pa.Status.MarkSKSReady()
				pa.Status.MarkScaleTargetInitialized()
				pa.Status.MarkActive()
				pa.Status.ServiceName, pa.Status.MetricsServiceName, pa.Status.ObservedGeneration = pa.Name, pa.Name+"-private", pa.Generation
				_, _ = kn.AutoscalingV1alpha1().PodAutoscalers(ns).UpdateStatus(ctx, pa, metav1.UpdateOptions{})
			}
			for _, o := range ings.List() {
				in := o.(*networking.Ingress).DeepCopy()
				if in.IsReady() && in.Status.ObservedGeneration == in.Generation {
					continue
				}
				in.Status.InitializeConditions()
				in.Status.MarkNetworkConfigured()
				lb := []networking.LoadBalancerIngressStatus{{DomainInternal: "ingress.lab.svc.cluster.local"}}
				in.Status.MarkLoadBalancerReady(lb, lb)
				in.Status.ObservedGeneration = in.Generation
				_, _ = net.NetworkingV1alpha1().Ingresses(ns).UpdateStatus(ctx, in, metav1.UpdateOptions{})
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
}

// copies are the objects of one kind in a namespace, kept up to date until ctx
// ends.
func copies[L runtime.Object](ctx context.Context, kind runtime.Object, from interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (apiwatch.Interface, error)
}) cache.Store {
	i := cache.NewSharedInformer(&cache.ListWatch{
		ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return from.List(ctx, o) },
		WatchFuncWithContext: from.Watch,
	}, kind, 0)
	go i.RunWithContext(klog.NewContext(ctx, logr.Discard()))
	return i.GetStore()
}

// as is the API server for a user with only these rights in the namespace.
func (c cluster) as(t *testing.T, ns, user string, rights []knative.Right) *rest.Config {
	t.Helper()
	role := &rbac.Role{ObjectMeta: metav1.ObjectMeta{Name: user}}
	for _, r := range rights {
		resource := r.Resource
		if r.Subresource != "" {
			resource += "/" + r.Subresource
		}
		role.Rules = append(role.Rules, rbac.PolicyRule{APIGroups: []string{r.Group}, Resources: []string{resource}, Verbs: r.Verbs})
	}
	if _, err := c.kube.RbacV1().Roles(ns).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.kube.RbacV1().RoleBindings(ns).Create(t.Context(), &rbac.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user}, RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "Role", Name: user},
		Subjects: []rbac.Subject{{Kind: rbac.UserKind, APIGroup: rbac.GroupName, Name: user}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := rest.CopyConfig(c.rest)
	r.Impersonate = rest.ImpersonationConfig{UserName: user}
	return r
}

func lease(t *testing.T, k *knative.Target, scope deployer.Scope) deployer.Fence {
	t.Helper()
	h, err := k.Head(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	h.Epoch++
	h.Holder = "the test"
	if _, err := k.SwapHead(t.Context(), scope, h); err != nil {
		t.Fatal(err)
	}
	return deployer.Fence{Scope: scope, Epoch: h.Epoch}
}

// A whole life with no more than the rights we ask for: so none is missing.
func TestDeployWithOurRightsReadinessPatched(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	scope := scopeIn(ns)
	k := apiTarget(t, c.as(t, ns, "ci", knative.Rights()))
	makeReady(t, c, ns)
	do := func(pipeline int64, digest string) (deployer.Outcome, error) {
		return deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: pipeline, Units: []deployer.Spec{apiUnit(t, "main", digest), apiUnit(t, "side", "1")}},
			deployer.Options{ProbeEvery: 10 * time.Millisecond, RouteTimeout: 5 * time.Second})
	}
	first, err := do(1, "1")
	if err != nil {
		t.Fatal(err)
	}
	// Nobody can reach a unit here, and that is said.
	if first.Verified || len(first.Warnings) == 0 {
		t.Errorf("verified %v, warnings %q; want unverified", first.Verified, first.Warnings)
	}
	versions := func() map[string]string {
		all, err := c.serve.Services(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		for _, s := range all.Items {
			m[s.Name] = fmt.Sprint(s.Generation)
		}
		return m
	}
	before := versions()
	// What the server fills in makes no unit look changed.
	again, err := do(1, "1")
	if err != nil || !again.NoChange || !maps.Equal(before, versions()) {
		t.Errorf("deployed twice: %+v, %v, generations %v and %v", again.Changes, err, before, versions())
	}
	second, err := do(2, "2")
	if err != nil {
		t.Fatal(err)
	}
	if second.Changes[1].Action != deployer.Unchanged || versions()["app-side"] != before["app-side"] {
		t.Errorf("the untouched unit: %+v, generation %s", second.Changes[1], versions()["app-side"])
	}
	back, err := deployer.Rollback(t.Context(), k, scope, "", deployer.Options{})
	if err != nil || back.ID != first.ID {
		t.Fatalf("rollback: %+v, %v", back.Release, err)
	}
	eventually(t, "the Service is Ready on the old revision", func() bool {
		s, err := c.serve.Services(ns).Get(t.Context(), "app-main", metav1.GetOptions{})
		return err == nil && s.IsReady() && s.Status.ObservedGeneration == s.Generation && s.Spec.Template.Name == first.Units[0].Revision && s.Status.LatestReadyRevisionName == first.Units[0].Revision
	})
	if err := deployer.Stop(t.Context(), k, scope, deployer.Options{}); err != nil {
		t.Fatal(err)
	}
	if n := len(versions()); n != 0 {
		t.Errorf("%d services after stop", n)
	}
}

func TestPreflightNamesEveryMissingRight(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	n := 0
	for i, r := range knative.Rights() {
		for _, verb := range r.Verbs {
			n++
			rights := slices.Clone(knative.Rights())
			rights[i].Verbs = slices.DeleteFunc(slices.Clone(r.Verbs), func(v string) bool { return v == verb })
			if len(rights[i].Verbs) == 0 {
				rights = slices.Delete(rights, i, i+1)
			}
			k := apiTarget(t, c.as(t, ns, fmt.Sprintf("ci-%d", n), rights))
			want := verb + " " + r.Resource
			eventually(t, "the Role counts", func() bool { // the server learns of it a moment later
				err := k.Preflight(t.Context(), scopeIn(ns), nil)
				all := deployer.Failures(err)
				if len(all) == 0 {
					t.Fatalf("without %s: %v", want, err)
				}
				for _, f := range all {
					if f.Code != deployer.Denied || f.Next == "" || !strings.Contains(f.Cause, want) {
						return false
					}
				}
				return !strings.Contains(all[len(all)-1].Cause, ", ")
			})
		}
	}
}

func TestMissingNamespace(t *testing.T) {
	c := lab(t)
	k := apiTarget(t, c.rest)
	scope := scopeIn("nobody-made-this")
	all := deployer.Failures(k.Preflight(t.Context(), scope, []deployer.Spec{apiUnit(t, "main", "1")}))
	if len(all) != 1 || all[0].Code != deployer.NamespaceMissing {
		t.Errorf("causes %v; want namespace-missing", all)
	}
	_, err := k.SwapHead(t.Context(), scope, deployer.Head{Epoch: 1})
	if all := deployer.Failures(err); len(all) != 1 || all[0].Code != deployer.NamespaceMissing {
		t.Errorf("write without preflight: %v; want namespace-missing", err)
	}
}

func TestWebhookDenial(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	k := apiTarget(t, c.rest)
	f := lease(t, k, scopeIn(ns))
	u := apiUnit(t, "main", "1")
	u.Environment = map[string]string{"K_SERVICE": "mine"} // Knative's own
	err := k.Ensure(t.Context(), f, u, u.RevisionName(1))
	all := deployer.Failures(err)
	if len(all) != 1 || all[0].Code != deployer.Denied || !strings.Contains(all[0].Cause, "K_SERVICE") || all[0].Unit != "main" || all[0].Revision != u.RevisionName(1) {
		t.Errorf("got %v; want denied, for K_SERVICE", err)
	}
	// And through a whole deploy: nothing is left.
	_, err = deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scopeIn(ns), Units: []deployer.Spec{u}}, deployer.Options{Lease: deployer.LeaseTimes{For: time.Second}})
	var failed *deployer.Failed
	if !errors.As(err, &failed) || failed.Restore != nil || len(deployer.Failures(err)) != 1 {
		t.Errorf("deploy: %v", err)
	}
	if s, err := k.Services(t.Context(), scopeIn(ns)); err != nil || len(s) != 0 {
		t.Errorf("services %v, %v", s, err)
	}
}

func TestQuota(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "small"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourceLimitsMemory: resourceOf(t, "100Mi")}}}
	q, err := c.kube.CoreV1().ResourceQuotas(ns).Create(t.Context(), q, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The controller that counts is not in this tier.
	q.Status.Hard, q.Status.Used = q.Spec.Hard, corev1.ResourceList{corev1.ResourceLimitsMemory: resourceOf(t, "50Mi")}
	if _, err := c.kube.CoreV1().ResourceQuotas(ns).UpdateStatus(t.Context(), q, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	all := deployer.Failures(apiTarget(t, c.rest).Preflight(t.Context(), scopeIn(ns), []deployer.Spec{apiUnit(t, "main", "1")}))
	if len(all) != 1 || all[0].Code != deployer.Quota || !strings.Contains(all[0].Cause, "quota small") {
		t.Errorf("causes %v; want quota", all)
	}
}

// Somebody else changes the Service all the time: our writes get through, and
// theirs are kept.
func TestWritesBesideSomebodyElse(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	k := apiTarget(t, c.rest)
	scope := scopeIn(ns)
	f := lease(t, k, scope)
	makeReady(t, c, ns)
	one, two := apiUnit(t, "main", "1"), apiUnit(t, "main", "2")
	for _, u := range []deployer.Spec{one, two} {
		if err := k.Ensure(t.Context(), f, u, u.RevisionName(1)); err != nil {
			t.Fatal(err)
		}
		if _, err := k.WaitReady(t.Context(), scope, u.Name, u.RevisionName(1), nil); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		n := 0
		for ctx.Err() == nil {
			s, err := c.serve.Services(ns).Get(ctx, one.Name, metav1.GetOptions{})
			if err == nil {
				s.Annotations["somebody"] = fmt.Sprint(n + 1)
				if _, err = c.serve.Services(ns).Update(ctx, s, metav1.UpdateOptions{}); err == nil {
					n++
				}
			}
			time.Sleep(30 * time.Millisecond)
		}
		done <- n
	}()
	for n := range 10 {
		u := []deployer.Spec{one, two}[n%2]
		if err := k.RestoreTemplate(t.Context(), f, u, u.RevisionName(1)); err != nil {
			t.Errorf("write %d: %v", n, err)
		}
	}
	cancel()
	n := <-done
	s, err := c.serve.Services(ns).Get(t.Context(), one.Name, metav1.GetOptions{})
	if err != nil || s.Annotations["somebody"] != fmt.Sprint(n) || n == 0 {
		t.Errorf("their last of %d writes: %q, %v", n, s.Annotations["somebody"], err)
	}
}

// The last words of a crash are found in the Pod status even where no log can
// be read.
func TestCrashInPodStatusPatched(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	k := apiTarget(t, c.rest)
	scope := scopeIn(ns)
	f := lease(t, k, scope)
	u := apiUnit(t, "main", "1")
	rev := u.RevisionName(1)
	if err := k.Ensure(t.Context(), f, u, rev); err != nil {
		t.Fatal(err)
	}
	var said []string
	result := make(chan error, 1)
	waits := make(chan string, 100)
	go func() {
		_, err := k.WaitReady(t.Context(), scope, u.Name, rev, func(why string) { waits <- why })
		close(waits)
		result <- err
	}()
	said = append(said, <-waits) // it waits
	labels := map[string]string{"serving.knative.dev/revision": rev, knative.LabelOwner: scope.Owner, knative.LabelService: scope.Service, knative.LabelEnvironment: scope.Environment}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "crashing", Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "function", Image: u.Image.String()}}}}
	pod, err := c.kube.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "function", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3, Reason: "Error", Message: "one\nboom\n"}}}}
	shown := time.Now()
	if _, err := c.kube.CoreV1().Pods(ns).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	err = <-result
	for why := range waits {
		said = append(said, why)
	}
	all := deployer.Failures(err)
	if len(all) != 1 || all[0].Code != deployer.Crash || all[0].ExitCode != 3 || !slices.Contains(all[0].Logs, "boom") {
		t.Errorf("got %v after %q; want a crash with its last words", err, said)
	}
	if took := time.Since(shown); took > 15*time.Second { // far below the unit's own time-out
		t.Errorf("told %s after the status showed it; want at most 15 s", took)
	}
	svcs, err := k.Services(t.Context(), scope)
	if err != nil || len(svcs) != 1 || len(svcs[0].Revisions) != 1 || svcs[0].Revisions[0].Phase != deployer.Broken {
		t.Errorf("observed %+v, %v; want a failed revision", svcs, err)
	}
}

// A Service made by hand, or by another environment of the project, is not
// ours to change.
func TestForeignService(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	k := apiTarget(t, c.rest)
	scope := scopeIn(ns)
	u := apiUnit(t, "main", "1")
	other := scope
	other.Environment = "another"
	if err := k.Ensure(t.Context(), lease(t, k, other), u, u.RevisionName(1)); err != nil {
		t.Fatal(err)
	}
	if err := k.Preflight(t.Context(), scope, []deployer.Spec{u}); !errors.Is(err, deployer.ErrForeign) || !strings.Contains(err.Error(), "another") {
		t.Errorf("preflight: %v; want foreign, naming the environment", err)
	}
	bare := []byte(`{"metadata":{"labels":null}}`)
	if _, err := c.serve.Services(ns).Patch(t.Context(), u.Name, types.MergePatchType, bare, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.Ensure(t.Context(), lease(t, k, scope), u, u.RevisionName(1)); !errors.Is(err, deployer.ErrForeign) {
		t.Errorf("a Service without labels: %v; want foreign", err)
	}
}

func resourceOf(t *testing.T, s string) resource.Quantity {
	t.Helper()
	q, err := resource.ParseQuantity(s)
	if err != nil {
		t.Fatal(err)
	}
	return q
}
