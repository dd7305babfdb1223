// Command bench builds the same applications with our engines and with what a
// user could pick instead, in interleaved rounds, and prints what each took.
//
//	make bench-build            # all, three rounds
//	make bench-build APPS=node-small ROUNDS=1
//
// What it needs it makes: base and build images, lock files, wheels and a
// Maven repository from Debian's packages, the builders from their modules.
// What it can't make, and what can't run here, the result names with the reason.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/bench/internal/measure"
	"github.com/kuroko-faas/kuroko/bench/internal/peers"
	"github.com/kuroko-faas/kuroko/bench/internal/services"
	"github.com/kuroko-faas/kuroko/builder/debian"
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
	checkout, home, cache string
	apps, engines         []string
	rounds                int
	limit                 time.Duration
	out, raw              string
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
	flags.StringVar(&s.home, "cache", filepath.Join(home, "kuroko"), "folder for images, programs, packages and lock files that runs share")
	apps := flags.String("apps", "node-small,node-270,python,java", "applications")
	engines := flags.String("engines", "", "only builders whose name contains one of these; empty is all")
	flags.IntVar(&s.rounds, "rounds", 3, "rounds; the tables show medians. On two quiet cores a round of everything takes about 6 minutes")
	flags.DurationVar(&s.limit, "limit", 40*time.Minute, "start no round that would, going by those before, end later than this after the first began")
	flags.StringVar(&s.out, "out", "", "also write the tables to this file: between its lines that say so, if it has them")
	flags.StringVar(&s.raw, "raw", "", "file for every single measurement, a line of JSON each; empty is one in the cache")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s.cache = filepath.Join(s.home, "bench")
	s.apps = strings.Split(*apps, ",")
	if *engines != "" {
		s.engines = strings.Split(*engines, ",")
	}
	if s.raw == "" {
		s.raw = filepath.Join(s.cache, "rounds-"+time.Now().UTC().Format("20060102-150405")+".jsonl")
	}
	b := &bench{settings: s, log: stderr, results: map[key][]result{}, empty: map[key][]time.Duration{}, known: map[string]images{}}
	defer b.close()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	err = b.measure(ctx)
	if b.done == 0 {
		return err
	}
	text := b.tables()
	if s.out != "" {
		err = errors.Join(err, save(s.out, text))
	}
	_, werr := io.WriteString(stdout, text)
	return errors.Join(err, werr)
}

// measure runs the rounds that there is time for.
func (b *bench) measure(ctx context.Context) error {
	raw, err := os.Create(b.raw)
	if err != nil {
		return err
	}
	defer raw.Close()
	b.printf("every measurement is kept in %s", b.raw)
	b.lines = json.NewEncoder(raw)
	b.began, b.load = time.Now(), append(b.load, loadAverage())
	for round := range b.rounds {
		if used := time.Since(b.began); round > 0 && used+used/time.Duration(round) > b.limit {
			b.skip(fmt.Sprintf("rounds after the first %d", round), fmt.Errorf("they would take longer than %s", b.limit))
			break
		}
		for i := range b.apps {
			if err := b.round(ctx, round, &b.apps[i]); err != nil {
				return err
			}
		}
		b.done++
		b.load = append(b.load, loadAverage())
	}
	return nil
}

// loadAverage is the machine's of the last minute, as the kernel writes it.
func loadAverage() string {
	data, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(data), " ")
	return first
}

// bench is one run.
type bench struct {
	settings
	log      io.Writer
	lines    *json.Encoder
	began    time.Time
	load     []string // before the first round and after each
	done     int      // whole rounds
	temp     string
	registry *services.Server
	npm      *services.Server
	servers  []*services.Server // the others that have packages
	known    map[string]images  // by runtime
	apps     []application
	peers    []peers.Peer
	skipped  []string // builder: reason
	results  map[key][]result
	empty    map[key][]time.Duration // beside each build
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
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return err
	}
	if b.temp, err = os.MkdirTemp("", "kuroko-bench-"); err != nil {
		return err
	}
	if b.registry, err = services.Registry(filepath.Join(b.temp, "registry")); err != nil {
		return err
	}
	for _, name := range b.settings.apps {
		k, ok := kinds[name]
		if !ok {
			return fmt.Errorf("no application is called %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
		}
		a := application{App: peers.App{Name: name, Dir: filepath.Join(b.temp, "apps", name)}, runtime: k.runtime}
		a.images, err = b.imagesOf(ctx, k.runtime)
		if err == nil {
			err = k.make(ctx, b, &a)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			b.skip("application "+name, err)
			continue
		}
		b.apps = append(b.apps, a)
	}
	if len(b.apps) == 0 {
		return errors.New("there is no application to build")
	}
	return b.preparePeers(ctx)
}

