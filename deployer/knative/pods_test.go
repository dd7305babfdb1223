package knative

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

func jobUnit(t *testing.T, j deployer.Job) deployer.Spec {
	t.Helper()
	image, err := name.NewDigest("registry.example/unit@sha256:" + strings.Repeat("a", 64))
	if err != nil {
		t.Fatal(err)
	}
	return deployer.Spec{Name: "app-sum-job", Unit: "sum", Image: image, Key: "k", Table: "{}", Memory: "8Gi", CPU: "4", Environment: map[string]string{"PRICE": "$(HOME)"}, Job: &j}
}

func variable(c corev1.Container, n string) corev1.EnvVar {
	i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == n })
	if i < 0 {
		return corev1.EnvVar{}
	}
	return c.Env[i]
}

// What a job's fields become, where each completion has tries of its own and
// where there is only one.
func TestRunSpec(t *testing.T) {
	scope := deployer.Scope{Service: "app", Environment: "prod", Owner: "1"}
	many, err := runSpec(scope, jobUnit(t, deployer.Job{Completions: 40, Parallelism: 10, Retries: 2, Timeout: 2 * time.Hour, TTL: 24 * time.Hour}), "app-sum-job-1")
	if err != nil {
		t.Fatal(err)
	}
	if *many.Completions != 40 || *many.Parallelism != 10 || *many.BackoffLimitPerIndex != 2 || *many.BackoffLimit != 120 || string(*many.CompletionMode) != "Indexed" ||
		*many.ActiveDeadlineSeconds != 7200 || *many.TTLSecondsAfterFinished != 86400 {
		t.Errorf("run of many: %+v", many)
	}
	c := many.Template.Spec.Containers[0]
	if got := variable(c, "PRICE").Value; got != "$$(HOME)" {
		t.Errorf("PRICE=%s", got)
	}
	if f := variable(c, "FAAS_JOB_NAME").ValueFrom; f == nil || f.FieldRef.FieldPath != "metadata.labels['batch.kubernetes.io/job-name']" {
		t.Errorf("FAAS_JOB_NAME from %+v", f)
	}
	if l := many.Template.Labels; l[LabelOwner] != "1" || l[LabelUnit] != "sum" || l[LabelRevision] != "app-sum-job-1" || !*c.SecurityContext.RunAsNonRoot || c.Resources.Limits.Memory().String() != "8Gi" {
		t.Errorf("labels %v, container %+v", l, c)
	}
	one, err := runSpec(scope, jobUnit(t, deployer.Job{Completions: 1, Parallelism: 1, Retries: 3}), "r")
	if err != nil {
		t.Fatal(err)
	}
	if one.CompletionMode != nil || one.BackoffLimitPerIndex != nil || *one.BackoffLimit != 3 || one.ActiveDeadlineSeconds != nil || one.TTLSecondsAfterFinished != nil {
		t.Errorf("run of one: %+v", one)
	}
}

// A call goes to the revision itself, is small, and is made once.
func TestFireSpec(t *testing.T) {
	scope := deployer.Scope{Service: "app", Environment: "prod", Owner: "1"}
	u := jobUnit(t, deployer.Job{})
	u.Job, u.Name, u.Timeout = nil, "app-main", 20*time.Second
	timer := deployer.Timer{Function: "tick", Service: u.Name, Name: "every 1h", Schedule: "0 * * * *", Payload: "$(HOME)", Overlap: "skip"}
	spec, err := fireSpec(scope, "shop-prod", timer, u, "app-main-1234")
	if err != nil {
		t.Fatal(err)
	}
	c := spec.Template.Spec.Containers[0]
	var to struct {
		URL       string
		Headers   map[string]string
		TimeoutMs int
	}
	if err := json.Unmarshal([]byte(variable(c, "FAAS_FIRE").Value), &to); err != nil {
		t.Fatal(err)
	}
	if to.URL != "http://app-main-1234.shop-prod.svc" || to.Headers["knative-serving-revision"] != "app-main-1234" || to.Headers["knative-serving-namespace"] != "shop-prod" || to.TimeoutMs != 80_000 {
		t.Errorf("FAAS_FIRE %+v", to)
	}
	if v := variable(c, "FAAS_TIMER").Value; v != `{"function":"tick","name":"every 1h","payload":"$$(HOME)","source":"/prod/app"}` {
		t.Errorf("FAAS_TIMER %s", v)
	}
	if k := variable(c, "FAAS_TIMER_KEY").ValueFrom; k == nil || k.SecretKeyRef.Name != "app.prod.timers" {
		t.Errorf("FAAS_TIMER_KEY from %+v", k)
	}
	if *spec.BackoffLimit != 0 || *spec.ActiveDeadlineSeconds != 200 || c.Resources.Limits.Memory().String() != "256Mi" || c.Resources.Limits.Cpu().String() != "250m" {
		t.Errorf("call: %+v, %+v", spec, c.Resources)
	}
}

// A timer's name leaves room for the minute of its runs, and tells services
// and functions apart whatever is cut.
func TestTimerName(t *testing.T) {
	long := strings.Repeat("very-long-", 9) + "name"
	seen := map[string]bool{}
	for _, s := range []string{"app", "a", long} {
		for _, f := range []string{"tick", "Tick", "tick_2", long, long + "2"} {
			n := timerName(deployer.Scope{Service: s, Environment: "prod"}, deployer.Timer{Function: f, Schedule: "* * * * *"}.Key(), f)
			if len(n) > 52 || seen[n] || strings.Contains(n, "--") || n != strings.ToLower(n) {
				t.Errorf("%s, %s: %q", s, f, n)
			}
			seen[n] = true
		}
	}
}
