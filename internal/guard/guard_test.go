// Package guard holds tests about the repository itself: which way imports
// point, that packages are documented, that templates call what exists.
package guard

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "github.com/kuroko-faas/kuroko/"

// root is the repository's top folder, seen from this package.
const root = "../.."

// leaves are the packages that must not know each other. stages knows them
// all; cmd and tests may import anything.
var leaves = []string{"ci", "oss", "bundle", "project", "builder", "deployer", "runtimes"}

// allowed are the edges between leaves that the design draws.
var allowed = map[string][]string{"bundle": {"oss"}}

func TestImportsPointOneWay(t *testing.T) {
	for dir, imports := range packages(t, false) {
		from, _, _ := strings.Cut(dir, "/")
		for _, imp := range imports {
			rel, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			to, _, _ := strings.Cut(rel, "/")
			switch {
			case to == "cmd":
				t.Errorf("%s imports %s: nothing imports a program", dir, rel)
			case to == "stages" && from != "cmd" && from != "stages" && from != "examples" && from != "internal":
				t.Errorf("%s imports %s: stages is the top", dir, rel)
			case isLeaf(from) && isLeaf(to) && from != to && !contains(allowed[from], to):
				t.Errorf("%s imports %s: leaves don't know each other; stages translates", dir, rel)
			case from == "internal" && !strings.HasPrefix(dir, "internal/devenv") && (isLeaf(to) || to == "stages"):
				t.Errorf("%s imports %s: internal packages are below the nouns", dir, rel)
			}
		}
	}
}

func TestRunnerLinksNoKaniko(t *testing.T) {
	for dir, imports := range packages(t, false) {
		if strings.HasPrefix(dir, "cmd/kaniko-executor") {
			continue
		}
		for _, imp := range imports {
			if strings.HasPrefix(imp, "github.com/GoogleContainerTools/kaniko") {
				t.Errorf("%s imports %s: kaniko costs 35 ms per process start and is only run as a child", dir, imp)
			}
		}
	}
}

func TestOnlyFaasLooksAhead(t *testing.T) {
	for dir, imports := range packages(t, false) {
		if contains(imports, module+"internal/ahead") && dir != "cmd/faas" {
			t.Errorf("%s imports internal/ahead: it begins to work before main", dir)
		}
	}
}

func TestOnlyProgramsEndTheStart(t *testing.T) {
	for dir, imports := range packages(t, false) {
		if contains(imports, module+"internal/nogc") && !strings.HasPrefix(dir, "cmd/") {
			t.Errorf("%s imports internal/nogc: when memory is collected is the program's to say", dir)
		}
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	docs := map[string]bool{}
	walk(t, func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, path), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		docs[dir] = docs[dir] || f.Doc != nil
	})
	if len(docs) < 5 {
		t.Fatalf("found %d packages only; does the test look at the right folder?", len(docs))
	}
	for dir, ok := range docs {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// What docs/scenarios.md says can happen is shown by the tests that it names.
func TestScenariosHaveTheirTests(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "scenarios.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	walk(t, func(path string) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
			there[m[1]] = true
		}
	})
	named := testName.FindAllStringSubmatch(string(page), -1)
	if len(named) < 20 {
		t.Fatalf("the page names %d tests only; does this test look for the right words?", len(named))
	}
	for _, m := range named {
		if !there[m[1]] {
			t.Errorf("docs/scenarios.md names %s, which is no test", m[1])
		}
	}
}

var (
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	testName = regexp.MustCompile("`(Test\\w+)`")
)

// packages maps a folder to the imports of its Go files.
func packages(t *testing.T, tests bool) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	walk(t, func(path string) {
		if !tests && strings.HasSuffix(path, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, path), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		for _, i := range f.Imports {
			all[dir] = append(all[dir], strings.Trim(i.Path.Value, `"`))
		}
	})
	return all
}

// walk calls f for every Go file of the root module, with its path from root.
func walk(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch name := d.Name(); {
			case rel == ".":
				return nil
			case name == "node_modules", name == "testdata", strings.HasPrefix(name, "."), name == "bin":
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return fs.SkipDir // a module of its own
			}
			return nil
		}
		if strings.HasSuffix(path, ".go") {
			f(rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func isLeaf(name string) bool { return contains(leaves, name) }

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
