package project

import (
	"encoding/json"
	"errors"
	"flag"
	"strings"
	"testing"
	"time"
)

// FuzzParse: whatever the bytes are, Parse ends soon, with problems that each
// have a place, a cause and a next step, or with a Project that holds together.
func FuzzParse(f *testing.F) {
	for _, file := range cases(f) {
		f.Add(readCase(f, file).yml)
	}
	o := testOptions{
		Environment: "prod", Variables: map[string]string{"A": "x", "MAX": "7", "HOST": "a.example"},
		Masked: []string{"TOKEN"}, Bases: []string{"base/*"},
	}.options()
	schema := compileSchema(f, o)
	f.Fuzz(func(t *testing.T, data []byte) {
		start := time.Now()
		p, err := Parse(data, o)
		took := time.Since(start)
		// Machines have other work to do, most of all where seeds run as plain
		// tests: the fastest of some counts.
		for try := 0; try < 4 && took > time.Second && flag.Lookup("test.fuzz").Value.String() != ""; try++ {
			start = time.Now()
			p, err = Parse(data, o)
			took = min(took, time.Since(start))
		}
		if took > time.Second && flag.Lookup("test.fuzz").Value.String() != "" {
			t.Errorf("took %v", took)
		}
		h, headerErr := ParseHeader(data)
		if err != nil {
			var ps Problems
			if !errors.As(err, &ps) || len(ps) == 0 || p != nil {
				t.Fatalf("error %v with %v", err, p)
			}
			lines := strings.Count(strings.ReplaceAll(string(data), "\r", "\n"), "\n") + 1
			for _, pr := range ps {
				if pr.Why == "" || pr.Next == "" || pr.Code == "" || pr.Line > lines || pr.Line > 0 && pr.Column < 1 {
					t.Errorf("problem %+v in %d lines", pr, lines)
				}
			}
			return
		}
		if headerErr != nil || h.Service != p.Service.Name {
			t.Errorf("header %+v, %v of a file that is right", h, headerErr)
		}
		sound(t, p)
		if root, _ := read(data); schema.Validate(root.plain()) != nil {
			t.Errorf("the schema refuses what the parser accepts: %v", schema.Validate(root.plain()))
		}
		again, err := Parse(data, o)
		if err != nil || string(asJSON(t, p)) != string(asJSON(t, again)) {
			t.Error("the same bytes gave two results")
		}
	})
}

// sound checks what every Project promises.
func sound(t *testing.T, p *Project) {
	t.Helper()
	if _, err := json.Marshal(p); err != nil {
		t.Error(err)
	}
	in := map[string]int{}
	names := map[string]bool{}
	for _, u := range p.Units {
		if len(u.ServiceName) > maxKsvc || !dns1035Label.MatchString(u.ServiceName) || names[u.ServiceName] {
			t.Errorf("unit %s has the service name %q", u.Name, u.ServiceName)
		}
		names[u.ServiceName] = true
		if len(u.Functions) == 0 || u.Job && len(u.Functions) != 1 {
			t.Errorf("unit %s has %d functions", u.Name, len(u.Functions))
		}
		for _, f := range u.Functions {
			in[f.Name]++
			if f.Unit != u.Name || f.Runtime != u.Runtime || f.Memory != u.Memory || f.Timeout > u.Timeout && !u.Job {
				t.Errorf("function %s does not fit unit %s", f.Name, u.Name)
			}
		}
		if u.Memory.Bytes() <= 0 || u.CPU.MilliCPU() <= 0 || u.Timeout <= 0 || u.Concurrency <= 0 || !u.Job && u.Scale.Max < max(1, u.Scale.Min) {
			t.Errorf("unit %s lacks settings: %+v", u.Name, u.Settings)
		}
	}
	for _, f := range p.Functions {
		if in[f.Name] != 1 {
			t.Errorf("function %s is in %d units", f.Name, in[f.Name])
		}
		if (f.Job != nil) != (f.Kind == KindJob) {
			t.Errorf("function %s: kind %s, job %v", f.Name, f.Kind, f.Job)
		}
	}
	for _, o := range p.Origins() {
		if o.From == "" || o.Layer == "" || o.Line == 0 && o.Layer != defaultLayer {
			t.Errorf("origin %+v", o)
		}
	}
}
