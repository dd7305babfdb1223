package knative

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

var scope = deployer.Scope{Service: "shop", Environment: "prod", Namespace: "team", Owner: "7"}

func spec(t testing.TB) deployer.Spec {
	t.Helper()
	image, err := name.NewDigest("registry.example/shop@sha256:" + strings.Repeat("a", 64))
	if err != nil {
		t.Fatal(err)
	}
	return deployer.Spec{
		Name: "shop-main", Unit: "main", Image: image, Key: "k1", Table: `{"name":"main","price":"$(PRICE)"}`,
		Environment: map[string]string{"B": "2", "A": "costs $5", "FAAS_UNIT": "mine"}, Memory: "128Mi", CPU: "250m",
		Concurrency: 10, Timeout: 1500 * time.Millisecond, InitTimeout: 20 * time.Second, MinScale: 1, MaxScale: 5,
	}
}

func TestTemplate(t *testing.T) {
	s := spec(t)
	got, err := template(scope, s, s.RevisionName(1), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c := got.Spec.Containers[0]
	for what, pair := range map[string][2]any{
		"name":   {got.Name, s.RevisionName(1)},
		"labels": {got.Labels, map[string]string{"kuroko.dev/owner": "7", "kuroko.dev/service": "shop", "kuroko.dev/environment": "prod", "kuroko.dev/unit": "main"}},
		"annotations": {got.Annotations, map[string]string{
			"kuroko.dev/hash": s.Hash(), "serving.knative.dev/no-gc": "true", "serving.knative.dev/progress-deadline": "80s",
			"autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "5",
		}},
		"image":       {c.Image, s.Image.String()},
		"memory":      {c.Resources.Limits.Memory().String() + c.Resources.Requests.Memory().String(), "128Mi128Mi"},
		"cpu":         {c.Resources.Limits.Cpu().String(), "250m"},
		"concurrency": {*got.Spec.ContainerConcurrency, int64(10)},
		"time-out":    {*got.Spec.TimeoutSeconds, int64(2)}, // rounded up
		"links":       {*got.Spec.EnableServiceLinks, false},
		"token":       {*got.Spec.AutomountServiceAccountToken, false},
		"non-root":    {*c.SecurityContext.RunAsNonRoot, true},
		"readiness":   {c.ReadinessProbe.HTTPGet.Path, "/health/readiness"},
		"liveness":    {c.LivenessProbe.HTTPGet.Path, "/health/liveness"},
		// 0 would be 10 s by Kubernetes' defaults.
		"asked each second": {c.ReadinessProbe.PeriodSeconds, int32(1)},
		"budget":            {c.LivenessProbe.InitialDelaySeconds, int32(20)},
		"pull":              {c.ImagePullPolicy, corev1.PullIfNotPresent},
		"env": {c.Env, []corev1.EnvVar{
			{Name: "A", Value: "costs $$5"}, {Name: "B", Value: "2"}, {Name: "FAAS_IMAGE", Value: s.Image.String()}, {Name: "FAAS_KEY", Value: "k1"},
			{Name: "FAAS_METRICS_PORT", Value: "9095"},
			{Name: "FAAS_UNIT", Value: `{"name":"main","price":"$$(PRICE)"}`}, // ours, unexpanded
		}},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s: got %v, want %v", what, pair[0], pair[1])
		}
	}
	r := &servingv1.Revision{Spec: got.Spec}
	if b := budget(r); b != 20*time.Second {
		t.Errorf("budget read back: %s", b)
	}
}

