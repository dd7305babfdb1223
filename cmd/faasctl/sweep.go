package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/urfave/cli/v2"
	"k8s.io/client-go/rest"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/stages"
)

// clusterFlags say which cluster a command talks to.
func clusterFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "kubeconfig", Usage: "the `FILE`; default $KUBECONFIG, or the pod's own account inside a cluster"},
		&cli.StringFlag{Name: "context", Usage: "the kubeconfig's `CONTEXT`; default its current one"},
	}, more...)
}

// openCluster opens the cluster that the flags name.
func openCluster(c *cli.Context, getenv func(string) string, cfg knative.Config) (*knative.Target, error) {
	bad := func(err error, next string) error {
		return &usererr.Error{Code: usererr.CodeEnvironment, Class: usererr.Config, What: "open the cluster", Err: err, Next: next}
	}
	cfg.Kubeconfig, cfg.Context = c.String("kubeconfig"), c.String("context")
	if cfg.Kubeconfig == "" {
		cfg.Kubeconfig = getenv("KUBECONFIG")
	}
	if cfg.Kubeconfig == "" {
		inside, err := rest.InClusterConfig()
		if err != nil {
			return nil, bad(errors.New("KUBECONFIG is not set, and this is no pod of a cluster"), "name a kubeconfig with --kubeconfig")
		}
		cfg.REST = inside
	}
	t, err := knative.New(cfg)
	if err != nil {
		return nil, bad(err, "check the kubeconfig and its context")
	}
	return t, nil
}

// sweepCommand is the watchdog, and its work done once.
func sweepCommand(getenv func(string) string) *cli.Command {
	return &cli.Command{
		Name:  "sweep",
		Usage: "take back rollouts whose job died, remove what no release needs",
		Description: "Writes one line of JSON on stdout for everything it did. Without --watch it goes over\n" +
			"all scopes once; a rollout that is open then is watched for as long as its holder might\n" +
			"still be alive. Nothing that is held, or of another owner, is touched.",
		Flags: clusterFlags(
			&cli.StringSliceFlag{Name: "namespace", Usage: "only this `NAMESPACE`; may be repeated"},
			&cli.BoolFlag{Name: "watch", Usage: "go on until ended; the cluster's watchdog"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what is due, write nothing"},
			&cli.DurationFlag{Name: "every", Value: 5 * time.Second, Usage: "`TIME` between two looks for dead rollouts"},
			&cli.DurationFlag{Name: "full", Value: 10 * time.Minute, Usage: "`TIME` between two whole sweeps of a scope"},
			&cli.DurationFlag{Name: "leftover", Value: time.Hour, Usage: "how long a failed or unused revision stays: `TIME`"},
			&cli.DurationFlag{Name: "grace", Value: 72 * time.Hour, Usage: "how long an orphan stays after its tombstone: `TIME`"},
			&cli.DurationFlag{Name: "lease", Value: 30 * time.Second, Usage: "how long a holder must stand still to count as dead, at least: `TIME`"},
			&cli.StringFlag{Name: "lead-in", Usage: "the `NAMESPACE` of the lease by which several watchdogs agree on one; empty: this is the only one"},
			&cli.StringFlag{Name: "health", Usage: "serve /healthz at this `ADDRESS`"},
		),
		Action: func(c *cli.Context) error { return sweep(c, getenv) },
	}
}

func sweep(c *cli.Context, getenv func(string) string) error {
	for _, name := range []string{"every", "full", "leftover", "grace", "lease"} {
		if c.Duration(name) <= 0 {
			return cliapp.Usagef("--%s: %s is not a time", name, c.Duration(name))
		}
	}
	watch := c.Bool("watch")
	for _, name := range []string{"lead-in", "health"} {
		if !watch && c.String(name) != "" {
			return cliapp.Usagef("--%s is for --watch", name)
		}
	}
	t, err := openCluster(c, getenv, knative.Config{
		Namespaces: c.StringSlice("namespace"),
		// A release's tags go with its record, and a large record is read from
		// there, as far as the docker config lets us.
		Artefacts: true, Keychain: authn.DefaultKeychain,
	})
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	me := fmt.Sprintf("watchdog %s/%d", host, os.Getpid())
	s := deployer.NewSweeper(t, deployer.SweepOptions{
		Options:  deployer.Options{Holder: me, Lease: deployer.LeaseTimes{For: c.Duration("lease")}},
		Leftover: c.Duration("leftover"), Grace: c.Duration("grace"), DryRun: c.Bool("dry-run"),
	})
	log := &sweepLog{w: c.App.Writer}
	if !watch {
		return sweepOnce(c.Context, t, s, log, c.Duration("lease"))
	}
	var looked atomic.Int64
	looked.Store(time.Now().UnixNano())
	_, stop, err := serveHealth(c.String("health"), func() time.Duration { return time.Since(time.Unix(0, looked.Load())) }, c.Duration("every"))
	if err != nil {
		return err
	}
	defer stop()
	work := func(ctx context.Context) {
		log.say(sweepLine{Level: "info", Msg: "watching", By: me})
		s.Watch(ctx, t, deployer.WatchOptions{
			Every: c.Duration("every"), Full: c.Duration("full"), Report: log.swept,
			Looked: func() { looked.Store(time.Now().UnixNano()) },
		})
	}
	if ns := c.String("lead-in"); ns != "" {
		// Who does not lead is healthy as long as it waits its turn.
		ctx, cancel := context.WithCancel(c.Context)
		defer cancel()
		var leading atomic.Bool
		go func() {
			for tick := time.NewTicker(time.Second); ctx.Err() == nil; {
				select {
				case <-tick.C:
					if !leading.Load() {
						looked.Store(time.Now().UnixNano())
					}
				case <-ctx.Done():
					tick.Stop()
				}
			}
		}()
		err = t.Lead(ctx, ns, me, func(ctx context.Context) {
			leading.Store(true)
			defer leading.Store(false)
			work(ctx)
		})
		if err != nil {
			return stages.Explain(c.Context, err)
		}
		return nil
	}
	work(c.Context)
	return nil // being ended is how a watchdog succeeds
}

// sweepOnce goes over all scopes, and looks again at those that are being
// written for as long as their holder might be dead.
func sweepOnce(ctx context.Context, t *knative.Target, s *deployer.Sweeper, log *sweepLog, lease time.Duration) error {
	var errs []error
	deadline := time.Now().Add(2 * lease)
	settled := map[deployer.Scope]bool{}
	for {
		all, err := t.Scopes(ctx)
		if err != nil && len(all) == 0 {
			return stages.Explain(ctx, err)
		}
		if err != nil && len(settled) == 0 {
			errs = append(errs, err)
		}
		waits := 0
		for _, rec := range all {
			if settled[rec.Scope] {
				continue
			}
			sw, err := s.Sweep(ctx, rec, all)
			if err == nil && sw.Waits != "" && rec.Head.Holder != "" && time.Now().Before(deadline) {
				waits++
				continue
			}
			settled[rec.Scope] = true
			log.swept(sw, err)
			if err != nil {
				errs = append(errs, err)
			}
		}
		if waits == 0 || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(min(lease/4, 2*time.Second)):
		case <-ctx.Done():
		}
	}
	if len(errs) > 0 || ctx.Err() != nil {
		return stages.Explain(ctx, errors.Join(append(errs, ctx.Err())...))
	}
	log.say(sweepLine{Level: "info", Msg: "swept", Scopes: len(settled)})
	return nil
}

