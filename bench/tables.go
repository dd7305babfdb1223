package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/bench/internal/measure"
)

// target is a ratio that issue and documentation promise: ours over the
// other's, at most.
type target struct {
	app, scenario, ours, other string
	most                       float64
}

const (
	layerEngine  = "layer engine"
	layerAfter   = "layer engine, after the command"
	kanikoEngine = "kaniko engine, base unpacked"
	plainKaniko  = "kaniko with cache"
	buildah      = "buildah"
	buildKit     = "BuildKit"
)

// targets of every application; app "" is all of them.
var targets = []target{
	{"", "no change", layerEngine, buildKit, 1.0 / 10}, {"", "no change", layerEngine, buildah, 1.0 / 60}, {"", "no change", layerEngine, plainKaniko, 1.0 / 400},
	{"", "code change", layerEngine, buildKit, 1.0 / 8}, {"", "code change", layerEngine, buildah, 1.0 / 25},
	{"node-small", "cold", layerEngine, buildKit, 1.0 / 40}, {"node-small", "cold", layerEngine, buildah, 1.0 / 40}, {"node-small", "cold", layerEngine, plainKaniko, 1.0 / 40},
	{"node-270", "cold", layerEngine, buildKit, 1.0 / 8}, {"node-270", "cold", layerEngine, buildah, 1.0 / 8}, {"node-270", "cold", layerEngine, plainKaniko, 1.0 / 8},
	{"", "cold", kanikoEngine, plainKaniko, 0.45}, {"", "code change", kanikoEngine, plainKaniko, 0.25}, {"", "no change", kanikoEngine, plainKaniko, 0.25},
	{"node-small", "cold", kanikoEngine, buildKit, 1},
	// Where a command runs first, also the engine's own part.
	{"java", "no change", layerAfter, buildKit, 1.0 / 10}, {"java", "no change", layerAfter, buildah, 1.0 / 60}, {"java", "no change", layerAfter, plainKaniko, 1.0 / 400},
	{"java", "code change", layerAfter, buildKit, 1.0 / 8}, {"java", "code change", layerAfter, buildah, 1.0 / 25},
}

// net is the median wall time without that of an empty process of the same
// program; false when there was no run.
func (b *bench) net(k key) (time.Duration, bool) {
	var walls []time.Duration
	for _, r := range b.results[k] {
		walls = append(walls, r.Wall)
	}
	if len(walls) == 0 {
		return 0, false
	}
	return max(measure.Median(walls)-measure.Median(b.empty[k]), 100*time.Microsecond), true
}

// tables is the whole result in Markdown.
func (b *bench) tables() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Run of %s on %d cores (%s/%s), %d rounds in %s, builders in turn within each; medians. Load average before and after each round: %s.\n",
		b.began.UTC().Format("2006-01-02 15:04 UTC"), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, b.done, time.Since(b.began).Round(time.Minute), strings.Join(b.load, ", "))
	names := []string{}
	for _, p := range b.peers {
		names = append(names, p.Name())
	}
	if b.stages != nil {
		names = append(names, b.stages.Name())
	}
	for i := range b.apps {
		b.appTable(&s, &b.apps[i], names)
	}
	b.targetTable(&s)
	b.losses(&s)
	if len(b.skipped) > 0 {
		fmt.Fprintf(&s, "\nNot measured:\n\n")
		for _, r := range b.skipped {
			fmt.Fprintf(&s, "* %s\n", r)
		}
	}
	return s.String()
}

