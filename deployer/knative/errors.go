package knative

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// apiError translates what the API server answered into the contract's
// errors. what is the request: "update service hello-main".
func apiError(what string, err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		// No answer: refused, reset, timed out, a bad certificate, no name.
		return fmt.Errorf("knative: %s: %w: %w", what, deployer.ErrUnavailable, err)
	}
	s := status.Status()
	if f := refusal(what, s); f != nil {
		return f
	}
	switch {
	case s.Code == http.StatusNotFound:
		return fmt.Errorf("knative: %s: %w", what, deployer.ErrNotFound)
	case s.Reason == metav1.StatusReasonAlreadyExists:
		return fmt.Errorf("knative: %s: %w", what, deployer.ErrExists)
	case s.Code == http.StatusConflict:
		return fmt.Errorf("knative: %s: %w", what, deployer.ErrConflict)
	case s.Code == http.StatusTooManyRequests, s.Code >= 500, s.Reason == metav1.StatusReasonTimeout, s.Reason == metav1.StatusReasonExpired:
		return fmt.Errorf("knative: %s: %w: %s", what, deployer.ErrUnavailable, s.Message)
	}
	return fmt.Errorf("knative: %s: %w", what, err)
}

var (
	webhookDenied = regexp.MustCompile(`admission webhook "([^"]+)" denied the request(?:: )?(?s:(.*))$`)
	policyDenied  = regexp.MustCompile(`ValidatingAdmissionPolicy '([^']+)' with binding '[^']*' denied request: (?s:(.*))$`)
	podSecurity   = regexp.MustCompile(`violates PodSecurity "([^"]+)": (?s:(.*))$`)
	rbacDenied    = regexp.MustCompile(`User "([^"]*)" cannot (\w+) resource "([^"]+)"(?: in API group "([^"]*)")?(?:.* in the namespace "([^"]*)")?`)
	quotaExceeded = regexp.MustCompile(`exceeded quota: ([^,]+), requested: (.*), used: (.*), limited: (.*)$`)
	quotaNeeds    = regexp.MustCompile(`failed quota: ([^:]+): must specify (.*)$`)
)

// refusal is the coded cause of an answer that a repetition won't change; nil:
// there is none.
func refusal(what string, s metav1.Status) *deployer.Failure {
	msg := strings.TrimSpace(s.Message)
	if f := quota(msg); f != nil {
		return f
	}
	if f := admission(msg); f != nil {
		return f
	}
	switch {
	case s.Code == http.StatusUnauthorized:
		return &deployer.Failure{
			Code: deployer.Denied, Cause: what + ": the cluster does not accept our credentials, or no longer",
			Next: "check the kubeconfig or the agent's authorization of this project; a token may have expired",
		}
	case s.Code == http.StatusForbidden && strings.Contains(msg, "because it is being terminated"):
		return &deployer.Failure{Code: deployer.NamespaceMissing, Cause: what + ": the namespace is being deleted", Next: "wait until it is gone and create it again"}
	case s.Code == http.StatusForbidden:
		if m := rbacDenied.FindStringSubmatch(msg); m != nil {
			return missingRights(m[5], m[1], []string{m[2] + " " + qualified(m[3], m[4])})
		}
		return &deployer.Failure{Code: deployer.Denied, Cause: what + ": the cluster refuses: " + oneLine(msg), Next: "ask the platform team for this right"}
	case s.Code == http.StatusNotFound && s.Details != nil && s.Details.Kind == "namespaces":
		return noNamespace(s.Details.Name)
	case s.Code == http.StatusNotFound && s.Details != nil && s.Details.Group == "serving.knative.dev" && s.Details.Name == "" ||
		s.Code == http.StatusNotFound && strings.Contains(msg, "could not find the requested resource"):
		return &deployer.Failure{Code: deployer.Unable, Cause: "the cluster has no Knative Serving (serving.knative.dev/v1)", Next: "install Knative Serving, or name another cluster in clusters.yml"}
	}
	return nil
}

