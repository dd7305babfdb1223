package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// call is one request, as often as it takes to get past a 401.
type call struct {
	op       string
	method   string
	registry name.Registry
	url      string // a path below the registry, or absolute
	header   http.Header
	scopes   []string
	size     int64
	body     func() (io.ReadCloser, error) // opened once per send; nil for none
	accept   []int                         // statuses that are an answer
}

var (
	errIdle    = errors.New("no byte moved for too long")
	errAddress = errors.New("the registry gave a bad address")
	// errSource marks a failure to read what should be sent.
	errSource = errors.New("read what should be sent")
)

// once sends c, answering at most one challenge. The caller closes the body of
// an accepted answer. Every error is an [*Error] or ctx's cause.
func (s *Session) once(ctx context.Context, c call) (*http.Response, error) {
	h := s.c.host(c.registry)
	u, own, err := h.resolve(c.url)
	if err != nil {
		return nil, s.fail(c, 0, err)
	}
	auth := ""
	if own {
		if auth, err = h.authorize(ctx, s, c.scopes); err != nil {
			return nil, s.authError(ctx, c, err)
		}
	}
	resp, err := s.send(ctx, c, u, auth)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized && own {
		challenges := resp.Header.Values("WWW-Authenticate")
		drain(resp)
		if auth, err = h.answer(ctx, s, challenges, c.scopes, auth); err != nil {
			return nil, s.authError(ctx, c, err)
		}
		if resp, err = s.send(ctx, c, u, auth); err != nil {
			return nil, err
		}
	}
	for _, ok := range c.accept {
		if resp.StatusCode == ok {
			return resp, nil
		}
	}
	defer drain(resp)
	e := s.fail(c, resp.StatusCode, nil)
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e.explain(resp.Header.Get("Content-Type"), body)
	e.Wait = retryAfter(resp.Header.Get("Retry-After"), s.c.o.Now())
	return nil, e
}

// resolve makes an absolute address, and tells whether it is the registry's
// own: only there credentials may go.
func (h *host) resolve(ref string) (u *url.URL, own bool, err error) {
	root, err := h.root()
	if err != nil {
		return nil, false, err
	}
	u, err = root.Parse(ref)
	if err != nil {
		return nil, false, fmt.Errorf("%w: it can't be read", errAddress)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, false, fmt.Errorf("%w: it is not http", errAddress)
	}
	own = u.Host == root.Host
	if own {
		// A registry behind a TLS proxy may not know that it is; never
		// follow it down to plain text.
		u.Scheme = root.Scheme
	}
	return u, own, nil
}

func (s *Session) fail(c call, status int, err error) *Error {
	return &Error{Op: c.op, Host: c.registry.RegistryStr(), Status: status, Err: err, Attempts: 1}
}

func (s *Session) authError(ctx context.Context, c call, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var e *Error
	if errors.As(err, &e) {
		e.Op = c.op
		return e
	}
	return s.fail(c, 0, err)
}

// send is one HTTP exchange with a watch on its progress.
func (s *Session) send(ctx context.Context, c call, u *url.URL, auth string) (*http.Response, error) {
	wctx, w := watch(ctx, s.c.o.Idle)
	var body io.ReadCloser
	if c.body != nil {
		src, err := c.body()
		if err != nil {
			w.stop()
			return nil, s.sendError(ctx, wctx, c, fmt.Errorf("%w: %w", errSource, err))
		}
		body = &progress{r: src, w: w, n: &s.sent}
		if c.size == 0 {
			src.Close()
			body = http.NoBody
		}
	}
	req, err := http.NewRequestWithContext(wctx, c.method, u.String(), body)
	if err != nil {
		w.stop()
		return nil, s.fail(c, 0, err)
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	req.ContentLength = c.size
	if s.c.o.UserAgent != "" {
		req.Header.Set("User-Agent", s.c.o.UserAgent)
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		w.stop()
		return nil, s.sendError(ctx, wctx, c, err)
	}
	resp.Body = &progress{r: resp.Body, w: w, n: &s.received, closeWatch: true}
	return resp, nil
}

func (s *Session) sendError(ctx, wctx context.Context, c call, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(context.Cause(wctx), errIdle) {
		err = errIdle
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the address: upload addresses carry secrets
	}
	return s.fail(c, 0, err)
}

// watcher ends a request that makes no progress.
type watcher struct {
	t      *time.Timer
	idle   time.Duration
	cancel context.CancelCauseFunc
}

func watch(ctx context.Context, idle time.Duration) (context.Context, *watcher) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watcher{idle: idle, cancel: cancel}
	w.t = time.AfterFunc(idle, func() { cancel(errIdle) })
	return ctx, w
}

func (w *watcher) moved() { w.t.Reset(w.idle) }

func (w *watcher) stop() {
	w.t.Stop()
	w.cancel(nil)
}

// progress counts bytes and tells the watcher about them.
type progress struct {
	r          io.ReadCloser
	w          *watcher
	n          interface{ Add(int64) int64 }
	closeWatch bool
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.n.Add(int64(n))
		p.w.moved()
	}
	return n, err
}

func (p *progress) Close() error {
	err := p.r.Close()
	if p.closeWatch {
		p.w.stop()
	}
	return err
}

// drain lets the connection be used again, unless the rest is long.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// retry runs f until it works, fails for good, or was tried often enough. When
// ctx ended meanwhile its cause is the error: a failure that nobody would try
// again any more must not hide why.
func (s *Session) retry(ctx context.Context, f func() error) error {
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var e *Error
		if !errors.As(err, &e) {
			return err
		}
		e.Attempts = attempt
		if !e.Temporary() || attempt >= s.c.o.Attempts || e.Wait > s.c.o.MaxWait {
			return err
		}
		wait := s.c.o.Delay << min(attempt-1, 16)
		wait = min(wait, s.c.o.MaxWait)
		wait -= rand.N(wait/2 + 1)
		if err := sleep(ctx, max(wait, e.Wait)); err != nil {
			return err
		}
	}
}

// retryAfter reads seconds or an HTTP date; 0 when there is neither.
func retryAfter(v string, now time.Time) time.Duration {
	v = strings.TrimSpace(v)
	if n, err := strconv.Atoi(v); err == nil && n >= 0 && n < 1<<20 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
