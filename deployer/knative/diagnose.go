package knative

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// evidence is what the cluster shows of a revision that is not Ready.
type evidence struct {
	revision *servingv1.Revision
	scope    deployer.Scope
	pods     []corev1.Pod
	events   []corev1.Event // of the pods, in any order
	now      time.Time
	// since says since when a container runs; nil: as the node says.
	since func(*corev1.Pod, *corev1.ContainerStatus) time.Time
}

// diagnose finds the one cause that waiting won't heal, or says what is being
// waited for. It looks at pods first: they know more, and much earlier, than
// the conditions that Knative makes of them.
func diagnose(e evidence) (f *deployer.Failure, why string) {
	for i := range e.pods {
		p := &e.pods[i]
		if p.DeletionTimestamp != nil {
			continue
		}
		f, podWhy := e.pod(p)
		if f != nil {
			return f, ""
		}
		if podWhy != "" {
			why = podWhy
		}
	}
	f, condWhy := e.conditions()
	if f != nil {
		return f, ""
	}
	if why == "" {
		why = condWhy
	}
	return nil, why
}

// unitStatus is the state of the pod's own container; nil: there is none yet.
func unitStatus(p *corev1.Pod) *corev1.ContainerStatus {
	for i := range p.Status.ContainerStatuses {
		if p.Status.ContainerStatuses[i].Name != queue {
			return &p.Status.ContainerStatuses[i]
		}
	}
	return nil
}

// ended is how the container ended, now or before its restart; nil: it did
// not.
func ended(c *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	if c.State.Terminated != nil {
		return c.State.Terminated
	}
	return c.LastTerminationState.Terminated
}

// podReady reports whether the pod takes requests. The unit's own container
// counts as Ready as soon as it runs: Knative lets queue-proxy ask it.
func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (e evidence) pod(p *corev1.Pod) (*deployer.Failure, string) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return nil, "no node has room yet" + e.growing(p) + ": " + oneLine(c.Message)
		}
	}
	c := unitStatus(p)
	switch {
	case c == nil && p.Status.Reason != "":
		return nil, "the node ended the pod, another one is made: " + strings.TrimSuffix(p.Status.Reason+": "+oneLine(p.Status.Message), ": ")
	case c == nil:
		return nil, "the pod is being made"
	case podReady(p):
		return nil, "the unit answers, Knative is connecting it"
	case ended(c) != nil:
		return e.exit(p, c, ended(c)), ""
	case c.State.Waiting != nil:
		image := c.Image
		if u := unitContainer(e.revision.Spec.Containers); u != nil {
			image = u.Image
		}
		return e.waiting(p, c.State.Waiting.Reason, c.State.Waiting.Message, image)
	case c.State.Running != nil:
		since := c.State.Running.StartedAt.Time
		if e.since != nil {
			since = e.since(p, c)
		}
		limit := budget(e.revision)
		if e.now.Sub(since) > limit {
			return neverReady(limit, ""), ""
		}
		return nil, "started, not Ready yet"
	}
	return nil, "the pod is being made"
}

// latest is the newest event of the pod with one of the reasons; nil: none.
func (e evidence) latest(p *corev1.Pod, reasons ...string) *corev1.Event {
	var last *corev1.Event
	for i := range e.events {
		ev := &e.events[i]
		if ev.InvolvedObject.UID == p.UID && slices.Contains(reasons, ev.Reason) && (last == nil || when(ev).After(when(last))) {
			last = ev
		}
	}
	return last
}

// when is the last time of the event, whichever way its writer says so.
func when(ev *corev1.Event) time.Time {
	switch {
	case ev.Series != nil:
		return ev.Series.LastObservedTime.Time
	case !ev.LastTimestamp.IsZero():
		return ev.LastTimestamp.Time
	case !ev.EventTime.IsZero():
		return ev.EventTime.Time
	}
	return ev.CreationTimestamp.Time
}

