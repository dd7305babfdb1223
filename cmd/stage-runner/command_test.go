package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// A project whose command copies what it compiles, and says that it ran.
const (
	compiled = `version: 1
service: shop
provider: {runtime: nodejs18}
deploy: {mode: independent}
package: {exclude: ["src/**"]}
functions:
  a: {handler: dist/a/index.handler, source: dist/a}
  b: {handler: dist/b/index.handler, source: dist/b}
`
	compiles   = `mkdir -p dist/a dist/b; cp src/a.js dist/a/index.js; cp src/b.js dist/b/index.js; echo "the command $WORD"`
	buildBlock = "build: {output: dist, command: '" + compiles + "', env: {WORD: ran}}\n"
)

// buildJob is a job in a fresh checkout, and whether the command ran in it.
func (l *lab) buildJob(stages string, ran bool) outcome {
	l.t.Helper()
	l.newPipeline()
	if err := os.RemoveAll(filepath.Join(l.dir, "dist")); err != nil {
		l.t.Fatal(err)
	}
	o := l.ok(stages)
	const skipped = "nothing that build.command reads has changed since the images were made"
	if strings.Contains(o.log, "the command ") != ran || strings.Contains(o.log, skipped) == ran {
		l.t.Errorf("the command is to run: %t; log:\n%s", ran, o.log)
	}
	if len(o.report.Result.Images) != 2 {
		l.t.Fatalf("images: %+v", o.report.Result.Images)
	}
	return o
}

// build.command runs when anything that it can read has changed, and only then.
func TestCommandRunsForAReason(t *testing.T) {
	l := newLab(t)
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("needs namespaces: ", why)
	}
	l.publish(devenv.Release{})
	if err := os.Remove(filepath.Join(l.dir, "index.js")); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"faas.yml": compiled + buildBlock, "src/a.js": "exports.handler = async () => 'a';\n", "src/b.js": "exports.handler = async () => 'b';\n",
	}
	l.write(files)
	const jobs = "prepare,test,build"
	first := l.buildJob(whole, true).report.Result.Images

	again := l.buildJob(whole, false)
	if again.report.Result.Release != "r1" {
		t.Errorf("without a change: release %s", again.report.Result.Release)
	}
	for i, img := range again.report.Result.Images {
		if !img.Reused || img.Ref != first[i].Ref {
			t.Errorf("without a change: %+v, was %+v", img, first[i])
		}
	}
	steps := again.report.Stages[2].Steps // of build
	if steps[0].Outcome != "skipped" || !strings.Contains(steps[0].Why, "has changed since") {
		t.Errorf("the report: %+v", steps)
	}
	if _, err := os.Stat(filepath.Join(l.dir, "dist")); err == nil {
		t.Error("the command ran after all")
	}

	// One function's source: its image alone is another one.
	l.write(map[string]string{"src/a.js": "exports.handler = async () => 'A';\n"})
	o := l.buildJob(whole, true)
	if !strings.Contains(o.log, "code of dist/a") || strings.Contains(o.log, "code of dist/b") || strings.Contains(o.log, "shared code") {
		t.Errorf("the plan does not say what has changed:\n%s", o.log)
	}
	changed := o.report.Result.Images
	if changed[0].Reused || changed[0].Ref == first[0].Ref || !changed[1].Reused || changed[1].Ref != first[1].Ref {
		t.Errorf("after a change of a: %+v, was %+v", changed, first)
	}
	l.buildJob(jobs, false)
	l.write(files)
	if back := l.buildJob(jobs, false).report.Result.Images; back[0].Ref != first[0].Ref {
		t.Errorf("taken back: %+v, was %+v", back, first)
	}

	for why, change := range map[string]map[string]string{
		"the command":       {"faas.yml": strings.ReplaceAll(compiled+buildBlock, "mkdir -p", "mkdir -p dist;mkdir -p")},
		"build.env":         {"faas.yml": strings.ReplaceAll(compiled+buildBlock, "WORD: ran", "WORD: runs")},
		"a file beside git": {".env": "API=https://example.com\n"},
	} {
		l.write(change)
		t.Log(why)
		l.buildJob(jobs, true)
		for file := range change {
			if err := os.Remove(filepath.Join(l.dir, file)); err != nil {
				t.Fatal(err)
			}
		}
		l.write(files)
	}
	l.buildJob(jobs, false)

	// Jobs of their own see the same, and go by their own look at the files.
	l.newPipeline()
	l.ok("prepare")
	o = l.ok("build")
	if strings.Contains(o.log, "the command ") || !o.report.Result.Images[0].Reused {
		t.Errorf("in a job of its own it ran:\n%s", o.log)
	}
}

