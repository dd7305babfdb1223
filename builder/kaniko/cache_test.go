package kaniko_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

// cached is a small program: what is installed first, the code after it.
const cached = "FROM BASE AS deps\nARG V\nCOPY lock /\nRUN echo \"$(cat /lock) $V\" > /installed; cat /proc/sys/kernel/random/uuid > /once\n" +
	"FROM deps\nCOPY code /code\nRUN cat /installed /code > /both\nLABEL a=b\n"

type cacheLab struct {
	*lab
	repo name.Repository
	tag  name.Tag
}

func newCacheLab(l *lab) *cacheLab {
	repo, err := name.NewRepository(l.host + "/team/cache")
	if err != nil {
		l.t.Fatal(err)
	}
	return &cacheLab{lab: l, repo: repo, tag: l.must("team/app:1")}
}

func (l *lab) must(ref string) name.Tag {
	tag, err := name.NewTag(l.host + "/" + ref)
	if err != nil {
		l.t.Fatal(err)
	}
	return tag
}

// make builds with fresh local state, unless dir is given, and returns the
// files and the log.
func (l *cacheLab) make(dir string, files fstest.MapFS, args map[string]string, write bool) (kaniko.Result, map[string]string, string) {
	l.t.Helper()
	l.log.Reset()
	o := l.options()
	o.CacheDir = dir
	src := kaniko.Source{
		Dockerfile: []byte(strings.ReplaceAll(cached, "FROM BASE", "FROM "+l.base)), Context: files, Args: args,
		Cache: builder.Cache{Read: []name.Repository{l.repo}},
	}
	if write {
		src.Cache.Write = &l.repo
	}
	res, err := kaniko.New(o).BuildTo(l.t.Context(), src, []name.Tag{l.tag})
	if err != nil {
		l.t.Fatalf("%v\n%s", err, l.log)
	}
	img, err := remote.Image(l.tag)
	if err != nil {
		l.t.Fatal(err)
	}
	out := map[string]string{}
	for name, h := range newFiles(l.t, img, 1) {
		out[name] = h.Linkname
	}
	return res, out, l.log.String()
}

func TestRunCache(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		c := newCacheLab(l)
		v1 := map[string]string{"V": "1"}
		files := func(lock, code string) fstest.MapFS { return fstest.MapFS{"lock": text(lock), "code": text(code)} }
		first, got, _ := c.make("", files("L", "C"), v1, true)
		if got["/both"] != "L 1\nC" {
			t.Fatalf("first: %q", got)
		}
		once := got["/once"]
		ran := func(log, step string) bool {
			return strings.Contains(log, step) && !strings.Contains(log, step+": found")
		}
		const install = "/6] RUN echo \"$(cat /lock) $V\" > /installed; cat /proc/sys/kernel/random/uuid > /once"

		// Another machine, other code: what was installed is taken as it is.
		res, got, log := c.make("", files("L", "D"), v1, true)
		if got["/both"] != "L 1\nD" || got["/once"] != once || ran(log, install) || res.Reused {
			t.Errorf("code changed: %q\n%s", got, log)
		}
		// The same code again: nothing is built, the image is the same.
		if res, _, log := c.make("", files("L", "C"), v1, true); !res.Reused || res.Digest != first.Digest || res.Sandbox != "" {
			t.Errorf("again: %+v\n%s", res, log)
		}
		// A changed lock file and a changed argument each install again.
		if _, got, log := c.make("", files("M", "C"), v1, true); got["/both"] != "M 1\nC" || got["/once"] == once {
			t.Errorf("lock changed: %q\n%s", got, log)
		}
		if _, got, log := c.make("", files("L", "C"), map[string]string{"V": "2"}, true); got["/both"] != "L 2\nC" || got["/once"] == once {
			t.Errorf("argument changed: %q\n%s", got, log)
		}
		// What went into the cache is mounted from there, not sent again: the
		// image's repository says that it has nothing, and gets a configuration.
		c.requests.set(func(r *http.Request) int {
			if r.Method == http.MethodHead && strings.HasPrefix(r.URL.Path, "/v2/team/app/blobs/") {
				return http.StatusNotFound
			}
			return 0
		})
		before := len(c.requests.sent("/v2/team/app/"))
		c.make("", files("N", "C"), v1, true)
		if sent := c.requests.sent("/v2/team/app/")[before:]; len(sent) != 1 {
			t.Errorf("sent to the image's repository besides the configuration: %q", sent)
		}
		c.requests.set(nil)
		// On the same machine the repository isn't needed.
		dir := t.TempDir()
		_, got, _ = c.make(dir, files("N", "C"), v1, false)
		once = got["/once"]
		if _, got, log := c.make(dir, files("N", "E"), v1, false); got["/once"] != once || got["/both"] != "N 1\nE" {
			t.Errorf("the same machine: %q\n%s", got, log)
		}
	})
}

