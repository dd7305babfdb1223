package cliapp

import (
	"bytes"
	"errors"
	"testing"

	"github.com/urfave/cli/v2"
)

func app() *cli.App {
	return &cli.App{Name: "tool", Commands: []*cli.Command{
		{Name: "ok", Flags: []cli.Flag{&cli.IntFlag{Name: "n"}}, Action: func(c *cli.Context) error { c.App.Writer.Write([]byte("result\n")); return nil }},
		{Name: "take", ArgsUsage: "NAME", Action: func(c *cli.Context) error { c.App.Writer.Write([]byte(c.Args().First())); return nil }},
		{Name: "bad", Action: func(*cli.Context) error { return errors.New("boom") }},
		{Name: "coded", Action: func(*cli.Context) error { return cli.Exit("no", 9) }},
		{Name: "group", Subcommands: []*cli.Command{{Name: "sub", Action: func(*cli.Context) error { return nil }}}},
	}}
}

// The four traps of the library, each as a user would fall into it.
func TestCommandLine(t *testing.T) {
	tests := []struct {
		args           []string
		code           int
		stdout, stderr string // stderr: first two lines
	}{
		{[]string{"ok"}, 0, "result\n", ""},
		{[]string{"take", "x"}, 0, "x", ""},
		{[]string{"ok", "left", "over"}, 2, "", "error: understand the command\n  why:  unexpected argument \"left\"\n"},
		{[]string{"ok", "--nope"}, 2, "", "error: understand the command\n  why:  flag provided but not defined: -nope\n"},
		{[]string{"ok", "--n=x"}, 2, "", "error: understand the command\n"},
		{[]string{"nope"}, 2, "", "error: understand the command\n  why:  unknown command \"nope\"\n  next: use one of: bad, coded, group, ok, take\n"},
		{[]string{"group", "nope"}, 2, "", "error: understand the command\n  why:  unknown command \"nope\"\n  next: use one of: sub\n"},
		{[]string{"group", "sub", "x"}, 2, "", "error: understand the command\n"},
		{nil, 2, "", "error: understand the command\n  why:  no command given\n"},
		{[]string{"bad"}, 70, "", "error: finish the job\n  why:  boom\n"},
		{[]string{"coded"}, 70, "", "error: finish the job\n"},
	}
	for _, tt := range tests {
		var stdout, stderr bytes.Buffer
		code := Run(t.Context(), app(), append([]string{"tool"}, tt.args...), &stdout, &stderr, nil)
		if code != tt.code || stdout.String() != tt.stdout || !bytes.HasPrefix(stderr.Bytes(), []byte(tt.stderr)) {
			t.Errorf("%q: code %d, stdout %q, stderr %q", tt.args, code, stdout.String(), stderr.String())
		}
	}
}

// The version is a command and a flag, and the result alone.
func TestVersion(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		code   int
		stdout string
	}{
		{[]string{"version"}, 0, "1.2.3\n"},
		{[]string{"--version"}, 0, "1.2.3\n"},
		{[]string{"-version"}, 0, "1.2.3\n"},
		{[]string{"version", "x"}, 2, ""},
		{[]string{"--version", "x"}, 2, ""},
		{[]string{"group", "--version"}, 2, ""},
	} {
		a := app()
		a.Version = "1.2.3"
		var stdout, stderr bytes.Buffer
		if code := Run(t.Context(), a, append([]string{"tool"}, tt.args...), &stdout, &stderr, nil); code != tt.code || stdout.String() != tt.stdout {
			t.Errorf("%q: code %d, stdout %q, stderr %q; want %d, %q", tt.args, code, stdout.String(), stderr.String(), tt.code, tt.stdout)
		}
	}
}

// A program that is a single command keeps its own action.
func TestSingleCommand(t *testing.T) {
	for _, tt := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"-n", "3"}, 0, "3", ""},
		{[]string{"-n", "3", "left"}, 2, "", "error: understand the command\n  why:  unexpected argument \"left\"\n"},
		{[]string{"--nope"}, 2, "", "error: understand the command\n"},
	} {
		var stdout, stderr bytes.Buffer
		app := &cli.App{Name: "tool", Flags: []cli.Flag{&cli.StringFlag{Name: "n"}}, Action: func(c *cli.Context) error {
			_, err := c.App.Writer.Write([]byte(c.String("n")))
			return err
		}}
		code := Run(t.Context(), app, append([]string{"tool"}, tt.args...), &stdout, &stderr, nil)
		if code != tt.code || stdout.String() != tt.stdout || !bytes.HasPrefix(stderr.Bytes(), []byte(tt.stderr)) {
			t.Errorf("%q: code %d, stdout %q, stderr %q", tt.args, code, stdout.String(), stderr.String())
		}
	}
}
