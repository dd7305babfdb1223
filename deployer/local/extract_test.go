package local

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pack writes a layer from lines: "f name body", "d name mode", "l name
// target" (symbolic), "h name target" (hard), "c name" (device).
func pack(t testing.TB, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range lines {
		part := strings.SplitN(line, " ", 3)
		part = append(part, "")
		h := tar.Header{Name: part[1], Mode: 0o644, Uid: os.Getuid(), Gid: os.Getgid()}
		body := ""
		switch part[0] {
		case "f":
			h.Typeflag, body = tar.TypeReg, part[2]
		case "s": // set-user-ID
			h.Typeflag, h.Mode, body = tar.TypeReg, 0o6755, part[2]
		case "d":
			h.Typeflag = tar.TypeDir
			fmt.Sscanf(part[2]+" 755", "%o", &h.Mode)
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, part[2]
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, part[2]
		case "c":
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, 3
		}
		h.Size = int64(len(body))
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
	return b.Bytes()
}

// unpackInto unpacks layers on top of each other beside a file that nothing
// may touch, and lists what came out.
func unpackInto(t testing.TB, onto bool, lim limits, layers ...[]byte) ([]string, layerNeeds, error) {
	t.Helper()
	outer := t.TempDir()
	if err := os.WriteFile(filepath.Join(outer, "secret"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(outer, "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	x := &extractor{root: root, onto: onto, left: lim}
	for _, l := range layers {
		if err = x.layer(bytes.NewReader(l)); err != nil {
			break
		}
	}
	if b, e := os.ReadFile(filepath.Join(outer, "secret")); e != nil || string(b) != "untouched" {
		t.Errorf("the file outside: %q, %v", b, e)
	}
	entries, e := os.ReadDir(outer)
	if e != nil || len(entries) != 2 {
		t.Errorf("outside there is %v, %v", entries, e)
	}
	var got []string
	e = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			rel += " -> " + to
		case d.IsDir():
			rel += "/"
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += "=" + string(b)
		}
		if st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			rel += " setid"
		}
		if st.Mode()&fs.ModeSticky != 0 {
			rel += " sticky"
		}
		got = append(got, rel)
		return nil
	})
	if e != nil {
		t.Fatal(e)
	}
	return got, x.need, err
}

var plenty = limits{bytes: 1 << 20, files: 1000}

func TestExtract(t *testing.T) {
	for _, tc := range []struct {
		name    string
		layers  [][]string
		want    []string
		below   bool
		folders int
	}{
		{name: "files", layers: [][]string{{"d ./ 755", "d a/", "f a/x 1", "f ./b 2", "f /c 3"}}, want: []string{"a/", "a/x=1", "b=2", "c=3"}},
		{name: "odd names", layers: [][]string{{"f 函数 1", "f -rf 2", "f a\nb 3", "f ... 4"}}, want: []string{"-rf=2", "...=4", "a\nb=3", "函数=1"}},
		{name: "sticky kept, set-id dropped", layers: [][]string{{"d tmp/ 1777", "s bin 1"}}, want: []string{"bin=1", "tmp/ sticky"}},
		{name: "devices left out", layers: [][]string{{"c null", "f x 1"}}, want: []string{"x=1"}},
		{name: "folder of a lower layer", layers: [][]string{{"f a/b/x 1"}}, want: []string{"a/", "a/b/", "a/b/x=1"}, folders: 2},
		{name: "later entry wins", layers: [][]string{{"f x 1", "f x 2", "d y", "f y/z 1", "l y x"}}, want: []string{"x=2", "y -> x"}},
		{name: "through a link inside", layers: [][]string{{"d usr/", "d usr/lib/", "l lib usr/lib", "f lib/x 1"}}, want: []string{"lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/x=1"}},
		{name: "absolute link stays inside", layers: [][]string{{"d run/", "d var/", "l var/run /run", "f var/run/x 1"}}, want: []string{"run/", "run/x=1", "var/", "var/run -> /run"}},
		{name: "link upwards stays inside", layers: [][]string{{"l up ../../..", "f up/x 1"}}, want: []string{"up -> ../../..", "x=1"}},
		{name: "hard link", layers: [][]string{{"f x 1", "h y x", "h z ./y"}}, want: []string{"x=1", "y=1", "z=1"}},
		{name: "links out are only text", layers: [][]string{{"l a ../secret", "l b /etc/shadow"}}, want: []string{"a -> ../secret", "b -> /etc/shadow"}},
		{name: "file over a link out", layers: [][]string{{"l a ../secret", "f a 1"}}, want: []string{"a=1"}},
		{name: "whiteout", layers: [][]string{{"d a/", "f a/x 1", "f a/y 2", "d b/", "f b/z 3"}, {"f a/.wh.x ", "f .wh.b ", "f .wh.none "}}, want: []string{"a/", "a/y=2"}, below: true},
		{name: "opaque", layers: [][]string{{"d a/", "f a/x 1", "d a/d", "f a/d/y 1"}, {"d a/", "f a/new 2", "f a/.wh..wh..opq ", "f a/new2 3"}}, want: []string{"a/", "a/new=2", "a/new2=3"}, below: true},
		{name: "replaced and removed in one layer", layers: [][]string{{"f x 1"}, {"f x 2", "f .wh.x "}}, want: []string{"x=2"}, below: true},
		{name: "folder over file and back", layers: [][]string{{"f a 1", "d b/", "f b/x 1"}, {"d a/", "f a/y 2", "f b 3"}}, want: []string{"a/", "a/y=2", "b=3"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range tc.layers {
				layers = append(layers, pack(t, l...))
			}
			got, need, err := unpackInto(t, true, plenty, layers...)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			slices.Sort(tc.want)
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if need.Below != tc.below || len(need.Folders) != tc.folders {
				t.Errorf("needs %+v of lower layers, want %v, %d folders", need, tc.below, tc.folders)
			}
		})
	}
}

