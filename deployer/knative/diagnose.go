package knative

import (
	"fmt"
	"regexp"
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
	pods     []corev1.Pod
	events   []corev1.Event // of the pods
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
	f, condWhy := conditions(e.revision)
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
			// A pool of nodes may be growing.
			return nil, "no node has room yet: " + oneLine(c.Message)
		}
	}
	c := unitStatus(p)
	switch {
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
		return waiting(c.State.Waiting.Reason, c.State.Waiting.Message, image)
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
		if strings.Contains(msg, "secret") || strings.Contains(msg, "configmap") || strings.Contains(msg, "couldn't find key") {
			return &deployer.Failure{Code: deployer.SecretMissing, Cause: msg, Next: "create it, or take it out of faas.yml"}, ""
		}
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
func conditions(r *servingv1.Revision) (*deployer.Failure, string) {
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
		if m := webhookDenied.FindStringSubmatch(msg[max(0, strings.Index(msg, "admission webhook")):]); m != nil && status == corev1.ConditionFalse {
			return denied(m[1], m[2]), ""
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
	if i := strings.Index(msg, "admission webhook"); i >= 0 {
		if m := webhookDenied.FindStringSubmatch(msg[i:]); m != nil {
			return denied(m[1], strings.TrimSuffix(m[2], ".")), ""
		}
	}
	if strings.Contains(msg, "already exists") {
		return nil, why + ": " + msg // another one of that name is being removed
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
