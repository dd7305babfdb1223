package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/deployer/knative/cluster"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// renderCommand writes what an administrator applies.
func renderCommand() *cli.Command {
	return &cli.Command{
		Name:  "render",
		Usage: "write manifests for administrators",
		Subcommands: []*cli.Command{{
			Name:  "cluster",
			Usage: "namespaces, accounts, rights, admission policy and watchdog of one cluster",
			Description: "Reads clusters.yml and policy.yml of the platform folder. The manifests go to stdout, or\n" +
				"to --out, one file each, numbered in the order to apply them; apply them again whenever\n" +
				"a namespace is added. Nothing is sent anywhere.\n\n" +
				"  faasctl render cluster --cluster hz-1 --namespace order-prod=core:4711 \\\n" +
				"    --deployer order-prod=Group:gitlab:project_env:4711:prod --image REGISTRY/runner@sha256:… | kubectl apply -f -",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "platform", Value: "platform", Usage: "the `FOLDER` with clusters.yml and policy.yml"},
				&cli.StringFlag{Name: "cluster", Usage: "the `NAME` in clusters.yml"},
				&cli.StringSliceFlag{Name: "namespace", Usage: "a place of functions, `NAME=TIER` or NAME=TIER:PROJECT-ID; may be repeated"},
				&cli.StringSliceFlag{Name: "deployer", Usage: "who may deploy beside the rendered account, `NAMESPACE=User:NAME` or NAMESPACE=Group:NAME; may be repeated"},
				&cli.StringSliceFlag{Name: "reader", Usage: "who may look, as --deployer: `NAMESPACE=Group:NAME`"},
				&cli.StringSliceFlag{Name: "images", Usage: "a `PREFIX` that functions' images may have, ending in /; default the cluster's registry"},
				&cli.StringFlag{Name: "image", Usage: "the watchdog's image `REFERENCE`, with faasctl in PATH: the job image has it; empty: no watchdog"},
				&cli.StringFlag{Name: "registry-secret", Usage: "the `NAME` of a docker config Secret in the watchdog's namespace, to read large records and to delete the tags of forgotten ones"},
				&cli.StringFlag{Name: "system", Value: "kuroko-system", Usage: "the watchdog's own `NAMESPACE`"},
				&cli.StringFlag{Name: "out", Usage: "the `FOLDER` to write to; default stdout"},
			},
			Action: renderCluster,
		}},
	}
}

func renderCluster(c *cli.Context) error {
	setup, err := clusterSetup(c)
	if err != nil {
		return err
	}
	if err := setup.Validate(); err != nil {
		e := &usererr.Error{Code: usererr.CodeUsage, What: "render the cluster", Err: err}
		for _, line := range strings.Split(err.Error(), "\n") {
			e.Problems = append(e.Problems, usererr.Problem{Why: line})
		}
		return e
	}
	out := c.String("out")
	if out != "" {
		if err := os.MkdirAll(out, 0o755); err != nil {
			return err
		}
	}
	for _, f := range setup.Files() {
		text, err := f.YAML()
		if err != nil {
			return err
		}
		if out == "" {
			_, err = c.App.Writer.Write(text)
		} else {
			err = os.WriteFile(filepath.Join(out, f.Name), text, 0o644)
		}
		if err != nil {
			return &usererr.Error{Code: usererr.CodeUnable, What: "write the manifests", Err: err, Next: "choose another --out"}
		}
	}
	if setup.Image == "" {
		fmt.Fprintln(c.App.ErrWriter, "no watchdog: without --image nobody takes back the rollout of a job that died, until the next deploy")
	}
	return nil
}

// clusterSetup reads the platform's files and the flags.
func clusterSetup(c *cli.Context) (cluster.Setup, error) {
	none := cluster.Setup{}
	read := func(name string) ([]byte, error) {
		data, err := os.ReadFile(filepath.Join(c.String("platform"), name))
		if err != nil {
			return nil, &usererr.Error{Code: usererr.CodeUsage, What: "read " + name, Err: err, Next: "name the platform's folder with --platform"}
		}
		return data, nil
	}
	data, err := read("clusters.yml")
	if err != nil {
		return none, err
	}
	clusters, err := bundle.ParseClusters(data)
	if err != nil {
		return none, &usererr.Error{Code: usererr.CodeBundleContent, Err: err}
	}
	if data, err = read("policy.yml"); err != nil {
		return none, err
	}
	policy, err := bundle.ParsePolicy(data)
	if err != nil {
		return none, &usererr.Error{Code: usererr.CodeBundleContent, Err: err}
	}
	name := c.String("cluster")
	site, ok := clusters.Clusters[name]
	if !ok || site.Kind != bundle.KindKnative {
		return none, cliapp.Usagef("--cluster: clusters.yml has no Knative cluster %q", name)
	}
	s := cluster.Setup{System: c.String("system"), Image: c.String("image"), RegistrySecret: c.String("registry-secret"), Images: c.StringSlice("images"), IngressService: site.IngressService, Tiers: map[string]cluster.Limits{}}
	if len(s.Images) == 0 && site.Registry != "" {
		s.Images = []string{site.Registry + "/"}
	}
	for tier, t := range policy.Tiers {
		s.Tiers[tier] = cluster.Limits{Memory: t.Limits.Memory, CPU: t.Limits.CPU, MaxScale: t.Limits.MaxScale}
	}
	for _, v := range c.StringSlice("namespace") {
		ns, rest, ok := strings.Cut(v, "=")
		tier, owner, _ := strings.Cut(rest, ":")
		if !ok || strings.Trim(owner, "0123456789") != "" {
			return none, cliapp.Usagef("--namespace %s: want NAME=TIER or NAME=TIER:PROJECT-ID", v)
		}
		s.Namespaces = append(s.Namespaces, cluster.Namespace{Name: ns, Tier: tier, Owner: owner})
	}
	for _, flag := range []string{"deployer", "reader"} {
		for _, v := range c.StringSlice(flag) {
			ns, rest, _ := strings.Cut(v, "=")
			kind, who, ok := strings.Cut(rest, ":")
			i := slices.IndexFunc(s.Namespaces, func(n cluster.Namespace) bool { return n.Name == ns })
			if !ok || i < 0 {
				return none, cliapp.Usagef("--%s %s: want NAMESPACE=Group:NAME, of a --namespace", flag, v)
			}
			sub := cluster.Subject{Kind: kind, Name: who}
			if flag == "deployer" {
				s.Namespaces[i].Deployers = append(s.Namespaces[i].Deployers, sub)
			} else {
				s.Namespaces[i].Readers = append(s.Namespaces[i].Readers, sub)
			}
		}
	}
	return s, nil
}