// Who may not write leaves nothing in the repository, and what he made on this
// machine is not found by those who may.
func TestCacheIsReadOnly(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		c := newCacheLab(l)
		files := fstest.MapFS{"lock": text("L"), "code": text("C")}
		dir := t.TempDir()
		_, mine, _ := c.make(dir, files, nil, false)
		tags, err := remote.List(c.repo)
		if err == nil && len(tags) > 0 {
			t.Errorf("written: %v", tags)
		}
		_, protected, _ := c.make(dir, files, nil, true)
		if protected["/once"] == mine["/once"] {
			t.Error("a protected build took what an unprotected one had made")
		}
		if tags, err = remote.List(c.repo); err != nil || len(tags) != 3 { // two RUNs, one image
			t.Errorf("tags %v, %v", tags, err)
		}
		// And the other way round is fine.
		if _, got, _ := c.make("", fstest.MapFS{"lock": text("L"), "code": text("D")}, nil, false); got["/once"] != protected["/once"] {
			t.Error("an unprotected build did not read")
		}
	})
}

// An entry that is not what it says is not used, and a registry in trouble is
// told as that.
func TestDamagedCache(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		c := newCacheLab(l)
		files := func(code string) fstest.MapFS { return fstest.MapFS{"lock": text("L"), "code": text(code)} }
		_, first, _ := c.make("", files("C"), nil, true)
		tags, err := remote.List(c.repo)
		if err != nil {
			t.Fatal(err)
		}
		evil, err := mutate.AppendLayers(empty.Image, static.NewLayer(zipped(tarOf("installed", "evil")), types.OCILayer))
		if err != nil {
			t.Fatal(err)
		}
		for what, poison := range map[string]func(tag name.Tag) error{
			"of another key": func(tag name.Tag) error {
				for _, other := range tags {
					if img, err := remote.Image(c.repo.Tag(other)); err == nil && other != tag.TagStr() {
						return remote.Write(tag, img)
					}
				}
				return errors.New("no other")
			},
			"of anybody": func(tag name.Tag) error { return remote.Write(tag, evil) },
			"whose layer is another than its sum says": func(tag name.Tag) error {
				img, err := remote.Image(tag)
				if err != nil {
					return err
				}
				cfg, err := img.ConfigFile()
				if err != nil {
					return err
				}
				layers, err := img.Layers()
				if err != nil {
					return err
				}
				// The right sums of the files in the configuration, other files.
				img = mutate.MediaType(empty.Image, types.OCIManifestSchema1)
				for range layers {
					if img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(zipped(tarOf("installed", "evil")), types.OCILayer), MediaType: types.OCILayer}); err != nil {
						return err
					}
				}
				if img, err = mutate.ConfigFile(img, cfg); err != nil {
					return err
				}
				return remote.Write(tag, img)
			},
		} {
			saved := map[string]func() error{}
			for _, tag := range tags {
				if !strings.HasPrefix(tag, "run-") {
					continue
				}
				img, err := remote.Image(c.repo.Tag(tag))
				if err != nil {
					t.Fatal(err)
				}
				saved[tag] = func() error { return remote.Write(c.repo.Tag(tag), img) }
				if err := poison(c.repo.Tag(tag)); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			_, got, log := c.make("", files("D "+what), nil, false)
			if got["/installed"] != "L \n" || got["/once"] == first["/once"] || !strings.Contains(log, "is not used") {
				t.Errorf("an entry %s: %q\n%s", what, got, log)
			}
			for _, restore := range saved {
				if err := restore(); err != nil {
					t.Fatal(err)
				}
			}
		}
		// A local entry whose bytes were changed.
		dir := t.TempDir()
		c.make(dir, fstest.MapFS{"lock": text("here"), "code": text("C")}, nil, false)
		blobs, err := filepath.Glob(filepath.Join(dir, "blob", "*"))
		if err != nil || len(blobs) == 0 {
			t.Fatalf("blobs %v, %v", blobs, err)
		}
		for _, b := range blobs {
			if err := os.WriteFile(b, []byte("damaged"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, got, log := c.make(dir, fstest.MapFS{"lock": text("here"), "code": text("E")}, nil, false); got["/both"] != "here \nE" {
			t.Errorf("damaged on disk: %q\n%s", got, log)
		}
		// The cache can't be written: said, and no failure.
		l.requests.set(func(r *http.Request) int {
			if r.Method != http.MethodGet && r.Method != http.MethodHead && strings.Contains(r.URL.Path, "/team/cache/") && strings.Contains(r.URL.Path, "run-") {
				return http.StatusForbidden
			}
			return 0
		})
		defer l.requests.set(nil)
		if _, got, log := c.make("", fstest.MapFS{"lock": text("Z"), "code": text("C")}, nil, true); got["/both"] != "Z \nC" || !strings.Contains(log, "the cache in "+c.repo.String()+" was not written") {
			t.Errorf("denied: %q\n%s", got, log)
		}
	})
}

// The same files give the same image wherever they are, whatever the umask and
// the times, with a cache or without.
func TestSameImageEverywhere(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		dockerfile := "FROM BASE AS a\nCOPY . /src/\nRUN cat /src/x > /y && ls -l --full-time /src > /listing\nFROM BASE\nCOPY --from=a /listing /src /all/\nRUN stat -c '%a %Y' /all/x > /seen\n"
		digests := map[string]string{}
		for _, at := range []string{"one", "two"} {
			dir := filepath.Join(t.TempDir(), at)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			mode := os.FileMode(0o600)
			if at == "two" {
				mode = 0o664
			}
			if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), mode); err != nil {
				t.Fatal(err)
			}
			o := l.options()
			o.CacheDir = t.TempDir()
			for _, again := range []string{"", " again"} {
				res, err := kaniko.New(o).BuildTo(t.Context(), kaniko.Source{
					Dockerfile: []byte(strings.ReplaceAll(dockerfile, "FROM BASE", "FROM "+l.base)), Context: os.DirFS(dir),
				}, []name.Tag{l.must("team/same:" + at)})
				if err != nil {
					t.Fatalf("%v\n%s", err, l.log)
				}
				digests[at+again] = res.Digest.String()
			}
		}
		for what, d := range digests {
			if d != digests["one"] {
				t.Errorf("%s: %s, want %s", what, d, digests["one"])
			}
		}
	})
}