func TestExtractRefusesHostileLayers(t *testing.T) {
	bomb := strings.Repeat("x", 2000)
	for name, lines := range map[string][]string{
		"dotdot":               {"f ../evil 1"},
		"dotdot inside":        {"f a/../../evil 1"},
		"hard link out":        {"h x ../secret"},
		"hard link to folder":  {"d a/", "h x a"},
		"hard link to nothing": {"h x none"},
		"link circle":          {"l a b", "l b a", "f a/x 1"},
		"too many bytes":       {"f a " + bomb},
		"too many files":       {"f a ", "f b ", "f c ", "f d ", "f e ", "f f "},
		"whiteout of itself":   {"d a/", "f a/.wh... "},
		"whiteout of nothing":  {"f .wh. "},
		"through a file":       {"f a 1", "f a/x 1"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := unpackInto(t, true, limits{bytes: 1000, files: 5}, pack(t, lines...)); err == nil {
				t.Error("it was unpacked")
			}
		})
	}
	if _, _, err := unpackInto(t, true, plenty, pack(t, "f a 1")[:512]); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a layer cut short: %v", err)
	}
}

func TestAlike(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for name, mode := range map[string]os.FileMode{"plain": 0o755, "open": 0o777 | os.ModeSticky} {
		if err := os.Mkdir(filepath.Join(a, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(a, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("plain", filepath.Join(a, "link")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"plain": true, "none": true, "open": false, "link": false} {
		if got := alike([]string{name}, []string{b, a}); got != want {
			t.Errorf("%s is alike: %v, want %v", name, got, want)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(pack(f, "d a/", "f a/x 1", "l b /a", "f b/y 2", "h c a/x", "f a/.wh.x "), true)
	f.Add(pack(f, "l up ../..", "f up/x 1", "d up/secret/", "f .wh..wh..opq "), false)
	f.Add(pack(f, "l a b/c", "l b .", "f a/x 1"), true)
	f.Fuzz(func(t *testing.T, layer []byte, onto bool) {
		_, _, _ = unpackInto(t, onto, limits{bytes: 1 << 16, files: 50}, layer, layer)
	})
}

func TestWithin(t *testing.T) {
	root := t.TempDir()
	for link, to := range map[string]string{"lib": "usr/lib", "abs": "/usr", "up": "../../usr", "circle": "circle"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"/lib/x": "usr/lib/x", "/abs/lib": "usr/lib", "/up/lib": "usr/lib", "/../../etc/passwd": "etc/passwd", "/none/y": "none/y", "/": ".",
	} {
		got, err := within(root, name)
		if err != nil || got != filepath.Join(root, want) {
			t.Errorf("within(%s) = %s, %v; want %s", name, got, err, want)
		}
	}
	if got, err := within(root, "/circle/x"); err == nil {
		t.Errorf("a link to itself became %s", got)
	}
}

func TestLogFileIsBounded(t *testing.T) {
	l := &logFile{name: filepath.Join(t.TempDir(), "log"), max: 1000}
	for n := range 500 {
		fmt.Fprintf(l, "line %d\n", n)
	}
	var size int64
	for _, name := range []string{l.name, l.name + ".1"} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	if size > 2000 {
		t.Errorf("%d bytes on disk", size)
	}
	got, err := l.tail(3)
	if err != nil || !slices.Equal(got, []string{"line 497", "line 498", "line 499"}) {
		t.Errorf("tail %q, %v", got, err)
	}
	fmt.Fprintf(l, "\xff%s\n", strings.Repeat("y", 5000))
	if got, _ := l.tail(1); len(got) != 1 || len(got[0]) > maxLine+10 || !strings.HasPrefix(got[0], "�y") {
		t.Errorf("a long line of bytes became %d bytes", len(got[0]))
	}
	if err := l.remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write([]byte("late\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.name); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a removed log came back")
	}
}
