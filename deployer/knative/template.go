package knative

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/serving/pkg/apis/autoscaling"
	knserving "knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

const (
	container    = "function" // the unit's container; Knative's own is queue-proxy
	queue        = "queue-proxy"
	readyPath    = "/health/readiness"
	livePath     = "/health/liveness"
	defaultStart = time.Minute // Spec.InitTimeout's default
)

// template describes s as a revision of that name. Nothing in it differs
// between equal deploys. deadline is Config.ProgressDeadline.
func template(scope deployer.Scope, s deployer.Spec, revision string, deadline time.Duration) (servingv1.RevisionTemplateSpec, error) {
	var none servingv1.RevisionTemplateSpec
	limits := corev1.ResourceList{}
	for name, v := range map[corev1.ResourceName]string{corev1.ResourceMemory: s.Memory, corev1.ResourceCPU: s.CPU} {
		if v == "" {
			continue
		}
		q, err := resource.ParseQuantity(v)
		if err != nil {
			return none, fmt.Errorf("knative: unit %s: %s %q: %w", s.Unit, name, v, err)
		}
		limits[name] = q
	}
	start := cmp.Or(s.InitTimeout, defaultStart)
	annotations := map[string]string{
		AnnotationHash: s.Hash(),
		// Our own records say what is kept; Knative's collector knows none.
		knserving.RevisionPreservedAnnotationKey: "true",
		knserving.ProgressDeadlineAnnotationKey:  fmt.Sprintf("%ds", seconds(start+deadline)),
		autoscaling.MinScaleAnnotationKey:        strconv.Itoa(s.MinScale),
	}
	if s.MaxScale > 0 {
		annotations[autoscaling.MaxScaleAnnotationKey] = strconv.Itoa(s.MaxScale)
	}
	labels := scopeLabels(scope)
	labels[LabelUnit] = label(s.Unit)
	yes, no := true, false
	c := corev1.Container{
		Name: container, Image: s.Image.String(),
		// A digest never changes: what a node has is right.
		ImagePullPolicy: corev1.PullIfNotPresent,
		Env:             environment(s),
		Resources:       corev1.ResourceRequirements{Limits: limits, Requests: maps.Clone(limits)},
		// Knative asks this one itself, many times a second at first.
		ReadinessProbe: probe(readyPath),
		LivenessProbe:  probe(livePath),
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
	c.ReadinessProbe.SuccessThreshold = 1
	// A startup probe would let the kubelet ask once a second and make every
	// cold start up to a second longer. Nobody asks before the budget is over
	// instead; whether it is over, WaitReady sees by itself.
	c.LivenessProbe.InitialDelaySeconds = int32(min(seconds(start), 1<<30))
	c.LivenessProbe.PeriodSeconds = 10
	c.LivenessProbe.TimeoutSeconds = 5
	c.LivenessProbe.FailureThreshold = 3
	t := servingv1.RevisionTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Name: revision, Labels: labels, Annotations: annotations},
		Spec: servingv1.RevisionSpec{PodSpec: corev1.PodSpec{
			Containers: []corev1.Container{c}, EnableServiceLinks: &no,
			// A function that needs the API server's token has to say so first.
			AutomountServiceAccountToken: &no,
		}},
	}
	if s.Concurrency > 0 {
		n := int64(s.Concurrency)
		t.Spec.ContainerConcurrency = &n
	}
	if s.Timeout > 0 {
		n := seconds(s.Timeout)
		t.Spec.TimeoutSeconds = &n
		// The cluster's default may be longer than the whole request's time.
		t.Spec.ResponseStartTimeoutSeconds = &n
	}
	return t, nil
}

func probe(path string) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path}}}
}

// environment is the container's, sorted; the platform's own come last and
// win.
func environment(s deployer.Spec) []corev1.EnvVar {
	all := maps.Clone(s.Environment)
	if all == nil {
		all = map[string]string{}
	}
	all["FAAS_UNIT"], all["FAAS_IMAGE"], all["FAAS_KEY"] = s.Table, s.Image.String(), s.Key
	var env []corev1.EnvVar
	for _, k := range slices.Sorted(maps.Keys(all)) {
		env = append(env, corev1.EnvVar{Name: k, Value: escape(all[k])})
	}
	return env
}

