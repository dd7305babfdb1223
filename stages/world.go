package stages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer/local"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// Connect makes the World of a process: engines, registry and targets as its
// environment says. registry is the job's own, with its credentials; its zero
// value leaves docker's configuration alone. log receives what engines print.
func Connect(getenv func(string) string, registry ci.Registry, log io.Writer) (World, error) {
	keys := keychain{ci: registry}
	cache := getenv("FAAS_CACHE_DIR")
	layers, err := builder.NewLayers(builder.Options{Keychain: keys, CacheDir: below(cache, "layers"), NPMCache: below(cache, "npm")})
	if err != nil {
		return World{}, err
	}
	w := World{
		Engines: map[string]builder.Engine{EngineLayer: layers},
		Exists:  layers.Find,
		Target:  openTarget,
		NPMRegistry: func(ctx context.Context) (string, error) {
			return npmRegistry(ctx, getenv)
		},
		Layout: builder.Layout,
		Now:    time.Now,
	}
	if executor := kanikoExecutor(getenv); executor != "" {
		w.Engines[EngineDockerfile] = kaniko.New(kaniko.Options{Executor: executor, Keychain: keys, CacheDir: below(cache, "kaniko"), Log: log})
	}
	return w, nil
}

func below(dir, name string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// kanikoExecutor is kaniko-executor in PATH. Empty when there is none; then an
// image that needs it is refused.
func kanikoExecutor(getenv func(string) string) string {
	for _, dir := range filepath.SplitList(getenv("PATH")) {
		p := filepath.Join(dir, "kaniko-executor")
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

// openTarget connects to the place a site names.
func openTarget(ctx context.Context, s bundle.Site) (Target, error) {
	switch s.Cluster.Kind {
	case bundle.KindLocal:
		t := local.Dial(s.Cluster.Endpoint)
		mode, _, err := t.Sandbox(ctx)
		if err != nil {
			return Target{}, err
		}
		return Target{Target: t, Kind: bundle.KindLocal, Sandbox: mode}, nil
	}
	return Target{}, &usererr.Error{
		Code: usererr.CodeUnable, What: "open cluster " + s.Name, Class: usererr.Config,
		Err:  fmt.Errorf("this runner has no %s target yet", s.Cluster.Kind),
		Next: "use a cluster of kind local in clusters.yml",
	}
}

// npmRegistry is the package registry the machine is configured for.
func npmRegistry(ctx context.Context, getenv func(string) string) (string, error) {
	for _, n := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if v := getenv(n); v != "" {
			return v, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	err := run.Command{
		Path: "npm", Args: []string{"config", "get", "registry"},
		Env:    []string{"PATH=" + getenv("PATH"), "HOME=" + getenv("HOME")},
		Stdout: &out,
	}.Run(ctx)
	if errors.Is(err, exec.ErrNotFound) {
		return "", &usererr.Error{
			Code: usererr.CodeUnable, What: "find the npm registry", Err: errors.New("npm is not installed and npm_config_registry is not set"),
			Next: "set npm_config_registry, or use the platform's job image",
		}
	}
	if err != nil {
		return "", fmt.Errorf("npm config get registry: %w", err)
	}
	return strings.TrimSpace(out.String()), nil
}

// keychain finds registry credentials: the job's own for GitLab's registry,
// docker's configuration for any other.
type keychain struct{ ci ci.Registry }

// Resolve implements authn.Keychain.
func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if k.ci.Host != "" && r.RegistryStr() == k.ci.Host && k.ci.Password != "" {
		return &authn.Basic{Username: k.ci.User, Password: k.ci.Password}, nil
	}
	return authn.DefaultKeychain.Resolve(r)
}
