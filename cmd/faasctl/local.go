package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/deployer/local"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// localCommand runs the target that needs no cluster.
func localCommand(func(string) string) *cli.Command {
	return &cli.Command{
		Name:  "local",
		Usage: "run functions on this machine",
		Subcommands: []*cli.Command{{
			Name:  "serve",
			Usage: "serve deployed units behind one port until it is ended",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "dir", Usage: "folder for records, images and logs; one server at a time uses it"},
				&cli.StringFlag{Name: "addr", Value: "127.0.0.1:8080", Usage: "where requests are served; port 0: a free one, kept over restarts"},
				&cli.StringFlag{Name: "sandbox", Value: "auto", Usage: "auto, root, userns or none"},
			},
			Action: func(c *cli.Context) error {
				if c.String("dir") == "" {
					return cliapp.Usagef("--dir is needed")
				}
				return serveLocal(c)
			},
		}},
	}
}

// endTime is how long units may take to end with the server.
const endTime = 45 * time.Second

func serveLocal(c *cli.Context) error {
	s, err := local.Start(c.Context, local.Options{
		Dir: c.String("dir"), Addr: c.String("addr"), Sandbox: c.String("sandbox"),
		Log: func(line string) { fmt.Fprintln(c.App.ErrWriter, line) },
	})
	if err != nil {
		return localError(err)
	}
	mode, why := s.Sandbox()
	if mode != string(sandbox.Root) {
		fmt.Fprintf(c.App.ErrWriter, "sandbox %s: %s\n", mode, why)
	}
	err = json.NewEncoder(c.App.Writer).Encode(struct {
		URL     string `json:"url"`
		Socket  string `json:"socket"`
		Sandbox string `json:"sandbox"`
	}{s.URL(), s.Socket(), mode})
	if err == nil {
		<-c.Context.Done()
		fmt.Fprintln(c.App.ErrWriter, "ending the units")
	}
	// Being ended is how this command succeeds.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), endTime)
	defer cancel()
	if err := errors.Join(err, s.Close(ctx)); err != nil {
		return localError(err)
	}
	return nil
}

// localError says who can act on a server that does not start.
func localError(err error) error {
	e := &usererr.Error{Code: usererr.CodeUnable, What: "run the local target", Err: err}
	switch {
	case errors.Is(err, local.ErrBusy):
		e.Next = "use that one, or choose another --dir"
	case errors.Is(err, os.ErrInvalid):
		e.Code, e.Next = usererr.CodeUsage, "run it with --help"
	case errors.Is(err, syscall.EADDRINUSE):
		e.Next = "choose another --addr, or end what listens there"
	case errors.Is(err, syscall.ENOSPC):
		e.Code = usererr.CodeDiskFull
	case errors.Is(err, sandbox.ErrForbidden):
		e.Next = "allow it, or choose --sandbox auto"
	case errors.Is(err, context.Canceled):
		e.Code = usererr.CodeCancelled
	default:
		e.Next = "correct the cause named above"
	}
	return e
}
