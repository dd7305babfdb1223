package stages

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
)

// Everything that a command can read is in its sum, and nothing that differs
// between two checkouts of one commit.
func TestWhatACommandReads(t *testing.T) {
	faas := "version: 1\nservice: shop\nprovider: {runtime: nodejs18}\nfunctions: {hello: {handler: dist/index.handler}}\nbuild: {command: make, output: dist}\n"
	r := asker(t, "test", map[string]string{
		"faas.yml": faas, "src/index.ts": "x", ".gitignore": ".env\ndist/\nnode_modules/\n.m2/\n", ".m2/settings.xml": "<settings/>", "package-lock.json": "{}",
	})
	dir := r.Job.Dir
	git(t, dir, "init", "-q")
	git(t, dir, "add", "-A")
	git(t, dir, "add", "-f", ".m2/settings.xml")
	look := func() reads {
		t.Helper()
		s := &state{Runner: r}
		p, err := s.project(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.commandReads(t.Context(), p, nil)
		if err != nil || got.sum == "" {
			t.Fatalf("%+v, %v", got, err)
		}
		return got
	}
	write := func(file, text string) {
		t.Helper()
		file = filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	r.Environ = []string{"FAAS_CACHE_DIR=" + dir + "/.faas-cache/"}
	first := look()
	if first.why != "" {
		t.Errorf("later jobs can't go by it: %s", first.why)
	}
	for _, file := range []string{"dist/index.js", ".m2/repository/lib.jar", "web/node_modules/x/index.js", ".git/config.lock", ".faas-cache/layers/x.json", ".faas/buildplan.json"} {
		write(file, "y")
		if look().sum != first.sum {
			t.Errorf("%s is in the sum", file)
		}
	}
	seen := map[string]string{first.sum: "nothing"}
	differs := func(what string) {
		t.Helper()
		got := look()
		if other := seen[got.sum]; other != "" {
			t.Errorf("after %s the sum is as after %s", what, other)
		}
		seen[got.sum] = what
	}
	for _, file := range []string{"src/index.ts", "package-lock.json", ".env", "new.txt", ".m2/settings.xml", "vendor/a/.git/HEAD"} {
		write(file, "z")
		differs(file)
	}
	if err := os.Chmod(filepath.Join(dir, "new.txt"), 0o755); err != nil {
		t.Fatal(err)
	}
	differs("a change of mode")
	for _, sha := range []string{"c0ffee", "decade"} {
		r.Job.Commit.SHA = sha
		write("faas.yml", strings.Replace(faas, "output:", `env: {COMMIT: "${git:sha}"}, output:`, 1))
		differs("commit " + sha)
	}
	for what, text := range map[string]string{
		"the command": strings.Replace(faas, "make", "make all", 1), "test.command": faas + "test: {command: make test}\n",
		"build.env": strings.Replace(faas, "output:", "env: {A: '1'}, output:", 1),
	} {
		write("faas.yml", text)
		differs(what)
	}
	write("faas.yml", faas)
	rt := r.Bundle.Meta.Runtimes["nodejs18"]
	rt.Build = "build/nodejs18@sha256:" + strings.Repeat("1", 64)
	r.Bundle.Meta.Runtimes["nodejs18"] = rt
	differs("another build image")
	r.Environ = append(r.Environ, "TZ=Asia/Shanghai")
	differs("another time zone")

	// What no later job may go by.
	write("node_modules/x/index.js", "m")
	if got := look(); !strings.Contains(got.why, "node_modules") {
		t.Errorf("modules of unknown origin: %+v", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	free := look()
	if free.ranIn(builder.Ran{Sandbox: builder.SandboxNamespaces}); free.why != "" {
		t.Errorf("ran in a sandbox: %s", free.why)
	}
	if free.ranIn(builder.Ran{Sandbox: builder.SandboxNone}); !strings.Contains(free.why, "without a sandbox") {
		t.Errorf("ran without a sandbox: %+v", free)
	}
	(*reads)(nil).ranIn(builder.Ran{})
}

// Work trees whose files can't all be summed have no sum, and still a plan.
func TestCommandThatReadsWhatNobodyCanSum(t *testing.T) {
	r := asker(t, "test", map[string]string{
		"faas.yml": "version: 1\nservice: shop\nprovider: {runtime: nodejs18}\nfunctions: {hello: {handler: dist/index.handler}}\nbuild: {command: make, output: dist}\npackage: {exclude: [out]}\n",
	})
	if err := os.Symlink("/etc", filepath.Join(r.Job.Dir, "out")); err != nil {
		t.Fatal(err)
	}
	s := &state{Runner: r}
	p, err := s.project(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.commandReads(t.Context(), p, nil); err != nil || got.sum != "" || !strings.Contains(got.why, "outside the repository") {
		t.Errorf("%+v, %v", got, err)
	}
	if plans, err := r.Plan(t.Context(), Ask{}); err != nil || plans.Build.Images[0].CommandKey != "" || plans.Build.CommandSkipped {
		t.Errorf("%v\n%s", err, plans)
	}
}

// A plan for people says whether the command would run: not when all images are
// there, and not when half of them are.
func TestPlanWithoutTheCommand(t *testing.T) {
	r := asker(t, "test", map[string]string{
		"faas.yml": "version: 1\nservice: shop\nprovider: {runtime: nodejs18}\ndeploy: {mode: independent}\n" +
			"functions: {a: {handler: dist/a/index.handler, source: dist/a}, b: {handler: dist/b/index.handler, source: dist/b}}\nbuild: {command: make, output: dist}\n",
	})
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	made := map[string]bool{"a": true, "b": true}
	r.World.FindMade = func(_ context.Context, repo name.Repository, _ string) (name.Digest, bool, error) {
		return repo.Digest(digest), made[repo.RepositoryStr()[len(repo.RepositoryStr())-1:]], nil
	}
	plan := func() (BuildPlan, string) {
		t.Helper()
		plans, err := r.Plan(t.Context(), Ask{})
		if err != nil || len(plans.Build.Images) != 2 {
			t.Fatalf("%v\n%s", err, plans)
		}
		return plans.Build, plans.String()
	}
	build, text := plan()
	for _, img := range build.Images {
		if !build.CommandSkipped || img.Action != "reuse" || img.Digest != digest || img.Key != img.CommandKey || img.Key == "" {
			t.Errorf("%+v", img)
		}
	}
	const again = "a pipeline plans again after build.command"
	if !strings.Contains(text, "nothing that build.command reads has changed") || strings.Contains(text, again) {
		t.Error(text)
	}
	made["b"] = false
	build, text = plan()
	for _, img := range build.Images {
		if build.CommandSkipped || img.Action != "build" || img.Digest != "" || img.Key == img.CommandKey || img.CommandKey == "" {
			t.Errorf("%+v", img)
		}
	}
	if !strings.Contains(text, again) {
		t.Error(text)
	}
}

func TestMovingVersions(t *testing.T) {
	const dependency = "<dependencies><dependency><groupId>g</groupId><artifactId>a</artifactId><version>%</version></dependency></dependencies>"
	for pom, want := range map[string]string{
		"<version>1.0-SNAPSHOT</version>":                                                                "", // the project's own
		strings.Replace(dependency, "%", "1.0", 1):                                                       "",
		strings.Replace(dependency, "%", "[1.0]", 1):                                                     "", // just this one
		strings.Replace(dependency, "%", "2.0-SNAPSHOT", 1):                                              "2.0-SNAPSHOT",
		strings.Replace(dependency, "%", "[1.0,2.0)", 1):                                                 "[1.0,2.0)",
		"<build><plugins><plugin><version>LATEST</version></plugin></plugins></build>":                   "LATEST",
		"<properties><guava.version>33-SNAPSHOT</guava.version></properties>":                            "33-SNAPSHOT",
		"<properties><notes>(a, b) by hand</notes></properties>":                                         "(a, b) by hand", // runs once too often
		"<parent><version>3-SNAPSHOT</version></parent>":                                                 "3-SNAPSHOT",
		"<description>not a 1-SNAPSHOT</description><properties><a>1.0</a></properties>":                 "",
		"<profiles><profile>" + strings.Replace(dependency, "%", "RELEASE", 1) + "</profile></profiles>": "RELEASE",
	} {
		got, err := movingIn(strings.NewReader("<project>" + pom + "</project>"))
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", pom, got, err, want)
		}
	}
	if _, err := movingIn(strings.NewReader("<project>")); err == nil {
		t.Error("half a file is read")
	}
}
