// Command kaniko-executor builds one image from a Dockerfile without a daemon,
// with the flags of kaniko's own executor that build scripts use.
//
// It runs twice: as the program that was called, which reads credentials,
// pulls the base and pushes the result, and as process 1 of a sandbox, where
// kaniko carries out the instructions. It is also the sandboxed half of the
// stage runner's Dockerfile builds. Link it statically (CGO_ENABLED=0).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/kaniko"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

func main() {
	sandbox.Main()
	if len(os.Args) == 2 && os.Args[1] == kaniko.ChildCommand {
		os.Exit(child(os.Stderr))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args, os.Getenv, os.Stdout, os.Stderr))
}

// run is main without the process: everything it touches is a parameter.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	app := &cli.App{
		Name:      "kaniko-executor",
		Usage:     "build an image from a Dockerfile, without a daemon",
		UsageText: "kaniko-executor --context DIR --dockerfile FILE --destination IMAGE:TAG [flags]",
		// A build argument may hold commas.
		DisableSliceFlagSeparator: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "context", Usage: "folder that COPY reads from; dir:// may stand before it", Value: "."},
			&cli.StringFlag{Name: "dockerfile", Usage: "path of the Dockerfile, as it is or below the context", Value: "Dockerfile"},
			&cli.StringSliceFlag{Name: "destination", Usage: "push the image there; may be repeated"},
			&cli.StringSliceFlag{Name: "build-arg", Usage: "KEY=value, or KEY for the environment's value; may be repeated"},
			&cli.StringSliceFlag{Name: "secret", Usage: "id=NAME, id=NAME,env=VARIABLE or id=NAME,src=FILE for RUN --mount=type=secret; may be repeated"},
			&cli.StringFlag{Name: "target", Usage: "name of the stage to build"},
			&cli.StringFlag{Name: "digest-file", Usage: "write the image's digest to this file"},
			&cli.StringFlag{Name: "cache-repo", Usage: "repository that keeps what instructions made, so that equal ones are only looked up; written by jobs of protected refs alone"},
			&cli.StringSliceFlag{Name: "insecure-registry", Usage: "HOST:PORT to reach over plain HTTP; may be repeated"},
			&cli.StringFlag{Name: "cache-dir", Usage: "folder that keeps unpacked images and what instructions made"},
		},
		Action: func(c *cli.Context) error { return runBuild(c, getenv, stdout, stderr) },
	}
	return cliapp.Run(ctx, app, longFlags(args), stdout, stderr, nil)
}

// longFlags spells kaniko's short flags out. Aliases would do, but the library
// refuses a flag that is used in both forms, as scripts do.
func longFlags(args []string) []string {
	long := map[string]string{"-c": "--context", "-f": "--dockerfile", "-d": "--destination"}
	var out []string
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if l := long[name]; l != "" && ok {
			a = l + "=" + value
		} else if l != "" {
			a = l
		}
		out = append(out, a)
	}
	return out
}

func runBuild(c *cli.Context, getenv func(string) string, stdout, stderr io.Writer) error {
	dest, cache, err := destinations(c)
	if err != nil {
		return err
	}
	src, err := source(c, getenv)
	if err != nil {
		return err
	}
	secrets, err := secrets(c, getenv)
	if err != nil {
		return err
	}
	masked := new(redact.Redactor)
	for id, s := range secrets {
		src.Secrets = append(src.Secrets, id)
		masked.Add(string(s.Value))
	}
	slices.Sort(src.Secrets)
	log := masked.Writer(stderr)
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	e := kaniko.New(kaniko.Options{
		Executor: self, Keychain: keychain(getenv), Insecure: c.StringSlice("insecure-registry"),
		CacheDir: c.String("cache-dir"), Log: log,
		Secret: func(id string) (builder.Secret, error) { return secrets[id], nil },
	})
	if cache != nil {
		src.Cache.Read = []name.Repository{*cache}
		// What later builds of protected refs find there must not come from
		// anywhere else. Outside of a job, whoever may push may write.
		if getenv("CI_COMMIT_REF_PROTECTED") == "true" || getenv("GITLAB_CI") == "" {
			src.Cache.Write = cache
		} else {
			fmt.Fprintf(log, "%s is only read: this job's ref is not protected\n", cache)
		}
	}
	res, err := e.BuildTo(c.Context, src, dest)
	if err != nil {
		return designed(err)
	}
	if f := c.String("digest-file"); f != "" {
		if err := os.WriteFile(f, []byte(res.Digest.String()), 0o644); err != nil {
			return fmt.Errorf("write the digest: %w", err)
		}
	}
	for _, d := range dest {
		fmt.Fprintf(stdout, "%s@%s\n", d.Context(), res.Digest)
	}
	return nil
}

