package project

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

const page = "../docs/faas-yml.md"

// The page's table is made from the source; -update writes it.
func TestPageIsUpToDate(t *testing.T) {
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- fields: made by `go test ./project -update` -->\n", "<!-- end of fields -->\n"
	head, rest, ok := strings.Cut(string(data), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks around the table", page)
	}
	want := head + begin + Reference() + end + tail
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(data) != want {
		t.Errorf("%s is older than the source: run go test ./project -update", page)
	}
}

// Every complete file on the page parses.
func TestExamplesOfThePageParse(t *testing.T) {
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range regexp.MustCompile("(?s)```yaml\n(version: 1\n.*?)```").FindAllSubmatch(data, -1) {
		n++
		for _, env := range []string{"test", "prod"} {
			if _, err := Parse(m[1], testOptions{Environment: env}.options()); err != nil {
				t.Errorf("example %d for %s: %v", n, env, err)
			}
		}
	}
	if n < 3 {
		t.Errorf("found %d examples", n)
	}
}
