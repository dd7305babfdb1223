// Package ossd is a server of the OSS protocol in a folder, for development,
// demonstrations and tests. It checks signatures (V1, V2 and V4, in headers and
// in presigned URLs) as strictly as the service, and keeps the service's odd
// corners that a publisher must know: create-only writes that a versioned
// bucket ignores, no conditional overwrite, ranges that are ignored when they
// make no sense.
//
// It knows buckets (create, delete, ACL, versioning, list) and objects (put,
// get, head, delete, delete-many, copy, append, multipart, ACL). Anything else
// is answered with 501 NotImplemented.
//
// A [Server] is an http.Handler:
//
//	s, err := ossd.New(dir)
//	s.AddKey(ossd.Key{ID: "dev", Secret: "…"})
//	s.CreateBucket("bundles", ossd.PublicRead)
//	err = s.Serve(ctx, listener)
//
// Data survives the process being killed at any moment, not a power cut: an
// object becomes visible by one rename, and nothing is synced to disk.
package ossd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ACL says what requests without a signature may do.
type ACL string

// The ACLs of buckets. Objects also know "default": the bucket's.
const (
	Private         ACL = "private"
	PublicRead      ACL = "public-read"
	PublicReadWrite ACL = "public-read-write"
)

// Key is one access key.
type Key struct {
	ID, Secret string
	// Token makes it a temporary (STS) key: requests must carry exactly it.
	Token string
	// Expires ends a temporary key; zero means never.
	Expires time.Time
	// ReadOnly refuses everything but reads.
	ReadOnly bool
}

// Server answers requests. The exported fields may be set before the first
// request; the methods are safe for concurrent use at any time.
type Server struct {
	// Region is the region that V4 signatures must name; empty accepts any.
	Region string
	// Hosts are the suffixes of virtual-hosted addresses: "oss.test" makes
	// bucket.oss.test an address of the bucket.
	Hosts []string
	// CNames maps own host names to buckets.
	CNames map[string]string
	// Strict refuses path-style requests, as the service does.
	Strict bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log gets one line for each request, after its answer; may be nil. It is
	// called from several goroutines at once.
	Log func(line string)

	store *store
	fault atomic.Pointer[func(*http.Request) Fault]

	mu     sync.Mutex
	keys   map[string]Key
	counts map[string]int
	sent   int64
}

// New opens the folder root, creating it if need be. One process at a time can
// have it open; the second gets [ErrLocked].
func New(root string) (*Server, error) {
	st, err := openStore(root)
	if err != nil {
		return nil, err
	}
	return &Server{store: st, keys: map[string]Key{}, counts: map[string]int{}}, nil
}

// Close gives the folder free. Requests that are still served may fail.
func (s *Server) Close() error { return s.store.close() }

// AddKey makes k valid, replacing an earlier key of the same ID.
func (s *Server) AddKey(k Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[k.ID] = k
}

// CreateBucket makes sure that the bucket exists with this ACL.
func (s *Server) CreateBucket(name string, acl ACL) error {
	if !validBucket(name) {
		return fmt.Errorf("ossd: %q is not a bucket name: 3 to 63 lower-case letters, digits and hyphens", name)
	}
	if !validACL(acl, false) {
		return fmt.Errorf("ossd: %q is not a bucket ACL", acl)
	}
	if err := s.store.createBucket(name, acl, s.now()); err != nil {
		return fmt.Errorf("ossd: create bucket %s: %w", name, err)
	}
	return nil
}

// PutObject stores an object without a request, for tests and seeds.
func (s *Server) PutObject(bucket, key string, body []byte) error {
	if key == "" || !validKey(key) {
		return fmt.Errorf("ossd: %q is not a key", key)
	}
	content, err := s.store.stage(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ossd: put %s: %w", key, err)
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	b := s.store.buckets[bucket]
	if b == nil {
		content.drop()
		return fmt.Errorf("ossd: put %s: no bucket %s", key, bucket)
	}
	if err := s.store.commit(b, &object{Key: key, Type: "Normal"}, content, s.now()); err != nil {
		return fmt.Errorf("ossd: put %s: %w", key, err)
	}
	return nil
}

// Serve answers requests on ln until ctx ends; then it lets those under way
// finish for up to five seconds. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("ossd: serve: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-done
	return err
}

