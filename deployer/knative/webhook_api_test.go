//go:build api

package knative_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admission "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

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
