package stages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/bundle"
)

// lookups is how many images are asked for at once, each by the goroutine that
// asked for one before: its stack has grown already.
const lookups = 12

// lookUp finds an image in its repository.
type lookUp func(ctx context.Context, repo name.Repository, img PlannedImage) (name.Digest, bool, error)

// byKey is the lookUp by the image's input key.
func (s *state) byKey(ctx context.Context, repo name.Repository, img PlannedImage) (name.Digest, bool, error) {
	return s.World.Exists(ctx, repo, img.Key)
}

// existing asks the registry for the plan's images, and returns the digests of
// those that are there by name. With an error the answer is incomplete.
func existing(ctx context.Context, plan BuildPlan, look lookUp) (map[string]string, error) {
	found := map[string]string{}
	var mu sync.Mutex
	var errs []error
	images := make(chan PlannedImage)
	var group sync.WaitGroup
	for range min(lookups, len(plan.Images)) {
		group.Go(func() {
			for img := range images {
				digest, err := look.digest(ctx, plan.Repository+"/"+img.Name, img)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else if digest != "" {
					found[img.Name] = digest
				}
				mu.Unlock()
			}
		})
	}
	for _, img := range plan.Images {
		if img.Engine == EngineImage {
			continue // nobody built it here
		}
		mu.Lock()
		failed := len(errs) > 0
		mu.Unlock()
		if failed {
			break // the next ones would wait for the same registry
		}
		images <- img
	}
	close(images)
	group.Wait()
	return found, errors.Join(errs...)
}

// digest is the image's in the repository; empty when it is not there.
func (look lookUp) digest(ctx context.Context, repository string, img PlannedImage) (string, error) {
	repo, err := name.NewRepository(repository)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", img.Name, err)
	}
	ref, ok, err := look(ctx, repo, img)
	if err != nil || !ok {
		return "", err
	}
	return ref.DigestStr(), nil
}

// folders names the folders of a bundle's folder: its plugins.
func folders(fsys fs.FS, dir string) []string {
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return nil // a bundle without any
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}

// builtInLayers are the names of the layers that a bundle has for any runtime.
func builtInLayers(m bundle.Meta) []string {
	all := map[string]bool{}
	for _, rt := range m.Runtimes {
		for n := range rt.Layers {
			all[n] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
