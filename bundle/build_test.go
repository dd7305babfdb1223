package bundle

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"
)

func TestBuild(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	b := l.must(l.client(), l.query())
	var got []string
	err := fs.WalkDir(b.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"bundle.yml", "ci-templates/faas.gitlab-ci.yml", "clusters.yml", "dockerfiles/nodejs18/Dockerfile",
		"runtimes/node/main.js", "scripts/hello.sh", "stages/build.yml",
	}
	if !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	if b.Meta.MinRunner != "0.1.0" || b.Meta.Docs != "https://docs.example" || b.Meta.Runtimes["nodejs18"].Build != "build/nodejs18"+fakeDigest {
		t.Errorf("bundle.yml: %+v", b.Meta)
	}
	if c, err := b.Clusters(); err != nil || c.Clusters["hz-1"].Domain != "faas.example.internal" {
		t.Errorf("clusters.yml: %+v %v", c, err)
	}
	if p, err := b.Policy(); err != nil || p.Version != 1 || p.MayUseHost(Project{ID: 1}, "x", "") {
		t.Errorf("no policy.yml: %+v %v", p, err)
	}
}

// The same content gives the same bundle, in any folder, at any time, under
// any umask.
func TestBuildIsDeterministic(t *testing.T) {
	var digests []string
	for i, mask := range []int{0o022, 0o077} {
		dir := t.TempDir()
		old := syscall.Umask(mask)
		err := os.CopyFS(dir, modeless{checkout()})
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		// CopyFS drops the execute bit under our wrapper; git would set it.
		if err := os.Chmod(filepath.Join(dir, "platform/scripts/hello.sh"), []fs.FileMode{0o755, 0o700}[i]); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-time.Duration(i) * 1000 * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, "platform/bundle.yml"), when, when); err != nil {
			t.Fatal(err)
		}
		p, err := Build(t.Context(), os.DirFS(dir), recipe("1.0.0"))
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, p.Digest)
	}
	p, err := Build(t.Context(), checkout(), recipe("1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	if digests[0] != digests[1] || digests[0] != p.Digest {
		t.Errorf("digests differ: %v %s", digests, p.Digest)
	}
	// Without a version, the content is one.
	a, err := Build(t.Context(), checkout(), recipe(""))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Build(t.Context(), checkout("platform/scripts/hello.sh", "other"), recipe(""))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(a.Version, "dev-") || a.Version == b.Version {
		t.Errorf("versions of content: %s, %s", a.Version, b.Version)
	}
	if other, _ := Build(t.Context(), checkout(), recipe("1.0.1")); other.Digest == p.Digest {
		t.Error("another version has the same digest")
	}
	exec := checkout()
	exec["dockerfiles/nodejs18/Dockerfile"].Mode = 0o755
	if other, _ := Build(t.Context(), exec, recipe("1.0.0")); other.Digest == p.Digest {
		t.Error("the executable bit is not part of the bundle")
	}
}

type modeless struct{ fs.FS }