func TestTemplateOfEverything(t *testing.T) {
	s := spec(t)
	s.IdleTimeout, s.ScaleMetric, s.ScaleTarget, s.Internal = 2*time.Second, "rps", 12.5, true
	s.Secrets = map[string]deployer.Ref{"A": {Name: "db", Key: "password"}, "CA": {Name: "certs", Key: "ca.pem", Path: "/etc/shop/ca.pem"}}
	s.Config = map[string]deployer.Ref{"LIMIT": {Name: "limits", Key: "max"}, "FLAGS": {Name: "limits", Key: "flags", Path: "/etc/shop/flags"}}
	s.Versions = map[deployer.Source]string{"secret/db": "12", "config/limits": "7"}
	got, err := template(scope, s, s.RevisionName(1), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c := got.Spec.Containers[0]
	env := map[string]corev1.EnvVar{}
	for _, v := range c.Env {
		env[v.Name] = v
	}
	a := got.Annotations
	for what, pair := range map[string][2]any{
		"idle":   {*got.Spec.IdleTimeoutSeconds, int64(2)},
		"metric": {a["autoscaling.knative.dev/metric"] + a["autoscaling.knative.dev/target"] + a["autoscaling.knative.dev/class"], "rps12.5"},
		"hidden": {a["kuroko.dev/network"], "internal"},
		"A":      {env["A"].Value + env["A"].ValueFrom.SecretKeyRef.Name + "/" + env["A"].ValueFrom.SecretKeyRef.Key, "db/password"}, // the secret wins over A=costs $5
		"LIMIT":  {env["LIMIT"].ValueFrom.ConfigMapKeyRef.Name + "/" + env["LIMIT"].ValueFrom.ConfigMapKeyRef.Key, "limits/max"},
		"mounts": {c.VolumeMounts, []corev1.VolumeMount{
			{Name: "faas-files", MountPath: "/etc/shop/flags", SubPath: "config/FLAGS", ReadOnly: true},
			{Name: "faas-files", MountPath: "/etc/shop/ca.pem", SubPath: "secret/CA", ReadOnly: true},
		}},
		"volume": {got.Spec.Volumes, []corev1.Volume{{Name: "faas-files", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "limits"}, Items: []corev1.KeyToPath{{Key: "flags", Path: "config/FLAGS"}}}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "certs"}, Items: []corev1.KeyToPath{{Key: "ca.pem", Path: "secret/CA"}}}},
		}}}}}},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s: got %v, want %v", what, pair[0], pair[1])
		}
	}
	if _, ok := env["CA"]; ok {
		t.Error("a file is a variable too")
	}
	versions := 0
	for k, v := range a {
		if strings.HasPrefix(k, "version.kuroko.dev/") && (v == "12" || v == "7") && len(validation.IsQualifiedName(k)) == 0 {
			versions++
		}
	}
	if versions != 2 {
		t.Errorf("annotations %v; want both versions", a)
	}
	// By CPU the cluster's own autoscaler counts, from one instance up.
	s.ScaleMetric, s.ScaleTarget, s.MinScale = "cpu", 0, 0
	if got, err = template(scope, s, "r", time.Minute); err != nil {
		t.Fatal(err)
	}
	a = got.Annotations
	if a["autoscaling.knative.dev/class"] != "hpa.autoscaling.knative.dev" || a["autoscaling.knative.dev/metric"] != "cpu" || a["autoscaling.knative.dev/target"] != "80" || a["autoscaling.knative.dev/min-scale"] != "1" {
		t.Errorf("by CPU: %v", a)
	}
}

