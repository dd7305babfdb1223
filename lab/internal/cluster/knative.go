package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/kuroko-faas/kuroko/lab/internal/image"
)

// servingPrograms are Knative Serving's processes; each gets an image.
func servingPrograms() []string {
	return []string{"controller", "webhook", "autoscaler", "activator", "queue"}
}

// knative makes the images of Knative Serving and the ingress, and applies
// Serving's own manifests with them.
func (c Config) knative(ctx context.Context, log func(string, ...any)) error {
	k := c.kubectl()
	refs, err := c.pushImages(ctx, func(ctx context.Context) error {
		if _, err := k.run(ctx, "", "apply", "--server-side", "-f", c.manifest("0-namespace.yaml"), "-f", c.manifest("1-crds.yaml"), "-f", c.manifest("2-rbac.yaml"), "-f", c.bin("ingress", "gateway-crds.yaml")); err != nil {
			return err
		}
		_, err := k.run(ctx, "", "wait", "--for=condition=Established", "--timeout=60s", "-f", c.manifest("1-crds.yaml"), "-f", c.bin("ingress", "gateway-crds.yaml"))
		return err
	})
	if err != nil {
		return err
	}
	log("images pushed, Knative's types established")
	var core strings.Builder
	// The webhooks come last: from then on they must answer.
	for _, f := range []string{"3-config.yaml", "4-deploy.yaml", "5-webhooks.yaml"} {
		b, err := os.ReadFile(c.manifest(f))
		if err != nil {
			return err
		}
		core.Write(b)
	}
	text, err := withSettings(core.String(), refs)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("run", "knative.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	if _, err := k.run(ctx, "", "apply", "--server-side", "-f", c.path("run", "knative.yaml")); err != nil {
		return err
	}
	ing, err := c.render("ingress.yaml", "@IMAGE@", refs["ingress"], "@POOL@", c.pool(poolFirst)+"-"+c.pool(poolLast))
	if err != nil {
		return err
	}
	if _, err := k.run(ctx, ing, "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	for _, d := range []string{"webhook", "controller", "autoscaler", "activator", "kingress"} {
		if err := c.until(ctx, "Knative's "+d, 3*time.Minute, func(ctx context.Context) error {
			_, err := k.run(ctx, "", "-n", "knative-serving", "rollout", "status", "--watch=false", "deploy/"+d)
			if err != nil {
				return err
			}
			out, err := k.run(ctx, "", "-n", "knative-serving", "get", "deploy", d, "-o", "jsonpath={.status.availableReplicas}")
			if err == nil && out == "" {
				err = fmt.Errorf("no replica of %s is available", d)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) manifest(name string) string { return c.bin("knative", name) }

// pushImages pushes all images while beside runs.
func (c Config) pushImages(ctx context.Context, beside func(context.Context) error) (map[string]string, error) {
	var mu sync.Mutex
	refs := map[string]string{}
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	push := func(name, ref string, s image.Spec) {
		defer wg.Done()
		got, err := image.Push(ctx, ref, s)
		if err != nil {
			errs <- err
			return
		}
		mu.Lock()
		refs[name] = got
		mu.Unlock()
	}
	for _, p := range servingPrograms() {
		wg.Add(1)
		go push(p, c.Registry()+"/knative/"+p+":lab", image.Spec{Files: []image.File{{Source: c.bin("knative", p), Path: "/ko-app/" + p}}})
	}
	wg.Add(1)
	// Port 80 of the node's own network needs the container's root.
	go push("ingress", c.Registry()+"/lab/ingress:lab", image.Spec{User: "0:0", Files: []image.File{{Source: c.bin("ingress", "ingress"), Path: "/ingress"}}})
	err := beside(ctx)
	wg.Wait()
	close(errs)
	for e := range errs {
		if err == nil {
			err = e
		}
	}
	return refs, err
}

var (
	koImage  = regexp.MustCompile(`ko://knative\.dev/serving/cmd/([a-z]+)`)
	requests = regexp.MustCompile(`(?m)^( +requests:\n(?: +[a-z]+: \S+\n)*? +cpu: )[0-9]+m$`)
)

// withSettings fills images and the lab's settings into Serving's manifests:
// routes under the lab's domain, its ingress class, small requests since two
// cores hold everything.
func withSettings(text string, refs map[string]string) (string, error) {
	var missing []string
	text = koImage.ReplaceAllStringFunc(text, func(m string) string {
		name := koImage.FindStringSubmatch(m)[1]
		if refs[name] == "" {
			missing = append(missing, name)
		}
		return refs[name]
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("no image of %s", strings.Join(missing, ", "))
	}
	text = requests.ReplaceAllString(text, "${1}10m")
	docs := strings.Split(text, "\n---\n")
	for name, data := range map[string]string{
		"config-network":    "  ingress-class: " + ingressClass + "\n",
		"config-domain":     "  " + Domain + ": \"\"\n",
		"config-deployment": "  queue-sidecar-cpu-request: 5m\n  progress-deadline: 60s\n",
	} {
		done := false
		for i, d := range docs {
			if strings.Contains(d, "kind: ConfigMap\n") && strings.Contains(d, "\n  name: "+name+"\n") {
				// queue-sidecar-image stands first in config-deployment's data.
				if j := strings.Index(d, "\ndata:\n"); j >= 0 {
					docs[i], done = d[:j+7]+data+d[j+7:], true
				}
			}
		}
		if !done {
			return "", fmt.Errorf("Knative's manifests have no ConfigMap %s", name)
		}
	}
	return strings.Join(docs, "\n---\n"), nil
}

// partsBin lists programs for people and tests.
func (c Config) partsBin() map[string]string {
	bin := map[string]string{"kubectl": c.bin("kube", "kubectl")}
	if c.Parts["hello"] != "" {
		bin["hello"] = filepath.Join(c.Parts["hello"], "hello")
	}
	return bin
}