// Counts are the requests answered so far, by method and status: "GET 304".
// Requests that got no answer count as "GET dropped".
func (s *Server) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Requests is the number of requests so far.
func (s *Server) Requests() int {
	n := 0
	for _, c := range s.Counts() {
		n += c
	}
	return n
}

// Sent is the number of body bytes sent so far.
func (s *Server) Sent() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// ResetCounts sets the counters to zero.
func (s *Server) ResetCounts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.counts)
	s.sent = 0
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now().UTC()
	}
	return time.Now().UTC()
}

func (s *Server) region() string {
	if s.Region != "" {
		return s.Region
	}
	return "cn-hangzhou"
}

// call is one request, read once.
type call struct {
	*http.Request
	query  url.Values
	bucket string
	key    string
	auth   *Key // nil: anonymous
}

func (c *call) reads() bool { return c.Method == http.MethodGet || c.Method == http.MethodHead }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start := time.Now()
	var fault Fault
	if f := s.fault.Load(); f != nil {
		fault = (*f)(r)
	}
	w := &answer{ResponseWriter: rw, server: s, request: r, fault: fault}
	id := randomID(12)
	w.Header().Set("Server", "AliyunOSS")
	w.Header().Set("X-Oss-Request-Id", id)
	dropped := false
	var e *apiError
	if before := fault.before(r); before != nil {
		dropped, e = before.Status == 0, before
	} else {
		e = s.serve(w, r)
		dropped = fault.LoseAnswer
	}
	if !dropped {
		if e != nil {
			// Answering while the client still sends breaks its connection.
			io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
			e.write(w, r, id)
		}
		w.finish()
	}
	if dropped {
		s.count(r.Method+" dropped", 0)
	}
	s.log(w, r, e, dropped, time.Since(start))
	if dropped || w.broken {
		panic(http.ErrAbortHandler) // net/http's way to close the connection
	}
}

// count is called before the client can know: a test that has its answer
// finds it counted.
func (s *Server) count(request string, sent int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if request != "" {
		s.counts[request]++
	}
	s.sent += int64(sent)
}

func (s *Server) log(w *answer, r *http.Request, e *apiError, dropped bool, took time.Duration) {
	if s.Log == nil {
		return
	}
	status := strconv.Itoa(w.status)
	if dropped {
		status = "dropped"
	}
	if e != nil && e.Code != "" {
		status += " " + e.Code
	}
	s.Log(fmt.Sprintf("%s %q %s, %d bytes in %s", r.Method, r.URL.Path, status, w.n, took.Round(time.Microsecond)))
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) *apiError {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fail(400, "InvalidArgument", "The query can not be parsed.")
	}
	c := &call{Request: r, query: q}
	var pathStyle bool
	c.bucket, c.key, pathStyle = s.split(r)
	var e *apiError
	if c.auth, e = s.authenticate(c); e != nil {
		return e
	}
	if s.Strict && pathStyle && c.bucket != "" {
		return fail(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access.")
	}
	if c.auth != nil && c.auth.ReadOnly && !c.reads() {
		return errForbidden
	}
	switch {
	case c.bucket == "":
		return s.serviceOp(w, c)
	case c.key == "":
		return s.bucketOp(w, c)
	}
	return s.objectOp(w, c)
}

// split finds bucket and key in the host (own name, virtual-hosted) or path.
func (s *Server) split(r *http.Request) (bucket, key string, pathStyle bool) {
	host := strings.ToLower(r.Host)
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	path := strings.TrimPrefix(r.URL.Path, "/")
	if b, ok := s.CNames[host]; ok {
		return b, path, false
	}
	for _, suffix := range s.Hosts {
		if b, ok := strings.CutSuffix(host, "."+suffix); ok {
			return b, path, false
		}
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key, true
}
