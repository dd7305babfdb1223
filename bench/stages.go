package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kuroko-faas/kuroko/bench/internal/measure"
	"github.com/kuroko-faas/kuroko/bench/internal/peers"
	"github.com/kuroko-faas/kuroko/internal/devenv"
)

// stageRunner is the whole job around the layer engine, for the column beside
// it: `stage-runner run prepare,test,build` under a published bundle. Its walls
// hold bundle, plan, log and report; the peers' don't.
type stageRunner struct {
	server   *devenv.Server
	platform string
	program  string
	dir      string
	registry string
	seq      int64
}

func startStages(ctx context.Context, b *bench) (*stageRunner, error) {
	s := &stageRunner{program: filepath.Join(b.cache, "bin", "stage-runner"), dir: filepath.Join(b.temp, "stages"), registry: b.registry.Host}
	if _, err := b.compile(ctx, ".", "stage-runner", "./cmd/stage-runner"); err != nil {
		return nil, err
	}
	checkout, err := filepath.Abs(b.checkout)
	if err != nil {
		return nil, err
	}
	if s.server, err = devenv.Start(ctx, filepath.Join(s.dir, "services"), "none"); err != nil {
		return nil, err
	}
	// All builders push to the one registry that counts.
	where := s.server.Services
	where.Registry = b.registry.Host
	images, err := where.PushBaseImages(ctx, b.home, slices.Sorted(maps.Keys(b.known))...)
	if err != nil {
		return nil, err
	}
	s.platform = filepath.Join(s.dir, "platform")
	if err := os.MkdirAll(s.platform, 0o755); err != nil {
		return nil, err
	}
	p, err := devenv.NewPlatform(where, checkout, s.platform, "stable")
	if err != nil {
		return nil, err
	}
	_, err = p.Publish(ctx, devenv.Release{Version: "1", Why: "benchmark", Runtimes: images,
		Files: map[string]string{"platform/clusters.yml": where.ClustersFile("bench")}})
	return s, err
}

func (s *stageRunner) Name() string { return "whole stage-runner" }

func (s *stageRunner) run(ctx context.Context, app *application, scenario string, round int) (measure.Usage, error) {
	work, cache := filepath.Join(s.dir, app.Name), filepath.Join(s.dir, "cache-"+app.Name)
	if scenario == "cold" {
		if err := errors.Join(os.RemoveAll(work), os.RemoveAll(cache)); err != nil {
			return measure.Usage{}, err
		}
	}
	if err := errors.Join(os.MkdirAll(work, 0o755), os.MkdirAll(cache, 0o755)); err != nil {
		return measure.Usage{}, err
	}
	// What the build command leaves stays, as with GitLab's cache.
	if err := peers.Checkout(app.Dir, work); err != nil {
		return measure.Usage{}, err
	}
	project := "version: 1\nservice: bench\nprovider: {runtime: " + app.runtime + "}\n" + app.faasYML
	if err := os.WriteFile(filepath.Join(work, "faas.yml"), []byte(project), 0o644); err != nil {
		return measure.Usage{}, err
	}
	s.seq++
	job := devenv.Job{Dir: work, Environment: "bench", ProjectID: int64(1000 + round), ProjectPath: fmt.Sprintf("bench/%s-%d", app.Name, round),
		Commit: fmt.Sprintf("%040x", s.seq), Branch: "main", IID: s.seq, Created: time.Now(), Platform: s.platform,
		Extra: append([]string{"FAAS_CACHE_DIR=" + cache, "CI_COMMIT_REF_PROTECTED=true"}, app.env...)}
	return measure.Command(ctx, job.Environ(), s.program, "run", "prepare,test,build")
}

func (s *stageRunner) close() {
	if s.server != nil {
		_ = s.server.Close()
	}
}
