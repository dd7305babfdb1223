package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/stages"
)

// What the platform publishes, through the plan and then the pipeline: a
// script alone makes no image and no revision; a new base makes every image of
// its runtime, marked as the platform's doing.
func TestPlatformChangesInThePlan(t *testing.T) {
	l := newLab(t)
	l.write(map[string]string{
		"faas.yml": `version: 1
service: shop
provider: {runtime: nodejs18}
deploy: {mode: independent}
functions:
  list:  {handler: list/index.handler, source: list, events: [{http: {path: /list}}]}
  quote: {handler: quote/index.handler, source: quote, events: [{http: {path: /quote}}]}
`,
		"list/index.js": "exports.handler = async () => 'list';\n", "quote/index.js": "exports.handler = async () => 'quote';\n",
	})
	if rep := l.apply(); rep.Result.Release != "r1" {
		t.Fatalf("release %s", rep.Result.Release)
	}

	l.started.Publish(t, devenv.Release{Version: "2", Files: map[string]string{"platform/scripts/note.sh*": "#!/bin/sh\necho two\n"}}, "test", "prod")
	plan := l.plan()
	if plan.Deploy.Changed() || summary(plan) != "nothing" || plan.Build.Images[0].Action != "reuse" || plan.Build.Images[1].Action != "reuse" {
		t.Errorf("a script changes %s\n%s", summary(plan), plan.Build)
	}
	if rep := l.apply(); rep.Result.Release != "r1" || !rep.Result.Images[0].Reused || !rep.Result.Images[1].Reused {
		t.Errorf("a script made %+v", rep.Result)
	}

	images := l.started.Images["nodejs18"]
	images.Base = rebased(t, l.services.Registry, images.Base)
	l.started.Images["nodejs18"] = images
	l.started.Publish(t, devenv.Release{Version: "3"}, "test", "prod")
	plan = l.plan()
	if got := summary(plan); got != "update shop-list (platform: base image), update shop-quote (platform: base image)" && got != "update list (platform: base image), update quote (platform: base image)" {
		t.Errorf("a new base changes %s", got)
	}
	for _, i := range plan.Build.Images {
		if i.Action != "build" || len(i.Causes) != 1 || i.Causes[0].Kind != stages.CausePlatform {
			t.Errorf("image %s: %s, %+v", i.Name, i.Action, i.Causes)
		}
	}
	rep := l.apply()
	if rep.Result.Release != "r2" || rep.Result.Images[0].Reused || rep.Result.Images[1].Reused {
		t.Errorf("a new base made %+v", rep.Result)
	}
	for _, f := range []string{"list", "quote"} {
		if status, body, err := get(http.DefaultClient, l.url(rep, f)); err != nil || status != 200 || !strings.Contains(body, f) {
			t.Errorf("%s answers %d %s %v", f, status, body, err)
		}
	}
}

// rebased pushes the base with another label and returns the new reference.
func rebased(t *testing.T, registry, base string) string {
	t.Helper()
	repository, _, _ := strings.Cut(base, "@")
	ref, err := name.NewDigest(registry + "/" + base)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config := cfg.Config.DeepCopy()
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	config.Labels["test.base"] = "new"
	if img, err = mutate.Config(img, *config); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref.Context().Tag("new"), img); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return repository + "@" + digest.String()
}
