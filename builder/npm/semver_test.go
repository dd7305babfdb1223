package npm

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// testdata/semver.tsv holds, per range, those of the versions below that npm's
// own semver finds in it.
var versions = strings.Fields(`0.0.0 0.0.3 0.0.4 0.1.0 0.2.3 0.2.9 0.3.0 1.0.0 1.1.9 1.2.0 1.2.2 1.2.3-alpha 1.2.3-beta.2
	1.2.3-beta.11 1.2.3-rc 1.2.3 1.2.4-beta.2 1.2.4 1.3.0 1.10.0 2.0.0-0 2.0.0-rc.1 2.0.0 2.3.4 2.3.5 2.4.0 3.0.0 10.0.0`)

func TestRangesAgreeWithNpm(t *testing.T) {
	data, err := os.ReadFile("testdata/semver.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimRight(string(data), "\n"), "\n") {
		quoted, want, _ := strings.Cut(line, "\t")
		var spec string
		if err := json.Unmarshal([]byte(quoted), &spec); err != nil {
			t.Fatal(err)
		}
		r, ok := parseRange(spec)
		if !ok {
			t.Errorf("%q is not read as a range", spec)
			continue
		}
		var got []string
		for _, s := range versions {
			v, ok := parseVersion(s)
			if !ok {
				t.Fatalf("%q is not read as a version", s)
			}
			if r.holds(v) {
				got = append(got, s)
			}
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("%q\n got %s\nwant %s", spec, got, want)
		}
	}
}

func TestNotRanges(t *testing.T) {
	for _, s := range []string{"latest", "next", "git+ssh://x/y", "1.2.3.4", "file:../x", "user/repo", "1..2", "-1", "1.2.3-", "a || 1", "99999999999999999999"} {
		if _, ok := parseRange(s); ok {
			t.Errorf("%q is read as a range", s)
		}
	}
}

func FuzzRange(f *testing.F) {
	f.Add("^1.2.3-beta.1 || 2 - 3", "1.2.3")
	f.Add(">= <", "=v1")
	f.Fuzz(func(t *testing.T, spec, ver string) {
		r, ok := parseRange(spec)
		v, okV := parseVersion(ver)
		if ok && okV {
			r.holds(v)
		}
		if okV && v.compare(v) != 0 {
			t.Errorf("%q differs from itself", ver)
		}
	})
}
