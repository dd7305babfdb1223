// Command bench builds the same applications with our engines and with what a
// user could pick instead, in interleaved rounds, and prints what each took.
//
//	make bench-build            # all, three rounds
//	make bench-build APPS=node-small ROUNDS=1
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/kuroko-faas/kuroko/bench/internal/measure"
	"github.com/kuroko-faas/kuroko/bench/internal/peers"
	"github.com/kuroko-faas/kuroko/bench/internal/services"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func main() {
	measure.Main()
	sandbox.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings are the command line's.
type settings struct {
	checkout, cache, images string
	apps, engines           []string
	rounds                  int
	out                     string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	home, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var s settings
	flags.StringVar(&s.checkout, "checkout", "..", "the repository's folder")
	flags.StringVar(&s.cache, "cache", filepath.Join(home, "kuroko", "bench"), "folder for programs, packages and lock files that runs share")
	flags.StringVar(&s.images, "images", filepath.Join(home, "kuroko", "images"), "folder of the base images that make images left")
	apps := flags.String("apps", "node-small,node-270", "applications")
	engines := flags.String("engines", "", "only builders whose name contains one of these; empty is all")
	flags.IntVar(&s.rounds, "rounds", 3, "rounds; the tables show medians")
	flags.StringVar(&s.out, "out", "", "also write the tables to this file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s.apps = strings.Split(*apps, ",")
	if *engines != "" {
		s.engines = strings.Split(*engines, ",")
	}
	b := &bench{settings: s, log: stderr}
	defer b.close()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	for round := range s.rounds {
		for _, app := range b.apps {
			if err := b.round(ctx, round, app); err != nil {
				return err
			}
		}
	}
	text := b.tables()
	if s.out != "" {
		if err := os.WriteFile(s.out, []byte(text), 0o644); err != nil {
			return err
		}
	}
	_, err = io.WriteString(stdout, text)
	return err
}

// bench is one run.
type bench struct {
	settings
	log      io.Writer
	temp     string
	registry *services.Server
	npm      *services.Server
	full     string // base of the Dockerfiles, by digest
	apps     []peers.App
	packages map[string]int // by application
	peers    []peers.Peer
	skipped  []string // builder: reason
	results  map[key][]result
	empty    map[string][]time.Duration // by builder
	stages   *stageRunner
}

// key is a cell of the tables.
type key struct{ app, builder, scenario string }

// result is one build.
type result struct {
	measure.Usage
	Registry, Packages services.Counts
}

func (b *bench) printf(format string, args ...any) { fmt.Fprintf(b.log, format+"\n", args...) }

func (b *bench) prepare(ctx context.Context) (err error) {
	b.results, b.empty, b.packages = map[key][]result{}, map[string][]time.Duration{}, map[string]int{}
	if b.temp, err = os.MkdirTemp("", "kuroko-bench-"); err != nil {
		return err
	}
	if b.registry, err = services.Registry(filepath.Join(b.temp, "registry")); err != nil {
		return err
	}
	upstream, err := npmRegistry(ctx)
	if err != nil {
		return err
	}
	if b.npm, err = services.Cache(upstream, filepath.Join(b.cache, "npm")); err != nil {
		return err
	}
	slim, err := b.push(ctx, "base/nodejs18")
	if err != nil {
		return err
	}
	if b.full, err = b.push(ctx, "build/nodejs18"); err != nil {
		return err
	}
	for _, name := range b.settings.apps {
		if nodeApps[name] == nil {
			return fmt.Errorf("no application is called %q", name)
		}
		dir := filepath.Join(b.temp, "apps", name)
		if err := nodeApp(dir, name, b.npm.Host, b.full); err != nil {
			return err
		}
		if b.packages[name], err = lockFile(ctx, dir, b.cache, b.npm.Host); err != nil {
			return err
		}
		b.apps = append(b.apps, peers.App{Name: name, Dir: dir, Slim: slim, Packages: "http://" + b.npm.Host + "/", NPM: true, Entry: `["/usr/bin/node","index.js"]`})
	}
	return b.preparePeers(ctx)
}

func (b *bench) preparePeers(ctx context.Context) error {
	state := func(name string) string { return filepath.Join(b.temp, name) }
	// Ours have to be there.
	layer, err := b.compile(ctx, "bench", "layer", "./layer")
	if err != nil {
		return err
	}
	instructions, err := b.compile(ctx, "bench", "instructions", "./instructions")
	if err != nil {
		return err
	}
	executor, err := b.compile(ctx, ".", "kaniko-executor", "./cmd/kaniko-executor")
	if err != nil {
		return err
	}
	all := []peers.Peer{
		&peers.Layer{Program: layer, State: state("layer")},
		&peers.Instructions{Program: instructions, Executor: executor, State: state("instructions")},
	}
	kaniko, kerr := b.compile(ctx, "bench/peers/kaniko", "kaniko", "github.com/GoogleContainerTools/kaniko/cmd/executor")
	all = append(all, &peers.Kaniko{Program: kaniko, Dir: state("kaniko")}, &peers.Buildah{Dir: state("buildah")})
	const tags = "osusergo netgo static_build"
	daemon, derr := b.compile(ctx, "bench/peers/buildkit", "buildkitd", "-tags", tags, "github.com/moby/buildkit/cmd/buildkitd")
	client, cerr := b.compile(ctx, "bench/peers/buildkit", "buildctl", "-tags", tags, "github.com/moby/buildkit/cmd/buildctl")
	all = append(all, &peers.BuildKit{Daemon: daemon, Client: client, Dir: state("buildkit"), Registry: b.registry.Host})
	missing := map[string]error{"kaniko with cache": kerr, "BuildKit": errors.Join(derr, cerr)}
	for _, p := range all {
		if !b.wanted(p.Name()) {
			continue
		}
		err := missing[p.Name()]
		if err == nil {
			err = p.Prepare(ctx)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			b.skip(p.Name(), err)
			_ = p.Close()
			continue
		}
		b.peers = append(b.peers, p)
	}
	return b.warm(ctx)
}

// warm has our kaniko engine unpack the base, which a runner does once: with
// instructions of which no build has use for more.
func (b *bench) warm(ctx context.Context) error {
	dir := filepath.Join(b.temp, "warm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+b.full+"\nUSER 0\nRUN [\"/bin/true\"]\n"), 0o644); err != nil {
		return err
	}
	for _, p := range b.peers {
		if _, ok := p.(*peers.Instructions); ok {
			if _, err := p.Build(ctx, peers.App{Name: "warm", Dir: dir}, b.registry.Host+"/bench/warm"); err != nil {
				b.skip(p.Name()+": unpack the base", err)
			}
		}
	}
	if b.wanted("stage-runner") {
		stages, err := startStages(ctx, b)
		if err != nil {
			b.skip("stage-runner", err)
		} else {
			b.stages = stages
		}
	}
	return nil
}

// compile builds one of the repository's programs, or of the peers' modules
// below bench/peers, into the cache. It lets others have the processor first.
func (b *bench) compile(ctx context.Context, module, output string, args ...string) (string, error) {
	out := filepath.Join(b.cache, "bin", output)
	b.printf("compile %s", output)
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "15", "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out}, args...)...)
	cmd.Dir = filepath.Join(b.checkout, module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	text, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile %s: %w: %s", output, err, strings.TrimSpace(string(text)))
	}
	return out, nil
}

func (b *bench) wanted(builder string) bool {
	for _, e := range b.engines {
		if strings.Contains(strings.ToLower(builder), strings.ToLower(e)) {
			return true
		}
	}
	return len(b.engines) == 0
}

func (b *bench) skip(builder string, err error) {
	b.printf("%s: skipped: %v", builder, err)
	reason, _, _ := strings.Cut(err.Error(), "\n")
	b.skipped = append(b.skipped, builder+": "+reason)
}

// push puts an image that make images left into the registry and gives it by
// digest.
func (b *bench) push(ctx context.Context, image string) (string, error) {
	path, err := layout.FromPath(filepath.Join(b.images, image))
	if err != nil {
		return "", fmt.Errorf("%s is not there: run make images IMAGES=%s first: %w", image, image, err)
	}
	idx, err := path.ImageIndex()
	if err != nil {
		return "", err
	}
	m, err := idx.IndexManifest()
	if err != nil || len(m.Manifests) == 0 {
		return "", fmt.Errorf("%s holds no image: %v", image, err)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		return "", err
	}
	repo, err := name.NewRepository(b.registry.Host + "/" + image)
	if err != nil {
		return "", err
	}
	if err := crane.Push(img, repo.Tag("latest").String(), crane.WithContext(ctx)); err != nil {
		return "", err
	}
	return repo.Digest(m.Manifests[0].Digest.String()).String(), nil
}

// scenarios in the order they run in.
var scenarios = []string{"cold", "code change", "no change"}

// A build that changes nothing can be measured several times in a round, and
// has to be when it is so short that the machine's other work decides; longer
// ones are measured once.
const short = time.Second

func repeats(scenario string) int {
	if scenario == "no change" {
		return 5
	}
	return 1
}

// round builds app once with every builder in every scenario, the builders in
// turn within each.
func (b *bench) round(ctx context.Context, round int, app peers.App) error {
	where := func(p peers.Peer) string {
		slug := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, strings.ToLower(p.Name()))
		return fmt.Sprintf("%s/bench/%s/%s-%d", b.registry.Host, slug, app.Name, round)
	}
	for _, scenario := range scenarios {
		if scenario == "code change" {
			if err := change(app.Dir); err != nil {
				return err
			}
		}
		for _, p := range b.peers {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if scenario == "cold" {
				if err := p.Forget(ctx); err != nil {
					return fmt.Errorf("%s: %w", p.Name(), err)
				}
			}
			for range repeats(scenario) {
				u := b.one(ctx, p.Name(), app, scenario, func() (measure.Usage, error) { return p.Build(ctx, app, where(p)) })
				if e, err := p.Empty(ctx); err == nil {
					b.empty[p.Name()] = append(b.empty[p.Name()], e.Wall)
				}
				if u.Wall > short {
					break
				}
			}
		}
		if b.stages != nil {
			b.one(ctx, b.stages.Name(), app, scenario, func() (measure.Usage, error) { return b.stages.run(ctx, app, scenario, round) })
		}
	}
	return nil
}

func (b *bench) one(ctx context.Context, builder string, app peers.App, scenario string, f func() (measure.Usage, error)) measure.Usage {
	runtime.GC() // the registry's garbage is not the builder's
	b.registry.Reset()
	b.npm.Reset()
	u, err := f()
	if err != nil {
		if ctx.Err() == nil {
			b.skip(fmt.Sprintf("%s, %s, %s", builder, app.Name, scenario), err)
		}
		return u
	}
	k := key{app.Name, builder, scenario}
	b.results[k] = append(b.results[k], result{u, b.registry.Counts(), b.npm.Counts()})
	b.printf("%-12s %-30s %-12s %8.0f ms  cpu %6.0f ms  %4d MiB", app.Name, builder, scenario, ms(u.Wall), ms(u.CPU), u.Peak>>20)
	return u
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (b *bench) close() {
	for _, p := range b.peers {
		if err := p.Close(); err != nil {
			b.printf("%s: %v", p.Name(), err)
		}
	}
	if b.stages != nil {
		b.stages.close()
	}
	for _, s := range []*services.Server{b.registry, b.npm} {
		if s != nil {
			_ = s.Close()
		}
	}
	if b.temp != "" {
		_ = os.RemoveAll(b.temp)
	}
}

func npmRegistry(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "npm", "config", "get", "registry").Output()
	if err != nil {
		return "", fmt.Errorf("npm config get registry: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