// destinations are where the image goes, and where earlier ones may be.
func destinations(c *cli.Context) (dest []name.Tag, cache *name.Repository, err error) {
	insecure := map[string]bool{}
	for _, h := range c.StringSlice("insecure-registry") {
		insecure[h] = true
	}
	options := func(registry string) []name.Option {
		if insecure[registry] {
			return []name.Option{name.Insecure}
		}
		return nil
	}
	for _, d := range c.StringSlice("destination") {
		t, err := name.NewTag(d)
		if err == nil {
			t, err = name.NewTag(d, options(t.RegistryStr())...)
		}
		if err != nil {
			return nil, nil, cliapp.Usagef("--destination %s: %w", d, err)
		}
		dest = append(dest, t)
	}
	if len(dest) == 0 {
		return nil, nil, cliapp.Usagef("--destination is missing")
	}
	if s := c.String("cache-repo"); s != "" {
		r, err := name.NewRepository(s)
		if err == nil {
			r, err = name.NewRepository(s, options(r.RegistryStr())...)
		}
		if err != nil {
			return nil, nil, cliapp.Usagef("--cache-repo %s: %w", s, err)
		}
		cache = &r
	}
	return dest, cache, nil
}

// secrets are those that the flags give: docker's form.
func secrets(c *cli.Context, getenv func(string) string) (map[string]builder.Secret, error) {
	all := map[string]builder.Secret{}
	for _, flag := range c.StringSlice("secret") {
		var id, variable, file string
		for _, part := range strings.Split(flag, ",") {
			key, value, _ := strings.Cut(part, "=")
			switch key {
			case "id":
				id = value
			case "env":
				variable = value
			case "src", "source":
				file = value
			case "type": // follows from the others
			default:
				return nil, cliapp.Usagef("--secret %s: %q is not one of id, env, src", flag, key)
			}
		}
		if id == "" {
			return nil, cliapp.Usagef("--secret %s: no id", flag)
		}
		if file != "" {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, cliapp.Usagef("--secret %s: %w", flag, err)
			}
			all[id] = builder.Secret{Value: data, File: true}
			continue
		}
		if variable == "" {
			variable = id
		}
		value := getenv(variable)
		if value == "" {
			return nil, cliapp.Usagef("--secret %s: the variable %s is not set", flag, variable)
		}
		all[id] = builder.Secret{Value: []byte(value)}
	}
	return all, nil
}

// source reads the Dockerfile and opens the context.
func source(c *cli.Context, getenv func(string) string) (kaniko.Source, error) {
	src := kaniko.Source{Path: c.String("dockerfile"), Target: c.String("target"), Args: map[string]string{}}
	dir := strings.TrimPrefix(c.String("context"), "dir://")
	if scheme, _, ok := strings.Cut(dir, "://"); ok {
		return src, cliapp.Usagef("--context %s: only folders can be a context here, not %s://", dir, scheme)
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return src, cliapp.Usagef("--context %s: not a folder", dir)
	}
	for _, a := range c.StringSlice("build-arg") {
		k, v, ok := strings.Cut(a, "=")
		if !ok {
			v = getenv(k)
		}
		if k == "" {
			return src, cliapp.Usagef("--build-arg %s: no name before =", a)
		}
		src.Args[k] = v
	}
	text, err := os.ReadFile(src.Path)
	if errors.Is(err, os.ErrNotExist) && !filepath.IsAbs(src.Path) {
		text, err = os.ReadFile(filepath.Join(dir, src.Path))
	}
	if err != nil {
		return src, cliapp.Usagef("--dockerfile %s: neither here nor in the context: %w", src.Path, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return src, err
	}
	src.Dockerfile, src.Context = text, root.FS()
	return src, nil
}

// keychain finds credentials where GitLab jobs have them: docker's
// configuration, then CI_REGISTRY_USER and CI_REGISTRY_PASSWORD for
// CI_REGISTRY.
func keychain(getenv func(string) string) authn.Keychain {
	return authn.NewMultiKeychain(authn.DefaultKeychain, jobKeychain{getenv})
}

type jobKeychain struct{ getenv func(string) string }

func (k jobKeychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	host, user, password := k.getenv("CI_REGISTRY"), k.getenv("CI_REGISTRY_USER"), k.getenv("CI_REGISTRY_PASSWORD")
	if host == "" || password == "" || r.RegistryStr() != host {
		return authn.Anonymous, nil
	}
	return &authn.Basic{Username: user, Password: password}, nil
}

// designed says who can act.
func designed(err error) error {
	var input *builder.InputError
	var away *builder.Unavailable
	switch {
	case errors.Is(err, sandbox.ErrForbidden), errors.Is(err, sandbox.ErrNoOverlay):
		return &usererr.Error{Code: usererr.CodeUnable, Err: err,
			Next: "run the job where that right is given; images without a Dockerfile are built here all the same, and so is everything that the cache repository has"}
	case errors.As(err, &input):
		return &usererr.Error{Code: usererr.CodeBuildInput, Err: err, Next: input.Next}
	case errors.As(err, &away):
		return &usererr.Error{Code: usererr.CodeRegistryUnavailable, Err: err}
	case errors.Is(err, builder.ErrDenied):
		return &usererr.Error{Code: usererr.CodeRegistryDenied, Err: err}
	}
	return err
}
