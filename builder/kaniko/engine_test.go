package kaniko_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

const appDockerfile = `FROM BASE
# a comment
ARG GREETING=hello
ENV PLACE=/app COLOUR=blue
WORKDIR $PLACE
COPY package.txt ./
COPY src ./src
RUN echo "$GREETING $COLOUR $FROM_BASE" > out.txt && rm /etc/doomed && mkdir -p /var/run/mine && echo kept > /var/run/mine/file
RUN ["/usr/bin/touch", "exec-form"]
LABEL team=a
EXPOSE 8080
USER 65532:65532
CMD ["/usr/bin/cat", "out.txt"]
`

func appFiles() fstest.MapFS {
	return fstest.MapFS{
		"package.txt":     text("1.0"),
		"src/main.txt":    text("main"),
		"src/run.sh":      {Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		"src/中文 名.txt":    text("non-ascii"),
		"src/secret.pem":  text("ignored"),
		"unused/file.txt": text("not copied"),
		".dockerignore":   text("**/*.pem\n"),
	}
}

func TestBuild(t *testing.T) {
	digests := map[string]bool{}
	each(t, func(t *testing.T, l *lab) {
		img, res := l.mustBuild("key-1", appDockerfile, appFiles())
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		c := cfg.Config
		if c.WorkingDir != "/app" || c.User != "65532:65532" || !slices.Equal(c.Cmd, []string{"/usr/bin/cat", "out.txt"}) || c.Labels["team"] != "a" || c.Labels["base"] != "label" {
			t.Errorf("configuration %+v", c)
		}
		for _, want := range []string{"FROM_BASE=yes", "PLACE=/app", "COLOUR=blue"} {
			if !slices.Contains(c.Env, want) {
				t.Errorf("environment %q lacks %s", c.Env, want)
			}
		}
		files := newFiles(t, img, 1)
		for name, want := range map[string]string{
			"/app/package.txt": "1.0", "/app/src/main.txt": "main", "/app/src/run.sh": "#!/bin/sh\n", "/app/src/中文 名.txt": "non-ascii",
			"/app/out.txt": "hello blue yes\n", "/app/exec-form": "", "/etc/.wh.doomed": "", "/run/mine/file": "kept\n",
		} {
			h := files[name]
			if h == nil {
				t.Errorf("%s is missing", name)
				continue
			}
			if h.Linkname != want || h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 {
				t.Errorf("%s: %q, owner %d:%d, time %v; want %q, 0:0, 0", name, h.Linkname, h.Uid, h.Gid, h.ModTime, want)
			}
		}
		if files["/app/src/run.sh"].Mode != 0o755 || files["/app/src/main.txt"].Mode != 0o644 {
			t.Errorf("modes %o and %o", files["/app/src/run.sh"].Mode, files["/app/src/main.txt"].Mode)
		}
		// Nothing of the sandbox, of the base or of the ignored files.
		for name := range files {
			for _, no := range []string{"/kaniko", "/dev", "/proc", "/etc/resolv.conf", "/etc/hosts", "/etc/shadow", "/tmp", "/usr", "/root", "/app/src/secret.pem", "/app/unused"} {
				if name == no || strings.HasPrefix(name, no+"/") {
					t.Errorf("%s is in a layer", name)
				}
			}
		}
		if res.Engine != "kaniko" || res.Reused || res.Sandbox != string(l.mode) || res.Requests == 0 || res.Uploaded == 0 {
			t.Errorf("result %+v", res)
		}
		if len(res.Layers) < 3 || res.Layers[0].Title != "base" || !res.Layers[0].Reused || !strings.HasPrefix(res.Layers[1].Title, "COPY package.txt") && !strings.HasPrefix(res.Layers[1].Title, "WORKDIR") {
			t.Errorf("layers %+v", res.Layers)
		}
		runs(t, l, img)

		// The same key again: one request, nothing built.
		again, err := l.build("key-1", appDockerfile, appFiles())
		if err != nil || !again.Reused || again.Ref != res.Ref || again.Uploaded != 0 {
			t.Errorf("again: %+v, %v", again, err)
		}
		// The registry's port is not in the image, so the modes can be compared.
		if digests[res.Ref.DigestStr()] = true; len(digests) > 1 {
			t.Errorf("the modes give different images: %v", slices.Collect(maps.Keys(digests)))
		}
		// The same input under another key: the same image, to the byte.
		_, other := l.mustBuild("key-2", appDockerfile, appFiles())
		if other.Ref != res.Ref {
			t.Errorf("two builds gave %s and %s", res.Ref, other.Ref)
		}
	})
}

// runs starts the image as its configuration says.
func runs(t *testing.T, l *lab, img v1.Image) {
	t.Helper()
	root := t.TempDir()
	r := mutate.Extract(img)
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), "tar", "-x", "--no-same-owner", "-C", root)
	cmd.Stdin = r
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("needs tar: %v %s", err, out)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: l.mode, Root: root, UID: 65532, GID: 65532, Argv: cfg.Config.Cmd, Env: cfg.Config.Env, Dir: cfg.Config.WorkingDir, Stdout: &out})
	if err == nil {
		err = p.Wait()
	}
	if err != nil || out.String() != "hello blue yes\n" {
		t.Errorf("the image's command: %q, %v", out.String(), err)
	}
}

