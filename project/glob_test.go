package project

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// The quick way says what the expressions say, for every path.
func TestGlobsMatchAsTheirExpressions(t *testing.T) {
	sets := [][]string{never, seldom, nil, {"**/a", "b/**", "**/*.js"}, {"./**/x/", "*", "**/a/b", "**/?"}, {"**", "[bad"}, {"**/**", "**/a**"}}
	segments := []string{"a", "b", "x", "src", "README.md", "CHANGELOG", "x.test.js", ".env", ".env.local", ".git", "node_modules", "docs", "test", "test_a.py", "a_test.py", "faas.yml", ".faas", "\n", "é"}
	r := rand.New(rand.NewPCG(1, 2))
	for _, set := range sets {
		var parts []string
		for _, p := range set {
			if re, err := compileGlob(p); err == nil {
				parts = append(parts, re.String())
			}
		}
		if parts == nil {
			parts = []string{`[^\s\S]`}
		}
		slow, quick := regexp.MustCompile(strings.Join(parts, "|")), newGlobs(set)
		for range 3000 {
			var path []string
			for range 1 + r.IntN(4) {
				path = append(path, segments[r.IntN(len(segments))])
			}
			file := strings.Join(path, "/")
			if got, want := quick.match(file), slow.MatchString(file); got != want {
				t.Fatalf("%q: match(%q) = %v, want %v", set, file, got, want)
			}
		}
	}
}
