package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/stages"
)

func (c command) imageCommand(where []cli.Flag) *cli.Command {
	return &cli.Command{Name: "image", Usage: "look at function images", Subcommands: []*cli.Command{{
		Name: "inspect", Usage: "print what images are made of: layers by kind, size and owner, and the documents beside them",
		ArgsUsage: "REFERENCE... | --env ENVIRONMENT", Action: c.imageInspect, Flags: where,
		Description: "With an environment and no reference: the images of its live release.",
	}}}
}

// inspected is one image in the answer.
type inspected struct {
	builder.Inspection
	Units []string `json:"units,omitempty"` // of the live release
	// Shared counts, per layer, the other images of this answer that have it:
	// it was sent once.
	Shared []int `json:"shared"`
}

func (c command) imageInspect(ctx *cli.Context) error {
	refs := ctx.Args().Slice()
	units := map[string][]string{}
	var inspect stages.InspectFunc
	if len(refs) == 0 {
		if ctx.String("env") == "" && c.getenv("FAAS_ENVIRONMENT") == "" {
			return cliapp.Usagef("name an image, or an environment with --env")
		}
		r, scope, t, err := c.target(ctx)
		if err != nil {
			return err
		}
		defer r.Bundle.Close()
		s, err := deployer.Observe(ctx.Context, t, scope)
		if err != nil {
			return stages.Explain(ctx.Context, err)
		}
		if s.Live == nil {
			return &usererr.Error{Code: usererr.CodeUsage, What: "inspect the images of " + scope.String(), Err: fmt.Errorf("nothing is live there"),
				Next: "deploy first, or name an image"}
		}
		for _, u := range s.Live.Units {
			units[u.Image] = append(units[u.Image], u.Unit)
		}
		refs = slices.Sorted(maps.Keys(units))
		inspect = r.World.Inspect
	} else {
		w, err := stages.Connect(c.getenv, ci.Job{}, c.stderr)
		if err != nil {
			return err
		}
		inspect = w.Inspect
	}
	var out []inspected
	for _, text := range refs {
		ref, err := name.ParseReference(text)
		if err != nil {
			return cliapp.Usagef("%v", err)
		}
		in, err := inspect(ctx.Context, ref)
		if err != nil {
			return stages.Explain(ctx.Context, err)
		}
		out = append(out, inspected{Inspection: in, Units: units[text]})
	}
	shareLayers(out)
	return c.print(ctx, out, imagesText(out))
}

func shareLayers(images []inspected) {
	count := map[string]int{}
	for _, img := range images {
		for _, l := range img.Layers {
			count[l.Digest]++
		}
	}
	for i := range images {
		images[i].Shared = make([]int, len(images[i].Layers))
		for j, l := range images[i].Layers {
			images[i].Shared[j] = count[l.Digest] - 1
		}
	}
}

// imagesText is the answer for people.
func imagesText(images []inspected) string {
	var b strings.Builder
	sent := map[string]int64{}
	for i, img := range images {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s\n", img.Ref)
		if len(img.Units) > 0 {
			fmt.Fprintf(&b, "units:    %s\n", strings.Join(img.Units, ", "))
		}
		fmt.Fprintf(&b, "platform: %s, user %s\n", img.Platform, img.User)
		if img.Base != "" {
			fmt.Fprintf(&b, "base:     %s", img.Base)
			if img.ABI != "" {
				fmt.Fprintf(&b, " (abi %s)", img.ABI)
			}
			b.WriteByte('\n')
		}
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "layer\towner\tsize\treused\tdigest")
		for j, l := range img.Layers {
			reused := ""
			switch {
			case l.Kind == "base":
				reused = "from the base"
			case img.Shared[j] > 0:
				reused = fmt.Sprintf("by %d more", img.Shared[j])
			}
			kind := strings.TrimSpace(l.Kind + " " + l.Name)
			if l.Native {
				kind += " (machine code)"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.19s\n", kind, l.Owner, stages.Size(l.Size), reused, l.Digest)
			sent[l.Digest] = l.Size
		}
		fmt.Fprintf(t, "total\t\t%s\t\t\n", stages.Size(img.Size))
		t.Flush()
		var docs []string
		for _, d := range img.Documents {
			what := d.Type
			switch d.Predicate {
			case attest.Predicate:
				what = "provenance"
			case attest.PredicateBOM:
				what = "bill of materials"
			}
			if d.Signed {
				what += " (signed)"
			}
			docs = append(docs, what)
		}
		slices.Sort(docs)
		if len(docs) == 0 {
			docs = []string{"nothing"}
		}
		fmt.Fprintf(&b, "beside it: %s\n", strings.Join(docs, ", "))
	}
	if len(images) > 1 {
		var all int64
		for _, n := range sent {
			all += n
		}
		fmt.Fprintf(&b, "\n%d images, %s in the registry with each layer once\n", len(images), stages.Size(all))
	}
	return b.String()
}
