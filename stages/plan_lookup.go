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
	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/bundle"
)

// lookups is how many images are asked for at once.
const lookups = 8

// existing asks the registry for the plan's images, and returns the digests of
// those that are there by name. With an error the answer is incomplete.
func (s *state) existing(ctx context.Context, plan BuildPlan) (map[string]string, error) {
	found := map[string]string{}
	var mu sync.Mutex
	var errs []error
	var group errgroup.Group
	group.SetLimit(lookups)
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
		group.Go(func() error {
			repo, err := name.NewRepository(plan.Repository + "/" + img.Name)
			if err != nil {
				err = fmt.Errorf("image %s: %w", img.Name, err)
			} else {
				var ref name.Digest
				var ok bool
				if ref, ok, err = s.World.Exists(ctx, repo, img.Key); ok && err == nil {
					mu.Lock()
					found[img.Name] = ref.DigestStr()
					mu.Unlock()
				}
			}
			if err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = group.Wait() // errors are kept above, all of them
	return found, errors.Join(errs...)
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
