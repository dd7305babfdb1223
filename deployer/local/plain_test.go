package local

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/deployer"
)

// dynamic is a root folder with this machine's sh and the libraries it needs,
// in the places a distribution has them.
func dynamic(t *testing.T) string {
	t.Helper()
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Skip("needs a /bin/sh to copy")
	}
	f, err := elf.Open(sh)
	if err != nil {
		t.Skipf("needs a /bin/sh that is a program: %v", err)
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil || len(libs) == 0 {
		t.Skip("needs a dynamically linked /bin/sh")
	}
	root := t.TempDir()
	put := func(from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err != nil {
			t.Skipf("needs %s: %v", from, err)
		}
		to = filepath.Join(root, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(sh, "usr/bin/real-sh")
	for _, lib := range libs {
		from := ""
		for _, dir := range libraryPath("/") {
			if _, err := os.Stat(filepath.Join(dir, lib)); err == nil && from == "" {
				from = filepath.Join(dir, lib)
			}
		}
		if from == "" {
			t.Skipf("needs %s in one of the usual folders", lib)
		}
		put(from, "usr/lib/"+lib)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			put(strings.TrimRight(string(b), "\x00"), strings.TrimRight(string(b), "\x00"))
		}
	}
	if err := os.Symlink("/usr/bin/real-sh", filepath.Join(root, "usr/bin/sh")); err != nil { // as alternatives do
		t.Fatal(err)
	}
	if err := os.Symlink("usr/bin", filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestPlainUsesTheImagesLoader(t *testing.T) {
	root := dynamic(t)
	if err := os.WriteFile(filepath.Join(root, "script"), []byte("echo from the image\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := &plain{say: t.Logf}
	for _, program := range []string{"/bin/sh", "sh"} {
		argv, err := l.argv(order{fs: rootfs{whole: root}, argv: []string{program, "/script", "/not/there"}, env: []string{"PATH=/usr/none:/usr/bin"}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil || string(out) != "from the image\n" {
			t.Errorf("%q: %v\n%s", argv, err, out)
		}
		if !strings.HasPrefix(argv[0], root) || !strings.Contains(strings.Join(argv, " "), root+"/usr/bin/real-sh") || argv[len(argv)-1] != "/not/there" {
			t.Errorf("argv %q; want the loader and the program of %s, and what is not in it unchanged", argv, root)
		}
	}
	if _, err := l.argv(order{fs: rootfs{whole: root}, argv: []string{"/script"}}); err == nil || !strings.Contains(err.Error(), "no scripts") {
		t.Errorf("a script: %v; want it refused by name", err)
	}
}

func TestPlainFallsBackToThisMachinesProgram(t *testing.T) {
	root := dynamic(t)
	var said bytes.Buffer
	l := &plain{say: func(format string, args ...any) { said.WriteString(format) }}
	l.noChroot.Store(true)
	o := order{fs: rootfs{whole: root}, argv: []string{"/bin/sh", "-c", "echo $0"}}
	if l.another(o, &deployer.Failure{Code: deployer.Crash, ExitCode: 1}) {
		t.Error("a program that ended by itself is replaced")
	}
	aborted := &deployer.Failure{Code: deployer.Crash, Signal: "aborted"}
	if !l.another(o, aborted) || said.Len() == 0 {
		t.Errorf("a program that was aborted is not replaced, or nothing said: %q", said.String())
	}
	argv, err := l.argv(o)
	if err != nil || strings.HasPrefix(argv[0], root) || filepath.Base(argv[0]) != "sh" {
		t.Errorf("argv %q, %v; want this machine's sh", argv, err)
	}
	if l.another(o, aborted) {
		t.Error("it is replaced twice")
	}
	if !strings.Contains(l.note(), argv[0]) {
		t.Errorf("note %q doesn't name %s", l.note(), argv[0])
	}
}
