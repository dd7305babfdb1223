package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/devenv"
)

// The example of jobs and timers, through a pipeline: planned, live, run by
// hand, removed and rolled back to.
func TestRun(t *testing.T) {
	l := newLab(t)
	checkout, err := devenv.Where()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(l.dir, os.DirFS(filepath.Join(checkout, "examples", "nightly-job"))); err != nil {
		t.Fatal(err)
	}
	if code, _, log := l.faas("run", "count"); code != 2 || !strings.Contains(log, "nothing is live in nightly in test") {
		t.Errorf("before a deploy: exit %d\n%s", code, log)
	}
	if p := l.plan(); len(p.Deploy.Timers) != 2 || p.Deploy.Timers[0].Action != "create" || len(p.Deploy.Timers[0].Next) != 2 {
		t.Errorf("timers %+v", p.Deploy.Timers)
	}
	l.apply()

	seen := func() status {
		t.Helper()
		code, out, log := l.faas("status", "--json")
		var s status
		if code != 0 || json.Unmarshal([]byte(out), &s) != nil {
			t.Fatalf("exit %d\n%s%s", code, out, log)
		}
		return s
	}
	if s := seen(); len(s.Timers) != 2 {
		t.Errorf("timers %+v", s.Timers)
	}
	if _, out, _ := l.faas("status"); !strings.Contains(out, "count  0 2 * * * Asia/Shanghai  calls nightly-count-job-") || !strings.Contains(out, "02:00 CST") {
		t.Errorf("status:\n%s", out)
	}

	code, out, log := l.faas("run", "count", "--event", `{"texts": ["a b", "c d e", "f"]}`)
	if code != 0 || !strings.Contains(out, "3 completed, 0 failed tries") {
		t.Errorf("exit %d\n%s%s", code, out, log)
	}
	for _, want := range []string{"part 1 of 3: 2 words", "part 2 of 3: 3 words", "part 3 of 3: 1 words"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	code, out, log = l.faas("run", "count", "--event", `{"texts": ["a b", 7]}`)
	if code != 1 || out != "" || !strings.Contains(log, "E1408") || !strings.Contains(log, "exited with code 1") || strings.Count(log, `"msg":"not a text: 7"`) != 2 {
		t.Errorf("a run that fails, with one retry: exit %d\n%s%s", code, out, log)
	}
	for _, c := range []struct{ want, event, function string }{
		{"it answers requests, it is no job", "{}", "warm"},
		{"name one of: count", "{}", "nobody"},
		{"the event is not JSON", "{", "count"},
	} {
		if code, _, log := l.faas("run", c.function, "--event", c.event); code != 2 || !strings.Contains(log, c.want) {
			t.Errorf("run %s: exit %d\n%s", c.function, code, log)
		}
	}

	// Without the job its timer goes; a rollback brings both back. Beside it, a
	// job that is any program.
	l.write(map[string]string{"faas.yml": `version: 1
service: nightly
provider: {runtime: nodejs18}
functions:
  warm: {handler: warm.handler, events: [{http: {path: /warm}}, {timer: {every: 10m}}]}
  program: {kind: job, contract: app, handler: node program.js, environment: {WORD: hello}}
`, "program.js": "console.log(process.env.WORD, process.env.FAAS_EVENT); process.exit(JSON.parse(process.env.FAAS_EVENT).exit)"})
	if p := l.plan(); len(p.Deploy.Timers) != 2 || p.Deploy.Timers[1].Action != "remove" || p.Deploy.Timers[1].Function != "count" {
		t.Errorf("timers %+v", p.Deploy.Timers)
	}
	l.apply()
	if code, _, log := l.faas("run", "program", "--event", `{"exit": 0}`); code != 0 || !strings.Contains(log, `hello {"exit": 0}`) {
		t.Errorf("a program as a job: exit %d\n%s", code, log)
	}
	if code, _, log := l.faas("run", "program", "--event", `{"exit": 3}`); code != 1 || !strings.Contains(log, "exited with code 3") {
		t.Errorf("a program that fails: exit %d\n%s", code, log)
	}
	if s := seen(); len(s.Timers) != 1 || s.Timers[0].Function != "warm" {
		t.Errorf("timers after the removal: %+v", s.Timers)
	}
	if code, _, log := l.faas("release", "rollback"); code != 0 {
		t.Fatalf("rollback: exit %d\n%s", code, log)
	}
	if s := seen(); len(s.Timers) != 2 || len(s.Live.Units) != 2 {
		t.Errorf("timers after the rollback: %+v", s.Timers)
	}
	if code, out, log := l.faas("run", "count"); code != 0 {
		t.Errorf("a run after the rollback: exit %d\n%s%s", code, out, log)
	}
}
