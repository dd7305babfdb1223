//go:build e2e

package knative_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	regserver "github.com/google/go-containerregistry/pkg/registry"
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
	return imageIn(t, registry(t), behave)
}

// refused is an image in a registry that wants a password, which nobody in the
// cluster has.
func refused(t *testing.T) name.Digest {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("KUROKO_LAB_HOST"), "0"))
	if err != nil {
		t.Fatal(err)
	}
	var private atomic.Bool
	images := regserver.New(regserver.Logger(log.New(io.Discard, "", 0)))
	srv := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if private.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="team"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	// Nodes look there at every pull for how a registry is reached.
	host := listener.Addr().String()
	hosts := filepath.Join(filepath.Dir(os.Getenv("KUROKO_LAB")), "run", "certs.d", host)
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(hosts) })
	text := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", host)
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	img := imageIn(t, host, "one")
	private.Store(true)
	return img
}

// imageIn is image in that registry.
func imageIn(t *testing.T, host, behave string) name.Digest {
	t.Helper()
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
