package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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
	npm      string
	registry string
	seq      int64
}

func startStages(ctx context.Context, b *bench) (*stageRunner, error) {
	s := &stageRunner{program: filepath.Join(b.cache, "bin", "stage-runner"), dir: filepath.Join(b.temp, "stages"), npm: b.npm.Host, registry: b.registry.Host}
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
	images, err := where.PushBaseImages(ctx, filepath.Dir(b.images), "nodejs18")
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

// faasYML is the smallest project around the application's code.
const faasYML = `version: 1
service: bench
provider: {runtime: nodejs18}
functions:
  web: {handler: index.handler, contract: app, events: [{http: {path: /}}]}
`

func (s *stageRunner) run(ctx context.Context, app peers.App, scenario string, round int) (measure.Usage, error) {
	work, cache := filepath.Join(s.dir, app.Name), filepath.Join(s.dir, "cache-"+app.Name)
	if scenario == "cold" {
		if err := os.RemoveAll(cache); err != nil {
			return measure.Usage{}, err
		}
	}
	for _, d := range []string{work, cache} {
		if err := os.RemoveAll(work); err != nil {
			return measure.Usage{}, err
		}
		if err := os.MkdirAll(d, 0o755); err != nil {
			return measure.Usage{}, err
		}
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return measure.Usage{}, err
	}
	if err := os.CopyFS(work, os.DirFS(app.Dir)); err != nil {
		return measure.Usage{}, err
	}
	if err := os.WriteFile(filepath.Join(work, "faas.yml"), []byte(faasYML), 0o644); err != nil {
		return measure.Usage{}, err
	}
	s.seq++
	job := devenv.Job{Dir: work, Environment: "bench", ProjectID: int64(1000 + round), ProjectPath: fmt.Sprintf("bench/%s-%d", app.Name, round),
		Commit: fmt.Sprintf("%040x", s.seq), Branch: "main", IID: s.seq, Created: time.Now(), Platform: s.platform,
		Extra: []string{"FAAS_CACHE_DIR=" + cache, "npm_config_registry=http://" + s.npm + "/", "CI_COMMIT_REF_PROTECTED=true"}}
	return measure.Command(ctx, job.Environ(), s.program, "run", "prepare,test,build")
}

func (s *stageRunner) close() {
	if s.server != nil {
		_ = s.server.Close()
	}
}
