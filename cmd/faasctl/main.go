// Command faasctl is the platform team's program: it builds, signs and
// publishes bundles, makes base images, and runs the embedded services.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// version is stamped by the build.
var version = "dev"

func main() {
	sandbox.Main() // units and build commands run in sandboxes that this program sets up
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args, os.Getenv, os.Stdout, os.Stderr))
}

// run is main without the process: everything it touches is a parameter.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	app := &cli.App{
		Name:     "faasctl",
		Usage:    "run the platform behind the functions",
		Version:  version,
		Commands: commands(getenv),
	}
	return cliapp.Run(ctx, app, args, stdout, stderr, nil)
}

// commands are the program's commands, one file each.
func commands(getenv func(string) string) []*cli.Command {
	return []*cli.Command{
		bundleCommand(getenv),
		imageCommand(getenv),
		localCommand(getenv),
		ossCommand(getenv),
		clusterCommand(getenv),
		renderCommand(),
		sweepCommand(getenv),
	}
}
