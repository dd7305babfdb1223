package knative

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

type apisCondition = apis.Condition

// The node's clock and ours.
var noon = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

func starting(t *testing.T, conditions ...apis.Condition) *servingv1.Revision {
	t.Helper()
	s := spec(t)
	s.Secrets = map[string]deployer.Ref{"DB_PASSWORD": {Name: "db", Key: "password"}, "CA": {Name: "certs", Key: "ca.pem", Path: "/etc/shop/ca.pem"}}
	s.Config = map[string]deployer.Ref{"LIMIT": {Name: "limits", Key: "max"}}
	tmpl, err := template(scope, s, "shop-main-1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	r := &servingv1.Revision{ObjectMeta: tmpl.ObjectMeta, Spec: tmpl.Spec}
	r.Status.SetConditions(conditions)
	return r
}

// pod is a pod whose unit is in that state; queue-proxy is fine.
func pod(state, last corev1.ContainerState) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u1"}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{
		{Name: queue, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		// Knative's containers have no probe of their own, so they are Ready
		// as soon as they run.
		{Name: container, State: state, LastTerminationState: last, Ready: state.Running != nil},
	}
	return p
}

func isWaiting(reason, msg string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: msg}}
}

func hasEnded(code int32, reason, msg string) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: code, Reason: reason, Message: msg, StartedAt: metav1.NewTime(noon), FinishedAt: metav1.NewTime(noon.Add(2 * time.Second)),
	}}
}

func runs(since time.Duration) corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(noon.Add(-since))}}
}

