package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
	"github.com/kuroko-faas/kuroko/deployer/knative/cluster"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/stages"
)

func clusterCommand(getenv func(string) string) *cli.Command {
	return &cli.Command{
		Name:  "cluster",
		Usage: "look at a cluster that functions run in",
		Subcommands: []*cli.Command{{
			Name:  "doctor",
			Usage: "check versions, settings, rights, watchdog and registry; each finding has a fix",
			Description: "Only reads. Exit code 0: nothing has failed; 78: something has; 75: the cluster did not\n" +
				"answer. What this account may not see is unknown, which is no failure.",
			Flags: clusterFlags(
				&cli.StringSliceFlag{Name: "namespace", Usage: "also look into this `NAMESPACE` of functions, with its own pull credentials; may be repeated"},
				&cli.StringFlag{Name: "image", Usage: "the image `REFERENCE` to ask the registry for; default one that runs in the namespace"},
				&cli.StringFlag{Name: "domain", Usage: "what clusters.yml says; default not compared: `DOMAIN`"},
				&cli.StringFlag{Name: "knative", Value: "knative-serving", Usage: "Knative Serving's `NAMESPACE`"},
				&cli.StringFlag{Name: "system", Value: "kuroko-system", Usage: "the watchdog's `NAMESPACE`"},
				&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			),
			Action: func(c *cli.Context) error { return doctor(c, getenv) },
		}},
	}
}

func doctor(c *cli.Context, getenv func(string) string) error {
	t, err := openCluster(c, getenv, knative.Config{})
	if err != nil {
		return err
	}
	all, err := cluster.Doctor{
		Kube: t.Kube(), Knative: c.String("knative"), System: c.String("system"), Domain: c.String("domain"),
		Namespaces: c.StringSlice("namespace"), Image: c.String("image"),
	}.Examine(c.Context)
	if err != nil {
		return stages.Explain(c.Context, fmt.Errorf("%w: %w", deployer.ErrUnavailable, err))
	}
	failed := 0
	for _, f := range all {
		if f.Level == cluster.Fail {
			failed++
		}
	}
	if c.Bool("json") {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		err = e.Encode(all)
	} else {
		for _, f := range all {
			if _, err = fmt.Fprintf(c.App.Writer, "%-8s %-24s %s\n", f.Level, f.Check, f.Text); err == nil && f.Fix != "" {
				_, err = fmt.Fprintf(c.App.Writer, "%-8s %-24s fix: %s\n", "", "", f.Fix)
			}
		}
	}
	if err != nil {
		return err
	}
	if failed > 0 {
		return &usererr.Error{
			Code: usererr.CodeEnvironment, Class: usererr.Config, What: "find the cluster fit",
			Err: fmt.Errorf("%d of %d checks failed", failed, len(all)), Next: "each one's fix stands below it",
		}
	}
	return nil
}
