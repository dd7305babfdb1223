package project

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for in, want := range map[string]string{
		"60s": "1m", "90s": "1m30s", "1h0m0s": "1h", "500ms": "500ms", "1.5h": "1h30m", "24h": "1d", "1d12h": "1d12h",
		"3d": "3d", "0s": "0s", "100h": "4d4h", "1h1s": "1h0m1s",
	} {
		d, err := ParseDuration(in)
		if err != nil || d.String() != want {
			t.Errorf("ParseDuration(%q) = %q, %v; want %q", in, d, err, want)
		}
		again, err := ParseDuration(d.String())
		if err != nil || again != d {
			t.Errorf("%q is not its own canonical form: %v, %v", d, again, err)
		}
	}
	for _, in := range []string{"", "5", "0", "-5s", "+5s", "d", "1d-5s", "1dd", "5s1d", "99999999d", "1 s", "one", "1e3s", "9223372036854775807h", "1d0"} {
		if d, err := ParseDuration(in); err == nil {
			t.Errorf("ParseDuration(%q) = %v; want an error", in, d)
		}
	}
	var v struct{ T Duration }
	if err := json.Unmarshal([]byte(`{"T":"2d"}`), &v); err != nil || v.T.Std() != 48*time.Hour {
		t.Errorf("from JSON: %v, %v", v.T, err)
	}
}

func TestQuantity(t *testing.T) {
	for in, want := range map[string]string{"256Mi": "256Mi", "1024Mi": "1Gi", "1.5Gi": "1536Mi", "1000M": "1G", "0.5Gi": "512Mi", "1Ti": "1Ti"} {
		if q, err := ParseMemory(in); err != nil || string(q) != want {
			t.Errorf("ParseMemory(%q) = %q, %v; want %q", in, q, err, want)
		}
	}
	for in, want := range map[string]string{"250m": "250m", "1": "1", "0.5": "500m", "1000m": "1", "2.25": "2250m"} {
		if q, err := ParseCPU(in); err != nil || string(q) != want {
			t.Errorf("ParseCPU(%q) = %q, %v; want %q", in, q, err, want)
		}
	}
	for _, in := range []string{"", "Mi", "-1Mi", "0Mi", "1.Mi", ".5Gi", "1e3Mi", "1mi", "512", "0.0001Ki", "99999999999999999999Ti", "1 Gi"} {
		if q, err := ParseMemory(in); err == nil {
			t.Errorf("ParseMemory(%q) = %q; want an error", in, q)
		}
	}
	for _, in := range []string{"", "m", "0", "-1", "1.5m", "1k", "1e3", "0.0001"} {
		if q, err := ParseCPU(in); err == nil {
			t.Errorf("ParseCPU(%q) = %q; want an error", in, q)
		}
	}
	if got := Quantity("1536Mi").Bytes(); got != 1536<<20 {
		t.Errorf("1536Mi has %d bytes", got)
	}
	if got := Quantity("2250m").MilliCPU(); got != 2250 {
		t.Errorf("2250m is %d thousandths", got)
	}
}

func TestHeader(t *testing.T) {
	for in, want := range map[string]Header{
		"version: 1\nservice: hello\n":                           {1, "hello", "", "stable"},
		"service: {name: a, tier: core}\nplatform: {channel: x}": {0, "a", Core, "x"},
		// A file for a platform that is newer than this runner.
		"version: 7\nservice: {name: a, tier: diamond, zone: 5}\nflows: [x]\nprovider: 5\n": {7, "a", "", "stable"},
	} {
		if h, err := ParseHeader([]byte(in)); err != nil || h != want {
			t.Errorf("ParseHeader(%q) = %+v, %v; want %+v", in, h, err, want)
		}
	}
	for in, want := range map[string]string{
		"version: 1\n":               "line 1, column 1: service: the service has no name",
		"service: 5\n":               "line 1, column 10: service: the service has no name",
		"service: {name: A}\n":       `line 1, column 17: service.name: name "A" can't be part of a DNS name`,
		"service: \"${env:X}\"\n":    `line 1, column 10: service: name "${env:X}" can't be part of a DNS name`,
		"a: [\n":                     "line 1, column 4: a { or [ is not closed, or what is inside is not separated by commas",
		strings.Repeat(" ", 1<<20+1): "the file has 1048577 bytes; at most 1048576 are read",
	} {
		_, err := ParseHeader([]byte(in))
		ps, ok := err.(Problems)
		if !ok || ps[0].String() != want {
			t.Errorf("ParseHeader(%.40q): %v; want %s", in, err, want)
		}
	}
}

func TestTooLargeIsRefusedUnparsed(t *testing.T) {
	data := []byte("version: [" + strings.Repeat("x,", 1<<19))
	_, err := Parse(data, Options{})
	ps, ok := err.(Problems)
	if !ok || len(ps) != 1 || ps[0].Code != CodeTooLarge || !strings.Contains(ps[0].Why, "1048586 bytes") {
		t.Errorf("got %v", err)
	}
}

