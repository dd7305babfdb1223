// Package services is the world that all builders share in one measurement: a
// registry, a read-through cache of npm's, and an index and a repository of
// packages for Python and Java: all on loopback, all counting.
package services

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Counts are what a server was asked.
type Counts struct {
	Requests int64
	In, Out  int64 // body bytes received and sent
}

// Server is a counting HTTP server on loopback.
type Server struct {
	Host string // 127.0.0.1:port

	requests, in, out atomic.Int64
	http              *http.Server
	root              *os.Root // what it serves, where that is a folder
}

// start serves h on a port of its own.
func start(h http.Handler) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: l.Addr().String()}
	s.http = &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		r.Body = &reader{r.Body, &s.in}
		h.ServeHTTP(&writer{w, &s.out}, r)
	})}
	go func() { _ = s.http.Serve(l) }()
	return s, nil
}

// Reset starts counting from zero.
func (s *Server) Reset() { s.requests.Store(0); s.in.Store(0); s.out.Store(0) }

// Counts are those since Reset.
func (s *Server) Counts() Counts { return Counts{s.requests.Load(), s.in.Load(), s.out.Load()} }

// Close ends the server.
func (s *Server) Close() error {
	err := s.http.Close()
	if s.root != nil {
		err = errors.Join(err, s.root.Close())
	}
	return err
}

type reader struct {
	io.ReadCloser
	n *atomic.Int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.n.Add(int64(n))
	return n, err
}

type writer struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// Registry is go-containerregistry's, with its blobs in dir. Like those in
// production, and unlike it, it holds blobs by repository: what one builder
// has pushed is no help to the next.
func Registry(dir string) (*Server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return start(&scoped{held: map[string]bool{}, inner: registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
		registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))})
}

// scoped knows which repository holds which blob.
type scoped struct {
	inner http.Handler
	mu    sync.Mutex
	held  map[string]bool // repository@digest
}

func (s *scoped) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	repo, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	q := r.URL.Query()
	if !ok {
		s.inner.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	here, there := s.held[repo+"@"+rest], s.held[q.Get("from")+"@"+q.Get("mount")]
	s.mu.Unlock()
	switch {
	case (r.Method == http.MethodHead || r.Method == http.MethodGet) && !strings.HasPrefix(rest, "uploads/") && !here:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}`)
		return
	case r.Method == http.MethodPost && q.Has("mount"):
		if there {
			s.hold(repo, q.Get("mount"))
			w.Header().Set("Docker-Content-Digest", q.Get("mount"))
			w.Header().Set("Location", "/v2/"+repo+"/blobs/"+q.Get("mount"))
			w.WriteHeader(http.StatusCreated)
			return
		}
		// The upload that a refused mount becomes.
		r.URL.RawQuery = ""
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
		return
	}
	status := &statusWriter{ResponseWriter: w}
	s.inner.ServeHTTP(status, r)
	if d := q.Get("digest"); d != "" && status.code == http.StatusCreated {
		s.hold(repo, d)
	}
}

func (s *scoped) hold(repo, digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[repo+"@"+digest] = true
}

type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// maxPackage is more than any package archive or index has.
const maxPackage = 512 << 20

// Cache reads through to upstream and keeps every answer in dir, so that no
// builder measures the network outside. Addresses of upstream in an index
// become the cache's own.
func Cache(upstream, dir string) (*Server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c := &cache{upstream: strings.TrimSuffix(upstream, "/"), dir: dir}
	s, err := start(c)
	if err != nil {
		return nil, err
	}
	c.self.Store(&s.Host)
	return s, nil
}

type cache struct {
	upstream, dir string
	self          atomic.Pointer[string]
}

func (c *cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "read only", http.StatusMethodNotAllowed)
		return
	}
	sum := sha256.Sum256([]byte(r.URL.EscapedPath() + "\x00" + r.Header.Get("Accept")))
	file := filepath.Join(c.dir, hex.EncodeToString(sum[:]))
	data, err := os.ReadFile(file)
	if err != nil {
		var status int
		if data, status, err = c.fetch(r.Context(), r.URL.EscapedPath(), r.Header.Get("Accept"), file); err != nil {
			http.Error(w, err.Error(), status)
			return
		}
	}
	kind := "application/json"
	if binary(r.URL.Path) {
		kind = "application/octet-stream"
	} else {
		data = bytes.ReplaceAll(data, []byte(c.upstream), []byte("http://"+*c.self.Load()))
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "max-age=86400")
	_, _ = w.Write(data)
}

func binary(path string) bool {
	switch filepath.Ext(path) {
	case ".tgz", ".whl", ".gz", ".jar", ".zip":
		return true
	}
	return false
}

func (c *cache) fetch(ctx context.Context, path, accept, file string) ([]byte, int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.upstream+path, nil)
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, http.StatusBadGateway, fmt.Errorf("the package registry did not answer: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxPackage))
	if err != nil {
		return nil, http.StatusBadGateway, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode, fmt.Errorf("the package registry answered %s", resp.Status)
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return nil, http.StatusInsufficientStorage, err
	}
	return data, http.StatusOK, os.Rename(tmp, file)
}