func TestBuildRefuses(t *testing.T) {
	with := func(change func(fstest.MapFS)) fstest.MapFS { f := checkout(); change(f); return f }
	for _, tc := range []struct {
		name string
		fs   fstest.MapFS
		r    Recipe
		want string
	}{
		{"link", with(func(f fstest.MapFS) { f["platform/x"] = &fstest.MapFile{Mode: fs.ModeSymlink} }), recipe("1"), "platform/x: a bundle holds regular files only, this is a symbolic link"},
		{"pipe", with(func(f fstest.MapFS) { f["dockerfiles/x"] = &fstest.MapFile{Mode: fs.ModeNamedPipe} }), recipe("1"), "special file"},
		{"linked folder", with(func(f fstest.MapFS) {
			maps.DeleteFunc(f, func(k string, _ *fstest.MapFile) bool { return strings.HasPrefix(k, "dockerfiles/") })
			f["dockerfiles"] = &fstest.MapFile{Mode: fs.ModeSymlink}
		}), recipe("1"), "dockerfiles: not a folder (symbolic link)"},
		{"two files at one place", checkout("platform/runtimes/node/main.js", "x"), recipe("1"), "both land at runtimes/node/main.js"},
		{"file and folder", checkout("platform/ci-templates", "x"), recipe("1"), `"ci-templates" is a file and a folder`},
		{"strange name", checkout("platform/a:b", "x"), recipe("1"), "not allowed"},
		{"no bundle.yml", with(func(f fstest.MapFS) { delete(f, "platform/bundle.yml") }), recipe("1"), "platform/bundle.yml: file does not exist"},
		{"version", checkout(), recipe("1\x1b"), "no text"},
		{"unknown key", checkout("platform/bundle.yml", bundleYML+"urgnt: true\n"), recipe("1"), `bundle.yml: line 5, column 1: urgnt: unknown key; did you mean "urgent"?`},
		{"unknown key in clusters.yml", checkout("platform/clusters.yml", "version: 1\nclusters:\n  a: {kind: local, domian: x}\n"), recipe("1"), `clusters.yml: line 3, column 20: clusters.a.domian: unknown key; did you mean "domain"?`},
		{"unknown key in policy.yml", checkout("platform/policy.yml", "version: 1\nlimits: {}\n"), recipe("1"), "policy.yml: line 2, column 1: limits: unknown key; known: bases, hosts, namespaces, services, tiers, unpinned, version"},
		{"no base", checkout(), Recipe{Version: "1"}, "line 4, column 13: runtimes.nodejs18.base: missing; give one with --runtime nodejs18.base="},
		{"base by tag", checkout(), Recipe{Version: "1", Runtimes: map[string]Images{"nodejs18": {Base: "base/nodejs18:latest"}}}, "not an image by digest"},
		{"unknown runtime", checkout(), Recipe{Version: "1", Runtimes: map[string]Images{"nodejs99": {Base: "x"}}}, `no runtime "nodejs99" in it; it has: nodejs18`},
		{"no adapter", checkout("platform/bundle.yml", "runtimes:\n  r: {language: node, base: b"+fakeDigest+", abi: x, adapter: runtimes/nod}\n"), Recipe{Version: "1"}, "is not a folder of the bundle"},
		{"language", checkout("platform/bundle.yml", "runtimes:\n  r: {language: ruby, base: b"+fakeDigest+", abi: x, adapter: runtimes/node}\n"), Recipe{Version: "1"}, `"ruby" is not one of: java, node, python`},
		{"a mirror's password", checkout("platform/bundle.yml", bundleYML+"mirrors: {npm: 'https://me:pw@npm.example'}\n"), recipe("1"), "mirrors.npm: holds credentials: a bundle is public"},
		{"a mirror of what", checkout("platform/bundle.yml", bundleYML+"mirrors: {gem: 'https://gem.example'}\n"), recipe("1"), `mirrors.gem: "gem" is not one of: npm, pip, maven`},
		{"a proxy's password", checkout("platform/bundle.yml", bundleYML+"proxy: {https: 'http://me:pw@proxy.example:3128'}\n"), recipe("1"), "proxy.https: holds credentials: a bundle is public"},
		{"a proxy without scheme", checkout("platform/bundle.yml", bundleYML+"proxy: {http: 'proxy.example:3128'}\n"), recipe("1"), "proxy.http: not a web address"},
		{"several hosts as one", checkout("platform/bundle.yml", bundleYML+"proxy: {http: 'http://proxy.example', none: ['a, b']}\n"), recipe("1"), `proxy.none.0: "a, b" is not one host`},
		{"a way around nothing", checkout("platform/bundle.yml", bundleYML+"proxy: {none: [a]}\n"), recipe("1"), "proxy.none: there is no proxy to go around"},
		{"runner without version", checkout(), Recipe{Version: "1", Runner: &RunnerFiles{}}, "a runner needs a version"},
		{"runner's platform", checkout(), Recipe{Version: "1", Runner: &RunnerFiles{Version: "1", Files: map[string]func() (io.ReadCloser, error){"linux": memFile(nil)}}}, "not os/arch"},
		{"empty runner", checkout(), Recipe{Version: "1", Runner: &RunnerFiles{Version: "1", Files: map[string]func() (io.ReadCloser, error){"linux/amd64": memFile(nil)}}}, "the file is empty"},
	} {
		p, err := Build(t.Context(), tc.fs, tc.r)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: built %t, %v", tc.name, p != nil, err)
		}
	}
	// All files' problems at once.
	_, err := Build(t.Context(), checkout("platform/clusters.yml", "version: 2\n", "platform/policy.yml", "version: 2\n", "platform/bundle.yml", "x: 1\ny: 2\n"), recipe("1"))
	if err == nil || !errors.Is(err, ErrContent) || strings.Count(err.Error(), "line ") < 4 {
		t.Errorf("several files: %v", err)
	}
	var c *ContentError
	if !errors.As(err, &c) {
		t.Errorf("no ContentError in %v", err)
	}
	// On a real disk too.
	dir := t.TempDir()
	if err := os.CopyFS(dir, checkout()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "platform/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), os.DirFS(dir), recipe("1")); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("link on disk: %v", err)
	}
}

