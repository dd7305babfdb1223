package stages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/net/http/httpproxy"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer/directory"
	"github.com/kuroko-faas/kuroko/deployer/knative"
	"github.com/kuroko-faas/kuroko/deployer/local"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// Connect makes the World of a process: engines, registry and targets as its
// environment says. Of the job it takes the registry with its credentials,
// whose zero value leaves docker's configuration alone, and whether its ref is
// protected. log receives what engines print.
func Connect(getenv func(string) string, job ci.Job, log io.Writer) (World, error) {
	keys := keychain{ci: job.Registry}
	transport := proxied(getenv)
	cache := getenv("FAAS_CACHE_DIR")
	options := builder.Options{
		Keychain: keys, Transport: transport, CacheDir: below(cache, "layers"), NPMCache: below(cache, "npm"), PipCache: below(cache, "pip"),
		Authorize: netrc(getenv("NETRC")), Progress: newMeter(log, time.Now).show,
		TreeDir: treeDir(getenv), Env: commandEnv(getenv), Secret: jobSecret(getenv),
		// On a developer's machine the ref says nothing.
		Unprotected: job.ID != 0 && !job.Protected,
	}
	if err := trust(&options, getenv, job.Protected); err != nil {
		return World{}, err
	}
	layers, err := builder.NewLayers(options)
	if err != nil {
		return World{}, err
	}
	w := World{
		Engines: map[string]builder.Engine{EngineLayer: layers},
		Exists:  layers.Find, FindMade: layers.FindMade, MarkMade: layers.MarkMade,
		Secret:  options.Secret,
		Reveals: layers.Reveals,
		Run:     layers.Run, Installs: layers.Installs, Relay: layers.Relay, Shell: layers.Shell,
		Inspect: layers.Inspect, Rebase: layers.Rebase, Verify: layers.Verify,
		Target: func(ctx context.Context, s bundle.Site) (Target, error) {
			if s.Cluster.Kind == bundle.KindDirectory {
				return openDirectory(s, job.Dir, keys)
			}
			return openTarget(ctx, s, getenv("KUBECONFIG"), keys, log)
		},
		NPMRegistry: func(ctx context.Context) (string, error) {
			return npmRegistry(ctx, getenv)
		},
		PipIndex: func(ctx context.Context) (string, error) {
			index, err := pipIndex(ctx, getenv)
			return index, errors.Join(err, withoutCredentials(index))
		},
		MavenMirror: func(context.Context) (string, error) {
			mirror := getenv("MAVEN_MIRROR_URL")
			return mirror, withoutCredentials(mirror)
		},
		Layout: builder.Layout,
		Now:    time.Now,
	}
	if executor := kanikoExecutor(getenv); executor != "" {
		instructions := kaniko.New(kaniko.Options{Executor: executor, Keychain: keys, Transport: transport, CacheDir: below(cache, "kaniko"), Env: proxies(getenv), Secret: options.Secret, Log: log})
		w.Engines[EngineDockerfile] = onTop{instructions: instructions, layers: layers}
	}
	return w, nil
}

// trust reads what concerns signatures and the index of dependency layers that
// projects share. A setting that can't be used is an error: what was to be
// signed must not go out unsigned.
func trust(o *builder.Options, getenv func(string) string, protected bool) error {
	bad := func(name string, err error, next string) error {
		return &usererr.Error{Code: usererr.CodeEnvironment, Class: usererr.Config, What: "use " + name, Err: err, Next: next}
	}
	const keyFile = "make it a file variable that holds a key in PEM; docs/supply-chain.md says which"
	if file := getenv("FAAS_SIGNING_KEY"); file != "" {
		data, err := os.ReadFile(file)
		if err == nil {
			o.Signer, err = attest.ReadSigner(data)
		}
		if err != nil {
			return bad("FAAS_SIGNING_KEY", withoutPath(err), keyFile)
		}
	}
	if file := getenv("FAAS_DEPS_KEYS"); file != "" {
		data, err := os.ReadFile(file)
		if err == nil {
			o.CacheKeys, err = attest.ReadVerifier(data)
		}
		if err != nil {
			return bad("FAAS_DEPS_KEYS", withoutPath(err), keyFile)
		}
	}
	if repo := getenv("FAAS_DEPS_INDEX"); repo != "" {
		var err error
		if o.CacheRepo, err = name.NewRepository(repo); err != nil {
			return bad("FAAS_DEPS_INDEX", err, "name a repository: registry.example.com/platform/deps")
		}
		o.CacheWrite = protected
	}
	return nil
}

