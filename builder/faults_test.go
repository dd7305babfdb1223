package builder_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

// TestTokenEndsBetweenBlobs: a bearer token that ends in the middle of a push
// is fetched once more, and the push goes on with the blob it was at: nothing
// that was sent before is sent again.
func TestTokenEndsBetweenBlobs(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	tokens, uses, ended := 0, 0, false
	valid, sent := map[string]bool{}, map[string]int{}
	w.reg.Auth(func(rw http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			tokens++
			token := fmt.Sprintf("token-%d", tokens)
			valid["Bearer "+token] = true
			// It says that it lasts an hour; the registry ends it sooner.
			fmt.Fprintf(rw, `{"token":%q,"expires_in":3600}`, token)
			return true
		}
		if valid[r.Header.Get("Authorization")] {
			if uses++; uses > 7 && !ended {
				ended = true // among the blobs
				clear(valid)
			}
		}
		if valid[r.Header.Get("Authorization")] {
			if r.Method == http.MethodPut && r.URL.Query().Has("digest") {
				sent[r.URL.Query().Get("digest")]++
			}
			return false
		}
		rw.Header().Set("WWW-Authenticate", `Bearer realm="http://`+w.reg.Host+`/token",service="registry"`)
		registrytest.Refuse(rw, http.StatusUnauthorized, "UNAUTHORIZED", "token expired")
		return true
	})
	req := w.request(t, "k1", "one")
	img, err := engine(t, builder.Options{Keychain: fixed{"ci", "p"}}).Build(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if !ended || tokens < 2 {
		t.Errorf("%d tokens: the test did not reach the end of the first", tokens)
	}
	// Adapter, dependencies, code, configuration, and that of the index entry.
	if len(sent) != 5 {
		t.Errorf("%d blobs were sent", len(sent))
	}
	for d, n := range sent {
		if n != 1 {
			t.Errorf("%s was sent %d times", d, n)
		}
	}
	w.reg.Auth(nil)
	pulled, err := remote.Image(img.Ref)
	if err == nil {
		err = validate.Image(pulled)
	}
	if err != nil {
		t.Error(err)
	}
}

// TestRegistryFaultsInABuild: what a developer reads for each way in which a
// registry can fail a whole build.
func TestRegistryFaultsInABuild(t *testing.T) {
	upload := func(r *http.Request) bool { return r.Method == http.MethodPut && r.URL.Query().Has("digest") }
	for _, c := range []struct {
		name   string
		fault  func(rw http.ResponseWriter, r *http.Request) bool
		is     error
		away   bool // [*builder.Unavailable]: a later try may help
		says   string
		silent bool // the build works all the same
	}{
		{name: "quota", fault: func(rw http.ResponseWriter, r *http.Request) bool {
			if upload(r) {
				registrytest.Refuse(rw, http.StatusForbidden, "DENIED", "quota exceeded")
			}
			return upload(r)
		}, is: builder.ErrDenied, says: "quota exceeded"},
		{name: "busy, and better after a moment", fault: once429(), silent: true},
		{name: "busy for too long", fault: func(rw http.ResponseWriter, r *http.Request) bool {
			if upload(r) {
				rw.Header().Set("Retry-After", "3600")
				rw.WriteHeader(http.StatusTooManyRequests)
			}
			return upload(r)
		}, away: true, says: "answered 429 Too Many Requests; it asks to wait 1h0m0s"},
		{name: "another digest than was sent", fault: func(rw http.ResponseWriter, r *http.Request) bool {
			if upload(r) {
				rw.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
				rw.WriteHeader(http.StatusCreated)
			}
			return upload(r)
		}, away: true, says: "the registry stored sha256:000000000000"},
		{name: "cut connections", fault: func(rw http.ResponseWriter, r *http.Request) bool {
			if upload(r) {
				panic(http.ErrAbortHandler)
			}
			return false
		}, away: true, says: "push "},
		{name: "a proxy's page", fault: func(rw http.ResponseWriter, r *http.Request) bool {
			if upload(r) {
				rw.Header().Set("Content-Type", "text/html")
				rw.WriteHeader(http.StatusBadGateway)
				fmt.Fprint(rw, "<html>bad gateway")
			}
			return upload(r)
		}, away: true, says: "answered 502 Bad Gateway (tried 2 times)"},
		{name: "read-only", fault: func(rw http.ResponseWriter, r *http.Request) bool {
			ro := r.Method == http.MethodPost
			if ro {
				registrytest.Refuse(rw, http.StatusMethodNotAllowed, "UNSUPPORTED", "the registry is read-only")
			}
			return ro
		}, says: "the registry is read-only"},
		{name: "unknown login scheme", fault: func(rw http.ResponseWriter, r *http.Request) bool {
			rw.Header().Set("WWW-Authenticate", "Negotiate")
			rw.WriteHeader(http.StatusUnauthorized)
			return true
		}, is: builder.ErrDenied, says: "names no way to log in that we know"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.reg.Fault(c.fault)
			e := engine(t, builder.Options{Attempts: 2})
			_, err := e.Build(t.Context(), w.request(t, "k1", "one"))
			w.reg.Fault(nil)
			if c.silent {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var away *builder.Unavailable
			if err == nil || c.is != nil && !errors.Is(err, c.is) || c.away != errors.As(err, &away) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v\nwant %q", err, c.says)
			}
			if _, ok, err := e.Find(t.Context(), w.request(t, "k1", "").Repository, "k1"); ok || err != nil {
				t.Errorf("something is tagged: %v, %v", ok, err)
			}
		})
	}
}

