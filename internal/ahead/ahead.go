// Package ahead begins to look at the work tree before main, for `faas plan`.
// Go initialises a thousand packages first, most of them Kubernetes' and
// Knative's, on one processor; another lists and looks at the files meanwhile,
// which takes as long. It is a guess: only what the program reads of the
// arguments later says whether it was right ([worktree.Look.At]), and a wrong
// one is thrown away. Only cmd/faas imports it.
package ahead

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/internal/worktree"
)

// look is begun as soon as this package can be: it imports little, so that its
// turn is early.
var look = begin(os.Args[1:], os.Environ())

// Look is the look that was begun; nil where there was nothing to guess. The
// program closes it.
func Look() *worktree.Look { return look }

// begin begins to look at the folder that the process is in, where args ask
// for a plan of it.
func begin(args, environ []string) *worktree.Look {
	named := func(arg string) bool { return strings.HasPrefix(strings.TrimLeft(arg, "-"), "dir") } // another folder
	if len(args) == 0 || args[0] != "plan" || slices.ContainsFunc(args, named) {
		return nil
	}
	dir, err := filepath.Abs(".")
	if err != nil {
		return nil
	}
	return worktree.Begin(environ, dir, worktree.Cache(os.Getenv))
}
