package stages

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/internal/worktree"
)

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

// A file that was not fetched is the developer's to fetch, as it says itself.
func TestTreeErrors(t *testing.T) {
	err := fmt.Errorf("read model.bin: %w", &worktree.FileError{What: "is a pointer", Next: "fetch it"})
	if e := usererr.Of(treeError(err)); e.Code != usererr.CodeBuildInput || e.Next != "fetch it" {
		t.Errorf("got %s, %s", e.Code, e.Next)
	}
}

// What the machine's file system refuses is not our bug.
func TestMachineErrors(t *testing.T) {
	_, missing := os.ReadFile("/nonexistent/x")
	for _, err := range []error{missing, &fs.PathError{Op: "open", Path: ".faas", Err: syscall.EROFS}, &os.LinkError{Op: "rename", Err: syscall.EACCES}} {
		if e := usererr.Of(Explain(t.Context(), err)); e.Code != usererr.CodeUnable || e.Next == "" {
			t.Errorf("%v: got %s", err, e.Code)
		}
	}
}