// growing is what the cluster's autoscaler says about a pod without a node;
// empty: nothing.
func (e evidence) growing(p *corev1.Pod) string {
	switch ev := e.latest(p, "TriggeredScaleUp", "NotTriggerScaleUp", "NoScaleUp"); {
	case ev == nil:
		return ""
	case ev.Reason == "TriggeredScaleUp":
		return ", a node is being added"
	default:
		return ", and no node is being added (" + oneLine(ev.Message) + ")"
	}
}

// waiting is a pod whose container has not been started. Why is partly said by
// its events alone.
func (e evidence) waiting(p *corev1.Pod, reason, msg, image string) (*deployer.Failure, string) {
	if f := e.absent(msg); f != nil && reason == "CreateContainerConfigError" {
		return f, ""
	}
	f, why := waiting(reason, msg, image)
	if f != nil || reason != "ContainerCreating" && reason != "PodInitializing" {
		return f, why
	}
	if ev := e.latest(p, "FailedMount"); ev != nil {
		if f := e.absent(ev.Message); f != nil {
			return f, ""
		}
		return nil, "its files can't be mounted yet: " + oneLine(ev.Message)
	}
	switch ev := e.latest(p, "Pulling", "Pulled", "Failed", "FailedCreatePodSandBox"); {
	case ev == nil:
	case ev.Reason == "Pulling" && e.now.Sub(when(ev)) >= slowPull:
		why = fmt.Sprintf("the node is pulling the image, for more than %s now", e.now.Sub(when(ev)).Truncate(slowPull))
	case ev.Reason == "Pulling":
		why = "the node is pulling the image"
	case ev.Reason == "FailedCreatePodSandBox":
		why = "the node can't make the pod yet: " + oneLine(ev.Message)
	}
	return nil, why
}

// slowPull is the step in which a pull that takes long is told.
const slowPull = 15 * time.Second

var (
	absentObject = regexp.MustCompile(`\b(secret|configmap) "([^"]+)" not found`)
	absentKey    = regexp.MustCompile(`(?:couldn't find key|references non-existent (secret|config) key:?) ?([-._A-Za-z0-9]+)(?: in (Secret|ConfigMap) [^/ ]+/([-.a-z0-9]+))?`)
)

// absent recognises a Secret, ConfigMap or key that is not there; nil: the
// message says something else.
func (e evidence) absent(msg string) *deployer.Failure {
	msg = oneLine(msg)
	if m := absentObject.FindStringSubmatch(msg); m != nil {
		source := deployer.SecretSource(m[2])
		if m[1] == "configmap" {
			source = deployer.ConfigSource(m[2])
		}
		name, key := e.reads(source, "")
		return missingKey(e.scope, source, name, key, false, true)
	}
	m := absentKey.FindStringSubmatch(msg)
	if m == nil {
		return nil
	}
	source, exists := deployer.SecretSource(m[4]), true
	if m[3] == "ConfigMap" || m[1] == "config" {
		source = deployer.ConfigSource(m[4])
	}
	if m[4] == "" { // a volume's message names the key alone
		source = e.holder(m[2], m[1] == "config")
	}
	name, _ := e.reads(source, m[2])
	// Whose Secret it is does not show here; the preflight knows it.
	return missingKey(e.scope, source, name, m[2], exists, true)
}

// reads is the name of faas.yml under which the revision reads a key of the
// source, any key where it is empty, and that key.
func (e evidence) reads(s deployer.Source, key string) (name, of string) {
	for _, u := range e.uses() {
		if u.source == s && (key == "" || u.ref.Key == key) {
			return u.name, u.ref.Key
		}
	}
	return "", key
}

// holder is the source from which the revision reads the key as a file.
func (e evidence) holder(key string, config bool) deployer.Source {
	for _, u := range e.uses() {
		if u.ref.Key == key && u.ref.Path != "" && config == strings.HasPrefix(string(u.source), string(deployer.ConfigSource(""))) {
			return u.source
		}
	}
	if config {
		return deployer.ConfigSource("of the unit")
	}
	return deployer.SecretSource("of the unit")
}

