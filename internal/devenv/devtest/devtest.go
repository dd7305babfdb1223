// Package devtest gives tests the embedded services with a platform, and a
// folder of files: what is the same in the tests of every program.
package devtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/builder/debian"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/internal/devenv"
)

// Lab is a platform on this machine, with no bundle published yet.
type Lab struct {
	Services *devenv.Server
	Platform *devenv.Platform
	// Images are the base images in the registry, by runtime.
	Images map[string]bundle.Images

	clusters func(environments ...string) string
}

// layersDir names the environment variable with the folder that [Main] made.
const layersDir = "DEVTEST_LAYERS"

// Main runs a program's tests with one folder for the layers that all their
// targets unpack: base images are large, and the same in every test.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "devtest-layers-")
	if err == nil {
		err = os.Setenv(layersDir, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// Start starts the embedded services until the test ends, with the images of
// the runtimes, nodejs18 where none is named. Without base images it skips:
// they are made by `make images`.
func Start(t testing.TB, runtimes ...string) Lab {
	t.Helper()
	return start(t, nil, runtimes)
}

// start is Start with the images and functions in the cluster; nil: on this
// machine.
func start(t testing.TB, cluster *Cluster, runtimes []string) Lab {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: starts the embedded services and builds images")
	}
	checkout, err := devenv.Where()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache folder, so no base images: ", err)
	}
	var l Lab
	if l.Services, err = devenv.StartSharing(t.Context(), t.TempDir(), "auto", os.Getenv(layersDir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Services.Close(); err != nil {
			t.Error(err)
		}
	})
	l.clusters = l.Services.ClustersFile
	if cluster != nil {
		l.Services.Registry, l.clusters = cluster.Registry, cluster.ClustersFile
	}
	l.Images, err = l.Services.PushBaseImages(t.Context(), filepath.Join(cache, "kuroko"), runtimes...)
	if errors.Is(err, debian.ErrNotBuilt) {
		t.Skip("base images are missing; make images makes them: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if l.Platform, err = devenv.NewPlatform(l.Services.Services, checkout, t.TempDir(), "stable"); err != nil {
		t.Fatal(err)
	}
	return l
}

// Publish makes a bundle current, version 1 where r says none, with the
// embedded services, or the [Cluster], as the cluster of the environments. It
// returns the digest.
func (l Lab) Publish(t testing.TB, r devenv.Release, environments ...string) string {
	t.Helper()
	files := map[string]string{"platform/clusters.yml": l.clusters(environments...)}
	for n, text := range r.Files {
		files[n] = text
	}
	r.Files, r.Runtimes, r.Why = files, l.Images, "test"
	if r.Version == "" {
		r.Version = "1"
	}
	digest, err := l.Platform.Publish(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// Write makes files below dir; a name that ends in "*" is executable.
func Write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		mode := fs.FileMode(0o644)
		if n, ok := strings.CutSuffix(name, "*"); ok {
			name, mode = n, 0o755
		}
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
}
