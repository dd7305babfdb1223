// Command faas is the developer's program: what would be built, what is live,
// and back to what was live before.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/ahead"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/nogc"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
	"github.com/kuroko-faas/kuroko/internal/worktree"
)

// version is stamped by the build.
var version = "dev"

func main() {
	nogc.End(1000) // from 40 MiB on; it ends before they matter
	sandbox.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args, os.Environ(), ahead.Look(), os.Stdin, os.Stdout, os.Stderr)
	ahead.Look().Close()
	os.Exit(code)
}

// run is main without the process: everything it touches is a parameter. look
// is at a work tree that may be the one that is asked about; nil for none.
func run(ctx context.Context, args, environ []string, look *worktree.Look, stdin io.Reader, stdout, stderr io.Writer) int {
	secrets := redact.New(ci.Secrets(environ)...)
	out, log := secrets.Writer(stdout), secrets.Writer(stderr)
	defer out.Close()
	defer log.Close()
	c := command{environ: environ, stdin: stdin, stdout: out, stderr: log, ahead: look}
	where := []cli.Flag{
		&cli.StringFlag{Name: "env", Usage: "the `ENVIRONMENT`; default $FAAS_ENVIRONMENT"},
		&cli.StringFlag{Name: "dir", Usage: "the repository's `FOLDER`", Value: "."},
		&cli.Int64Flag{Name: "project-id", Usage: "the `ID` of the GitLab project; default $CI_PROJECT_ID"},
		&cli.BoolFlag{Name: "json", Usage: "print JSON"},
	}
	// What looks at or ends releases needs no faas.yml.
	record := append([]cli.Flag{
		&cli.StringFlag{Name: "service", Usage: "the service's `NAME`, in place of faas.yml"},
		&cli.StringFlag{Name: "cluster", Usage: "with --service: the `CLUSTER`; default the environment's in clusters.yml"},
		&cli.StringFlag{Name: "namespace", Usage: "with --service: the `NAMESPACE`; default the cluster's in clusters.yml"},
	}, where...)
	app := &cli.App{
		Name:    "faas",
		Usage:   "plan, look at and roll back the functions of a repository",
		Version: version,
		Commands: []*cli.Command{
			c.planCommand(where),
			{Name: "schema", Usage: "print the JSON Schema of faas.yml, for editors", Action: c.schema,
				Flags: []cli.Flag{&cli.StringFlag{Name: "dir", Usage: "the repository's `FOLDER`", Value: "."}}},
			{Name: "import", Usage: "print a faas.yml made from another tool's file", ArgsUsage: "FILE", Action: c.importFile,
				Flags: []cli.Flag{&cli.StringFlag{Name: "from", Usage: "the `FORMAT`: midway, serverless, func or gitlabktl; default by the file's content"}}},
			{Name: "status", Usage: "print what is live, held, under way, and whether a rollback is ready", Flags: record, Action: c.status},
			{Name: "stop", Usage: "end what the environment runs; the records stay", Action: c.stop,
				Flags: append([]cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do it; without this the command says what would end"}}, record...)},
			c.imageCommand(where),
			{Name: "release", Usage: "look at releases and go back to one", Subcommands: []*cli.Command{
				{Name: "list", Usage: "list the releases that can be rolled back to", Flags: record, Action: c.list},
				{Name: "show", Usage: "print one release's record", ArgsUsage: "RELEASE", Flags: record, Action: c.show},
				{Name: "rollback", Usage: "make an earlier release live, without a build, and hold it", Action: c.rollback,
					Flags: append([]cli.Flag{&cli.StringFlag{Name: "to", Usage: "the `RELEASE`; default the one before"},
						&cli.BoolFlag{Name: "now", Usage: "don't wait until it has as many instances as the traffic needs"}}, record...)},
				{Name: "promote", Usage: "go on with a release that waits for a person", Flags: record, Action: c.promote},
				{Name: "resume", Usage: "let pipelines deploy again after a rollback", Flags: record, Action: c.resume},
			}},
			c.secretCommand(where),
			c.runCommand(record),
		},
	}
	return cliapp.Run(ctx, app, args, out, log, nil)
}
