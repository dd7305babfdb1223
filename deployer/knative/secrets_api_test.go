//go:build api

package knative_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// What people may do to a service's secrets, with no more rights than that
// takes: only what is the service's own is changed, and key by key.
func TestSecretsOfAService(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	scope := scopeIn(ns)
	k := apiTarget(t, c.as(t, ns, "person", knative.SecretRights()))
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	key := func(name, by string) deployer.SecretKey {
		return deployer.SecretKey{Secret: "app", Key: name, By: by, At: at}
	}
	eventually(t, "the Role counts", func() bool { _, err := k.Secrets(t.Context(), scope); return err == nil })
	if all, err := k.Secrets(t.Context(), scope); err != nil || len(all) != 0 {
		t.Fatalf("at first: %v, %v", all, err)
	}
	// The first two at once: one makes the Secret, the other finds it.
	var both sync.WaitGroup
	for _, name := range []string{"token", "db"} {
		both.Go(func() {
			if err := k.SetSecret(t.Context(), scope, key(name, "ann"), []byte("value of "+name+"\x00\xff")); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	get := func() *corev1.Secret {
		t.Helper()
		s, err := c.kube.CoreV1().Secrets(ns).Get(t.Context(), "app", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := get()
	if string(first.Data["token"]) != "value of token\x00\xff" || string(first.Data["db"]) != "value of db\x00\xff" || first.Labels[knative.LabelOwner] != "1" {
		t.Errorf("stored %q, labels %v", first.Data, first.Labels)
	}
	versions := func() string {
		t.Helper()
		have, err := k.Versions(t.Context(), scope, []deployer.Source{"secret/app", "secret/none"})
		if err != nil || len(have) != 1 {
			t.Fatalf("versions %v, %v; want one", have, err)
		}
		return have["secret/app"]
	}
	if v := versions(); v != first.ResourceVersion {
		t.Errorf("version %s, the object has %s", v, first.ResourceVersion)
	}
	// A rotation is another version, leaves the other key alone and says who.
	if err := k.SetSecret(t.Context(), scope, key("token", "bob"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if s := get(); string(s.Data["token"]) != "new" || string(s.Data["db"]) != string(first.Data["db"]) || versions() == first.ResourceVersion {
		t.Errorf("after a rotation: %q, version %s", s.Data, versions())
	}
	all, err := k.Secrets(t.Context(), scope)
	if s := fmt.Sprint(all); err != nil || len(all) != 2 || all[0] != key("db", "ann") || all[1] != key("token", "bob") || strings.Contains(s, "new") {
		t.Errorf("list %v, %v", all, err)
	}
	if err := k.UnsetSecret(t.Context(), scope, key("token", "")); err != nil {
		t.Fatal(err)
	}
	if s := get(); len(s.Data) != 1 || strings.Contains(s.Annotations[knative.AnnotationKeys], "token") {
		t.Errorf("after unset: keys %v, notes %s", maps.Keys(s.Data), s.Annotations[knative.AnnotationKeys])
	}
	for name, sk := range map[string]deployer.SecretKey{"key": key("token", ""), "secret": {Secret: "none", Key: "x"}} {
		if err := k.UnsetSecret(t.Context(), scope, sk); !errors.Is(err, deployer.ErrNotFound) {
			t.Errorf("unset a missing %s: %v; want not found", name, err)
		}
	}
	// Somebody else's, another environment's and one made by hand stay.
	other := scope
	other.Environment = "prod"
	if err := k.SetSecret(t.Context(), other, deployer.SecretKey{Secret: "app-prod", Key: "token"}, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "by-hand"}, StringData: map[string]string{"token": "y"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"app-prod", "by-hand"} {
		sk := deployer.SecretKey{Secret: name, Key: "token"}
		if err := k.SetSecret(t.Context(), scope, sk, []byte("mine")); !errors.Is(err, deployer.ErrForeign) {
			t.Errorf("set in %s: %v; want foreign", name, err)
		}
		if err := k.UnsetSecret(t.Context(), scope, sk); !errors.Is(err, deployer.ErrForeign) {
			t.Errorf("unset in %s: %v; want foreign", name, err)
		}
		s, err := c.kube.CoreV1().Secrets(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || string(s.Data["token"]) == "mine" || len(s.Data) != 1 {
			t.Errorf("%s holds %q, %v", name, s.Data, err)
		}
	}
	if all, err := k.Secrets(t.Context(), scope); err != nil || len(all) != 1 {
		t.Errorf("list %v, %v; want its own alone", all, err)
	}
}

// All that stands in the way is said at once, and before anything is written.
func TestPreflightSaysEverythingAtOnce(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	scope := scopeIn(ns)
	k := apiTarget(t, c.as(t, ns, "ci", knative.Rights()))
	for name, data := range map[string]map[string]string{"app": {"there": "x"}, "foreign": {"there": "x"}} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
		if name == "app" {
			s.Labels = map[string]string{knative.LabelOwner: "1", knative.LabelService: "app", knative.LabelEnvironment: "test"}
		}
		if _, err := c.kube.CoreV1().Secrets(ns).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.kube.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "limits"}, Data: map[string]string{"max": "1"}, BinaryData: map[string][]byte{"bin": {0}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "small"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resourceOf(t, "1")}}}
	q, err := c.kube.CoreV1().ResourceQuotas(ns).Create(t.Context(), q, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	q.Status.Hard, q.Status.Used = q.Spec.Hard, corev1.ResourceList{corev1.ResourcePods: resourceOf(t, "1")}
	if _, err := c.kube.CoreV1().ResourceQuotas(ns).UpdateStatus(t.Context(), q, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	good, bad := apiUnit(t, "good", "1"), apiUnit(t, "bad", "1")
	good.Secrets = map[string]deployer.Ref{"THERE": {Name: "app", Key: "there"}}
	good.Config = map[string]deployer.Ref{"MAX": {Name: "limits", Key: "max"}, "BIN": {Name: "limits", Key: "bin", Path: "/etc/app/bin"}}
	bad.Environment = map[string]string{"K_SERVICE": "mine"} // Knative's own
	bad.Secrets = map[string]deployer.Ref{"TOKEN": {Name: "app", Key: "token"}, "NEW": {Name: "new", Key: "x", Path: "/etc/app/new"}, "THEIRS": {Name: "foreign", Key: "x"}}
	bad.Config = map[string]deployer.Ref{"MIN": {Name: "limits", Key: "min"}, "GONE": {Name: "gone", Key: "x"}}
	want := []string{
		"denied bad: the cluster's webhook validation.webhook.serving.knative.dev refuses it",
		"quota : no room: quota small is too small for the pods of the new revisions beside the live ones: pods=2 (allowed 1, used 1)",
		"secret-missing bad: secret app has no key token, which TOKEN reads → faas secret set TOKEN --env test",
		"secret-missing bad: secret foreign has no key x, which THEIRS reads → ask who keeps secret foreign",
		"secret-missing bad: there is no secret new, which NEW reads → faas secret set NEW --env test",
		"config-missing bad: config map limits has no key min, which MIN reads",
		"config-missing bad: there is no config map gone, which GONE reads",
	}
	var got []string
	eventually(t, "the Role counts", func() bool {
		got = nil
		for _, f := range deployer.Failures(k.Preflight(t.Context(), scope, []deployer.Spec{good, bad})) {
			got = append(got, fmt.Sprintf("%s %s: %s → %s", f.Code, f.Unit, f.Cause, f.Next))
		}
		return len(got) > 0 && !strings.Contains(got[0], "may not")
	})
	for _, w := range want {
		found := 0
		for _, g := range got {
			if strings.HasPrefix(g, w) {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%d times: %s", found, w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if all, err := c.serve.Services(ns).List(t.Context(), metav1.ListOptions{}); err != nil || len(all.Items) != 0 {
		t.Errorf("services after a rehearsal: %v, %v", all.Items, err)
	}
}

// No value of a Secret is in anything that a deploy with secrets leaves: the
// Service, the revision, the record, the Head.
func TestSecretsStayInTheirSecretReadinessPatched(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	scope := scopeIn(ns)
	k := apiTarget(t, c.rest)
	makeReady(t, c, ns)
	const value = "s3cret-value-of-the-test"
	set := func(v string) {
		t.Helper()
		if err := k.SetSecret(t.Context(), scope, deployer.SecretKey{Secret: "app", Key: "token", By: "ann", At: time.Now()}, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	set(value)
	do := func(pipeline int64) deployer.Outcome {
		t.Helper()
		u := apiUnit(t, "main", "1")
		u.Secrets = map[string]deployer.Ref{"TOKEN": {Name: "app", Key: "token"}, "FILE": {Name: "app", Key: "token", Path: "/etc/app/token"}}
		var err error
		if u.Versions, err = k.Versions(t.Context(), scope, u.Sources()); err != nil {
			t.Fatal(err)
		}
		out, err := deployer.Deploy(t.Context(), k, deployer.Plan{Scope: scope, Pipeline: pipeline, Units: []deployer.Spec{u}}, deployer.Options{ProbeEvery: 10 * time.Millisecond, RouteTimeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := do(1)
	if again := do(2); !again.NoChange {
		t.Errorf("deployed again: %+v", again.Changes)
	}
	set(value + " rotated")
	second := do(3)
	if second.NoChange || second.Units[0].Revision == first.Units[0].Revision {
		t.Errorf("a rotation made no new revision: %+v", second.Changes)
	}
	back, err := deployer.Rollback(t.Context(), k, scope, "", deployer.Options{})
	if err != nil || back.Units[0].Revision != first.Units[0].Revision {
		t.Errorf("rollback after a rotation: %+v, %v", back.Release, err)
	}
	services, err := c.serve.Services(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	revisions, err := c.serve.Revisions(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all, err := json.Marshal([]any{services, revisions, first, second, back})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(all), value) || strings.Contains(string(all), "czNjcmV0LXZhbHVl") {
		t.Error("the value is in what the deploy left")
	}
	if !strings.Contains(string(all), `"secretKeyRef":{"name":"app","key":"token"}`) || !strings.Contains(string(all), "/etc/app/token") {
		t.Errorf("the secret is not read: %s", all)
	}
}

// Knative's webhook and controller take everything that a unit can ask for.
func TestEverythingIsTaken(t *testing.T) {
	c := lab(t)
	ns := c.namespace(t)
	scope := scopeIn(ns)
	k := apiTarget(t, c.rest)
	if err := k.SetSecret(t.Context(), scope, deployer.SecretKey{Secret: "app", Key: "token"}, []byte("x")); err != nil {
		t.Fatal(err)
	}
	rps, cpu := apiUnit(t, "rps", "1"), apiUnit(t, "cpu", "1")
	rps.ScaleMetric, rps.ScaleTarget, rps.IdleTimeout, rps.Internal = "rps", 12.5, 2*time.Second, true
	rps.Secrets = map[string]deployer.Ref{"TOKEN": {Name: "app", Key: "token"}, "FILE": {Name: "app", Key: "token", Path: "/etc/ssl/app.pem"}, "AGAIN": {Name: "app", Key: "token", Path: "/etc/app/token"}}
	cpu.ScaleMetric, cpu.MinScale = "cpu", 1
	units := []deployer.Spec{rps, cpu}
	if err := k.Preflight(t.Context(), scope, units); err != nil {
		t.Fatal(err)
	}
	f := lease(t, k, scope)
	for _, u := range units {
		if err := k.Ensure(t.Context(), f, u, u.RevisionName(1)); err != nil {
			t.Fatal(err)
		}
		eventually(t, u.Unit+" has a revision", func() bool {
			rev, err := c.serve.Revisions(ns).Get(t.Context(), u.RevisionName(1), metav1.GetOptions{})
			return err == nil && rev.Annotations["autoscaling.knative.dev/metric"] == u.ScaleMetric
		})
	}
	svc, err := c.serve.Services(ns).Get(t.Context(), rps.Name, metav1.GetOptions{})
	if err != nil || svc.Labels["networking.knative.dev/visibility"] != "cluster-local" || *svc.Spec.Template.Spec.IdleTimeoutSeconds != 2 {
		t.Errorf("internal unit: labels %v, %v", svc.Labels, err)
	}
	eventually(t, "the route is hidden", func() bool {
		r, err := c.serve.Routes(ns).Get(t.Context(), rps.Name, metav1.GetOptions{})
		return err == nil && r.Labels["networking.knative.dev/visibility"] == "cluster-local"
	})
}
