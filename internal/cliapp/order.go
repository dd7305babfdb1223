package cliapp

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst moves a command's flags before its arguments, because the library
// stops looking for flags at the first argument: "push NAME --to REPO" means
// what it says. What follows "--" stays as it is.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	commands, flags := app.Commands, app.Flags
	i := 1
	for i < len(args) {
		n := flagWidth(flags, args[i:])
		if n == 0 {
			c := find(commands, args[i])
			if c == nil && len(commands) == 0 {
				break
			}
			if c == nil || c.SkipFlagParsing {
				return args // an unknown command is the first thing to say
			}
			commands, flags, n = c.Subcommands, c.Flags, 1
		}
		i = min(i+n, len(args))
	}
	front, rest := append([]string{}, args[:i]...), []string{}
	for i < len(args) {
		if args[i] == "--" {
			rest = append(append([]string{"--"}, rest...), args[i+1:]...)
			break
		}
		if n := flagWidth(flags, args[i:]); n > 0 {
			n = min(n, len(args)-i)
			front = append(front, args[i:i+n]...)
			i += n
			continue
		}
		rest = append(rest, args[i])
		i++
	}
	return append(front, rest...)
}

// flagWidth is how many of args the flag at their beginning takes: 0 when they
// begin with something else, 2 when its value is the next argument.
func flagWidth(flags []cli.Flag, args []string) int {
	name := strings.TrimLeft(args[0], "-")
	if name == args[0] || name == "" {
		return 0
	}
	if strings.Contains(name, "=") {
		return 1
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if d, ok := f.(cli.DocGenerationFlag); ok && n == name && d.TakesValue() {
				return 2
			}
		}
	}
	return 1
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
