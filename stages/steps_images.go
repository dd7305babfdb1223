package stages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// buildImages builds and pushes what the plan says, and writes the digests.
func buildImages(ctx context.Context, s *state) (string, error) {
	plan, err := s.buildPlan(ctx)
	if err != nil {
		return "", err
	}
	p, err := s.project(ctx)
	if err != nil {
		return "", err
	}
	if err := s.hideSecrets(p); err != nil {
		return "", err
	}
	if err := s.checkRevealed(ctx, p, plan); err != nil {
		return "", err
	}
	built := 0
	refs := map[string]name.Digest{}
	for _, img := range plan.Images {
		if img.Engine == EngineImage {
			ref, err := name.NewDigest(img.Image)
			if err != nil {
				return "", err
			}
			refs[img.Name] = ref
			s.result.Images = append(s.result.Images, ImageResult{Name: img.Name, Ref: ref.String(), Engine: img.Engine, Reused: true})
			s.Log.Printf("image %s: %s, as build.image says", img.Name, ref)
			continue
		}
		req, err := s.request(ctx, p, plan, img)
		if err != nil {
			return "", err
		}
		if img.Action == "reuse" {
			refs[img.Name] = req.Repository.Digest(img.Digest)
			s.result.Images = append(s.result.Images, ImageResult{Name: img.Name, Ref: refs[img.Name].String(), Engine: img.Engine, Reused: true})
			s.Log.Printf("image %s: unchanged, %s", img.Name, img.Digest)
			continue
		}
		engine, ok := s.World.Engines[img.Engine]
		if !ok {
			return "", &usererr.Error{Code: usererr.CodeUnable, What: "build image " + img.Name, Err: fmt.Errorf("this job has no %s engine", img.Engine),
				Next: "use the platform's job image, which has every engine"}
		}
		got, err := engine.Build(ctx, req)
		if err != nil {
			return "", fmt.Errorf("image %s: %w", img.Name, err)
		}
		built++
		refs[img.Name] = got.Ref
		s.result.Images = append(s.result.Images, ImageResult{
			Name: img.Name, Ref: got.Ref.String(), Engine: got.Engine, Reused: got.Reused,
			Requests: got.Requests, Uploaded: got.Uploaded, Sandbox: got.Sandbox, BuildImage: got.BuildImage, Referrers: got.Referrers,
		})
		s.layerTable(got)
	}
	if err := s.writeImages(plan, refs); err != nil {
		return "", err
	}
	if err := s.rememberCommand(ctx, plan, refs); err != nil {
		return "", err
	}
	if built == 0 {
		return "every image exists already", nil
	}
	return "", nil
}

// layerTable is what was in the image, what had to be sent, and how long it
// took to be there.
func (s *state) layerTable(img builder.Image) {
	s.Log.Printf("image %s: %s", img.Name, img.Ref)
	if len(img.Layers) > 0 {
		s.Log.Printf("  %-14s %9s  %-6s  time", "layer", "size", "")
	}
	for _, l := range img.Layers {
		how, took := "pushed", ""
		if l.Reused {
			how = "reused"
		}
		if l.Took > 0 {
			took = ci.Took(l.Took)
		}
		s.Log.Printf("%s", strings.TrimRight(fmt.Sprintf("  %-14s %9s  %-6s  %s", l.Title, Size(l.Size), how, took), " "))
	}
	s.Log.Printf("  %d registry requests, %s sent", img.Requests, Size(img.Uploaded))
	if len(img.Referrers) > 0 {
		var beside []string
		for _, r := range img.Referrers {
			what := map[string]string{attest.Predicate: "provenance", attest.PredicateBOM: "bill of materials"}[r.Predicate]
			if r.Signed {
				what += " (signed)"
			}
			beside = append(beside, what)
		}
		s.Log.Printf("  beside it: %s", strings.Join(beside, ", "))
	}
	for _, w := range img.Warnings {
		s.Log.Warn("%s", w)
	}
	s.tellWhere(builder.Ran{Sandbox: img.Sandbox, Image: img.BuildImage, Why: img.Unboxed}, "installers")
}

