package image_test

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/lab/internal/image"
)

func TestPushedImageIsValidAndTheSameTwice(t *testing.T) {
	srv := httptest.NewServer(registry.New())
	t.Cleanup(srv.Close)
	bin := filepath.Join(t.TempDir(), "prog")
	if err := os.WriteFile(bin, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(srv.URL, "http://")
	spec := image.Spec{Files: []image.File{{Source: bin, Path: "/app/prog"}}, Env: []string{"A=b"}}
	ref, err := image.Push(t.Context(), host+"/x/prog:1", spec)
	if err != nil {
		t.Fatal(err)
	}
	again, err := image.Push(t.Context(), host+"/x/prog:2", spec)
	if err != nil {
		t.Fatal(err)
	}
	if ref != again {
		t.Errorf("two images of one file: %s, %s", ref, again)
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := cf.Config.Entrypoint; len(got) != 1 || got[0] != "/app/prog" {
		t.Errorf("entry point %q, want /app/prog", got)
	}
	if cf.Config.User != "65532:65532" {
		t.Errorf("user %q", cf.Config.User)
	}
}

func TestPushRefuses(t *testing.T) {
	for name, s := range map[string]image.Spec{
		"no file":       {},
		"missing file":  {Files: []image.File{{Source: "/nonexistent", Path: "/x"}}},
		"relative path": {Files: []image.File{{Source: "/etc/hostname", Path: "x"}}},
	} {
		if _, err := image.Make(s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