// TestUnprivileged builds once more as an ordinary user, as a job container
// without root does.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user; the other tests run as this user already")
	}
	path := executorPath(t)
	tmp := t.TempDir()
	for _, dir := range []string{tmp, filepath.Dir(tmp)} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^(TestBuild|TestScratch)$", "-test.v")
	cmd.Env = []string{"TMPDIR=" + tmp, "PATH=" + os.Getenv("PATH"), givenExecutor + "=" + path}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

func TestScratch(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		img, res := l.mustBuild("k", "FROM scratch\nCOPY --chmod=755 hello /bin/hello\nADD data/ /data/\nENTRYPOINT [\"/bin/hello\"]\n", fstest.MapFS{"hello": text("binary"), "data/a": text("a")})
		files := newFiles(t, img, 0)
		if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, []string{"/bin", "/bin/hello", "/data", "/data/a"}) {
			t.Errorf("files %q", got)
		}
		if files["/bin/hello"].Mode != 0o755 {
			t.Errorf("mode %o", files["/bin/hello"].Mode)
		}
		cfg, err := img.ConfigFile()
		if err != nil || !slices.Equal(cfg.Config.Entrypoint, []string{"/bin/hello"}) || cfg.OS != "linux" {
			t.Errorf("configuration %+v, %v", cfg, err)
		}
		if len(res.Layers) != 2 {
			t.Errorf("layers %+v", res.Layers)
		}
	})
}

func TestFailingRun(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		_, err := l.build("k", "FROM BASE\nRUN echo about to fail >&2 && exit 42\n", nil)
		var input *builder.InputError
		if !errors.As(err, &input) || !strings.Contains(err.Error(), "RUN echo about to fail") || !strings.Contains(err.Error(), "exited with code 42") {
			t.Errorf("got %v", err)
		}
		if !strings.Contains(l.log.String(), "about to fail\n") {
			t.Errorf("the command's output is not in the log:\n%s", l.log)
		}
		for _, line := range l.requests.lines {
			if strings.HasPrefix(line, "PUT /v2/team/app/manifests/") {
				t.Errorf("something was tagged: %s", line)
			}
		}
	})
}

