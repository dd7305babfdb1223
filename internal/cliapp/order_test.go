package cliapp

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestFlagsFirst(t *testing.T) {
	app := &cli.App{
		Flags: []cli.Flag{&cli.StringFlag{Name: "log"}},
		Commands: []*cli.Command{
			{Name: "image", Subcommands: []*cli.Command{{Name: "push", Flags: []cli.Flag{
				&cli.StringFlag{Name: "to", Aliases: []string{"t"}}, &cli.BoolFlag{Name: "insecure"}}}}},
			{Name: "exec", SkipFlagParsing: true},
		},
	}
	for _, c := range []struct{ in, want string }{
		{"p", "p"},
		{"p --log x image push a --to r", "p --log x image push --to r a"},
		{"p image push a -t r b --insecure c", "p image push -t r --insecure a b c"},
		{"p image push a --to=r", "p image push --to=r a"},
		{"p image push a --to", "p image push --to a"},
		{"p image push a --unknown b", "p image push --unknown a b"},
		{"p image push --to r -- a --to", "p image push --to r -- a --to"},
		{"p image push a --insecure -- -b", "p image push --insecure -- a -b"},
		{"p image push a -", "p image push a -"},
		{"p image nope --to", "p image nope --to"},
		{"p exec a --to r", "p exec a --to r"},
	} {
		if got := strings.Join(flagsFirst(app, strings.Fields(c.in)), " "); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.in, got, c.want)
		}
	}
}
