// Package program is what the small mains over our engines have in common, so
// that the time of an engine can be compared with that of other builders: they
// know no bundle and no plan.
package program

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// Job is what every builder is told.
type Job struct {
	Dir        string // the application's folder
	Root       *os.Root
	Repository name.Repository // where the image goes
	State      string          // folder that outlives the process
}

// Build makes a job's image.
type Build func(context.Context, Job) (builder.Image, error)

// Main is the whole of a main function. options adds flags of its own. With
// --nothing the program does nothing, which is what a process of it costs.
func Main(title string, options func(*flag.FlagSet) Build) {
	sandbox.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, title, os.Args[1:], options); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, title string, args []string, options func(*flag.FlagSet) Build) error {
	flags := flag.NewFlagSet(title, flag.ContinueOnError)
	var j Job
	nothing := flags.Bool("nothing", false, "do nothing")
	flags.StringVar(&j.Dir, "dir", "", "the application's folder")
	flags.StringVar(&j.State, "state", "", "folder that outlives the process")
	repository := flags.String("repository", "", "where the image goes")
	build := options(flags)
	err := flags.Parse(args)
	if err != nil || *nothing {
		return err
	}
	if j.Repository, err = name.NewRepository(*repository); err != nil {
		return err
	}
	if j.Root, err = os.OpenRoot(j.Dir); err != nil {
		return err
	}
	defer j.Root.Close()
	img, err := build(ctx, j)
	if err != nil {
		return err
	}
	_, err = fmt.Println(img.Ref)
	return err
}