// Size renders a number of bytes for people.
func Size(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// imagesFile is .faas/images.json: the digests that the deploy job uses.
type imagesFile struct {
	Version int               `json:"version"`
	Commit  string            `json:"commit"`
	Images  map[string]string `json:"images"` // planned image → reference by digest
}

func (s *state) writeImages(plan *BuildPlan, refs map[string]name.Digest) error {
	f := imagesFile{Version: 1, Commit: plan.Commit, Images: map[string]string{}}
	for n, r := range refs {
		f.Images[n] = r.String()
	}
	s.images = refs
	return writeWork(s.Job.Dir, fileImages, f)
}

// builtImages are the digests of the plan's images, from this job or an
// earlier one. Every planned image must have one.
func (s *state) builtImages(ctx context.Context) (map[string]name.Digest, error) {
	if s.images != nil {
		return s.images, nil
	}
	var f imagesFile
	if err := readWork(s.Job.Dir, fileImages, &f); err != nil {
		return nil, err
	}
	plan, err := s.buildPlan(ctx)
	if err != nil {
		return nil, err
	}
	refs := map[string]name.Digest{}
	var problems []usererr.Problem
	for _, img := range plan.Images {
		ref, err := name.NewDigest(f.Images[img.Name])
		if err != nil {
			problems = append(problems, usererr.Problem{Why: fmt.Sprintf("image %s: no digest in %s/%s", img.Name, WorkDir, fileImages)})
			continue
		}
		// The file passed through the repository's own commands.
		if img.Engine == EngineImage {
			if want, err := name.NewDigest(img.Image); err != nil || ref.Name() != want.Name() {
				problems = append(problems, usererr.Problem{Why: fmt.Sprintf("image %s: %s/%s names %s, faas.yml %s", img.Name, WorkDir, fileImages, ref, img.Image)})
				continue
			}
		} else if want, err := name.NewRepository(plan.Repository + "/" + img.Name); err != nil || ref.Context().Name() != want.Name() {
			problems = append(problems, usererr.Problem{Why: fmt.Sprintf("image %s: %s/%s names %s, the plan pushes to %s", img.Name, WorkDir, fileImages, ref.Context().Name(), want)})
			continue
		}
		refs[img.Name] = ref
	}
	if len(problems) > 0 {
		return nil, &usererr.Error{Code: usererr.CodeNoDigest, Problems: problems}
	}
	s.images = refs
	return refs, nil
}

var digestText = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// collectImages takes the digests that a bundle's own build script left.
func collectImages(ctx context.Context, s *state) (string, error) {
	plan, err := s.buildPlan(ctx)
	if err != nil {
		return "", err
	}
	root, err := os.OpenRoot(s.digestDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	refs := map[string]name.Digest{}
	var problems []usererr.Problem
	for _, img := range plan.Images {
		var digest string
		if root != nil {
			data, _ := root.ReadFile(img.Name)
			digest = digestText.FindString(string(data[:min(len(data), 4<<10)]))
		}
		if digest == "" {
			problems = append(problems, usererr.Problem{Why: fmt.Sprintf("image %s: no sha256:… in %s", img.Name, path.Join(WorkDir, "digests", img.Name))})
			continue
		}
		ref, err := name.NewDigest(plan.Repository + "/" + img.Name + "@" + digest)
		if err != nil {
			return "", err
		}
		refs[img.Name] = ref
		s.result.Images = append(s.result.Images, ImageResult{Name: img.Name, Ref: ref.String(), Engine: "script"})
		s.Log.Printf("image %s: %s", img.Name, ref)
	}
	if len(problems) > 0 {
		return "", &usererr.Error{Code: usererr.CodeNoDigest, Problems: problems}
	}
	return "", s.writeImages(plan, refs)
}