func TestDiagnose(t *testing.T) {
	none := corev1.ContainerState{}
	image := spec(t).Image.String()
	unscheduled := corev1.Pod{}
	unscheduled.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/3 nodes are available: 3 Insufficient cpu."}}
	leaving := pod(hasEnded(1, "Error", ""), none)
	leaving.DeletionTimestamp = &metav1.Time{Time: noon}
	answering := pod(runs(time.Hour), hasEnded(1, "Error", ""))
	answering.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	False := func(kind, reason, msg string) apis.Condition {
		return apis.Condition{Type: apis.ConditionType(kind), Status: corev1.ConditionFalse, Reason: reason, Message: msg}
	}
	event := func(reason, msg string, ago time.Duration) corev1.Event {
		return corev1.Event{InvolvedObject: corev1.ObjectReference{UID: "u1"}, Reason: reason, Message: msg, LastTimestamp: metav1.NewTime(noon.Add(-ago))}
	}
	creating := []corev1.Pod{pod(isWaiting("ContainerCreating", ""), none)}
	growing := *unscheduled.DeepCopy()
	growing.UID = "u1"
	evicted := corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "The node was low on resource: memory."}}
	killed := corev1.Event{InvolvedObject: corev1.ObjectReference{UID: "u1"}, Reason: "Killing", Message: "Container function failed liveness probe, will be restarted"}
	for name, c := range map[string]struct {
		pods   []corev1.Pod
		events []corev1.Event
		conds  []apis.Condition
		code   deployer.Code // empty: still waiting
		says   string        // in cause or why
		next   string
	}{
		"nothing yet":   {says: "Knative is starting it"},
		"no node":       {pods: []corev1.Pod{unscheduled}, conds: []apis.Condition{False("ResourcesAvailable", "Unschedulable", "0/3 nodes")}, says: "no node has room yet: 0/3 nodes are available"},
		"pulling":       {pods: []corev1.Pod{pod(isWaiting("ContainerCreating", ""), none)}, says: "pulling the image"},
		"just started":  {pods: []corev1.Pod{pod(runs(time.Second), none)}, says: "not Ready yet"},
		"mute":          {pods: []corev1.Pod{pod(runs(21*time.Second), none)}, code: deployer.ProbeNeverPasses, says: "/health/readiness did not answer within 20s"},
		"answering":     {pods: []corev1.Pod{answering}, says: "the unit answers"},
		"leaving pod":   {pods: []corev1.Pod{leaving}, says: "Knative is starting it"},
		"crash":         {pods: []corev1.Pod{pod(hasEnded(3, "Error", "a\nboom\n"), none)}, code: deployer.Crash, says: "exited with code 3 before it was Ready after 2s"},
		"crash, again":  {pods: []corev1.Pod{pod(isWaiting("CrashLoopBackOff", "back-off"), hasEnded(3, "Error", "boom"))}, code: deployer.Crash, says: "exited with code 3"},
		"crash, anew":   {pods: []corev1.Pod{pod(runs(time.Second), hasEnded(3, "Error", "boom"))}, code: deployer.Crash, says: "exited with code 3"},
		"clean end":     {pods: []corev1.Pod{pod(hasEnded(0, "Completed", ""), none)}, code: deployer.Crash, says: "ended by itself (exit code 0)"},
		"signal":        {pods: []corev1.Pod{pod(hasEnded(139, "Error", ""), none)}, code: deployer.Crash, says: "ended by signal SIGSEGV"},
		"liveness":      {pods: []corev1.Pod{pod(runs(time.Second), hasEnded(137, "Error", ""))}, events: []corev1.Event{killed}, code: deployer.ProbeNeverPasses, says: "so the cluster ended it"},
		"memory":        {pods: []corev1.Pod{pod(isWaiting("CrashLoopBackOff", ""), hasEnded(137, "OOMKilled", ""))}, code: deployer.OutOfMemory, says: "its limit of 128Mi"},
		"no program":    {pods: []corev1.Pod{pod(hasEnded(128, "StartError", `exec: "/x": no such file`), none)}, code: deployer.ImageUnusable, says: "no such file"},
		"architecture":  {pods: []corev1.Pod{pod(hasEnded(1, "Error", "exec /usr/bin/node: exec format error"), none)}, code: deployer.ImageUnusable, says: "another processor"},
		"gone":          {pods: []corev1.Pod{pod(isWaiting("ErrImagePull", `failed to resolve reference "`+image+`": `+image+`: not found`), none)}, code: deployer.ImageMissing, says: "registry.example has no image"},
		"refused":       {pods: []corev1.Pod{pod(isWaiting("ErrImagePull", "pull access denied, repository does not exist or may require authorization: authorization failed"), none)}, code: deployer.ImageUnauthorized, says: "refuses the cluster"},
		"platform":      {pods: []corev1.Pod{pod(isWaiting("ErrImagePull", "no match for platform in manifest"), none)}, code: deployer.ImageUnusable, says: "no match for platform"},
		"registry slow": {pods: []corev1.Pod{pod(isWaiting("ImagePullBackOff", `Back-off pulling image "`+image+`": dial tcp: i/o timeout`), none)}, says: "trying again"},
		"secret":        {pods: []corev1.Pod{pod(isWaiting("CreateContainerConfigError", `secret "db" not found`), none)}, code: deployer.SecretMissing, says: "there is no secret db, which DB_PASSWORD reads", next: "faas secret set DB_PASSWORD --env prod"},
		"key":           {pods: []corev1.Pod{pod(isWaiting("CreateContainerConfigError", "couldn't find key password in Secret team/db"), none)}, code: deployer.SecretMissing, says: "secret db has no key password, which DB_PASSWORD reads", next: "faas secret set DB_PASSWORD --env prod"},
		"config":        {pods: []corev1.Pod{pod(isWaiting("CreateContainerConfigError", "couldn't find key max in ConfigMap team/limits"), none)}, code: deployer.ConfigMissing, says: "config map limits has no key max, which LIMIT reads", next: "add key max to config map limits"},
		"no config":     {pods: []corev1.Pod{pod(isWaiting("CreateContainerConfigError", `configmap "limits" not found`), none)}, code: deployer.ConfigMissing, says: "there is no config map limits"},
		"secret, later": {conds: []apis.Condition{False("ResourcesAvailable", "CreateContainerConfigError", `secret "db" not found`)}, code: deployer.SecretMissing, says: "there is no secret db"},
		"file":          {pods: creating, events: []corev1.Event{event("FailedMount", `MountVolume.SetUp failed for volume "faas-files" : secret "certs" not found`, 0)}, code: deployer.SecretMissing, says: "there is no secret certs, which CA reads", next: "faas secret set CA --env prod"},
		"file's key":    {pods: creating, events: []corev1.Event{event("FailedMount", `MountVolume.SetUp failed for volume "faas-files" : references non-existent secret key: ca.pem`, 0)}, code: deployer.SecretMissing, says: "secret certs has no key ca.pem, which CA reads"},
		"mount":         {pods: creating, events: []corev1.Event{event("FailedMount", "timed out", 0)}, says: "can't be mounted yet: timed out"},
		"pull":          {pods: creating, events: []corev1.Event{event("Scheduled", "", 0), event("Pulling", "", time.Second)}, says: "the node is pulling the image"},
		"slow pull":     {pods: creating, events: []corev1.Event{event("Pulling", "", 50*time.Second)}, says: "pulling the image, for more than 45s now"},
		"pulled":        {pods: creating, events: []corev1.Event{event("Pulling", "", 50*time.Second), event("Pulled", "", time.Second)}, says: "making the container"},
		"pool grows":    {pods: []corev1.Pod{growing}, events: []corev1.Event{event("NotTriggerScaleUp", "x", time.Minute), event("TriggeredScaleUp", "pool 1→2", 0)}, says: "no node has room yet, a node is being added: 0/3"},
		"pool is full":  {pods: []corev1.Pod{growing}, events: []corev1.Event{event("NotTriggerScaleUp", "max node group size reached", 0)}, says: "no node is being added (max node group size reached)"},
		"evicted":       {pods: []corev1.Pod{evicted}, says: "the node ended the pod, another one is made: Evicted"},
		"pod security":  {conds: []apis.Condition{False("ResourcesAvailable", "FailedCreate", `pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true`)}, code: deployer.Denied, says: "Pod Security level restricted:latest refuses it"},
		"admission":     {conds: []apis.Condition{False("ResourcesAvailable", "FailedCreate", `pods "x" is forbidden: ValidatingAdmissionPolicy 'images' with binding 'all' denied request: image prefix`)}, code: deployer.Denied, says: "policy images refuses it: image prefix"},
		"root":          {pods: []corev1.Pod{pod(isWaiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"), none)}, code: deployer.ImageUnusable, says: "runAsNonRoot"},
		"quota":         {conds: []apis.Condition{False("ResourcesAvailable", "FailedCreate", `pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2`)}, code: deployer.Quota, says: "quota small allows pods=2"},
		"unsaid":        {conds: []apis.Condition{False("ResourcesAvailable", "FailedCreate", `pods "x" is forbidden: failed quota: small: must specify limits.memory for: queue-proxy`)}, code: deployer.Quota, says: "quota small wants the unit to say its limits.memory for: queue-proxy", next: "ask the platform team to give queue-proxy these"},
		"pod policy":    {conds: []apis.Condition{False("ResourcesAvailable", "FailedCreate", `admission webhook "policy.example" denied the request: no labels`)}, code: deployer.Denied, says: "policy.example refuses it: no labels"},
		"said later":    {conds: []apis.Condition{False("ContainerHealthy", "ExitCode3", "Container failed with: a\nboom\n")}, code: deployer.Crash, says: "exited with code 3"},
		"gave up":       {conds: []apis.Condition{False("ResourcesAvailable", "ProgressDeadlineExceeded", "x")}, code: deployer.ProbeNeverPasses, says: "gave up"},
		"digest":        {conds: []apis.Condition{False("ContainerHealthy", "ContainerMissing", "unable to fetch image: manifest unknown")}, code: deployer.ImageMissing, says: "has no image"},
		"name in use":   {conds: []apis.Condition{False("ResourcesAvailable", "NotOwned", "There is an existing Deployment that we do not own.")}, says: "existing Deployment"},
		"pull, later":   {conds: []apis.Condition{False("ResourcesAvailable", "ImagePullBackOff", "not found")}, code: deployer.ImageMissing, says: "has no image"},
	} {
		f, why := diagnose(evidence{revision: starting(t, c.conds...), scope: scope, pods: c.pods, events: c.events, now: noon})
		var code deployer.Code
		said := why
		if f != nil {
			code, said = f.Code, f.Cause
			if f.Next == "" || !strings.HasPrefix(f.Next, c.next) {
				t.Errorf("%s: next %q, want %q", name, f.Next, c.next)
			}
			if code == deployer.Crash && strings.Contains(name, "crash") && !slices.Contains(f.Logs, "boom") {
				t.Errorf("%s: logs %q; want the last words", name, f.Logs)
			}
		}
		if code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%s: got %q %q, want %q %q", name, code, said, c.code, c.says)
		}
	}
}

// A node's clock may be hours off: a wait counts by ours.
func TestDiagnoseByOurClock(t *testing.T) {
	seen := noon.Add(-time.Second)
	e := evidence{
		revision: starting(t), pods: []corev1.Pod{pod(runs(3*time.Hour), corev1.ContainerState{})}, now: noon,
		since: func(*corev1.Pod, *corev1.ContainerStatus) time.Time { return seen },
	}
	if f, _ := diagnose(e); f != nil {
		t.Errorf("a second after it started: %v", f)
	}
	seen = noon.Add(-time.Minute)
	if f, _ := diagnose(e); f == nil {
		t.Error("a minute after it started it is still waited for")
	}
}

func TestUncreated(t *testing.T) {
	svc := func(reason, msg string, observed int64) *servingv1.Service {
		s := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Generation: 2}}
		s.Spec.Template.Name = "shop-main-1"
		s.Status.ObservedGeneration = observed
		s.Status.SetConditions([]apis.Condition{{Type: servingv1.ServiceConditionConfigurationsReady, Status: corev1.ConditionFalse, Reason: reason, Message: msg}})
		return s
	}
	const denial = `Revision creation failed with message: admission webhook "validation.webhook.serving.knative.dev" denied the request: validation failed: bad.`
	if f, _ := uncreated(svc("RevisionFailed", denial, 2)); f == nil || f.Code != deployer.Denied || !strings.Contains(f.Cause, "refuses it: bad") {
		t.Errorf("denied: %v", f)
	}
	for name, s := range map[string]*servingv1.Service{
		"of the generation before": svc("RevisionFailed", denial, 1),
		"of another revision":      svc("RevisionFailed", `Revision "shop-main-0" failed with message: exit.`, 2),
		"a name in use":            svc("RevisionFailed", `Revision creation failed with message: revisions "shop-main-1" already exists.`, 2),
		"a webhook that restarts":  svc("RevisionFailed", `Revision creation failed with message: Internal error occurred: failed calling webhook "webhook.serving.knative.dev": failed to call webhook: Post "https://webhook.knative-serving.svc:443/defaulting?timeout=10s": dial tcp 10.96.169.230:443: connect: connection refused.`, 2),
		"new":                      {},
	} {
		if f, why := uncreated(s); f != nil || why == "" {
			t.Errorf("%s: %v, %q; want to wait", name, f, why)
		}
	}
}

