package rootfs

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
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kuroko-faas/kuroko/builder/rootfs/rootfstest"
)

// testImage makes an image of layers.
func testImage(t *testing.T, layers ...[]tar.Header) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, headers := range layers {
		b := rootfstest.Archive(t, headers)
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

func TestUnpack(t *testing.T) {
	img := testImage(t,
		[]tar.Header{
			rootfstest.Folder("a/", 0o755), rootfstest.File("a/old", "1"), rootfstest.File("a/gone", "1"), rootfstest.Folder("opq/", 0o755), rootfstest.File("opq/below", "1"), rootfstest.File("opq/sub/x", "1"),
			rootfstest.Folder("locked/", 0o555), rootfstest.File("locked/f", "1"), rootfstest.File("becomes-dir", "1"), rootfstest.Folder("becomes-file/", 0o755), rootfstest.File("becomes-file/x", "1"),
			rootfstest.File("target", "hard"), rootfstest.Link("lib", "usr/lib"), rootfstest.Folder("usr/lib/", 0o755), {Typeflag: tar.TypeReg, Name: "su", Mode: 0o4755, Linkname: "s"},
			{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3},
		},
		[]tar.Header{
			rootfstest.File("a/old", "2"), rootfstest.File("a/.wh.gone", ""), rootfstest.File("opq/.wh..wh..opq", ""), rootfstest.File("opq/above", "2"), rootfstest.File("locked/g", "2"),
			rootfstest.Folder("becomes-dir/", 0o700), rootfstest.File("becomes-dir/x", "2"), rootfstest.File("becomes-file", "2"), rootfstest.Hard("linked", "target"), rootfstest.File("lib/so", "2"),
			rootfstest.File("./odd//name", "2"), rootfstest.File(".wh.nothing", ""), rootfstest.Link("abs", "/etc/passwd"),
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
	if len(left) != 4 { // it, its lock, its owners and its size
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
		"file through a link out":         {rootfstest.Link("out", "../../.."), rootfstest.File("out/owned", "x")},
		"file through an absolute link":   {rootfstest.Link("out", "/tmp"), rootfstest.File("out/owned", "x")},
		"folder through a link out":       {rootfstest.Link("out", ".."), rootfstest.Folder("out/owned/", 0o755), rootfstest.File("out/owned/f", "x")},
		"hard link to the host":           {rootfstest.Link("etc", "/etc"), rootfstest.Hard("passwd", "etc/passwd")},
		"whiteout through a link":         {rootfstest.Link("out", "../victim"), rootfstest.File("out/.wh.file", "")},
		"opaque through a link":           {rootfstest.Link("out", "../victim"), rootfstest.File("out/.wh..wh..opq", "")},
		"overwrite through the last link": {rootfstest.Link("out", "../victim/file"), rootfstest.File("out/x", "owned")},
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
	tr, _, err := s.Tree(t.Context(), Want{Name: "base", Layers: testImage(t, []tar.Header{rootfstest.File("../../etc/x", "x"), rootfstest.File("/abs", "y")}).Layers})
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
	f.Add(rootfstest.Archive(t, []tar.Header{rootfstest.Folder("a/", 0o500), rootfstest.File("a/f", "1"), rootfstest.Link("l", "../.."), rootfstest.Hard("h", "a/f"), rootfstest.File("a/.wh.f", "")}), false)
	f.Add(rootfstest.Archive(t, []tar.Header{rootfstest.Link("l", "../victim"), rootfstest.File("l/x", "1"), rootfstest.File("l/.wh..wh..opq", "")}), true)
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
		_, err := unpack(t.Context(), []v1.Layer{rawLayer{nil, b}}, dir, Want{Overlay: overlay})
		_ = Remove(dir)
		left, _ := os.ReadDir(top)
		inside, _ := os.ReadDir(victim)
		mine, _ := os.ReadFile(filepath.Join(victim, "file"))
		if len(left) != 1 || len(inside) != 1 || string(mine) != "mine" {
			t.Errorf("after %v: %v, %v, %q", err, left, inside, mine)
		}
	})
}

// A part of a layer has what was asked for; a whole tree that is there serves
// as well.
func TestPart(t *testing.T) {
	img := testImage(t, []tar.Header{
		rootfstest.Folder("a/", 0o755), rootfstest.File("a/wanted", "1"), rootfstest.File("a/other", "1"), rootfstest.Folder("empty/", 0o700), rootfstest.Link("link", "a"),
		rootfstest.File("a/.wh.gone", ""), rootfstest.Hard("a/wanted2", "a/wanted"), rootfstest.Hard("a/other2", "a/other"),
	})
	s := Store{filepath.Join(t.TempDir(), "x")}
	get := func(id string, names ...string) (string, bool, error) {
		var p *Part
		if id != "" {
			p = &Part{ID: id, Has: func(name string) bool { return slices.Contains(names, name) }}
		}
		tr, kept, err := s.Tree(t.Context(), Want{Name: "l", Overlay: true, Part: p, Layers: img.Layers})
		if err != nil {
			return "", kept, err
		}
		defer tr.Close()
		var all []string
		err = filepath.WalkDir(tr.Dir, func(p string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(tr.Dir, p)
			all = append(all, rel)
			return err
		})
		return strings.Join(all, " "), kept, err
	}
	if got, _, err := get("one", "a", "a/wanted", "a/wanted2", "a/gone", "empty", "nothing"); err != nil || got != ". a a/gone a/wanted a/wanted2 empty" {
		t.Errorf("%q, %v", got, err)
	}
	if _, kept, err := get("one"); err != nil || !kept {
		t.Errorf("the same part again: kept %v, %v", kept, err)
	}
	if _, _, err := get("two", "a/other2"); !errors.Is(err, ErrNotInPart) {
		t.Errorf("a link to what is left out: %v", err)
	}
	const whole = ". a a/gone a/other a/other2 a/wanted a/wanted2 empty link"
	if got, kept, err := get(""); err != nil || kept || got != whole {
		t.Errorf("%q, kept %v, %v", got, kept, err)
	}
	if got, kept, err := get("three", "a/wanted"); err != nil || !kept || got != whole {
		t.Errorf("with the whole there: %q, kept %v, %v", got, kept, err)
	}
	// What is removed is removed with all that belongs to it.
	list, err := s.List()
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	for _, k := range list {
		if !k.Drop() {
			t.Errorf("%+v stays", k)
		}
	}
	if left, _ := os.ReadDir(s.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
