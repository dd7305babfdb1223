package kaniko_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

const hidden = "the-hidden-value"

// mounting builds with secrets, as key.
func (l *lab) mounting(key, dockerfile string, files fstest.MapFS, secrets map[string]string) (builder.Image, error) {
	o := l.options()
	o.Secret = func(n string) (builder.Secret, error) {
		if v, ok := secrets[n]; ok {
			return builder.Secret{Value: []byte(v)}, nil
		}
		return builder.Secret{}, builder.ErrNoSecret
	}
	req := l.request(key, strings.NewReplacer("FROM BASE", "FROM "+l.base, "from=BASE", "from="+l.base).Replace(dockerfile), files)
	req.Secrets = slices.Sorted(maps.Keys(secrets))
	return kaniko.New(o).Build(l.t.Context(), req)
}

func (l *lab) mustMount(key, dockerfile string, files fstest.MapFS, secrets map[string]string) v1.Image {
	l.t.Helper()
	res, err := l.mounting(key, dockerfile, files, secrets)
	if err != nil {
		l.t.Fatalf("%v\n%s", err, l.log)
	}
	img, err := remote.Image(res.Ref)
	if err != nil {
		l.t.Fatal(err)
	}
	return img
}

// made are the names and contents of what lies above the base.
func made(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	out := map[string]string{}
	for n, h := range newFiles(t, img, 1) {
		out[n] = h.Linkname
	}
	return out
}