// A RUN finds no credentials, no environment and no files of the job, and no
// process but its own.
func TestRunSeesNothingOfTheJob(t *testing.T) {
	t.Setenv("CI_REGISTRY_PASSWORD", "hunter2-password")
	t.Setenv("CI_JOB_TOKEN", "token-hunter2")
	home := t.TempDir()
	t.Setenv("DOCKER_CONFIG", home)
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(`{"auths":{"registry.example":{"auth":"aHVudGVyMjpodW50ZXIy"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, l *lab) {
		img, _ := l.mustBuild("k", `FROM BASE
RUN env > /seen; cat /proc/*/environ | tr '\0' '\n' >> /seen; cat /kaniko/.docker/config.json >> /seen 2>/dev/null; ls -R /kaniko >> /seen; ls -l /proc/self/fd >> /seen; cat `+home+`/config.json >> /seen 2>/dev/null; cat /kaniko/guard /proc/self/status >> /seen; id -u >> /seen
`, fstest.MapFS{"a": text("a")})
		seen := newFiles(t, img, 1)["/seen"].Linkname
		for _, no := range []string{"hunter2", "aHVudGVy", "CI_", "GOPATH", "pipe:", "CapEff:\t000001ff"} {
			for line := range strings.Lines(seen) {
				// The three standard descriptors are pipes to the log.
				if strings.Contains(line, no) && !(no == "pipe:" && regexp.MustCompile(` [0-2] -> pipe:`).MatchString(line)) {
					t.Errorf("a RUN sees %q in %q", no, line)
				}
			}
		}
		if !strings.HasSuffix(seen, "\n0\n") {
			t.Errorf("RUN is not root inside: %q", seen[max(0, len(seen)-20):])
		}
	})
}

// kaniko's cache keys hold no file names: after a rename it would use the old
// layer.
func TestRenameIsAnotherBuild(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		cache, err := name.NewRepository(l.host + "/team/cache")
		if err != nil {
			t.Fatal(err)
		}
		dest, err := name.NewTag(l.host + "/team/app:1")
		if err != nil {
			t.Fatal(err)
		}
		build := func(files fstest.MapFS) (kaniko.Result, string) {
			t.Helper()
			res, err := l.engine().BuildTo(t.Context(), kaniko.Source{
				Dockerfile: []byte("FROM " + l.base + "\nCOPY dir /d\nRUN ls /d > /list\n"), Context: files,
				Cache: builder.Cache{Read: []name.Repository{cache}, Write: &cache},
			}, []name.Tag{dest})
			if err != nil {
				t.Fatalf("%v\n%s", err, l.log)
			}
			img, err := remote.Image(dest)
			if err != nil {
				t.Fatal(err)
			}
			if d, _ := img.Digest(); d != res.Digest {
				t.Errorf("the tag is at %s, the result says %s", d, res.Digest)
			}
			return res, newFiles(t, img, 1)["/list"].Linkname
		}
		first, list := build(fstest.MapFS{"dir/one": text("same")})
		if first.Reused || list != "one\n" {
			t.Errorf("first: %+v %q", first, list)
		}
		if renamed, list := build(fstest.MapFS{"dir/two": text("same")}); renamed.Reused || list != "two\n" {
			t.Errorf("renamed: %+v %q", renamed, list)
		}
		if again, list := build(fstest.MapFS{"dir/one": text("same")}); !again.Reused || list != "one\n" || again.Digest != first.Digest {
			t.Errorf("again: %+v %q", again, list)
		}
	})
}

// Rows of the quirk table that come out right; the refused ones are in
// dockerfile_test.go.
func TestQuirks(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		img, _ := l.mustBuild("k", `FROM BASE
WORKDIR /workspace
COPY dir /data/dir
RUN echo x > inws.txt; ln /data/dir/a /data/hard; chmod 4755 /data/hard; echo ü > "/data/ünï.txt"; (sleep 1000 &) ; ln -s /etc/shadow /data/link
COPY over /data/
RUN mkfifo /tmp/p && rm /tmp/p && rm -r /data/dir/sub
`, fstest.MapFS{"dir/a": text("a"), "dir/sub/b": text("b"), "dir/rel": {Data: []byte("a"), Mode: os.ModeSymlink | 0o777}, "over/c": text("c")})
		files := newFiles(t, img, 1)
		if h := files["/workspace/inws.txt"]; h == nil || h.Linkname != "x\n" {
			t.Errorf("a file in /workspace: %+v", h)
		}
		if h := files["/data/hard"]; h == nil || h.Mode != 0o4755 {
			t.Errorf("set-user-ID and hard link: %+v", h)
		}
		if files["/data/dir/a"].Typeflag != tar.TypeLink && files["/data/hard"].Typeflag != tar.TypeLink {
			t.Errorf("the hard link became two files")
		}
		if h := files["/data/dir/rel"]; h == nil || h.Typeflag != tar.TypeSymlink || h.Linkname != "a" {
			t.Errorf("link inside: %+v", h)
		}
		if h := files["/data/link"]; h == nil || h.Linkname != "/etc/shadow" {
			t.Errorf("link made by RUN: %+v", h)
		}
		if files["/etc/shadow"] != nil {
			t.Error("the link's target was added to the layer again")
		}
		if files["/data/ünï.txt"] == nil || files["/data/c"] == nil {
			t.Error("a file is missing")
		}
		if files["/data/dir/.wh.sub"] == nil {
			t.Errorf("the removal is missing: %q", slices.Sorted(maps.Keys(files)))
		}
	})
}

// A RUN may write to the folder that the parent reads the result from.
func TestHostileResult(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		secret := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(secret, []byte("of the host"), 0o644); err != nil {
			t.Fatal(err)
		}
		for what, dockerfile := range map[string]string{
			"layer":   "FROM BASE\nRUN ln -s %[1]s /kaniko/out/1.tar\nCOPY a /a\n",
			"outcome": "FROM BASE\nRUN rm -f /kaniko/out/*; ln -s %[1]s /kaniko/out/outcome.json\n",
		} {
			if img, err := l.build(what, fmt.Sprintf(dockerfile, secret), fstest.MapFS{"a": text("a")}); err == nil {
				t.Errorf("%s: a result through a link was accepted: %s", what, img.Ref)
			}
			if b, _ := os.ReadFile(secret); string(b) != "of the host" {
				t.Errorf("%s: a file of the host was overwritten: %q", what, b)
			}
		}
	})
}

// A cancelled build ends at once, and leaves nothing on disk.
func TestCancel(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		reason := errors.New("the job was cancelled")
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		tmp := t.TempDir()
		e := kaniko.New(kaniko.Options{
			Executor: l.executor, TmpDir: tmp, Mode: l.mode,
			Log: writerFunc(func(p []byte) { // kaniko says what it runs before it does
				if bytes.Contains(p, []byte("at the sleep")) {
					cancel(reason)
				}
			}),
		})
		dest, err := name.NewTag(l.host + "/team/app:1")
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.BuildTo(ctx, kaniko.Source{Dockerfile: []byte("FROM " + l.base + "\nRUN echo at the; echo at the sleep; sleep 1000\n")}, []name.Tag{dest})
		if !errors.Is(err, reason) {
			t.Errorf("got %v, want the cause", err)
		}
		if left, _ := os.ReadDir(tmp); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// Without the rights, the error says which; what needs no sandbox still works.
func TestForbidden(t *testing.T) {
	host, _ := newRegistry(t)
	dest, err := name.NewTag(host + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	e := kaniko.New(kaniko.Options{Executor: "/nowhere", Mode: sandbox.None})
	if _, err := e.BuildTo(t.Context(), kaniko.Source{Dockerfile: []byte("FROM scratch\n")}, []name.Tag{dest}); !errors.Is(err, sandbox.ErrForbidden) {
		t.Errorf("got %v", err)
	}
}

func TestRegistryTroubles(t *testing.T) {
	host, l := newRegistry(t)
	repo, err := name.NewRepository(host + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		code  int
		check func(err error) bool
	}{
		{"down", 503, func(err error) bool {
			var u *builder.Unavailable
			return errors.As(err, &u) && u.Attempts == 2 && strings.Contains(err.Error(), host)
		}},
		{"denied", 403, func(err error) bool {
			var t *transport.Error
			var u *builder.Unavailable
			return errors.As(err, &t) && !errors.As(err, &u)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l.set(func(*http.Request) int { return tt.code })
			e := kaniko.New(kaniko.Options{Executor: "/nowhere", Attempts: 2, Delay: time.Millisecond})
			_, err := e.Build(t.Context(), builder.Request{Key: "k", Repository: repo, Dockerfile: &builder.Dockerfile{FS: fstest.MapFS{"D": text("FROM " + host + "/base:1\n")}, Path: "D"}})
			if err == nil || !tt.check(err) {
				t.Errorf("got %T %v", err, err)
			}
		})
	}
	l.set(nil)
	e := kaniko.New(kaniko.Options{Executor: "/nowhere", Attempts: 1, Delay: time.Millisecond})
	_, err = e.Build(t.Context(), builder.Request{Key: "k", Repository: repo, Dockerfile: &builder.Dockerfile{FS: fstest.MapFS{"D": text("FROM " + host + "/base:1\n")}, Path: "D"}})
	var input *builder.InputError
	if !errors.As(err, &input) || !strings.Contains(err.Error(), "no such image") {
		t.Errorf("missing base: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Build(ctx, builder.Request{Key: "k", Repository: repo, Dockerfile: &builder.Dockerfile{FS: fstest.MapFS{"D": text("FROM scratch\n")}, Path: "D"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// oddNames are file names that have broken archive tools and shells before.
var oddNames = []string{
	"-rf", "--help", "a b", "new\nline", "tab\there", "quote\"'`", "back\\slash", "$(id)", "*", "~", "中文/函数.js",
	"e\u0301.txt" /* NFD */, "\u00e9.txt" /* NFC */, "%2e%2e",
}

// A file arrives under the very bytes of its name: copied as part of a folder,
// written by a RUN, and when the layer comes from the cache.
func TestOddNames(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		files := fstest.MapFS{}
		for _, n := range oddNames {
			files["src/"+n] = text("content of " + n)
		}
		const dockerfile = "FROM BASE\nCOPY src /app/\nCOPY src/ /again/\n" +
			`RUN mkdir /moved && cd /again && for f in ./*; do if [ -f "$f" ]; then cat "$f" > "/moved/$f"; fi; done` + "\n"
		for _, key := range []string{"made", "found"} {
			img, _ := l.mustBuild(key, dockerfile, files)
			got := newFiles(t, img, 1)
			for _, n := range oddNames {
				for _, dir := range []string{"/app/", "/again/", "/moved/"} {
					if dir == "/moved/" && strings.Contains(n, "/") {
						continue // in a folder, which the RUN leaves out
					}
					if h := got[dir+n]; h == nil || h.Linkname != "content of "+n {
						t.Errorf("%s: %q is %+v", key, dir+n, h)
					}
				}
			}
		}
	})
}

