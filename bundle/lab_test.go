package bundle

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

const fakeDigest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

const bundleYML = `minRunner: 0.1.0
docs: https://docs.example
runtimes:
  nodejs18: {language: node, abi: node18, adapter: runtimes/node}
`

const clustersYML = `version: 1
clusters:
  local: {kind: local, domain: local.example}
  hz-1:
    kind: knative
    context: platform/agents:hz-1
    domain: faas.example.internal
    registry: registry.example:5000/faas
    namespace: "{service}"
    gateway: {kind: gateway-api, name: public, namespace: gateways}
    features: [eventing]
environments:
  prod: {cluster: hz-1}
  test: {cluster: hz-1, namespace: "{service}-test"}
`

// checkout is a small platform repository.
func checkout(extra ...string) fstest.MapFS {
	f := fstest.MapFS{
		"platform/bundle.yml":             {Data: []byte(bundleYML)},
		"platform/clusters.yml":           {Data: []byte(clustersYML)},
		"platform/stages/build.yml":       {Data: []byte("steps: []\n")},
		"platform/scripts/hello.sh":       {Data: []byte("#!/bin/sh\necho hello\n"), Mode: 0o755},
		"dockerfiles/nodejs18/Dockerfile": {Data: []byte("FROM scratch\n")},
		"runtimes/node/main.js":           {Data: []byte("// adapter\n")},
		"runtimes/node/main.test.js":      {Data: []byte("// test\n")},
		"runtimes/runtimes.go":            {Data: []byte("package runtimes\n")},
		"ci-templates/faas.gitlab-ci.yml": {Data: []byte("stages: []\n")},
		"cmd/main.go":                     {Data: []byte("package main\n")},
	}
	for i := 0; i+1 < len(extra); i += 2 {
		f[extra[i]] = &fstest.MapFile{Data: []byte(extra[i+1])}
	}
	return f
}

func recipe(version string) Recipe {
	return Recipe{Version: version, Runtimes: map[string]Images{"nodejs18": {Base: "base/nodejs18" + fakeDigest, Build: "build/nodejs18" + fakeDigest}}}
}

func memFile(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// lab is a publisher, a store and a clock.
type lab struct {
	t     testing.TB
	store *mem
	key   ed25519.PrivateKey
	root  Root
	now   time.Time
	last  Channel
}

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newLab(t testing.TB) *lab {
	key := testKey(1)
	pub := []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}
	return &lab{
		t: t, store: newMem(), key: key, now: t0,
		root: NewRoot(t0, pub, pub, nil),
		last: Channel{Org: "acme", Name: "stable", Root: 1},
	}
}

// testKey is the same key in every run, so that failures repeat.
func testKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func (l *lab) build(version string, extra ...string) *Package {
	l.t.Helper()
	p, err := Build(l.t.Context(), checkout(extra...), recipe(version))
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// publish builds, stores and activates a bundle for percent of the projects,
// at once. It returns the manifest's sum.
func (l *lab) publish(version string, percent int, extra ...string) string {
	l.t.Helper()
	p := l.build(version, extra...)
	if _, err := Publish(l.t.Context(), l.store, p); err != nil {
		l.t.Fatal(err)
	}
	id := strings.TrimPrefix(p.Digest, "sha256:")
	l.move(Entry{Manifest: id, Version: version, Percent: percent})
	return id
}

func (l *lab) terms() Terms {
	return Terms{Now: l.now, Who: "ops", Why: "test"}
}

func (l *lab) move(e Entry) {
	l.t.Helper()
	c, err := Next(l.last, e, l.terms())
	if err != nil {
		l.t.Fatal(err)
	}
	l.sign(c)
}

func (l *lab) sign(c Channel) {
	l.t.Helper()
	if err := Move(l.t.Context(), l.store, c, l.key); err != nil {
		l.t.Fatal(err)
	}
	l.last = c
}

func (l *lab) revoke(id, why string) {
	l.t.Helper()
	c, err := Revoke(l.last, id, why, l.terms())
	if err != nil {
		l.t.Fatal(err)
	}
	l.sign(c)
}

// client has no cache and no seed.
func (l *lab) client() *Client {
	return &Client{Store: l.store, Root: l.root, Private: l.t.TempDir(), Now: func() time.Time { return l.now }}
}

func (l *lab) query() Query {
	return Query{Org: "acme", Channel: "stable", ProjectID: 42, ProjectPath: "fe/order", PipelineID: 7, At: l.now, Runner: "1.0.0"}
}

// use resolves and opens, and closes when the test ends.
func (l *lab) use(c *Client, q Query) (*Bundle, error) {
	l.t.Helper()
	ch, err := c.Resolve(l.t.Context(), q)
	if err != nil {
		return nil, err
	}
	b, err := c.Open(l.t.Context(), ch)
	if err == nil {
		l.t.Cleanup(func() { b.Close() })
	}
	return b, err
}

func (l *lab) must(c *Client, q Query) *Bundle {
	l.t.Helper()
	b, err := l.use(c, q)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// seed makes an image's seed of what is published now.
func (l *lab) seed() string {
	l.t.Helper()
	dir := l.t.TempDir()
	p := Platform{Format: 1, URL: "https://store.test/b", Org: "acme", Channel: "stable", Root: l.root}
	if _, err := WriteSeed(l.t.Context(), l.client(), p, dir); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

// seal signs any document with the lab's key, as a publisher gone wrong might.
func (l *lab) seal(c Channel, keys ...ed25519.PrivateKey) []byte {
	l.t.Helper()
	if keys == nil {
		keys = []ed25519.PrivateKey{l.key}
	}
	raw, err := Seal(TypeChannel, c, keys...)
	if err != nil {
		l.t.Fatal(err)
	}
	return raw
}

// files reads a tree with its modes.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		in, err := d.Info()
		if err != nil {
			return err
		}
		out[rel] = fmt.Sprintf("%v %s", in.Mode(), raw)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// empty fails if dir holds any file: nothing may be left of what was refused.
func empty(t testing.TB, dir string) {
	t.Helper()
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("left over: %v", slicesOf(left))
	}
}

func slicesOf(m map[string]string) []string {
	var s []string
	for k := range maps.Keys(m) {
		s = append(s, k)
	}
	return s
}

// compress makes one frame, as a publisher does.
func compress(plain []byte) ([]byte, error) {
	z, err := compressor()
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return z.EncodeAll(plain, nil), nil
}