func noNamespace(name string) *deployer.Failure {
	return &deployer.Failure{
		Code: deployer.NamespaceMissing, Cause: fmt.Sprintf("the cluster has no namespace %s", name),
		Next: "ask the platform team to create it with its ServiceAccount and rights",
	}
}

func missingRights(namespace, user string, rights []string) *deployer.Failure {
	who := "this job"
	if user != "" {
		who = user
	}
	return &deployer.Failure{
		Code:  deployer.Denied,
		Cause: fmt.Sprintf("%s may not %s in namespace %s", who, strings.Join(rights, ", "), namespace),
		Next:  "ask the platform team to add this to the environment's Role",
	}
}

// admission recognises what the cluster's rules say, wherever it stands in the
// message; nil: they said nothing.
func admission(msg string) *deployer.Failure {
	const next = "this is a rule of the cluster; the platform team can say what it wants"
	if m := webhookDenied.FindStringSubmatch(msg); m != nil {
		return denied(m[1], strings.TrimSuffix(m[2], "."))
	}
	if m := policyDenied.FindStringSubmatch(msg); m != nil {
		return &deployer.Failure{Code: deployer.Denied, Cause: fmt.Sprintf("the cluster's policy %s refuses it: %s", m[1], oneLine(m[2])), Next: next}
	}
	if m := podSecurity.FindStringSubmatch(msg); m != nil {
		return &deployer.Failure{Code: deployer.Denied, Cause: fmt.Sprintf("the namespace's Pod Security level %s refuses it: %s", m[1], oneLine(m[2])), Next: next}
	}
	return nil
}

func denied(webhook, why string) *deployer.Failure {
	why = oneLine(strings.TrimPrefix(why, "validation failed: "))
	f := &deployer.Failure{Code: deployer.Denied, Cause: fmt.Sprintf("the cluster's webhook %s refuses it: %s", webhook, why), Next: "this is a rule of the cluster; the platform team can say what it wants"}
	if strings.HasSuffix(webhook, "serving.knative.dev") {
		f.Next = "Knative does not take these settings; change them in faas.yml, or tell the platform team"
	}
	return f
}

// quota recognises an exceeded quota, wherever the message stands; nil: it is
// none.
func quota(msg string) *deployer.Failure {
	if m := quotaExceeded.FindStringSubmatch(oneLine(msg)); m != nil {
		return &deployer.Failure{Code: deployer.Quota, Cause: fmt.Sprintf("no room: quota %s allows %s, used are %s, needed %s more", m[1], m[4], m[3], m[2]), Next: quotaNext}
	}
	if m := quotaNeeds.FindStringSubmatch(oneLine(msg)); m != nil {
		f := &deployer.Failure{Code: deployer.Quota, Cause: fmt.Sprintf("quota %s wants the unit to say its %s", m[1], m[2]), Next: "set memory and cpu in faas.yml"}
		if strings.Contains(m[2], queue) {
			f.Next = "ask the platform team to give " + queue + " these in Knative's config-deployment, or a LimitRange in the namespace"
		}
		return f
	}
	return nil
}

const quotaNext = "make room in the namespace (old revisions, scale) or ask the platform team for more; live and new run together during a deploy"

// qualified is resource.group, as kubectl writes it.
func qualified(resource, apiGroup string) string {
	if apiGroup == "" {
		return resource
	}
	return resource + "." + apiGroup
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// about adds the unit and revision to the coded causes in err.
func about(unit, revision string, err error) error {
	for _, f := range deployer.Failures(err) {
		if f.Unit == "" {
			f.Unit = unit
		}
		if f.Revision == "" {
			f.Revision = revision
		}
	}
	return err
}

// passing reports whether err may be gone at the next try.
func passing(err error) bool {
	return errors.Is(err, deployer.ErrUnavailable) || errors.Is(err, deployer.ErrConflict) || errors.Is(err, context.DeadlineExceeded)
}
