// Command demo runs Kuroko's whole main job on this machine: a signed platform
// bundle in an object store, a function repository's GitLab pipeline, an image
// built without a daemon, the function answering over HTTP; then a platform
// change that reaches the repository without a commit in it.
//
// The human log goes to stderr. The last line of stdout is one JSON object.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func main() {
	sandbox.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// run is main without the process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := &cli.App{
		Name:  "demo",
		Usage: "run the whole main job on this machine",
		Commands: []*cli.Command{
			{
				Name:  "run",
				Usage: "run it",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "mark", Usage: "the `WORD` that the platform change makes visible", Value: "unnoticed"},
					&cli.BoolFlag{Name: "keep", Usage: "leave everything running and say how to stop it"},
					&cli.StringFlag{Name: "bin", Usage: "the `FOLDER` with the built programs", Value: "bin"},
					&cli.StringFlag{Name: "target", Usage: "where the function runs: local, or knative (the lab)", Value: "local"},
					&cli.StringFlag{Name: "sandbox", Usage: "how units run: auto, root, userns or none", Value: "auto"},
				},
				Action: func(c *cli.Context) error {
					if m := c.String("mark"); m == "" || len(m) > 128 || strings.ContainsFunc(m, func(r rune) bool { return r < ' ' || r > '~' }) {
						return cliapp.Usagef("--mark is shown in a header: 1 to 128 printable ASCII characters, not %q", m)
					}
					d := demo{
						mark: c.String("mark"), target: c.String("target"), keep: c.Bool("keep"), bin: c.String("bin"), sandbox: c.String("sandbox"),
						stdout: stdout, stderr: stderr,
					}
					return d.run(c.Context)
				},
			},
			{
				Name:  "try",
				Usage: "deploy a repository to a platform on this machine, until Ctrl-C",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "dir", Usage: "the repository's `FOLDER`", Value: "."},
					&cli.StringFlag{Name: "sandbox", Usage: "how units run: auto, root, userns or none", Value: "auto"},
				},
				Action: func(c *cli.Context) error {
					return try(c.Context, c.String("dir"), c.String("sandbox"), stdout, stderr)
				},
			},
			{
				Name:   "serve",
				Usage:  "run the embedded services until SIGTERM",
				Hidden: true,
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "dir"},
					&cli.StringFlag{Name: "sandbox", Value: "auto"},
				},
				Action: func(c *cli.Context) error { return serve(c.Context, c.String("dir"), c.String("sandbox"), stdout) },
			},
		},
	}
	return cliapp.Run(ctx, app, args, stdout, stderr, nil)
}
