package tagged

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNeeds(t *testing.T) {
	for src, want := range map[string]bool{
		"//go:build e2e\n\npackage x":                       true,
		"//go:build api || e2e\n\npackage x":                true,
		"//go:build e2e && linux\n\npackage x":              true,
		"// a comment\n//go:build e2e\n\npackage x":         true,
		"//go:build !e2e\n\npackage x":                      false,
		"//go:build linux\n\npackage x":                     false,
		"package x\n\n//go:build e2e":                       false,
		"//go:build (e2e\n\npackage x":                      false,
		"package x":                                         false,
		"//go:build e2elong\n\npackage x":                   false,
		"//go:build windows && e2e\n\npackage x":            false,
		"/*\n*/\n//go:build e2e && !race\n\npackage x_test": true,
	} {
		if got := needs([]byte(src), "e2e"); got != want {
			t.Errorf("%q: %v, want %v", src, got, want)
		}
	}
}

// tests is a module with a test per outcome.
func tests(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":             "module example.com/tests\n\ngo 1.26\n",
		"a/a_test.go":        "//go:build e2e\n\npackage a\nimport \"testing\"\nfunc TestGood(t *testing.T) { t.Run(\"one/two\", func(t *testing.T) {}); t.Run(\"three\", func(t *testing.T) {}) }\nfunc TestSkip(t *testing.T) { t.Skip(\"needs a moon\") }\n",
		"b/b_test.go":        "//go:build e2e\n\npackage b\nimport \"testing\"\nfunc TestBad(t *testing.T) { t.Error(\"broken thing\") }\n",
		"a/unit_test.go":     "package a\nimport \"testing\"\nfunc TestUnit(t *testing.T) { t.Error(\"make test runs me\") }\n",
		"c/c_test.go":        "package c\nimport \"testing\"\nfunc TestUnit(t *testing.T) {}\n",
		"sub/go.mod":         "module example.com/sub\n",
		"sub/s_test.go":      "//go:build e2e\n\npackage sub\n",
		".x/x_test.go":       "//go:build e2e\n\npackage x\n",
		"testdata/y_test.go": "//go:build e2e\n\npackage y\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindLeavesOtherModulesAndUnitTests(t *testing.T) {
	dir := tests(t)
	pkgs, err := Find([]string{dir}, "e2e")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range pkgs {
		got = append(got, p.Name(dir))
	}
	if want := "./a ./b"; strings.Join(got, " ") != want {
		t.Errorf("found %v, want %s", got, want)
	}
	if want := []string{"TestGood", "TestSkip"}; !slices.Equal(pkgs[0].Tests, want) {
		t.Errorf("tests of ./a: %v, want %v", pkgs[0].Tests, want)
	}
}

func TestExecuteCountsAndShowsFailures(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles test binaries")
	}
	dir := tests(t)
	pkgs, err := Find([]string{dir}, "e2e")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Compile(t.Context(), dir, "e2e", t.TempDir(), pkgs, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	plan := NewPlan(dir, pkgs, "", time.Minute)
	c, err := plan.Execute(t.Context(), &out)
	if err == nil || !strings.Contains(err.Error(), "./b") || strings.Contains(err.Error(), "./a") {
		t.Errorf("error %v, want one that names ./b alone", err)
	}
	if want := (Count{Passed: 2, Failed: 1, Skipped: 1}); c != want {
		t.Errorf("counted %+v, want %+v\n%s", c, want, &out)
	}
	for _, want := range []string{"pass TestGood/one/two", "skip TestSkip", "needs a moon", "fail TestBad", "broken thing"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, &out)
		}
	}
	plan.Tests = plan.Tests[:1]
	plan.Tests[0].Names = []string{"TestGood/one/two"}
	if c, err := plan.Execute(t.Context(), &out); err != nil || c != (Count{Passed: 1}) {
		t.Errorf("by name: %+v, %v; want 1 passed", c, err)
	}
	plan.Tests[0].Names = []string{"TestGood/four"}
	if _, err := plan.Execute(t.Context(), &out); err == nil {
		t.Error("a test that must run did not, and there is no error")
	}
}
