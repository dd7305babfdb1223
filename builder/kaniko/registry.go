package kaniko

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"runtime"

	"github.com/kuroko-faas/kuroko/builder"
)

// registry is one build's access to registries, counted.
type registry struct {
	o     Options
	count *counting
	// They keep what a registry said about access, and what it has.
	once   sync.Once
	puller *remote.Puller
	pusher *remote.Pusher
}

func (e *Engine) registry() *registry {
	rt := e.o.Transport
	if rt == nil {
		rt = remote.DefaultTransport
	}
	return &registry{o: e.o, count: &counting{rt: rt}}
}

func (r *registry) requests() int   { return int(r.count.n.Load()) }
func (r *registry) uploaded() int64 { return r.count.sent.Load() }

func (r *registry) options(ctx context.Context) []remote.Option {
	keychain := r.o.Keychain
	if keychain == nil {
		keychain = authn.NewMultiKeychain()
	}
	options := []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(keychain), remote.WithTransport(r.count),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
		remote.WithRetryBackoff(remote.Backoff{Duration: r.o.Delay, Factor: 3, Jitter: 0.1, Steps: r.o.Attempts}),
	}
	r.once.Do(func() {
		// Without them each call begins anew, and tells what is wrong.
		r.puller, _ = remote.NewPuller(options...)
		r.pusher, _ = remote.NewPusher(options...)
	})
	if r.puller != nil && r.pusher != nil {
		options = append(options, remote.Reuse(r.puller), remote.Reuse(r.pusher))
	}
	return options
}

// base resolves an image that a Dockerfile names after verb.
func (r *registry) base(ctx context.Context, verb, ref string) (v1.Image, error) {
	parsed, err := parseReference(ref, r.o.Insecure)
	if err != nil {
		return nil, &builder.InputError{What: verb + ref, Next: "write an image's name", Err: err}
	}
	img, err := remote.Image(parsed, r.options(ctx)...)
	if err != nil {
		var t *transport.Error
		if errors.As(err, &t) && t.StatusCode == http.StatusNotFound {
			return nil, &builder.InputError{What: verb + ref + ": the registry has no such image", Next: "check name and tag or digest", Err: err}
		}
		return nil, r.failed("pull", ref, err)
	}
	return img, nil
}

// find returns the descriptor of tag; nil when there is none.
func (r *registry) find(ctx context.Context, tag name.Tag) (*v1.Descriptor, error) {
	d, err := remote.Head(tag, r.options(ctx)...)
	if notThere(err) {
		return nil, nil
	}
	if err != nil {
		return nil, r.failed("look for", tag.String(), err)
	}
	return d, nil
}

// cached returns the image at tag; nil when there is none.
func (r *registry) cached(ctx context.Context, tag name.Tag) (v1.Image, error) {
	img, err := remote.Image(tag, r.options(ctx)...)
	if notThere(err) {
		return nil, nil
	}
	if err != nil {
		return nil, r.failed("look for", tag.String(), err)
	}
	return img, nil
}

// push writes layers and configuration, and the manifest last: nothing
// half-pushed is ever tagged.
func (r *registry) push(ctx context.Context, tag name.Tag, img v1.Image) error {
	if err := remote.Write(tag, img, r.options(ctx)...); err != nil {
		return r.failed("push", tag.String(), err)
	}
	return nil
}

// failed sorts a registry's error: one that did not answer, or said that it is
// in trouble, is [*builder.Unavailable]; a refusal keeps its type.
func (r *registry) failed(op, ref string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("kaniko: %s %s: %w", op, ref, err)
	}
	host := ref
	if parsed, parseErr := name.ParseReference(ref); parseErr == nil {
		host = parsed.Context().RegistryStr()
	}
	var t *transport.Error
	var n net.Error
	var u *url.Error
	switch {
	case errors.As(err, &t) && (t.StatusCode == http.StatusUnauthorized || t.StatusCode == http.StatusForbidden):
		return fmt.Errorf("kaniko: %s %s: %w: %w", op, ref, builder.ErrDenied, err)
	case errors.As(err, &t) && t.StatusCode < 500 && t.StatusCode != http.StatusTooManyRequests && t.StatusCode != http.StatusRequestTimeout:
	case errors.As(err, &t), errors.As(err, &n), errors.As(err, &u), errors.Is(err, io.ErrUnexpectedEOF):
		return &builder.Unavailable{Op: op + " " + ref, Host: host, Attempts: r.o.Attempts, Err: err}
	}
	return fmt.Errorf("kaniko: %s %s: %w", op, ref, err)
}

func notThere(err error) bool {
	var t *transport.Error
	return errors.As(err, &t) && t.StatusCode == http.StatusNotFound
}

func parseReference(ref string, insecure []string) (name.Reference, error) {
	parsed, err := name.ParseReference(ref)
	if err == nil && slices.Contains(insecure, parsed.Context().RegistryStr()) {
		return name.ParseReference(ref, name.Insecure)
	}
	return parsed, err
}

// counting counts requests and the bytes sent with them.
type counting struct {
	rt   http.RoundTripper
	n    atomic.Int64
	sent atomic.Int64
}

func (c *counting) RoundTrip(req *http.Request) (*http.Response, error) {
	c.n.Add(1)
	if req.Body != nil {
		req = req.Clone(req.Context())
		req.Body = &countingBody{req.Body, &c.sent}
	}
	return c.rt.RoundTrip(req)
}

type countingBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}
