package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// pulled fails the test unless the image is whole and nobody special's, for
// the library that we build with and for a program that shares no line with
// it.
func pulled(t *testing.T, reference string) {
	t.Helper()
	ref, err := name.NewDigest(reference)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err == nil {
		err = validate.Image(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Config.User != "65532:65532" {
		t.Errorf("user %q", cfg.Config.User)
	}
	t.Run("skopeo", func(t *testing.T) { bySkopeo(t, ref, cfg.Config.User) })
}

// bySkopeo copies the image out of the registry, which fails where a byte is
// not what its sum says. The copy's layers are then those that were unpacked
// above.
func bySkopeo(t *testing.T, ref name.Digest, user string) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("needs skopeo: ", err)
	}
	skopeo := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "skopeo", append([]string{"--insecure-policy"}, args...)...)
		out, err := cmd.Output()
		if ee, ok := err.(*exec.ExitError); ok {
			t.Fatalf("skopeo %q: %v\n%s", args, err, ee.Stderr)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	dir := filepath.Join(t.TempDir(), "copy")
	skopeo("copy", "--quiet", "--preserve-digests", "--src-tls-verify=false", "docker://"+ref.String(), "oci:"+dir+":copy")
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	want, err := v1.NewHash(ref.DigestStr())
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(want)
	if err == nil {
		err = validate.Image(img, validate.Fast)
	}
	if err != nil {
		t.Errorf("what skopeo copied: %v", err)
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(skopeo("inspect", "--config", "--tls-verify=false", "docker://"+ref.String()), &config); err != nil {
		t.Fatal(err)
	}
	if config.Config.User != user || config.OS != "linux" {
		t.Errorf("skopeo reads user %q, system %q", config.Config.User, config.OS)
	}
}
