//go:build api

package knative_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
	clusterfiles "github.com/kuroko-faas/kuroko/deployer/knative/cluster"
)

// With the rendered account, and nothing more, the whole life of a service
// passes; so does the watchdog's work with its own.
func TestRenderedRightsAreEnoughReadinessPatched(t *testing.T) {
	c := lab(t)
	setup, ns, owned := rendered(t)
	c.apply(t, setup)
	t.Cleanup(func() { c.dropNamespaces(t, setup.System, ns, owned) })
	makeReady(t, c, ns)
	k := apiTarget(t, c.account(t, ns, clusterfiles.DeployRole))
	scope := scopeIn(ns)
	eventually(t, "the roles count", func() bool { return k.Preflight(t.Context(), scope, nil) == nil })
	// The gateway's Service is named, and no other.
	t.Cleanup(func() { c.dropRouteRight(t, "default", ns, owned) })
	account := c.account(t, ns, clusterfiles.DeployRole)
	asking := func(service string) error {
		k, err := knative.New(knative.Config{REST: account, IngressService: service})
		if err != nil {
			t.Fatal(err)
		}
		return k.Preflight(t.Context(), scope, nil)
	}
	if err := asking(setup.IngressService); err != nil {
		t.Errorf("with the rendered right: %v", err)
	}
	missing := deployer.Failures(asking("default/other"))
	if len(missing) != 1 || missing[0].Code != deployer.Denied || !strings.Contains(missing[0].Cause, "may not get services/proxy http:other:80 in namespace default") {
		t.Errorf("another Service: %v; want the missing right", missing)
	}
	o := deployer.Options{Lease: deployer.LeaseTimes{For: 3 * time.Second, Poll: 100 * time.Millisecond}, ProbeEvery: 50 * time.Millisecond}
	plan := func(n int64, units ...deployer.Spec) deployer.Plan {
		return deployer.Plan{Scope: scope, Pipeline: n, Units: units}
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"first", func() error {
			_, err := deployer.Deploy(t.Context(), k, plan(1, apiUnit(t, "a", "1"), apiUnit(t, "b", "1")), o)
			return err
		}},
		{"second", func() error {
			_, err := deployer.Deploy(t.Context(), k, plan(2, apiUnit(t, "a", "2"), apiUnit(t, "b", "1")), o)
			return err
		}},
		{"rollback", func() error { _, err := deployer.Rollback(t.Context(), k, scope, "r1", o); return err }},
		{"resume", func() error { return deployer.Resume(t.Context(), k, scope, o) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	}
	if _, err := k.Scopes(t.Context()); len(deployer.Failures(err)) == 0 {
		t.Errorf("a deploy account lists the records of all namespaces: %v", err)
	}

	// A run that died after its intent.
	h, err := k.Head(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	h.Rollout, h.Holder, h.Epoch = &deployer.Rollout{To: "r2", From: h.Live, Step: "traffic", OnDeath: deployer.OnDeathRestore}, "", h.Epoch+1
	if h, err = k.SwapHead(t.Context(), scope, h); err != nil {
		t.Fatal(err)
	}
	f := deployer.Fence{Scope: scope, Epoch: h.Epoch}
	svcs, err := k.Services(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	odd := apiUnit(t, "odd", "3")
	if err := k.Ensure(t.Context(), f, odd, odd.RevisionName(1)); err != nil {
		t.Fatal(err)
	}
	dog := apiTarget(t, c.account(t, setup.System, clusterfiles.Watchdog))
	var all []deployer.Recorded
	eventually(t, "the watchdog sees the record", func() bool {
		if all, err = dog.Scopes(t.Context()); err != nil {
			return false
		}
		for _, r := range all {
			if r.Scope == scope && r.Head.Version == h.Version {
				all = []deployer.Recorded{r}
				return true
			}
		}
		return false
	})
	s := deployer.NewSweeper(dog, deployer.SweepOptions{Options: o})
	if sw, err := s.Sweep(t.Context(), all[0], nil); err != nil || len(sw.Done) != 1 {
		t.Fatalf("sweep: %+v, %v", sw, err)
	}
	if h, err = k.Head(t.Context(), scope); err != nil || h.Rollout != nil || h.Undone == nil {
		t.Errorf("head %+v, %v; want the rollout taken back", h, err)
	}
	now, err := k.Services(t.Context(), scope)
	if err != nil || len(now) != len(svcs) {
		t.Errorf("%d services, %v; want %d: what the release lacks is removed", len(now), err, len(svcs))
	}
	if err := deployer.Stop(t.Context(), k, scope, o); err != nil {
		t.Errorf("stop: %v", err)
	}
	// It reads no secrets and makes no records.
	if _, err := dog.Secrets(t.Context(), scope); len(deployer.Failures(err)) == 0 {
		t.Errorf("the watchdog reads secrets: %v", err)
	}
	if err := dog.CreateRelease(t.Context(), deployer.Fence{Scope: scope, Epoch: 99}, deployer.Release{ID: "r9"}); len(deployer.Failures(err)) == 0 {
		t.Errorf("the watchdog makes records: %v", err)
	}
}

func TestAdmissionPolicy(t *testing.T) {
	c := lab(t)
	setup, ns, owned := rendered(t)
	c.apply(t, setup)
	t.Cleanup(func() { c.dropRouteRight(t, "default", ns, owned) })
	good := func(change func(*servingv1.Service)) *servingv1.Service {
		s := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: "a" + strings.ToLower(rand.Text()[:6]), Namespace: ns, Labels: map[string]string{
			knative.LabelOwner: "1", knative.LabelService: "app", knative.LabelEnvironment: "test",
		}}}
		s.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/max-scale": "3"}
		s.Spec.Template.Spec.Containers = []corev1.Container{{
			Image:     "registry.invalid/unit@sha256:" + strings.Repeat("a", 64),
			Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi"), corev1.ResourceCPU: resource.MustParse("500m")}},
		}}
		if change != nil {
			change(s)
		}
		return s
	}
	limits := func(s *servingv1.Service) corev1.ResourceList {
		return s.Spec.Template.Spec.Containers[0].Resources.Limits
	}
	create := func(s *servingv1.Service) error {
		_, err := c.serve.Services(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{})
		return err
	}
	image := func(ref string) func(*servingv1.Service) {
		return func(s *servingv1.Service) { s.Spec.Template.Spec.Containers[0].Image = ref }
	}
	digest := "@sha256:" + strings.Repeat("a", 64)
	// The server learns of a new policy a moment later.
	eventually(t, "the policy counts", func() bool {
		return create(good(image("elsewhere.invalid/unit"+digest))) != nil
	})
	for _, tc := range []struct {
		name, want string
		change     func(*servingv1.Service)
	}{
		{"as we deploy", "", nil},
		{"another registry", "images come from registry.invalid/", image("elsewhere.invalid/unit" + digest)},
		{"a neighbour's name", "images come from registry.invalid/", image("registry.invalid.evil.example/unit" + digest)},
		{"a tag", "named by digest", image("registry.invalid/unit:latest")},
		{"no labels", "kuroko.dev/owner", func(s *servingv1.Service) { s.Labels = nil }},
		{"no environment", "environment are set", func(s *servingv1.Service) { delete(s.Labels, knative.LabelEnvironment) }},
		{"too much memory", "memory above tier standard's 128Mi", func(s *servingv1.Service) { limits(s)[corev1.ResourceMemory] = resource.MustParse("129Mi") }},
		{"too much cpu", "cpu above tier standard's 1", func(s *servingv1.Service) { limits(s)[corev1.ResourceCPU] = resource.MustParse("1001m") }},
		{"no memory limit", "a unit has a memory limit", func(s *servingv1.Service) { delete(limits(s), corev1.ResourceMemory) }},
		{"too many pods", "scale.max is missing, or above tier standard's 3", func(s *servingv1.Service) {
			s.Spec.Template.Annotations["autoscaling.knative.dev/max-scale"] = "4"
		}},
		{"endless pods", "scale.max is missing", func(s *servingv1.Service) { s.Spec.Template.Annotations = nil }},
		{"another tier's memory", "", func(s *servingv1.Service) {
			s.Namespace = owned
			limits(s)[corev1.ResourceMemory] = resource.MustParse("1Gi")
		}},
		{"another project's namespace", "belongs to another project", func(s *servingv1.Service) { s.Namespace, s.Labels[knative.LabelOwner] = owned, "2" }},
	} {
		err := create(good(tc.change))
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v; want %q", tc.name, err, tc.want)
		}
	}
	mine := good(nil)
	if err := create(mine); err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"metadata":{"labels":{"kuroko.dev/owner":"2"}}}`)
	if _, err := c.serve.Services(ns).Patch(t.Context(), mine.Name, "application/merge-patch+json", patch, metav1.PatchOptions{}); err == nil || !strings.Contains(err.Error(), "owner of a service does not change") {
		t.Errorf("another owner: %v", err)
	}
	pod := corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "elsewhere.invalid/unit" + digest}}}
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: ns}, Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: pod}}}
	cron := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: ns}, Spec: batchv1.CronJobSpec{Schedule: "* * * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: job.Spec}}}
	_, errJob := c.kube.BatchV1().Jobs(ns).Create(t.Context(), job, metav1.CreateOptions{})
	_, errCron := c.kube.BatchV1().CronJobs(ns).Create(t.Context(), cron, metav1.CreateOptions{})
	for what, err := range map[string]error{"job": errJob, "cron job": errCron} {
		if err == nil || !strings.Contains(err.Error(), "images come from") {
			t.Errorf("%s: %v", what, err)
		}
	}

	// What the developer reads.
	k := apiTarget(t, c.rest)
	u := apiUnit(t, "main", "1")
	var err error
	if u.Image, err = name.NewDigest("elsewhere.invalid/unit" + digest); err != nil {
		t.Fatal(err)
	}
	err = k.Ensure(t.Context(), lease(t, k, scopeIn(ns)), u, u.RevisionName(1))
	all := deployer.Failures(err)
	if len(all) != 1 || all[0].Code != deployer.Denied || !strings.Contains(all[0].Cause, fmt.Sprintf("policy %s refuses it: images come from", clusterfiles.Policy)) || errors.Is(err, deployer.ErrUnavailable) {
		t.Errorf("got %v; want the policy's own words", err)
	}
}