// The cache folder stays within its bound, and still serves.
func TestCacheFolderIsBounded(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		o := l.options()
		o.CacheDir, o.CacheBytes = t.TempDir(), 1
		for i := range 2 {
			if _, err := kaniko.New(o).BuildTo(t.Context(), kaniko.Source{Dockerfile: []byte("FROM " + l.base + "\nRUN echo x > /x\n")}, []name.Tag{l.must("team/b:1")}); err != nil {
				t.Fatalf("build %d: %v\n%s", i, err, l.log)
			}
		}
		for _, kind := range []string{"blob", "step"} {
			if left, _ := os.ReadDir(filepath.Join(o.CacheDir, kind)); len(left) > 0 {
				t.Errorf("%s: %v left", kind, left)
			}
		}
	})
}

// What instructions install is listed, also when the layers come from the
// cache; what a later instruction removes is not.
func TestPackages(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		l.cacheDir = t.TempDir()
		const dockerfile = `FROM BASE
RUN mkdir -p app/node_modules/left-pad app/node_modules/gone && echo '{"name": "left-pad", "version": "1.3.0"}' > app/node_modules/left-pad/package.json && echo '{"name": "gone", "version": "1"}' > app/node_modules/gone/package.json
RUN rm -r app/node_modules/gone
COPY status /var/lib/dpkg/status
`
		files := fstest.MapFS{"status": text("Package: curl\nStatus: install ok installed\nArchitecture: amd64\nVersion: 7.88\n")}
		for _, key := range []string{"made", "cached"} {
			req := l.request(key, dockerfile, files)
			req.Origin = &attest.Provenance{}
			img, err := l.engine().Build(t.Context(), req)
			if err != nil || img.Made == nil || img.Reused {
				t.Fatalf("%s: %+v, %v\n%s", key, img, err, l.log)
			}
			var got []string
			for _, c := range img.Made.Packages {
				got = append(got, c.PURL())
			}
			if want := []string{"pkg:npm/left-pad@1.3.0", "pkg:deb/debian/curl@7.88?arch=amd64"}; !slices.Equal(got, want) || !img.Made.Debian {
				t.Errorf("%s: %q, want %q", key, got, want)
			}
			if img.Made.From == nil || img.Made.From.String() != l.base {
				t.Errorf("%s: from %v, want %s", key, img.Made.From, l.base)
			}
		}
		// Nobody asked.
		if img, err := l.build("plain", dockerfile, files); err != nil || img.Made != nil {
			t.Errorf("%+v, %v", img.Made, err)
		}
	})
}

