package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestImageInspect looks at what a pipeline made, by environment and by
// reference.
func TestImageInspect(t *testing.T) {
	l := newLab(t)
	l.write(map[string]string{"faas.yml": shop, "index.js": "exports.handler = async () => 'hello';\n"})
	if code, _, log := l.faas("image", "inspect", "--env", "test"); code != 2 || !strings.Contains(log, "nothing is live") {
		t.Errorf("before: exit %d\n%s", code, log)
	}
	rep := l.apply()
	img := rep.Result.Images[0]
	if len(img.Referrers) != 2 {
		t.Errorf("the report says %+v", img)
	}
	code, out, log := l.faas("image", "inspect", "--env", "test", "--json")
	var got []struct {
		Ref    string
		Base   string
		Units  []string
		Layers []struct{ Kind, Owner string }
		Labels map[string]string
	}
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
		t.Fatalf("exit %d, %v\n%s\n%s", code, err, out, log)
	}
	if len(got) != 1 || got[0].Ref != img.Ref || strings.Join(got[0].Units, " ") != "main" || got[0].Base == "" {
		t.Fatalf("%+v", got)
	}
	if last := got[0].Layers[len(got[0].Layers)-1]; last.Kind != "code" || last.Owner != "project" {
		t.Errorf("%+v", got[0].Layers)
	}
	if got[0].Labels["org.opencontainers.image.title"] != "team/shop/nodejs18" {
		t.Errorf("labels: %v", got[0].Labels)
	}
	code, out, log = l.faas("image", "inspect", img.Ref)
	for _, want := range []string{img.Ref, "adapter  platform", "code     project", "from the base", "beside it: bill of materials, provenance"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q in\n%s%s", code, want, out, log)
		}
	}
	for args, want := range map[string]string{"not!a!reference": "could not parse reference", strings.Split(img.Ref, "@")[0] + ":gone": "there is no such image"} {
		if code, _, log := l.faas("image", "inspect", args); code != 2 || !strings.Contains(log, want) {
			t.Errorf("%s: exit %d\n%s", args, code, log)
		}
	}
}
