package fetch_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

var errWrong = errors.New("another one")

// exactly checks for one content.
func exactly(content string) fetch.Check {
	want := sha256.Sum256([]byte(content))
	return fetch.Check{Limit: 1 << 10, Hash: sha256.New, Right: func(h hash.Hash) error {
		if hex.EncodeToString(h.Sum(nil)) != hex.EncodeToString(want[:]) {
			return errWrong
		}
		return nil
	}}
}

func content(t *testing.T, s *layer.Spool) string {
	t.Helper()
	data, err := io.ReadAll(s.Section(0, s.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What a later try may cure is tried again, and nothing else.
func TestArchive(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []func(w http.ResponseWriter) // one a request, the last for all later ones
		want    string                        // of the error; empty: it works
		tries   int64
	}{
		{"at once", []func(http.ResponseWriter){text("right")}, "", 1},
		{"after an answer of 503 and one that breaks", []func(http.ResponseWriter){status(503), broken, text("right")}, "", 3},
		{"never", []func(http.ResponseWriter){status(502)}, "answered 502 (tried 3 times)", 3},
		{"a host that is not allowed", []func(http.ResponseWriter){status(403)}, "answered 403", 1},
		{"another archive", []func(http.ResponseWriter){text("wrong")}, "another one", 1},
		{"a long one", []func(http.ResponseWriter){text(strings.Repeat("x", 2<<10))}, "the archive is not safe to unpack: it has more than 1024 bytes", 1},
		{"one that asks for more patience than there is", []func(http.ResponseWriter){func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}}, "answered 429", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				n := asked.Add(1)
				tt.answers[min(int(n), len(tt.answers))-1](w)
			}))
			t.Cleanup(srv.Close)
			s, err := fetch.Source{Attempts: 3, Delay: time.Millisecond}.Archive(t.Context(), "p@1", srv.URL+"/p", "*/*", layer.Spool{Dir: t.TempDir()}, exactly("right"))
			if err == nil {
				defer s.Close()
			}
			switch {
			case tt.want == "" && (err != nil || content(t, s) != "right"):
				t.Errorf("got %v", err)
			case tt.want != "" && (err == nil || !strings.HasSuffix(err.Error(), tt.want) || !strings.Contains(err.Error(), "p@1")):
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if n := asked.Load(); n != tt.tries {
				t.Errorf("%d requests, want %d", n, tt.tries)
			}
		})
	}
}

func text(s string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { io.WriteString(w, s) }
}

func status(code int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { w.WriteHeader(code) }
}

func broken(w http.ResponseWriter) {
	w.Header().Set("Content-Length", "5")
	io.WriteString(w, "ri")
}

// Only a configured registry's own host sees credentials.
func TestCredentials(t *testing.T) {
	seen := map[bool]string{}
	var hosts [2]string
	for i, own := range []bool{true, false} {
		srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen[own] = r.Header.Get("Authorization") }))
		t.Cleanup(srv.Close)
		hosts[i] = srv.URL
	}
	s := fetch.Source{Registries: []string{hosts[0] + "/npm/"}, Authorize: func(r *http.Request) { r.Header.Set("Authorization", "Bearer t0ken") }}
	for _, h := range hosts {
		if err := s.Get(t.Context(), "p@1", h+"/p", "*/*", func(fetch.Answer) error { return nil }); err != nil {
			t.Error(err)
		}
	}
	if seen[true] != "Bearer t0ken" || seen[false] != "" {
		t.Errorf("own host %q, another %q", seen[true], seen[false])
	}
}

// What a cache has is believed when it is right.
func TestCache(t *testing.T) {
	file, like := filepath.Join(t.TempDir(), "aa", "archive"), layer.Spool{Dir: t.TempDir()}
	if fetch.Cached(file, like, exactly("right")) != nil {
		t.Error("it has what was not kept")
	}
	s := &layer.Spool{Dir: t.TempDir()}
	defer s.Close()
	fmt.Fprint(s, "right")
	fetch.Keep(file, s)
	if got := fetch.Cached(file, like, exactly("right")); got == nil || content(t, got) != "right" {
		t.Errorf("got %v", got)
	} else {
		got.Close()
	}
	if err := os.WriteFile(file, []byte("rigth"), 0o644); err != nil {
		t.Fatal(err)
	}
	if fetch.Cached(file, like, exactly("right")) != nil {
		t.Error("a damaged one was used")
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a damaged one is still there")
	}
}
