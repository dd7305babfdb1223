package gitlabci_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/kuroko-faas/kuroko/internal/devenv/gitlabci"
)

// TestLockFilesNameNoRegistry keeps a lock file usable behind any registry.
func TestLockFilesNameNoRegistry(t *testing.T) {
	files, err := filepath.Glob(root + "/examples/*/package-lock.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no lock files: %v", err)
	}
	for _, f := range append(files, root+"/tools/package-lock.json") {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var lock struct {
			Packages map[string]struct {
				Resolved, Integrity string
				Link                bool
			}
		}
		if err := json.Unmarshal(data, &lock); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		if len(lock.Packages) < 2 {
			t.Errorf("%s locks nothing", f)
		}
		for name, p := range lock.Packages {
			if p.Resolved != "" || (name != "" && !p.Link && p.Integrity == "") {
				t.Errorf("%s: %s: resolved %q, integrity %q", f, name, p.Resolved, p.Integrity)
			}
		}
	}
}

func TestCalls(t *testing.T) {
	file := "spec: {inputs: {x: {}}}\n---\nvariables: {script: tool no}\n.a: {script: tool one}\nb:\n  before_script:\n    - echo\n    - [tool two 2]\n  script: |\n    tool three\n\n    other tools\n"
	got, err := gitlabci.Calls([]byte(file), "tool")
	if err == nil {
		t.Errorf("`other tools` may hide a call, got %v", got)
	}
	got, err = gitlabci.Calls([]byte(strings.Replace(file, "other tools", "other", 1)), "tool")
	want := []gitlabci.Call{{Job: ".a", Args: []string{"one"}}, {Job: "b", Args: []string{"two", "2"}}, {Job: "b", Args: []string{"three"}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"a: [", "a: {script: 'x; tool y'}", "a: {script: 'tool $x'}", "a: {script: 'tool y | cat'}"} {
		if got, err := gitlabci.Calls([]byte(bad), "tool"); err == nil {
			t.Errorf("%s: got %v, want an error", bad, got)
		}
	}
}

// hello is examples/hello-node, unchanged, on a branch, with the template
// project it includes. fake stands for stage-runner.
func hello(t *testing.T, s *gitlabci.Server, branch string) *gitlabci.Checkout {
	t.Helper()
	for _, p := range []gitlabci.Project{
		{Path: "platform/faas-ci", Files: map[string]string{"ci-templates": root + "/ci-templates"}, Tags: []string{"v1"}},
		{Path: "team/hello", Files: map[string]string{".": root + "/examples/hello-node"}, Branch: branch},
	} {
		if err := s.Add(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	c, err := s.Clone(t.Context(), "team/hello", "", filepath.Join(t.TempDir(), "hello"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fakeRunner says what it was called with and leaves a file for the next job;
// deploy ends with the given code.
func fakeRunner(t *testing.T, code int) string {
	t.Helper()
	script := fmt.Sprintf(`#!/bin/sh
echo "called with $* for $FAAS_ENVIRONMENT tier $FAAS_TIER graph $FAAS_GRAPH action ${CI_ENVIRONMENT_ACTION:-none}"
mkdir -p .faas
case $2 in
prepare*) echo from build > .faas/note;;
*) cat .faas/note; exit %d;;
esac
`, code)
	bin := folder(t, map[string]string{"stage-runner": script})
	if err := os.Chmod(filepath.Join(bin, "stage-runner"), 0o755); err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestTwoJobPipelineOfTheExample(t *testing.T) {
	t.Parallel()
	s := server(t)
	c := hello(t, s, "develop")
	r, err := c.Run(t.Context(), gitlabci.Pipeline{Path: []string{fakeRunner(t, 0)}})
	if err != nil {
		t.Fatal(err)
	}
	if names := jobNames(r); !r.OK || !slices.Equal(names, []string{"build:test", "deploy:test"}) {
		t.Fatalf("develop ran %q, OK %v\n%s", names, r.OK, r.Output)
	}
	for i, want := range []string{
		"called with run prepare,test,build for test tier sandbox graph two-job action none\n",
		"called with run deploy,promote for test tier sandbox graph two-job action start\nfrom build\n",
	} {
		if !strings.Contains(r.Jobs[i].Log, want) {
			t.Errorf("%s said\n%s\nwant\n%s", r.Jobs[i].Name, r.Jobs[i].Log, want)
		}
	}

	// Held and superseded are warnings; what an outside service did is not.
	for code, want := range map[int]gitlabci.Status{76: gitlabci.Warning, 75: gitlabci.Failed} {
		r, err := c.Retry(t.Context(), gitlabci.Pipeline{Path: []string{fakeRunner(t, code)}}, "deploy:test")
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Jobs) != 1 || r.Jobs[0].Status != want || r.Jobs[0].Code != code || !strings.Contains(r.Jobs[0].Log, "from build") {
			t.Errorf("deploy that exits with %d: got %+v, want %s\n%s", code, r.Jobs, want, r.Output)
		}
	}
}

// gitlab-ci-local copies a file that is included twice at the same time, and
// the later copy may fail because the file is there. (Seen on a busy machine.)
func TestIncludeFetchedTwice(t *testing.T) {
	t.Parallel()
	s := server(t)
	c := hello(t, s, "develop")
	bin := fakeRunner(t, 0)
	cp, err := exec.LookPath("cp")
	if err != nil {
		t.Fatal(err)
	}
	// The first copy of the template is made, and says that it wasn't.
	script := fmt.Sprintf("#!/bin/sh\n%[1]s \"$@\" || exit\ncase $* in *ci-templates*) mkdir %[2]s/once 2>/dev/null || exit 0; echo \"cp: cannot create regular file: File exists\" >&2; exit 1;; esac\n", cp, bin)
	if err := os.WriteFile(filepath.Join(bin, "cp"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := c.Run(t.Context(), gitlabci.Pipeline{Path: []string{bin}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "once")); err != nil || !r.OK || len(r.Jobs) != 2 {
		t.Errorf("copied: %v; OK %v, %d jobs\n%s", err, r.OK, len(r.Jobs), r.Output)
	}
}

// TestTemplateInputs includes the template once per way to use it.
func TestTemplateInputs(t *testing.T) {
	t.Parallel()
	s := server(t)
	c := hello(t, s, "main")
	include := func(inputs ...string) {
		t.Helper()
		text := "default: {before_script: [echo mine], retry: 2}\ninclude:\n"
		for _, in := range inputs {
			text += "  - {project: platform/faas-ci, ref: v1, file: /ci-templates/faas.gitlab-ci.yml, inputs: {" + in + "}}\n"
		}
		if err := os.WriteFile(filepath.Join(c.Dir, ".gitlab-ci.yml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	include(
		"environment: tagged, tag: '/^v[0-9]+$/'",
		"environment: other, branch: elsewhere, tag: /^w/",
		"environment: asked, branch: main, manual: true",
		"environment: started, branch: main, manual: true",
		"environment: strict, branch: main, tier: core, runner_tags: [fast, arm64]",
	)
	r, err := c.Run(t.Context(), gitlabci.Pipeline{
		// gitlab-ci-local has a branch even where a tag is built.
		Variables: map[string]string{"CI_COMMIT_TAG": "v1", "CI_COMMIT_BRANCH": "main"},
		Manual:    []string{"deploy:started"},
		Path:      []string{fakeRunner(t, 0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := jobNames(r)
	slices.Sort(got)
	want := []string{"build:asked", "build:started", "build:strict", "build:tagged", "deploy:started", "deploy:strict", "deploy:tagged"}
	if !slices.Equal(got, want) {
		t.Errorf("ran %q, want %q", got, want)
	}
	for _, j := range r.Jobs {
		if strings.Contains(j.Log, "mine") {
			t.Errorf("%s ran the repository's before_script", j.Name)
		}
	}
	checkJobs(t, r.Config)

	include("environment: x, branch: main, graph: circle")
	if _, err := c.Run(t.Context(), gitlabci.Pipeline{}); err == nil || !strings.Contains(err.Error(), "not in the list of allowed options") {
		t.Errorf("graph: circle: got %v, want a refusal", err)
	}
}

// With graph: approval a person starts the job that makes live.
func TestApprovalGraph(t *testing.T) {
	t.Parallel()
	s := server(t)
	c := hello(t, s, "main")
	text := "include:\n  - {project: platform/faas-ci, ref: v1, file: /ci-templates/faas.gitlab-ci.yml, inputs: {environment: prod, branch: main, graph: approval}}\n"
	if err := os.WriteFile(filepath.Join(c.Dir, ".gitlab-ci.yml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, started := range []bool{false, true} {
		p := gitlabci.Pipeline{Path: []string{fakeRunner(t, 0)}}
		want := []string{"build:prod", "stage:prod"}
		if started {
			p.Manual, want = []string{"promote:prod"}, append(want, "promote:prod")
		}
		r, err := c.Run(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if got := jobNames(r); !slices.Equal(got, want) {
			t.Errorf("ran %q, want %q", got, want)
		}
		for _, j := range r.Jobs {
			said := map[string]string{"stage:prod": "run deploy for prod tier sandbox graph approval action prepare", "promote:prod": "run promote for prod tier sandbox graph approval action start"}[j.Name]
			if !strings.Contains(j.Log, said) {
				t.Errorf("%s said\n%s\nwant %s", j.Name, j.Log, said)
			}
		}
	}
}

// checkJobs looks at what gitlab-ci-local does not act on.
func checkJobs(t *testing.T, text string) {
	t.Helper()
	type job struct {
		Image         struct{ Name string }
		Tags          []string
		Variables     map[string]string
		Interruptible bool
		ResourceGroup string `yaml:"resource_group"`
		Retry         struct {
			When      []string
			ExitCodes []int `yaml:"exit_codes"`
		}
		AllowFailure struct {
			ExitCodes []int `yaml:"exit_codes"`
		} `yaml:"allow_failure"`
		Artifacts struct {
			Paths []string
			When  string
		}
	}
	var all map[string]yaml.Node
	if err := yaml.Unmarshal([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	get := func(name string) job {
		t.Helper()
		var j job
		node, ok := all[name]
		if !ok {
			t.Fatalf("no job %s in\n%s", name, text)
		}
		if err := node.Decode(&j); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return j
	}
	for name, interruptible := range map[string]bool{"build:strict": true, "deploy:strict": false} {
		j := get(name)
		if j.Image.Name != "$FAAS_RUNNER_IMAGE" || !slices.Equal(j.Tags, []string{"fast", "arm64"}) || j.Variables["FAAS_TIER"] != "core" ||
			j.Interruptible != interruptible || !slices.Equal(j.Retry.ExitCodes, []int{75}) || !slices.Equal(j.Retry.When, []string{"runner_system_failure"}) ||
			j.Artifacts.When != "always" || !slices.Equal(j.Artifacts.Paths, []string{".faas/"}) {
			t.Errorf("%s: %+v", name, j)
		}
	}
	if d := get("deploy:strict"); d.ResourceGroup != "faas-strict" || !slices.Equal(d.AllowFailure.ExitCodes, []int{76, 79}) {
		t.Errorf("deploy:strict: %+v", d)
	}
}

func jobNames(r gitlabci.Result) []string {
	var names []string
	for _, j := range r.Jobs {
		names = append(names, j.Name)
	}
	return names
}
