package layer

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"testing/iotest"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// oddNames are file names that have broken archive tools before.
var oddNames = []string{
	"-rf", "a b", "new\nline", "tab\there", "quote\"'`", "back\\slash", "$(id)", "中文/函数.js",
	"e\u0301.txt" /* NFD */, "\u00e9.txt" /* NFC */, "%2e%2e", "*", "~", strings.Repeat("l", 200) + "/" + strings.Repeat("f", 200),
}

func TestDigestsAreGolden(t *testing.T) {
	// Another digest for the same files means that every cached layer and
	// every image changes: that has to be a decision, with a new compressor
	// version.
	tree := Tree{Prefix: "/app", FS: fstest.MapFS{
		"index.js":     {Data: []byte("console.log('hello')\n"), Mode: 0o600},
		"bin/run":      {Data: bytes.Repeat([]byte("0123456789abcdef\n"), 100000), Mode: 0o700},
		"empty":        {Mode: 0o777 | fs.ModeDir},
		"中文/函数.js":     {Data: []byte("x")},
		"lib/latest":   {Data: []byte("../bin/run"), Mode: fs.ModeSymlink},
		"with\nbreak":  {Data: []byte("y")},
		"zero/nothing": {},
	}}
	for _, tt := range []struct {
		c            Compressor
		diff, digest string
	}{
		{Gzip, "sha256:61136556fa84beab43292ea16eb7f51b3466ef7ec8efb64368064e593a13902b", "sha256:486cf087982298a0822a809596da075248792914cc7c06ca379011a059e887e3"},
		{Parallel, "sha256:61136556fa84beab43292ea16eb7f51b3466ef7ec8efb64368064e593a13902b", "sha256:abc53273f9ae2b7305401e1233f2beba2f7563a03c79bbd5d1bcbd30a98847f2"},
		{Zstd, "sha256:61136556fa84beab43292ea16eb7f51b3466ef7ec8efb64368064e593a13902b", "sha256:22c5c8ad6fe8099f6f2775dd67732cd79d7d965d14afcf4f7cc0dbc1b79fa129"},
	} {
		l, err := FromTree(t.Context(), t.TempDir(), tt.c, tree)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if got := l.Info().DiffID.String(); got != tt.diff {
			t.Errorf("%s: diffID %s, want %s", tt.c, got, tt.diff)
		}
		if got := l.Info().Digest.String(); got != tt.digest {
			t.Errorf("%s: digest %s, want %s", tt.c, got, tt.digest)
		}
		img, err := mutate.AppendLayers(empty.Image, l)
		if err != nil {
			t.Fatal(err)
		}
		if tt.c != Zstd { // go-containerregistry can't open zstd layers of foreign types
			if err := validate.Image(img); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSameFilesSameDigest(t *testing.T) {
	write := func(dir string, umask int, reverse bool) {
		defer syscall.Umask(syscall.Umask(umask))
		names := append([]string{}, oddNames...)
		if reverse {
			for i, j := 0, len(names)-1; i < j; i, j = i+1, j-1 {
				names[i], names[j] = names[j], names[i]
			}
		}
		for i, n := range names {
			p := filepath.Join(dir, n)
			if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte("content of "+n), 0o666); err != nil {
				t.Fatal(err)
			}
			at := time.Unix(1700000000+int64(i)*int64(umask+1), 12345)
			if err := os.Chtimes(p, at, at); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "run"), []byte("#!/bin/sh\n"), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("./run", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
	}
	a, b := t.TempDir(), t.TempDir()
	write(a, 0o022, false)
	write(b, 0o077, true)
	var got []Info
	for _, dir := range []string{a, b} {
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		for _, fsys := range []fs.FS{root.FS(), os.DirFS(dir)} {
			l, err := FromTree(t.Context(), "", Gzip, Tree{FS: fsys, Prefix: "/app"})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, l.Info())
			names := tarNames(t, l)
			for _, n := range oddNames {
				if !names["app/"+n] {
					t.Errorf("%q is missing in the layer", n)
				}
			}
			l.Close()
		}
	}
	for _, i := range got[1:] {
		if i != got[0] {
			t.Errorf("got %v, want %v", i, got[0])
		}
	}
}

func tarNames(t *testing.T, l *Layer) map[string]bool {
	t.Helper()
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	names := map[string]bool{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.TrimSuffix(h.Name, "/"); names[n] {
			t.Errorf("%q is there twice", n)
		} else {
			names[n] = true
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("%q: owner %d:%d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
	}
}

func TestDigestIsIndependentOfReadSizes(t *testing.T) {
	data := bytes.Repeat([]byte("the quick brown fox; "), 20000)
	for _, c := range []Compressor{Gzip, Parallel, Zstd} {
		var want Info
		for i, r := range []io.Reader{bytes.NewReader(data), iotest.OneByteReader(bytes.NewReader(data)), iotest.HalfReader(bytes.NewReader(data))} {
			w, err := NewWriter(t.TempDir(), c)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Add(Entry{Name: "f", Size: int64(len(data)), Body: r}); err != nil {
				t.Fatal(err)
			}
			l, err := w.Close()
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				want = l.Info()
			} else if l.Info() != want {
				t.Errorf("%s: reader %d gives %v, want %v", c, i, l.Info(), want)
			}
			l.Close()
		}
	}
}

func TestPathsChooseFiles(t *testing.T) {
	fsys := fstest.MapFS{"a/x": {}, "a/y": {}, "b/z": {}}
	one, err := FromTree(t.Context(), "", Gzip, Tree{FS: fsys, Prefix: "app", Paths: []string{"b/z", "a/x", "a/x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	names := tarNames(t, one)
	if !names["app/a/x"] || !names["app/b/z"] || names["app/a/y"] {
		t.Errorf("got %v", names)
	}
	for _, bad := range []string{"../x", "/etc/passwd", ".", "", "a/../../x", "missing", "a/x/y"} {
		l, err := FromTree(t.Context(), "", Gzip, Tree{FS: fsys, Paths: []string{bad}})
		var fe *FileError
		if !errors.As(err, &fe) {
			t.Errorf("%q: got layer %v, error %v; want a *FileError", bad, l, err)
		}
	}
}

func TestUnsafeFilesAreRefused(t *testing.T) {
	tests := map[string]struct {
		make func(dir string) error
		want string
	}{
		"absolute link":  {func(d string) error { return os.Symlink("/etc/passwd", d+"/l") }, `"l": the symbolic link leaves the tree: it points to "/etc/passwd"`},
		"link upwards":   {func(d string) error { return os.Symlink("../x", d+"/l") }, `"l": the symbolic link leaves the tree: it points to "../x"`},
		"named pipe":     {func(d string) error { return syscall.Mkfifo(d+"/p", 0o600) }, `"p": a named pipe can't go into a layer`},
		"name not UTF-8": {func(d string) error { return os.WriteFile(d+"/\xff", nil, 0o600) }, `"\xff": the name is not UTF-8`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tt.make(dir); err != nil {
				t.Skip("this file system refuses it too:", err)
			}
			root, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			_, err = FromTree(t.Context(), "", Gzip, Tree{FS: root.FS(), Prefix: "/app"})
			var fe *FileError
			if !errors.As(err, &fe) || err.Error() != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestFilesBehindALinkedFolderAreRefused(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	if err := os.WriteFile(outside+"/secret", []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, dir+"/sub"); err != nil {
		t.Fatal(err)
	}
	for _, fsys := range []fs.FS{os.DirFS(dir), mustRoot(t, dir).FS()} {
		_, err := FromTree(t.Context(), "", Gzip, Tree{FS: fsys, Paths: []string{"sub/secret"}})
		var fe *FileError
		if !errors.As(err, &fe) || fe.Path != "sub" {
			t.Errorf("got %v", err)
		}
	}
}

func mustRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// growing is a file that has more bytes than Stat says.
type growing struct{ fstest.MapFS }

type growingFile struct {
	fs.File
	extra int
}

func (g growing) Open(name string) (fs.File, error) {
	f, err := g.MapFS.Open(name)
	if err != nil || name != "log" {
		return f, err
	}
	return &growingFile{f, 1}, nil
}

func (g *growingFile) Read(p []byte) (int, error) {
	n, err := g.File.Read(p)
	if err == io.EOF && g.extra > 0 && len(p) > 0 {
		g.extra--
		p[0] = 'x'
		return 1, nil
	}
	return n, err
}

func TestGrowingFileIsAnError(t *testing.T) {
	_, err := FromTree(t.Context(), "", Gzip, Tree{FS: growing{fstest.MapFS{"log": {Data: []byte("abc")}}}})
	if want := `"log": the file changed while it was read`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestShortAndFailingBodies(t *testing.T) {
	for _, tt := range []struct {
		body io.Reader
		want error
	}{
		{strings.NewReader("abc"), ErrChanged},
		{strings.NewReader("abcdef"), ErrChanged},
		{iotest.ErrReader(syscall.EIO), syscall.EIO},
	} {
		w, err := NewWriter("", Gzip)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(Entry{Name: "f", Size: 5, Body: tt.body}); !errors.Is(err, tt.want) {
			t.Errorf("got %v, want %v", err, tt.want)
		}
		if _, err := w.Close(); !errors.Is(err, tt.want) {
			t.Errorf("Close after an error: got %v, want %v", err, tt.want)
		}
	}
}

func TestDiskFullIsClear(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/full:", err)
	}
	w, err := newWriter(&Spool{Dir: "/var/tmp/build", f: full}, Gzip)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	random := make([]byte, 1<<20)
	for i := range random {
		random[i] = byte(i * i >> 3)
	}
	err = w.Add(Entry{Name: "f", Size: 1 << 20, Body: bytes.NewReader(random)})
	if err == nil {
		_, err = w.Close()
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "write temporary data in /var/tmp/build") {
		t.Errorf("got %v", err)
	}
}

func TestBigLayerLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 3*inMemory)
	x := uint32(1)
	for i := range data {
		x = x*1664525 + 1013904223
		data[i] = byte(x >> 24)
	}
	l, err := FromTree(t.Context(), dir, Gzip, Tree{FS: fstest.MapFS{"f": {Data: data}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.spool.f == nil {
		t.Error("a big layer was kept in memory")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for range 2 { // every Open starts at the beginning
		n, err := io.Copy(io.Discard, l.Open())
		if err != nil || n != l.Info().Size {
			t.Errorf("read %d of %d bytes: %v", n, l.Info().Size, err)
		}
	}
}

func TestWriterRefusesBadEntries(t *testing.T) {
	tests := map[string][]Entry{
		"twice":              {{Name: "a"}, {Name: "/a"}},
		"file over folder":   {{Name: "a/b"}, {Name: "a"}},
		"below a file":       {{Name: "a"}, {Name: "a/b"}},
		"below a link":       {{Name: "a", Mode: fs.ModeSymlink, Link: "/etc"}, {Name: "a/passwd"}},
		"upwards":            {{Name: "a/../../b"}},
		"empty":              {{Name: "/"}},
		"zero byte":          {{Name: "a\x00b"}},
		"device":             {{Name: "a", Mode: fs.ModeDevice}},
		"hard link nowhere":  {{Name: "a", Hard: true, Link: "b"}},
		"hard link outwards": {{Name: "a", Hard: true, Link: "../b"}},
		"link without goal":  {{Name: "a", Mode: fs.ModeSymlink}},
	}
	for name, entries := range tests {
		t.Run(name, func(t *testing.T) {
			w, err := NewWriter("", Gzip)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			for i, e := range entries {
				if err = w.Add(e); err != nil && i < len(entries)-1 {
					t.Fatalf("entry %d: %v", i, err)
				}
			}
			if err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestWriterKeepsSpecialModesAndHardLinks(t *testing.T) {
	w, err := NewWriter("", Gzip)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []Entry{
		{Name: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Name: "bin/su", Mode: fs.ModeSetuid | 0o755, Size: 1, Body: strings.NewReader("x")},
		{Name: "bin/su2", Hard: true, Link: "/bin/su"},
		{Name: "home/nonroot", Mode: fs.ModeDir | 0o700, UID: 65532, GID: 65532},
		{Name: "tmp", Mode: fs.ModeDir | 0o700}, // again: left as it was
	} {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if found, dir := w.Has("/bin"); !found || !dir {
		t.Error("Has doesn't know an added parent")
	}
	l, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	w.Abort() // does nothing any more
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = h
	}
	if m := got["tmp/"].Mode; m != 0o1777 {
		t.Errorf("tmp: mode %o", m)
	}
	if m := got["bin/su"].Mode; m != 0o4755 {
		t.Errorf("su: mode %o", m)
	}
	if h := got["bin/su2"]; h.Typeflag != tar.TypeLink || h.Linkname != "bin/su" {
		t.Errorf("su2: %c %q", h.Typeflag, h.Linkname)
	}
	if h := got["home/nonroot/"]; h.Uid != 65532 || got["home/"].Uid != 0 {
		t.Error("owners are wrong")
	}
}

func TestCancelledTree(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stopped")
	cancel(stop)
	if _, err := FromTree(ctx, "", Gzip, Tree{FS: fstest.MapFS{"f": {}}}); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func TestCompressVersionIsTheModules(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "github.com/klauspost/compress v" + compressVersion + "\n"; !strings.Contains(string(mod), want) {
		t.Errorf("go.mod has another version than %q: layers may get other digests, so change compressVersion and the golden digests together", want)
	}
	if want := "github.com/klauspost/pgzip v" + parallelVersion + "\n"; !strings.Contains(string(mod), want) {
		t.Errorf("go.mod has another version than %q: change parallelVersion and the golden digest with it", want)
	}
	if Gzip.ID() == Zstd.ID() || Gzip.ID() == Parallel.ID() {
		t.Error("two compressors share an id")
	}
	if _, err := NewWriter("", "lzma"); err == nil {
		t.Error("an unknown compressor was accepted")
	}
}

// zipped is an archive of names and contents, some of them not compressed.
func zipped(t *testing.T, files ...string) string {
	t.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		method := zip.Deflate
		if i%4 == 2 || files[i+1] == "" {
			method = zip.Store
		}
		f, err := z.CreateHeader(&zip.FileHeader{Name: files[i], Method: method})
		if err == nil {
			_, err = io.WriteString(f, files[i+1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func jars(content string) fstest.MapFS { return fstest.MapFS{"lib/a.jar": {Data: []byte(content)}} }

func TestNative(t *testing.T) {
	for name, c := range map[string]struct {
		fs   fstest.MapFS
		want bool
	}{
		"text":                 {fstest.MapFS{"a.js": {Data: []byte("x")}, "empty": {}}, false},
		"addon":                {fstest.MapFS{"a.js": {Data: []byte("x")}, "b.node": {Data: []byte("\x7fELF\x02")}, "c": {Data: []byte("x")}}, true},
		"almost":               {fstest.MapFS{"a": {Data: []byte("\x7fEL")}, "b": {Data: []byte("F")}}, false},
		"in a text":            {fstest.MapFS{"a": {Data: []byte("see \x7fELF")}}, false},
		"jar":                  {jars(zipped(t, "org/x/X.class", "x", "LICENSE", "see \x7fELF", "META-INF/", "")), false},
		"jar with a library":   {jars(zipped(t, "org/x/X.class", "x", "org/x/linux-x86_64/libx.so", "\x7fELF\x02")), true},
		"jar that is a script": {jars("#!/bin/sh\n" + zipped(t, "X.class", "x", "libx", "\x7fELF\x02")), true},
		"jar in a war":         {fstest.MapFS{"a.war": {Data: []byte(zipped(t, "WEB-INF/lib/x.jar", zipped(t, "libx.so", "\x7fELF\x02")))}}, true},
		"plain jar in a war":   {fstest.MapFS{"a.war": {Data: []byte(zipped(t, "WEB-INF/lib/x.jar", zipped(t, "X.class", "x")))}}, false},
		"zip of another name":  {fstest.MapFS{"a.dat": {Data: []byte(zipped(t, "x", "\x7fELF\x02"))}}, true},
		// What can't be looked into may be anything.
		"half a jar":   {jars(zipped(t, "X.class", "x")[:40]), true},
		"no jar":       {jars("x"), true},
		"an empty jar": {jars(zipped(t)), false},
		"too deep":     {jars(zipped(t, "a.jar", zipped(t, "b.jar", zipped(t, "c.jar", zipped(t, "d.jar", zipped(t, "x", "y")))))), true},
	} {
		l, err := FromTree(t.Context(), t.TempDir(), Gzip, Tree{FS: c.fs, Prefix: "/app"})
		if err != nil {
			t.Fatal(err)
		}
		if l.Info().Native != c.want {
			t.Errorf("%s: native %v", name, l.Info().Native)
		}
		l.Close()
	}
}