// escape keeps $(X) from being replaced by the variable X.
func escape(v string) string { return strings.ReplaceAll(v, "$", "$$") }

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// budget is the revision's start-up time, as [template] wrote it.
func budget(r *servingv1.Revision) time.Duration {
	if c := unitContainer(r.Spec.Containers); c != nil && c.LivenessProbe != nil && c.LivenessProbe.InitialDelaySeconds > 0 {
		return time.Duration(c.LivenessProbe.InitialDelaySeconds) * time.Second
	}
	return defaultStart
}

func unitContainer(all []corev1.Container) *corev1.Container {
	for i := range all {
		if all[i].Name != queue {
			return &all[i]
		}
	}
	return nil
}

// templateOf describes an existing revision just as it is, defaults and all:
// Knative only accepts a revision's name again together with its very spec.
func templateOf(r *servingv1.Revision) servingv1.RevisionTemplateSpec {
	t := servingv1.RevisionTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Name: r.Name, Labels: map[string]string{}, Annotations: map[string]string{}},
		Spec:       *r.Spec.DeepCopy(),
	}
	for k, v := range r.Labels {
		if !strings.HasPrefix(k, knserving.GroupName+"/") {
			t.Labels[k] = v
		}
	}
	for k, v := range r.Annotations {
		switch {
		case k == knserving.ProgressDeadlineAnnotationKey, k == knserving.RevisionPreservedAnnotationKey,
			!strings.HasPrefix(k, knserving.GroupName+"/"):
			t.Annotations[k] = v
		}
	}
	return t
}

// targets are the shares as Knative writes them: by name, never the latest.
func targets(shares []deployer.Share) []servingv1.TrafficTarget {
	all := make([]servingv1.TrafficTarget, len(shares))
	for i, s := range shares {
		latest, percent := false, int64(s.Percent)
		all[i] = servingv1.TrafficTarget{RevisionName: s.Revision, LatestRevision: &latest, Percent: &percent, Tag: s.Tag}
	}
	return all
}

// shares are the targets as the contract writes them. A hand-made share of
// "the latest revision" becomes one without a name: it is nobody's revision.
func shares(all []servingv1.TrafficTarget) []deployer.Share {
	var s []deployer.Share
	for _, t := range all {
		share := deployer.Share{Revision: t.RevisionName, Tag: t.Tag}
		if t.Percent != nil {
			share.Percent = int(*t.Percent)
		}
		s = append(s, share)
	}
	return s
}

// tagOf is a tag that reaches the revision; empty: there is none.
func tagOf(revision string, all []servingv1.TrafficTarget) string {
	for _, t := range all {
		if t.RevisionName == revision && t.Tag != "" {
			return t.Tag
		}
	}
	return ""
}

// stagedTraffic gives the revision the tag next, at 0 % where it has nothing
// yet. A share of 0 % that dead says nothing can answer is dropped: Knative
// would move no share of the route any more because of it.
func stagedTraffic(have []servingv1.TrafficTarget, revision string, dead func(string) bool) []servingv1.TrafficTarget {
	tagged := tagOf(revision, have)
	var all []deployer.Share
	at := -1
	for _, s := range shares(have) {
		mine := s.Revision == revision
		if !mine && s.Tag == TagNext && tagged != TagNext {
			s.Tag = "" // the tag moves here
		}
		if !mine && s.Percent == 0 && (s.Tag == "" || s.Tag == TagNext || dead(s.Revision)) {
			continue
		}
		if mine {
			at = len(all)
		}
		all = append(all, s)
	}
	switch {
	case at < 0:
		all = append(all, deployer.Share{Revision: revision, Tag: TagNext})
	case tagged == "":
		all[at].Tag = TagNext
	}
	return targets(all)
}