// What a job died before it could say, and what the registry has lost, is made
// again.
func TestCommandWithoutItsTag(t *testing.T) {
	l := newLab(t)
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("needs namespaces: ", why)
	}
	l.publish(devenv.Release{})
	l.write(map[string]string{"faas.yml": compiled + buildBlock, "src/a.js": "exports.handler = 1;\n", "src/b.js": "exports.handler = 2;\n"})
	const jobs = "prepare,build"
	first := l.buildJob(jobs, true).report.Result.Images
	lose := func(which func(tag string) bool) {
		t.Helper()
		for _, img := range first {
			ref, err := name.NewDigest(img.Ref)
			if err != nil {
				t.Fatal(err)
			}
			tags, err := remote.List(ref.Context())
			if err != nil {
				t.Fatal(err)
			}
			lost := 0
			for _, tag := range tags {
				if which(tag) {
					lost++
					if err := remote.Delete(ref.Context().Tag(tag)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if lost == 0 {
				t.Fatalf("%s has no such tag: %q", ref.Context(), tags)
			}
		}
	}
	// Killed between the image and its tag.
	lose(func(tag string) bool { return strings.HasPrefix(tag, "c-") })
	for _, img := range l.buildJob(jobs, true).report.Result.Images {
		if !img.Reused {
			t.Errorf("built again: %+v", img)
		}
	}
	l.buildJob(jobs, false)
	// The image itself is gone, with all that led to it.
	lose(func(tag string) bool { return true })
	for i, img := range l.buildJob(jobs, true).report.Result.Images {
		if img.Reused || img.Ref != first[i].Ref {
			t.Errorf("not built again: %+v", img)
		}
	}
	l.buildJob(jobs, false)

	// Modules of unknown origin: no later job goes by what comes of them.
	if err := os.Mkdir(filepath.Join(l.dir, "node_modules"), 0o755); err != nil {
		t.Fatal(err)
	}
	const manifest = `{"name": "shop", "version": "1.0.0", "dependencies": {"lib": "1.0.0"}}`
	packages := npmtest.Start(t, npmtest.Package{Name: "lib", Version: "1.0.0"})
	l.environ = append(l.environ, "npm_config_registry="+packages.URL)
	l.write(map[string]string{"package.json": manifest, "package-lock.json": packages.Lock(manifest)})
	for range 2 {
		if o := l.buildJob(jobs, true); !strings.Contains(o.log, "runs again in the next job: node_modules was there") {
			t.Errorf("the log does not say why:\n%s", o.log)
		}
	}
	// Installed by the runner, they count by their lock file: what is left of one
	// job serves the next, until the lock file is another.
	if err := os.RemoveAll(filepath.Join(l.dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	installs := func(o outcome, want bool) {
		t.Helper()
		if strings.Contains(o.log, "install dependencies: npm ci") != want {
			t.Errorf("it is to install: %t; log:\n%s", want, o.log)
		}
	}
	installs(l.buildJob(jobs, true), true)
	installs(l.buildJob(jobs, false), false)
	l.write(map[string]string{"src/a.js": "exports.handler = 3;\n"})
	installs(l.buildJob(jobs, true), false)
	l.buildJob(jobs, false)
	l.write(map[string]string{"package-lock.json": packages.Lock(manifest) + "\n"})
	installs(l.buildJob(jobs, true), true)
}
