package kaniko

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
	"github.com/kuroko-faas/kuroko/builder/rootfs/rootfstest"
)

// What comes out of the sandbox is not trusted.
func TestHostileLayers(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, rootfstest.Archive(t, []tar.Header{rootfstest.File("a", "of the host")}), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, prepare := range map[string]func(out string) error{
		"link":    func(out string) error { return os.Symlink(secret, filepath.Join(out, "0.tar")) },
		"folder":  func(out string) error { return os.Mkdir(filepath.Join(out, "0.tar"), 0o755) },
		"pipe":    func(out string) error { return syscall.Mkfifo(filepath.Join(out, "0.tar"), 0o644) },
		"missing": func(string) error { return nil },
		"no tar":  func(out string) error { return os.WriteFile(filepath.Join(out, "0.tar"), []byte("{"), 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			if err := prepare(out); err != nil {
				t.Fatal(err)
			}
			root, err := os.OpenRoot(out)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if _, err := normalise(root, "0.tar", "", nothing(t)); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func nothing(t *testing.T) *known {
	t.Helper()
	k, err := newKnown([]*rootfs.Tree{{Dir: t.TempDir()}}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.close)
	return k
}

// What a layer repeats from the base is left out, unless a layer in between
// has changed it.
func TestDropsWhatTheBaseHas(t *testing.T) {
	k := nothing(t)
	if err := errors.Join(
		k.roots[0].Mkdir("etc", 0o755), k.roots[0].WriteFile("etc/shadow", []byte("same"), 0o600), k.roots[0].WriteFile("etc/conf", []byte("old!"), 0o644),
		k.roots[0].Symlink("conf", "etc/link"), k.roots[0].Chmod("etc", 0o755),
	); err != nil {
		t.Fatal(err)
	}
	names := func(headers ...tar.Header) []string {
		t.Helper()
		out := t.TempDir()
		if err := os.WriteFile(filepath.Join(out, "0.tar"), rootfstest.Archive(t, headers), 0o644); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(out)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		l, err := normalise(root, "0.tar", "", k)
		if err != nil {
			t.Fatal(err)
		}
		if l == nil {
			return nil
		}
		defer l.Close()
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var all []string
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return all
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, h.Name)
		}
	}
	shadow := func(body string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: "etc/shadow", Mode: 0o600, Linkname: body}
	}
	if got := names(rootfstest.Folder("etc/", 0o755), shadow("same"), rootfstest.Link("etc/link", "conf"), rootfstest.File("new", "x")); !slices.Equal(got, []string{"new"}) {
		t.Errorf("unchanged: %q", got)
	}
	if got := names(rootfstest.Folder("etc/", 0o700), shadow("diff")); !slices.Equal(got, []string{"etc/", "etc/shadow"}) {
		t.Errorf("changed: %q", got)
	}
	// Back to the base's form is a change now.
	if got := names(rootfstest.Folder("etc/", 0o755), shadow("same")); !slices.Equal(got, []string{"etc/", "etc/shadow"}) {
		t.Errorf("changed back: %q", got)
	}
	names(tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.conf", Mode: 0o644})
	if got := names(tar.Header{Typeflag: tar.TypeReg, Name: "etc/conf", Mode: 0o644, Linkname: "old!"}); !slices.Contains(got, "etc/conf") {
		t.Errorf("made again after its removal: %q", got)
	}
}

func TestCopyContext(t *testing.T) {
	// Some jobs run with a strict umask.
	defer syscall.Umask(syscall.Umask(0o077))
	files := fstest.MapFS{
		"a":             {Data: []byte("a"), Mode: 0o600},
		"run":           {Data: []byte("r"), Mode: 0o4755},
		"dir/b":         {Data: []byte("b"), Mode: 0o666},
		"dir/link":      {Data: []byte("b"), Mode: fs.ModeSymlink | 0o777},
		"dir/x.pem":     {Data: []byte("secret")},
		"logs/all":      {Data: []byte("log")},
		".dockerignore": {Data: []byte("*.pem\n**/*.pem\nlogs\n")},
	}
	dir := t.TempDir()
	sum := func(dir string, fsys fs.FS, paths []string) (string, error) {
		found, err := copyContext(dir, fsys, paths, "Dockerfile")
		return found.sum(nil, true), err
	}
	all, err := sum(dir, files, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"a": 0o644, "run": 0o755, "dir": 0o755 | fs.ModeDir, "dir/b": 0o644} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if to, _ := os.Readlink(filepath.Join(dir, "dir/link")); to != "b" {
		t.Errorf("link to %q", to)
	}
	for _, name := range []string{"dir/x.pem", "logs"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s was copied in spite of .dockerignore", name)
		}
	}
	same, err := sum(t.TempDir(), files, []string{"dir/link", "dir/b", "run", "a", ".dockerignore"})
	if err != nil || same != all {
		t.Errorf("the same files by list: %v %v", same == all, err)
	}
	changes := map[string]func(fstest.MapFS){
		"content":    func(m fstest.MapFS) { m["a"] = &fstest.MapFile{Data: []byte("A"), Mode: 0o600} },
		"executable": func(m fstest.MapFS) { m["a"] = &fstest.MapFile{Data: []byte("a"), Mode: 0o700} },
		"rename":     func(m fstest.MapFS) { m["c"] = m["a"]; delete(m, "a") },
		"link":       func(m fstest.MapFS) { m["dir/link"] = &fstest.MapFile{Data: []byte("c"), Mode: fs.ModeSymlink} },
	}
	for what, change := range changes {
		m := fstest.MapFS{}
		for k, v := range files {
			m[k] = v
		}
		change(m)
		if h, err := sum(t.TempDir(), m, nil); err != nil || h == all {
			t.Errorf("another %s: hash differs %v, %v", what, h != all, err)
		}
	}
	_, err = sum(t.TempDir(), fstest.MapFS{"pipe": {Mode: fs.ModeNamedPipe}}, nil)
	var input *builder.InputError
	if !errors.As(err, &input) || !strings.Contains(err.Error(), "pipe") {
		t.Errorf("a pipe: %v", err)
	}
}

// No tar of the executor makes us fail in another way than with an error.
func FuzzNormalise(f *testing.F) {
	t := &testing.T{}
	f.Add(rootfstest.Archive(t, []tar.Header{rootfstest.Folder("a/", 0o755), rootfstest.File("a/f", "1"), rootfstest.Link("l", "a"), rootfstest.Hard("h", "a/f"), rootfstest.File("a/.wh.x", "")}))
	f.Add(rootfstest.Archive(t, []tar.Header{rootfstest.File("a", "1"), rootfstest.File("a/b", "1"), rootfstest.File("./a", "2")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		out := t.TempDir()
		if err := os.WriteFile(filepath.Join(out, "0.tar"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(out)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if l, err := normalise(root, "0.tar", "", nothing(t)); err == nil && l != nil {
			l.Close()
		}
	})
}