// debian makes images and packages from Debian's.
func (b *bench) debian() *debian.Builder {
	return &debian.Builder{Cache: b.home, Env: os.Environ(), Log: func(line string) { b.printf("%s", line) }}
}

// imagesOf makes a runtime's base and build image, as make images does, and
// puts them into the registry.
func (b *bench) imagesOf(ctx context.Context, runtime string) (images, error) {
	if i, ok := b.known[runtime]; ok {
		return i, nil
	}
	recipes, err := debian.LoadRecipes(os.DirFS(filepath.Join(b.checkout, "dockerfiles")))
	if err != nil {
		return images{}, err
	}
	builder := b.debian()
	push := func(kind string) (string, string, error) {
		image := kind + "/" + runtime
		at := slices.IndexFunc(recipes, func(r debian.Recipe) bool { return r.Name == image })
		if at < 0 {
			return "", "", fmt.Errorf("there is no recipe for %s", image)
		}
		if _, err := builder.Build(ctx, recipes[at], debian.Options{}); err != nil {
			if _, ferr := builder.Find(image, ""); ferr != nil {
				return "", "", err
			}
			b.printf("%s: the one made before is used: %v", image, err)
		}
		repo, err := name.NewRepository(b.registry.Host + "/" + image)
		if err != nil {
			return "", "", err
		}
		img, ref, err := builder.Push(ctx, image, "", repo)
		return ref.String(), img.ABI, err
	}
	var i images
	if i.base, i.abi, err = push("base"); err == nil {
		i.build, _, err = push("build")
	}
	if err == nil {
		b.known[runtime] = i
	}
	return i, err
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
		&peers.Layer{Program: layer, State: state("layer"), Work: state("work")},
		&peers.Layer{Program: layer, State: state("after"), Work: state("work"), After: true},
		&peers.Instructions{Program: instructions, Executor: executor, State: state("instructions")},
	}
	// A program of another's can be missing.
	missing := map[string]error{}
	other := func(builder, module string, args ...string) string {
		if !b.wanted(builder) {
			return ""
		}
		program, err := b.compile(ctx, module, path.Base(args[len(args)-1]), args...)
		missing[builder] = errors.Join(missing[builder], err)
		return program
	}
	const tags = "osusergo netgo static_build"
	all = append(all,
		&peers.Kaniko{Program: other(plainKaniko, "bench/peers/kaniko", "github.com/GoogleContainerTools/kaniko/cmd/executor"), Dir: state("kaniko")},
		&peers.Buildah{Dir: state("buildah")},
		&peers.BuildKit{Daemon: other(buildKit, "bench/peers/buildkit", "-tags", tags, "github.com/moby/buildkit/cmd/buildkitd"),
			Client: other(buildKit, "bench/peers/buildkit", "-tags", tags, "github.com/moby/buildkit/cmd/buildctl"), Dir: state("buildkit"), Registry: b.registry.Host})
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

