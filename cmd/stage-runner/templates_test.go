package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kuroko-faas/kuroko/internal/devenv/gitlabci"
	"github.com/kuroko-faas/kuroko/stages"
)

// templateProblems says what is wrong with the stage-runner calls of a
// template, under a bundle whose root is platform.
func templateProblems(t *testing.T, template []byte, platform fs.FS) []string {
	t.Helper()
	calls, err := gitlabci.Calls(template, "stage-runner")
	if err != nil {
		return []string{err.Error()}
	}
	if len(calls) == 0 {
		return []string{"never calls stage-runner"}
	}
	var problems []string
	for _, c := range calls {
		// The program's own parser decides; without a job's variables a call
		// that parses ends with 78, one that does not with 2.
		var log bytes.Buffer
		if code := run(t.Context(), append([]string{"stage-runner"}, c.Args...), nil, &log, &log); code != 78 {
			problems = append(problems, "job "+c.Job+": "+log.String())
			continue
		}
		names, err := stageNames(c.Args[1:])
		if err != nil {
			problems = append(problems, "job "+c.Job+": "+err.Error())
		}
		for _, n := range names {
			if _, err := stages.LoadDefinition(platform, n, stages.Builtins()); err != nil {
				problems = append(problems, "job "+c.Job+": "+err.Error())
			}
		}
	}
	return problems
}

// Templates are frozen in repositories: what they call must parse, and every
// stage must be one that the default bundle defines.
func TestTemplatesCallWhatTheBundleDefines(t *testing.T) {
	platform := os.DirFS("../../platform")
	files, err := filepath.Glob("../../ci-templates/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no templates: %v", err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range templateProblems(t, data, platform) {
			t.Errorf("%s: %s", f, p)
		}
	}
	defined, err := fs.Glob(platform, "stages/*.yml")
	if err != nil || len(defined) == 0 {
		t.Fatalf("no stages: %v", err)
	}
	for _, f := range defined {
		name := strings.TrimSuffix(filepath.Base(f), ".yml")
		if _, err := stages.LoadDefinition(platform, name, stages.Builtins()); err != nil {
			t.Error(err)
		}
	}
}

// The guard above can fail.
func TestTemplateProblemsAreFound(t *testing.T) {
	platform := fstest.MapFS{"stages/build.yml": {Data: []byte("title: Build\nsteps:\n  - uses: build-images\n")}, "stages/odd.yml": {Data: []byte("steps:\n  - uses: no-such-step\n")}}
	for script, want := range map[string]string{
		"stage-runner run build":         "",
		"stage-runner run build,stop":    "stop",
		"stage-runner run odd":           "no-such-step",
		"stage-runner run build deploy":  "joined by commas",
		"stage-runner run --fast build":  "fast",
		"stage-runner walk build":        "walk",
		"echo hello":                     "never calls",
		"stage-runner run build || true": "stage-runner", // would hide the exit code
	} {
		got := strings.Join(templateProblems(t, []byte("job:\n  script:\n    - "+script+"\n"), platform), "\n")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", script, got, want)
		}
	}
}
