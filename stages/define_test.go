package stages

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func file(text string, mode uint32) *fstest.MapFile {
	f := &fstest.MapFile{Data: []byte(text)}
	f.Mode = 0o444
	if mode != 0 {
		f.Mode = 0o555
	}
	return f
}

func TestLoadDefinition(t *testing.T) {
	fsys := fstest.MapFS{
		"stages/build.yml": file("title: Build\nsteps:\n  - uses: build-images\n    when: images-to-build && !merge-request\n  - run: scripts/scan.sh --all\n", 0),
		"scripts/scan.sh":  file("#!/bin/sh\n", 1),
	}
	d, err := LoadDefinition(fsys, "build", Builtins())
	if err != nil {
		t.Fatal(err)
	}
	if d.Title != "Build" || len(d.Steps) != 2 || d.Steps[1].Run != "scripts/scan.sh --all" {
		t.Errorf("got %+v", d)
	}
}

// A stage that can't run is refused as a whole, with every reason.
func TestLoadDefinitionRefuses(t *testing.T) {
	tests := map[string]struct {
		text string
		want []string
	}{
		"unknown key":       {"steps:\n  - uses: test\n    wenn: x\n", []string{"field wenn not found"}},
		"no steps":          {"title: Empty\n", []string{"has no steps"}},
		"both and neither":  {"steps:\n  - {uses: test, run: scripts/x.sh}\n  - {title: nothing}\n", []string{"step 1: needs exactly one of uses and run", "step 2: needs exactly one"}},
		"unknown built-in":  {"steps:\n  - uses: biuld-images\n", []string{`uses "biuld-images", which this runner does not have; it has: build-command, build-images`}},
		"unknown fact":      {"steps:\n  - {uses: test, when: tuesday}\n", []string{`unknown fact "tuesday"`}},
		"missing script":    {"steps:\n  - run: scripts/gone.sh\n", []string{"runs scripts/gone.sh, which is no file of the bundle"}},
		"not executable":    {"steps:\n  - run: scripts/plain.sh\n", []string{"not executable"}},
		"script outside":    {"steps:\n  - run: ../../bin/sh\n", []string{"no file of the bundle"}},
		"several at a time": {"steps:\n  - {uses: a}\n  - {uses: b}\n", []string{`step 1: uses "a"`, `step 2: uses "b"`}},
		"not YAML":          {"steps: [", []string{"stages/s.yml"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fsys := fstest.MapFS{"stages/s.yml": file(tt.text, 0), "scripts/plain.sh": file("x", 0)}
			_, err := LoadDefinition(fsys, "s", Builtins())
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %q, want %q in it", err, w)
				}
			}
		})
	}
	fsys := fstest.MapFS{"stages/build.yml": file("steps: [{uses: test}]", 0)}
	if _, err := LoadDefinition(fsys, "biuld", Builtins()); err == nil || !strings.Contains(err.Error(), "it has: build") {
		t.Errorf("an unknown stage gave %v", err)
	}
	if _, err := LoadDefinition(fsys, "../build", Builtins()); err == nil {
		t.Error("a stage name with a path was accepted")
	}
}

func TestCondition(t *testing.T) {
	facts := Facts{"protected": true, "has-test": false}
	for expr, want := range map[string]string{
		"":                         "",
		"protected":                "",
		"!has-test":                "",
		"has-test":                 "not has-test",
		"protected && !has-test":   "",
		"protected && has-test":    "not has-test",
		"! protected && !has-test": "protected",
	} {
		c, err := parseCondition(expr)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.unmet(facts); got != want {
			t.Errorf("%q: unmet %q, want %q", expr, got, want)
		}
	}
	for _, expr := range []string{"&&", "protected &&", "protected || has-test", "!"} {
		if _, err := parseCondition(expr); err == nil {
			t.Errorf("%q was accepted", expr)
		}
	}
}

// The default bundle's own stages must load.
func TestDefaultStages(t *testing.T) {
	checkout := os.DirFS("../platform")
	names := StageNames(checkout)
	if len(names) < 6 {
		t.Fatalf("found %v", names)
	}
	for _, n := range names {
		if _, err := LoadDefinition(checkout, n, Builtins()); err != nil {
			t.Error(err)
		}
	}
}