// A file that is nothing but problems is cut where nobody reads on.
func TestProblemsEnd(t *testing.T) {
	var b strings.Builder
	b.WriteString("version: 1\n")
	for b.Len() < 1<<19 {
		b.WriteString("k" + strings.Repeat("x", b.Len()%50) + strings.Repeat("y", b.Len()/20000) + ": {}\n")
	}
	_, err := Parse([]byte(b.String()), Options{})
	ps, ok := err.(Problems)
	if !ok || len(ps) != maxProblems+1 || ps[maxProblems].Why != "there are more problems than these" {
		t.Errorf("got %d problems", len(ps))
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		route, path string
		want        bool
	}{
		{"/", "/", true}, {"/a", "/a", true}, {"/a", "/a/", false}, {"/a/[id]", "/a/5", true}, {"/a/[id]", "/a/", false},
		{"/a/[id]", "/a/5/b", false}, {"/a/*", "/a/5/b", true}, {"/a/*", "/a/", true}, {"/a/*", "/b", false}, {"/*", "/", true},
		{"/a/[id]/b", "/a/5/b", true}, {"/a/[id]/b", "/a/5/c", false},
	} {
		if got := (Route{Path: c.route}).matches(c.path); got != c.want {
			t.Errorf("route %s, path %s: %v", c.route, c.path, got)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		glob, path string
		want       bool
	}{
		{"dist/**", "dist/a/b.js", true}, {"dist/**", "dist", false}, {"**/*.map", "a.map", true}, {"**/*.map", "x/y/a.map", true},
		{"*.js", "a/b.js", false}, {"src", "src/a.js", true}, {"src/", "src/a.js", true}, {"src", "srcs/a.js", false},
		{"a?c", "abc", true}, {"a?c", "a/c", false}, {"a.c", "abc", false}, {"**", "a/b", true}, {"./dist", "dist/x", true},
	} {
		re, err := compileGlob(c.glob)
		if err != nil {
			t.Fatal(err)
		}
		if got := re.MatchString(c.path); got != c.want {
			t.Errorf("glob %s, path %s: %v", c.glob, c.path, got)
		}
	}
}

func TestServiceName(t *testing.T) {
	long := serviceName("order-bff", "a-very-long-function-name-that-goes-on-and-on")
	if len(long) > maxKsvc || !strings.HasPrefix(long, "order-bff-a-very-long-function") || long == serviceName("order-bff", "a-very-long-function-name-that-goes-on-and-off") {
		t.Errorf("got %s", long)
	}
	// The cut never leaves two dashes.
	if n := serviceName("s", "abcdefghijklmnopqrstuvwxyz-abc-"+strings.Repeat("x", 20)); strings.Contains(n, "--") {
		t.Errorf("got %s", n)
	}
}

func TestPositionAndProblem(t *testing.T) {
	yml := "version: 1\nservice: hello\nprovider: {runtime: nodejs18, secrets: {T: a/b}}\nfunctions:\n  a: {handler: index.a, events: [{http: {path: /a, auth: jwt}}]}\n"
	p, err := Parse([]byte(yml), testOptions{}.options())
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][2]int{
		"functions.a.secrets.T":           {3, 44}, // provider wrote it
		"functions.a.events[0].http.auth": {5, 58},
		"functions.a.events[7].http":      {5, 33},
		"functions.a.memory":              {0, 0},
		"rollout.strategy":                {0, 0},
		"functions.a.handler":             {5, 16},
	} {
		if line, col := p.Position(path); line != want[0] || col != want[1] {
			t.Errorf("Position(%s) = %d, %d; want %v", path, line, col, want)
		}
	}
	got := p.Problem("functions.a.events[0].http.auth", CodePlanned, "auth jwt can't be enforced here", "remove it")
	if got.String() != "line 5, column 58: functions.a.events[0].http.auth: auth jwt can't be enforced here" {
		t.Error(got)
	}
}

func TestPolicyValidate(t *testing.T) {
	if err := DefaultPolicy().Validate(); err != nil {
		t.Error(err)
	}
	p := Policy{Tiers: map[Tier]TierPolicy{
		Core:   {Limits: Limits{MaxMemory: "lots"}},
		"gold": {Defaults: Defaults{Timeout: "60"}},
	}}
	want := "policy: tiers.core.limits.maxMemory: \"lots\" is not an amount of memory\n" +
		"policy: tiers.gold: there is no such tier\n" +
		"policy: tiers.gold.defaults.timeout: \"60\" is not a duration"
	if err := p.Validate(); err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	// What is malformed or left out opens nothing.
	o := Options{Policy: p}
	if l := o.limitsOf(Core); l.MaxMemory != "16Gi" || l.MinScale != 2 {
		t.Errorf("limits of core: %+v", l)
	}
}
