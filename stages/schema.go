package stages

import (
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/project"
)

// SchemaFile is where a bundle has the JSON Schema of faas.yml.
const SchemaFile = "schema/faas-v1.json"

// BundleFiles makes the files of a bundle that follow from its others: the
// schema with the bundle's own runtimes, plugins and layers.
func BundleFiles(m bundle.Meta, files []string) (map[string][]byte, error) {
	if len(m.Runtimes) == 0 {
		return nil, nil // no faas.yml is valid under it
	}
	o := project.Options{Plugins: foldersIn(files, "plugins/"), Layers: foldersIn(files, "layers/")}
	for _, n := range slices.Sorted(maps.Keys(m.Runtimes)) {
		o.Runtimes = append(o.Runtimes, project.RuntimeInfo{Name: n, Language: m.Runtimes[n].Language})
	}
	data, err := project.Schema(o)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{SchemaFile: append(data, '\n')}, nil
}

// foldersIn names the folders directly below dir.
func foldersIn(files []string, dir string) []string {
	var out []string
	for _, f := range files {
		rest, ok := strings.CutPrefix(f, dir)
		name, _, isFolder := strings.Cut(rest, "/")
		if ok && isFolder && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// Schema is the JSON Schema of faas.yml under the bundle: the bundle's file,
// or made now for a bundle that has none.
func Schema(b *bundle.Bundle) ([]byte, error) {
	if data, err := fs.ReadFile(b.FS, SchemaFile); err == nil {
		return data, nil
	}
	var files []string
	err := fs.WalkDir(b.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	made, err := BundleFiles(b.Meta, files)
	return made[SchemaFile], err
}
