package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
	"github.com/kuroko-faas/kuroko/stages"
)

func (c command) planCommand(where []cli.Flag) *cli.Command {
	return &cli.Command{
		Name:  "plan",
		Usage: "print what would be built and changed, and why",
		Description: "Nothing is built or written. Fields of faas.yml that the platform can't apply yet are part\n" +
			"of the plan and make it fail afterwards, as they would make a pipeline fail.",
		Action: c.plan,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "origins", Usage: "print the merged faas.yml instead, with where each value comes from"},
			&cli.BoolFlag{Name: "strict", Usage: "fail also for fields that change nothing"},
			&cli.StringFlag{Name: "vs", Usage: "compare with this `RELEASE` instead of the live one"},
			&cli.StringFlag{Name: "out", Usage: "also write buildplan.json, deployplan.json and plan.md to this `FOLDER`"},
			&cli.BoolFlag{Name: "markdown", Usage: "print Markdown, for a merge request"},
		}, where...),
	}
}

func (c command) plan(ctx *cli.Context) error {
	if ctx.Bool("json") && ctx.Bool("markdown") {
		return cliapp.Usagef("--json and --markdown are both given")
	}
	var tree *stages.Tree
	if dir, err := filepath.Abs(ctx.String("dir")); err == nil && !ctx.Bool("origins") {
		look, cache := c.ahead, worktree.Cache(c.getenv)
		if !look.At(dir, cache) {
			look = worktree.Begin(c.environ, dir, cache) // while the bundle is chosen
			defer look.Close()
		}
		tree = stages.Look(ctx.Context, look, dir)
	}
	r, err := c.open(ctx, tree, ctx.String("vs") != "")
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	if ctx.Bool("origins") {
		p, err := r.Project(ctx.Context)
		if err != nil {
			return err
		}
		origins := p.Origins()
		return c.print(ctx, map[string][]project.Origin{"origins": origins}, stages.OriginsText(origins))
	}
	plans, err := r.Plan(ctx.Context, stages.Ask{Versus: ctx.String("vs"), Tree: tree})
	if err != nil {
		return err
	}
	if dir := ctx.String("out"); dir != "" {
		if err := writePlans(dir, plans); err != nil {
			return &usererr.Error{Code: usererr.CodeUsage, What: "write the plan to " + dir, Err: err, Next: "name a folder that can be written with --out"}
		}
	}
	text := plans.String()
	if ctx.Bool("markdown") {
		text = plans.Markdown()
	}
	return errors.Join(c.print(ctx, plans, text), plans.Err(ctx.Bool("strict")))
}

// writePlans leaves the plans as files, for programs and merge requests.
func writePlans(dir string, p stages.Plans) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	write := func(name string, data []byte, err error) {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o644)
		}
		errs = append(errs, err)
	}
	for name, v := range map[string]any{"buildplan.json": p.Build, "deployplan.json": p.Deploy} {
		data, err := json.MarshalIndent(v, "", "  ")
		write(name, append(data, '\n'), err)
	}
	write("plan.md", []byte(p.Markdown()), nil)
	return errors.Join(errs...)
}