func sameFiles(t *testing.T, img v1.Image, want map[string]string) {
	t.Helper()
	if got := made(t, img); !maps.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestMountedSecrets(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		const dockerfile = `FROM BASE
RUN --mount=type=secret,id=T wc -c < /run/secrets/T > /count
RUN --mount=type=secret,id=T,target=/root/.npmrc,mode=0440 --mount=type=secret,id=T,env=TOKEN stat -c %a /root/.npmrc > /mode && test "$TOKEN" = "$(cat /root/.npmrc)" && touch /same
RUN --mount=type=secret,id=none test ! -e /run/secrets/none && test -z "$TOKEN" && test ! -e /root/.npmrc && test ! -e /run/secrets/T && touch /gone
RUN --mount=type=secret,id=T,required=true (echo x > /run/secrets/T) 2>/dev/null || touch /read-only
`
		secrets := map[string]string{"T": hidden}
		img := l.mustMount("k1", dockerfile, nil, secrets)
		sameFiles(t, img, map[string]string{"/count": "16\n", "/mode": "440\n", "/same": "", "/gone": "", "/read-only": ""})
		raw, err := img.RawConfigFile()
		if err != nil || bytes.Contains(raw, []byte(hidden)) {
			t.Errorf("the configuration: %s, %v", raw, err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range layers[1:] {
			r, err := layer.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			r.Close()
			if err != nil || bytes.Contains(data, []byte(hidden)) {
				t.Errorf("a layer holds the secret, or %v", err)
			}
		}
		if strings.Contains(l.log.String(), hidden) {
			t.Error("the log holds the secret")
		}

		// Another value is no other input. That there is none is one.
		l.mustMount("k2", dockerfile, nil, map[string]string{"T": "another-value-of-it"})
		if !strings.Contains(l.log.String(), "4/4] RUN --mount=type=secret,id=T,required=true") || strings.Count(l.log.String(), "found in the cache") != 1 {
			t.Errorf("it ran again:\n%s", l.log)
		}
		_, err = l.mounting("k3", dockerfile, nil, nil)
		var input *builder.InputError
		if !errors.As(err, &input) || !strings.Contains(err.Error(), "line 5, column 5: RUN --mount=type=secret: this build was not given T") {
			t.Errorf("without it: %v", err)
		}
		img = l.mustMount("k4", "FROM BASE\nRUN --mount=type=secret,id=T test -e /run/secrets/T || touch /without\n", nil, nil)
		sameFiles(t, img, map[string]string{"/without": ""})

		// What writes it down is refused.
		_, err = l.mounting("k5", "FROM BASE\n\nRUN --mount=type=secret,id=T mkdir /d && cp /run/secrets/T /d/t\n", nil, secrets)
		if !errors.As(err, &input) || !strings.Contains(err.Error(), "line 3: RUN") || !strings.Contains(err.Error(), "/d/t holds the value of the secret T") {
			t.Errorf("a layer with it: %v", err)
		}
	})
}

func TestMountsLeaveNothing(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		files := fstest.MapFS{"src/a": text("a"), "src/d/b": text("b"), "one": text("1"), "link": symlink("src/d")}
		img := l.mustMount("k", `FROM BASE AS other
RUN mkdir -p /out/real && echo o > /out/real/o && ln -s /out/real /abs
FROM BASE
WORKDIR /w
RUN mkdir /full && echo f > /full/f
RUN --mount=type=tmpfs,target=/full --mount=type=tmpfs,target=t touch /full/g /w/t/x && cp -r /full /w/was
RUN --mount=target=/deep/er/ctx,source=src --mount=target=/one,source=one --mount=target=/l,source=link cat /deep/er/ctx/a /one /l/b > /deep/er/x
RUN --mount=from=other,source=/abs,target=/o --mount=from=BASE,source=/etc/passwd,target=/p --mount=from=other,target=/all cat /o/o /all/out/real/o > /w/o && test "$(cat /p)" = "$(cat /etc/passwd)"
RUN --mount=type=bind,target=/c (echo x > /c/one) 2>/dev/null || cat /full/f > /w/f
`, files, nil)
		sameFiles(t, img, map[string]string{
			"/w": "", "/full": "", "/full/f": "f\n", "/w/was": "", "/w/was/g": "",
			"/deep": "", "/deep/er": "", "/deep/er/x": "a1b", "/w/o": "o\no\n", "/w/f": "f\n",
		})

		// What a bind shows decides the result; what it does not show doesn't.
		const binds = "FROM BASE AS from\nCOPY one /in/one\nFROM BASE\nRUN --mount=target=/s,source=src cat /s/a > /a\nRUN --mount=from=from,source=/in,target=/i cat /i/one > /one\n"
		sameFiles(t, l.mustMount("b1", binds, files, nil), map[string]string{"/a": "a", "/one": "1"})
		before := len(l.log.String())
		sameFiles(t, l.mustMount("b2", binds+"LABEL x=y\n", fstest.MapFS{"src/a": text("a"), "src/d/b": text("b"), "one": text("1"), "more": text("m")}, nil), map[string]string{"/a": "a", "/one": "1"})
		if log := l.log.String()[before:]; !strings.Contains(log, "2/3] RUN --mount=from=from,source=/in,target=/i cat /i/one > /one: found in the cache") {
			t.Errorf("an unrelated file made it run again:\n%s", log)
		}
		sameFiles(t, l.mustMount("b3", binds, fstest.MapFS{"src/a": text("a2"), "one": text("1")}, nil), map[string]string{"/a": "a2", "/one": "1"})
		sameFiles(t, l.mustMount("b4", binds, fstest.MapFS{"src/a": text("a2"), "one": text("2")}, nil), map[string]string{"/a": "a2", "/one": "2"})
		_, err := l.mounting("b5", "FROM BASE\nRUN --mount=from=BASE,source=/none,target=/x true\n", nil, nil)
		var input *builder.InputError
		if !errors.As(err, &input) || !strings.Contains(err.Error(), "line 2: RUN --mount=type=bind: its source is not there") {
			t.Errorf("got %v", err)
		}
	})
}

