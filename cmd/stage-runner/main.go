// Command stage-runner is the program in the CI job image: it chooses and
// verifies the platform bundle, becomes the runner that the bundle names, and
// runs stages.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/nogc"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// version is stamped by the build. A bundle names runners by it.
var version = "dev"

func main() {
	nogc.End(100)
	sandbox.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args, os.Environ(), os.Stdout, os.Stderr))
}

// run is main without the process: everything it touches is a parameter.
// Nothing is written that has not passed the redactor.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	secrets := redact.New(ci.Secrets(environ)...)
	out, log := secrets.Writer(stdout), secrets.Writer(stderr)
	defer out.Close()
	defer log.Close()
	var docs string
	app := &cli.App{
		Name:    "stage-runner",
		Usage:   "run a pipeline's stages under the newest platform bundle",
		Version: version,
		Commands: []*cli.Command{
			{
				Name:      "run",
				Usage:     "run stages in order, in one process",
				ArgsUsage: "STAGE[,STAGE…]",
				Action: func(c *cli.Context) error {
					names, err := stageNames(c.Args().Slice())
					if err != nil {
						return err
					}
					j := job{environ: environ, args: args, stdout: out, stderr: log, secrets: secrets, docs: &docs}
					return j.run(c.Context, names)
				},
			},
		},
	}
	return cliapp.Run(ctx, app, args, out, log, func() string { return docs })
}

// stageNames splits prepare,test,build.
func stageNames(args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, cliapp.Usagef("no stage given, for example: stage-runner run prepare,test,build")
	}
	if len(args) > 1 {
		return nil, cliapp.Usagef("stages are one argument, joined by commas: %s", strings.Join(args, ","))
	}
	names := strings.Split(args[0], ",")
	for _, n := range names {
		if n == "" {
			return nil, cliapp.Usagef("%q has an empty stage name", args[0])
		}
	}
	return names, nil
}
