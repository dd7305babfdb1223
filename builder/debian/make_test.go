package debian

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
)

func TestBuildPushAndPull(t *testing.T) {
	r := newRepo(t, basics("18.20.4-1")...)
	b := r.builder()
	img, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if img.Reused || img.Layers[0].Reused || img.ABI != "node108-lib1.2-"+debArch(t) {
		t.Errorf("got %+v", img)
	}
	var pkgs []string
	for _, p := range img.Packages {
		pkgs = append(pkgs, p.Name+" "+p.Version)
	}
	// Neither what is recommended, nor debconf, nor what only debconf needs.
	if want := []string{"ca-certificates 2025", "libnode 2:1.2.3-4", "nodejs 18.20.4-1", "tzdata 2025b"}; !slices.Equal(pkgs, want) {
		t.Errorf("packages %v, want %v", pkgs, want)
	}

	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	repo, err := name.NewRepository(strings.TrimPrefix(srv.URL, "http://") + "/base/nodejs18")
	if err != nil {
		t.Fatal(err)
	}
	_, ref, err := b.Push(t.Context(), img.Name, "", repo)
	if err != nil {
		t.Fatal(err)
	}
	pulled, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(pulled); err != nil {
		t.Error(err)
	}
	cf, err := pulled.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c := cf.Config; c.User != "65532:65532" || c.WorkingDir != "/app" || c.Labels[LabelABI] != img.ABI || !cf.Created.Equal(time.Unix(0, 0)) ||
		!slices.Equal(c.Env, []string{"HOME=/home/nonroot", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}) {
		t.Errorf("config %+v, created %v", c, cf.Created)
	}
	layers, err := pulled.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	names, bodies := contents(t, rc)
	if want := certificate("A") + certificate("B"); bodies["etc/ssl/certs/ca-certificates.crt"] != want {
		t.Errorf("CA bundle:\n%s", bodies["etc/ssl/certs/ca-certificates.crt"])
	}
	if !strings.Contains(bodies["etc/passwd"], "nonroot:x:65532:65532:nonroot:/home/nonroot:/usr/sbin/nologin\n") {
		t.Errorf("passwd:\n%s", bodies["etc/passwd"])
	}
	if !strings.HasPrefix(bodies["var/lib/dpkg/status.d/nodejs"], "Package: nodejs\nVersion: 18.20.4-1\n") {
		t.Errorf("status.d/nodejs: %q", bodies["var/lib/dpkg/status.d/nodejs"])
	}
	for _, want := range []string{"link lib -> usr/lib", "0755 usr/lib/x86_64-linux-gnu/", "link usr/bin/nodejs -> node", "1777 tmp/", "0755 app/",
		"link etc/localtime -> /usr/share/zoneinfo/Etc/UTC", "link usr/lib/ssl/cert.pem -> /etc/ssl/certs/ca-certificates.crt", "0755 dev/", "0644 usr/share/doc/nodejs/copyright"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %q in the layer", want)
		}
	}
	for _, n := range names {
		if strings.Contains(n, "changelog") || strings.Contains(n, "share/man") || strings.Contains(n, "recommended") {
			t.Errorf("%s is in the layer", n)
		}
	}
	// The guard tag, and the list of referrers where the registry keeps none.
	tags, err := remote.List(repo)
	if err != nil || len(tags) != 2 || !strings.HasPrefix(img.Digest, strings.Replace(tags[0], "-", ":", 1)) {
		t.Errorf("guard tag: %v, %v", tags, err)
	}
	idx, err := remote.Referrers(repo.Digest(img.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := idx.IndexManifest(); err != nil || len(m.Manifests) != 1 || m.Manifests[0].ArtifactType != attest.TypeBOM {
		t.Errorf("bill of materials: %+v, %v", m, err)
	}
}

func TestSameDigestElsewhere(t *testing.T) {
	r := newRepo(t, basics("18.20.4-1")...)
	first, err := r.builder().Build(t.Context(), recipe18(), Options{Out: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	other := r.builder()
	other.Cache = filepath.Join(t.TempDir(), "quite another", "place, with spaces")
	second, err := other.Build(t.Context(), recipe18(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if first.Digest != second.Digest {
		t.Errorf("%s here, %s there", first.Digest, second.Digest)
	}
}

func TestSecondBuildReuses(t *testing.T) {
	long(t)
	r := newRepo(t, basics("18.20.4-1")...)
	b := r.builder()
	b.ListsAge = 0
	first, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := r.requests.Load()
	again, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !again.Reused || !again.Layers[0].Reused || again.Digest != first.Digest || r.requests.Load() != before {
		t.Errorf("second build: %+v, %d requests", again, r.requests.Load()-before)
	}

	// A setting is a new image with the old layer.
	recipe := recipe18()
	recipe.Env["LANG"] = "C"
	changed, err := b.Build(t.Context(), recipe, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if changed.Reused || !changed.Layers[0].Reused || changed.Digest == first.Digest {
		t.Errorf("changed setting: %+v", changed)
	}

	// A security update is a new layer.
	r.set(append(basics("18.20.5-1")[:1], basics("18")[1:]...)...)
	b.ListsAge = -1
	updated, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if updated.Reused || updated.Layers[0].Reused {
		t.Errorf("after an update: %+v", updated)
	}

	// A damaged blob is noticed and made again.
	blobs, err := filepath.Glob(filepath.Join(b.Cache, "layers", "*", "blob"))
	if err != nil || len(blobs) != 2 {
		t.Fatal(blobs, err)
	}
	for _, p := range blobs {
		if err := os.WriteFile(p, []byte("damaged"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	healed, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	built, err := healed.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(built); err != nil || healed.Digest != updated.Digest {
		t.Errorf("after damage: %v, %s, was %s", err, healed.Digest, updated.Digest)
	}
}

// TestUpdateSinceTheLists: the mirror has replaced an archive that our lists
// still name.
func TestUpdateSinceTheLists(t *testing.T) {
	long(t)
	r := newRepo(t, basics("18.20.4-1")...)
	b := r.builder()
	b.ListsAge, b.Retries = 0, -1
	other := recipe18()
	other.Packages = []string{"nodejs=18.*"}
	if _, err := b.Build(t.Context(), other, Options{}); err != nil {
		t.Fatal(err)
	}
	next := basics("18.20.4-1")
	next[6].version, next[6].files = "2026a", append(next[6].files, file("./usr/share/zoneinfo/Moon", "TZif"))
	r.set(next...)
	img, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p := img.Packages[len(img.Packages)-1]; p.Version != "2026a" {
		t.Errorf("got %+v", p)
	}
}

func TestOfflineUsesWhatIsThere(t *testing.T) {
	r := newRepo(t, basics("18.20.4-1")...)
	b := r.builder()
	first, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.server.Close()
	b.Retries = -1
	var warned bool
	b.Log = func(line string) { warned = warned || strings.HasPrefix(line, "warning: the package lists may be old") }
	again, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil || again.Digest != first.Digest || !warned {
		t.Errorf("%v, digest %s, warned %v", err, again.Digest, warned)
	}
}

func TestFilesAreTheirOwnLayer(t *testing.T) {
	long(t)
	r := newRepo(t, basics("18.20.4-1")...)
	b := r.builder()
	recipe := recipe18()
	recipe.Name, recipe.Kind = "runner", Runner
	recipe.Files = []File{{From: "bin/faas", To: "/usr/local/bin/faas"}, {From: "seed", To: "/usr/local/share/kuroko", Optional: true}}
	dir := t.TempDir()
	if _, err := b.Build(t.Context(), recipe, Options{Files: []string{t.TempDir(), dir}}); !errors.Is(err, os.ErrNotExist) || r.requests.Load() != 0 {
		t.Errorf("missing file: %v after %d requests", err, r.requests.Load())
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "faas"), []byte("elf"), 0o700); err != nil {
		t.Fatal(err)
	}
	img, err := b.Build(t.Context(), recipe, Options{Files: []string{t.TempDir(), dir}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.Missing, []string{"seed"}) || len(img.Layers) != 2 {
		t.Errorf("%+v", img)
	}
	if err := os.MkdirAll(filepath.Join(dir, "seed", "bundle"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "seed", "platform.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	seeded, err := b.Build(t.Context(), recipe, Options{Files: []string{t.TempDir(), dir}})
	if err != nil {
		t.Fatal(err)
	}
	if len(seeded.Missing) != 0 || !seeded.Layers[0].Reused || seeded.Layers[1].Reused {
		t.Errorf("%+v", seeded)
	}
	built, err := seeded.Open()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := built.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[1].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	names, _ := contents(t, rc)
	want := []string{"0755 usr/", "0755 usr/local/", "0755 usr/local/bin/", "0755 usr/local/bin/faas", "0755 usr/local/share/", "0755 usr/local/share/kuroko/",
		"0755 usr/local/share/kuroko/bundle/", "0644 usr/local/share/kuroko/platform.json"}
	if !slices.Equal(names, want) {
		t.Errorf("got %q", names)
	}
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "seed", "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Build(t.Context(), recipe, Options{Files: []string{t.TempDir(), dir}}); err == nil || !strings.Contains(err.Error(), "only files and folders") {
		t.Errorf("a link among the files: %v", err)
	}
}

func TestWrongMajor(t *testing.T) {
	r := newRepo(t, basics("20.19.2-1")...)
	b := r.builder()
	var missing *PackageError
	if _, err := b.Build(t.Context(), recipe18(), Options{}); !errors.As(err, &missing) || !slices.Equal(missing.Offered, []string{"nodejs 20.19.2-1"}) ||
		!strings.Contains(err.Error(), "nodejs=18.* (offered: nodejs 20.19.2-1)") {
		t.Errorf("no nodejs 18: %v", err)
	}
	recipe := recipe18()
	recipe.Packages[0] = "nodejs"
	var expect *ExpectError
	if _, err := b.Build(t.Context(), recipe, Options{}); !errors.As(err, &expect) || expect.Got != "nodejs 20.19.2-1" || expect.Want != "nodejs 18" {
		t.Errorf("another major: %v", err)
	}
	if _, err := b.Find("base/nodejs18", ""); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("a refused image was kept: %v", err)
	}
}

func TestHasMajor(t *testing.T) {
	for _, c := range []struct {
		version, major string
		want           bool
	}{
		{"18.20.4+dfsg-1~deb12u1", "18", true}, {"2:18-1", "18", true}, {"180.1", "18", false}, {"1.18", "18", false},
		{"3.11.2-6", "3.11", true}, {"3.110-1", "3.11", false}, {"17.0.21+1-1", "17", true}, {"18", "18", true},
	} {
		if got := hasMajor(upstream(c.version), c.major); got != c.want {
			t.Errorf("%s is %s: %v", c.version, c.major, got)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	long(t)
	change := func(i int, f func(*deb)) []deb {
		all := basics("18.20.4-1")
		f(&all[i])
		return all
	}
	for name, c := range map[string]struct {
		debs   []deb
		recipe func(*Recipe)
		want   error
		says   string
	}{
		"traversal in a package": {debs: change(2, func(d *deb) { d.files = []tarEntry{file("../../tmp/x", "x")} }), want: ErrUnsafe, says: "package libnode 2:1.2.3-4: "},
		"program missing":        {debs: change(0, func(d *deb) { d.files = d.files[:1] }), says: "must hold the program /usr/bin/node"},
		"program not executable": {debs: change(0, func(d *deb) { d.files = []tarEntry{file("./usr/bin/node", "x")} }), says: "must hold the program"},
		"shell in a slim image":  {debs: change(2, func(d *deb) { d.files = []tarEntry{program("./bin/sh", "x")} }), says: "must hold no /bin/sh, but would hold /bin/sh"},
		"broken archive":         {debs: change(2, func(d *deb) { d.data = []byte(strings.Repeat("not a tar", 100)) }), says: "package libnode"},
		"unknown package":        {recipe: func(r *Recipe) { r.Packages = append(r.Packages, "nosuch", "other") }, says: "don't offer nosuch, other"},
		"unmet dependency":       {debs: change(2, func(d *deb) { d.fields = "Depends: not-there\n" }), says: "libnode : Depends: not-there"},
		"abi of nothing":         {recipe: func(r *Recipe) { r.ABI = "x{version:libc6}" }, says: "must hold libc6, which its abi names"},
		"bad recipe":             {recipe: func(r *Recipe) { r.Packages = []string{"-o=APT::Get"} }, says: "is not a package name"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.debs == nil {
				c.debs = basics("18.20.4-1")
			}
			b := newRepo(t, c.debs...).builder()
			r := recipe18()
			if c.recipe != nil {
				c.recipe(&r)
			}
			_, err := b.Build(t.Context(), r, Options{})
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.says)
			}
			// Nothing half made, nothing left behind.
			left, _ := filepath.Glob(filepath.Join(b.Cache, "layers", "*"))
			tmp, _ := filepath.Glob(filepath.Join(b.Cache, "tmp", "*"))
			if _, err := b.Find(r.Name, ""); !errors.Is(err, ErrNotBuilt) || len(left)+len(tmp) > 0 {
				t.Errorf("left behind: %v %v %v", left, tmp, err)
			}
		})
	}
}

func TestMirrorFaults(t *testing.T) {
	long(t)
	fault := func(h http.HandlerFunc) func(*repo) { return func(r *repo) { r.answer.Store(&h) } }
	for name, c := range map[string]struct {
		damage func(*repo)
		says   string
	}{
		"refuses connections": {func(r *repo) { r.server.Close() }, "fetch the package lists: 127.0.0.1"},
		"not found":           {fault(http.NotFound), "404"},
		"error":               {fault(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }), "503"},
		"archive gone":        {func(r *repo) { os.Remove(filepath.Join(r.dir, "libnode.deb")) }, "download packages: 127.0.0.1"},
		"archive replaced": {func(r *repo) {
			r.write(filepath.Join(r.dir, "libnode.deb"), string(basics("18")[3].bytes(r.t)))
		}, "download packages: 127.0.0.1"},
		"archive truncated": {func(r *repo) {
			if err := os.Truncate(filepath.Join(r.dir, "libnode.deb"), 100); err != nil {
				r.t.Fatal(err)
			}
		}, "download packages: 127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t, basics("18.20.4-1")...)
			b := r.builder()
			b.Retries = -1
			c.damage(r)
			var away *builder.Unavailable
			if _, err := b.Build(t.Context(), recipe18(), Options{}); !errors.As(err, &away) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want unavailable with %q", err, c.says)
			}
		})
	}
}

// TestPackageLies: the index is believed because it is signed; the archive's
// own words must agree.
func TestPackageLies(t *testing.T) {
	r := newRepo(t)
	all := basics("18.20.4-1")
	r.set(all...)
	index, err := os.ReadFile(filepath.Join(r.dir, "Packages"))
	if err != nil {
		t.Fatal(err)
	}
	r.write(filepath.Join(r.dir, "Packages"), strings.Replace(string(index), "Version: 2025b", "Version: 2026a", 1))
	_, err = r.builder().Build(t.Context(), recipe18(), Options{})
	if err == nil {
		t.Fatal("taken")
	}
	var away *builder.Unavailable
	if !errors.Is(err, ErrUnsafe) && !errors.As(err, &away) {
		t.Errorf("got %v", err)
	}
}

func TestNoApt(t *testing.T) {
	b := &Builder{Cache: t.TempDir()}
	t.Setenv("PATH", t.TempDir())
	if _, err := b.Build(t.Context(), recipe18(), Options{}); !errors.Is(err, ErrNoApt) {
		t.Errorf("got %v", err)
	}
}

func TestAptTroubles(t *testing.T) {
	long(t)
	for name, c := range map[string]struct {
		script string
		want   error
	}{
		"disk full":       {`echo "E: You don't have enough free space in /x/." >&2; exit 100`, syscall.ENOSPC},
		"disk full write": {`echo "E: Write error - write (28: No space left on device)" >&2; exit 100`, syscall.ENOSPC},
		"never ends":      {`exec sleep 1000`, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			b := newRepo(t, basics("18.20.4-1")...).builder()
			fakeProgram(t, "apt-get", c.script)
			b.Limits.Update, b.Limits.Resolve = 50*time.Millisecond, 50*time.Millisecond
			if c.want == syscall.ENOSPC {
				b.Limits = Limits{}
			}
			if _, err := b.Build(t.Context(), recipe18(), Options{}); !errors.Is(err, c.want) && !mentions(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// mentions: lists that can't be fetched in time are remembered as apt's words.
func mentions(err, want error) bool {
	var away *builder.Unavailable
	return want == context.DeadlineExceeded && errors.As(err, &away)
}

func TestCancelled(t *testing.T) {
	b := newRepo(t, basics("18.20.4-1")...).builder()
	fakeProgram(t, "apt-get", `exec sleep 1000`)
	ctx, cancel := context.WithCancel(t.Context())
	b.Log = func(string) { cancel() }
	if _, err := b.Build(ctx, recipe18(), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestCredentialsStayOut(t *testing.T) {
	r := newRepo(t, basics("18.20.4-1")...)
	b := r.builder()
	b.Retries = -1
	r.write(filepath.Join(filepath.Dir(r.conf), "sources.list"), "deb [trusted=yes] "+strings.Replace(r.server.URL, "//", "//user:secret@", 1)+" ./\n")
	h := http.HandlerFunc(http.NotFound)
	r.answer.Store(&h)
	var log strings.Builder
	b.Log = func(line string) { fmt.Fprintln(&log, line) }
	_, err := b.Build(t.Context(), recipe18(), Options{})
	if err == nil || strings.Contains(err.Error()+log.String(), "secret") {
		t.Errorf("got %v, log %s", err, log.String())
	}
}

func TestBuildersTakeTurns(t *testing.T) {
	r := newRepo(t, basics("18.20.4-1")...)
	b := r.builder()
	unlock, err := b.lock(t.Context(), syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	second := *b
	second.Log = func(line string) {
		if strings.HasPrefix(line, "wait for another build") {
			cancel()
		}
	}
	if _, err := second.Build(ctx, recipe18(), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	unlock()
	if _, err := b.Build(t.Context(), recipe18(), Options{}); err != nil {
		t.Error(err)
	}
}

func TestPrune(t *testing.T) {
	long(t)
	r := newRepo(t, basics("18.20.4-1")...)
	b := r.builder()
	if _, err := b.Build(t.Context(), recipe18(), Options{}); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(b.Cache, "layers", "unused")
	if err := os.MkdirAll(old, 0o755); err != nil {
		t.Fatal(err)
	}
	b.Now = func() time.Time { return time.Now().Add(keep + time.Hour) }
	img, err := b.Build(t.Context(), recipe18(), Options{})
	if err != nil || !img.Reused {
		t.Errorf("%v %+v", err, img)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unused layer: %v", err)
	}
	if layers, _ := filepath.Glob(filepath.Join(b.Cache, "layers", "*", "blob")); len(layers) != 1 {
		t.Errorf("used layers: %v", layers)
	}
}

func TestImageIsJSON(t *testing.T) {
	data, err := json.Marshal(Image{Name: "base/x1", Packages: []Package{{Name: "a", uri: "http://user:secret@mirror"}}})
	if err != nil || strings.Contains(string(data), "secret") {
		t.Errorf("%s %v", data, err)
	}
}

func debArch(t *testing.T) string {
	t.Helper()
	a, err := (&Builder{Cache: t.TempDir(), Env: []string{"PATH=" + os.Getenv("PATH")}}).newApt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return a.arch
}
