package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Tool is a package manager that build images do not have: a package of the
// npm registry without dependencies, pinned by version and integrity.
type Tool struct{ Version, Integrity, Bin string }

// Tools are the package managers that this version of the engine uses, by kind
// of [Dependencies]. They are part of keys.
func Tools() map[string]Tool {
	return map[string]Tool{
		KindPNPM: {"9.15.9", "sha512-aARhQYk8ZvrQHAeSMRKOmvuJ74fiaR1p5NQO7iKJiClf1GghgbrlW1hBjDolO95lpQXsfF+UA+zlzDzTfc8lMQ==", "bin/pnpm.cjs"},
		KindYarn: {"1.22.22", "sha512-prL3kGtyG7o9Z9Sv8IPfBNrWTDmXB4Qbes8A9rEzt6wkJV8mUvoirjU0Mp3GGAU06Y0XQyA3/2/RQFVuK7MTfg==", "bin/yarn.js"},
	}
}

// toolVersion is part of the key of what they install.
const toolVersion = "tool/1"

// installs is how a tool installs what a lock file says, no more and no less.
var installs = map[string]string{
	KindPNPM: "pnpm install --frozen-lockfile --ignore-workspace --reporter=append-only --loglevel=error",
	KindYarn: "yarn install --frozen-lockfile --non-interactive --no-progress",
}

// Shell is a shell command with a package manager of the kind in PATH, which
// it fetches first, and what that needs in the command's home. Of another kind
// it is the command as it is. "" installs everything that the lock file names.
func (e *Layers) Shell(kind, command string) (line string, home map[string][]byte) {
	t, ok := e.o.Tools[kind]
	if command == "" {
		command = installs[kind]
	}
	if !ok {
		return command, nil
	}
	manifest := map[string]any{"name": "tool", "version": "0.0.0", "dependencies": map[string]string{kind: t.Version}}
	lock := map[string]any{"name": "tool", "version": "0.0.0", "lockfileVersion": 3, "requires": true, "packages": map[string]any{
		"":                     manifest,
		"node_modules/" + kind: map[string]any{"version": t.Version, "integrity": t.Integrity, "bin": map[string]string{kind: t.Bin}},
	}}
	home = map[string][]byte{}
	for file, v := range map[string]any{"package.json": manifest, "package-lock.json": lock} {
		b, err := json.Marshal(v)
		if err != nil { // strings alone: there is nothing that can't be written
			return command, nil
		}
		home["tool/"+file] = b
	}
	// pnpm would put its store beside the project, and link files out of it.
	return `npm ci --prefix "$HOME/tool" --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null && ` +
		`export PATH="$HOME/tool/node_modules/.bin:$PATH" npm_config_store_dir="$HOME/store" npm_config_package_import_method=copy && ` + command, home
}

// toolRecipe installs with a package manager that is fetched first.
func (b *build) toolRecipe(manifest, lock []byte) (recipe, error) {
	d := b.req.Dependencies
	t, ok := b.e.o.Tools[d.Kind]
	if !ok {
		return recipe{}, fmt.Errorf("builder: dependencies of kind %q", d.Kind)
	}
	var m struct {
		Dependencies, OptionalDependencies map[string]string
		Workspaces                         json.RawMessage
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return recipe{}, &InputError{What: "read " + d.Manifest, Next: "correct " + d.Manifest, Err: err}
	}
	const next = "commit a package-lock.json of the package that is deployed (npm install --package-lock-only), or install in a Dockerfile: build.builder: dockerfile"
	_, err := fs.Stat(d.FS, "pnpm-workspace.yaml")
	switch {
	case m.Workspaces != nil || d.Kind == KindPNPM && err == nil:
		return recipe{}, &InputError{What: d.Lock + " is of a workspace, whose other packages are in no key of an image", Next: next}
	case d.Kind == KindYarn && strings.Contains(string(lock), "\n__metadata:"):
		return recipe{}, &InputError{What: d.Lock + " is of a yarn above 1, which is planned", Next: next}
	}
	settings := npmSettings(d.FS)
	r := recipe{empty: len(m.Dependencies)+len(m.OptionalDependencies) == 0}
	r.parts = []string{toolVersion, d.Kind, t.Version, t.Integrity, string(manifest), string(lock), string(settings)}
	r.install = func(ctx context.Context, _ error) (*layer.Layer, error) {
		return b.toolInstall(ctx, manifest, lock, settings)
	}
	return r, nil
}

// npmSettings is the repository's .npmrc without what is about registries and
// credentials: the layout of node_modules can depend on the rest.
func npmSettings(fsys fs.FS) []byte {
	data, err := fs.ReadFile(fsys, ".npmrc")
	if err != nil {
		return nil
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		name, _, _ := strings.Cut(strings.ToLower(line), "=")
		if strings.ContainsAny(line, "$") || strings.HasPrefix(strings.TrimSpace(name), "//") || strings.ContainsAny(name, "_@:") ||
			strings.Contains(name, "registry") || strings.Contains(name, "token") || strings.Contains(name, "auth") || strings.Contains(name, "password") {
			continue
		}
		out.WriteString(line)
	}
	return []byte(out.String())
}

// YarnLock is a yarn.lock whose packages come from a registry. yarn takes them
// from where the lock file has them, whatever registry it is told.
func YarnLock(lock []byte, registry string) []byte {
	to := strings.ReplaceAll(strings.TrimSuffix(registry, "/"), "$", "$$")
	return resolved.ReplaceAll(lock, []byte("${1}"+to+"/${2}"))
}

// resolved is where a yarn.lock has a package from.
var resolved = regexp.MustCompile(`(?m)^(  resolved ")https?://[^"\n]*?/((?:@[^/"\n]+/)?[^/"\n]+/-/[^"\n]+")`)

func (b *build) toolInstall(ctx context.Context, manifest, lock, settings []byte) (*layer.Layer, error) {
	d, o := b.req.Dependencies, b.e.o
	from, stop, err := b.e.Relay(d.Registry)
	if err != nil {
		return nil, err
	}
	defer stop()
	var env []string
	if from != "" {
		env = []string{"npm_config_registry=" + from, "npm_config_replace_registry_host=always"}
		if d.Kind == KindYarn {
			lock = YarnLock(lock, from)
		}
	}
	app, done, err := b.workshop(map[string][]byte{d.Manifest: manifest, d.Lock: lock, ".npmrc": settings})
	if err != nil {
		return nil, err
	}
	defer done()
	line, home := b.e.Shell(d.Kind, installs[d.Kind]+" --prod")
	argv := []string{"/bin/sh", "-c", line}
	if err := b.installer(ctx, Command{Argv: argv, Env: env, Dir: app, Home: home, Boxed: d.Kind}, installs[d.Kind]); err != nil {
		return nil, err
	}
	mods := filepath.Join(app, "node_modules")
	if err := os.MkdirAll(mods, 0o755); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	root, err := os.OpenRoot(mods)
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	defer root.Close()
	if err := forgetSettings(root); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	// Their notes to themselves hold times and addresses.
	for _, note := range []string{".modules.yaml", ".yarn-integrity", ".pnpm-workspace-state.json", ".pnpm-workspace-state-v1.json"} {
		if err := root.Remove(note); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("builder: %w", err)
		}
	}
	return layer.FromTree(ctx, o.TempDir, layer.Gzip, layer.Tree{FS: root.FS(), Prefix: path.Join("/", d.Prefix, "node_modules")})
}
