package debian

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

func npmTarball(t testing.TB, extra ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(tarOf(t, append([]tarEntry{file("package/package.json", "{}"), file("package/bin/npm-cli.js", "npm"),
		program("package/bin/npx-cli.js", "npx"), {name: "package/lib/x.js", body: "x", mode: 0o600}}, extra...)...)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func npmOf(tgz []byte) NPM {
	sum := sha512.Sum512(tgz)
	return NPM{Version: "10.0.0", Integrity: "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}
}

// withNPM puts an npm first in PATH that "fetches" tgz, and gives a builder.
func withNPM(t *testing.T, tgz []byte, script string) *Builder {
	t.Helper()
	b := &Builder{Cache: t.TempDir(), Env: []string{"PATH=" + os.Getenv("PATH")}, Log: func(l string) { t.Log(l) }}
	if err := os.MkdirAll(b.tmp(), 0o755); err != nil {
		t.Fatal(err)
	}
	if script == "" {
		src := filepath.Join(t.TempDir(), "served.tgz")
		if err := os.WriteFile(src, tgz, 0o644); err != nil {
			t.Fatal(err)
		}
		script = `test "$1 $2" = "pack npm@10.0.0" && cp ` + src + ` npm-10.0.0.tgz`
	}
	fakeProgram(t, "npm", script)
	return b
}

func npmLayer(t *testing.T, b *Builder, n NPM) ([]string, error) {
	t.Helper()
	w, err := layer.NewWriter(t.TempDir(), layer.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.writeNPM(t.Context(), n, w); err != nil {
		w.Abort()
		return nil, err
	}
	l, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	names, _ := contents(t, r)
	return names, nil
}

func TestNPMLayer(t *testing.T) {
	tgz := npmTarball(t)
	b := withNPM(t, tgz, "")
	names, err := npmLayer(t, b, npmOf(tgz))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0755 usr/", "0755 usr/bin/", "link usr/bin/npm -> ../lib/node_modules/npm/bin/npm-cli.js", "link usr/bin/npx -> ../lib/node_modules/npm/bin/npx-cli.js",
		"0755 usr/lib/", "0755 usr/lib/node_modules/", "0755 usr/lib/node_modules/npm/", "0755 usr/lib/node_modules/npm/bin/", "0755 usr/lib/node_modules/npm/bin/npm-cli.js",
		"0755 usr/lib/node_modules/npm/bin/npx-cli.js", "0755 usr/lib/node_modules/npm/lib/", "0644 usr/lib/node_modules/npm/lib/x.js", "0644 usr/lib/node_modules/npm/package.json"}
	if !slices.Equal(names, want) {
		t.Errorf("got\n%s", strings.Join(names, "\n"))
	}
	// The tarball is kept; npm is not asked again.
	fakeProgram(t, "npm", "exit 1")
	if _, err := npmLayer(t, b, npmOf(tgz)); err != nil {
		t.Error(err)
	}
}

func TestNPMRefuses(t *testing.T) {
	tgz := npmTarball(t)
	for name, c := range map[string]struct {
		tgz    []byte
		script string
		want   error
		says   string
	}{
		"another tarball": {tgz: npmTarball(t, file("package/evil.js", "x")), want: ErrUnsafe, says: "the recipe says"},
		"traversal":       {tgz: npmTarball(t, file("package/../../x", "x")), want: ErrUnsafe, says: "leaves the image"},
		"link":            {tgz: npmTarball(t, symlink("package/x", "/etc/passwd")), want: ErrUnsafe, says: "package/x"},
		"no package":      {tgz: npmTarball(t, file("top", "x")), want: ErrUnsafe, says: "top"},
		"disk full":       {script: "echo 'npm error code ENOSPC' >&2; exit 1", want: syscall.ENOSPC},
		"not gzip":        {tgz: []byte("<html>"), says: "npm 10.0.0: "},
		"says it did":     {script: "exit 0", says: "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			b := withNPM(t, c.tgz, c.script)
			n := npmOf(c.tgz)
			if name == "another tarball" {
				n = npmOf(tgz)
			}
			_, err := npmLayer(t, b, n)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.says)
			}
		})
	}
}

func TestNPMAway(t *testing.T) {
	for name, script := range map[string]string{
		"fails":      "echo 'npm error code ENOTFOUND http://user:secret@registry.invalid' >&2; exit 1",
		"never ends": "exec sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			b := withNPM(t, nil, script)
			if name == "never ends" {
				b.Limits.NPM = 20 * time.Millisecond
			}
			_, err := npmLayer(t, b, npmOf(nil))
			var away *builder.Unavailable
			if !errors.As(err, &away) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v", err)
			}
		})
	}
	b := withNPM(t, nil, "exit 0")
	t.Setenv("PATH", t.TempDir())
	if _, err := npmLayer(t, b, npmOf(nil)); !errors.Is(err, ErrNoNPM) {
		t.Errorf("got %v", err)
	}
}
