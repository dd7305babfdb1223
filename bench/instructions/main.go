// Command instructions is a small program over the kaniko engine: a Dockerfile
// in, an image out. With --nothing it does nothing.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func main() {
	sandbox.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("instructions", flag.ContinueOnError)
	nothing := flags.Bool("nothing", false, "do nothing")
	dir := flags.String("dir", "", "the application's folder")
	repository := flags.String("repository", "", "where the image goes")
	state := flags.String("state", "", "folder that outlives the process")
	executor := flags.String("executor", "", "path of kaniko-executor")
	if err := flags.Parse(args); err != nil || *nothing {
		return err
	}
	repo, err := name.NewRepository(*repository)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(*dir)
	if err != nil {
		return err
	}
	defer root.Close()
	code := builder.Tree{Title: "code", FS: root.FS(), Prefix: "/"}
	sum, err := builder.DigestOf(ctx, code)
	if err != nil {
		return err
	}
	e := kaniko.New(kaniko.Options{Executor: *executor, CacheDir: *state, Log: os.Stderr})
	img, err := e.Build(ctx, builder.Request{Name: "bench", Key: builder.Key(sum), Repository: repo, Code: code,
		Dockerfile: &builder.Dockerfile{FS: root.FS(), Path: "Dockerfile"}})
	if err != nil {
		return err
	}
	_, err = fmt.Println(img.Ref)
	return err
}
