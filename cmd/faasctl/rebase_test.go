package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// aBase pushes a base image of one file.
func aBase(t *testing.T, repo name.Repository, content, abi string) name.Digest {
	t.Helper()
	l, err := layer.FromTree(t.Context(), t.TempDir(), layer.Gzip, layer.Tree{Prefix: "/usr", FS: fstest.MapFS{"x": {Data: []byte(content)}}})
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{l.Info().DiffID}},
		Config: v1.Config{Labels: map[string]string{"abi": abi}}}); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Tag("latest"), img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return repo.Digest(d.String())
}

func TestImageRebaseAndVerify(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	defer srv.Close()
	reg, err := name.NewRegistry(strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile, publicFile := filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "public")
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	signer, err := attest.ReadSigner(pemKey)
	if err != nil {
		t.Fatal(err)
	}
	public, err := signer.Public()
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{keyFile: pemKey, publicFile: public} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old, next, other := aBase(t, reg.Repo("base"), "1", "x1-a"), aBase(t, reg.Repo("base"), "2", "x1-a"), aBase(t, reg.Repo("base"), "3", "x2-a")
	e, err := builder.NewLayers(builder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	build := func(base name.Digest, key string) builder.Image {
		img, err := e.Build(t.Context(), builder.Request{Name: "app", Key: key, Repository: reg.Repo("team/app"), Base: base,
			Layers: []builder.Tree{{Title: "adapter", FS: fstest.MapFS{"main.js": {Data: []byte("1")}}, Prefix: "/opt/a"}},
			Code:   builder.Tree{Title: "code", FS: fstest.MapFS{"index.js": {Data: []byte("x")}}, Prefix: "/app"}})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img, want := build(old, "k1"), build(next, "k2")
	env := map[string]string{"HOME": t.TempDir(), "FAAS_SIGNING_KEY": keyFile}
	code, out, errs := imageRun(t, env, "rebase", img.Ref.String(), "--base", next.String(), "--tag", "patched")
	var got rebased
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || got.Digest != want.Ref.DigestStr() {
		t.Fatalf("exit %d, %v\n%s\n%s\nwant %s", code, err, out, errs, want.Ref)
	}
	if d, err := remote.Head(reg.Repo("team/app").Tag("patched")); err != nil || d.Digest.String() != got.Digest {
		t.Errorf("the tag: %v, %v", d, err)
	}
	code, out, errs = imageRun(t, env, "verify", got.Ref, "--key", publicFile)
	if code != 0 || strings.Count(out, "\n") != 2 || !strings.Contains(out, attest.Predicate) {
		t.Errorf("verify: exit %d\n%s\n%s", code, out, errs)
	}
	adapter := t.TempDir()
	if err := os.WriteFile(filepath.Join(adapter, "main.js"), []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out, errs = imageRun(t, env, "rebase", img.Ref.String(), "--layer", "adapter="+adapter+":/opt/a"); code != 0 || !strings.Contains(out, `"title":"adapter"`) {
		t.Errorf("adapter: exit %d\n%s\n%s", code, out, errs)
	}
	for args, c := range map[string]struct {
		code int
		says string
	}{
		"rebase":                     {2, "name one image"},
		"rebase " + img.Ref.String(): {2, "say what to swap"},
		"rebase " + img.Ref.String() + " --base " + reg.Repo("base").String():                      {2, "a base is named by digest"},
		"rebase " + img.Ref.String() + " --base " + other.String():                                 {1, "its base is for x1, the new one for x2"},
		"rebase " + img.Ref.String() + " --layer adapter":                                          {2, "KIND=FOLDER:/PLACE"},
		"rebase " + img.Ref.String() + " --layer code=" + adapter + ":/app":                        {1, "replace one of: adapter"},
		"rebase " + reg.Repo("team/app").Tag("gone").String() + " --base " + next.String():         {2, "there is no such image"},
		"rebase " + img.Ref.String() + " --builtin " + reg.Repo("layer").String():                  {2, "a layer is named by digest"},
		"rebase " + img.Ref.String() + " --base " + next.String() + " --builtin " + other.String(): {1, "it has none to swap"},
		"verify " + img.Ref.String() + " --key " + publicFile:                                      {78, "not signed by a trusted key"},
		"verify " + img.Ref.String() + " --key /nowhere":                                           {2, "--key"},
	} {
		if code, out, errs := imageRun(t, env, strings.Fields(args)...); code != c.code || out != "" || !strings.Contains(errs, c.says) {
			t.Errorf("%s: exit %d, %s\n%s\nwant exit %d, %q", args, code, out, errs, c.code, c.says)
		}
	}
}