// uses are what the revision reads, as [template] wrote it.
func (e evidence) uses() []use {
	var all []use
	add := func(source deployer.Source, name, key, path string) {
		all = append(all, use{source: source, name: name, ref: deployer.Ref{Key: key, Path: path}})
	}
	if c := unitContainer(e.revision.Spec.Containers); c != nil {
		for _, v := range c.Env {
			switch {
			case v.ValueFrom == nil:
			case v.ValueFrom.SecretKeyRef != nil:
				add(deployer.SecretSource(v.ValueFrom.SecretKeyRef.Name), v.Name, v.ValueFrom.SecretKeyRef.Key, "")
			case v.ValueFrom.ConfigMapKeyRef != nil:
				add(deployer.ConfigSource(v.ValueFrom.ConfigMapKeyRef.Name), v.Name, v.ValueFrom.ConfigMapKeyRef.Key, "")
			}
		}
	}
	for _, v := range e.revision.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, p := range v.Projected.Sources {
			switch {
			case p.Secret != nil:
				for _, i := range p.Secret.Items {
					add(deployer.SecretSource(p.Secret.Name), strings.TrimPrefix(i.Path, secretFiles), i.Key, i.Path)
				}
			case p.ConfigMap != nil:
				for _, i := range p.ConfigMap.Items {
					add(deployer.ConfigSource(p.ConfigMap.Name), strings.TrimPrefix(i.Path, configFiles), i.Key, i.Path)
				}
			}
		}
	}
	return all
}

func neverReady(limit time.Duration, more string) *deployer.Failure {
	return &deployer.Failure{
		Code: deployer.ProbeNeverPasses, Cause: fmt.Sprintf("it runs, but %s did not answer within %s%s", readyPath, limit, more),
		Next: "look for what holds it up at its start; raise initTimeout if it needs longer",
	}
}

// killedByProbe are the kubelet's words for a container that it ended because
// a probe failed.
var killedByProbe = regexp.MustCompile(`failed (liveness|startup) probe`)

// exit is the cause of a container that ended before it was Ready.
func (e evidence) exit(p *corev1.Pod, c *corev1.ContainerStatus, t *corev1.ContainerStateTerminated) *deployer.Failure {
	for _, ev := range e.events {
		if ev.InvolvedObject.UID == p.UID && ev.Reason == "Killing" && killedByProbe.MatchString(ev.Message) {
			return neverReady(budget(e.revision), ", so the cluster ended it")
		}
	}
	switch t.Reason {
	case "OOMKilled":
		return outOfMemory(e.revision)
	case "StartError", "ContainerCannotRun":
		return unusable(t.Message)
	}
	f := exited(int(t.ExitCode), t.Message)
	if ran := t.FinishedAt.Sub(t.StartedAt.Time); ran > 0 && ran < time.Hour {
		f.Cause += " after " + ran.Round(100*time.Millisecond).String()
	}
	if c.RestartCount > 1 {
		f.Cause += fmt.Sprintf(", %d times", c.RestartCount)
	}
	return f
}

func outOfMemory(r *servingv1.Revision) *deployer.Failure {
	limit := "its limit"
	if u := unitContainer(r.Spec.Containers); u != nil {
		if q, ok := u.Resources.Limits[corev1.ResourceMemory]; ok {
			limit = "its limit of " + q.String()
		}
	}
	return &deployer.Failure{Code: deployer.OutOfMemory, Cause: "killed at its start: it needs more memory than " + limit, Next: "raise memory, or load less at the start"}
}

// unusable is a container that could not even start.
func unusable(msg string) *deployer.Failure {
	msg = oneLine(msg)
	f := &deployer.Failure{Code: deployer.ImageUnusable, Cause: "the container can't be started: " + msg, Next: "check the image's entry point; build it again"}
	if strings.Contains(msg, "exec format error") {
		f.Cause, f.Next = "the image is for another processor than the node's", "build the image for the cluster's architecture"
	}
	return f
}

