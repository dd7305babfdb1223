package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var updateCluster = flag.Bool("update-cluster", false, "write platform/cluster")

// exampleArgs render platform/cluster, the example that people read before
// they run the command.
func exampleArgs(dir, out string) []string {
	return []string{"faasctl", "render", "cluster", "--platform", dir, "--cluster", "hz-1", "--out", out,
		"--namespace", "order-prod=core:4711", "--namespace", "order-test=standard",
		"--deployer", "order-prod=Group:gitlab:project_env:4711:prod", "--reader", "order-prod=Group:fe-order",
		"--image", "registry.example.internal/platform/runner@sha256:" + strings.Repeat("0", 64)}
}

// hz1 is a folder with a clusters.yml that has a Knative cluster, and the
// default bundle's policy.yml.
func hz1(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	policy, err := os.ReadFile("../../platform/policy.yml")
	if err != nil {
		t.Fatal(err)
	}
	clusters := "version: 1\nclusters:\n  hz-1: {kind: knative, registry: registry.example.internal/faas, ingressService: kourier-system/kourier-internal}\n  here: {kind: local}\n"
	for name, data := range map[string][]byte{"policy.yml": policy, "clusters.yml": []byte(clusters)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRenderedExampleIsCurrent(t *testing.T) {
	out := t.TempDir()
	want := "../../platform/cluster"
	if *updateCluster {
		out = want
	}
	var log bytes.Buffer
	if exit := run(t.Context(), exampleArgs(hz1(t), out), os.Getenv, &log, &log); exit != 0 {
		t.Fatalf("exit %d\n%s", exit, log.String())
	}
	// The roles follow what the target does, and are only ever rendered.
	roles := filepath.Join(out, "10-roles.yaml")
	if text, err := os.ReadFile(roles); err != nil || !bytes.Contains(text, []byte("name: kuroko-deploy")) {
		t.Errorf("roles: %v\n%s", err, text)
	}
	if err := os.Remove(roles); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(want + "/*.yaml")
	if err != nil || len(files) != 4 {
		t.Fatalf("%q, %v: want 4 files; run go test ./cmd/faasctl -run Rendered -update-cluster", files, err)
	}
	for _, f := range files {
		a, errA := os.ReadFile(f)
		b, errB := os.ReadFile(filepath.Join(out, filepath.Base(f)))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s is not what faasctl renders (%v, %v); run go test ./cmd/faasctl -run Rendered -update-cluster", f, errA, errB)
		}
	}
}

func TestRenderUsage(t *testing.T) {
	dir := hz1(t)
	for _, tc := range []struct{ args, want string }{
		{"--cluster hz-1", "no namespace for functions"},
		{"--cluster here --namespace a=core", `no Knative cluster "here"`},
		{"--cluster hz-1 --namespace a", "want NAME=TIER"},
		{"--cluster hz-1 --namespace a=core:x", "want NAME=TIER"},
		{"--cluster hz-1 --namespace a=gold", "use one of: core, sandbox, standard"},
		{"--cluster hz-1 --namespace a=core --namespace a=core --images x", "named twice"},
		{"--cluster hz-1 --namespace a=core --images x", "does not end with /"},
		{"--cluster hz-1 --namespace a=core --deployer b=Group:x", "of a --namespace"},
		{"--cluster hz-1 --namespace a=core --reader a=Role:x", "is not User:NAME or Group:NAME"},
	} {
		var out, log bytes.Buffer
		args := append([]string{"faasctl", "render", "cluster", "--platform", dir}, strings.Fields(tc.args)...)
		if exit := run(t.Context(), args, os.Getenv, &out, &log); exit != 2 || !strings.Contains(log.String(), tc.want) || out.Len() > 0 {
			t.Errorf("%s: exit %d, stdout %q\n%s\nwant 2, %q", tc.args, exit, out.String(), log.String(), tc.want)
		}
	}
}

// The watchdog finds the registry's credentials where programs look for them.
func TestRenderRegistrySecret(t *testing.T) {
	var out, log bytes.Buffer
	args := []string{"faasctl", "render", "cluster", "--platform", hz1(t), "--cluster", "hz-1", "--namespace", "a=core", "--image", "registry.example.internal/runner", "--registry-secret", "pull"}
	if exit := run(t.Context(), args, os.Getenv, &out, &log); exit != 0 {
		t.Fatalf("exit %d\n%s", exit, log.String())
	}
	for _, want := range []string{"secretName: pull", "key: .dockerconfigjson", "path: config.json", "name: DOCKER_CONFIG", "mountPath: /registry"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
