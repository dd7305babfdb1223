package stages

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
)

// reads is what build.command can read, as it was before any command of this
// job ran. An image that came of equal reads is the one that the command would
// lead to again, so that it need not run.
type reads struct {
	sum string // empty where it is not known
	why string // why no later job may go by it; empty where it may
}

// readsVersion stands in every sum of reads; its number changes with what a
// command sees.
const readsVersion = "command/1"

// caches are folders whose content package managers decide by lock files, or
// check when they use it. In them only what git tracks is counted.
var caches = map[string]bool{"node_modules": true, ".m2": true, ".gradle": true, ".npm": true, ".pnpm-store": true}

// commandReads sums what build.command can read: all files but those of
// caches and those that it makes, itself and the tests that run before it,
// their environment and build images. known are sums that were read already.
// What can't be summed is no error: the command runs, and no job goes by it.
func (s *state) commandReads(ctx context.Context, p *project.Project, known []worktree.File) (reads, error) {
	files, err := s.commandFiles(ctx, p, known)
	if ctx.Err() != nil {
		return reads{}, context.Cause(ctx)
	}
	if err != nil {
		return reads{why: err.Error()}, nil
	}
	var r reads
	if moving, err := movingVersion(s.Job.Dir, files); err != nil || moving != "" {
		return reads{why: or(moving, fmt.Sprint(err))}, nil
	}
	if s.nodeKind(p) != "" {
		note, there, err := s.installed()
		if err != nil {
			return reads{}, err
		}
		if there && note == "" {
			r.why = "node_modules was there before, and this runner did not install it"
		}
	}
	sum := newSummer()
	list := func(parts ...string) { sum.add(sumOf(parts...)) }
	b := p.Build
	line, home := s.World.Shell(s.nodeKind(p), b.Command)
	list(readsVersion, b.Install, b.Command, line, b.Output, p.Test.Command, s.variable("TZ"))
	for _, file := range slices.Sorted(maps.Keys(home)) {
		list(file, string(home[file]))
	}
	for _, k := range slices.Sorted(maps.Keys(b.Env)) {
		list("env", k, b.Env[k])
	}
	list(append([]string{"secrets"}, b.Secrets...)...)
	for _, language := range []string{"", "node"} {
		image, err := s.buildImage(ctx, commandRuntime(p, language))
		if err != nil {
			return reads{}, err
		}
		list("image", image.Identifier())
	}
	// Which files an image takes is decided here, beside their content.
	list(append([]string{"include"}, p.Package.Include...)...)
	list(append([]string{"exclude"}, p.Package.Exclude...)...)
	for _, f := range p.Functions {
		list("source", f.Source)
	}
	for _, f := range files {
		list(f.Path, f.Sum)
	}
	r.sum = sum.sum()
	return r, nil
}

// commandFiles are the files that build.command can read, sorted, with their
// sums: what git tracks, and what else lies there but caches, the command's own
// output and our notes. A plan for people takes the tracked ones alone: they
// are what a pipeline's work tree begins with.
func (s *state) commandFiles(ctx context.Context, p *project.Project, known []worktree.File) ([]worktree.File, error) {
	dir, output := s.Job.Dir, p.Build.Output
	var paths []string
	var err error
	_, missing := os.Lstat(filepath.Join(dir, gitDir))
	switch {
	case missing != nil:
	case s.looked != nil:
		paths, err = s.looked.look.Files()
	default:
		paths, err = worktree.List(ctx, dir, "")
	}
	if err != nil {
		return nil, err
	}
	if s.looked == nil || missing != nil {
		cache := filepath.Clean(s.variable("FAAS_CACHE_DIR")) // GitLab caches below the work tree alone
		err = filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(dir, at)
			if err != nil {
				return err
			}
			switch rel = filepath.ToSlash(rel); {
			case rel == ".":
				return nil
			case rel == gitDir || rel == WorkDir || at == cache || d.IsDir() && (caches[d.Name()] || output != "" && rel == path.Clean(output)):
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			case output != "" && within(rel, output) || d.IsDir():
				return nil
			}
			paths = append(paths, rel)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	sums := make(map[string]string, len(known))
	for _, f := range known {
		sums[f.Path] = f.Sum
	}
	more, err := worktree.Sum(dir, slices.DeleteFunc(slices.Clone(paths), func(f string) bool { return sums[f] != "" }))
	if err != nil {
		return nil, err
	}
	for _, f := range more {
		sums[f.Path] = f.Sum
	}
	files := make([]worktree.File, 0, len(paths))
	for _, f := range paths {
		if sums[f] != "" {
			files = append(files, worktree.File{Path: f, Sum: sums[f]})
		}
	}
	return files, nil
}

// movingVersion names a version in a pom.xml whose content changes although its
// name does not; empty for none. The project's own may be a snapshot.
func movingVersion(dir string, files []worktree.File) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	for _, f := range files {
		if path.Base(f.Path) != mavenFile {
			continue
		}
		pom, err := root.Open(filepath.FromSlash(f.Path))
		if err != nil {
			return "", err
		}
		version, err := movingIn(pom)
		pom.Close()
		if err != nil {
			return "", fmt.Errorf("read %s: %w", f.Path, err)
		}
		if version != "" {
			return fmt.Sprintf("%s asks for %s, which may be another one tomorrow", f.Path, version), nil
		}
	}
	return "", nil
}

