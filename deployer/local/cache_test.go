package local_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
	"github.com/kuroko-faas/kuroko/deployer/local"
)

// counting counts the blobs that are read from registries.
type counting struct {
	mu    sync.Mutex
	blobs map[string]int
	off   bool
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	if c.off {
		c.mu.Unlock()
		return nil, errors.New("the network is down")
	}
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		c.blobs[r.URL.Path]++
	}
	c.mu.Unlock()
	return http.DefaultTransport.RoundTrip(r)
}

func (c *counting) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.blobs {
		n += k
	}
	return n
}

func TestLayersArePulledOnce(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	c := &counting{blobs: map[string]int{}}
	o := options(dir)
	o.Transport = c
	s, err := local.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, s) })
	if mode, why := s.Sandbox(); mode == "none" {
		t.Skipf("layers are kept apart in sandboxes only: %s", why)
	}
	target := local.Dial(s.Socket())
	// Two units of one image at once: its configuration and two layers.
	deploy(t, target, 1, unit("a", w.one), unit("b", w.one))
	if n := c.count(); n != 3 && n != 4 { // the configuration may be read by both
		t.Errorf("%d blobs were read for the first image: %v", n, c.blobs)
	}
	before := c.count()
	out := deploy(t, target, 2, unit("a", w.two))
	if n := c.count() - before; n != 2 {
		t.Errorf("%d blobs were read for an image with one new layer, want 2: %v", n, c.blobs)
	}
	end(t, s)

	// Without its registry it comes back all the same.
	if err := os.MkdirAll(filepath.Join(dir, "cache", "layers", ".tmp-interrupted"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.off = true
	s2, err := local.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, s2) })
	if got := get(t, s2.URL()+"/app-a/")["revision"]; got != out.Units[0].Revision {
		t.Errorf("%v serves; want %s", got, out.Units[0].Revision)
	}
	if _, err := os.Stat(filepath.Join(dir, "cache", "layers", ".tmp-interrupted")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what an interrupted pull left: %v; want it gone", err)
	}
}

func TestImageWithWhiteouts(t *testing.T) {
	w := newWorld(t)
	s := start(t, t.TempDir())
	image := push(t, w.host, v1.Config{Entrypoint: []string{"/bin/unit"}, WorkingDir: "/app"},
		w.base, layer(t, dir("app/", 0o755), file("app/kept", "1"), file("app/removed", "1")),
		layer(t, dir("app/", 0o755), file("app/.wh.removed", "")))
	out := deploy(t, local.Dial(s.Socket()), 1, unit("main", image))
	for name, want := range map[string]bool{"kept": true, "removed": false} {
		if got := get(t, out.Units[0].URL+"/?file=/app/"+name)["seen"]; got != want {
			t.Errorf("/app/%s is seen: %v, want %v", name, got, want)
		}
	}
}

// Servers that share a folder of layers, also ones that start at once, unpack
// each layer for all, and none takes it from the others.
func TestSharedLayers(t *testing.T) {
	w := newWorld(t)
	layers := filepath.Join(t.TempDir(), "layers")
	c := &counting{blobs: map[string]int{}}
	begin := func() *local.Server {
		o := options(t.TempDir())
		o.Transport, o.Layers = c, layers
		s, err := local.Start(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { end(t, s) })
		return s
	}
	one, two := begin(), begin()
	if mode, why := one.Sandbox(); mode == "none" {
		t.Skipf("layers are kept apart in sandboxes only: %s", why)
	}
	var both sync.WaitGroup
	for _, s := range []*local.Server{one, two} {
		both.Go(func() {
			if _, err := deployer.Deploy(t.Context(), local.Dial(s.Socket()), deployer.Plan{Scope: scope, Pipeline: 1, Units: []deployer.Spec{unit("a", w.one)}}, quick); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	before := c.count()
	three := begin()
	deploy(t, local.Dial(three.Socket()), 1, unit("a", w.one))
	if n := c.count() - before; n != 1 {
		t.Errorf("%d blobs were read for an image whose layers are there, want its configuration: %v", n, c.blobs)
	}
	for _, s := range []*local.Server{one, two, three} {
		get(t, s.URL()+"/app-a/") // fails the test when it doesn't answer
	}
	if left, _ := filepath.Glob(filepath.Join(layers, ".tmp-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLongFolderNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-", 20), strings.Repeat("name-", 20))
	s, err := local.Start(t.Context(), local.Options{Dir: dir, Sandbox: "none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, s) })
	if _, err := local.Dial(s.Socket()).Head(t.Context(), scope); err != nil {
		t.Error(err)
	}
	st, err := os.Stat(s.Socket())
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v; want mode 0600", st, err)
	}
	end(t, s)
	if _, err := os.Lstat(s.Socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after the end: %v", err)
	}
}

// A deploy that is killed at some call, with real processes: the route
// answers, and the next deploy leaves nothing behind. The same at every call
// is tested in package deployer.
func TestDeathOnRealTarget(t *testing.T) {
	w := newWorld(t)
	s := start(t, t.TempDir())
	target := local.Dial(s.Socket())
	deploy(t, target, 1, unit("main", w.one), unit("gone", w.one))
	for n := range 5 {
		at := 5 + 4*n
		u := unit("main", w.two)
		u.Environment["ROUND"] = fmt.Sprint(n)
		d := &deployertest.Dying{Target: target, At: at, Effect: n%2 == 0, After: func(verb string) {
			get(t, s.URL()+"/app-main/") // fails the test when it doesn't answer
		}}
		o := quick
		o.Lease.For = 300 * time.Millisecond // how long the next one waits for the dead
		p := deployer.Plan{Scope: scope, Pipeline: int64(n + 2), Units: []deployer.Spec{u}}
		_, _ = deployer.Deploy(t.Context(), d, p, o)
		if d.Calls() < at {
			t.Errorf("there is no call %d to die at", at)
		}
		out, err := deployer.Deploy(t.Context(), target, p, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := get(t, s.URL()+"/app-main/")["revision"]; got != out.Units[0].Revision {
			t.Errorf("after death at call %d %v serves; want %s", at, got, out.Units[0].Revision)
		}
		state, err := deployer.Observe(t.Context(), target, scope)
		if err != nil || len(state.Services) != 1 || state.Head.Rollout != nil || state.Head.Holder != "" {
			t.Errorf("after death at call %d: %+v, %v", at, state, err)
		}
	}
}