func TestAPIError(t *testing.T) {
	status := func(code int32, reason metav1.StatusReason, msg string, details *metav1.StatusDetails) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: "Failure", Code: code, Reason: reason, Message: msg, Details: details}}
	}
	for name, c := range map[string]struct {
		err  error
		is   error
		code deployer.Code
		says string
	}{
		"no answer":   {err: errors.New("connection refused"), is: deployer.ErrUnavailable},
		"busy":        {err: status(429, metav1.StatusReasonTooManyRequests, "later", nil), is: deployer.ErrUnavailable},
		"broken":      {err: status(500, metav1.StatusReasonInternalError, `failed calling webhook "x": no endpoints`, nil), is: deployer.ErrUnavailable, says: "failed calling webhook"},
		"slow":        {err: status(504, metav1.StatusReasonTimeout, "slow", nil), is: deployer.ErrUnavailable},
		"old list":    {err: status(410, metav1.StatusReasonExpired, "too old", nil), is: deployer.ErrUnavailable},
		"conflict":    {err: status(409, metav1.StatusReasonConflict, "changed", nil), is: deployer.ErrConflict},
		"exists":      {err: status(409, metav1.StatusReasonAlreadyExists, "there", nil), is: deployer.ErrExists},
		"missing":     {err: status(404, metav1.StatusReasonNotFound, `services.serving.knative.dev "a" not found`, &metav1.StatusDetails{Name: "a", Group: "serving.knative.dev", Kind: "services"}), is: deployer.ErrNotFound},
		"no Knative":  {err: status(404, metav1.StatusReasonNotFound, "the server could not find the requested resource", &metav1.StatusDetails{Group: "serving.knative.dev"}), code: deployer.Unable, says: "no Knative Serving"},
		"namespace":   {err: status(404, metav1.StatusReasonNotFound, `namespaces "x" not found`, &metav1.StatusDetails{Name: "x", Kind: "namespaces"}), code: deployer.NamespaceMissing, says: "no namespace x"},
		"leaving":     {err: status(403, metav1.StatusReasonForbidden, `... is forbidden: unable to create new content in namespace x because it is being terminated`, nil), code: deployer.NamespaceMissing, says: "being deleted"},
		"credentials": {err: status(401, metav1.StatusReasonUnauthorized, "Unauthorized", nil), code: deployer.Denied, says: "does not accept our credentials"},
		"rights": {err: status(403, metav1.StatusReasonForbidden, `services.serving.knative.dev "a" is forbidden: User "system:serviceaccount:x:ci" cannot update resource "services" in API group "serving.knative.dev" in the namespace "x"`, nil),
			code: deployer.Denied, says: "system:serviceaccount:x:ci may not update services.serving.knative.dev in namespace x"},
		"quota":      {err: status(403, metav1.StatusReasonForbidden, `configmaps "a" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=9, limited: count/configmaps=9`, nil), code: deployer.Quota, says: "needed count/configmaps=1 more"},
		"knative":    {err: status(400, metav1.StatusReasonBadRequest, "admission webhook \"validation.webhook.serving.knative.dev\" denied the request: validation failed: expected 0 <= 99 <= 1: spec\n", nil), code: deployer.Denied, says: "refuses it: expected 0 <= 99 <= 1: spec"},
		"cel policy": {err: status(403, metav1.StatusReasonForbidden, `services.serving.knative.dev "a" is forbidden: ValidatingAdmissionPolicy 'images' with binding 'all' denied request: image prefix`, nil), code: deployer.Denied, says: "policy images refuses it: image prefix"},
		"policy":     {err: status(403, metav1.StatusReasonForbidden, `admission webhook "policy.example" denied the request: image prefix`, nil), code: deployer.Denied, says: "policy.example refuses it: image prefix"},
		"anything":   {err: status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "bad name", nil), says: "bad name"},
	} {
		got := apiError("do it", c.err)
		if c.is != nil && !errors.Is(got, c.is) {
			t.Errorf("%s: %v is not %v", name, got, c.is)
		}
		if all := deployer.Failures(got); c.code != "" && (len(all) != 1 || all[0].Code != c.code || all[0].Next == "") {
			t.Errorf("%s: %v; want %s and what to do", name, got, c.code)
		}
		if !strings.Contains(got.Error(), c.says) {
			t.Errorf("%s: %v; want %q", name, got, c.says)
		}
	}
}