// exited is a crash with that code; output is what the container left as its
// last message.
func exited(code int, output string) *deployer.Failure {
	if strings.Contains(output, "exec format error") {
		return unusable(output)
	}
	f := &deployer.Failure{Code: deployer.Crash, ExitCode: code, Next: "read its last lines; run the unit locally", Logs: lines(output)}
	switch {
	case code > 128 && code < 160:
		f.Signal = unix.SignalName(syscall.Signal(code - 128))
		f.Cause = fmt.Sprintf("ended by signal %s before it was Ready", f.Signal)
	case code == 0:
		f.Cause = "ended by itself (exit code 0) before it was Ready"
		f.Next = "the unit has to keep running and answer " + readyPath
	default:
		f.Cause = fmt.Sprintf("exited with code %d before it was Ready", code)
	}
	return f
}

// lines are the last lines of s.
func lines(s string) []string {
	s = strings.TrimRight(s, "\n")
	if s == "" {
		return nil
	}
	all := strings.Split(s, "\n")
	return all[max(0, len(all)-deployer.LogLines):]
}

var (
	imageGone    = regexp.MustCompile(`(?i)not found|manifest unknown|name unknown|MANIFEST_UNKNOWN|NAME_UNKNOWN`)
	imageRefused = regexp.MustCompile(`(?i)unauthorized|authorization failed|authentication required|forbidden|access denied|denied: |\b40[13]\b`)
	imageWrong   = regexp.MustCompile(`(?i)no match for platform|unsupported|invalid|corrupt|digest mismatch|unexpected (size|digest)`)
)

// waiting is a container that has not been started.
func waiting(reason, msg, image string) (*deployer.Failure, string) {
	msg = oneLine(msg)
	switch reason {
	case "ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError", "InvalidImageName", "ErrImageNeverPull":
		return pull(reason, msg, image)
	case "CreateContainerConfigError":
		f := unusable(msg)
		if strings.Contains(msg, "runAsNonRoot") {
			f.Next = "the image has to name a user other than root, by number"
		}
		return f, ""
	case "CreateContainerError", "RunContainerError":
		return unusable(msg), ""
	case "PodInitializing", "ContainerCreating", "":
		return nil, "pulling the image or making the container"
	}
	return nil, strings.TrimSuffix(reason+": "+msg, ": ")
}

func pull(reason, msg, image string) (*deployer.Failure, string) {
	// The message quotes the reference, whose words prove nothing.
	text := strings.ReplaceAll(msg, image, "")
	where := "the registry"
	if d, err := name.NewDigest(image); err == nil {
		where = d.RegistryStr()
	}
	switch {
	case imageGone.MatchString(text):
		return missingImage(image, where), ""
	case imageRefused.MatchString(text):
		return &deployer.Failure{Code: deployer.ImageUnauthorized, Cause: fmt.Sprintf("%s refuses the cluster: %s", where, msg), Next: "ask the platform team for the namespace's pull secret"}, ""
	case reason == "InvalidImageName", imageWrong.MatchString(text):
		f := unusable(msg)
		f.Cause = "the image can't be used: " + msg
		return f, ""
	case msg == "":
		return nil, "the image could not be pulled, trying again"
	}
	return nil, "the image could not be pulled, trying again: " + msg
}

func missingImage(image, where string) *deployer.Failure {
	return &deployer.Failure{Code: deployer.ImageMissing, Cause: fmt.Sprintf("%s has no image %s", where, image), Next: "build again; the registry may have removed it"}
}

var (
	exitReason  = regexp.MustCompile(`^ExitCode(\d+)$`)
	exitMessage = regexp.MustCompile(`^Container failed with: ?(?s:(.*))$`)
)

