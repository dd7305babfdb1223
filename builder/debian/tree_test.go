package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// pkg is an archive and who brings it.
type pkg struct {
	source
	entries []tarEntry
}

func treeOf(t testing.TB, pkgs ...pkg) (*tree, error) {
	t.Helper()
	tr, err := newTree(t.TempDir(), dropper(nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.close() })
	for _, p := range pkgs {
		if err := tr.addTar(t.Context(), p.source, bytes.NewReader(tarOf(t, p.entries...))); err != nil {
			return tr, err
		}
	}
	return tr, nil
}

func written(t testing.TB, tr *tree) (*layer.Layer, []string, map[string]string) {
	t.Helper()
	w, err := layer.NewWriter(t.TempDir(), layer.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.write(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	l, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	names, bodies := contents(t, r)
	return l, names, bodies
}

func TestTreeMerges(t *testing.T) {
	tr, err := treeOf(t,
		pkg{source{name: "a"}, []tarEntry{
			folder("./"), folder("./bin"), program("./bin/tool", "tool"), hardlink("./bin/a-tool", "./bin/tool"), symlink("./bin/old", "tool"),
			file("./usr/share/common", "same"), {name: "./usr/bin/su", body: "su", mode: 0o4755}, {name: "./usr/bin/mail", body: "m", mode: 0o2711},
			symlink("./lib/a/up", "../../etc/a"), symlink("./lib/a/b", "../c"), {name: "./tmp/", typ: tar.TypeDir, mode: 0o1777},
			file("./usr/share/doc/a/README", "r"), file("./usr/share/doc/a/copyright", "c"), file("./usr/share/man/man1/a.1", "m"), file("./etc/apt/sources.list", "deb"),
			file("./dev/null", ""), {name: "./etc/shadow", body: "x", mode: 0},
		}},
		pkg{source{name: "b", replaces: []string{"a"}}, []tarEntry{file("./usr/share/common", "same"), program("./usr/bin/old", "b's own"), folder("./bin")}},
	)
	if err != nil {
		t.Fatal(err)
	}
	_, names, bodies := written(t, tr)
	want := []string{
		"0755 etc/", "0600 etc/shadow", "1777 tmp/", "0755 usr/", "0755 usr/bin/",
		"0755 usr/bin/a-tool", "0711 usr/bin/mail", "0755 usr/bin/old", "0755 usr/bin/su", "hard usr/bin/tool -> usr/bin/a-tool",
		"0755 usr/lib/", "0755 usr/lib/a/", "link usr/lib/a/b -> ../c", "link usr/lib/a/up -> /etc/a",
		"0755 usr/share/", "0644 usr/share/common", "0755 usr/share/doc/", "0755 usr/share/doc/a/", "0644 usr/share/doc/a/copyright",
	}
	if !slices.Equal(names, want) {
		t.Errorf("got\n %s\nwant\n %s", strings.Join(names, "\n "), strings.Join(want, "\n "))
	}
	if bodies["usr/bin/a-tool"] != "tool" || bodies["usr/bin/old"] != "b's own" {
		t.Errorf("bodies: %q", bodies)
	}
}

func TestTreeRefuses(t *testing.T) {
	one := func(e ...tarEntry) []pkg { return []pkg{{source{name: "evil"}, e}} }
	two := func(a, b tarEntry) []pkg {
		return []pkg{{source{name: "a"}, []tarEntry{a}}, {source{name: "b"}, []tarEntry{b}}}
	}
	for name, c := range map[string]struct {
		pkgs []pkg
		want error
		says string
	}{
		"traversal":           {one(file("./../etc/passwd", "x")), ErrUnsafe, "leaves the image"},
		"traversal inside":    {one(file("./usr/../../x", "x")), ErrUnsafe, "leaves the image"},
		"absolute name":       {one(file("/etc/passwd", "x")), ErrUnsafe, "not a relative path"},
		"link over the root":  {one(symlink("./usr/x", "../../etc")), ErrUnsafe, "leaves the image"},
		"link in and out":     {one(symlink("./usr/x", "/a/../../etc")), ErrUnsafe, "leaves the image"},
		"empty link":          {one(tarEntry{name: "./x", typ: tar.TypeSymlink}), ErrUnsafe, "leaves the image"},
		"hard link outside":   {one(hardlink("./x", "../../etc/shadow")), ErrUnsafe, "leaves the image"},
		"absolute hard link":  {one(hardlink("./x", "/etc/shadow")), ErrUnsafe, "not a relative path"},
		"hard link ahead":     {one(hardlink("./x", "./y"), file("./y", "y")), ErrUnsafe, "no earlier file"},
		"hard link to folder": {one(folder("./d"), hardlink("./x", "./d")), ErrUnsafe, "no earlier file"},
		"other's hard link":   {two(file("./y", "y"), hardlink("./x", "./y")), ErrUnsafe, "no earlier file"},
		"device":              {one(tarEntry{name: "./usr/sda", typ: tar.TypeBlock, mode: 0o666}), ErrUnsafe, "device"},
		"character device":    {one(tarEntry{name: "./usr/null", typ: tar.TypeChar, mode: 0o666}), ErrUnsafe, "device"},
		"pipe":                {one(tarEntry{name: "./usr/pipe", typ: tar.TypeFifo}), ErrUnsafe, "device"},
		"whiteout":            {one(file("./etc/.wh.passwd", "")), ErrUnsafe, "whiteout"},
		"opaque":              {one(file("./etc/.wh..wh..opq", "")), ErrUnsafe, "whiteout"},
		"twice":               {one(file("./x", "1"), file("./x", "2")), ErrUnsafe, "twice"},
		"below a link":        {one(symlink("./d", "/etc"), file("./d/passwd", "x")), ErrConflict, "below d, which is a link in evil"},
		"below a file":        {one(file("./d", ""), file("./d/x", "x")), ErrConflict, "below d, which is a file"},
		"two files":           {two(file("./x", "1"), file("./x", "2")), ErrConflict, "x is a file in a and a file in b"},
		"file and folder":     {two(file("./x", "1"), folder("./x")), ErrConflict, "x is a file in a and a folder in b"},
		"folder and link":     {two(folder("./x"), symlink("./x", "y")), ErrConflict, "x is a folder in a and a link in b"},
		"merged files":        {two(file("./bin/x", "1"), file("./usr/bin/x", "2")), ErrConflict, "usr/bin/x is a file"},
		"not UTF-8, long":     {one(file("./"+strings.Repeat("x/", 2100)+"y", "")), ErrUnsafe, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := treeOf(t, c.pkgs...)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.says)
			}
		})
	}
}

