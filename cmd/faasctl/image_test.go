package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/debian"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

func imageRun(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"faasctl", "image"}, args...), func(k string) string { return env[k] }, &out, &errs)
	return code, out.String(), errs.String()
}

func TestImageUsage(t *testing.T) {
	env := map[string]string{"HOME": t.TempDir()}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"build", 2, "name the images to build, or all"},
		{"build all base/nodejs18 --recipes ../../dockerfiles", 2, "all stands alone"},
		{"build base/nodejs16 --recipes ../../dockerfiles", 2, "use one of: base/"},
		{"build all --recipes /nowhere", 78, "read the image recipes in /nowhere"},
		{"push", 2, "name the images to push"},
		{"push base/nodejs18", 2, "either --to or --registry"},
		{"push a b --to 127.0.0.1:1/x", 2, "--registry takes many"},
		{"push base/nodejs18 --to UPPER/x!", 2, "repository"},
		{"push base/nodejs18 --to 127.0.0.1:1/x", 77, "run: faasctl image build base/nodejs18"},
		{"push ../../etc --to 127.0.0.1:1/x", 77, "not an image name"},
	} {
		if code, out, errs := imageRun(t, env, strings.Fields(c.args)...); code != c.code || out != "" || !strings.Contains(errs, c.says) {
			t.Errorf("image %s: exit %d, stdout %q, stderr\n%s\nwant exit %d with %q", c.args, code, out, errs, c.code, c.says)
		}
	}
	if code, _, errs := imageRun(t, nil, "push", "a", "--to", "127.0.0.1:1/x"); code != 2 || !strings.Contains(errs, "name a folder with --cache") {
		t.Errorf("no home: exit %d\n%s", code, errs)
	}
}

func TestImageBuildWithoutApt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	code, _, errs := imageRun(t, map[string]string{"XDG_CACHE_HOME": t.TempDir()}, "build", "base/nodejs18", "--recipes", "../../dockerfiles")
	want := `error: make the image base/nodejs18
  why:  debian: image base/nodejs18: debian: this machine has no apt: apt-get is not in PATH
  next: run this on Debian or Ubuntu, in a container of one, or use images that another machine has pushed
  who:  platform    code: E1103
`
	if code != 77 || errs != want {
		t.Errorf("exit %d, stderr\n%s\nwant 77\n%s", code, errs, want)
	}
}

// anImage puts an image into dir as a build leaves it.
func anImage(t *testing.T, dir, image string) string {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, image)
	p, err := layout.Write(at, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	info, err := json.Marshal(debian.Image{Name: image, Digest: digest.String(), ABI: "x1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "kuroko.json"), info, 0o644); err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func TestImagePush(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	dir := t.TempDir()
	one, two := anImage(t, dir, "base/a1"), anImage(t, dir, "build/a1")
	env := map[string]string{"HOME": t.TempDir()}
	code, out, errs := imageRun(t, env, "push", "base/a1", "--out", dir, "--to", host+"/mine")
	want := fmt.Sprintf(`{"name":"base/a1","ref":"%[1]s/mine@%[2]s","digest":"%[2]s","abi":"x1"}`+"\n", host, one)
	if code != 0 || out != want {
		t.Fatalf("exit %d\n%s\n%s\nwant %s", code, out, errs, want)
	}
	code, out, errs = imageRun(t, env, "push", "base/a1", "build/a1", "--out", dir, "--registry", host+"/team/")
	for _, ref := range []string{host + "/team/base/a1@" + one, host + "/team/build/a1@" + two} {
		if code != 0 || !strings.Contains(out, `"ref":"`+ref+`"`) {
			t.Errorf("exit %d\n%s\n%s\nwant %s", code, out, errs, ref)
		}
		d, err := name.NewDigest(ref)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(d)
		if err == nil {
			err = validate.Image(img)
		}
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestImagePushRefused(t *testing.T) {
	dir := t.TempDir()
	anImage(t, dir, "base/a1")
	for status, want := range map[int]struct {
		code int
		says string
	}{401: {78, "E1303"}, 403: {78, "E1303"}, 500: {75, "E1302"}} {
		if status == 500 && testing.Short() {
			continue // is tried again for some seconds
		}
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2/" {
				w.WriteHeader(status)
			}
		}))
		code, _, errs := imageRun(t, map[string]string{"HOME": t.TempDir()}, "push", "base/a1", "--out", dir, "--to", strings.TrimPrefix(srv.URL, "http://")+"/x")
		if code != want.code || !strings.Contains(errs, want.says) {
			t.Errorf("status %d: exit %d\n%s", status, code, errs)
		}
		srv.Close()
	}
	code, _, errs := imageRun(t, map[string]string{"HOME": t.TempDir()}, "push", "base/a1", "--out", dir, "--to", "127.0.0.1:1/x")
	if code != 75 || !strings.Contains(errs, "127.0.0.1:1") {
		t.Errorf("nobody there: exit %d\n%s", code, errs)
	}
}

func TestImageErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		code usererr.Code
		exit int
	}{
		{fmt.Errorf("x: %w", debian.ErrNoApt), usererr.CodeUnable, 77},
		{fmt.Errorf("x: %w", debian.ErrNoNPM), usererr.CodeUnable, 77},
		{fmt.Errorf("x: %w", debian.ErrUnsafe), usererr.CodeUntrusted, 78},
		{fmt.Errorf("x: %w", debian.ErrUntrusted), usererr.CodeUntrusted, 78},
		{fmt.Errorf("x: %w", debian.ErrConflict), usererr.CodeUnable, 77},
		{fmt.Errorf("x: %w", debian.ErrRecipe), usererr.CodeUnable, 77},
		{fmt.Errorf("x: %w", syscall.ENOSPC), usererr.CodeDiskFull, 75},
		{fmt.Errorf("x: %w", fs.ErrPermission), usererr.CodeUnable, 77},
		{fmt.Errorf("x: %w", fs.ErrNotExist), usererr.CodeUnable, 77},
		{&debian.PackageError{Wanted: []string{"a"}}, usererr.CodeUnable, 77},
		{&debian.ExpectError{Image: "a"}, usererr.CodeUnable, 77},
		{&builder.Unavailable{Op: "x", Host: "y"}, usererr.CodeUnable, 75},
		{errors.New("what?"), usererr.CodeInternal, 70},
	} {
		got := usererr.Of(imageError("base/a1", c.err))
		if got.Code != c.code || usererr.Exit(got) != c.exit {
			t.Errorf("%v: code %s exit %d, want %s %d", c.err, got.Code, usererr.Exit(got), c.code, c.exit)
		}
	}
}
