package knative

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// resourcesOf are the unit's limits, which are its requests too.
func resourcesOf(s deployer.Spec) (corev1.ResourceRequirements, error) {
	limits := corev1.ResourceList{}
	for name, v := range map[corev1.ResourceName]string{corev1.ResourceMemory: s.Memory, corev1.ResourceCPU: s.CPU} {
		if v == "" {
			continue
		}
		q, err := resource.ParseQuantity(v)
		if err != nil {
			return corev1.ResourceRequirements{}, fmt.Errorf("knative: unit %s: %s %q: %w", s.Unit, name, v, err)
		}
		limits[name] = q
	}
	return corev1.ResourceRequirements{Limits: limits, Requests: maps.Clone(limits)}, nil
}

// restricted is what no unit's container needs to be allowed.
func restricted() *corev1.SecurityContext {
	yes, no := true, false
	return &corev1.SecurityContext{
		RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// timerKey is the variable that a timer's call proves itself with.
func timerKey(scope deployer.Scope) corev1.EnvVar {
	return corev1.EnvVar{Name: "FAAS_TIMER_KEY", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: timerSecret(scope)}, Key: timerSecretKey,
	}}}
}

// runName is the variable that holds the run's name; the time a timer's run
// is for stands in it.
func runName() corev1.EnvVar {
	return corev1.EnvVar{Name: "FAAS_JOB_NAME", ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['" + batchv1.JobNameLabel + "']"},
	}}
}

// runSpec is a run of the job unit. more joins the variables of its container.
func runSpec(scope deployer.Scope, s deployer.Spec, revision string, more ...corev1.EnvVar) (batchv1.JobSpec, error) {
	resources, err := resourcesOf(s)
	if err != nil {
		return batchv1.JobSpec{}, err
	}
	volumes, mounts := files(s)
	c := corev1.Container{
		Name: container, Image: s.Image.String(), ImagePullPolicy: corev1.PullIfNotPresent,
		Env:       append(append(environment(s), corev1.EnvVar{Name: "K_REVISION", Value: revision}, corev1.EnvVar{Name: "K_SERVICE", Value: s.Name}, runName()), more...),
		Resources: resources, SecurityContext: restricted(), VolumeMounts: mounts,
	}
	j := s.Job
	parallelism, completions := int32(j.Parallelism), int32(j.Completions)
	retries := int32(j.Retries)
	spec := batchSpec(scope, s.Unit, revision, c, volumes)
	spec.Parallelism, spec.Completions = &parallelism, &completions
	spec.BackoffLimit = &retries
	if completions > 1 {
		// Each completion knows which one it is, and has tries of its own. A
		// cluster that does not know that yet counts all of them together, so
		// the sum is bounded too.
		indexed, all := batchv1.IndexedCompletion, (retries+1)*completions
		spec.CompletionMode, spec.BackoffLimitPerIndex, spec.BackoffLimit = &indexed, &retries, &all
	}
	if j.Timeout > 0 {
		n := seconds(j.Timeout)
		spec.ActiveDeadlineSeconds = &n
	}
	if j.TTL > 0 {
		n := int32(min(seconds(j.TTL), 1<<31-1))
		spec.TTLSecondsAfterFinished = &n
	}
	return spec, nil
}

// batchSpec is what runs and calls share.
func batchSpec(scope deployer.Scope, unit, revision string, c corev1.Container, volumes []corev1.Volume) batchv1.JobSpec {
	no := false
	labels := scopeLabels(scope)
	labels[LabelUnit] = label(unit)
	labels[LabelRevision] = label(revision)
	return batchv1.JobSpec{
		// A node that is emptied is nobody's failure.
		PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
			Action:          batchv1.PodFailurePolicyActionIgnore,
			OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}},
		}}},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec: corev1.PodSpec{
				Containers: []corev1.Container{c}, Volumes: volumes, RestartPolicy: corev1.RestartPolicyNever,
				EnableServiceLinks: &no, AutomountServiceAccountToken: &no,
			},
		},
	}
}

// What a container that only makes a call needs at most.
const (
	fireMemory = "256Mi"
	fireCPU    = "250m"
	// fireExtra is the time to start it and to reach the unit, beside the
	// call's own.
	fireExtra = 2 * time.Minute
	// fireKept is how long an ended call and its log stay, in seconds.
	fireKept = 3600
)

// fireSpec is one call of a function of the unit, at the revision's own
// address: not the route's, whose shares may be split, nor a tag's, which
// moves.
func fireSpec(scope deployer.Scope, namespace string, t deployer.Timer, s deployer.Spec, revision string) (batchv1.JobSpec, error) {
	resources, err := resourcesOf(s)
	if err != nil {
		return batchv1.JobSpec{}, err
	}
	for name, most := range map[corev1.ResourceName]string{corev1.ResourceMemory: fireMemory, corev1.ResourceCPU: fireCPU} {
		q := resource.MustParse(most)
		if has, ok := resources.Limits[name]; ok && has.Cmp(q) < 0 {
			q = has
		}
		resources.Limits[name], resources.Requests[name] = q, q
	}
	timeout := cmp.Or(s.Timeout, time.Minute)
	to, err := json.Marshal(map[string]any{
		"url": "http://" + revision + "." + namespace + ".svc",
		// What Knative's gateways say to its activator, which starts the
		// revision where it has no instance.
		"headers":   map[string]string{"knative-serving-namespace": namespace, "knative-serving-revision": revision},
		"timeoutMs": (timeout + time.Minute).Milliseconds(), // the function's own time-out speaks first
	})
	if err != nil {
		return batchv1.JobSpec{}, err
	}
	c := corev1.Container{
		Name: container, Image: s.Image.String(), ImagePullPolicy: corev1.PullIfNotPresent,
		Env:       []corev1.EnvVar{{Name: "FAAS_FIRE", Value: escape(string(to))}, timerVar(scope, t), timerKey(scope), runName()},
		Resources: resources, SecurityContext: restricted(),
	}
	spec := batchSpec(scope, s.Unit, revision, c, nil)
	// The function may have done half of its work: who may be called twice is
	// not ours to say.
	never, kept, deadline := int32(0), int32(fireKept), seconds(timeout+time.Minute+fireExtra)
	spec.BackoffLimit, spec.TTLSecondsAfterFinished, spec.ActiveDeadlineSeconds = &never, &kept, &deadline
	return spec, nil
}

// timerVar tells a container which timer started it.
func timerVar(scope deployer.Scope, t deployer.Timer) corev1.EnvVar {
	b, _ := json.Marshal(map[string]string{ // strings can't fail to encode
		"function": t.Function, "name": t.Name, "payload": t.Payload, "source": "/" + label(scope.Environment) + "/" + label(scope.Service),
	})
	return corev1.EnvVar{Name: "FAAS_TIMER", Value: escape(string(b))}
}

// timerEvent is the event of a job's timer, for programs that read FAAS_EVENT
// alone. When the run is for, they read in FAAS_JOB_NAME, as our adapter does.
func timerEvent(t deployer.Timer) corev1.EnvVar {
	b, _ := json.Marshal(map[string]string{"triggerName": t.Name, "payload": t.Payload}) // strings can't fail to encode
	return corev1.EnvVar{Name: "FAAS_EVENT", Value: escape(string(b))}
}

// writtenUnder is the lease epoch of the object's last write.
func writtenUnder(annotations map[string]string) int64 {
	e, _ := strconv.ParseInt(annotations[AnnotationEpoch], 10, 64)
	return e
}
