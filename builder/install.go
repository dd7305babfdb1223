package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/pip"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
	"github.com/kuroko-faas/kuroko/internal/run"
)

// npmInstall has npm fill a folder and makes a layer of it.
func (b *build) npmInstall(ctx context.Context, manifest, lock []byte) (*layer.Layer, error) {
	d, o := b.req.Dependencies, b.e.o
	app, done, err := b.workshop(map[string][]byte{"package.json": manifest, "package-lock.json": lock})
	if err != nil {
		return nil, err
	}
	defer done()
	from, stop, err := b.e.Relay(d.Registry)
	if err != nil {
		return nil, err
	}
	defer stop()
	argv := []string{"npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"}
	if from != "" {
		argv = append(argv, "--registry="+from, "--replace-registry-host=always")
	}
	if err := b.installer(ctx, Command{Argv: argv, Dir: app}, "npm ci"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(app, "node_modules"), 0o755); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	// npm's note to itself names the registry it used.
	if err := os.Remove(filepath.Join(app, "node_modules", ".package-lock.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("builder: %w", err)
	}
	root, err := os.OpenRoot(filepath.Join(app, "node_modules"))
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	defer root.Close()
	if err := forgetSettings(root); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	l, err := layer.FromTree(ctx, o.TempDir, layer.Gzip, layer.Tree{FS: root.FS(), Prefix: path.Join("/", d.Prefix, "node_modules")})
	if errors.Is(err, layer.ErrLinkLeaves) {
		return nil, &InputError{What: "install the dependencies",
			Next: "publish the linked package, or bundle it into the code (workspaces and file: dependencies are not supported)", Err: err}
	}
	return l, err
}

// forgetSettings removes what node-gyp noted of the installer's settings, the
// registry's address of that very installation among them.
func forgetSettings(mods *os.Root) error {
	return fs.WalkDir(mods.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "config.gypi" || path.Base(path.Dir(p)) != "build" {
			return err
		}
		if _, err := mods.Stat(path.Join(path.Dir(path.Dir(p)), "binding.gyp")); err != nil {
			return nil // the package's own
		}
		return mods.Remove(p)
	})
}

// pipInstall has pip fill a folder and makes a layer of it.
func (b *build) pipInstall(ctx context.Context, lock []byte, why error) (*layer.Layer, error) {
	d, o := b.req.Dependencies, b.e.o
	platform, err := pip.ParseABI(d.ABI, o.Platform.Architecture)
	if err != nil {
		return nil, err
	}
	app, done, err := b.workshop(map[string][]byte{"requirements.txt": lock})
	if err != nil {
		return nil, err
	}
	defer done()
	index, stop, err := b.e.Relay(d.Registry)
	if err != nil {
		return nil, err
	}
	defer stop()
	// What the build image has, the base has not. Byte code holds times.
	argv := []string{"pip3", "install", "--ignore-installed", "--no-compile", "--no-input", "--no-warn-script-location", "--quiet", "--root=out", "--requirement=requirements.txt"}
	env := []string{"PIP_INDEX_URL=" + index, "PIP_USER=0", "PIP_ROOT_USER_ACTION=ignore"}
	if err := b.installer(ctx, Command{Argv: argv, Env: env, Dir: app}, "pip install -r requirements.txt"); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(app)
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	defer root.Close()
	const top = "out/usr/local"
	if _, err := root.Stat("out"); errors.Is(err, fs.ErrNotExist) { // no line holds for this platform
		err = root.MkdirAll(path.Join(top, pip.Library(platform)), 0o755)
		if err != nil {
			return nil, fmt.Errorf("builder: %w", err)
		}
	}
	// Only another Python than the base's, in the job container, puts it elsewhere.
	if _, err := root.Stat(path.Join(top, pip.Library(platform))); err != nil {
		return nil, &MissingTool{Program: fmt.Sprintf("pip of Python 3.%d", platform.Minor), Why: b.ran.Why}
	}
	b.warn("requirements.txt %v, so pip installed the packages; %s pins them, so that every build has equal ones", why, pip.Lock)
	if root, err = root.OpenRoot(top); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	defer root.Close()
	return layer.FromTree(ctx, o.TempDir, layer.Gzip, layer.Tree{FS: root.FS(), Prefix: d.Prefix})
}

// workshop is a folder for an installer, with files in it, that belongs to
// whom commands are inside.
func (b *build) workshop(files map[string][]byte) (dir string, done func(), err error) {
	top, err := os.MkdirTemp(b.e.o.TempDir, "kuroko-install-*")
	if err != nil {
		return "", nil, fmt.Errorf("builder: %w", err)
	}
	done = func() { _ = rootfs.Remove(top) }
	dir = filepath.Join(top, "app")
	err = errors.Join(os.Chmod(top, 0o755), os.Mkdir(dir, 0o755))
	for file, data := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, file), data, 0o644))
	}
	if err == nil && os.Geteuid() == 0 {
		err = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, sandboxUser, sandboxUser))
		})
	}
	if err != nil {
		done()
		return "", nil, fmt.Errorf("builder: %w", err)
	}
	return dir, done, nil
}

// installer runs a package manager. same is the command that shows a developer
// its words.
func (b *build) installer(ctx context.Context, c Command, same string) error {
	log := &run.Tail{Max: 4 << 10}
	c.Image, c.Stdout, c.Stderr, c.Secrets = b.req.Dependencies.Build, log, log, b.req.Secrets
	ran, err := b.e.o.Install(ctx, c)
	b.ran = ran
	program := b.req.Dependencies.Kind
	var exit *run.ExitError
	if errors.As(err, &exit) {
		return &InputError{What: "install the dependencies with " + program, Next: "read " + program + "'s own words above; run " + same + " to see them on your machine",
			Err: fmt.Errorf("%w\n%s", exit, log)}
	}
	if err != nil || len(b.req.Secrets) == 0 {
		return err
	}
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return fmt.Errorf("builder: %w", err)
	}
	defer root.Close()
	file, secret, err := b.e.Reveals(ctx, root.FS(), nil, b.req.Secrets)
	if file != "" {
		return Revealed("install the dependencies with "+program, file, secret)
	}
	return err
}
