package builder_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func someSecrets(name string) (builder.Secret, error) {
	switch name {
	case "VALUE":
		return builder.Secret{Value: []byte("the-secret-value")}, nil
	case "file":
		return builder.Secret{Value: []byte("of the\nsecret file\n"), File: true}, nil
	}
	return builder.Secret{}, builder.ErrNoSecret
}

// A command has its secrets as variables and as files in memory, and other
// commands have none.
func TestCommandsWithSecrets(t *testing.T) {
	image := buildImage(t, registrytest.New(t), nil)
	const script = `echo "$VALUE"; cat "$file"; test -e "$HOME/secrets" && echo in the home; `
	inEachMode(t, func(t *testing.T, mode sandbox.Mode) {
		tmp, dir := t.TempDir(), t.TempDir()
		e := engine(t, builder.Options{Mode: mode, TreeDir: t.TempDir(), TempDir: tmp, Secret: someSecrets})
		var out bytes.Buffer
		c := builder.Command{Image: image, Dir: dir, Stdout: &out, Stderr: &out, Secrets: []string{"VALUE", "file"},
			Argv: []string{"sh", "-c", script + `cat /run/secrets/VALUE; echo; echo "$file"`}}
		if _, err := e.Run(t.Context(), c); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		if want := "the-secret-value\nof the\nsecret file\nthe-secret-value\n/run/secrets/file\n"; out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
		out.Reset()
		c.Secrets = nil
		if _, err := e.Run(t.Context(), c); err != nil || !strings.Contains(out.String(), "/run/secrets/VALUE: No such file") || strings.Contains(out.String(), "secret-value") {
			t.Errorf("without: %v %s", err, out.String())
		}
		c.Secrets = []string{"OTHER"}
		if _, err := e.Run(t.Context(), c); !errors.Is(err, builder.ErrNoSecret) || !strings.Contains(err.Error(), "OTHER") {
			t.Errorf("one that is not there: %v", err)
		}
	})
	t.Run("none", func(t *testing.T) {
		tmp := t.TempDir()
		e := engine(t, builder.Options{Mode: sandbox.None, TempDir: tmp, Env: []string{"PATH=" + os.Getenv("PATH")}, Secret: someSecrets})
		var out bytes.Buffer
		ran, err := e.Run(t.Context(), builder.Command{Image: image, Dir: t.TempDir(), Stdout: &out, Stderr: &out, Secrets: []string{"VALUE", "file"},
			Argv: []string{"sh", "-c", script + `stat -c %a "$file" "${file%/*}"`}})
		if want := "the-secret-value\nof the\nsecret file\nin the home\n400\n700\n"; err != nil || out.String() != want || ran.Sandbox != builder.SandboxNone {
			t.Errorf("%+v, %v, got %q, want %q", ran, err, out.String(), want)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// An installer may use secrets. What it makes of them has a key of its own,
// must not hold them, and is not offered to other projects.
func TestInstallersWithSecrets(t *testing.T) {
	w := newWorld(t)
	w.npm.Add(npmtest.Package{Name: "native", Version: "1.0.0", Manifest: map[string]any{"scripts": map[string]string{"install": "make"}}})
	manifest := `{"name":"app","version":"1.0.0","dependencies":{"native":"1.0.0"}}`
	lock := w.npm.Lock(manifest)
	var leak bool
	shared := must(name.NewRepository(w.reg.Host + "/shared/deps"))
	o := builder.Options{CacheRepo: shared, CacheWrite: true, TempDir: t.TempDir(), Secret: someSecrets}
	o.Install = func(ctx context.Context, c builder.Command) (builder.Ran, error) {
		text := "none"
		if leak {
			text = "token = the-secret-value"
		} else if len(c.Secrets) > 0 {
			text = strings.Join(c.Secrets, " ")
		}
		dir := filepath.Join(c.Dir, "node_modules", "a")
		return builder.Ran{Sandbox: builder.SandboxNone}, errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "seen"), []byte(text), 0o644))
	}
	e := engine(t, o)
	build := func(key string, secrets ...string) (builder.Image, error) {
		req := w.request(t, key, "one")
		req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(manifest)}, "package-lock.json": {Data: []byte(lock)}}
		req.Secrets = secrets
		return e.Build(t.Context(), req)
	}
	seen := func(img builder.Image, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		pulled, err := remote.Image(img.Ref)
		if err != nil {
			t.Fatal(err)
		}
		return files(t, pulled)["app/node_modules/a/seen"]
	}
	if got := seen(build("k1", "VALUE")); got != "VALUE" {
		t.Errorf("it saw %q", got)
	}
	if tags, err := remote.List(o.CacheRepo); err == nil && len(tags) > 0 {
		t.Errorf("other projects are offered %v", tags)
	}
	if got := seen(build("k2")); got != "none" {
		t.Errorf("without secrets: %q", got)
	}
	if tags, err := remote.List(o.CacheRepo); err != nil || len(tags) != 1 {
		t.Errorf("the shared index has %v, %v", tags, err)
	}
	leak = true
	_, err := build("k3", "VALUE", "file")
	var input *builder.InputError
	if !errors.As(err, &input) || !strings.Contains(err.Error(), "node_modules/a/seen holds the value of the secret VALUE") {
		t.Errorf("got %v", err)
	}
}
