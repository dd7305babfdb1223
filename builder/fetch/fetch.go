// Package fetch gets package archives, and what package registries say about
// them: with retries where a later try may help, within limits, and checked
// before anybody uses them. What a package is, and where it lies, is its
// callers' knowledge (builder/npm, builder/pip).
package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Source is how registries are asked. The zero value works.
type Source struct {
	// Registries are the base addresses whose hosts Authorize is asked for.
	Registries []string
	// Authorize, if set, adds credentials to a request.
	Authorize func(*http.Request)
	// Client sends requests; nil means the default transport, which reads the
	// proxy settings of the environment.
	Client *http.Client
	// Attempts is how often an address is tried in all; default 4.
	Attempts int
	// Delay is the longest pause before the second try; it doubles with each
	// further one. Default 250 ms.
	Delay time.Duration
	// MaxWait is the longest pause that Retry-After may ask for. Default 30 s.
	MaxWait time.Duration
	// Idle is how long a transfer may stand still. Default 1 min.
	Idle time.Duration
}

// Answer is what a registry sent.
type Answer struct {
	At   *url.URL // where it came from in the end
	Type string   // Content-Type
	Body io.Reader
}

func or[T int | time.Duration](v, def T) T {
	if v > 0 {
		return v
	}
	return def
}

// Get asks for address on behalf of a package, and tries again what a later
// try may cure. use reads the answer; it may be called again when that breaks.
//
// Errors: [*Error]; [*PackageError] for an address that can't be read; those of
// use; ctx's cause.
func (s Source) Get(ctx context.Context, pkg, address, accept string, use func(Answer) error) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return &PackageError{Package: pkg, Host: "registry", Err: errors.New("its address can't be read")}
	}
	for attempt := 1; ; attempt++ {
		wait, err := s.once(ctx, pkg, u, accept, use)
		var fe *Error
		if err == nil || ctx.Err() != nil || !errors.As(err, &fe) {
			return err // when ctx has ended, err may be another package's
		}
		fe.Attempts = attempt
		limit := or(s.MaxWait, 30*time.Second)
		if !fe.temporary() || attempt >= or(s.Attempts, 4) || wait > limit {
			return err
		}
		pause := or(s.Delay, 250*time.Millisecond) << min(attempt-1, 16)
		pause = max(min(pause, limit)-rand.N(pause/2+1), wait)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

var errIdle = errors.New("no byte arrived for too long")

func (s Source) once(ctx context.Context, pkg string, u *url.URL, accept string, use func(Answer) error) (time.Duration, error) {
	rctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := or(s.Idle, time.Minute)
	timer := time.AfterFunc(idle, func() { cancel(errIdle) })
	defer timer.Stop()
	fail := func(status int, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(context.Cause(rctx), errIdle) {
			err = errIdle
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // addresses may carry credentials
		}
		return &Error{Package: pkg, Host: u.Host, Status: status, Err: err}
	}
	req, err := http.NewRequestWithContext(rctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, fail(0, err)
	}
	req.Header.Set("Accept", accept)
	// Archives are compressed already; their digest is of the bytes as sent.
	req.Header.Set("Accept-Encoding", "identity")
	if s.Authorize != nil && s.own(u) {
		s.Authorize(req)
	}
	client := s.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fail(0, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
		n, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return time.Duration(max(n, 0)) * time.Second, fail(resp.StatusCode, nil)
	}
	body := &alive{r: resp.Body, t: timer, idle: idle}
	err = use(Answer{At: resp.Request.URL, Type: resp.Header.Get("Content-Type"), Body: body})
	if err != nil && body.err != nil {
		return 0, fail(0, body.err)
	}
	return 0, err
}

// own tells whether u is on a host of a configured registry.
func (s Source) own(u *url.URL) bool {
	for _, reg := range s.Registries {
		if r, err := url.Parse(reg); err == nil && r.Host == u.Host && r.Scheme == u.Scheme {
			return true
		}
	}
	return false
}

// alive keeps the idle timer from firing while bytes arrive.
type alive struct {
	r    io.Reader
	t    *time.Timer
	idle time.Duration
	err  error
}

func (a *alive) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if n > 0 {
		a.t.Reset(a.idle)
	}
	if err != nil && err != io.EOF {
		a.err = err
	}
	return n, err
}

// Check is what an archive has to be.
type Check struct {
	Limit int64            // most bytes
	Hash  func() hash.Hash // an empty one
	// Right looks at the hash of all bytes; its error is why they are not it.
	Right func(hash.Hash) error
}

// Archive fetches address into a spool like the one given, and checks it. The
// caller closes the spool.
//
// Errors: those of [Source.Get]; [*PackageError] for one that is not what it
// has to be, with [ErrHostile] in the chain when it is too long.
func (s Source) Archive(ctx context.Context, pkg, address, accept string, like layer.Spool, c Check) (*layer.Spool, error) {
	var out *layer.Spool
	err := s.Get(ctx, pkg, address, accept, func(a Answer) error {
		spool := &layer.Spool{Dir: like.Dir, Memory: like.Memory}
		h := c.Hash()
		n, err := io.Copy(io.MultiWriter(spool, h), io.LimitReader(a.Body, c.Limit+1))
		if err == nil && n > c.Limit {
			err = Bad(pkg, address, fmt.Errorf("%w: it has more than %d bytes", ErrHostile, c.Limit))
		}
		if err == nil {
			if why := c.Right(h); why != nil {
				err = Bad(pkg, address, why)
			}
		}
		if err != nil {
			spool.Close()
			return err
		}
		out = spool
		return nil
	})
	return out, err
}

// Cached is an archive that [Keep] kept in a file, if it is there and still
// right; else nil. The caller closes the spool.
func Cached(file string, like layer.Spool, c Check) *layer.Spool {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	spool := &layer.Spool{Dir: like.Dir, Memory: like.Memory}
	h := c.Hash()
	if _, err := io.Copy(io.MultiWriter(spool, h), f); err != nil || c.Right(h) != nil {
		spool.Close()
		os.Remove(file)
		return nil
	}
	return spool
}

// Keep puts an archive into a file. A cache that can't be written to is a slow
// one, not a failed build.
func Keep(file string, s *layer.Spool) {
	if os.MkdirAll(filepath.Dir(file), 0o755) != nil {
		return
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return
	}
	_, err = io.Copy(tmp, s.Section(0, s.Len()))
	if errors.Join(err, tmp.Close()) != nil || os.Rename(tmp.Name(), file) != nil {
		os.Remove(tmp.Name())
	}
}

// Limits are the sizes above which an archive is taken for an attack.
type Limits struct {
	Archive  int64 // compressed bytes of a package
	Package  int64 // unpacked bytes of a package
	Files    int   // files of a package
	Total    int64 // unpacked bytes of all packages
	Document int64 // bytes of what a registry says about a package
}

// Or are the limits, those of def where they say nothing.
func (l Limits) Or(def Limits) Limits {
	for _, p := range []struct {
		at  *int64
		def int64
	}{{&l.Archive, def.Archive}, {&l.Package, def.Package}, {&l.Total, def.Total}, {&l.Document, def.Document}} {
		if *p.at <= 0 {
			*p.at = p.def
		}
	}
	if l.Files <= 0 {
		l.Files = def.Files
	}
	return l
}