func TestTemplateOfEqualSpecsIsEqual(t *testing.T) {
	first, err := template(scope, spec(t), "r", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(first)
	for range 20 { // maps have no order
		again, err := template(scope, spec(t), "r", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal(again); string(got) != string(want) {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}

func TestTemplateLeavesDefaultsToTheCluster(t *testing.T) {
	s := spec(t)
	s.Memory, s.CPU, s.Concurrency, s.Timeout, s.InitTimeout, s.MaxScale = "", "", 0, 0, 0, 0
	got, err := template(scope, s, "r", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Spec.Containers[0].Resources.Limits) > 0 || got.Spec.ContainerConcurrency != nil || got.Spec.TimeoutSeconds != nil {
		t.Errorf("got %+v; want nothing that was not asked for", got.Spec)
	}
	if _, ok := got.Annotations["autoscaling.knative.dev/max-scale"]; ok {
		t.Error("max-scale 0 would be written")
	}
	s.Memory = "much"
	if _, err := template(scope, s, "r", time.Minute); err == nil || !strings.Contains(err.Error(), `memory "much"`) {
		t.Errorf("memory much: %v", err)
	}
}

// What the server and Knative add to a revision does not come back as a
// change of the template.
func TestTemplateOfRevision(t *testing.T) {
	want, err := template(scope, spec(t), "shop-main-1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	r := &servingv1.Revision{ObjectMeta: *want.ObjectMeta.DeepCopy(), Spec: *want.Spec.DeepCopy()}
	r.UID, r.ResourceVersion = "u", "5"
	for _, k := range []string{"service", "configuration", "configurationGeneration", "routingState", "serviceUID"} {
		r.Labels["serving.knative.dev/"+k] = "x"
	}
	for _, k := range []string{"creator", "routes", "routingStateModified"} {
		r.Annotations["serving.knative.dev/"+k] = "x"
	}
	five := int64(300)
	r.Spec.TimeoutSeconds = &five // a default that the webhook wrote
	got := templateOf(r)
	want.Spec.TimeoutSeconds = &five
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestStagedTraffic(t *testing.T) {
	share := func(rev string, percent int, tag string) deployer.Share {
		return deployer.Share{Revision: rev, Percent: percent, Tag: tag}
	}
	for name, c := range map[string]struct {
		have, want []deployer.Share
		dead       string
	}{
		"beside the live one":        {have: []deployer.Share{share("a", 100, "")}, want: []deployer.Share{share("a", 100, ""), share("new", 0, "next")}},
		"keeps prev":                 {have: []deployer.Share{share("a", 100, ""), share("b", 0, "prev")}, want: []deployer.Share{share("a", 100, ""), share("b", 0, "prev"), share("new", 0, "next")}},
		"a dead prev would block":    {have: []deployer.Share{share("a", 100, ""), share("b", 0, "prev")}, dead: "b", want: []deployer.Share{share("a", 100, ""), share("new", 0, "next")}},
		"takes the tag from another": {have: []deployer.Share{share("a", 100, "next"), share("b", 0, "")}, want: []deployer.Share{share("a", 100, ""), share("new", 0, "next")}},
		"of a run that died":         {have: []deployer.Share{share("a", 100, ""), share("b", 0, "next")}, want: []deployer.Share{share("a", 100, ""), share("new", 0, "next")}},
		"is prev already":            {have: []deployer.Share{share("a", 100, ""), share("new", 0, "prev")}, want: []deployer.Share{share("a", 100, ""), share("new", 0, "prev")}},
		"is next already":            {have: []deployer.Share{share("a", 100, ""), share("new", 0, "next")}, want: []deployer.Share{share("a", 100, ""), share("new", 0, "next")}},
		"has the traffic":            {have: []deployer.Share{share("new", 100, "")}, want: []deployer.Share{share("new", 100, "next")}},
		"a live one is never dead":   {have: []deployer.Share{share("a", 100, "")}, dead: "a", want: []deployer.Share{share("a", 100, ""), share("new", 0, "next")}},
	} {
		got := stagedTraffic(targets(c.have), "new", func(r string) bool { return r == c.dead })
		if !slices.Equal(shares(got), c.want) {
			t.Errorf("%s: got %v, want %v", name, shares(got), c.want)
		}
		for _, target := range got {
			if target.LatestRevision == nil || *target.LatestRevision || target.RevisionName == "" {
				t.Errorf("%s: %+v is not by name", name, target)
			}
		}
	}
}

func FuzzLabel(f *testing.F) {
	for _, s := range []string{"prod", "review/feature-1", "", "-", "Ä", strings.Repeat("x", 64), "UPPER", "a.b", "a_b", "a--"} {
		f.Add(s, "other")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := label(a), label(b)
		if problems := validation.IsDNS1123Label(x); len(problems) > 0 {
			t.Errorf("label(%q) = %q: %v", a, x, problems)
		}
		if a != b && x == y {
			t.Errorf("%q and %q are both %q", a, b, x)
		}
	})
}

func TestRecordNames(t *testing.T) {
	s := deployer.Scope{Service: "shop", Environment: "review/a", Owner: "7"}
	a := releaseName(s, "r1")
	s.Environment = "review-a"
	b := releaseName(s, "r1")
	if a == b || b != "shop.review-a.r1" || len(validation.IsDNS1123Subdomain(a)) > 0 {
		t.Errorf("names %q, %q; want two valid ones, the second plain", a, b)
	}
}

func TestRouted(t *testing.T) {
	svc := &servingv1.Service{}
	svc.Spec.Traffic = targets([]deployer.Share{{Revision: "a", Percent: 100}, {Revision: "b", Tag: "next"}})
	ready := func() *servingv1.Route {
		r := &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Generation: 2}}
		r.Spec.Traffic = targets(shares(svc.Spec.Traffic))
		slices.Reverse(r.Spec.Traffic) // order means nothing
		r.Status.Traffic = targets(shares(svc.Spec.Traffic))
		r.Status.ObservedGeneration = 2
		r.Status.InitializeConditions()
		r.Status.MarkTrafficAssigned()
		r.Status.MarkTLSNotEnabled("")
		r.Status.MarkIngressRolloutInProgress()
		r.Status.SetConditions([]apisCondition{{Type: "Ready", Status: corev1.ConditionTrue}})
		return r
	}
	if why := routed(svc, ready()); why != "" {
		t.Errorf("a route that serves: %q", why)
	}
	for what, spoil := range map[string]func(*servingv1.Route){
		"passed the shares": func(r *servingv1.Route) { r.Spec.Traffic = targets([]deployer.Share{{Revision: "a", Percent: 100}}) },
		"not seen":          func(r *servingv1.Route) { r.Status.ObservedGeneration = 1 },
		"waits: Ingress": func(r *servingv1.Route) {
			r.Status.SetConditions([]apisCondition{{Type: "Ready", Status: corev1.ConditionUnknown, Message: "Ingress is\nslow"}})
		},
		"other shares": func(r *servingv1.Route) { r.Status.Traffic = nil },
	} {
		r := ready()
		spoil(r)
		if why := routed(svc, r); !strings.Contains(why, what) {
			t.Errorf("%s: said %q", what, why)
		}
	}
	if routed(svc, nil) == "" {
		t.Error("no route at all is said to serve")
	}
}
