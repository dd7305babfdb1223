//go:build e2e

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
)

// visitors ask url 20 times a second until stop, which says how many were
// answered and what went wrong.
func visitors(t *testing.T, client *http.Client, url string) (stop func() (answered int, wrong []string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	var mu sync.Mutex
	var good int
	var bad []string
	for range 4 {
		asking.Go(func() {
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				status, body, err := ask(client, url)
				mu.Lock()
				if err == nil && status == http.StatusOK {
					good++
				} else {
					bad = append(bad, fmt.Sprintf("%d %s %v", status, body, err))
				}
				mu.Unlock()
			}
		})
	}
	t.Cleanup(func() { cancel(); asking.Wait() })
	return func() (int, []string) { cancel(); asking.Wait(); return good, bad }
}

func ask(client *http.Client, url string) (int, string, error) {
	res, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// watchdog puts the watchdog into the cluster as an administrator does: what
// faasctl render cluster writes, applied with kubectl.
func watchdog(t *testing.T, c devtest.Cluster, owner string) {
	t.Helper()
	dir := t.TempDir()
	faasctl := filepath.Join(dir, "faasctl")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", faasctl, "../faasctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build faasctl: %v\n%s", err, out)
	}
	policy, err := os.ReadFile("../../platform/policy.yml")
	if err != nil {
		t.Fatal(err)
	}
	devtest.Write(t, dir, map[string]string{"clusters.yml": c.ClustersFile("test"), "policy.yml": string(policy)})
	system := c.Namespace + "-system"
	render := exec.CommandContext(t.Context(), faasctl, "render", "cluster", "--platform", dir, "--cluster", "lab", "--system", system,
		"--namespace", c.Namespace+"=standard:"+owner, "--image", programImage(t, c.Registry, faasctl))
	manifests, err := render.Output()
	if err != nil {
		t.Fatalf("faasctl render cluster: %v", err)
	}
	kubectl := func(ctx context.Context, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, os.Getenv("KUROKO_LAB_KUBECTL"), append(args, "-f", "-")...)
		cmd.Stdin = bytes.NewReader(manifests)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("kubectl %s: %v\n%s", args[0], err, out)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		kubectl(ctx, "delete", "--ignore-not-found", "--wait=false")
	})
	kubectl(t.Context(), "apply")
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		all, err := c.Kube.AppsV1().Deployments(system).List(t.Context(), metav1.ListOptions{})
		if err == nil && len(all.Items) == 1 && all.Items[0].Status.AvailableReplicas == 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the watchdog does not run: %+v, %v", all, err)
		}
	}
}

// programImage is an image of that one program.
func programImage(t *testing.T, registry, program string) string {
	t.Helper()
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "bin/" + filepath.Base(program), Mode: 0o755, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config = runtime.GOARCH, "linux", v1.Config{Env: []string{"PATH=/bin"}}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	repo, err := name.NewRepository(registry + "/test/" + filepath.Base(program))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Tag("e2e"), img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return repo.Digest(digest.String()).String()
}

// The stage runner is killed while its canary stands at 30 %, and nobody
// starts another. The watchdog, as rendered, with its own rights, brings the
// old revision back within 90 s; no request fails, and the record says why.
func TestDeadCanaryInTheCluster(t *testing.T) {
	c := devtest.NewCluster(t)
	l := labOf(t, c.Start(t))
	l.environ = []string{"KUBECONFIG=" + c.Kubeconfig}
	watchdog(t, c, "42")
	l.publish(devenv.Release{})
	l.write(map[string]string{"faas.yml": strings.Replace(canary, "pause: 1s", "pause: 10m", 1)})
	l.newPipeline()
	url := l.ok(whole).report.Result.URLs[0].URL
	client := c.Client()
	client.Timeout = 20 * time.Second
	stop := visitors(t, client, url)

	k, err := knative.New(knative.Config{Kubeconfig: c.Kubeconfig, IngressAddress: c.Ingress})
	if err != nil {
		t.Fatal(err)
	}
	scope := deployer.Scope{Service: "shop", Environment: "test", Namespace: c.Namespace, Owner: "42"}
	before, err := deployer.Observe(t.Context(), k, scope)
	if err != nil || before.Live == nil || len(before.Live.Units) != 1 {
		t.Fatalf("%+v, %v; want one unit live", before, err)
	}
	live := before.Live.Units[0]

	l.write(map[string]string{"index.js": "exports.handler = async () => ({greeting: 'servus'});\n"})
	l.newPipeline()
	cut := l.program(t, t.TempDir(), whole, moment{line: -1, says: "good so far"}, syscall.SIGKILL)
	dead := time.Now()
	if cut.code != -1 || !strings.Contains(cut.log, "30 % to shop-main-") {
		t.Fatalf("the job ended with %d; want it killed at 30 %%\n%s", cut.code, cut.log)
	}
	state, err := deployer.Observe(t.Context(), k, scope)
	if err != nil || len(state.Services) != 1 || state.Services[0].Only(live.Revision) || state.Head.Rollout == nil || state.Head.Rollout.Weight != 30 {
		t.Fatalf("after the kill: %+v, %v; want 30 %% at the new revision, and an open rollout", state, err)
	}
	for {
		state, err = deployer.Observe(t.Context(), k, scope)
		if err == nil && len(state.Services) == 1 && state.Services[0].Only(live.Revision) && state.Head.Rollout == nil {
			break
		}
		if time.Since(dead) > 3*time.Minute {
			t.Fatalf("three minutes after the kill: %+v, %v", state, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	took := time.Since(dead)
	u := state.Head.Undone
	t.Logf("%s after the kill only %s serves; the record: %+v", took.Round(100*time.Millisecond), live.Revision, u)
	if took > 90*time.Second {
		t.Errorf("it took %s; want at most 90 s", took)
	}
	if u == nil || u.To != "r2" || u.Weight != 30 || u.Why != "its run ended before it had finished" || !strings.HasPrefix(u.By, "watchdog ") || state.Head.Live != "r1" {
		t.Errorf("head %+v; want r1 live, and r2 undone at 30 %% by the watchdog, with the reason", state.Head)
	}
	for range 20 {
		if status, body, err := ask(client, url); status != http.StatusOK || body != `{"greeting":"hello"}` {
			t.Fatalf("the route answers %d %s %v", status, body, err)
		}
	}
	answered, wrong := stop()
	t.Logf("%d requests were answered, %d failed", answered, len(wrong))
	if len(wrong) > 0 {
		t.Errorf("%d requests failed, among them %q", len(wrong), wrong[:min(3, len(wrong))])
	}
	for _, change := range deployer.Decide([]deployer.Spec{live.Spec}, state) {
		if change.Action != deployer.Unchanged {
			t.Errorf("the next plan: %+v; want no change", change)
		}
	}
}