// An image is the same, to the byte, whether its commands ran just now or an
// earlier build left what they made: then only a few of those files are
// unpacked again.
func TestWarmIsAsCold(t *testing.T) {
	for title, dockerfile := range map[string]string{
		"by path": "FROM IMAGE\nWORKDIR /app\nCOPY d/b d/\nRUN mkdir -p d && echo x > d/x && chmod 700 d && echo old > a && rm /etc/doomed && mkdir /etc/doomed && echo old > doc && echo > unneeded\n" +
			"COPY . .\nCOPY a /etc/doomed/\nWORKDIR d\nCOPY <<doc .\nnew\ndoc\n",
		"touched again": "FROM IMAGE\nCOPY d /app/d\nRUN echo 1 > /app/x && echo sub > /etc/added && mkdir /app/e\nCOPY a /app/\nRUN touch /app/x /app/d/b /etc/passwd /etc/added && chmod 755 /app/e /app/d\nCOPY d /app/d\n",
		"through links": "FROM IMAGE\nRUN mkdir -p /app/d /real/d && echo f > /f && ln -s real /ln && ln -s /f /lf && ln -s /nowhere /app/d/b\n" +
			"COPY a /ln/d/\nCOPY a /lf\nCOPY d /ln/\nCOPY . /app/\n",
		"a linked owner":         "FROM IMAGE\nRUN echo me:x:0:0::/: > /etc/users && ln -sf users /etc/passwd\nCOPY --chown=me a /app/\n",
		"an archive, a variable": "FROM IMAGE\nENV P=$FROM_BASE\nRUN mkdir /in /$FROM_BASE && echo old > /in/one && echo old > /yes/a\nADD a.tar /in/\nCOPY a /$P/\n",
		"from a stage, an image": "FROM IMAGE AS s\nRUN mkdir -p /out/d /other && echo 1 > /out/d/1 && echo 2 > /other/2 && ln /other/2 /out/hard && ln -s d /out/ln && ln -s /other /out/abs && ln -s /out /entry\n" +
			"FROM IMAGE\nRUN mkdir -p /in/d && echo old > /in/d/1 && echo old > /in/passwd\nCOPY --from=s /out /in/\nCOPY --from=s /entry/d /by-link/\nCOPY --from=s /out/l*/ /out/h* /pattern/\nCOPY --from=s /out/abs/2 /file\nCOPY --from=IMAGE /etc/pass* /in/\nCOPY a /b\n",
	} {
		t.Run(title, func(t *testing.T) {
			each(t, func(t *testing.T, l *lab) {
				repo := l.must("team/cache:x").Repository
				build := func(dir, code string, cache builder.Cache) kaniko.Result {
					l.log.Reset()
					o := l.options()
					o.CacheDir = dir
					res, err := kaniko.New(o).BuildTo(t.Context(), kaniko.Source{
						Dockerfile: []byte(strings.ReplaceAll(dockerfile, "IMAGE", l.base)), Cache: cache,
						Context: fstest.MapFS{"a": text(code), "d/b": text("b"), "a.tar": {Data: tarOf("one", code)}},
					}, []name.Tag{l.must("team/app:1")})
					if err != nil {
						t.Fatalf("%v\n%s", err, l.log)
					}
					return res
				}
				cold := build("", "new", builder.Cache{})
				dir := t.TempDir()
				both := builder.Cache{Read: []name.Repository{repo}, Write: &repo}
				build(dir, "other", both)
				for what, warm := range map[string]kaniko.Result{"elsewhere": build("", "new", builder.Cache{Read: both.Read}), "here": build(dir, "new", both)} {
					if warm.Digest != cold.Digest || warm.Reused {
						t.Errorf("warm %s: %+v, cold %s\n%s", what, warm, cold.Digest, l.log)
					}
				}
				if found, _ := filepath.Glob(filepath.Join(dir, "tree", "layer-*", "app", "unneeded")); len(found) > 0 {
					t.Errorf("unpacked: %s", found)
				}
			})
		})
	}
}
