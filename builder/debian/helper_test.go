package debian

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	os.Exit(m.Run())
}

func file(name, body string) tarEntry { return tarEntry{name: name, body: body, mode: 0o644} }
func program(name, body string) tarEntry {
	return tarEntry{name: name, body: body, mode: 0o755}
}
func folder(name string) tarEntry { return tarEntry{name: name, typ: tar.TypeDir, mode: 0o755} }
func symlink(name, to string) tarEntry {
	return tarEntry{name: name, typ: tar.TypeSymlink, link: to, mode: 0o777}
}
func hardlink(name, to string) tarEntry {
	return tarEntry{name: name, typ: tar.TypeLink, link: to}
}

type tarEntry struct {
	name, body, link string
	typ              byte
	mode             int64
}

func tarOf(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i, e := range entries {
		if e.typ == 0 {
			e.typ = tar.TypeReg
		}
		// Owners and times that must not reach an image.
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Size: int64(len(e.body)), Mode: e.mode,
			Uid: 1000 + i, Gid: 42, Uname: "someone", ModTime: time.Unix(1_700_000_000+int64(i), 0), Devmajor: 1, Devminor: 3}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// deb is a package of a test repository. It is written by hand, because
// dpkg-deb would not make a hostile one.
type deb struct {
	name, version, arch, fields string // fields: more lines of the control file
	files                       []tarEntry
	data                        []byte // instead of files
}

func (d deb) control() string {
	return fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: Test <test@invalid>\n%sDescription: a test\n with two lines\n",
		d.name, d.version, d.arch, d.fields)
}

func (d deb) bytes(t testing.TB) []byte {
	data := d.data
	if data == nil {
		data = tarOf(t, d.files...)
	}
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	member := func(name string, body []byte) {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", name, 0, 0, 0, 0o100644, len(body))
		b.Write(body)
		if len(body)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	member("debian-binary", []byte("2.0\n"))
	member("control.tar", tarOf(t, file("./control", d.control())))
	member("data.tar", data)
	return b.Bytes()
}

// repo is a package repository on loopback that apt reads through its own
// configuration, so that the machine's sources stay out of the test.
type repo struct {
	t      testing.TB
	dir    string
	server *httptest.Server
	conf   string
	// answer, when set, answers instead of the files.
	answer   atomic.Pointer[http.HandlerFunc]
	requests atomic.Int64
	sets     int
}

func needApt(t testing.TB) {
	t.Helper()
	for _, p := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs Debian's %s", p)
		}
	}
}

func long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs apt many times")
	}
}

