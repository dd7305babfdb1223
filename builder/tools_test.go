package builder_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// A package manager that the build image lacks is fetched from the package
// registry, pinned, and installs what its lock file says.
func TestToolInstalls(t *testing.T) {
	w := newWorld(t)
	image, trees := realBuildImage(t, w.reg, "nodejs18")
	w.npm.Add(npmtest.Package{Name: "pnpm", Version: "1.0.0", Manifest: map[string]any{"bin": map[string]string{"pnpm": "bin/pnpm.cjs"}},
		Files: map[string]string{"bin/pnpm.cjs": `#!/usr/bin/env node
const fs = require('fs')
fs.mkdirSync('node_modules/a', { recursive: true })
fs.writeFileSync('node_modules/a/made.json', JSON.stringify({ argv: process.argv.slice(2), dir: process.cwd(), lock: fs.readFileSync('pnpm-lock.yaml', 'utf8'), npmrc: fs.readFileSync('.npmrc', 'utf8') }))
fs.writeFileSync('node_modules/.modules.yaml', 'prunedAt: today')
`}})
	tool := builder.Tool{Version: "1.0.0", Integrity: w.npm.Integrity("pnpm", "1.0.0"), Bin: "bin/pnpm.cjs"}
	project := fstest.MapFS{"package.json": {Data: []byte(`{"name":"app","dependencies":{"a":"1"}}`)}, "pnpm-lock.yaml": {Data: []byte("the lock")},
		".npmrc": {Data: []byte("node-linker=hoisted\n//h/:_authToken=s3cret\nregistry=https://x.example\n@team:registry=https://y.example\n")}}
	req := w.request(t, "k1", "one")
	req.Dependencies.Kind, req.Dependencies.Lock, req.Dependencies.FS, req.Dependencies.Build = builder.KindPNPM, "pnpm-lock.yaml", project, image
	o := builder.Options{TreeDir: trees, TempDir: t.TempDir(), Tools: map[string]builder.Tool{builder.KindPNPM: tool}}
	img := mustBuild(t, engine(t, o), req)
	pulled, err := remote.Image(img.Ref)
	if err != nil {
		t.Fatal(err)
	}
	got := files(t, pulled)
	for _, want := range []string{`"install","--frozen-lockfile"`, `"--prod"`, `"dir":"/app"`, `"lock":"the lock"`, `"npmrc":"node-linker=hoisted\n"`} {
		if !strings.Contains(got["app/node_modules/a/made.json"], want) {
			t.Errorf("no %s in %s", want, got["app/node_modules/a/made.json"])
		}
	}
	if _, ok := got["app/node_modules/.modules.yaml"]; ok || img.Sandbox != builder.SandboxNamespaces {
		t.Errorf("its note to itself is in the image, or it ran elsewhere: %q", img.Sandbox)
	}
	// Another archive under the pinned version is refused.
	tool.Integrity = w.npm.Integrity("generated-0", "1.0.0")
	o.Tools = map[string]builder.Tool{builder.KindPNPM: tool}
	req.Key = "k2"
	var in *builder.InputError
	if _, err := engine(t, o).Build(t.Context(), req); !errors.As(err, &in) || !strings.Contains(err.Error(), "EINTEGRITY") {
		t.Errorf("got %v", err)
	}
}

