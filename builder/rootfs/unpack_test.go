package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
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
	s := Store{filepath.Join(t.TempDir(), "x")}
	t.Cleanup(func() { Remove(s.Dir) })
	tr, kept, err := s.Tree(t.Context(), Want{Name: "base", Layers: img.Layers})
	if err != nil || kept {
		t.Fatal(kept, err)
	}
	defer tr.Close()
	dir := tr.Dir
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
	again, kept, err := s.Tree(t.Context(), Want{Name: "base"})
	if err != nil || !kept {
		t.Fatalf("again: %v, %v", kept, err)
	}
	again.Close()
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
			s := Store{filepath.Join(top, "s")}
			if tr, _, err := s.Tree(t.Context(), Want{Name: "base", Layers: testImage(t, layer).Layers}); err == nil {
				tr.Close()
				t.Error("accepted")
			}
			left, _ := os.ReadDir(filepath.Join(top, "s"))
			if len(left) != 1 { // the lock
				t.Errorf("left: %v", left)
			}
			if b, _ := os.ReadFile(filepath.Join(victim, "file")); string(b) != "mine" {
				t.Errorf("the victim: %q", b)
			}
		})
	}
	// Names with dots are taken as below the root, as by every tar program.
	s := Store{t.TempDir()}
	tr, _, err := s.Tree(t.Context(), Want{Name: "base", Layers: testImage(t, []tar.Header{file("../../etc/x", "x"), file("/abs", "y")}).Layers})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	dir := tr.Dir
	for _, f := range []string{"etc/x", "abs"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
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
		_, err := Unpack(t.Context(), []v1.Layer{rawLayer{nil, b}}, dir, false, overlay)
		_ = Remove(dir)
		left, _ := os.ReadDir(top)
		inside, _ := os.ReadDir(victim)
		mine, _ := os.ReadFile(filepath.Join(victim, "file"))
		if len(left) != 1 || len(inside) != 1 || string(mine) != "mine" {
			t.Errorf("after %v: %v, %v, %q", err, left, inside, mine)
		}
	})
}