// serveHealth answers /healthz at addr while the last look is recent; at is
// the address that it got. stop ends it.
func serveHealth(addr string, age func() time.Duration, every time.Duration) (at string, stop func(), err error) {
	if addr == "" {
		return "", func() {}, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, &usererr.Error{Code: usererr.CodeUnable, What: "serve health", Err: err, Next: "choose another --health address"}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		// A look has 30 s; one may fail without the pod being to blame.
		if a := age(); a > 6*every+time.Minute {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "the last look at the cluster was %s ago\n", a.Round(time.Second))
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(ln) }() // ends with Close
	return ln.Addr().String(), func() { _ = srv.Close() }, nil
}

// sweepLine is one line of the watchdog's log.
type sweepLine struct {
	Time        time.Time `json:"time"`
	Level       string    `json:"level"` // info, warn, error
	Msg         string    `json:"msg"`
	Service     string    `json:"service,omitempty"`
	Environment string    `json:"environment,omitempty"`
	Namespace   string    `json:"namespace,omitempty"`
	Owner       string    `json:"owner,omitempty"`
	Scopes      int       `json:"scopes,omitempty"`
	By          string    `json:"by,omitempty"`
}

// sweepLog writes lines, one at a time.
type sweepLog struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *sweepLog) say(line sweepLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line.Time = time.Now().UTC()
	_ = json.NewEncoder(l.w).Encode(line) // nobody is left to tell
}

func (l *sweepLog) swept(s deployer.Swept, err error) {
	line := sweepLine{Service: s.Scope.Service, Environment: s.Scope.Environment, Namespace: s.Scope.Namespace, Owner: s.Scope.Owner}
	for _, d := range s.Done {
		line.Level, line.Msg = "info", d
		l.say(line)
	}
	for _, n := range s.Notes {
		line.Level, line.Msg = "warn", n
		l.say(line)
	}
	if s.Waits != "" {
		line.Level, line.Msg = "info", "left: "+s.Waits
		l.say(line)
	}
	if err != nil {
		line.Level, line.Msg = "error", err.Error()
		l.say(line)
	}
}
