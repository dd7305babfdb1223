package stages

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
	"github.com/kuroko-faas/kuroko/runtimes"
)

// checkHandlers looks for the file of every handler that which selects, and
// names all that are missing. seen says of a file that it is there, when that
// is known; nil knows of none.
func checkHandlers(p *project.Project, dir string, which, seen func(string) bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var problems []usererr.Problem
	for _, f := range p.Functions {
		if f.Contract == "app" {
			if f.Build.Builder == "layer" {
				if why, next := checkStart(f, root, which); why != "" {
					problems = append(problems, usererr.Problem{Why: why, Next: next})
				}
			}
			continue
		}
		if f.Language != "node" || !which(f.Handler) {
			continue
		}
		files, export, err := runtimes.NodeHandler(f.Handler)
		if err != nil {
			problems = append(problems, usererr.Problem{Why: fmt.Sprintf("line %d: functions.%s.handler: %v", f.Line, f.Name, err)})
		} else if !(seen != nil && slices.ContainsFunc(files, seen)) && !anyFile(root, files) {
			problems = append(problems, usererr.Problem{
				Why: fmt.Sprintf("line %d: functions.%s.handler: none of %s is there to export %q", f.Line, f.Name, strings.Join(files, ", "), export),
			})
		}
	}
	if len(problems) > 0 {
		return &usererr.Error{Code: usererr.CodeHandlerMissing, Problems: problems}
	}
	return nil
}

// within reports whether p is below dir.
func within(p, dir string) bool {
	return dir == "." || strings.HasPrefix(p, path.Clean(dir)+"/")
}

func anyFile(root *os.Root, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		info, err := root.Stat(filepath.FromSlash(n))
		return err == nil && info.Mode().IsRegular()
	})
}
