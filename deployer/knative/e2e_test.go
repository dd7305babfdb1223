//go:build e2e

package knative_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// unitProgram is testdata/unit, built once, static.
var unitProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "kuroko-unit-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "unit")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/unit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the unit: %w\n%s", err, b)
	}
	return os.ReadFile(out)
})

// registry is the lab's, as units and this machine see it.
func registry(t *testing.T) string {
	t.Helper()
	host := os.Getenv("KUROKO_LAB_REGISTRY")
	if host == "" {
		t.Skip("needs the full lab: KUROKO_LAB_REGISTRY is not set; make e2e sets it")
	}
	return host
}

// image pushes the unit with that behaviour and returns it by digest.
func image(t *testing.T, behave string) name.Digest {
	t.Helper()
	host := registry(t)
	program, err := unitProgram()
	if err != nil {
		t.Fatal(err)
	}
	if behave == "foreign" {
		// The same program, as its header says for another processor.
		program = slices.Clone(program)
		elf := program[:20]
		if m := binary.LittleEndian.Uint16(elf[18:]); m == 0xb7 {
			binary.LittleEndian.PutUint16(elf[18:], 0x3e)
		} else {
			binary.LittleEndian.PutUint16(elf[18:], 0xb7)
		}
	}
	img, err := mutate.AppendLayers(empty.Image, layer(t, "bin/unit", 0o755, program), layer(t, "app/name", 0o644, []byte(behave)))
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Architecture, file.OS = runtime.GOARCH, "linux"
	file.Config = v1.Config{Entrypoint: []string{"/bin/unit"}, WorkingDir: "/app", User: "65532:65532", Env: []string{"BEHAVE=" + behave}}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(host + "/test/unit@" + h.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref.Context().Tag(behave), img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref
}

func layer(t *testing.T, path string, mode int64, body []byte) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: filepath.Dir(path) + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteHeader(&tar.Header{Name: path, Mode: mode, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func missing(t *testing.T) name.Digest {
	t.Helper()
	d, err := name.NewDigest(registry(t) + "/test/unit@sha256:" + strings.Repeat("0", 64))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// target is the lab as a target.
func target(t *testing.T, c cluster) *knative.Target {
	t.Helper()
	k, err := knative.New(knative.Config{REST: c.rest, IngressAddress: ingress()})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// ingress is host:port of the lab's.
func ingress() string {
	a := strings.TrimSuffix(strings.TrimPrefix(os.Getenv("KUROKO_LAB_INGRESS"), "http://"), "/")
	if a != "" && !strings.Contains(a, ":") {
		a += ":80"
	}
	return a
}

// quick are a deploy's options with short times.
func quick() deployer.Options {
	return deployer.Options{ProbeEvery: 50 * time.Millisecond, Settle: 5 * time.Second, Lease: deployer.LeaseTimes{For: 5 * time.Second, Poll: 100 * time.Millisecond}}
}

func unit(n string, image name.Digest) deployer.Spec {
	return deployer.Spec{
		Name: "app-" + n, Unit: n, Image: image, Key: "key", Table: `{"name":"` + n + `","functions":[]}`,
		Memory: "64Mi", InitTimeout: 20 * time.Second, Timeout: 20 * time.Second,
	}
}

func TestTarget(t *testing.T) {
	c := lab(t)
	one, two, crash, mute := image(t, "one"), image(t, "two"), image(t, "crash"), image(t, "mute")
	deployertest.TestTarget(t, func(t *testing.T) deployertest.Env {
		return deployertest.Env{
			Target: target(t, c), Scope: scopeIn(c.namespace(t)), Options: quick(),
			One: one, Two: two, Crash: crash, Mute: mute, Missing: missing(t), Patience: 60 * time.Second,
		}
	})
}