// once429 refuses the first upload with a Retry-After of nothing.
func once429() func(http.ResponseWriter, *http.Request) bool {
	var n atomic.Int32
	return func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || n.Add(1) > 1 {
			return false
		}
		rw.Header().Set("Retry-After", "0")
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
}

// TestOneFileOfTwentyFunctions: one code layer, one configuration and one
// manifest are pushed, and nothing else is asked.
func TestOneFileOfTwentyFunctions(t *testing.T) {
	w := newWorld(t)
	home := t.TempDir()
	e := engine(t, builder.Options{CacheDir: home})
	build := func(e *builder.Layers, key, code string, i int) builder.Image {
		return mustBuild(t, e, w.in(fmt.Sprintf("team/app/fn%d", i), w.request(t, key, code)))
	}
	for i := range 20 {
		build(e, fmt.Sprint("k", i), fmt.Sprint("code ", i), i)
	}
	// A new process: what it knows of the nineteen is one question each.
	next := engine(t, builder.Options{CacheDir: home})
	log := requests(w.reg, func() {
		for i := range 20 {
			key, code := fmt.Sprint("k", i), fmt.Sprint("code ", i)
			if i == 7 {
				key, code = "k7-changed", "code 7, changed"
			}
			if img := build(next, key, code, i); img.Reused == (i == 7) {
				t.Errorf("function %d: reused %v", i, img.Reused)
			}
		}
	})
	var blobs, manifests, questions, other []string
	for _, r := range log {
		switch {
		case r.Method == http.MethodPut && strings.Contains(r.Path, "/manifests/"):
			manifests = append(manifests, r.Path)
		case r.Method == http.MethodPut:
			blobs = append(blobs, r.Path)
		case r.Method == http.MethodHead && strings.Contains(r.Path, "/manifests/k-"):
			questions = append(questions, r.Path)
		case r.Method != http.MethodPost:
			other = append(other, r.String())
		}
	}
	if len(blobs) != 2 || len(manifests) != 1 || len(questions) != 19 || len(other) != 0 {
		t.Errorf("%d blobs (a code layer and a configuration), %d manifests, %d questions, and %v", len(blobs), len(manifests), len(questions), other)
	}
}