// What a tool can't do honestly is refused before anything runs.
func TestToolIsRefused(t *testing.T) {
	w := newWorld(t)
	for title, c := range map[string]struct {
		kind, lock, manifest, want string
		more                       string
	}{
		"workspaces":      {builder.KindYarn, "# yarn lockfile v1\n", `{"workspaces":["a"],"dependencies":{"a":"1"}}`, "a workspace", ""},
		"pnpm workspace":  {builder.KindPNPM, "lockfileVersion: '9.0'\n", `{"dependencies":{"a":"1"}}`, "a workspace", "pnpm-workspace.yaml"},
		"a newer yarn":    {builder.KindYarn, "# x\n\n__metadata:\n  version: 6\n", `{"dependencies":{"a":"1"}}`, "planned", ""},
		"without sandbox": {builder.KindPNPM, "lockfileVersion: '9.0'\n", `{"dependencies":{"a":"1"}}`, "pnpm can't run in a sandbox", ""},
	} {
		t.Run(title, func(t *testing.T) {
			project := fstest.MapFS{"package.json": {Data: []byte(c.manifest)}, "lock": {Data: []byte(c.lock)}}
			if c.more != "" {
				project[c.more] = &fstest.MapFile{}
			}
			req := w.request(t, "k1", "one")
			req.Dependencies.Kind, req.Dependencies.Lock, req.Dependencies.FS, req.Dependencies.Build = c.kind, "lock", project, w.base
			if _, err := engine(t, builder.Options{Mode: sandbox.None, TempDir: t.TempDir()}).Build(t.Context(), req); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The pinned tools themselves, with a real registry.
func TestRealTools(t *testing.T) {
	if os.Getenv("KUROKO_TEST_NPM") == "" {
		t.Skip("needs a package registry with pnpm and yarn: make test-images")
	}
	registry, err := exec.Command("npm", "config", "get", "registry").Output()
	if err != nil {
		t.Skip("needs npm: ", err)
	}
	w := newWorld(t)
	image, trees := realBuildImage(t, w.reg, "nodejs18")
	const manifest = `{"name":"app","version":"1.0.0","dependencies":{"is-odd":"3.0.1"},"devDependencies":{"is-even":"1.0.0"}}`
	for kind, lock := range map[string]string{builder.KindPNPM: pnpmLock, builder.KindYarn: yarnLock} {
		t.Run(kind, func(t *testing.T) {
			name := map[string]string{builder.KindPNPM: "pnpm-lock.yaml", builder.KindYarn: "yarn.lock"}[kind]
			var digests []string
			for _, key := range []string{"1", "2"} {
				req := w.request(t, kind+key, "one")
				req.Repository = req.Repository.Registry.Repo(kind + key)
				req.Dependencies.FS = fstest.MapFS{"package.json": {Data: []byte(manifest)}, name: {Data: []byte(lock)}}
				req.Dependencies.Kind, req.Dependencies.Lock, req.Dependencies.Build = kind, name, image
				req.Dependencies.Registry = strings.TrimSpace(string(registry))
				img := mustBuild(t, engine(t, builder.Options{TreeDir: trees, TempDir: t.TempDir()}), req)
				digests = append(digests, img.Ref.DigestStr())
				pulled, err := remote.Image(img.Ref)
				if err != nil {
					t.Fatal(err)
				}
				found := map[string]bool{}
				for f := range files(t, pulled) {
					for _, p := range []string{"is-odd", "is-number", "is-even"} {
						found[p] = found[p] || strings.HasSuffix(f, "/"+p+"/package.json")
					}
				}
				if !found["is-odd"] || !found["is-number"] || found["is-even"] {
					t.Errorf("packages: %v", found)
				}
			}
			if digests[0] != digests[1] {
				t.Errorf("two builds of the same: %v", digests)
			}
		})
	}
}

const pnpmLock = `lockfileVersion: '9.0'

settings:
  autoInstallPeers: true
  excludeLinksFromLockfile: false

importers:

  .:
    dependencies:
      is-odd:
        specifier: 3.0.1
        version: 3.0.1
    devDependencies:
      is-even:
        specifier: 1.0.0
        version: 1.0.0

packages:

  is-buffer@1.1.6:
    resolution: {integrity: sha512-NcdALwpXkTm5Zvvbk7owOUSvVvBKDgKP5/ewfXEznmQFfs4ZRmanOeKBTjRVjka3QFoN6XJ+9F3USqfHqTaU5w==}

  is-even@1.0.0:
    resolution: {integrity: sha512-LEhnkAdJqic4Dbqn58A0y52IXoHWlsueqQkKfMfdEnIYG8A1sm/GHidKkS6yvXlMoRrkM34csHnXQtOqcb+Jzg==}
    engines: {node: '>=0.10.0'}

  is-number@3.0.0:
    resolution: {integrity: sha512-4cboCqIpliH+mAvFNegjZQ4kgKc3ZUhQVr3HvWbSh5q3WH2v82ct+T2Y1hdU5Gdtorx/cLifQjqCbL7bpznLTg==}
    engines: {node: '>=0.10.0'}

  is-number@6.0.0:
    resolution: {integrity: sha512-Wu1VHeILBK8KAWJUAiSZQX94GmOE45Rg6/538fKwiloUu21KncEkYGPqob2oSZ5mUT73vLGrHQjKw3KMPwfDzg==}
    engines: {node: '>=0.10.0'}

  is-odd@0.1.2:
    resolution: {integrity: sha512-Ri7C2K7o5IrUU9UEI8losXJCCD/UtsaIrkR5sxIcFg4xQ9cRJXlWA5DQvTE0yDc0krvSNLsRGXN11UPS6KyfBw==}
    engines: {node: '>=0.10.0'}

  is-odd@3.0.1:
    resolution: {integrity: sha512-CQpnWPrDwmP1+SMHXZhtLtJv90yiyVfluGsX5iNCVkrhQtU3TQHsUWPG9wkdk9Lgd5yNpAg9jQEo90CBaXgWMA==}
    engines: {node: '>=4'}

  kind-of@3.2.2:
    resolution: {integrity: sha512-NOW9QQXMoZGg/oqnVNoNTTIFEIid1627WCffUBJEdMxYApq7mNE7CpzucIPc+ZQg25Phej7IJSmX3hO+oblOtQ==}
    engines: {node: '>=0.10.0'}

snapshots:

  is-buffer@1.1.6: {}

  is-even@1.0.0:
    dependencies:
      is-odd: 0.1.2

  is-number@3.0.0:
    dependencies:
      kind-of: 3.2.2

  is-number@6.0.0: {}

  is-odd@0.1.2:
    dependencies:
      is-number: 3.0.0

  is-odd@3.0.1:
    dependencies:
      is-number: 6.0.0

  kind-of@3.2.2:
    dependencies:
      is-buffer: 1.1.6
`

const yarnLock = `# THIS IS AN AUTOGENERATED FILE. DO NOT EDIT THIS FILE DIRECTLY.
# yarn lockfile v1


is-buffer@^1.1.5:
  version "1.1.6"
  resolved "https://registry.example/is-buffer/-/is-buffer-1.1.6.tgz#efaa2ea9daa0d7ab2ea13a97b2b8ad51fefbe8be"
  integrity sha512-NcdALwpXkTm5Zvvbk7owOUSvVvBKDgKP5/ewfXEznmQFfs4ZRmanOeKBTjRVjka3QFoN6XJ+9F3USqfHqTaU5w==

is-even@1.0.0:
  version "1.0.0"
  resolved "https://registry.example/is-even/-/is-even-1.0.0.tgz#76b5055fbad8d294a86b6a949015e1c97b717c06"
  integrity sha512-LEhnkAdJqic4Dbqn58A0y52IXoHWlsueqQkKfMfdEnIYG8A1sm/GHidKkS6yvXlMoRrkM34csHnXQtOqcb+Jzg==
  dependencies:
    is-odd "^0.1.2"

is-number@^3.0.0:
  version "3.0.0"
  resolved "https://registry.example/is-number/-/is-number-3.0.0.tgz#24fd6201a4782cf50561c810276afc7d12d71195"
  integrity sha512-4cboCqIpliH+mAvFNegjZQ4kgKc3ZUhQVr3HvWbSh5q3WH2v82ct+T2Y1hdU5Gdtorx/cLifQjqCbL7bpznLTg==
  dependencies:
    kind-of "^3.0.2"

is-number@^6.0.0:
  version "6.0.0"
  resolved "https://registry.example/is-number/-/is-number-6.0.0.tgz#e6d15ad31fc262887cccf217ae5f9316f81b1995"
  integrity sha512-Wu1VHeILBK8KAWJUAiSZQX94GmOE45Rg6/538fKwiloUu21KncEkYGPqob2oSZ5mUT73vLGrHQjKw3KMPwfDzg==

is-odd@3.0.1:
  version "3.0.1"
  resolved "https://registry.example/is-odd/-/is-odd-3.0.1.tgz#65101baf3727d728b66fa62f50cda7f2d3989601"
  integrity sha512-CQpnWPrDwmP1+SMHXZhtLtJv90yiyVfluGsX5iNCVkrhQtU3TQHsUWPG9wkdk9Lgd5yNpAg9jQEo90CBaXgWMA==
  dependencies:
    is-number "^6.0.0"

is-odd@^0.1.2:
  version "0.1.2"
  resolved "https://registry.example/is-odd/-/is-odd-0.1.2.tgz#bc573b5ce371ef2aad6e6f49799b72bef13978a7"
  integrity sha512-Ri7C2K7o5IrUU9UEI8losXJCCD/UtsaIrkR5sxIcFg4xQ9cRJXlWA5DQvTE0yDc0krvSNLsRGXN11UPS6KyfBw==
  dependencies:
    is-number "^3.0.0"

kind-of@^3.0.2:
  version "3.2.2"
  resolved "https://registry.example/kind-of/-/kind-of-3.2.2.tgz#31ea21a734bab9bbb0f32466d893aea51e4a3c64"
  integrity sha512-NOW9QQXMoZGg/oqnVNoNTTIFEIid1627WCffUBJEdMxYApq7mNE7CpzucIPc+ZQg25Phej7IJSmX3hO+oblOtQ==
  dependencies:
    is-buffer "^1.1.5"
`
