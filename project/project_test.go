package project

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what the parser says into testdata")

// testOptions are a bundle's: every case starts from them, and options.json
// changes them.
type testOptions struct {
	Environment string            `json:"environment"`
	Tier        Tier              `json:"tier"`
	Variables   map[string]string `json:"variables"`
	Masked      []string          `json:"masked"`
	Git         *Git              `json:"git"`
	Bases       []string          `json:"bases"`
	Clusters    []string          `json:"clusters"`
	Tiers       map[Tier]TierPolicy
}

func (t testOptions) options() Options {
	o := Options{
		Environment: t.Environment, Tier: t.Tier, Clusters: t.Clusters,
		Git:      Git{SHA: "0123456789abcdef0123456789abcdef01234567", Branch: "develop"},
		Runtimes: []RuntimeInfo{{"nodejs18", "node"}, {"python3.11", "python"}, {"java17", "java"}},
		Plugins:  []string{"request-log", "sso"}, Layers: []string{"ffmpeg", "chromium"},
		Policy: Policy{Bases: t.Bases, Tiers: t.Tiers},
		Variables: func(name string) (string, bool, bool) {
			v, ok := t.Variables[name]
			for _, m := range t.Masked {
				if m == name {
					return "masked value", true, true
				}
			}
			return v, false, ok
		},
	}
	if t.Git != nil {
		o.Git = *t.Git
	}
	return o
}

// testCase is one file of testdata: faas.yml, options.json where they matter,
// and either `problems` (exact) or `want`: for each line of `show`, the values
// that path has in the Project's JSON.
type testCase struct {
	archive *txtar.Archive
	yml     []byte
	options Options
}

func readCase(t testing.TB, file string) testCase {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := testCase{archive: a}
	var o testOptions
	for _, f := range a.Files {
		switch f.Name {
		case "faas.yml":
			c.yml = f.Data
		case "faas.yml.quoted": // bytes that do not survive an editor
			s, err := strconv.Unquote(strings.TrimSpace(string(f.Data)))
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			c.yml = []byte(s)
		case "options.json":
			if err := json.Unmarshal(f.Data, &o); err != nil {
				t.Fatalf("%s: options.json: %v", file, err)
			}
		}
	}
	c.options = o.options()
	return c
}

func (c testCase) file(name string) (string, bool) {
	for _, f := range c.archive.Files {
		if f.Name == name {
			return string(f.Data), true
		}
	}
	return "", false
}

func cases(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 80 {
		t.Fatalf("found %d cases in testdata, %v; want 80 or more", len(files), err)
	}
	return files
}

func TestCorpus(t *testing.T) {
	for _, file := range cases(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			c := readCase(t, file)
			p, err := Parse(c.yml, c.options)
			name, got := "", ""
			if err != nil {
				name, got = "problems", problemText(t, err)
			} else {
				show, ok := c.file("show")
				if !ok && !*update {
					t.Fatalf("parsed, but the case shows nothing")
				}
				name, got = "want", shown(t, p, show)
			}
			if *update {
				writeCase(t, file, c.archive, name, got)
				return
			}
			want, ok := c.file(name)
			if !ok {
				t.Fatalf("got %s, which the case does not expect:\n%s", name, got)
			}
			if got != want {
				t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
			}
			again, err2 := Parse(c.yml, c.options)
			if fmt.Sprint(err) != fmt.Sprint(err2) || string(asJSON(t, p)) != string(asJSON(t, again)) {
				t.Error("the same bytes gave two results")
			}
		})
	}
}

func problemText(t *testing.T, err error) string {
	t.Helper()
	var ps Problems
	if !errors.As(err, &ps) || len(ps) == 0 {
		t.Fatalf("error %v (%T) holds no problems", err, err)
	}
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintf(&b, "%s %s\n  next: %s\n", p.Code, p, p.Next)
		if p.Next == "" || p.Why == "" || p.Code == "" {
			t.Errorf("%v lacks a code, a cause or a next step", p)
		}
	}
	return b.String()
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// shown renders the paths that a case asks for; "." is everything, "origins X"
// the origins below X.
func shown(t *testing.T, p *Project, show string) string {
	t.Helper()
	var all any
	if err := json.Unmarshal(asJSON(t, p), &all); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, line := range strings.Split(strings.TrimSpace(show), "\n") {
		if line == "." {
			out, _ := json.MarshalIndent(p, "", "  ")
			fmt.Fprintf(&b, "%s\n", out)
			continue
		}
		if under, ok := strings.CutPrefix(line, "origins "); ok {
			for _, o := range p.Origins() {
				if strings.HasPrefix(o.Path, under) {
					fmt.Fprintf(&b, "%s = %s  (%s, %s)\n", o.Path, o.Value, o.Layer, o.From)
				}
			}
			continue
		}
		pick(&b, "", all, strings.Split(line, "."))
	}
	return b.String()
}

func pick(b *strings.Builder, path string, v any, rest []string) {
	if len(rest) == 0 || rest[0] == "" {
		out, _ := json.Marshal(v)
		fmt.Fprintf(b, "%s = %s\n", path, out)
		return
	}
	switch x := v.(type) {
	case []any:
		for i, item := range x {
			if rest[0] == "*" || rest[0] == strconv.Itoa(i) {
				pick(b, fmt.Sprintf("%s[%d]", path, i), item, rest[1:])
			}
		}
	case map[string]any:
		pick(b, join(path, rest[0]), x[rest[0]], rest[1:])
	default:
		fmt.Fprintf(b, "%s = null\n", path)
	}
}

func writeCase(t *testing.T, file string, a *txtar.Archive, name, got string) {
	t.Helper()
	out := &txtar.Archive{Comment: a.Comment}
	for _, f := range a.Files {
		if f.Name != "want" && f.Name != "problems" {
			out.Files = append(out.Files, f)
		}
	}
	out.Files = append(out.Files, txtar.File{Name: name, Data: []byte(got)})
	if err := os.WriteFile(file, txtar.Format(out), 0o644); err != nil {
		t.Fatal(err)
	}
}
