package worktree

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// write makes files; a name that ends in "*" is executable.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		mode := fs.FileMode(0o644)
		if n, ok := strings.CutSuffix(name, "*"); ok {
			name, mode = n, 0o755
		}
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func paths(files []File) string {
	var p []string
	for _, f := range files {
		p = append(p, f.Path)
	}
	return strings.Join(p, " ")
}

// Tracked files and the build's output; the rest of the work tree is nobody's.
func TestList(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"index.js": "x", ".gitignore": "dist/\nsecret.txt\nnode_modules/\n", "dist/out.js": "o", "dist/node_modules/x.js": "m", "secret.txt": "s",
		"node_modules/x/index.js": "m", "bin/run*": "#!", "世界.js": "n", "gone.js": "g",
	})
	git(t, dir, "init", "-q")
	git(t, dir, "add", "-A")
	if err := os.Remove(filepath.Join(dir, "gone.js")); err != nil {
		t.Fatal(err)
	}
	for output, want := range map[string]string{
		"":     ".gitignore bin/run gone.js index.js 世界.js",
		"dist": ".gitignore bin/run dist/out.js gone.js index.js 世界.js",
		"none": ".gitignore bin/run gone.js index.js 世界.js",
	} {
		got, err := List(t.Context(), dir, output)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("output %q: got %v, %v", output, got, err)
		}
	}
	files, err := Sum(dir, []string{"gone.js", "index.js"})
	if err != nil || paths(files) != "index.js" {
		t.Errorf("got %v, %v", paths(files), err)
	}
}

// read lists and sums a folder.
func read(t *testing.T, dir string) ([]File, error) {
	t.Helper()
	list, err := List(t.Context(), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return Sum(dir, list)
}

// Sums depend on content, kind and the executable bit; on nothing else that
// differs between two checkouts of one commit.
func TestSumsIgnoreTheCheckout(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	files := map[string]string{"a.js": "a", "b/run*": "b"}
	write(t, one, files)
	write(t, two, files)
	old := time.Unix(1000, 0)
	for _, p := range []string{"a.js", "b/run"} {
		if err := os.Chtimes(filepath.Join(two, p), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(two, "a.js"), 0o600); err != nil {
		t.Fatal(err)
	}
	x, err := read(t, one)
	if err != nil {
		t.Fatal(err)
	}
	y, err := read(t, two)
	if err != nil {
		t.Fatal(err)
	}
	if len(x) != 2 || x[0] != y[0] || x[1] != y[1] {
		t.Errorf("%v differs from %v", x, y)
	}
	if err := os.Chmod(filepath.Join(two, "a.js"), 0o755); err != nil {
		t.Fatal(err)
	}
	if y, err = read(t, two); err != nil || x[0] == y[0] {
		t.Errorf("the executable bit does not count (%v)", err)
	}
}

func TestSumRefusesWhatWouldLeakOrBreak(t *testing.T) {
	for name, to := range map[string]string{"absolute": "/etc/passwd", "upwards": "../../secret"} {
		dir := t.TempDir()
		if err := os.Symlink(to, filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if _, err := read(t, dir); err == nil || !strings.Contains(err.Error(), "outside the repository") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"real/x.js": "x"})
	if err := os.Symlink("real/x.js", filepath.Join(dir, "link.js")); err != nil {
		t.Fatal(err)
	}
	files, err := read(t, dir)
	if err != nil || paths(files) != "link.js real/x.js" {
		t.Errorf("a link inside the tree gave %v, %v", paths(files), err)
	}
}

// A submodule's files take part once it is checked out; until then, and for a
// Git LFS pointer, the plan says what the job must fetch.
func TestFilesThatWereNotFetched(t *testing.T) {
	sub, dir := t.TempDir(), t.TempDir()
	write(t, sub, map[string]string{"lib.js": "x"})
	git(t, sub, "init", "-q")
	git(t, sub, "add", "-A")
	git(t, sub, "commit", "-qm", "one")
	git(t, dir, "init", "-q")
	git(t, dir, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", sub, "sub")
	got, err := read(t, dir)
	if err != nil || paths(got) != ".gitmodules sub/lib.js" {
		t.Errorf("checked out: got %q, %v", paths(got), err)
	}
	git(t, dir, "submodule", "--quiet", "deinit", "-f", "sub")
	_, err = read(t, dir)
	var missing *FileError
	if !errors.As(err, &missing) || !strings.Contains(missing.Next, "GIT_SUBMODULE_STRATEGY") {
		t.Errorf("not checked out: got %v", err)
	}

	dir = t.TempDir()
	write(t, dir, map[string]string{"model.bin": lfsPointer + "oid sha256:4d7a\nsize 12345\n"})
	_, err = read(t, dir)
	if !errors.As(err, &missing) || !strings.Contains(missing.Next, "LFS") {
		t.Errorf("LFS pointer: got %v", err)
	}
}