func TestTooMuch(t *testing.T) {
	u := spec(t) // 128Mi, MinScale 1
	u.MinScale = 2
	quota := func(hard, used string) corev1.ResourceQuota {
		q := corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "small"}}
		q.Status.Hard = corev1.ResourceList{corev1.ResourceLimitsMemory: resource.MustParse(hard), "count/secrets": resource.MustParse("0")}
		q.Status.Used = corev1.ResourceList{corev1.ResourceLimitsMemory: resource.MustParse(used)}
		return q
	}
	for name, c := range map[string]struct {
		hard, used string
		running    int64
		need       string // empty: it fits
	}{
		"just so":                       {"512Mi", "256Mi", 0, ""},
		"one byte short":                {"512Mi", "257Mi", 0, "256Mi"},
		"the new one as wide as live":   {"768Mi", "384Mi", 3, ""},
		"no room for as many":           {"767Mi", "384Mi", 3, "384Mi"},
		"more run than maxScale allows": {"1408Mi", "768Mi", 9, ""},
	} {
		f := tooMuch(quota(c.hard, c.used), []deployer.Spec{u}, map[string]int64{u.Name: c.running})
		switch {
		case (f == nil) != (c.need == ""):
			t.Errorf("%s: %v", name, f)
		case f != nil && (f.Code != deployer.Quota || f.Next == "" || !strings.Contains(f.Cause, "quota small") || !strings.Contains(f.Cause, "limits.memory="+c.need)):
			t.Errorf("%s: %v", name, f)
		}
	}
}
