package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kuroko-faas/kuroko/lab/internal/cluster"
	"github.com/kuroko-faas/kuroko/lab/internal/image"
	"github.com/kuroko-faas/kuroko/lab/internal/parts"
	"github.com/kuroko-faas/kuroko/lab/internal/tagged"
)

type program struct {
	o              cluster.Options
	stdout, stderr io.Writer
}

// flags parses a command's flags and arguments in any order.
func (p program) flags(name string, args []string, define func(*flag.FlagSet)) ([]string, error) {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	define(f)
	var rest []string
	for {
		if err := f.Parse(args); err != nil {
			return nil, fmt.Errorf("%w: %s: %v", errUsage, name, err)
		}
		if f.NArg() == 0 {
			return rest, nil
		}
		rest = append(rest, f.Arg(0))
		args = f.Args()[1:]
	}
}

func (p program) up(ctx context.Context, args []string) error {
	tier := string(p.o.Tier)
	rest, err := p.flags("up", args, func(f *flag.FlagSet) { f.StringVar(&tier, "tier", tier, "") })
	if err == nil {
		err = none(rest)
	}
	if err != nil {
		return err
	}
	p.o.Tier = cluster.Tier(tier)
	if p.o.Tier != cluster.TierPods && p.o.Tier != cluster.TierKnative {
		return fmt.Errorf("%w: no tier %q", errUsage, tier)
	}
	if _, err := cluster.Up(ctx, p.o); err != nil {
		return err
	}
	_, err = p.status(nil)
	return err
}

func (p program) status(args []string) (int, error) {
	asJSON := false
	rest, err := p.flags("status", args, func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "") })
	if err == nil {
		err = none(rest)
	}
	if err != nil {
		return 0, err
	}
	st, err := cluster.StatusOf(p.o.State)
	if err != nil {
		return 0, err
	}
	code := 0
	if st.State == "broken" {
		code = 1
	}
	if asJSON {
		e := json.NewEncoder(p.stdout)
		e.SetIndent("", "  ")
		return code, e.Encode(st)
	}
	printStatus(p.stdout, st)
	return code, nil
}

func printStatus(w io.Writer, st cluster.Status) {
	fmt.Fprintf(w, "lab is %s\n", st.State)
	if i := st.Info; i != nil {
		fmt.Fprintf(w, "  kubeconfig  %s\n  API         %s\n  registry    %s\n", i.Kubeconfig, i.API, i.Registry)
		if i.Ingress != "" {
			fmt.Fprintf(w, "  ingress     http://%s/   Host: NAME.NAMESPACE.%s\n", i.Ingress, i.Domain)
		}
		fmt.Fprintf(w, "  kubectl     %s\n  logs        %s\n  variables   eval \"$(lab env)\" or %s\n", i.Bin["kubectl"], i.Logs, filepath.Join(i.State, "lab.env"))
	}
	if st.Processes > 0 {
		fmt.Fprintf(w, "  memory      %d MB in %d processes\n", st.RSS>>20, st.Processes)
	}
	for _, c := range st.Components {
		if c.Exited == "" {
			fmt.Fprintf(w, "  %-24s pid %-7d %4d MB\n", c.Name, c.PID, c.RSS>>20)
		}
	}
	for _, d := range st.Died {
		fmt.Fprintf(w, "%s\n    %s\n", d, strings.ReplaceAll(d.LogEnd, "\n", "\n    "))
	}
}

// running is the lab that is up, else an error that says what to do.
func (p program) running() (cluster.Info, error) {
	st, err := cluster.StatusOf(p.o.State)
	if err != nil {
		return cluster.Info{}, err
	}
	if st.State != "up" {
		return cluster.Info{}, fmt.Errorf("the lab is %s; make lab-up starts it", st.State)
	}
	return *st.Info, nil
}

func (p program) env(args []string) error {
	if err := none(args); err != nil {
		return err
	}
	i, err := p.running()
	if err != nil {
		return err
	}
	for _, v := range i.Env() {
		fmt.Fprintf(p.stdout, "export %s\n", v)
	}
	return nil
}

func (p program) run(ctx context.Context, args []string) (int, error) {
	argv, err := afterDashes(args)
	if err != nil {
		return 0, err
	}
	i, err := p.running()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), i.Env()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, p.stdout, p.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func (p program) build(ctx context.Context, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	set := parts.Set{Lab: p.o.Lab, Cache: p.o.Cache, Log: p.o.Log}
	paths, err := set.Build(ctx, parts.Names())
	if err != nil {
		return err
	}
	for _, n := range parts.Names() {
		fmt.Fprintf(p.stdout, "%s\t%s\n", n, paths[n])
	}
	return nil
}

func (p program) image(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%w: image REF FILE[:PATH]...", errUsage)
	}
	var s image.Spec
	for _, a := range args[1:] {
		src, dst, ok := strings.Cut(a, ":")
		if !ok {
			dst = "/app/" + path.Base(src)
		}
		s.Files = append(s.Files, image.File{Source: src, Path: dst})
	}
	ref, err := image.Push(ctx, args[0], s)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, ref)
	return nil
}

