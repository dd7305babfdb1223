package stages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

// maxSecret is more than GitLab lets a variable have.
const maxSecret = 1 << 20

// jobSecret is a variable of the job as a secret of a build. GitLab's variables
// of type file hold the path of a file: then that one's content is the secret.
func jobSecret(getenv func(string) string) func(string) (builder.Secret, error) {
	return func(name string) (builder.Secret, error) {
		v := getenv(name)
		if v == "" {
			return builder.Secret{}, builder.ErrNoSecret
		}
		if !filepath.IsAbs(v) {
			return builder.Secret{Value: []byte(v)}, nil
		}
		info, err := os.Stat(v)
		if err != nil || !info.Mode().IsRegular() {
			return builder.Secret{Value: []byte(v)}, nil
		}
		if info.Size() > maxSecret {
			return builder.Secret{}, fmt.Errorf("its file has %d bytes, and %d are possible", info.Size(), maxSecret)
		}
		data, err := os.ReadFile(v)
		if err != nil {
			return builder.Secret{}, withoutPath(err)
		}
		return builder.Secret{Value: data, File: true}, nil
	}
}

// secretNames are the secrets that a project's builds name.
func secretNames(p *project.Project) []string {
	names := slices.Clone(p.Build.Secrets)
	for _, u := range p.Units {
		names = append(names, u.Build.Secrets...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// hideSecrets looks for the secrets that builds name, and has them masked in
// all that is written from here on. Those that are missing are an error, all at
// once.
func (s *state) hideSecrets(p *project.Project) error {
	next := "set it in GitLab under Settings > CI/CD > Variables, or take it out of build.secrets"
	if !s.Job.Protected && s.Job.ID != 0 {
		next += "; this ref is not protected, and jobs of such refs don't get protected variables"
	}
	e := &usererr.Error{Code: usererr.CodeProjectRefused, What: "give the build its secrets", Next: next}
	for _, n := range secretNames(p) {
		secret, err := s.World.Secret(n)
		switch {
		case errors.Is(err, builder.ErrNoSecret):
			e.Problems = append(e.Problems, usererr.Problem{Why: "build.secrets: the CI variable " + n + " is not set in this job"})
		case err != nil:
			e.Problems = append(e.Problems, usererr.Problem{Why: fmt.Sprintf("build.secrets: the CI variable %s can't be read: %v", n, err)})
		case len(strings.TrimSpace(string(secret.Value))) < redact.MinLength:
			e.Problems = append(e.Problems, usererr.Problem{Why: fmt.Sprintf("build.secrets: the CI variable %s has fewer than %d characters, too few to be masked in logs", n, redact.MinLength)})
		case s.Secrets != nil:
			s.Secrets.Add(string(secret.Value))
		}
	}
	if len(e.Problems) > 0 {
		return e
	}
	return nil
}

// checkRevealed refuses files that are to be packaged and hold a secret: build
// tools write variables into what they make more often than people know.
func (s *state) checkRevealed(ctx context.Context, p *project.Project, plan *BuildPlan) error {
	names := secretNames(p)
	var paths []string
	for _, img := range plan.Images {
		if img.Action == "build" {
			paths = append(paths, plan.Files(img)...)
		}
	}
	if len(names) == 0 || len(paths) == 0 {
		return nil
	}
	tree, err := os.OpenRoot(s.Job.Dir)
	if err != nil {
		return err
	}
	defer tree.Close()
	slices.Sort(paths)
	file, secret, err := s.World.Reveals(ctx, tree.FS(), slices.Compact(paths), names)
	if file != "" {
		return builder.Revealed("package the code", file, secret)
	}
	return err
}
