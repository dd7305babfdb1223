// Package devenv is a whole platform on one machine: the embedded object
// store, a registry, the local target and a small GitLab, wired together for
// the demo and the end-to-end tests. Nothing in it is a double: bundles are
// signed, published and verified, images are pushed and pulled, pipelines run
// from the repository's own .gitlab-ci.yml.
package devenv

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/aliyun"
	"github.com/kuroko-faas/kuroko/stages"
)

// org is the organisation every platform here belongs to.
const org = "acme"

// Platform is the platform team's side: it holds the keys and publishes.
type Platform struct {
	// Checkout is the folder with dockerfiles, runtimes, platform and
	// ci-templates that bundles are made of.
	Checkout string
	// Dir receives platform.json: what a job image knows of the platform.
	Dir string

	// Channel is the platform's one channel.
	Channel string

	store oss.Store
	key   ed25519.PrivateKey
	root  bundle.Root
}

// NewPlatform makes keys, and platform.json for a channel in the store of s.
func NewPlatform(s Services, checkout, dir, channel string) (*Platform, error) {
	store, err := aliyun.New(aliyun.Config{
		Endpoint: s.OSS, Region: s.Region, Bucket: s.Bucket, AccessKeyID: s.AccessKeyID, AccessKeySecret: s.AccessKeySecret,
	})
	if err != nil {
		return nil, err
	}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	p := &Platform{Checkout: checkout, Dir: dir, Channel: channel, store: oss.Retry(store, oss.RetryOptions{}), key: key}
	p.root = bundle.NewRoot(time.Now(), []ed25519.PublicKey{pub}, []ed25519.PublicKey{pub}, []ed25519.PublicKey{pub})
	return p, bundle.Platform{Format: 1, URL: s.BucketURL(), Org: org, Channel: channel, Root: p.root}.Write(dir)
}

// Release is what a bundle is made of beside the checkout.
type Release struct {
	Version  string
	Runtimes map[string]bundle.Images // others of bundle.yml are left out
	// Files replace or add files of the checkout, by their path in it. A name
	// that ends in "*" is executable.
	Files map[string]string
	// Remove are folders or files of the checkout to leave out.
	Remove []string
	Runner *bundle.RunnerFiles
	Why    string
	// TTL is how long the channel is current without a word; 0 is 30 days.
	TTL time.Duration
}

// Publish builds a bundle, publishes it and makes it current for everybody at
// once. It returns the bundle's digest.
func (p *Platform) Publish(ctx context.Context, r Release) (string, error) {
	tree, err := os.MkdirTemp("", "kuroko-platform-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tree)
	for _, folder := range []string{"dockerfiles", "runtimes", "platform", "ci-templates"} {
		if err := copyTree(filepath.Join(p.Checkout, folder), filepath.Join(tree, folder)); err != nil {
			return "", err
		}
	}
	for _, name := range r.Remove {
		if err := os.RemoveAll(filepath.Join(tree, name)); err != nil {
			return "", err
		}
	}
	for name, text := range r.Files {
		if err := writeFile(tree, name, text); err != nil {
			return "", err
		}
	}
	// What the release has no images of, its bundle does not offer.
	var without []string
	for _, runtime := range defaultRuntimes {
		text, err := os.ReadFile(filepath.Join(tree, "platform", "bundle.yml"))
		if err != nil {
			return "", err
		}
		if _, ok := r.Runtimes[runtime]; !ok && strings.Contains(string(text), "\n  "+runtime+":\n") {
			without = append(without, runtime)
		}
	}
	pkg, err := bundle.Build(ctx, os.DirFS(tree), bundle.Recipe{Version: r.Version, Runtimes: r.Runtimes, Without: without, Runner: r.Runner, Generate: stages.BundleFiles})
	if err != nil {
		return "", err
	}
	if _, err := bundle.Publish(ctx, p.store, pkg); err != nil {
		return "", err
	}
	return pkg.Digest, p.activate(ctx, pkg, r)
}

func (p *Platform) activate(ctx context.Context, pkg *bundle.Package, r Release) error {
	prev, _, err := bundle.Current(ctx, p.store, p.root, org, p.Channel)
	if errors.Is(err, oss.ErrNotFound) {
		prev = bundle.Channel{Org: org, Name: p.Channel, Root: p.root.N}
	} else if err != nil {
		return err
	}
	next, err := bundle.Next(prev, bundle.Entry{Manifest: strings.TrimPrefix(pkg.Digest, "sha256:"), Version: pkg.Version, Percent: 100}, bundle.Terms{
		Now: time.Now(), TTL: r.TTL, Why: r.Why, Who: "devenv",
	})
	if err != nil {
		return err
	}
	if err := bundle.Move(ctx, p.store, next, p.key); err != nil {
		return err
	}
	// Entries start on whole seconds, each after the one before: a pipeline
	// created earlier would rightly get the older bundle.
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Until(next.Entries[0].From)):
		return nil
	}
}

// RunnerFrom makes this program file the runner that a bundle names.
func RunnerFrom(version, platform, file string) *bundle.RunnerFiles {
	return &bundle.RunnerFiles{Version: version, Files: map[string]func() (io.ReadCloser, error){
		platform: func() (io.ReadCloser, error) { return os.Open(file) },
	}}
}

func writeFile(dir, name, text string) error {
	mode := fs.FileMode(0o644)
	if n := len(name) - 1; name[n] == '*' {
		name, mode = name[:n], 0o755
	}
	p := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, []byte(text), mode)
}

// copyTree copies regular files and folders; anything else is an error.
func copyTree(from, to string) error {
	err := os.CopyFS(to, os.DirFS(from))
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}