// test runs the tests of a tag: api beside the rootless tier, e2e in the full
// lab, which it starts, and ends again unless it was up before.
func (p program) test(ctx context.Context, args []string) (int, error) {
	var runExpr string
	var long, keep bool
	rest, err := p.flags("test", args, func(f *flag.FlagSet) {
		f.StringVar(&runExpr, "run", "", "")
		f.BoolVar(&long, "long", false, "")
		f.BoolVar(&keep, "keep", false, "")
	})
	if err != nil {
		return 0, err
	}
	if len(rest) == 0 || rest[0] != "api" && rest[0] != "e2e" {
		return 0, fmt.Errorf("%w: test api or test e2e", errUsage)
	}
	tag, dirs := rest[0], rest[1:]
	if tag == "e2e" {
		if err := cluster.Possible(); err != nil {
			return 0, err
		}
	}
	modules := []string{p.o.Checkout, p.o.Lab}
	pkgs, err := tagged.Find(modules, tag)
	if err != nil {
		return 0, err
	}
	if pkgs, err = chosen(pkgs, dirs); err != nil {
		return 0, err
	}
	if len(pkgs) == 0 {
		return 0, fmt.Errorf("no tests with build tag %s", tag)
	}
	tmp, err := os.MkdirTemp("", "kuroko-lab-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	p.o.Log("compiling the %s tests of %d packages", tag, len(pkgs))
	if err := tagged.Compile(ctx, p.o.Checkout, tag, tmp, pkgs, p.stderr); err != nil {
		return 0, err
	}
	timeout := 40 * time.Minute // a quiet machine needs less than 15, a busy one its time
	if long {
		timeout = 2 * time.Hour
		if err := os.Setenv("KUROKO_LAB_LONG", "1"); err != nil {
			return 0, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	if err := os.Setenv("KUROKO_LAB_PROGRAM", self); err != nil { // tests of the lab itself start labs of their own
		return 0, err
	}
	plan := tagged.NewPlan(p.o.Checkout, pkgs, runExpr, timeout)
	if tag == "api" {
		b, err := json.Marshal(plan)
		if err != nil {
			return 0, err
		}
		file := filepath.Join(tmp, "plan.json")
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return 0, err
		}
		return cluster.Rootless(ctx, p.o, []string{self, "test-plan", tag, file})
	}
	return p.inLab(ctx, keep, func() (int, error) { return p.execute(ctx, tag, plan) })
}

// inLab runs f with the variables of the full lab, which it starts, and ends
// again unless it was up before or is to be kept.
func (p program) inLab(ctx context.Context, keep bool, f func() (int, error)) (int, error) {
	before, err := cluster.StatusOf(p.o.State)
	if err != nil {
		return 0, err
	}
	info, err := cluster.Up(ctx, p.o)
	if err != nil {
		return 0, err
	}
	for _, v := range info.Env() {
		k, val, _ := strings.Cut(v, "=")
		if err := os.Setenv(k, val); err != nil {
			return 0, err
		}
	}
	code, err := f()
	if st, serr := cluster.StatusOf(p.o.State); serr == nil && st.State != "up" {
		printStatus(p.stderr, st)
		err = errors.Join(err, errors.New("the lab did not survive the tests"))
	}
	if before.State != "up" && !keep {
		// Not with ctx: an interrupted run cleans up as well.
		err = errors.Join(err, cluster.Down(context.Background(), p.o.State, p.o.Log))
	}
	return code, err
}

// chosen keeps the packages below one of dirs; all of them without any.
func chosen(pkgs []tagged.Package, dirs []string) ([]tagged.Package, error) {
	if len(dirs) == 0 {
		return pkgs, nil
	}
	var out []tagged.Package
	for _, d := range dirs {
		abs, err := filepath.Abs(strings.TrimSuffix(d, "/..."))
		if err != nil {
			return nil, err
		}
		n := len(out)
		for _, k := range pkgs {
			if k.Dir == abs || strings.HasPrefix(k.Dir, abs+string(filepath.Separator)) {
				out = append(out, k)
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("%s: no tests with that build tag", d)
		}
	}
	return out, nil
}

func (p program) testPlan(ctx context.Context, args []string) (int, error) {
	if len(args) != 2 {
		return 0, fmt.Errorf("%w: test-plan TAG FILE", errUsage)
	}
	b, err := os.ReadFile(args[1])
	if err != nil {
		return 0, err
	}
	var plan tagged.Plan
	if err := json.Unmarshal(b, &plan); err != nil {
		return 0, fmt.Errorf("%s: %w", args[1], err)
	}
	return p.execute(ctx, args[0], plan)
}

func (p program) execute(ctx context.Context, tag string, plan tagged.Plan) (int, error) {
	start := time.Now()
	c, err := plan.Execute(ctx, p.stdout)
	fmt.Fprintf(p.stdout, "%s: %d tests ran in %.0f s\n%s: %d passed, %d failed, %d skipped\n",
		tag, c.Ran(), time.Since(start).Seconds(), tag, c.Passed, c.Failed, c.Skipped)
	if errors.Is(err, tagged.ErrFailed) {
		return 1, nil
	}
	return 0, err
}

// serveRegistry is the lab's registry: blobs on disk, manifests in memory,
// plain http.
func serveRegistry(args []string) error {
	f := flag.NewFlagSet("registry", flag.ContinueOnError)
	addr := f.String("addr", "127.0.0.1:5000", "")
	dir := f.String("dir", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	o := []registry.Option{registry.Logger(log.New(os.Stderr, "", log.LstdFlags)), registry.WithReferrersSupport(true)}
	if *dir != "" {
		if err := os.MkdirAll(*dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		o = append(o, registry.WithBlobHandler(registry.NewDiskBlobHandler(*dir)))
	}
	srv := &http.Server{Addr: *addr, Handler: registry.New(o...), ReadHeaderTimeout: 10 * time.Second}
	return srv.ListenAndServe()
}
