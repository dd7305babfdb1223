// Package registrytest is a registry in memory for tests that want to know
// exactly what was asked of it, and to make it misbehave.
//
// It is go-containerregistry's real one, made as strict as production
// registries are: blobs belong to repositories, manifests may not name blobs
// that are not there, mounting works, and it can ask for credentials.
package registrytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Server is a running registry.
type Server struct {
	// Host is what a reference begins with: 127.0.0.1:port.
	Host string

	inner http.Handler
	mu    sync.Mutex
	blobs map[string]bool // repo@digest
	log   []Request
	fault func(w http.ResponseWriter, r *http.Request) bool
	auth  func(w http.ResponseWriter, r *http.Request) bool
	plain bool
}

// Request is one request that the registry saw.
type Request struct {
	Method, Path string
	Query        url.Values
	Length       int64
	Auth         string // scheme of the Authorization header
}

func (r Request) String() string {
	s := r.Method + " " + r.Path
	if r.Query.Has("mount") {
		s += "?mount"
	}
	return s
}

// New starts a registry that lives as long as the test.
func New(t testing.TB) *Server {
	s := &Server{blobs: map[string]bool{}, inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.Host = strings.TrimPrefix(h.URL, "http://")
	return s
}

// Fault installs f, which is asked before every request; when it answers it
// returns true, and the registry does not see the request. nil removes it.
func (s *Server) Fault(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Auth installs f, which is asked before Fault and returns true when it has
// refused the request.
func (s *Server) Auth(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.auth = f
}

// WithoutReferrers makes the registry one from before OCI 1.1: it keeps a
// manifest with a subject and knows nothing of subjects.
func (s *Server) WithoutReferrers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plain = true
}

// Forget makes the repository lose a blob, as garbage collection does.
func (s *Server) Forget(repo string, h v1.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blobs, repo+"@"+h.String())
}

// Requests are the requests since the last call of Reset.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request{}, s.log...)
}

// Reset forgets the requests so far.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	s.mu.Lock()
	s.log = append(s.log, Request{r.Method, r.URL.Path, r.URL.Query(), r.ContentLength, scheme})
	fault, auth, plain := s.fault, s.auth, s.plain
	s.mu.Unlock()
	if auth != nil && auth(w, r) || fault != nil && fault(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if repo, rest, ok := strings.Cut(path, "/blobs/"); ok {
		s.blob(w, r, repo, rest)
		return
	}
	if repo, _, ok := strings.Cut(path, "/manifests/"); ok && r.Method == http.MethodPut {
		s.manifest(w, r, repo, plain)
		return
	}
	if strings.Contains(path, "/referrers/") && plain {
		http.NotFound(w, r)
		return
	}
	s.inner.ServeHTTP(w, r)
}

func (s *Server) has(repo, digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs[repo+"@"+digest]
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request, repo, rest string) {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodHead || r.Method == http.MethodGet:
		if !s.has(repo, rest) {
			Refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
			return
		}
	case r.Method == http.MethodPost && q.Get("mount") != "" && s.has(q.Get("from"), q.Get("mount")):
		s.mu.Lock()
		s.blobs[repo+"@"+q.Get("mount")] = true
		s.mu.Unlock()
		w.Header().Set("Docker-Content-Digest", q.Get("mount"))
		w.WriteHeader(http.StatusCreated)
		return
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	rec := &recorder{ResponseWriter: w}
	s.inner.ServeHTTP(rec, r)
	if d := q.Get("digest"); d != "" && rec.status == http.StatusCreated {
		s.mu.Lock()
		s.blobs[repo+"@"+d] = true
		s.mu.Unlock()
	}
}

func (s *Server) manifest(w http.ResponseWriter, r *http.Request, repo string, plain bool) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var m struct {
		Config  *v1.Descriptor
		Layers  []v1.Descriptor
		Subject *v1.Descriptor
	}
	if json.Unmarshal(raw, &m) == nil && m.Config != nil {
		for _, d := range append(m.Layers, *m.Config) {
			if !s.has(repo, d.Digest.String()) {
				Refuse(w, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "manifest references unknown blob "+d.Digest.String())
				return
			}
		}
	}
	if m.Subject != nil && !plain {
		w.Header().Set("OCI-Subject", m.Subject.Digest.String())
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	s.inner.ServeHTTP(w, r)
}

type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Refuse writes an OCI error.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// Basic asks for user and password.
func Basic(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		u, p, ok := r.BasicAuth()
		if ok && u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test, registry"`)
		Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return true
	}
}
