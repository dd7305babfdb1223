// Command layer is a small program over the layer engine, so that its time can
// be compared with that of other builders: it knows no bundle and no plan.
//
// With --nothing it does nothing, which is what a process of this binary costs.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
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
	flags := flag.NewFlagSet("layer", flag.ContinueOnError)
	nothing := flags.Bool("nothing", false, "do nothing")
	dir := flags.String("dir", "", "the application's folder")
	base := flags.String("base", "", "base image by digest")
	repository := flags.String("repository", "", "where the image goes")
	state := flags.String("state", "", "folder that outlives the process")
	npm := flags.String("npm", "", "address of the package registry; none without one")
	entry := flags.String("entry", "", "the command, as a JSON list")
	if err := flags.Parse(args); err != nil || *nothing {
		return err
	}
	req := builder.Request{Name: "bench"}
	var err error
	if req.Repository, err = name.NewRepository(*repository); err != nil {
		return err
	}
	if req.Base, err = name.NewDigest(*base); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(*entry), &req.Config.Entrypoint); err != nil {
		return fmt.Errorf("--entry: %w", err)
	}
	req.Config.WorkingDir = "/app"
	root, err := os.OpenRoot(*dir)
	if err != nil {
		return err
	}
	defer root.Close()
	req.Code = builder.Tree{Title: "code", FS: root.FS(), Prefix: "/app"}
	if *npm != "" {
		req.Dependencies = &builder.Dependencies{Kind: "npm", FS: root.FS(), Manifest: "package.json", Lock: "package-lock.json", Prefix: "/app", Registry: *npm}
	}
	// The key is made of the files' content, as a plan's is.
	sum, err := builder.DigestOf(ctx, req.Code)
	if err != nil {
		return err
	}
	req.Key = builder.Key(builder.Layout, req.Base.DigestStr(), sum)
	e, err := builder.NewLayers(builder.Options{CacheDir: filepath.Join(*state, "layers")})
	if err != nil {
		return err
	}
	img, err := e.Build(ctx, req)
	if err != nil {
		return err
	}
	_, err = fmt.Println(img.Ref)
	return err
}