func TestManifestRefuses(t *testing.T) {
	s := sum(nil)
	pack := Blob{s, 0}
	for _, p := range []string{
		"", ".", "/etc/x", "../x", "a/../../x", "a//b", "a/", "./a", "a\\b", "c:x", "nul\x00", "a\nb", "\x7f", "bad\xff",
		strings.Repeat("a", maxElement+1), strings.Repeat("a/", maxPath) + "a",
	} {
		m := Manifest{Format: 1, Files: []File{{Path: p, SHA256: s}}, Pack: pack}
		if err := m.Validate(); !errors.Is(err, ErrUntrusted) {
			t.Errorf("path %q: %v", p, err)
		}
	}
	file := func(p string, size int64) File { return File{Path: p, SHA256: s, Size: size} }
	var bomb, many []File
	for i := range 9 {
		bomb = append(bomb, file(string(rune('a'+i)), maxFile))
	}
	for i := range maxFiles + 1 {
		many = append(many, file(strings.Repeat("x", 1+i%200)+string(rune(i)), 0))
	}
	for name, m := range map[string]Manifest{
		"format":          {Format: 2, Pack: pack},
		"no pack":         {Format: 1},
		"pack too large":  {Format: 1, Pack: Blob{s, maxPack + 1}},
		"negative pack":   {Format: 1, Pack: Blob{s, -1}},
		"bomb":            {Format: 1, Pack: pack, Files: bomb},
		"too many":        {Format: 1, Pack: pack, Files: many},
		"file too large":  {Format: 1, Pack: pack, Files: []File{file("a", maxFile+1)}},
		"negative":        {Format: 1, Pack: pack, Files: []File{file("a", -1)}},
		"order":           {Format: 1, Pack: pack, Files: []File{file("b", 0), file("a", 0)}},
		"twice":           {Format: 1, Pack: pack, Files: []File{file("a", 0), file("a", 0)}},
		"file and folder": {Format: 1, Pack: pack, Files: []File{file("a", 0), file("a.b", 0), file("a/b", 0)}},
		"sum":             {Format: 1, Pack: pack, Files: []File{{Path: "a", SHA256: strings.ToUpper(s)}}},
	} {
		if err := m.Validate(); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A manifest and a pack that are signed but contradict each other.
func TestUnpackRefuses(t *testing.T) {
	make1 := func(plain string, files ...File) (*Manifest, []byte) {
		pack, err := compress([]byte(plain))
		if err != nil {
			t.Fatal(err)
		}
		return &Manifest{Format: 1, Files: files, Pack: Blob{sum(pack), int64(len(pack))}}, pack
	}
	f := func(path, content string) File {
		return File{Path: path, SHA256: sum([]byte(content)), Size: int64(len(content))}
	}
	for _, tc := range []struct {
		name, plain string
		files       []File
	}{
		{"more than listed", "abX", []File{f("a", "a"), f("b", "b")}},
		{"less than listed", "a", []File{f("a", "a"), f("b", "b")}},
		{"another content", "ax", []File{f("a", "a"), f("b", "b")}},
		{"another split", "aab", []File{f("a", "aa"), {Path: "b", SHA256: sum([]byte("b")), Size: 0}}},
	} {
		m, pack := make1(tc.plain, tc.files...)
		if err := m.unpack(pack, t.TempDir()); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	m, pack := make1("ab", f("a", "a"), f("d/b", "b"))
	dir := t.TempDir()
	if err := m.unpack(pack, dir); err != nil || len(files(t, dir)) != 2 {
		t.Errorf("good: %v", err)
	}
	// Never over something: not through a link that waits there.
	for _, trap := range []string{"a", "d"} {
		dir, outside := t.TempDir(), t.TempDir()
		if err := os.Symlink(filepath.Join(outside, "x"), filepath.Join(dir, trap)); err != nil {
			t.Fatal(err)
		}
		if err := m.unpack(pack, dir); err == nil {
			t.Errorf("unpacked over a link at %s", trap)
		}
		empty(t, outside)
	}
	// A disk that can't be written is not the publisher's fault.
	if err := m.unpack(pack, filepath.Join(dir, "missing")); err == nil || errors.Is(err, ErrUntrusted) {
		t.Errorf("no folder: %v", err)
	}
	mem := &Manifest{Pack: Blob{sum([]byte("x")), 1}}
	if err := mem.unpack([]byte("x"), t.TempDir()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("not compressed: %v", err)
	}
}

// A runner that is older than the bundle can still find the runner to start.
func TestReadMetaOfTheFuture(t *testing.T) {
	m, err := readMeta([]byte("version: 9.0.0\nshiny: {new: [key]}\nruntimes: {go: {language: go, speed: fast}}\nrunner: {version: 4.0.0, blobs: {linux/amd64: {sha256: ab, size: 1}}}\n"))
	if err != nil || m.Runner.Version != "4.0.0" || m.Runtimes["go"].Language != "go" {
		t.Errorf("unknown keys: %+v %v", m, err)
	}
	m, err = readMeta([]byte("version: 9.0.0\nruntimes: [completely, different]\nrunner: {version: 4.0.0, blobs: {linux/amd64: {sha256: ab, size: 1}}}\n"))
	if err != nil || m.Version != "9.0.0" || m.Runner.Blobs["linux/amd64"].Size != 1 {
		t.Errorf("other types: %+v %v", m, err)
	}
	for _, text := range []string{"", "[]", "version: 9\nruntimes: [different]\n", "docs: x\n", "\t", "runner: 1\nversion: 1\n"} {
		if _, err := readMeta([]byte(text)); !errors.Is(err, ErrContent) || strings.Contains(err.Error(), "bundle.Meta") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ParseMeta([]byte(bundleYML)); err == nil {
		t.Error("a bundle.yml without a version passes the strict parser")
	}
}
