package project

import (
	"fmt"
	"strings"
)

// Reference is the table of every field of faas.yml in Markdown, made from the
// specs that [Parse] reads with. Names that a bundle brings are left open.
func Reference() string {
	var b strings.Builder
	b.WriteString("| field | value | meaning |\n|---|---|---|\n")
	var planned []string
	reference(&b, fileSpec(Options{Runtimes: []RuntimeInfo{{}}, Plugins: []string{"<plugin>"}}), "", &planned)
	b.WriteString("\nPlanned, and refused until they work: " + strings.Join(planned, ", ") + ".\n")
	return b.String()
}

func reference(b *strings.Builder, s *spec, path string, planned *[]string) {
	for _, f := range s.fields {
		at := strings.TrimPrefix(path+"."+f.name, ".")
		if f.planned != "" {
			if at := "`" + at + "`"; !strings.HasPrefix(path, "functions") || !strings.Contains(b.String(), at) {
				*planned = append(*planned, at)
			}
			continue
		}
		if (path == "functions.<fn>" || path == "aggregation.<unit>") && strings.Contains(b.String(), "| `provider."+f.name+"` |") {
			continue // a setting like provider's
		}
		doc := f.doc
		if f.required {
			doc = "**Required.** " + doc
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", at, cell(f.spec), strings.ReplaceAll(doc, "|", "\\|"))
		// Patches and overrides have the shape of what they change.
		switch {
		case path == "functions.<fn>" && f.name == "build",
			path == "aggregation.<unit>" && f.name == "build",
			strings.HasPrefix(path, "environments.<env>"),
			strings.HasSuffix(path, "http") && f.name == "cors":
			continue
		}
		inside(b, f.spec, at, planned)
	}
}

// inside goes on below a map or list.
func inside(b *strings.Builder, s *spec, path string, planned *[]string) {
	key := map[string]string{"functions": "<fn>", "aggregation": "<unit>", "environments": "<env>"}[path]
	switch {
	case s.fields != nil:
		reference(b, s, path, planned)
	case s.is == aList && s.elem.fields != nil:
		reference(b, s.elem, path+"[]", planned)
	case key != "" && s.elem != nil:
		reference(b, s.elem, path+"."+key, planned)
	case s.elem != nil && s.elem.fields != nil && strings.HasPrefix(path, "provider."):
		reference(b, s.elem, path+".<NAME>", planned)
	}
}

// cell is what may stand there, for a table.
func cell(s *spec) string {
	say := s.say
	if len(s.choices) > 0 && s.choices[0] != "" {
		quoted := make([]string, len(s.choices))
		for i, c := range s.choices {
			quoted[i] = "`" + c + "`"
		}
		say = strings.Join(quoted, ", ")
	}
	return strings.ReplaceAll(strings.ReplaceAll(say, "|", "\\|"), "<", "&lt;")
}
