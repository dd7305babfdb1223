package stages

import (
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/bundle"
)

// The schema lists what the bundle has; a bundle without runtimes has none.
func TestBundleFiles(t *testing.T) {
	m := bundle.Meta{Runtimes: map[string]bundle.Runtime{"nodejs18": {Language: "node"}}}
	files, err := BundleFiles(m, []string{"plugins/request-log/plugin.yml", "plugins/request-log/main.js", "plugins/README"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"nodejs18"`, `"request-log"`} {
		if !strings.Contains(string(files[SchemaFile]), want) {
			t.Errorf("no %s in the schema", want)
		}
	}
	if files, err := BundleFiles(bundle.Meta{}, nil); err != nil || len(files) != 0 {
		t.Errorf("without runtimes: %d files, %v", len(files), err)
	}
	b := wholeBundle()
	made, err := Schema(b)
	if err != nil || !strings.Contains(string(made), `"java17"`) {
		t.Errorf("a bundle without the file: %v", err)
	}
}
