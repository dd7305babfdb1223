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
	resources, err := resourcesOf(s)
	if err != nil {
		return none, err
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
	autoscale(annotations, s)
	if s.Internal {
		annotations[AnnotationNetwork] = internal
	}
	for source, v := range s.Versions {
		annotations[AnnotationVersion+label(string(source))] = v
	}
	labels := scopeLabels(scope)
	labels[LabelUnit] = label(s.Unit)
	no := false
	c := corev1.Container{
		Name: container, Image: s.Image.String(),
		// A digest never changes: what a node has is right.
		ImagePullPolicy: corev1.PullIfNotPresent,
		Env:             environment(s),
		Resources:       resources,
		ReadinessProbe:  probe(readyPath),
		LivenessProbe:   probe(livePath),
		SecurityContext: restricted(),
	}
	if s.Timed {
		c.Env = append(c.Env, timerKey(scope))
	}
	if s.Server {
		c.ReadinessProbe, c.LivenessProbe = connects(), connects()
	}
	c.ReadinessProbe.SuccessThreshold = 1
	// Where no period is given, Kubernetes asks Knative's container each 10 s
	// and waits 1 s for its answer: an instance that starts a moment too late
	// for the first question would stand there for all of them. Half a minute
	// of silence puts an instance out of use, as it does by default.
	c.ReadinessProbe.PeriodSeconds = 1
	c.ReadinessProbe.TimeoutSeconds = 5
	c.ReadinessProbe.FailureThreshold = 6
	// A startup probe would let the kubelet ask once a second and make every
	// cold start up to a second longer. Nobody asks before the budget is over
	// instead; whether it is over, WaitReady sees by itself.
	c.LivenessProbe.InitialDelaySeconds = int32(min(seconds(start), 1<<30))
	c.LivenessProbe.PeriodSeconds = 10
	c.LivenessProbe.TimeoutSeconds = 5
	c.LivenessProbe.FailureThreshold = 3
	volumes, mounts := files(s)
	c.VolumeMounts = mounts
	t := servingv1.RevisionTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Name: revision, Labels: labels, Annotations: annotations},
		Spec: servingv1.RevisionSpec{PodSpec: corev1.PodSpec{
			Containers: []corev1.Container{c}, Volumes: volumes, EnableServiceLinks: &no,
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
	if s.IdleTimeout > 0 {
		n := seconds(s.IdleTimeout)
		t.Spec.IdleTimeoutSeconds = &n
	}
	return t, nil
}

// autoscale writes what the number of instances follows.
func autoscale(annotations map[string]string, s deployer.Spec) {
	target := s.ScaleTarget
	switch s.ScaleMetric {
	case "":
	case autoscaling.CPU:
		// Only the cluster's own autoscaler counts CPU, and it can't start
		// from nothing.
		annotations[autoscaling.ClassAnnotationKey] = autoscaling.HPA
		annotations[autoscaling.MetricAnnotationKey] = s.ScaleMetric
		annotations[autoscaling.MinScaleAnnotationKey] = strconv.Itoa(max(1, s.MinScale))
		target = cmp.Or(target, defaultCPUTarget)
	default:
		annotations[autoscaling.MetricAnnotationKey] = s.ScaleMetric
	}
	if target > 0 {
		annotations[autoscaling.TargetAnnotationKey] = strconv.FormatFloat(target, 'f', -1, 64)
	}
}

// defaultCPUTarget is the percent of its CPU that an instance is meant to use
// where nobody says more: HPA has no default of its own that Knative passes on.
const defaultCPUTarget = 80

// connects asks for no more than a connection; Knative fills the port in.
func connects() *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}}
}

func probe(path string) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path}}}
}

// environment is the container's, sorted; the platform's own come last and
// win.
func environment(s deployer.Spec) []corev1.EnvVar {
	all := map[string]corev1.EnvVar{}
	plain := func(k, v string) { all[k] = corev1.EnvVar{Name: k, Value: escape(v)} }
	for k, v := range s.Environment {
		plain(k, v)
	}
	for k, r := range s.Config {
		if r.Path == "" {
			all[k] = corev1.EnvVar{Name: k, ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: r.Name}, Key: r.Key,
			}}}
		}
	}
	for k, r := range s.Secrets {
		if r.Path == "" {
			all[k] = corev1.EnvVar{Name: k, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: r.Name}, Key: r.Key,
			}}}
		}
	}
	plain("FAAS_UNIT", s.Table)
	plain("FAAS_IMAGE", s.Image.String())
	plain("FAAS_KEY", s.Key)
	plain("FAAS_METRICS_PORT", strconv.Itoa(MetricsPort))
	var env []corev1.EnvVar
	for _, k := range slices.Sorted(maps.Keys(all)) {
		env = append(env, all[k])
	}
	return env
}

// filesVolume holds every file that the unit reads from Secrets and
// ConfigMaps, in a folder each, under the names that faas.yml gives them.
const (
	filesVolume = "faas-files"
	configFiles = "config/"
	secretFiles = "secret/"
)

// files are the volume of the unit's files and one mount for each, at its own
// path: what else the image has in that folder stays visible. A file that is
// mounted alone does not follow a rotation, and need not: that is a new
// revision.
func files(s deployer.Spec) ([]corev1.Volume, []corev1.VolumeMount) {
	var mounts []corev1.VolumeMount
	var from []corev1.VolumeProjection
	add := func(kind string, refs map[string]deployer.Ref, projection func(deployer.Ref, []corev1.KeyToPath) corev1.VolumeProjection) {
		for _, n := range slices.Sorted(maps.Keys(refs)) {
			if r := refs[n]; r.Path != "" {
				from = append(from, projection(r, []corev1.KeyToPath{{Key: r.Key, Path: kind + n}}))
				mounts = append(mounts, corev1.VolumeMount{Name: filesVolume, MountPath: r.Path, SubPath: kind + n, ReadOnly: true})
			}
		}
	}
	add(configFiles, s.Config, func(r deployer.Ref, items []corev1.KeyToPath) corev1.VolumeProjection {
		return corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: r.Name}, Items: items}}
	})
	add(secretFiles, s.Secrets, func(r deployer.Ref, items []corev1.KeyToPath) corev1.VolumeProjection {
		return corev1.VolumeProjection{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: r.Name}, Items: items}}
	})
	if len(from) == 0 {
		return nil, nil
	}
	return []corev1.Volume{{Name: filesVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: from}}}}, mounts
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
	withoutFloor(t.Annotations)
	return t
}

// targets are the shares as Knative writes them: by name, never the latest.
func targets(shares []deployer.Share) []servingv1.TrafficTarget {
	all := make([]servingv1.TrafficTarget, len(shares))
	for i, s := range shares {
		// One without a name was made by hand; see pin.
		latest, percent := s.Revision == "", int64(s.Percent)
		all[i] = servingv1.TrafficTarget{RevisionName: s.Revision, LatestRevision: &latest, Percent: &percent, Tag: s.Tag}
	}
	return all
}

// pin gives a hand-made share of "the latest revision" the name that it means
// now: another template must not take its traffic along, unproven.
func pin(svc *servingv1.Service) {
	ready := svc.Status.LatestReadyRevisionName
	for i, t := range svc.Spec.Traffic {
		if t.RevisionName == "" && ready != "" {
			no := false
			svc.Spec.Traffic[i].RevisionName, svc.Spec.Traffic[i].LatestRevision = ready, &no
		}
	}
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
