package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	child "github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
	"github.com/kuroko-faas/kuroko/stages"
)

// command is what every subcommand needs.
type command struct {
	environ        []string
	stdin          io.Reader
	stdout, stderr io.Writer
	ahead          *worktree.Look // begun before it was known what is asked; may be nil
}

func (c command) getenv(name string) string {
	for _, kv := range slices.Backward(c.environ) {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}

// open reads the repository and chooses the bundle its next pipeline would.
// tree may be nil. The caller closes the runner's bundle.
func (c command) open(ctx *cli.Context, tree *stages.Tree, needOwner bool) (*stages.Runner, error) {
	job := ci.Job{Environment: ctx.String("env")}
	if job.Environment == "" {
		job.Environment = c.getenv("FAAS_ENVIRONMENT")
	}
	if job.Environment == "" {
		return nil, cliapp.Usagef("name the environment with --env, or set FAAS_ENVIRONMENT")
	}
	var err error
	if job.Dir, err = filepath.Abs(ctx.String("dir")); err != nil {
		return nil, err
	}
	job.Project.ID = ctx.Int64("project-id")
	if v := c.getenv("CI_PROJECT_ID"); job.Project.ID == 0 && v != "" {
		if job.Project.ID, err = strconv.ParseInt(v, 10, 64); err != nil {
			return nil, cliapp.Usagef("CI_PROJECT_ID is not a number")
		}
	}
	if needOwner && job.Project.ID == 0 {
		return nil, cliapp.Usagef("name the GitLab project with --project-id, or set CI_PROJECT_ID: services belong to projects")
	}
	place := project.Place{Service: ctx.String("service"), Cluster: ctx.String("cluster"), Namespace: ctx.String("namespace")}
	if place.Service == "" && place != (project.Place{}) {
		return nil, cliapp.Usagef("--cluster and --namespace need --service: the three stand in for faas.yml")
	}
	job.Project.Path = c.getenv("CI_PROJECT_PATH")
	if job.Project.Path == "" {
		job.Project.Path = filepath.Base(job.Dir)
	}
	job.Registry.Image = c.getenv("CI_REGISTRY_IMAGE")
	commit := make(chan error, 1)
	var sha, branch string
	go func() { // while the bundle is chosen
		var err error
		sha, branch, err = c.head(ctx.Context, tree, job.Dir)
		commit <- err
	}()
	b, err := c.bundle(ctx.Context, job, tree)
	if herr := <-commit; herr != nil || err != nil {
		if b != nil {
			err = errors.Join(err, b.Close())
		}
		if herr != nil { // the file's own trouble before the platform's
			err = herr
		}
		return nil, err
	}
	job.Commit.SHA, job.Commit.Branch = sha, branch
	world, err := stages.Connect(c.getenv, ci.Job{}, c.stderr)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return &stages.Runner{Job: job, Log: ci.Log{W: c.stderr, Now: time.Now}, Bundle: b, World: world, Version: version, Environ: c.environ, Place: place}, nil
}

// bundle chooses and opens the bundle that the job would run. The caller
// closes it.
func (c command) bundle(ctx context.Context, job ci.Job, tree *stages.Tree) (*bundle.Bundle, error) {
	client, platform, err := stages.Platform(c.getenv)
	if err != nil {
		return nil, err
	}
	client.InMemory = true
	b, err := stages.ChooseBundle(ctx, client, platform, job, tree, version, "")
	if err != nil {
		return nil, stages.Explain(ctx, err)
	}
	log := ci.Log{W: c.stderr, Now: time.Now}
	for _, w := range b.Warnings {
		log.Warn("%s", w)
	}
	return b, nil
}

// head is the checked-out commit and branch, from the look at the tree where
// there is one; empty outside a git work tree.
func (c command) head(ctx context.Context, tree *stages.Tree, dir string) (sha, branch string, err error) {
	if tree != nil {
		sha, branch, err = tree.Head()
	} else {
		sha, branch, err = worktree.Head(ctx, c.environ, dir)
	}
	if err != nil {
		e := &usererr.Error{Code: usererr.CodeUsage, What: "read the git work tree", Err: err, Next: "make git rev-parse HEAD work there"}
		var exit *child.ExitError
		if errors.As(err, &exit) && exit.Tail != "" {
			e.Err = errors.New(exit.Tail)
		}
		if strings.Contains(e.Err.Error(), "ambiguous argument 'HEAD'") {
			e.Err, e.Next = errors.New("it has no commit yet"), "make a first commit"
		}
		return "", "", e
	}
	return sha, branch, nil
}

func (c command) print(ctx *cli.Context, v any, text string) error {
	if ctx.Bool("json") {
		data, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		text = string(data) + "\n"
	}
	_, err := io.WriteString(c.stdout, text)
	return err
}

// target connects to what runs the repository's service.
func (c command) target(ctx *cli.Context) (*stages.Runner, deployer.Scope, stages.Target, error) {
	r, err := c.open(ctx, nil, true)
	if err != nil {
		return nil, deployer.Scope{}, stages.Target{}, err
	}
	scope, t, err := r.Open(ctx.Context)
	if err != nil {
		r.Bundle.Close()
	}
	return r, scope, t, err
}

func (c command) list(ctx *cli.Context) error {
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	h, err := t.Head(ctx.Context, scope)
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	ids, err := t.Releases(ctx.Context, scope)
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	releases := make([]deployer.Release, 0, len(ids))
	for _, id := range ids {
		rel, err := t.Release(ctx.Context, scope, id)
		if err != nil {
			return stages.Explain(ctx.Context, err)
		}
		releases = append(releases, rel)
	}
	slices.SortFunc(releases, func(a, b deployer.Release) int { return b.Created.Compare(a.Created) })
	var b strings.Builder
	for _, rel := range releases {
		mark := " "
		if rel.ID == h.Live {
			mark = "*"
		}
		fmt.Fprintf(&b, "%s %-6s %s  commit %.12s  pipeline %d\n", mark, rel.ID, rel.Created.UTC().Format(time.RFC3339), rel.Commit, rel.Pipeline)
	}
	return c.print(ctx, releases, b.String())
}

func (c command) show(ctx *cli.Context) error {
	if ctx.Args().Len() != 1 {
		return cliapp.Usagef("name one release, for example: faas release show r3")
	}
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	rel, err := t.Release(ctx.Context, scope, ctx.Args().First())
	if errors.Is(err, deployer.ErrNotFound) {
		return &usererr.Error{Code: usererr.CodeUsage, What: "find release " + ctx.Args().First(), Err: err, Next: "faas release list prints what there is"}
	}
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	data, err := json.MarshalIndent(rel, "", "  ")
	if err != nil {
		return err
	}
	return c.print(ctx, rel, string(data)+"\n")
}

func (c command) rollback(ctx *cli.Context) error {
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	o := c.options()
	o.SkipCapacity = ctx.Bool("now")
	out, err := deployer.Rollback(ctx.Context, t, scope, ctx.String("to"), o)
	if errors.Is(err, deployer.ErrNotFound) {
		return &usererr.Error{Code: usererr.CodeUsage, What: "roll back", Err: err, Next: "faas release list prints what there is"}
	}
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	return c.print(ctx, out, fmt.Sprintf("release %s is live again; pipelines don't deploy until: faas release resume\n", out.ID))
}

func (c command) promote(ctx *cli.Context) error {
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	o := c.options()
	if o.Prometheus, err = r.Prometheus(ctx.Context); err != nil {
		return err
	}
	out, err := deployer.Promote(ctx.Context, t, scope, 0, o)
	if errors.Is(err, deployer.ErrNotFound) {
		return &usererr.Error{Code: usererr.CodeUsage, What: "promote a release", Err: err, Next: "faas status prints what is live, and what waits"}
	}
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	if out.Awaiting != "" {
		return c.print(ctx, out, out.Awaiting+"\n")
	}
	return c.print(ctx, out, fmt.Sprintf("release %s is live\n", out.ID))
}

func (c command) resume(ctx *cli.Context) error {
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	if err := deployer.Resume(ctx.Context, t, scope, c.options()); err != nil {
		return stages.Explain(ctx.Context, err)
	}
	return c.print(ctx, map[string]string{"resumed": scope.String()}, scope.String()+": pipelines deploy again\n")
}

// options names who acts, and passes progress to the log.
func (c command) options() deployer.Options {
	return deployer.Options{Holder: "faas, " + c.who(), Progress: stages.Progress(ci.Log{W: c.stderr, Now: time.Now})}
}

// who is the person at the keyboard, or the one who started the job.
func (c command) who() string {
	who := c.getenv("GITLAB_USER_LOGIN")
	if who == "" {
		who = c.getenv("USER")
	}
	host, _ := os.Hostname()
	return who + " on " + host
}