// Commands see the machine's proxies and the platform's mirrors. The image
// does not, and it is the same on a machine with others.
func TestMachineVariables(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		build := func(key, proxy string) builder.Image {
			o := l.options()
			o.Env = []string{"HTTP_PROXY=" + proxy, "FROM_BASE=machine"}
			req := l.request(key, "FROM BASE\nENV npm_config_registry=mine\nRUN echo proxy $HTTP_PROXY && echo \"$PIP_INDEX_URL $npm_config_registry $FROM_BASE\" > /seen\n", nil)
			req.Dockerfile.Env = []string{"PIP_INDEX_URL=http://index.example/", "npm_config_registry=theirs"}
			res, err := kaniko.New(o).Build(t.Context(), req)
			if err != nil {
				t.Fatalf("%v\n%s", err, l.log)
			}
			return res
		}
		res := build("k1", "http://one.example")
		if !strings.Contains(l.log.String(), "\nproxy http://one.example\n") {
			t.Errorf("the command sees no proxy:\n%s", l.log)
		}
		img, err := remote.Image(res.Ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := newFiles(t, img, 1)["/seen"]; got == nil || got.Linkname != "http://index.example/ mine yes\n" {
			t.Errorf("it saw %+v", got)
		}
		raw, err := img.RawConfigFile()
		if err != nil || bytes.Contains(raw, []byte("one.example")) || bytes.Contains(raw, []byte("index.example")) {
			t.Errorf("the image has them: %s, %v", raw, err)
		}
		l.log.Reset()
		if other := build("k2", "http://two.example"); other.Ref != res.Ref || strings.Contains(l.log.String(), "two.example") {
			t.Errorf("another proxy made another image, %s and %s, or ran again:\n%s", res.Ref, other.Ref, l.log)
		}
	})
}