func TestTreeTruncatedArchive(t *testing.T) {
	tr, err := newTree(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	data := tarOf(t, file("./x", strings.Repeat("x", 2000)))
	if err := tr.addTar(t.Context(), source{name: "a"}, bytes.NewReader(data[:1000])); err == nil {
		t.Error("half an archive was taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tr.addTar(ctx, source{name: "a"}, bytes.NewReader(data)); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancellation: %v", err)
	}
}

// TestTreeRefusesHoles: a kilobyte that says it is a terabyte.
func TestTreeRefusesHoles(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	body := "1\n0\n0\n" + strings.Repeat("\x00", 506)
	if err := w.WriteHeader(&tar.Header{Name: "p/bomb", Typeflag: tar.TypeReg, Size: int64(len(body)), Mode: 0o644, PAXRecords: map[string]string{
		"ABC.sparse.major": "1", "ABC.sparse.minor": "0", "ABC.sparse.name": "p/bomb", "ABC.sparse.realsize": "1099511627776"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(body)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := bytes.ReplaceAll(buf.Bytes(), []byte("ABC.sparse"), []byte("GNU.sparse")) // the writer refuses to
	h, err := tar.NewReader(bytes.NewReader(data)).Next()
	if err != nil || h.Size != 1<<40 {
		t.Fatalf("the test's archive: %v %v", h, err)
	}
	tr, err := newTree(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	if err := tr.addTar(t.Context(), source{name: "evil"}, bytes.NewReader(data)); !errors.Is(err, ErrUnsafe) || tr.end != 0 {
		t.Errorf("got %v after %d bytes", err, tr.end)
	}
	if err := npmTree(t.Context(), tr, bytes.NewReader(data)); !errors.Is(err, ErrUnsafe) {
		t.Errorf("npm's archive: %v", err)
	}
}

// TestLayerIsPinned fails when the same packages give other bytes: then
// generation must be raised, or caches would keep serving the old layer.
func TestLayerIsPinned(t *testing.T) {
	tr, err := treeOf(t, pkg{source{name: "nodejs"}, basics("18.1.0")[0].files}, pkg{source{name: "ca"}, basics("18")[5].files},
		pkg{source{name: "tzdata"}, basics("18")[6].files},
		pkg{source{name: "jre"}, []tarEntry{symlink("./usr/lib/jvm/java-17/lib/security/cacerts", "/etc/ssl/certs/java/cacerts"), symlink("./bin/sh", "dash"), program("./bin/dash", "sh")}})
	if err != nil {
		t.Fatal(err)
	}
	r := recipe18()
	r.Links = map[string]string{"usr/bin/java": "node"}
	if err := tr.finish(r, "amd64"); err != nil {
		t.Fatal(err)
	}
	l, names, _ := written(t, tr)
	const want = "sha256:90dcab0cb32c53deac6d66bd57a22e6dd1410a402908f78c6cb43ea42e3bbd9a"
	if got := l.Info().DiffID.String(); got != want {
		t.Errorf("with generation %d the layer is %s, was %s:\n%s", generation, got, want, strings.Join(names, "\n"))
	}
}

func TestResolveLinks(t *testing.T) {
	tr, err := treeOf(t, pkg{source{name: "a"}, []tarEntry{program("./usr/lib/x/prog", ""), symlink("./usr/bin/p", "/etc/alternatives/p"),
		symlink("./etc/alternatives/p", "../../lib/x/prog"), symlink("./loop", "loop"), symlink("./gone", "nowhere/x")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.finish(Recipe{}, "amd64"); err != nil {
		t.Fatal(err)
	}
	for name, found := range map[string]bool{"usr/bin/p": true, "bin/p": true, "loop": false, "gone": false, "usr/lib/x/prog/y": false, "lib": true} {
		if got := tr.resolve(name) != nil; got != found {
			t.Errorf("%s: found %v, want %v", name, got, found)
		}
	}
}

func TestFinishRefuses(t *testing.T) {
	tr, err := treeOf(t, pkg{source{name: "fakeroot"}, []tarEntry{file("./etc/ld.so.conf.d/f.conf", "# comment\n/usr/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu/libfakeroot\n"),
		file("./usr/lib/x86_64-linux-gnu/libfakeroot/lib.so.0", "elf")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.finish(Recipe{}, "amd64"); err == nil || !strings.Contains(err.Error(), "ld.so.cache") {
		t.Errorf("libraries that the loader would not find: %v", err)
	}
	tr, _ = treeOf(t)
	if err := tr.finish(Recipe{Links: map[string]string{"usr/bin/awk": "mawk"}}, "amd64"); err == nil || !strings.Contains(err.Error(), "mawk is not in the image") {
		t.Errorf("a dangling link: %v", err)
	}
}

// TestNeededLibraries takes this test's own binary, or another program that is
// linked with libraries, without them.
func TestNeededLibraries(t *testing.T) {
	var program []byte
	for _, p := range []string{"/bin/ls", "/bin/cat", "/bin/sh"} {
		data, err := os.ReadFile(p)
		if f, eerr := elf.NewFile(bytes.NewReader(data)); err == nil && eerr == nil {
			if l, err := f.ImportedLibraries(); err == nil && len(l) > 0 {
				program = data
				break
			}
		}
	}
	if program == nil {
		t.Skip("needs a program that is linked with libraries")
	}
	tr, err := treeOf(t, pkg{source{name: "tools"}, []tarEntry{{name: "./bin/tool", body: string(program), mode: 0o755}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.finish(Recipe{}, "amd64"); err == nil || !strings.Contains(err.Error(), "usr/bin/tool (tools) needs lib") {
		t.Errorf("got %v", err)
	}
}

// FuzzTree feeds archives from a hostile mirror: whatever is taken can be
// written as a layer, and every path's folders are folders.
func FuzzTree(f *testing.F) {
	f.Add(tarOf(f, basics("18")[0].files...))
	f.Add(tarOf(f, symlink("./lib/a", "../../x"), hardlink("./b", "./lib/a"), folder("./bin")))
	f.Add(tarOf(f, file("./a", "1"), hardlink("./b", "./a"), file("./../x", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		tr, err := newTree(t.TempDir(), dropper([]string{"usr/share/x*"}))
		if err != nil {
			t.Fatal(err)
		}
		defer tr.close()
		if tr.addTar(t.Context(), source{name: "fuzz"}, bytes.NewReader(data)) != nil {
			return
		}
		for _, n := range tr.nodes {
			if n.link != "" && n.inode != n {
				t.Fatal("a link with content")
			}
		}
		w, err := layer.NewWriter(t.TempDir(), layer.Gzip)
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.write(t.Context(), w); err != nil {
			w.Abort()
			// The writer's own rules: names and targets must be UTF-8.
			if !strings.Contains(err.Error(), "UTF-8") && !strings.Contains(err.Error(), "bad link target") {
				t.Fatal(err)
			}
			return
		}
		l, err := w.Close()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
}
