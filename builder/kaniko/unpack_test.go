package kaniko

import (
	"archive/tar"
	"bytes"
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

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// testImage makes an image of layers.
func testImage(t *testing.T, layers ...[]tar.Header) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, headers := range layers {
		b := archive(t, headers)
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// archive writes headers; a regular file's content is its Linkname.
func archive(t *testing.T, headers []tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg || h.Typeflag == 0 {
			body, h.Linkname, h.Size = h.Linkname, "", int64(len(h.Linkname))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func file(name, body string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: body}
}
func folder(name string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
}
func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func hard(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

func TestUnpack(t *testing.T) {
	img := testImage(t,
		[]tar.Header{
			folder("a/", 0o755), file("a/old", "1"), file("a/gone", "1"), folder("opq/", 0o755), file("opq/below", "1"), file("opq/sub/x", "1"),
			folder("locked/", 0o555), file("locked/f", "1"), file("becomes-dir", "1"), folder("becomes-file/", 0o755), file("becomes-file/x", "1"),
			file("target", "hard"), link("lib", "usr/lib"), folder("usr/lib/", 0o755), {Typeflag: tar.TypeReg, Name: "su", Mode: 0o4755, Linkname: "s"},
			{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3},
		},
		[]tar.Header{
			file("a/old", "2"), file("a/.wh.gone", ""), file("opq/.wh..wh..opq", ""), file("opq/above", "2"), file("locked/g", "2"),
			folder("becomes-dir/", 0o700), file("becomes-dir/x", "2"), file("becomes-file", "2"), hard("linked", "target"), file("lib/so", "2"),
			file("./odd//name", "2"), file(".wh.nothing", ""), link("abs", "/etc/passwd"),
		})
	s := &store{dir: filepath.Join(t.TempDir(), "x")}
	t.Cleanup(func() { removeTree(s.dir) })
	tr, kept, err := s.tree(t.Context(), "base", sandbox.UserNS, false, img.Layers)
	if err != nil || kept {
		t.Fatal(kept, err)
	}
	defer tr.close()
	dir := tr.dir
	want := map[string]string{
		"a/old": "2", "opq/above": "2", "locked/f": "1", "locked/g": "2", "becomes-dir/x": "2", "becomes-file": "2", "target": "hard", "linked": "hard",
		"usr/lib/so": "2", "odd/name": "2", "su": "s",
	}
	got := map[string]string{}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, _ := filepath.Rel(dir, p)
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			got[rel] = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range want {
		if got[name] != body {
			t.Errorf("%s: %q, want %q", name, got[name], body)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("also there: %v", got)
	}
	if st, _ := os.Stat(filepath.Join(dir, "locked")); st.Mode().Perm() != 0o555 {
		t.Errorf("locked has mode %v", st.Mode())
	}
	if st, _ := os.Stat(filepath.Join(dir, "su")); st.Mode()&fs.ModeSetuid == 0 {
		t.Errorf("su has mode %v", st.Mode())
	}
	left, _ := os.ReadDir(filepath.Dir(dir))
	if len(left) != 3 { // it, its lock and its owners
		t.Errorf("left beside it: %v", left)
	}
	again, kept, err := s.tree(t.Context(), "base", sandbox.UserNS, false, nil)
	if err != nil || !kept {
		t.Fatalf("again: %v, %v", kept, err)
	}
	again.close()
}

// An image can't write outside of its folder, and a failure leaves nothing.
func TestUnpackHostile(t *testing.T) {
	for name, layer := range map[string][]tar.Header{
		"file through a link out":         {link("out", "../../.."), file("out/owned", "x")},
		"file through an absolute link":   {link("out", "/tmp"), file("out/owned", "x")},
		"folder through a link out":       {link("out", ".."), folder("out/owned/", 0o755), file("out/owned/f", "x")},
		"hard link to the host":           {link("etc", "/etc"), hard("passwd", "etc/passwd")},
		"whiteout through a link":         {link("out", "../victim"), file("out/.wh.file", "")},
		"opaque through a link":           {link("out", "../victim"), file("out/.wh..wh..opq", "")},
		"overwrite through the last link": {link("out", "../victim/file"), file("out/x", "owned")},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			victim := filepath.Join(top, "victim")
			if err := os.Mkdir(victim, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(victim, "file"), []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
			s := &store{dir: filepath.Join(top, "s")}
			if tr, _, err := s.tree(t.Context(), "base", sandbox.UserNS, false, testImage(t, layer).Layers); err == nil {
				tr.close()
				t.Error("accepted")
			}
			left, _ := os.ReadDir(filepath.Join(top, "s", "tree"))
			if len(left) != 1 { // the lock
				t.Errorf("left: %v", left)
			}
			if b, _ := os.ReadFile(filepath.Join(victim, "file")); string(b) != "mine" {
				t.Errorf("the victim: %q", b)
			}
		})
	}
	// Names with dots are taken as below the root, as by every tar program.
	s := &store{dir: t.TempDir()}
	tr, _, err := s.tree(t.Context(), "base", sandbox.UserNS, false, testImage(t, []tar.Header{file("../../etc/x", "x"), file("/abs", "y")}).Layers)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	dir := tr.dir
	for _, f := range []string{"etc/x", "abs"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
}

// What comes out of the sandbox is not trusted.
func TestHostileLayers(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, archive(t, []tar.Header{file("a", "of the host")}), 0o644); err != nil {
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
	k, err := newKnown([]*tree{{dir: t.TempDir()}}, false)
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
		if err := os.WriteFile(filepath.Join(out, "0.tar"), archive(t, headers), 0o644); err != nil {
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
	if got := names(folder("etc/", 0o755), shadow("same"), link("etc/link", "conf"), file("new", "x")); !slices.Equal(got, []string{"new"}) {
		t.Errorf("unchanged: %q", got)
	}
	if got := names(folder("etc/", 0o700), shadow("diff")); !slices.Equal(got, []string{"etc/", "etc/shadow"}) {
		t.Errorf("changed: %q", got)
	}
	// Back to the base's form is a change now.
	if got := names(folder("etc/", 0o755), shadow("same")); !slices.Equal(got, []string{"etc/", "etc/shadow"}) {
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

// rawLayer is an uncompressed layer of any bytes.
type rawLayer struct {
	v1.Layer
	b []byte
}

func (l rawLayer) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.b))
	return h, err
}

func (l rawLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.b)), nil
}

// No archive writes outside of its folder, or makes us fail in another way
// than with an error.
func FuzzUnpack(f *testing.F) {
	t := &testing.T{}
	f.Add(archive(t, []tar.Header{folder("a/", 0o500), file("a/f", "1"), link("l", "../.."), hard("h", "a/f"), file("a/.wh.f", "")}), false)
	f.Add(archive(t, []tar.Header{link("l", "../victim"), file("l/x", "1"), file("l/.wh..wh..opq", "")}), true)
	f.Add([]byte("not a tar"), true)
	f.Fuzz(func(t *testing.T, b []byte, overlay bool) {
		top := t.TempDir()
		victim := filepath.Join(top, "victim")
		if err := errors.Join(os.Mkdir(victim, 0o755), os.WriteFile(filepath.Join(victim, "file"), []byte("mine"), 0o644)); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(top, "base")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := unpack(t.Context(), []v1.Layer{rawLayer{nil, b}}, dir, false, overlay)
		_ = removeTree(dir)
		left, _ := os.ReadDir(top)
		inside, _ := os.ReadDir(victim)
		mine, _ := os.ReadFile(filepath.Join(victim, "file"))
		if len(left) != 1 || len(inside) != 1 || string(mine) != "mine" {
			t.Errorf("after %v: %v, %v, %q", err, left, inside, mine)
		}
	})
}

// No tar of the executor makes us fail in another way than with an error.
func FuzzNormalise(f *testing.F) {
	t := &testing.T{}
	f.Add(archive(t, []tar.Header{folder("a/", 0o755), file("a/f", "1"), link("l", "a"), hard("h", "a/f"), file("a/.wh.x", "")}))
	f.Add(archive(t, []tar.Header{file("a", "1"), file("a/b", "1"), file("./a", "2")}))
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