func newRepo(t testing.TB, debs ...deb) *repo {
	t.Helper()
	needApt(t)
	r := &repo{t: t, dir: t.TempDir()}
	files := http.FileServer(http.Dir(r.dir))
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.requests.Add(1)
		if h := r.answer.Load(); h != nil {
			(*h)(w, req)
			return
		}
		files.ServeHTTP(w, req)
	}))
	t.Cleanup(r.server.Close)
	etc := filepath.Join(t.TempDir(), "etc")
	if err := os.MkdirAll(filepath.Join(etc, "apt.conf.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.write(filepath.Join(etc, "sources.list"), "deb [trusted=yes] "+r.server.URL+" ./\n")
	r.conf = filepath.Join(etc, "test.conf")
	r.write(r.conf, fmt.Sprintf(`Dir::Etc "%s";
Dir::Etc::sourcelist "sources.list";
Dir::Etc::sourceparts "none";
Dir::Etc::parts "apt.conf.d";
Dir::Etc::preferences "none";
Dir::Etc::preferencesparts "none";
Acquire::http::Proxy "DIRECT";
`, etc))
	r.set(debs...)
	return r
}

func (r *repo) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// set replaces what the repository offers.
func (r *repo) set(debs ...deb) {
	r.t.Helper()
	var index strings.Builder
	for _, d := range debs {
		data := d.bytes(r.t)
		name := d.name + ".deb"
		r.write(filepath.Join(r.dir, name), string(data))
		fmt.Fprintf(&index, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", d.control(), name, len(data), sha256.Sum256(data))
	}
	packages := filepath.Join(r.dir, "Packages")
	r.write(packages, index.String())
	// apt asks for what is newer than its own copy, in whole seconds.
	r.sets++
	changed := time.Now().Add(time.Duration(r.sets) * time.Minute)
	if err := os.Chtimes(packages, changed, changed); err != nil {
		r.t.Fatal(err)
	}
}

// builder has an empty cache and no programs' configuration but the test's.
func (r *repo) builder() *Builder {
	return &Builder{Cache: filepath.Join(r.t.TempDir(), "cache"), ListsAge: -1,
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.t.TempDir(), "APT_CONFIG=" + r.conf},
		Log: func(line string) { r.t.Log(line) }}
}

// Packages with everything a base image is made of, in a few bytes.
func basics(version string) []deb {
	return []deb{
		{name: "nodejs", version: version, arch: "all", fields: "Depends: libnode (>= 1), ca-certificates\nRecommends: nodejs-doc\n",
			files: []tarEntry{folder("./"), folder("./usr/"), folder("./usr/bin/"), program("./usr/bin/node", "#!node"), symlink("./usr/bin/nodejs", "node"),
				folder("./usr/share/doc/nodejs/"), file("./usr/share/doc/nodejs/copyright", "MIT"), file("./usr/share/doc/nodejs/changelog.gz", "z"), file("./usr/share/man/man1/node.1", "m")}},
		{name: "nodejs-doc", version: "1", arch: "all", files: []tarEntry{file("./usr/share/recommended", "must stay out")}},
		{name: "libnode", version: "2:1.2.3-4", arch: "all", fields: "Depends: debconf\n",
			files: []tarEntry{folder("./lib/x86_64-linux-gnu/"), file("./lib/x86_64-linux-gnu/libnode.so.1", "elf"), symlink("./lib/x86_64-linux-gnu/libnode.so", "libnode.so.1")}},
		{name: "debconf", version: "1", arch: "all", fields: "Depends: perl\n", files: []tarEntry{file("./usr/bin/debconf", "perl")}},
		{name: "perl", version: "5", arch: "all", files: []tarEntry{program("./usr/bin/perl", "perl")}},
		{name: "ca-certificates", version: "2025", arch: "all",
			files: []tarEntry{file("./usr/share/ca-certificates/mozilla/B.crt", certificate("B")), file("./usr/share/ca-certificates/mozilla/A.crt", strings.TrimSpace(certificate("A")))}},
		{name: "tzdata", version: "2025b", arch: "all", files: []tarEntry{file("./usr/share/zoneinfo/Etc/UTC", "TZif")}},
	}
}

// certificate is PEM that parses; only Java's store looks inside.
func certificate(body string) string {
	return "-----BEGIN CERTIFICATE-----\n" + strings.Repeat(body, 8) + "\n-----END CERTIFICATE-----\n"
}

func recipe18() Recipe {
	return Recipe{Name: "base/nodejs18", Kind: Base, Packages: []string{"nodejs=18.*", "tzdata"}, Without: []string{"debconf"},
		Expect: Expect{Package: "nodejs", Program: "usr/bin/node", Major: "18"}, Absent: []string{"bin/sh", "usr/bin/perl"},
		ABI: "node108-lib{version:libnode}-{arch}", Env: map[string]string{"LANG": "C.UTF-8", "HOME": "/home/nonroot"},
		Workdir: "/app", User: "65532:65532", Entrypoint: []string{"/usr/bin/node"}}
}

// contents reads a layer: "mode name -> link" and the files' bodies.
func contents(t testing.TB, r io.Reader) (names []string, bodies map[string]string) {
	t.Helper()
	bodies = map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return names, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("%s: owner %d:%d %q, time %v", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		s := fmt.Sprintf("%04o %s", h.Mode, h.Name)
		switch h.Typeflag {
		case tar.TypeSymlink:
			s = "link " + h.Name + " -> " + h.Linkname
		case tar.TypeLink:
			s = "hard " + h.Name + " -> " + h.Linkname
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			bodies[path.Clean(h.Name)] = string(b)
		}
		names = append(names, s)
	}
}

// fakeProgram puts a shell script first in PATH.
func fakeProgram(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}
