// Command lab runs a real Kubernetes with Knative Serving on one machine, from
// Go modules and Debian packages: see docs/lab.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/lab/internal/cluster"
)

const usage = `usage: lab COMMAND

  up [--tier pods|knative]     start the lab, or find it started (root)
  down                         end it and leave nothing of it
  status [--json]              what runs, where, how much memory
  env                          variables for a shell: eval "$(lab env)"
  run -- COMMAND...            a command with those variables
  rootless -- COMMAND...       a command beside an API server with Knative's webhook and controller (no root, no pods)
  test api|e2e [--run RE] [--long] [--keep] [DIR...]
                               tests with that build tag, beside the rootless tier or the full lab
  conformance [knative|gateway] [--run RE]
                               public conformance suites against the lab's ingress (root)
  image REF FILE[:PATH]...     a one-layer image of static programs, pushed; prints it by digest
  build                        make what the lab runs, if the cache lacks it
  traces                       what the lab has on this machine now, one line each

Exit codes: 0, 1 (failed), 2 (usage), 77 (can't run on this machine).
`

// unavailable is the exit code of a lab that can't run on this machine.
const unavailable = 77

// errUsage is in the chain of errors about the command line.
var errUsage = errors.New("usage")

func main() {
	os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	// The lab's own processes have no use for signals a shell sends.
	if len(args) > 0 {
		switch args[0] {
		case "init", "api-init", "registry", "true":
			return internal(args, stderr)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code, err := command(ctx, args, getenv, stdout, stderr)
	switch {
	case err == nil:
		return code
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "%v\n%s", err, usage)
		return 2
	case errors.Is(err, cluster.ErrUnavailable):
		fmt.Fprintf(stderr, "lab: %v\n", err)
		return unavailable
	default:
		fmt.Fprintf(stderr, "lab: %v\n", err)
		return 1
	}
}

// internal are the commands that the lab starts itself with.
func internal(args []string, stderr io.Writer) int {
	var err error
	code := 0
	switch {
	case args[0] == "true":
	case args[0] == "init" && len(args) == 2:
		err = cluster.Init(args[1])
	case args[0] == "api-init" && len(args) > 2:
		code, err = cluster.APIInit(args[1], args[2:])
	case args[0] == "registry":
		err = serveRegistry(args[1:])
	default:
		err = errUsage
	}
	if err != nil {
		fmt.Fprintf(stderr, "lab %s: %v\n", args[0], err)
		return 1
	}
	return code
}

func command(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) (int, error) {
	if len(args) == 0 {
		return 0, fmt.Errorf("%w: a command is missing", errUsage)
	}
	if args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		fmt.Fprint(stdout, usage)
		return 0, nil
	}
	o, err := options(getenv)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	o.Log = func(format string, a ...any) {
		fmt.Fprintf(stderr, "lab %4.0fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, a...))
	}
	p := program{o: o, stdout: stdout, stderr: stderr}
	rest := args[1:]
	switch args[0] {
	case "up":
		return 0, p.up(ctx, rest)
	case "down":
		if err := none(rest); err != nil {
			return 0, err
		}
		return 0, cluster.Down(ctx, o.State, o.Log)
	case "status":
		return p.status(rest)
	case "env":
		return 0, p.env(rest)
	case "run":
		return p.run(ctx, rest)
	case "rootless":
		argv, err := afterDashes(rest)
		if err != nil {
			return 0, err
		}
		return cluster.Rootless(ctx, o, argv)
	case "test":
		return p.test(ctx, rest)
	case "test-plan": // what test starts inside the rootless tier
		return p.testPlan(ctx, rest)
	case "conformance":
		return p.conformance(ctx, rest)
	case "image":
		return 0, p.image(ctx, rest)
	case "build":
		return 0, p.build(ctx, rest)
	case "traces":
		for _, t := range cluster.Traces(o.State, cluster.ID(o.State)) {
			fmt.Fprintln(stdout, t)
		}
		return 0, none(rest)
	}
	return 0, fmt.Errorf("%w: no command %q", errUsage, args[0])
}

// options finds the checkout above the working directory, and the folders that
// belong to it.
//
//	KUROKO_LAB_CACHE  parts (default: the user's cache folder, kuroko/lab)
//	KUROKO_LAB_STATE  this lab's state (default: a folder per checkout in the user's state folder)
func options(getenv func(string) string) (cluster.Options, error) {
	wd, err := os.Getwd()
	if err != nil {
		return cluster.Options{}, err
	}
	checkout := wd
	for {
		if _, err := os.Stat(filepath.Join(checkout, "lab", "kube", "go.mod")); err == nil {
			break
		}
		up := filepath.Dir(checkout)
		if up == checkout {
			return cluster.Options{}, fmt.Errorf("%s lies in no checkout of Kuroko: there is no lab/kube/go.mod above it", wd)
		}
		checkout = up
	}
	if checkout, err = filepath.EvalSymlinks(checkout); err != nil {
		return cluster.Options{}, err
	}
	o := cluster.Options{Checkout: checkout, Lab: filepath.Join(checkout, "lab"), Tier: cluster.TierKnative,
		Cache: getenv("KUROKO_LAB_CACHE"), State: getenv("KUROKO_LAB_STATE")}
	home := getenv("HOME")
	if o.Cache == "" {
		base := getenv("XDG_CACHE_HOME")
		if base == "" {
			base = filepath.Join(home, ".cache")
		}
		o.Cache = filepath.Join(base, "kuroko", "lab")
	}
	if o.State == "" {
		base := getenv("XDG_STATE_HOME")
		if base == "" {
			base = filepath.Join(home, ".local", "state")
		}
		o.State = filepath.Join(base, "kuroko", "lab", cluster.ID(checkout))
	}
	if o.State, err = filepath.Abs(o.State); err != nil {
		return o, err
	}
	o.Cache, err = filepath.Abs(o.Cache)
	return o, err
}

func none(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: unexpected %q", errUsage, args[0])
	}
	return nil
}

func afterDashes(args []string) ([]string, error) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("%w: a command to run is missing", errUsage)
	}
	return args, nil
}