// conditions reads what Knative itself says of a revision without Ready pods.
func (e evidence) conditions() (*deployer.Failure, string) {
	r := e.revision
	why := "Knative is starting it"
	for _, kind := range []string{"ContainerHealthy", "ResourcesAvailable", "Ready"} {
		var reason, msg string
		var status corev1.ConditionStatus
		for _, c := range r.Status.Conditions {
			if string(c.Type) == kind {
				reason, msg, status = c.Reason, oneLine(c.Message), c.Status
				if m := exitReason.FindStringSubmatch(reason); m != nil && status == corev1.ConditionFalse {
					return exitCondition(r, m[1], c.Message), ""
				}
			}
		}
		if f := quota(msg); f != nil {
			return f, ""
		}
		if f := admission(msg); f != nil && status == corev1.ConditionFalse {
			return f, ""
		}
		if status != corev1.ConditionFalse {
			continue
		}
		switch reason {
		case "NotOwned", "Unschedulable", "Deploying":
			why = msg
		case "ContainerMissing":
			return pullCondition(r, msg)
		case "ProgressDeadlineExceeded":
			return &deployer.Failure{Code: deployer.ProbeNeverPasses, Cause: "Knative gave up: it did not become Ready in time", Next: "look at its last lines; raise initTimeout if it needs longer"}, ""
		case "FailedCreate":
			return &deployer.Failure{Code: deployer.Denied, Cause: "the cluster does not make its pod: " + msg, Next: "this is a rule of the cluster; the platform team can say what it wants"}, ""
		default:
			if f := e.absent(msg); f != nil && reason == "CreateContainerConfigError" {
				return f, ""
			}
			if f, w := waiting(reason, msg, specImage(r)); f != nil {
				return f, ""
			} else if msg != "" {
				why = w
			}
		}
	}
	return nil, why
}

func specImage(r *servingv1.Revision) string {
	if u := unitContainer(r.Spec.Containers); u != nil {
		return u.Image
	}
	return ""
}

func exitCondition(r *servingv1.Revision, code, msg string) *deployer.Failure {
	n, _ := strconv.Atoi(code) // digits, by the expression
	if m := exitMessage.FindStringSubmatch(msg); m != nil {
		msg = m[1]
	}
	if n == 137 && strings.Contains(msg, "OOMKilled") {
		return outOfMemory(r)
	}
	return exited(n, msg)
}

func pullCondition(r *servingv1.Revision, msg string) (*deployer.Failure, string) {
	f, why := pull("ErrImagePull", msg, specImage(r))
	if f == nil {
		f = &deployer.Failure{Code: deployer.ImageMissing, Cause: "Knative can't use the image: " + msg, Next: "build again; the registry may have removed it"}
	}
	return f, why
}

// uncreated says why Knative has not made the revision that svc describes.
func uncreated(svc *servingv1.Service) (*deployer.Failure, string) {
	const why = "Knative has not made the revision yet"
	c := svc.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady)
	if svc.Status.ObservedGeneration != svc.Generation || !c.IsFalse() || c.Reason != "RevisionFailed" {
		return nil, why
	}
	msg := oneLine(c.Message)
	if f := quota(msg); f != nil {
		return f, ""
	}
	if f := admission(msg); f != nil {
		return f, ""
	}
	if strings.Contains(msg, "already exists") {
		return nil, why + ": " + msg // another one of that name is being removed
	}
	if strings.Contains(msg, "failed calling webhook") {
		return nil, why + ": " + msg // nobody has said no; Knative tries again
	}
	if strings.Contains(msg, svc.Spec.Template.Name) || strings.Contains(msg, "creation failed") {
		return &deployer.Failure{Code: deployer.Denied, Cause: "Knative can't make the revision: " + msg, Next: "this is a rule of the cluster; the platform team can say what it wants"}, ""
	}
	return nil, why // of an earlier revision
}

// imageOf is the image that the revision names.
func imageOf(r *servingv1.Revision) (name.Digest, error) {
	d, err := name.NewDigest(specImage(r))
	if err != nil {
		return d, fmt.Errorf("knative: revision %s: %w", r.Name, err)
	}
	return d, nil
}
