package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/stages"
)

func imageRebaseCommand(getenv func(string) string) *cli.Command {
	return &cli.Command{
		Name: "rebase", Usage: "swap the platform's layers of an image in the registry, without its source; a JSON line on stdout", ArgsUsage: "REFERENCE",
		Description: "The new image is the one that a build from the same source would give. It is refused when\n" +
			"the new base has another abi and the project's layers hold machine code.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "base", Usage: "the new base, `REPOSITORY@DIGEST`"},
			&cli.StringSliceFlag{Name: "builtin", Usage: "a built-in layer that was made for --base, `REPOSITORY@DIGEST`; repeated, once for each of the image's, in their order"},
			&cli.StringSliceFlag{Name: "layer", Usage: "`KIND=FOLDER:PLACE`: the folder becomes the layer, for example adapter=runtimes/node:/opt/faas/adapter; may be repeated"},
			&cli.StringFlag{Name: "tag", Usage: "the new image's `TAG`; default rebased-<digest>"},
			&cli.BoolFlag{Name: "insecure", Usage: "the registry speaks plain HTTP"},
		},
		Action: func(c *cli.Context) error { return imageRebase(c, getenv) },
	}
}

// rebased is the answer of image rebase.
type rebased struct {
	From   string          `json:"from"`
	Ref    string          `json:"ref"`
	Digest string          `json:"digest"`
	Layers []builder.Layer `json:"layers"`
}

func imageRebase(c *cli.Context, getenv func(string) string) error {
	opts := insecure(c)
	if c.Args().Len() != 1 {
		return cliapp.Usagef("name one image")
	}
	ref, err := name.ParseReference(c.Args().First(), opts...)
	if err != nil {
		return cliapp.Usagef("%v", err)
	}
	r := builder.Rebase{Image: ref, Tag: c.String("tag")}
	if base := c.String("base"); base != "" {
		if r.Base, err = name.NewDigest(base, opts...); err != nil {
			return cliapp.Usagef("--base: %v: a base is named by digest", err)
		}
	}
	for _, text := range c.StringSlice("builtin") {
		d, err := name.NewDigest(text, opts...)
		if err != nil {
			return cliapp.Usagef("--builtin: %v: a layer is named by digest", err)
		}
		r.BuiltIn = append(r.BuiltIn, d)
	}
	for _, text := range c.StringSlice("layer") {
		kind, rest, ok := strings.Cut(text, "=")
		at := strings.LastIndex(rest, ":")
		if !ok || at <= 0 || !strings.HasPrefix(rest[at+1:], "/") {
			return cliapp.Usagef("--layer %s: write KIND=FOLDER:/PLACE", text)
		}
		root, err := os.OpenRoot(rest[:at])
		if err != nil {
			return cliapp.Usagef("--layer %s: %v", text, err)
		}
		defer root.Close()
		r.Layers = append(r.Layers, builder.Tree{Title: kind, FS: root.FS(), Prefix: rest[at+1:]})
	}
	if r.Base.DigestStr() == "" && len(r.Layers) == 0 && len(r.BuiltIn) == 0 {
		return cliapp.Usagef("say what to swap: --base, --builtin or --layer")
	}
	r.Origin = &attest.Provenance{
		Builder: "https://github.com/kuroko-faas/kuroko/faasctl", BuildType: "https://github.com/kuroko-faas/kuroko/blob/main/docs/supply-chain.md#rebase",
		Started:    time.Now(),
		Parameters: map[string]any{"image": ref.Name(), "base": c.String("base"), "builtin": strings.Join(c.StringSlice("builtin"), " ")}, Invocation: getenv("CI_JOB_URL"),
	}
	w, err := stages.Connect(getenv, ci.Job{}, c.App.ErrWriter)
	if err != nil {
		return err
	}
	img, err := w.Rebase(c.Context, r)
	if err != nil {
		var input *builder.InputError
		if errors.As(err, &input) {
			return &usererr.Error{Code: usererr.CodeBuildInput, What: "rebase " + ref.Name(), Err: err, Next: input.Next}
		}
		return stages.Explain(c.Context, err)
	}
	for _, w := range img.Warnings {
		fmt.Fprintln(c.App.ErrWriter, "warning:", w)
	}
	return json.NewEncoder(c.App.Writer).Encode(rebased{From: ref.Name(), Ref: img.Ref.String(), Digest: img.Ref.DigestStr(), Layers: img.Layers})
}

func imageVerifyCommand(getenv func(string) string) *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "check the signed documents beside an image; a JSON line each on stdout", ArgsUsage: "REFERENCE",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "key", Usage: "`FILE` with the trusted public keys in PEM", Required: true},
			&cli.BoolFlag{Name: "insecure", Usage: "the registry speaks plain HTTP"},
		},
		Action: func(c *cli.Context) error { return imageVerify(c, getenv) },
	}
}

func imageVerify(c *cli.Context, getenv func(string) string) error {
	if c.Args().Len() != 1 {
		return cliapp.Usagef("name one image")
	}
	ref, err := name.ParseReference(c.Args().First(), insecure(c)...)
	if err != nil {
		return cliapp.Usagef("%v", err)
	}
	data, err := os.ReadFile(c.String("key"))
	if err != nil {
		return cliapp.Usagef("--key: %v", err)
	}
	keys, err := attest.ReadVerifier(data)
	if err != nil {
		return cliapp.Usagef("--key: %v", err)
	}
	w, err := stages.Connect(getenv, ci.Job{}, c.App.ErrWriter)
	if err != nil {
		return err
	}
	verified, err := w.Verify(c.Context, ref, keys)
	if errors.Is(err, attest.ErrUnsigned) {
		return &usererr.Error{Code: usererr.CodeUntrusted, What: "verify " + ref.Name(), Err: err, Next: "build the image with FAAS_SIGNING_KEY, or check that the key is the right one"}
	}
	if err != nil {
		return stages.Explain(c.Context, err)
	}
	for _, v := range verified {
		if err := json.NewEncoder(c.App.Writer).Encode(v); err != nil {
			return err
		}
	}
	return nil
}

func insecure(c *cli.Context) []name.Option {
	if c.Bool("insecure") {
		return []name.Option{name.Insecure}
	}
	return nil
}