// warm has our kaniko engine unpack the bases, which a runner does once: with
// instructions of which no build has use for more.
func (b *bench) warm(ctx context.Context) error {
	dir := filepath.Join(b.temp, "warm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range b.peers {
		if _, ok := p.(*peers.Instructions); !ok {
			continue
		}
		for _, i := range b.known {
			for _, base := range []string{i.base, i.build} {
				if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+base+"\nUSER 0\nWORKDIR /warm\n"), 0o644); err != nil {
					return err
				}
				if _, err := p.Build(ctx, peers.App{Name: "warm", Dir: dir}, b.registry.Host+"/bench/warm"); err != nil {
					b.skip(p.Name()+": unpack "+base, err)
				}
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

// scenarios in the order of the tables.
var scenarios = []string{"cold", "code change", "no change"}

// A short build can be measured several times in a round, and has to be when
// the machine's other work decides how long it takes; longer ones are measured
// once, and cold ones, which need all state away.
const (
	short   = time.Second
	repeats = 5
)

// turns are the scenarios that a builder goes through before the next one has
// its turn: a change is every builder's own, and must not come between it and
// a build without one.
var turns = [][]string{{"cold"}, {"code change", "no change"}}

// round builds app with every builder in every scenario, the builders in turn.
func (b *bench) round(ctx context.Context, round int, app *application) error {
	for _, turn := range turns {
		for _, p := range b.peers {
			for _, scenario := range turn {
				if err := b.repeat(ctx, round, app, p, scenario); err != nil {
					return err
				}
			}
		}
		for _, scenario := range turn {
			if b.stages == nil {
				break
			}
			if scenario == "code change" {
				if err := app.change(); err != nil {
					return err
				}
			}
			b.one(ctx, round, b.stages.Name(), app, scenario, func() (measure.Usage, error) { return b.stages.run(ctx, app, scenario, round) })
		}
	}
	return nil
}

// repeat measures a builder in a scenario, more than once where it is short.
func (b *bench) repeat(ctx context.Context, round int, app *application, p peers.Peer, scenario string) error {
	slug := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, strings.ToLower(p.Name()))
	repository := fmt.Sprintf("%s/bench/%s/%s-%d", b.registry.Host, slug, app.Name, round)
	if scenario == "cold" {
		if err := p.Forget(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.Name(), err)
		}
	}
	// One that packs what another's command left has no change of its own.
	l, ours := p.(*peers.Layer)
	follows := ours && l.After
	for range repeats {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if scenario == "code change" && !follows {
			if err := app.change(); err != nil {
				return err
			}
		}
		u := b.one(ctx, round, p.Name(), app, scenario, func() (measure.Usage, error) { return p.Build(ctx, app.App, repository) })
		if u.Wall == 0 {
			return nil
		}
		if e, err := p.Empty(ctx); err == nil {
			k := key{app.Name, p.Name(), scenario}
			b.empty[k] = append(b.empty[k], e.Wall)
		}
		if scenario == "cold" || scenario == "code change" && follows || u.Wall > short {
			return nil
		}
	}
	return nil
}

// record is a line of the raw measurements.
type record struct {
	Round    int             `json:"round"`
	App      string          `json:"app"`
	Builder  string          `json:"builder"`
	Scenario string          `json:"scenario"`
	WallMS   float64         `json:"wall_ms"`
	CPUMS    float64         `json:"cpu_ms"`
	Peak     int64           `json:"peak_bytes"`
	Registry services.Counts `json:"registry"`
	Packages services.Counts `json:"packages"`
	Load     string          `json:"load"` // the machine's load average then
}

// one measures one build; the wall time is zero when there is none to count.
func (b *bench) one(ctx context.Context, round int, builder string, app *application, scenario string, f func() (measure.Usage, error)) measure.Usage {
	runtime.GC() // the registry's garbage is not the builder's
	b.registry.Reset()
	app.packages.Reset()
	u, err := f()
	switch {
	case errors.Is(err, peers.ErrOther):
		return measure.Usage{}
	case err != nil:
		if ctx.Err() == nil {
			b.skip(fmt.Sprintf("%s, %s, %s", builder, app.Name, scenario), err)
		}
		return measure.Usage{}
	}
	r := result{u, b.registry.Counts(), app.packages.Counts()}
	k := key{app.Name, builder, scenario}
	b.results[k] = append(b.results[k], r)
	b.printf("%-12s %-32s %-12s %8.0f ms  cpu %6.0f ms  %4d MiB", app.Name, builder, scenario, ms(u.Wall), ms(u.CPU), u.Peak>>20)
	if err := b.lines.Encode(record{round, app.Name, builder, scenario, ms(u.Wall), ms(u.CPU), u.Peak, r.Registry, r.Packages, loadAverage()}); err != nil {
		b.printf("%s: %v", b.raw, err)
	}
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
	for _, s := range append(b.servers, b.registry, b.npm) {
		if s != nil {
			_ = s.Close()
		}
	}
	if b.temp != "" {
		_ = os.RemoveAll(b.temp)
	}
}