func movingIn(pom io.Reader) (string, error) {
	d := xml.NewDecoder(pom)
	var in []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		switch token := token.(type) {
		case xml.StartElement:
			in = append(in, token.Name.Local)
		case xml.EndElement:
			in = in[:len(in)-1]
		case xml.CharData:
			text := strings.TrimSpace(string(token))
			at := strings.Join(in, "/")
			version := strings.HasSuffix(at, "/version") && at != "project/version" || strings.HasPrefix(at, "project/properties/")
			ranged := strings.IndexAny(text, "[(") == 0 && strings.Contains(text, ",")
			if version && (ranged || strings.HasSuffix(text, "-SNAPSHOT") || text == "LATEST" || text == "RELEASE") {
				return text, nil
			}
		}
	}
}

// commandKey is what an image is found by before build.command ran: what the
// command reads, and everything of the image's own key that it can't make.
func commandKey(reads string, p *project.Project, img PlannedImage) string {
	parts := []string{reads}
	for _, in := range img.Inputs {
		switch {
		case in.Name == inputCode || strings.HasPrefix(in.Name, inputCodeOf):
			parts = append(parts, in.Name)
		case p.Build.Output == "" || !within(in.Name, p.Build.Output):
			parts = append(parts, in.Name, in.Sum)
		}
	}
	return sumOf(parts...)
}

// unchanged finds the images that build.command led to when it read what it
// would read now, by name; nil unless all of the plan's are there.
func (s *state) unchanged(ctx context.Context, plan BuildPlan) map[string]string {
	absent := errors.New("not there")
	found, err := existing(ctx, plan, func(ctx context.Context, repo name.Repository, img PlannedImage) (name.Digest, bool, error) {
		if img.CommandKey == "" {
			return name.Digest{}, false, absent
		}
		ref, ok, err := s.World.FindMade(ctx, repo, img.CommandKey)
		if err == nil && !ok {
			err = absent
		}
		return ref, ok, err
	})
	if err != nil || len(found) == 0 {
		return nil // a registry that fails is told by who looks for the image's own key
	}
	return found
}

// withoutCommand is the plan with the images that were found by what
// build.command reads.
func (p BuildPlan) withoutCommand(found map[string]string) BuildPlan {
	p.Images, p.CommandSkipped = slices.Clone(p.Images), true
	for i := range p.Images {
		if img := &p.Images[i]; found[img.Name] != "" {
			img.Action, img.Why, img.Digest, img.Key = "reuse", "nothing that build.command reads has changed", found[img.Name], img.CommandKey
		}
	}
	p.Notes = p.advice()
	return p
}

// rememberCommand lets later jobs find the images by what build.command read.
// It is a courtesy to them: where it fails, the command runs again.
func (s *state) rememberCommand(ctx context.Context, plan *BuildPlan, refs map[string]name.Digest) error {
	if !s.commandRan {
		return nil
	}
	why := "a script of the platform ran after it"
	if s.reads != nil {
		why = s.reads.why
	}
	if why == "" {
		group, gctx := errgroup.WithContext(ctx)
		group.SetLimit(lookups)
		for _, img := range plan.Images {
			if img.CommandKey != "" {
				group.Go(func() error { return s.World.MarkMade(gctx, refs[img.Name], img.CommandKey) })
			}
		}
		if err := group.Wait(); err != nil {
			why = err.Error()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if why != "" {
		s.Log.Printf("build.command runs again in the next job: %s", why)
	}
	return nil
}

// ranIn keeps in mind that a command ran where it could read more than the sum
// has. A nil r has nothing to keep.
func (r *reads) ranIn(ran builder.Ran) {
	if r != nil && r.why == "" && ran.Sandbox != builder.SandboxNamespaces {
		r.why = "it ran without a sandbox, where it can read the whole job"
	}
}
