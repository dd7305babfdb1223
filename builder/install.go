package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// install has the package manager fill a folder and makes a layer of it.
func install(ctx context.Context, o Options, d *Dependencies, manifest, lock []byte) (*layer.Layer, string, error) {
	dir, err := os.MkdirTemp(o.TempDir, "kuroko-npm-*")
	if err != nil {
		return nil, "", fmt.Errorf("builder: %w", err)
	}
	defer removeAll(dir)
	app := filepath.Join(dir, "app")
	if err := os.Mkdir(app, 0o755); err != nil {
		return nil, "", fmt.Errorf("builder: %w", err)
	}
	for file, data := range map[string][]byte{"package.json": manifest, "package-lock.json": lock} {
		if err := os.WriteFile(filepath.Join(app, file), data, 0o644); err != nil {
			return nil, "", fmt.Errorf("builder: %w", err)
		}
	}
	mode, err := o.Install.Install(ctx, app, d.Registry)
	if err != nil {
		return nil, mode, err
	}
	if err := os.MkdirAll(filepath.Join(app, "node_modules"), 0o755); err != nil {
		return nil, mode, fmt.Errorf("builder: %w", err)
	}
	// npm's note to itself names the registry it used.
	if err := os.Remove(filepath.Join(app, "node_modules", ".package-lock.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, mode, fmt.Errorf("builder: %w", err)
	}
	root, err := os.OpenRoot(filepath.Join(app, "node_modules"))
	if err != nil {
		return nil, mode, fmt.Errorf("builder: %w", err)
	}
	defer root.Close()
	l, err := layer.FromTree(ctx, o.TempDir, layer.Gzip, layer.Tree{FS: root.FS(), Prefix: path.Join("/", d.Prefix, "node_modules")})
	if errors.Is(err, layer.ErrLinkLeaves) {
		return nil, mode, &InputError{What: "install the dependencies",
			Next: "publish the linked package, or bundle it into the code (workspaces and file: dependencies are not supported)", Err: err}
	}
	return l, mode, err
}

// removeAll removes a folder that foreign code may have made unwritable.
func removeAll(dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}

// hostNPM runs the machine's own npm. Install scripts are foreign code: where
// the machine allows a sandbox they see the system's programs, read-only, and
// the folder they install into; no other file, process or variable. Where it
// does not, they run with an empty environment and the caller's rights.
type hostNPM struct{ temp string }

const sandboxUser = 65532

func (h hostNPM) Install(ctx context.Context, dir, registry string) (string, error) {
	program, err := exec.LookPath("npm")
	if err != nil {
		return "", fmt.Errorf("builder: the lock file needs npm itself, and this machine has none: %w", err)
	}
	mode, _ := sandbox.Detect(ctx)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	scratch, err := os.MkdirTemp(h.temp, "kuroko-npm-*")
	if err != nil {
		return "", fmt.Errorf("builder: %w", err)
	}
	defer removeAll(scratch)
	args := []string{"ci", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"}
	if registry != "" {
		args = append(args, "--registry="+registry, "--replace-registry-host=always")
	}
	log := &run.Tail{Max: 4 << 10}
	if mode == sandbox.None {
		err = run.Command{Path: program, Args: append(args, "--cache="+filepath.Join(scratch, "cache")), Dir: dir, Stdout: log, Stderr: log,
			Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + scratch, "TMPDIR=" + scratch}}.Run(ctx)
	} else {
		err = h.inside(ctx, mode, program, dir, scratch, args, log)
	}
	var exit *run.ExitError
	if errors.As(err, &exit) {
		return string(mode), &InputError{What: "install the dependencies with npm", Next: "read npm's own words above; run npm ci to see them on your machine",
			Err: fmt.Errorf("%w\n%s", exit, log)}
	}
	return string(mode), err
}

// inside runs npm in a sandbox whose root is a folder of links and read-only
// views of the system.
func (h hostNPM) inside(ctx context.Context, mode sandbox.Mode, program, dir, scratch string, args []string, log *run.Tail) error {
	root := filepath.Join(scratch, "root")
	spec := sandbox.Spec{
		Mode: mode, Root: root, Dir: "/app", UID: sandboxUser, GID: sandboxUser, Stdout: log, Stderr: log,
		Argv: append(append([]string{program}, args...), "--cache=/home/cache"),
		Env:  []string{"PATH=" + filepath.Dir(program) + ":/usr/local/bin:/usr/bin:/bin", "HOME=/home", "TMPDIR=/tmp"},
	}
	for _, d := range []string{root, filepath.Join(root, "tmp"), filepath.Join(scratch, "home")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("builder: %w", err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|fs.ModeSticky); err != nil {
		return fmt.Errorf("builder: %w", err)
	}
	spec.Binds = []sandbox.Bind{{Source: dir, Target: "/app"}, {Source: filepath.Join(scratch, "home"), Target: "/home"}}
	show := []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ssl", "/etc/pki", "/etc/ca-certificates",
		"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/alternatives", "/etc/passwd", "/etc/group", "/etc/npmrc"}
	if real, err := filepath.EvalSymlinks(program); err == nil && !strings.HasPrefix(real, "/usr/") {
		// Node installed in a folder of its own: <prefix>/lib/node_modules/npm/bin/npm-cli.js.
		show = append(show, filepath.Dir(filepath.Dir(program)))
		if prefix, _, ok := strings.Cut(real, "/lib/node_modules/"); ok {
			show = append(show, prefix)
		}
	}
	for _, p := range show {
		info, err := os.Lstat(p)
		if err != nil {
			continue
		}
		if info.Mode()&fs.ModeSymlink != 0 && strings.Count(p, "/") == 1 {
			to, err := os.Readlink(p) // /bin -> usr/bin
			if err == nil {
				err = os.Symlink(to, filepath.Join(root, p))
			}
			if err != nil {
				return fmt.Errorf("builder: %w", err)
			}
			continue
		}
		source, err := filepath.EvalSymlinks(p)
		if err != nil {
			continue
		}
		spec.Binds = append(spec.Binds, sandbox.Bind{Source: source, Target: p, ReadOnly: true})
	}
	if mode == sandbox.Root {
		// The command is another user there than here.
		for _, top := range []string{dir, filepath.Join(scratch, "home")} {
			err := filepath.WalkDir(top, func(p string, _ fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				return os.Lchown(p, sandboxUser, sandboxUser)
			})
			if err != nil {
				return fmt.Errorf("builder: %w", err)
			}
		}
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			return fmt.Errorf("builder: %w", err)
		}
	}
	p, err := sandbox.Start(ctx, spec)
	if err != nil {
		return err
	}
	return p.Wait()
}
