package stages

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// A faas.yml that is no file is the project's mistake. None of them may hang:
// a named pipe waits for its writer in open(2), where no signal helps.
func TestProjectFileIsNoFile(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"folder":      func(p string) error { return os.Mkdir(p, 0o755) },
		"named pipe":  func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"link out":    func(p string) error { return os.Symlink("/etc/passwd", p) },
		"link loop":   func(p string) error { return os.Symlink("faas.yml", p) },
		"link to dir": func(p string) error { return os.Symlink(".", p) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := make(filepath.Join(dir, "faas.yml")); err != nil {
				t.Fatal(err)
			}
			_, err := readProjectFile(dir)
			var e *usererr.Error
			if !errors.As(err, &e) || e.Code != usererr.CodeProjectFile || e.Next == "" {
				t.Errorf("got %v, want E1001 with a next step", err)
			}
		})
	}
}

// What a repository commits under .faas is not what an earlier job left.
func TestWorkFileIsNoWorkFile(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"folder":     func(p string) error { return os.Mkdir(p, 0o755) },
		"named pipe": func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"link":       func(p string) error { return os.Symlink("/etc/passwd", p) },
		"other JSON": func(p string) error { return os.WriteFile(p, []byte(`[1]`), 0o644) },
		"cut":        func(p string) error { return os.WriteFile(p, []byte(`{"version":1`), 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, WorkDir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := make(filepath.Join(dir, WorkDir, fileImages)); err != nil {
				t.Fatal(err)
			}
			var f imagesFile
			if err := readWork(dir, fileImages, &f); !errors.Is(err, errNoFile) {
				t.Errorf("got %v", err)
			}
		})
	}
}