// withoutPath leaves the file's name out: a variable that was to be a file may
// hold the key itself.
func withoutPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s the file that it names: %w", pe.Op, pe.Err)
	}
	return err
}

func below(dir, name string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// treeDir keeps unpacked build images: in the cache of the node, else in the
// user's own. They are big, and each job of a machine needs the same.
func treeDir(getenv func(string) string) string {
	for _, top := range []string{getenv("FAAS_CACHE_DIR"), below(getenv("XDG_CACHE_HOME"), "kuroko"), below(getenv("HOME"), ".cache/kuroko")} {
		if filepath.IsAbs(top) {
			return filepath.Join(top, "trees")
		}
	}
	return ""
}

// proxies are the variables that say how the web is reached.
func proxies(getenv func(string) string) []string {
	var out []string
	for _, n := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if v := getenv(n); v != "" {
			out = append(out, n+"="+v)
		}
	}
	return out
}

// proxied reaches registries as those variables say, where they are not the
// process's own but the bundle's.
func proxied(getenv func(string) string) http.RoundTripper {
	either := func(n string) string {
		if v := getenv(n); v != "" {
			return v
		}
		return getenv(strings.ToLower(n))
	}
	choose := (&httpproxy.Config{HTTPProxy: either("HTTP_PROXY"), HTTPSProxy: either("HTTPS_PROXY"), NoProxy: either("NO_PROXY")}).ProxyFunc()
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
	t.MaxIdleConnsPerHost, t.DisableCompression = 16, true
	return t
}

// commandEnv is what commands of the repository, and package managers, see of
// the job's environment: nothing that is secret.
func commandEnv(getenv func(string) string) []string {
	var out []string
	for _, n := range []string{"PATH", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"} {
		if v := getenv(n); v != "" {
			out = append(out, n+"="+v)
		}
	}
	return append(out, proxies(getenv)...)
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

// openDirectory opens a site's folder of manifests; a relative one is below
// the job's work tree.
func openDirectory(s bundle.Site, work string, keys authn.Keychain) (Target, error) {
	dir := filepath.FromSlash(s.Cluster.Path)
	if !filepath.IsAbs(dir) {
		var err error
		if dir, err = filepath.Abs(filepath.Join(work, dir)); err != nil {
			return Target{}, err
		}
	}
	t, err := directory.Open(directory.Config{Dir: dir, Domain: s.Cluster.Domain, Namespace: s.Namespace, Keychain: keys})
	if err != nil {
		return Target{}, &usererr.Error{
			Code: usererr.CodeEnvironment, Class: usererr.Config, What: "open the folder of manifests", Err: err,
			Next: "check path of cluster " + s.Name + " in clusters.yml",
		}
	}
	return Target{Target: t, Kind: bundle.KindDirectory}, nil
}

// openTarget connects to the place a site names. Cluster credentials are the
// job's: KUBECONFIG, a file or a list of files.
func openTarget(ctx context.Context, s bundle.Site, kubeconfig string, keys authn.Keychain, log io.Writer) (Target, error) {
	if s.Cluster.Kind == bundle.KindLocal {
		t := local.Dial(s.Cluster.Endpoint)
		mode, _, err := t.Sandbox(ctx)
		if err != nil {
			return Target{}, err
		}
		return Target{Target: t, Kind: bundle.KindLocal, Sandbox: mode}, nil
	}
	bad := func(err error, next string) error {
		return &usererr.Error{Code: usererr.CodeEnvironment, Class: usererr.Config, What: "open cluster " + s.Name, Err: err, Next: next}
	}
	if kubeconfig == "" {
		return Target{}, bad(errors.New("KUBECONFIG is not set"), "give the environment's deploy job a kubeconfig: a file variable, or GitLab's agent")
	}
	t, err := knative.New(knative.Config{
		Kubeconfig: kubeconfig, Context: s.Cluster.Context, Namespace: s.Namespace, IngressAddress: s.Cluster.Ingress, IngressService: s.Cluster.IngressService, Keychain: keys,
		Artefacts: true, Notice: func(text string) { fmt.Fprintln(log, "warning: "+text) },
	})
	if err != nil {
		return Target{}, bad(err, "check KUBECONFIG, and the cluster's context in clusters.yml")
	}
	return Target{Target: t, Kind: bundle.KindKnative}, nil
}

// npmRegistry is the package registry the machine is configured for.
func npmRegistry(ctx context.Context, getenv func(string) string) (string, error) {
	for _, n := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if v := getenv(n); v != "" {
			return v, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
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
