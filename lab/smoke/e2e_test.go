//go:build e2e

package smoke

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// get asks the ingress for host, as a user of the function would.
func (l lab) get(t *testing.T, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Ingress+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

func (l lab) service(name, revision, image, target string) string {
	return fmt.Sprintf(`
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s, namespace: default}
spec:
  template:
    metadata:
      name: %s
      annotations: {autoscaling.knative.dev/window: "6s", serving.knative.dev/progress-deadline: "20s"}
    spec:
      containers:
      - image: %q
        env: [{name: TARGET, value: %q}]
`, name, revision, image, target)
}

func (l lab) ready(t *testing.T, what string) {
	t.Helper()
	l.kubectl(t, "", "wait", what, "--for=condition=Ready", "--timeout=90s")
}

func (l lab) hello(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Getenv("KUROKO_LAB_PROGRAM"), "image", l.Registry+"/smoke/hello:1", l.Bin["hello"])
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("push: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// TestFunction is a function's life: deployed, answered through the ingress, a
// second revision, a split, asleep, awake.
func TestFunction(t *testing.T) {
	l := here(t, "knative")
	image, host := l.hello(t), "hello.default."+l.Domain
	t.Cleanup(func() { _, _, _ = l.try(context.Background(), "", "delete", "ksvc", "hello", "--ignore-not-found") })
	if !t.Run("deploy", func(t *testing.T) {
		l.kubectl(t, l.service("hello", "hello-one", image, "one"), "apply", "--server-side", "-f", "-")
		l.ready(t, "ksvc/hello")
		if url := l.kubectl(t, "", "get", "ksvc", "hello", "-o", "jsonpath={.status.url}"); url != "http://"+host {
			t.Errorf("URL %s, want http://%s", url, host)
		}
		if code, body := l.get(t, host); code != 200 || !strings.HasPrefix(body, "hello one rev=hello-one ") {
			t.Errorf("answered %d %q", code, body)
		}
	}) {
		return
	}
	t.Run("second revision by tag", func(t *testing.T) {
		// Knative resolves the tag in the lab's registry.
		l.kubectl(t, l.service("hello", "hello-two", l.Registry+"/smoke/hello:1", "two"), "apply", "--server-side", "-f", "-")
		l.ready(t, "revision/hello-two")
		l.ready(t, "ksvc/hello")
		eventually(t, 30*time.Second, func() string {
			if code, body := l.get(t, host); code != 200 || !strings.HasPrefix(body, "hello two ") {
				return fmt.Sprintf("answered %d %q", code, body)
			}
			return ""
		})
	})
	t.Run("traffic split by name", func(t *testing.T) {
		// A patch, since the template of a named revision must stay as Knative completed it.
		l.kubectl(t, "", "patch", "ksvc", "hello", "--type=merge", "-p", `{"spec": {"traffic": [
			{"revisionName": "hello-one", "percent": 50, "tag": "old"}, {"revisionName": "hello-two", "percent": 50, "tag": "new"}]}}`)
		l.ready(t, "ksvc/hello")
		for tag, want := range map[string]string{"old": "hello one ", "new": "hello two "} {
			eventually(t, 30*time.Second, func() string {
				if code, body := l.get(t, tag+"-"+host); code != 200 || !strings.HasPrefix(body, want) {
					return fmt.Sprintf("%s answered %d %q", tag, code, body)
				}
				return ""
			})
		}
		seen := map[string]bool{}
		eventually(t, 30*time.Second, func() string {
			_, body := l.get(t, host)
			if f := strings.Fields(body); len(f) > 1 {
				seen[f[1]] = true
			}
			if !seen["one"] || !seen["two"] {
				return fmt.Sprintf("only %v answered", seen)
			}
			return ""
		})
	})
	t.Run("scale to zero and wake", func(t *testing.T) {
		eventually(t, 2*time.Minute, func() string {
			out := l.kubectl(t, "", "get", "pods", "-l", "serving.knative.dev/service=hello", "-o", "name")
			if out != "" {
				return "pods left: " + out
			}
			return ""
		})
		if code, body := l.get(t, host); code != 200 || !strings.HasPrefix(body, "hello ") {
			t.Errorf("woken, it answered %d %q", code, body)
		}
	})
}

func TestMissingImageIsNamed(t *testing.T) {
	l := here(t, "knative")
	t.Cleanup(func() { _, _, _ = l.try(context.Background(), "", "delete", "ksvc", "missing", "--ignore-not-found") })
	l.kubectl(t, l.service("missing", "missing-one", l.Registry+"/smoke/none:1", "x"), "apply", "--server-side", "-f", "-")
	eventually(t, 60*time.Second, func() string {
		out := l.kubectl(t, "", "get", "revision", "missing-one", "--ignore-not-found", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].message}`)
		if !strings.Contains(out, "smoke/none:1") {
			return "Ready's message: " + out
		}
		return ""
	})
}

func TestWrongProgramIsNamed(t *testing.T) {
	l := here(t, "knative")
	t.Cleanup(func() { _, _, _ = l.try(context.Background(), "", "delete", "ksvc", "broken", "--ignore-not-found") })
	spec := strings.Replace(l.service("broken", "broken-one", l.hello(t), "x"), "        env:", "        command: [/app/none]\n        env:", 1)
	l.kubectl(t, spec, "apply", "--server-side", "-f", "-")
	eventually(t, 90*time.Second, func() string {
		out := l.kubectl(t, "", "get", "revision", "broken-one", "--ignore-not-found", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].message}`)
		if !strings.Contains(out, "/app/none") {
			return "Ready's message: " + out
		}
		return ""
	})
}
