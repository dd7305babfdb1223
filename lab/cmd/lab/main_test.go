package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{nil, {"fly"}, {"up", "--tier", "api"}, {"up", "x"}, {"up", "--no"}, {"down", "x"}, {"status", "x"}, {"run"},
		{"rootless", "--"}, {"test"}, {"test", "unit"}, {"conformance", "none"}, {"image", "ref"}, {"env", "x"}, {"init"}} {
		var out, errs bytes.Buffer
		code := run(args, env(map[string]string{"KUROKO_LAB_STATE": t.TempDir(), "KUROKO_LAB_CACHE": t.TempDir()}), &out, &errs)
		if len(args) > 0 && args[0] == "init" { // not for people: no usage text, but no success either
			if code == 0 {
				t.Errorf("%q succeeds", args)
			}
			continue
		}
		if code != 2 || !strings.Contains(errs.String(), "usage: lab COMMAND") || out.Len() > 0 {
			t.Errorf("%q: exit %d, stdout %q, stderr %.80q", args, code, &out, &errs)
		}
	}
}

func TestStatusOfNothing(t *testing.T) {
	e := env(map[string]string{"KUROKO_LAB_STATE": filepath.Join(t.TempDir(), "none")})
	var out, errs bytes.Buffer
	if code := run([]string{"status"}, e, &out, &errs); code != 0 || out.String() != "lab is down\n" {
		t.Errorf("exit %d, %q %q", code, &out, &errs)
	}
	out.Reset()
	if code := run([]string{"status", "--json"}, e, &out, &errs); code != 0 || !strings.Contains(out.String(), `"state": "down"`) {
		t.Errorf("exit %d, %q %q", code, &out, &errs)
	}
	if code := run([]string{"run", "--", "true"}, e, &out, &errs); code != 1 || !strings.Contains(errs.String(), "the lab is down; make lab-up starts it") {
		t.Errorf("run: exit %d, %q", code, &errs)
	}
}

func TestFoldersBelongToTheCheckout(t *testing.T) {
	a, err := options(env(map[string]string{"HOME": "/home/u"}))
	if err != nil {
		t.Fatal(err)
	}
	if a.Cache != "/home/u/.cache/kuroko/lab" || filepath.Dir(a.State) != "/home/u/.local/state/kuroko/lab" {
		t.Errorf("cache %s, state %s", a.Cache, a.State)
	}
	b, err := options(env(map[string]string{"HOME": "/home/u", "XDG_CACHE_HOME": "/c", "XDG_STATE_HOME": "/s"}))
	if err != nil {
		t.Fatal(err)
	}
	if b.Cache != "/c/kuroko/lab" || filepath.Dir(b.State) != "/s/kuroko/lab" || filepath.Base(b.State) != filepath.Base(a.State) {
		t.Errorf("cache %s, state %s", b.Cache, b.State)
	}
}

// TestDocumentedTestsAreRun keeps docs/lab.md and the lists here one.
func TestDocumentedTestsAreRun(t *testing.T) {
	b, err := os.ReadFile("../../../docs/lab.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := strings.Join(strings.Fields(string(b)), " ")
	between := func(from, to string) map[string]bool {
		_, rest, ok := strings.Cut(doc, from)
		text, _, ok2 := strings.Cut(rest, to)
		if !ok || !ok2 {
			t.Fatalf("docs/lab.md has no %q … %q", from, to)
		}
		names := map[string]bool{}
		for _, n := range regexp.MustCompile(`[A-Za-z0-9_/-]+`).FindAllString(strings.ReplaceAll(text, "Extended:", ""), -1) {
			names[n] = true
		}
		return names
	}
	for _, c := range []struct{ from, to, run string }{
		{"stable and beta. Run:", "Left out:", knativeTests()},
		{"Run, core:", "Left out,", gatewayTests()},
	} {
		documented := between(c.from, c.to)
		for _, n := range strings.Fields(c.run) {
			if !documented[n] {
				t.Errorf("%s is run and not documented", n)
			}
			delete(documented, n)
		}
		for n := range documented {
			t.Errorf("%s is documented and not run", n)
		}
	}
}
