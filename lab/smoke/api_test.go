//go:build api

package smoke

import (
	"context"
	"strings"
	"testing"
	"time"
)

const functionYAML = `
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello, namespace: default}
spec:
  template:
    metadata: {name: hello-1}
    spec:
      containers:
      - image: "lab.invalid/hello@sha256:0000000000000000000000000000000000000000000000000000000000000001"
`

// TestWebhookFillsInDefaults shows Knative's own defaulting webhook at work.
func TestWebhookFillsInDefaults(t *testing.T) {
	l := here(t, "api")
	l.kubectl(t, functionYAML, "create", "-f", "-")
	t.Cleanup(func() { _, _, _ = l.try(context.Background(), "", "delete", "ksvc", "hello", "--ignore-not-found") })
	got := l.kubectl(t, "", "get", "ksvc", "hello", "-o", "jsonpath={.spec.template.spec.timeoutSeconds}")
	if got != "300" {
		t.Errorf("timeoutSeconds %q, want Knative's default 300", got)
	}
	// And the controller: it makes Configuration, Revision and Route.
	eventually(t, 30*time.Second, func() string {
		out, _, err := l.try(t.Context(), "", "get", "configuration/hello", "revision/hello-1", "route/hello", "deployment/hello-1-deployment", "-o", "name")
		if err != nil {
			return "no Configuration, Revision, Route and Deployment: " + out
		}
		return ""
	})
}

func TestWebhookDeniesWhatKnativeForbids(t *testing.T) {
	l := here(t, "api")
	bad := strings.Replace(functionYAML, "name: hello-1}", "name: hello-1, annotations: {autoscaling.knative.dev/min-scale: minus}}", 1)
	_, errs, err := l.try(t.Context(), bad, "create", "--dry-run=server", "-f", "-")
	if err == nil {
		t.Fatal("accepted")
	}
	if !strings.Contains(errs, "validation.webhook.serving.knative.dev") {
		t.Errorf("denied by something else: %s", errs)
	}
}
