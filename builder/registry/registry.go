// Package registry pushes to and reads from an OCI registry with as few
// requests as the protocol allows: no ping, no existence check that the caller
// did not ask for, one PUT per blob, tokens kept for their lifetime.
//
// It knows nothing about images; it moves blobs and manifests, and finds out
// when a registry sends less, more or something else than it should.
package registry

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Options are a client's settings; the zero value is anonymous and patient.
type Options struct {
	// Keychain finds credentials; nil means anonymous.
	Keychain authn.Keychain
	// Transport sends requests; nil means a clone of the default one.
	Transport http.RoundTripper
	// UserAgent is sent with every request.
	UserAgent string
	// Attempts is how often an operation is tried in all; default 4.
	Attempts int
	// Delay is the longest pause before the second try; it doubles with each
	// further one, and a random part of up to half of it is taken off.
	// Default 250 ms.
	Delay time.Duration
	// MaxWait is the longest pause that a registry's Retry-After may ask for;
	// more is an error at once. Default 30 s.
	MaxWait time.Duration
	// Idle is how long a request may move no byte in either direction before
	// it is given up. Default 2 min.
	Idle time.Duration
	// Now is the clock for token lifetimes; default time.Now.
	Now func() time.Time
}

// Client is a connection to any number of registries. Safe for concurrent use.
type Client struct {
	o     Options
	mu    sync.Mutex
	hosts map[name.Registry]*host
}

// New makes a client. It sends nothing.
func New(o Options) *Client {
	if o.Keychain == nil {
		o.Keychain = authn.NewMultiKeychain()
	}
	if o.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 16
		t.DisableCompression = true // digests are of the bytes as they are
		o.Transport = t
	}
	if o.Attempts <= 0 {
		o.Attempts = 4
	}
	if o.Delay <= 0 {
		o.Delay = 250 * time.Millisecond
	}
	if o.MaxWait <= 0 {
		o.MaxWait = 30 * time.Second
	}
	if o.Idle <= 0 {
		o.Idle = 2 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Client{o: o, hosts: map[name.Registry]*host{}}
}

// Session is one piece of work with a client. It shares connections and
// tokens with the client's other sessions and counts for itself. Safe for
// concurrent use.
type Session struct {
	c        *Client
	http     *http.Client
	requests atomic.Int64
	sent     atomic.Int64
	received atomic.Int64
}

// Session starts counting from zero.
func (c *Client) Session() *Session {
	s := &Session{c: c}
	s.http = &http.Client{Transport: counting{s}}
	return s
}

// Requests is the number of HTTP requests so far: every try, redirect and
// token request.
func (s *Session) Requests() int { return int(s.requests.Load()) }

// Sent is the number of body bytes sent so far, tries that failed included.
func (s *Session) Sent() int64 { return s.sent.Load() }

// Received is the number of body bytes read so far.
func (s *Session) Received() int64 { return s.received.Load() }

// counting is the session's view of the client's transport.
type counting struct{ s *Session }

func (t counting) RoundTrip(r *http.Request) (*http.Response, error) {
	t.s.requests.Add(1)
	return t.s.c.o.Transport.RoundTrip(r)
}

// base is the address of a registry: plain http only where go-containerregistry's
// name package decides so (loopback, private networks, .localhost, or asked for).
func base(r name.Registry) string { return r.Scheme() + "://" + r.RegistryStr() }

// sleep waits, or returns the cause why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