func TestMountedCaches(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		n := 0
		add := func(refs string, mount string) string {
			t.Helper()
			n++
			o := l.options()
			repo := must(name.NewRepository(l.host + "/team/app/" + refs))
			src := kaniko.Source{Dockerfile: []byte("FROM " + l.base + "\nRUN --mount=type=cache," + mount + " echo " + decimal(n) + " >> /c/list && cp /c/list /list && stat -c '%a %u' /c >> /list\n")}
			src.Cache.Write = &repo
			dest := must(name.NewTag(l.host + "/team/app/x:" + decimal(n)))
			if _, err := kaniko.New(o).BuildTo(t.Context(), src, []name.Tag{dest}); err != nil {
				t.Fatalf("%v\n%s", err, l.log)
			}
			files := made(t, must(remote.Image(dest)))
			if len(files) != 1 {
				t.Errorf("the layer has %q", slices.Sorted(maps.Keys(files)))
			}
			return files["/list"]
		}
		for _, c := range []struct{ refs, mount, want string }{
			{"cache", "target=/c", "1\n755 0\n"},
			{"cache", "target=/c,sharing=locked", "1\n2\n755 0\n"},
			{"cache", "id=/c,target=/c,sharing=private", "1\n2\n3\n755 0\n"},
			{"cache", "id=other,target=/c,mode=0700", "4\n700 0\n"},
			// What jobs of unprotected refs leave, protected ones don't see.
			{"cache-unprotected", "target=/c", "5\n755 0\n"},
		} {
			if got := add(c.refs, c.mount); got != c.want {
				t.Errorf("%s %s: %q, want %q", c.refs, c.mount, got, c.want)
			}
		}
		if l.mode == "root" {
			if got := add("cache", "target=/c,id=o,uid=65532,gid=65532"); got != "6\n755 65532\n" {
				t.Errorf("%q", got)
			}
		} else {
			_, err := l.mounting("k", "FROM BASE\nRUN --mount=type=cache,target=/c,uid=65532 true\n", nil, nil)
			if err == nil || !strings.Contains(err.Error(), "line 2: RUN --mount=type=cache: another uid or gid than 0 is not possible without root") {
				t.Errorf("got %v", err)
			}
		}
		// A full cache folder loses what nobody uses.
		o := l.options()
		o.CacheBytes = 1
		if _, err := kaniko.New(o).BuildTo(t.Context(), kaniko.Source{Dockerfile: []byte("FROM " + l.base + "\nRUN true\n")}, []name.Tag{must(name.NewTag(l.host + "/x:1"))}); err != nil {
			t.Fatal(err)
		}
		if n++; true {
			if got := add("cache", "target=/c"); !strings.HasPrefix(got, decimal(n)+"\n") {
				t.Errorf("it is still there: %q", got)
			}
		}
	})
}

// The program takes secrets as docker build does.
func TestSecretFlags(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		if l.mode != "root" && os.Geteuid() == 0 {
			t.Skip("the program takes the best mode that there is")
		}
		dir := t.TempDir()
		for file, text := range map[string]string{
			"Dockerfile": "FROM " + l.base + "\nRUN --mount=type=secret,id=T --mount=type=secret,id=f cat /run/secrets/T /run/secrets/f && wc -c /run/secrets/T /run/secrets/f > /count\n",
			"file":       "of a file",
		} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		dest := l.must("team/secrets:1")
		cmd := exec.CommandContext(t.Context(), l.executor, "--context", dir, "--dockerfile", "Dockerfile", "--destination", dest.String(),
			"--secret", "id=T,env=TOKEN_OF_MINE", "--secret", "id=f,src="+dir+"/file")
		cmd.Env = []string{"TMPDIR=" + t.TempDir(), "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "TOKEN_OF_MINE=" + hidden}
		out, err := cmd.CombinedOutput()
		if err != nil || bytes.Contains(out, []byte(hidden)) || bytes.Contains(out, []byte("of a file")) || !bytes.Contains(out, []byte("[MASKED]")) {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := made(t, must(remote.Image(dest)))["/count"]; !strings.Contains(got, "16 /run/secrets/T") || !strings.Contains(got, "9 /run/secrets/f") {
			t.Errorf("it saw %q", got)
		}
	})
}
