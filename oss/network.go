package oss

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// Network says how the service is reached. The zero value is meant for
// production: the environment's proxy (HTTPS_PROXY, NO_PROXY), the machine's
// certificate authorities, time-outs that a healthy service never meets.
type Network struct {
	// Dial bounds one TCP connect; 0 means 5 s.
	Dial time.Duration
	// TLS bounds one handshake; 0 means 5 s.
	TLS time.Duration
	// Header bounds the wait between the end of a request and the answer's
	// header; 0 means 15 s.
	Header time.Duration
	// Idle bounds every silence while a body is on its way, in either
	// direction; 0 means 20 s. Time the consumer takes between two reads does
	// not count.
	Idle time.Duration

	// Proxy chooses the proxy of a request; nil means the environment's.
	Proxy func(*http.Request) (*url.URL, error)
	// RootCAs replaces the machine's certificate authorities.
	RootCAs *x509.CertPool
	// DialContext replaces the connect itself; Dial does not apply then.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Transport makes requests once, within n's time-outs. It never follows
// redirects, never asks for compression (sizes and checksums are those of the
// stored bytes), and refuses a successful answer whose end could not be told
// from a broken connection.
func (n Network) Transport() http.RoundTripper {
	or := func(d, otherwise time.Duration) time.Duration {
		if d > 0 {
			return d
		}
		return otherwise
	}
	if n.Proxy == nil {
		n.Proxy = http.ProxyFromEnvironment
	}
	if n.DialContext == nil {
		n.DialContext = (&net.Dialer{Timeout: or(n.Dial, 5*time.Second), KeepAlive: 30 * time.Second}).DialContext
	}
	header := or(n.Header, 15*time.Second)
	return &transport{
		idle:   or(n.Idle, 20*time.Second),
		header: header,
		base: &http.Transport{
			Proxy:                 n.Proxy,
			DialContext:           n.DialContext,
			TLSClientConfig:       &tls.Config{RootCAs: n.RootCAs, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   or(n.TLS, 5*time.Second),
			ResponseHeaderTimeout: header,
			MaxIdleConnsPerHost:   16,
			IdleConnTimeout:       30 * time.Second,
			ForceAttemptHTTP2:     true,
			DisableCompression:    true,
		},
	}
}

type transport struct {
	base         http.RoundTripper
	idle, header time.Duration
}

// stall is why a transfer was given up by us.
type stall struct{ after time.Duration }

func (s *stall) Error() string { return fmt.Sprintf("the transfer stood still for %s", s.after) }

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	r = r.WithContext(ctx)
	var answered atomic.Bool
	if r.Body != nil && r.Body != http.NoBody {
		// The connection reads the next piece when it has written the last, so
		// a silence between reads is the server not taking bytes. After the
		// last piece the wait for the header follows.
		watch := time.AfterFunc(t.idle, func() {
			if !answered.Load() { // a late read may have set the timer again
				cancel(&stall{t.idle})
			}
		})
		defer watch.Stop()
		r.Body = &sentBody{ReadCloser: r.Body, watch: watch, idle: t.idle, last: t.idle + t.header}
	}
	resp, err := t.base.RoundTrip(r)
	answered.Store(true)
	if err != nil {
		err = stalled(ctx, err)
		cancel(nil)
		return nil, err
	}
	watch := time.AfterFunc(t.idle, func() { cancel(&stall{t.idle}) })
	watch.Stop() // it runs inside Read only
	resp.Body = &receivedBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, watch: watch, idle: t.idle}
	endless := resp.ProtoMajor == 1 && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
	if endless && resp.StatusCode/100 == 2 && r.Method == http.MethodGet {
		resp.Body.Close()
		return nil, errors.New("the answer says neither how long it is nor where it ends")
	}
	return resp, nil
}

// stalled replaces err by our own reason for the cancellation, if there is one.
func stalled(ctx context.Context, err error) error {
	var s *stall
	if errors.As(context.Cause(ctx), &s) {
		return s
	}
	return err
}

type sentBody struct {
	io.ReadCloser
	watch      *time.Timer
	idle, last time.Duration
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.watch.Reset(b.last)
	} else {
		b.watch.Reset(b.idle)
	}
	return n, err
}

type receivedBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *time.Timer
	idle   time.Duration
}

func (b *receivedBody) Read(p []byte) (int, error) {
	b.watch.Reset(b.idle)
	n, err := b.ReadCloser.Read(p)
	b.watch.Stop()
	if err != nil && err != io.EOF {
		err = stalled(b.ctx, err)
	}
	return n, err
}

func (b *receivedBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
