package stages

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/project"
)

// defaultPlatformDir is where the job image keeps platform.json and the seed.
const defaultPlatformDir = "/usr/local/share/kuroko"

// Platform opens the platform's store as the environment says:
// FAAS_PLATFORM_DIR holds platform.json and the seed, FAAS_PLATFORM_URL
// overrides the store's address, FAAS_CACHE_DIR is a node's cache.
func Platform(getenv func(string) string) (*bundle.Client, *bundle.Platform, error) {
	dir := getenv("FAAS_PLATFORM_DIR")
	if dir == "" {
		dir = defaultPlatformDir
	}
	bad := func(err error, next string) error {
		return &usererr.Error{Code: usererr.CodeBundleContent, What: "read platform.json", Err: err, Next: next}
	}
	p, err := bundle.LoadPlatform(dir)
	if err != nil {
		return nil, nil, bad(err, "run this in the platform's job image, or set FAAS_PLATFORM_DIR to a folder with platform.json")
	}
	if u := getenv("FAAS_PLATFORM_URL"); u != "" {
		p.URL = u
	}
	store, err := oss.NewHTTP(p.URL, oss.HTTPOptions{})
	if err != nil {
		return nil, nil, bad(err, "correct url in platform.json, or FAAS_PLATFORM_URL")
	}
	return &bundle.Client{
		Store: oss.RetryReader(store, oss.RetryOptions{}), Root: p.Root, Seed: p.Dir, Cache: getenv("FAAS_CACHE_DIR"),
	}, p, nil
}

// ChooseBundle chooses and opens the bundle of a job. Of faas.yml only the
// frozen header is read before a bundle is known; a file that can't be read is
// reported by the stage that needs it. tier is the template's word; the
// stricter of it and the header's counts. A tree from [Look] has the file
// already; nil reads it.
func ChooseBundle(ctx context.Context, c *bundle.Client, p *bundle.Platform, job ci.Job, tree *Tree, runner, tier string) (*bundle.Bundle, error) {
	if tier != "" && project.Tier(tier).Rank() == 0 {
		return nil, &usererr.Error{Code: usererr.CodeJobEnv, Err: fmt.Errorf("FAAS_TIER: no tier is called %q", tier), Next: "use one of: sandbox, standard, core"}
	}
	q := bundle.Query{
		Org: p.Org, Channel: p.Channel, ProjectID: job.Project.ID, ProjectPath: job.Project.Path,
		PipelineID: job.Pipeline.ID, At: job.Pipeline.Created, Runner: runner, Tier: tier,
		Handed: filepath.Join(job.Dir, WorkDir),
	}
	if f, err := tree.project(job.Dir); err == nil {
		if h, err := f.Header(); err == nil {
			if h.Tier.Rank() > project.Tier(tier).Rank() {
				q.Tier = string(h.Tier)
			}
			// stable is what a file that says nothing means; which channel
			// that is, the job image knows.
			if h.Channel != "stable" {
				q.Channel = h.Channel
			}
		}
	}
	choice, err := c.Resolve(ctx, q)
	if err != nil {
		return nil, err
	}
	return c.Open(ctx, choice)
}
