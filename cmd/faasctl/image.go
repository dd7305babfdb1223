package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/debian"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// imageCommand makes and pushes base, build and runner images.
func imageCommand(getenv func(string) string) *cli.Command {
	cache := &cli.StringFlag{Name: "cache", Usage: "`FOLDER` for package lists, archives and images (default: kuroko in the user's cache folder)"}
	recipes := &cli.StringFlag{Name: "recipes", Usage: "`FOLDER` of the recipes", Value: "dockerfiles"}
	out := &cli.StringFlag{Name: "out", Usage: "`FOLDER` that holds the images as OCI layouts (default: images in the cache)"}
	return &cli.Command{
		Name:  "image",
		Usage: "make base, build and runner images from Debian packages; rebase and verify function images",
		Subcommands: []*cli.Command{
			{
				Name:      "build",
				Usage:     "make images; one JSON line each on stdout",
				ArgsUsage: "NAME... | all",
				Flags: []cli.Flag{recipes, out, cache,
					&cli.StringSliceFlag{Name: "files", Usage: "`FOLDER` that has bin/ or seed/ for the runner image; may be repeated, the first that has a file gives it"},
					&cli.BoolFlag{Name: "refresh", Usage: "fetch the package lists, however young they are"},
				},
				Action: func(c *cli.Context) error { return imageBuild(c, getenv) },
			},
			{
				Name:      "push",
				Usage:     "push an image; its reference by digest as a JSON line on stdout",
				ArgsUsage: "NAME...",
				Flags: []cli.Flag{out, cache,
					&cli.StringFlag{Name: "to", Usage: "`REPOSITORY` that receives the one image"},
					&cli.StringFlag{Name: "registry", Usage: "push each image to `REGISTRY`[/PREFIX]/NAME"},
					&cli.BoolFlag{Name: "insecure", Usage: "the registry speaks plain HTTP"},
				},
				Action: func(c *cli.Context) error { return imagePush(c, getenv) },
			},
			imageRebaseCommand(getenv),
			imageVerifyCommand(getenv),
		},
	}
}

func imageBuild(c *cli.Context, getenv func(string) string) error {
	names := c.Args().Slice()
	if len(names) == 0 {
		return cliapp.Usagef("name the images to build, or all")
	}
	all, err := debian.LoadRecipes(os.DirFS(c.String("recipes")))
	if err != nil {
		return &usererr.Error{Code: usererr.CodeBundleContent, Class: usererr.Config, What: "read the image recipes in " + c.String("recipes"), Err: err,
			Next: "correct the recipes, or name their folder with --recipes"}
	}
	chosen, err := chooseRecipes(all, names)
	if err != nil {
		return err
	}
	b, err := imageBuilder(c, getenv)
	if err != nil {
		return err
	}
	if c.Bool("refresh") {
		b.ListsAge = -1
	}
	abi := map[string]debian.Image{}
	for _, t := range chosen {
		r, o := t.recipe, debian.Options{Files: c.StringSlice("files"), Out: c.String("out")}
		var img debian.Image
		if r.Kind == debian.BuiltIn {
			img, err = b.BuildLayer(c.Context, r, t.base, o)
			r.Name = debian.LayerName(r, t.base)
		} else {
			img, err = b.Build(c.Context, r, o)
		}
		if err != nil {
			return imageError(r.Name, err)
		}
		b.ListsAge = 0 // one look per run
		// A base and its build image are a pair: what one compiles, the other
		// loads.
		if _, runtime, ok := strings.Cut(r.Name, "/"); ok {
			if other, ok := abi[runtime]; ok && other.ABI != img.ABI {
				return &usererr.Error{Code: usererr.CodeUnable, What: "make a pair of " + other.Name + " and " + img.Name,
					Err: fmt.Errorf("their abi labels differ: %s and %s", other.ABI, img.ABI), Next: "use the same packages in both recipes"}
			}
			abi[runtime] = img
		}
		for _, f := range img.Missing {
			fmt.Fprintf(c.App.ErrWriter, "%s: without %s, which was in no folder of --files\n", r.Name, f)
		}
		how := "made"
		if img.Reused {
			how = "unchanged"
		}
		fmt.Fprintf(c.App.ErrWriter, "%s: %s, %d MB, %s in %s\n", r.Name, how, img.Size/1e6, img.Digest, img.Path)
		if err := json.NewEncoder(c.App.Writer).Encode(img); err != nil {
			return err
		}
	}
	return nil
}

// chosen is an image to make: a recipe, for a built-in layer with the base that
// it is for.
type chosen struct{ recipe, base debian.Recipe }

func (c chosen) name() string {
	if c.recipe.Kind == debian.BuiltIn {
		return debian.LayerName(c.recipe, c.base)
	}
	return c.recipe.Name
}

// targets are the images that recipes make: a built-in layer has one for each
// base.
func targets(all []debian.Recipe) []chosen {
	var out []chosen
	for _, r := range all {
		if r.Kind != debian.BuiltIn {
			out = append(out, chosen{recipe: r})
			continue
		}
		for _, base := range all {
			if base.Kind == debian.Base {
				out = append(out, chosen{r, base})
			}
		}
	}
	return out
}

