package stages

import (
	"context"
	"errors"
	"sync"

	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
)

// Tree is the work tree that a person's plan is of, looked at while other
// things are done.
type Tree struct {
	look *worktree.Look
	file func() (project.File, error) // faas.yml
}

// Look is the tree at dir of a look at it, which ends with ctx at the latest.
func Look(ctx context.Context, look *worktree.Look, dir string) *Tree {
	look.Until(ctx)
	return &Tree{look: look, file: sync.OnceValues(func() (project.File, error) { return projectFile(dir) })}
}

// Head waits for the checked-out commit and branch; empty outside a git work
// tree.
func (t *Tree) Head() (sha, branch string, err error) { return t.look.Head() }

// project is faas.yml; a nil Tree reads it now, in dir.
func (t *Tree) project(dir string) (project.File, error) {
	if t == nil {
		return projectFile(dir)
	}
	return t.file()
}

func projectFile(dir string) (project.File, error) {
	data, err := readProjectFile(dir)
	if err != nil {
		return project.File{}, err
	}
	return project.Read(data), nil
}

// treeError is the designed error of a work tree that can't be read.
func treeError(err error) error {
	e := &usererr.Error{
		Code: usererr.CodeBuildInput, What: "read the work tree", Err: err,
		Next: "correct what is named above, or leave it out with package.exclude in faas.yml",
	}
	var file *worktree.FileError
	if errors.As(err, &file) {
		e.Next = file.Next
	}
	return e
}
