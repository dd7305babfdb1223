package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
)

// What an operator does at night: look, stop, look, bring back. Then the
// stages of the default bundle, with a faas.yml that is broken by now.
func TestStopAndBack(t *testing.T) {
	l := newLab(t)
	l.write(map[string]string{
		"faas.yml":       "version: 1\nservice: {name: shop}\nprovider: {runtime: nodejs18}\nfunctions:\n  hello:\n    handler: src/hello.handler\n    events: [{http: {path: /hello}}]\n",
		"src/hello.js":   "exports.handler = async () => ({ statusCode: 200, body: 'hi' })\n",
		"src/index.html": "",
	})
	l.apply()
	status := func() (text string, s struct {
		Head     struct{ Live, Held string }
		Rollback struct {
			To    string
			Ready bool
		}
		Warnings []string
	}) {
		t.Helper()
		code, text, log := l.faas("status")
		_, out, _ := l.faas("status", "--json")
		if err := json.Unmarshal([]byte(out), &s); code != 0 || err != nil {
			t.Fatalf("status: exit %d, %v\n%s%s", code, err, out, log)
		}
		return text, s
	}
	if text, s := status(); s.Head.Live != "r1" || !strings.Contains(text, "release r1 is live") || !strings.Contains(text, "rollback not possible: no earlier release") || len(s.Warnings) > 0 {
		t.Errorf("status of the first release: %+v\n%s", s, text)
	}
	if code, out, log := l.faas("stop"); code != 2 || out != "" || !strings.Contains(log, "shop-main; say --yes") {
		t.Errorf("stop without --yes: exit %d, stdout %q\n%s", code, out, log)
	}
	if code, out, log := l.faas("stop", "--yes"); code != 0 || !strings.Contains(out, "faas release rollback --to r1") {
		t.Errorf("stop: exit %d\n%s%s", code, out, log)
	}
	if text, _ := status(); !strings.Contains(text, "nothing is live") || !strings.Contains(text, "to r1") {
		t.Errorf("status after stop:\n%s", text)
	}
	if code, _, log := l.faas("release", "rollback", "--to", "r1"); code != 0 {
		t.Fatalf("back: exit %d\n%s", code, log)
	}
	if text, s := status(); s.Head.Live != "r1" || !strings.Contains(text, "held: ") {
		t.Errorf("status after the way back: %+v\n%s", s, text)
	}
	devtest.Write(t, l.dir, map[string]string{"faas.yml": "version: 1\nservice: {name: shop}\nprovider: {runtime: nodejs99}\nfunctions: 7\n"})
	var log bytes.Buffer
	for _, stage := range []string{"sweep", "stop", "stop"} {
		log.Reset()
		if _, err := l.runner(&log).Run(t.Context(), []string{stage}); err != nil {
			t.Fatalf("stage %s: %v\n%s", stage, err, log.String())
		}
	}
	if !strings.Contains(log.String(), "nothing runs for shop in test") {
		t.Errorf("the second stop says\n%s", log.String())
	}
	// No YAML at all, then no file: the record is enough.
	for text, args := range map[string][]string{
		"service: {name: shop}\nfunctions:\n  a: [\n b: }\n": nil,
		"": {"--service", "shop"},
	} {
		l.remove("faas.yml")
		if text != "" {
			l.write(map[string]string{"faas.yml": text})
		}
		for _, command := range []string{"release rollback --to r1", "status", "release list", "release resume", "stop --yes"} {
			if code, out, log := l.faas(append(strings.Fields(command), args...)...); code != 0 {
				t.Errorf("faas.yml %q: %s: exit %d\n%s%s", text, command, code, out, log)
			}
		}
	}
	if code, _, log := l.faas("status", "--namespace", "x"); code != 2 || !strings.Contains(log, "need --service") {
		t.Errorf("a namespace alone: exit %d\n%s", code, log)
	}
}
