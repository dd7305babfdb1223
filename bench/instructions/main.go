// Command instructions is a small program over the kaniko engine: a Dockerfile
// in, an image out.
package main

import (
	"context"
	"flag"
	"os"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/bench/internal/program"
	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

func main() { program.Main("instructions", options) }

func options(flags *flag.FlagSet) program.Build {
	executor := flags.String("executor", "", "path of kaniko-executor")
	return func(ctx context.Context, j program.Job) (builder.Image, error) {
		// Beside the image, as a pipeline has it.
		cache, err := name.NewRepository(j.Repository.Name() + "/cache")
		if err != nil {
			return builder.Image{}, err
		}
		code := builder.Tree{Title: "code", FS: j.Root.FS(), Prefix: "/"}
		sum, err := builder.DigestOf(ctx, code)
		if err != nil {
			return builder.Image{}, err
		}
		e := kaniko.New(kaniko.Options{Executor: *executor, CacheDir: j.State, Log: os.Stderr})
		return e.Build(ctx, builder.Request{Name: "bench", Key: builder.Key(sum), Repository: j.Repository, Code: code, Dockerfile: &builder.Dockerfile{
			FS: j.Root.FS(), Path: "Dockerfile", Cache: builder.Cache{Read: []name.Repository{cache}, Write: &cache}}})
	}
}
