package main

import (
	"fmt"
	"io"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/stages"
)

// maxEvent bounds an event: it becomes an environment variable, of which Linux
// takes 128 KiB.
const maxEvent = 100 << 10

func (c command) runCommand(where []cli.Flag) *cli.Command {
	return &cli.Command{
		Name: "run", ArgsUsage: "FUNCTION", Usage: "run a job of the live release now, and follow it", Action: c.runJob,
		Flags: append([]cli.Flag{&cli.StringFlag{Name: "event", Usage: "the job's event as `JSON`; - reads it from standard input", Value: "{}"}}, where...),
		Description: "The run's log goes to standard error, its result to standard output. It ends with 0\n" +
			"when every completion ended well. Interrupting it does not end the run.",
	}
}

func (c command) runJob(ctx *cli.Context) error {
	if ctx.Args().Len() != 1 {
		return cliapp.Usagef("name one job, for example: faas run nightly-report --env prod")
	}
	event := []byte(ctx.String("event"))
	if string(event) == "-" {
		var err error
		if event, err = io.ReadAll(io.LimitReader(c.stdin, maxEvent+1)); err != nil {
			return fmt.Errorf("read the event from standard input: %w", err)
		}
	}
	if len(event) > maxEvent {
		return cliapp.Usagef("the event is larger than %d KiB; put it into a store and send its place", maxEvent>>10)
	}
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	var mu sync.Mutex
	say := func(line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(c.stderr, line)
	}
	result, err := stages.RunJob(ctx.Context, t, scope, ctx.Args().First(), event, func(run string) { say("run " + run) }, say)
	if err != nil {
		return err
	}
	return c.print(ctx, result, fmt.Sprintf("run %s: %d completed, %d failed tries\n", result.Run, result.Succeeded, result.Failed))
}
