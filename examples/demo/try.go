package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/stages"
)

// try deploys the repository in dir to a platform of its own on this machine,
// prints the functions' addresses, one a line, and keeps everything running
// until ctx ends. It is run in a checkout of Kuroko.
func try(ctx context.Context, dir, sandbox string, stdout, stderr io.Writer) (err error) {
	checkout, err := devenv.Where()
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	data, err := os.MkdirTemp("", "kuroko-try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(data)
	services, err := devenv.Start(context.WithoutCancel(ctx), data, sandbox)
	if err != nil {
		return err
	}
	defer services.Close()
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	images, err := services.PushBuilt(ctx, filepath.Join(cache, "kuroko"))
	if err != nil {
		return fmt.Errorf("base images: %w", err)
	}
	platform, err := devenv.NewPlatform(services.Services, checkout, filepath.Join(data, "job-image"), "stable")
	if err != nil {
		return err
	}
	_, err = platform.Publish(ctx, devenv.Release{
		Version: "1", Runtimes: images, Why: "try", Files: map[string]string{"platform/clusters.yml": services.ClustersFile("test", "prod")},
	})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	here := map[string]string{
		"FAAS_PLATFORM_DIR": platform.Dir,
		"PATH":              filepath.Dir(self) + string(os.PathListSeparator) + os.Getenv("PATH"), // kaniko-executor is built beside this program
	}
	environ := os.Environ()
	for name, value := range here {
		environ = append(environ, name+"="+value)
	}
	getenv := func(name string) string {
		if value, ok := here[name]; ok {
			return value
		}
		return os.Getenv(name)
	}
	job := ci.Job{Dir: dir, Environment: "test"}
	job.Project.ID, job.Project.Path = 1, "try/repository" // a folder may be called what no image may
	client, where, err := stages.Platform(getenv)
	if err != nil {
		return err
	}
	b, err := stages.ChooseBundle(ctx, client, where, job, nil, "dev", "")
	if err != nil {
		return stages.Explain(ctx, err)
	}
	defer b.Close()
	secrets := new(redact.Redactor)
	log := secrets.Writer(stderr)
	defer log.Close()
	world, err := stages.Connect(getenv, ci.Job{}, log)
	if err != nil {
		return err
	}
	r := stages.Runner{Job: job, Log: ci.Log{W: log, Now: time.Now}, Bundle: b, World: world, Version: "dev", Environ: environ, Secrets: secrets}
	rep, err := r.Run(ctx, []string{"prepare", "test", "build", "deploy", "promote"})
	if err != nil {
		return err
	}
	for _, u := range rep.Result.URLs {
		fmt.Fprintln(stdout, u.URL)
	}
	<-ctx.Done()
	return nil
}
