// Package cliapp runs an urfave/cli application the way our three programs
// behave: no exit from inside the library, usage errors for unknown commands,
// flags and left-over arguments, one designed message on stderr, its exit
// code as the result.
package cliapp

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// Run runs app with args (args[0] is the program's name) and returns the exit
// code. Results go to stdout, help for a wrong command and errors to stderr.
// An app with a Version gets the command and the flag that print it.
// docs is called when an error is printed, for the base URL of help pages; it
// may be nil.
func Run(ctx context.Context, app *cli.App, args []string, stdout, stderr io.Writer, docs func() string) int {
	app.Writer, app.ErrWriter = stdout, stderr
	// The library would exit by itself otherwise.
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.HideHelpCommand = true
	app.OnUsageError = usage
	if app.Version != "" {
		app.HideVersion = true // the library's own flag prints through a global
		app.Flags = append(app.Flags, &cli.BoolFlag{Name: "version", Usage: "print the version"})
		app.Commands = append(app.Commands, &cli.Command{Name: "version", Usage: "print the version", Action: printVersion})
	}
	if action := app.Action; action != nil && len(app.Commands) == 0 {
		// A program that is one command.
		app.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return Usagef("unexpected argument %q", ctx.Args().First())
			}
			return action(ctx)
		}
	} else {
		app.Action = noCommand
	}
	for _, c := range app.Commands {
		prepare(c)
	}
	err := app.RunContext(ctx, flagsFirst(app, args))
	if err == nil {
		return 0
	}
	url := ""
	if docs != nil {
		url = docs()
	}
	usererr.Write(stderr, err, url)
	return usererr.Exit(err)
}

// prepare closes the library's gaps on c and below: OnUsageError is not
// inherited, left-over arguments are ignored silently, an unknown subcommand
// says "No help topic".
func prepare(c *cli.Command) {
	c.OnUsageError = usage
	c.HideHelpCommand = true
	if len(c.Subcommands) > 0 && c.Action == nil {
		c.Action = noCommand
	}
	if action := c.Action; len(c.Subcommands) == 0 && action != nil && c.ArgsUsage == "" {
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return Usagef("unexpected argument %q", ctx.Args().First())
			}
			return action(ctx)
		}
	}
	for _, s := range c.Subcommands {
		prepare(s)
	}
}

// Usagef is a usage error: exit code 2.
func Usagef(format string, args ...any) error {
	return &usererr.Error{Code: usererr.CodeUsage, Err: fmt.Errorf(format, args...)}
}

func usage(_ *cli.Context, err error, _ bool) error {
	return &usererr.Error{Code: usererr.CodeUsage, Err: err}
}

func printVersion(ctx *cli.Context) error {
	_, err := io.WriteString(ctx.App.Writer, ctx.App.Version+"\n")
	return err
}

func noCommand(ctx *cli.Context) error {
	if ctx.Bool("version") && !ctx.Args().Present() {
		return printVersion(ctx)
	}
	commands := ctx.App.Commands
	if ctx.Command != nil && len(ctx.Command.Subcommands) > 0 {
		commands = ctx.Command.Subcommands
	}
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	next := "use one of: " + strings.Join(names, ", ")
	if !ctx.Args().Present() {
		return &usererr.Error{Code: usererr.CodeUsage, Err: fmt.Errorf("no command given"), Next: next}
	}
	return &usererr.Error{Code: usererr.CodeUsage, Err: fmt.Errorf("unknown command %q", ctx.Args().First()), Next: next}
}
