package importer

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what is made into testdata")

// Each case is the other tool's file, and what becomes of it: faas.yml and one
// line for each thing without equivalent, or an error.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in := a.Files[0]
			res, err := Import(in.Name, in.Data, Options{})
			out := &txtar.Archive{Comment: a.Comment, Files: []txtar.File{in}}
			add := func(name, text string) {
				if text != "" {
					out.Files = append(out.Files, txtar.File{Name: name, Data: []byte(strings.TrimSuffix(text, "\n") + "\n")})
				}
			}
			if err != nil {
				add("error", err.Error())
			} else {
				add("faas.yml", string(res.YAML))
				add("notes", strings.Join(res.Notes, "\n"))
				var problems []string
				for _, p := range res.Problems {
					problems = append(problems, p.String())
				}
				add("problems", strings.Join(problems, "\n"))
			}
			got := txtar.Format(out)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := txtar.Format(a); string(got) != string(want) {
				t.Errorf("%s differs (go test ./project/importer -update writes it); got\n%s", file, got)
			}
		})
	}
}

// Whatever the file holds, it is converted or refused.
func FuzzImport(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Name, a.Files[0].Data)
	}
	f.Add("f.yml", []byte("functions: &a {x: *a}"))
	f.Add("func.yaml", []byte("<<: &a [*a, {specVersion: 1}]\nname: {}"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		res, err := Import(name, data, Options{})
		if err == nil && len(res.YAML) == 0 {
			t.Error("neither a file nor an error")
		}
	})
}
