package project

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func parseOK(t testing.TB, yml string) *Project {
	t.Helper()
	p, err := Parse([]byte(yml), testOptions{}.options())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFiles(t *testing.T) {
	p := parseOK(t, `version: 1
service: hello
provider: {runtime: nodejs18}
functions:
  a: {handler: fn/a/index.handler, source: fn/a, events: [{http: {path: /a}}]}
  b: {handler: fn/b/index.handler, source: fn/b, events: [{http: {path: /b}}]}
  deep: {handler: fn/b/deep/index.handler, source: fn/b/deep, standalone: true}
  hot: {handler: lib/hot.handler, standalone: true}
`)
	tree := []string{
		"README.md", ".npmrc", "faas.yml", "fn/a/index.js", "fn/a/index.test.js", "fn/ab/x.js", "fn/b/deep/index.js", "fn/b/index.js",
		"lib/.env.local", "lib/hot.js", "node_modules/x/index.js", "package.json", "test/a.js",
	}
	for unit, want := range map[string]string{
		"main": "fn/a/index.js fn/ab/x.js fn/b/deep/index.js fn/b/index.js lib/hot.js package.json",
		"deep": "fn/ab/x.js fn/b/deep/index.js lib/hot.js package.json",
		"hot":  "fn/ab/x.js lib/hot.js package.json",
	} {
		if got := strings.Join(p.Files(unit, tree), " "); got != want {
			t.Errorf("%s has %s\nwant %s", unit, got, want)
		}
	}
	sets := p.FileSets(tree)
	if want := []string{"README.md", ".npmrc", "faas.yml", "fn/a/index.test.js", "lib/.env.local", "node_modules/x/index.js", "test/a.js"}; !slices.Equal(sets.Left, want) {
		t.Errorf("left out: %v", sets.Left)
	}
}

func TestFilesNarrowedByPackage(t *testing.T) {
	p := parseOK(t, `version: 1
service: hello
provider: {runtime: nodejs18}
functions:
  a: {handler: dist/a.handler, events: [{http: {path: /a}}]}
package: {include: [dist/**, package.json, README.md, "**/.npmrc"], exclude: ["**/*.map"]}
`)
	got := p.Files("main", []string{".npmrc", "README.md", "dist/a.js", "dist/a.js.map", "dist/a.test.js", "package.json", "src/a.ts"})
	if want := []string{"README.md", "dist/a.js", "dist/a.test.js", "package.json"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func BenchmarkFileSets(b *testing.B) {
	for _, n := range []int{20, 200, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, err := Parse(many(n), testOptions{}.options())
			if err != nil {
				b.Fatal(err)
			}
			var paths []string
			for i := range 5000 {
				paths = append(paths, fmt.Sprintf("functions/f%d/lib/file-%d.js", i%(2*n), i))
			}
			for b.Loop() {
				p.FileSets(paths)
			}
		})
	}
}
