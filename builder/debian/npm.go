package debian

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/internal/run"
)

// ErrNoNPM means that this machine has no npm to fetch npm's tarball with.
var ErrNoNPM = errors.New("this machine has no npm")

// npmDir is where npm stands beside Debian's node: the "global" folder of the
// prefix /usr.
const npmDir = "usr/lib/node_modules/npm"

// writeNPM puts npm's tarball into a layer. Debian's own package of npm brings
// some 400 others.
func (b *Builder) writeNPM(ctx context.Context, n NPM, w *layer.Writer) error {
	tgz, err := b.fetchNPM(ctx, n)
	if err != nil {
		return err
	}
	f, err := os.Open(tgz)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("npm %s: %w", n.Version, err)
	}
	t, err := newTree(b.tmp(), nil)
	if err != nil {
		return err
	}
	defer t.close()
	if err := npmTree(ctx, t, z); err != nil {
		return fmt.Errorf("npm %s: %w", n.Version, err)
	}
	return t.write(ctx, w)
}

// npmTree unpacks a package's tarball into t at npmDir and links the commands.
func npmTree(ctx context.Context, t *tree, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name, err := entryName(h.Name)
		if err != nil {
			return err
		}
		_, rel, below := strings.Cut(name, "/") // package/…
		if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if h.Typeflag != tar.TypeReg || !below || t.end+h.Size > maxBytes || len(t.nodes) > maxEntries {
			return fmt.Errorf("%w: %s", ErrUnsafe, h.Name)
		}
		if err := dense(h); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if h.Mode&0o111 != 0 {
			mode = 0o755
		}
		if err := t.setReader(path.Join(npmDir, rel), mode, tr); err != nil {
			return err
		}
	}
	for _, cmd := range []string{"npm", "npx"} {
		cli := t.nodes[path.Join(npmDir, "bin", cmd+"-cli.js")]
		if cli == nil || !cli.mode.IsRegular() {
			return fmt.Errorf("no bin/%s-cli.js in the tarball", cmd)
		}
		cli.mode = 0o755
		if err := t.setLink("usr/bin/"+cmd, "../lib/node_modules/npm/bin/"+cmd+"-cli.js"); err != nil {
			return err
		}
	}
	return nil
}

// fetchNPM gives the path of the verified tarball.
func (b *Builder) fetchNPM(ctx context.Context, n NPM) (string, error) {
	dir := filepath.Join(b.Cache, "npm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tgz := filepath.Join(dir, "npm-"+n.Version+".tgz")
	if err := integrity(tgz, n.Integrity); err == nil {
		return tgz, nil
	}
	tmp, err := os.MkdirTemp(b.tmp(), "npm-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	b.log("fetch npm %s", n.Version)
	limit := b.limits().NPM
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("npm pack: no end after %v: %w", limit, context.DeadlineExceeded))
	defer cancel()
	// In an empty folder: the caller's package.json and .npmrc are not meant.
	err = run.Command{Path: "npm", Args: []string{"pack", "npm@" + n.Version, "--ignore-scripts", "--prefer-offline", "--silent"},
		Env: append(b.env(), "npm_config_update_notifier=false"), Dir: tmp}.Run(limited)
	var x *run.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("%w: it is needed to fetch npm %s", ErrNoNPM, n.Version)
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case limited.Err() != nil:
		return "", &builder.Unavailable{Op: "fetch npm " + n.Version, Host: "the npm registry", Attempts: 1, Err: context.Cause(limited)}
	case errors.As(err, &x):
		if noSpace(x.Tail) || strings.Contains(x.Tail, "ENOSPC") {
			return "", fmt.Errorf("npm pack in %s: %w", tmp, syscall.ENOSPC)
		}
		if x.Tail != "" {
			err = fmt.Errorf("%w: %s", err, secretRE.ReplaceAllString(x.Tail, "//***@"))
		}
		return "", &builder.Unavailable{Op: "fetch npm " + n.Version, Host: "the npm registry", Attempts: 1, Err: err}
	case err != nil:
		return "", err
	}
	got := filepath.Join(tmp, "npm-"+n.Version+".tgz")
	if err := integrity(got, n.Integrity); err != nil {
		return "", fmt.Errorf("npm %s: %w", n.Version, err)
	}
	return tgz, os.Rename(got, tgz)
}

// integrity compares a file with sha512-<base64>.
func integrity(file, want string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha512.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%w: its integrity is %s, the recipe says %s", ErrUnsafe, got, want)
	}
	return nil
}
