package stages

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/project"
)

// gitops is a site whose target is a folder of the work tree.
var gitops = bundle.Site{Name: "gitops", Namespace: "shop-prod", Cluster: bundle.Cluster{Kind: bundle.KindDirectory, Path: "deploy/prod", Domain: "faas.example"}}

func TestDirectoryIsInTheWorkTree(t *testing.T) {
	dir := t.TempDir()
	w, err := Connect(func(string) string { return "" }, ci.Job{Dir: dir}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	target, err := w.Target(t.Context(), gitops) // without a kubeconfig
	if err != nil || target.Kind != bundle.KindDirectory {
		t.Fatalf("target %+v, %v", target, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "deploy", "prod")); err != nil {
		t.Error(err)
	}
}

func TestWhatADirectoryCantDoIsRefused(t *testing.T) {
	const file = `version: 1
service: {name: shop}
provider: {runtime: nodejs18}
rollout: {strategy: canary}
functions:
  hello:
    handler: src/hello.handler
    secrets: {PASSWORD: shop/password}
    events: [{http: {path: /hello}}]
`
	p, err := project.Parse([]byte(file), project.Options{Environment: "prod", Runtimes: []project.RuntimeInfo{{Name: "nodejs18", Language: "node"}}})
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, problem := range unsupportedAt(p, gitops) {
		got += problem.String() + "\n"
	}
	for _, want := range []string{"line 4", "strategy canary needs a live cluster", "line 8", "does not know the versions of secrets"} {
		if !strings.Contains(got, want) {
			t.Errorf("no word of %q in\n%s", want, got)
		}
	}
}