func chooseRecipes(recipes []debian.Recipe, names []string) ([]chosen, error) {
	all := targets(recipes)
	if slices.Contains(names, "all") {
		if len(names) > 1 {
			return nil, cliapp.Usagef("all stands alone")
		}
		return all, nil
	}
	var out []chosen
	for _, n := range names {
		i := slices.IndexFunc(all, func(c chosen) bool { return c.name() == n })
		if i < 0 {
			var known []string
			for _, c := range all {
				known = append(known, c.name())
			}
			return nil, &usererr.Error{Code: usererr.CodeUsage, Err: fmt.Errorf("no recipe is called %q", n), Next: "use one of: " + strings.Join(known, ", ")}
		}
		out = append(out, all[i])
	}
	return out, nil
}

func imagePush(c *cli.Context, getenv func(string) string) error {
	names := c.Args().Slice()
	to, registry := c.String("to"), c.String("registry")
	switch {
	case len(names) == 0:
		return cliapp.Usagef("name the images to push")
	case (to == "") == (registry == ""):
		return cliapp.Usagef("say where to: either --to or --registry")
	case to != "" && len(names) > 1:
		return cliapp.Usagef("--to takes one image; --registry takes many")
	}
	b, err := imageBuilder(c, getenv)
	if err != nil {
		return err
	}
	for _, n := range names {
		repo := to
		if registry != "" {
			repo = strings.TrimSuffix(registry, "/") + "/" + n
		}
		ref, err := pushImage(c.Context, b, n, c.String("out"), repo, c.Bool("insecure"))
		if err != nil {
			return imageError(n, err)
		}
		if err := json.NewEncoder(c.App.Writer).Encode(ref); err != nil {
			return err
		}
	}
	return nil
}

// pushed is the answer of image push.
type pushed struct {
	Name   string `json:"name"`
	Ref    string `json:"ref"` // repository@digest
	Digest string `json:"digest"`
	ABI    string `json:"abi"`
}

func pushImage(ctx context.Context, b *debian.Builder, image, out, repo string, insecure bool) (pushed, error) {
	var opts []name.Option
	if insecure {
		opts = append(opts, name.Insecure)
	}
	r, err := name.NewRepository(repo, opts...)
	if err != nil {
		return pushed{}, cliapp.Usagef("%v", err)
	}
	img, ref, err := b.Push(ctx, image, out, r, remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return pushed{}, err
	}
	return pushed{Name: image, Ref: ref.String(), Digest: img.Digest, ABI: img.ABI}, nil
}

func imageBuilder(c *cli.Context, getenv func(string) string) (*debian.Builder, error) {
	dir := c.String("cache")
	if dir == "" {
		switch home := getenv("HOME"); {
		case getenv("XDG_CACHE_HOME") != "":
			dir = filepath.Join(getenv("XDG_CACHE_HOME"), "kuroko")
		case home != "":
			dir = filepath.Join(home, ".cache", "kuroko")
		default:
			return nil, cliapp.Usagef("neither XDG_CACHE_HOME nor HOME is set: name a folder with --cache")
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	stderr := c.App.ErrWriter
	return &debian.Builder{Cache: dir, Env: os.Environ(), Log: func(line string) { fmt.Fprintln(stderr, line) }}, nil
}

// imageError says who can do what about an image that was not made.
func imageError(image string, err error) error {
	e := &usererr.Error{Code: usererr.CodeUnable, What: "make the image " + image, Err: err}
	var (
		designed *usererr.Error
		packages *debian.PackageError
		expect   *debian.ExpectError
		away     *builder.Unavailable
		answer   *transport.Error
	)
	switch {
	case errors.As(err, &designed):
		return err
	case errors.Is(err, context.Canceled):
		return &usererr.Error{Code: usererr.CodeCancelled, Err: err}
	case errors.Is(err, debian.ErrNoApt):
		e.Next = "run this on Debian or Ubuntu, in a container of one, or use images that another machine has pushed"
	case errors.Is(err, debian.ErrNoNPM):
		e.Next = "install Node.js with npm, or fill the cache on a machine that has it"
	case errors.Is(err, debian.ErrNotBuilt):
		e.What, e.Next = "push the image "+image, "run: faasctl image build "+image
	case errors.Is(err, syscall.ENOSPC):
		return &usererr.Error{Code: usererr.CodeDiskFull, Err: err, Next: "free space, or name a folder on a larger disk with --cache, and run it again"}
	case errors.As(err, &expect):
		e.Next = "use a Debian release that has it, or change the recipe's packages and expect"
	case errors.As(err, &packages):
		e.Next = "add a package source that has them to this machine's apt, or change the recipe"
	case errors.Is(err, debian.ErrUntrusted), errors.Is(err, debian.ErrUnsafe):
		e.Code = usererr.CodeUntrusted
	case errors.Is(err, debian.ErrConflict):
		e.Next = "take one of the packages out of the recipe, or drop the path"
	case errors.Is(err, debian.ErrRecipe):
		e.Next = "change packages, without, drop or links in the recipe"
	case errors.Is(err, fs.ErrNotExist):
		e.Next = "run make build, and name the folder that holds bin/ with --files"
	case errors.As(err, &away):
		e.Class, e.Next = usererr.External, "check network, proxy and the machine's package sources, and run it again"
	case errors.As(err, &answer):
		e.Code = usererr.CodeRegistryUnavailable
		if answer.StatusCode == 401 || answer.StatusCode == 403 {
			e.Code, e.Next = usererr.CodeRegistryDenied, "log in to the registry (docker login writes what is read here) and check that you may push"
		}
		e.What = "push the image " + image
	case errors.Is(err, fs.ErrPermission):
		e.Next = "name a folder that you may write with --cache"
	default:
		e.Code, e.What = usererr.CodeInternal, ""
	}
	return e
}
