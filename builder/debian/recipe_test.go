package debian

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const good = `
name: base/python3.11
kind: base
packages: [python3.11]
expect: {package: python3.11, program: usr/bin/python3.11, major: "3.11"}
abi: cp311-glibc{version:libc6}-{arch}
`

func TestParseRecipe(t *testing.T) {
	r, err := ParseRecipe([]byte(good))
	if err != nil || r.Name != "base/python3.11" || r.Expect.Major != "3.11" {
		t.Fatalf("%+v %v", r, err)
	}
	for name, c := range map[string]struct{ in, says string }{
		"empty":               {"", "empty"},
		"two documents":       {good + "---\n" + good, "more than one document"},
		"unknown key":         {good + "runs: rm\n", "field runs not found"},
		"doubled key":         {good + "kind: base\n", "already defined"},
		"wrong name":          {strings.Replace(good, "base/python3.11", "Base/../x", 1), "not an image name"},
		"name says otherwise": {strings.Replace(good, "base/python3.11", "base/python3.12", 1), "3.11 is not the version in the name base/python3.12"},
		"name says nothing":   {strings.Replace(good, "base/python3.11", "base/python", 1), "3.11 is not the version in the name"},
		"kind":                {strings.Replace(good, "kind: base", "kind: bottom", 1), "none of base, build, runner"},
		"option as package":   {strings.Replace(good, "[python3.11]", "[--purge]", 1), "not a package name"},
		"no package":          {strings.Replace(good, "[python3.11]", "[]", 1), "packages: none"},
		"status injection":    {good + "without: [\"x\\nStatus: y\"]\n", "not a package name"},
		"drop everything":     {good + "drop: [/]\n", "not a relative path pattern"},
		"drop pattern":        {good + "drop: [\"a[\"]\n", "not a relative path pattern"},
		"link outside":        {good + "links: {usr/bin/x: ../../../x}\n", "leaves the image"},
		"link of the root":    {good + "links: {/usr/bin/x: y}\n", "leaves the image"},
		"npm range":           {good + "npm: {version: ^10, integrity: sha512-x}\n", "not an exact version"},
		"npm integrity":       {good + "npm: {version: 10.9.2, integrity: sha1-abc}\n", "npm.integrity"},
		"abi":                 {strings.Replace(good, "{arch}", "{env:HOME}", 1), "{env:HOME} is none of"},
		"abi label":           {good + "labels: {abi: x}\n", "set by the field abi"},
		"user name":           {good + "user: root\n", "not uid:gid"},
		"workdir":             {good + "workdir: app\n", "not an absolute path"},
		"file outside":        {good + "files: [{from: ../x, to: /x}]\n", "leaves the folder"},
		"file target":         {good + "files: [{from: x, to: /../x}]\n", "not an absolute path"},
		"env":                 {good + "env: {\"A=B\": c}\n", "not a variable name"},
		"program":             {strings.Replace(good, "usr/bin/python3.11", "/usr/bin/python3.11", 1), "not a path relative"},
		"too large":           {good + "#" + strings.Repeat("x", maxRecipe), "larger than"},
		"everything at once":  {"name: X\nkind: y\n", "expect.package"},
	} {
		if _, err := ParseRecipe([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q", name, err, c.says)
		}
	}
}

func TestLoadRecipes(t *testing.T) {
	runner := strings.NewReplacer("base/python3.11", "runner", "kind: base", "kind: runner").Replace(good)
	build := strings.NewReplacer("base/python3.11", "build/python3.11", "kind: base", "kind: build").Replace(good)
	all, err := LoadRecipes(fstest.MapFS{"a.yml": {Data: []byte(runner)}, "b.yml": {Data: []byte(build)}, "c.yml": {Data: []byte(good)}, "Dockerfile": {}})
	if err != nil || len(all) != 3 || all[0].Kind != Base || all[1].Kind != Build || all[2].Kind != Runner {
		t.Errorf("%+v %v", all, err)
	}
	if _, err := LoadRecipes(fstest.MapFS{"a.yml": {Data: []byte(good)}, "b.yml": {Data: []byte(good)}}); err == nil || !strings.Contains(err.Error(), "taken by a.yml") {
		t.Errorf("same name twice: %v", err)
	}
	if _, err := LoadRecipes(fstest.MapFS{}); err == nil {
		t.Error("no recipes: no error")
	}
}

// The recipes that we ship.
func TestDefaultRecipes(t *testing.T) {
	all, err := LoadRecipes(os.DirFS("../../dockerfiles"))
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]Recipe{}
	for _, r := range all {
		by[r.Name] = r
		if r.Kind == Base && (r.User != "65532:65532" || !slices.Contains(r.Absent, "bin/sh") || r.Workdir != "/app") {
			t.Errorf("%s: a base is slim, starts in /app and is not root", r.Name)
		}
		_, runtime, paired := strings.Cut(r.Name, "/")
		if paired && by["base/"+runtime].ABI != r.ABI {
			t.Errorf("%s: abi %q, its base has %q", r.Name, r.ABI, by["base/"+runtime].ABI)
		}
	}
	// Without namespaces commands run in the job's image: it has the build
	// image's tools, but for the compiler.
	build, runner := by["build/nodejs18"], by["runner"]
	for _, p := range runner.Packages {
		if !slices.Contains(build.Packages, p) {
			t.Errorf("runner has %s, and build/nodejs18 has not", p)
		}
	}
	if runner.NPM == nil || build.NPM == nil || *runner.NPM != *build.NPM || runner.ABI != build.ABI {
		t.Errorf("build/nodejs18 has npm %+v and abi %s, runner %+v and %s", build.NPM, build.ABI, runner.NPM, runner.ABI)
	}
}

func FuzzRecipe(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := ParseRecipe(data); err == nil && r.validate() != nil {
			t.Fatal("taken, but not valid")
		}
	})
}