func (b *bench) appTable(s *strings.Builder, app *application, names []string) {
	fmt.Fprintf(s, "\n### %s (%s)\n\n", app.Name, app.about)
	fmt.Fprintf(s, "| scenario | builder | wall ms | without process start | CPU ms | peak MiB | registry requests | sent KiB | package requests | fetched KiB |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, scenario := range scenarios {
		for _, name := range names {
			k := key{app.Name, name, scenario}
			all := b.results[k]
			net, ok := b.net(k)
			if !ok {
				continue
			}
			pick := func(f func(result) int64) int64 {
				var v []int64
				for _, r := range all {
					v = append(v, f(r))
				}
				return measure.Median(v)
			}
			fmt.Fprintf(s, "| %s | %s | %.0f | %.1f | %.0f | %d | %d | %d | %d | %d |\n", scenario, name,
				float64(pick(func(r result) int64 { return r.Wall.Microseconds() }))/1000, ms(net),
				float64(pick(func(r result) int64 { return r.CPU.Microseconds() }))/1000, pick(func(r result) int64 { return r.Peak })>>20,
				pick(func(r result) int64 { return r.Registry.Requests }), pick(func(r result) int64 { return r.Registry.In })>>10,
				pick(func(r result) int64 { return r.Packages.Requests }), pick(func(r result) int64 { return r.Packages.Out })>>10)
		}
	}
}

func (b *bench) targetTable(s *strings.Builder) {
	fmt.Fprintf(s, "\n### Against the targets\n\nRatios of this run, times without process start.\n\n| application | scenario | ratio | target | measured | |\n|---|---|---|---|---|---|\n")
	for _, app := range b.apps {
		for _, t := range targets {
			if t.app != "" && t.app != app.Name {
				continue
			}
			ours, ok1 := b.net(key{app.Name, t.ours, t.scenario})
			other, ok2 := b.net(key{app.Name, t.other, t.scenario})
			if !ok1 || !ok2 {
				continue
			}
			ratio, verdict := float64(ours)/float64(other), "met"
			if ratio > t.most {
				verdict = "**missed**"
			}
			fmt.Fprintf(s, "| %s | %s | %s / %s | %s | %s | %s |\n", app.Name, t.scenario, t.ours, t.other, fraction(t.most), fraction(ratio), verdict)
		}
	}
}

// losses lists where one of our engines took longer than a builder that a user
// could pick instead.
func (b *bench) losses(s *strings.Builder) {
	var lines []string
	for _, app := range b.apps {
		for _, scenario := range scenarios {
			for _, engine := range []string{layerEngine, kanikoEngine} {
				ours, ok := b.net(key{app.Name, engine, scenario})
				var faster []string
				for _, other := range []string{plainKaniko, buildah, buildKit} {
					if t, there := b.net(key{app.Name, other, scenario}); ok && there && t < ours {
						faster = append(faster, fmt.Sprintf("%s %.0f", other, ms(t)))
					}
				}
				if len(faster) > 0 {
					lines = append(lines, fmt.Sprintf("* %s, %s: %s %.0f ms; %s", app.Name, scenario, engine, ms(ours), strings.Join(faster, ", ")))
				}
			}
		}
	}
	fmt.Fprintf(s, "\n### Slower than a peer\n\n")
	if len(lines) == 0 {
		lines = []string{"Nothing in this run."}
	}
	fmt.Fprintln(s, strings.Join(lines, "\n"))
}

// fraction writes 0.025 as 1/40, and from a fifth on as a decimal number.
func fraction(f float64) string {
	if f < 0.2 && f > 0 {
		return fmt.Sprintf("1/%.0f", 1/f)
	}
	return fmt.Sprintf("%.2f", f)
}

// The lines of a document that the tables go between.
const (
	begin = "<!-- bench-build: made by make bench-build OUT=docs/benchmarks.md -->\n"
	end   = "<!-- bench-build: end -->\n"
)

// save writes the tables to a file, between its two lines if it has them.
func save(file, text string) error {
	have, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if head, rest, ok := strings.Cut(string(have), begin); ok {
		if _, tail, ok := strings.Cut(rest, end); ok {
			text = head + begin + "\n" + text + "\n" + end + tail
		}
	}
	return os.WriteFile(file, []byte(text), 0o644)
}
