package npm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Fetcher gets package archives from a registry. The zero value needs only a
// Registry. Safe for concurrent use; its fields must not change any more.
type Fetcher struct {
	// Registry is the base address that every package's address follows from,
	// whatever address a lock file names: its integrity values decide the
	// content.
	Registry string
	// Scopes are other base addresses, by scope ("@team").
	Scopes map[string]string
	// Authorize, if set, adds credentials to a request for one of these
	// registries' own hosts; other hosts never see it.
	Authorize func(*http.Request)
	// Client sends requests; nil means the default transport, which reads the
	// proxy settings of the environment.
	Client *http.Client
	// Cache is a folder of archives that are checked each time they are used;
	// "" is none. Several processes may share it.
	Cache string
	// Temp is the folder for temporary files; "" is the system's.
	Temp string
	// Parallel is how many archives are fetched at once; default 16.
	Parallel int
	// Attempts is how often an archive is tried in all; default 4.
	Attempts int
	// Delay is the longest pause before the second try; it doubles with each
	// further one. Default 250 ms.
	Delay time.Duration
	// MaxWait is the longest pause that Retry-After may ask for. Default 30 s.
	MaxWait time.Duration
	// Idle is how long a transfer may stand still. Default 1 min.
	Idle time.Duration
	// Limits bound what is unpacked.
	Limits Limits
}

// Limits are the sizes above which an archive is taken for an attack. Zero
// values mean the defaults.
type Limits struct {
	Archive  int64 // compressed bytes of a package; default 512 MiB
	Package  int64 // unpacked bytes of a package; default 2 GiB
	Files    int   // files of a package; default 200,000
	Total    int64 // unpacked bytes of all packages; default 8 GiB
	Document int64 // bytes of a package's description; default 64 MiB
}

func (l Limits) withDefaults() Limits {
	set := func(p *int64, v int64) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&l.Archive, 512<<20)
	set(&l.Package, 2<<30)
	set(&l.Total, 8<<30)
	set(&l.Document, 64<<20)
	if l.Files <= 0 {
		l.Files = 200_000
	}
	return l
}

func or[T int | time.Duration](v, def T) T {
	if v > 0 {
		return v
	}
	return def
}

// base is the registry of a package.
func (f *Fetcher) base(name string) string {
	reg := f.Registry
	if scope, _, ok := strings.Cut(name, "/"); ok && f.Scopes[scope] != "" {
		reg = f.Scopes[scope]
	}
	return strings.TrimRight(reg, "/")
}

// archive gives the checked archive of p: from the cache, from the address
// that registries agree on, or from the one that the registry's description of
// the package names. The caller closes the spool.
func (f *Fetcher) archive(ctx context.Context, p Package) (*layer.Spool, error) {
	in, ok := parseIntegrity(p.Integrity)
	if !ok {
		return nil, fmt.Errorf("%s: the integrity value is missing", p.ID())
	}
	if s := f.cached(p, in); s != nil {
		return s, nil
	}
	reg := f.base(p.Name)
	first := reg + "/" + p.Name + "/-/" + path.Base(p.Name) + "-" + p.Version + ".tgz"
	s, err := f.download(ctx, p, first, in)
	var fe *FetchError
	if errors.As(err, &fe) && fe.Status == http.StatusNotFound {
		var where string
		if where, err = f.describe(ctx, p, reg); err == nil {
			s, err = f.download(ctx, p, where, in)
		}
	}
	if errors.As(err, &fe) && fe.Status == http.StatusNotFound {
		return nil, &PackageError{Package: p.ID(), Host: fe.Host, Err: ErrNotPublished}
	}
	if err == nil {
		f.keep(p, s)
	}
	return s, err
}

// get asks u, and retries what a later try may cure. use reads the answer.
func (f *Fetcher) get(ctx context.Context, p Package, u, accept string, use func(io.Reader) error) error {
	addr, err := url.Parse(u)
	if err != nil || addr.Host == "" {
		return &PackageError{Package: p.ID(), Host: "registry", Err: errors.New("its address can't be read")}
	}
	for attempt := 1; ; attempt++ {
		wait, err := f.getOnce(ctx, p, addr, accept, use)
		var fe *FetchError
		if err == nil || ctx.Err() != nil || !errors.As(err, &fe) {
			return err // when ctx has ended, err may be another package's
		}
		fe.Attempts = attempt
		temporary := fe.Status == 0 || fe.Status >= 500 || fe.Status == http.StatusTooManyRequests || fe.Status == http.StatusRequestTimeout
		limit := f.MaxWait
		if limit <= 0 {
			limit = 30 * time.Second
		}
		if !temporary || attempt >= or(f.Attempts, 4) || wait > limit {
			return err
		}
		pause := or(f.Delay, 250*time.Millisecond) << min(attempt-1, 16)
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

func (f *Fetcher) getOnce(ctx context.Context, p Package, u *url.URL, accept string, use func(io.Reader) error) (time.Duration, error) {
	rctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := or(f.Idle, time.Minute)
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
		return &FetchError{Package: p.ID(), Host: u.Host, Status: status, Err: err}
	}
	req, err := http.NewRequestWithContext(rctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, fail(0, err)
	}
	req.Header.Set("Accept", accept)
	// Archives are compressed already; their digest is of the bytes as sent.
	req.Header.Set("Accept-Encoding", "identity")
	if f.Authorize != nil && f.own(u) {
		f.Authorize(req)
	}
	client := f.Client
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
	if err := use(body); err != nil {
		if body.err != nil {
			return 0, fail(0, body.err)
		}
		return 0, err
	}
	return 0, nil
}

// own tells whether u is on a host of a configured registry.
func (f *Fetcher) own(u *url.URL) bool {
	for _, reg := range append([]string{f.Registry}, values(f.Scopes)...) {
		if r, err := url.Parse(reg); err == nil && r.Host == u.Host && r.Scheme == u.Scheme {
			return true
		}
	}
	return false
}

func values(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
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

// download fetches u into a spool and checks it.
func (f *Fetcher) download(ctx context.Context, p Package, u string, in integrity) (*layer.Spool, error) {
	limit := f.Limits.withDefaults().Archive
	var out *layer.Spool
	err := f.get(ctx, p, u, "application/octet-stream, */*", func(r io.Reader) error {
		s := &layer.Spool{Dir: f.Temp}
		h := in.new()
		n, err := io.Copy(io.MultiWriter(s, h), io.LimitReader(r, limit+1))
		switch {
		case err != nil:
		case n > limit:
			err = f.bad(p, u, fmt.Errorf("%w: it has more than %d bytes", ErrHostile, limit))
		case !in.matches(h):
			err = f.bad(p, u, ErrIntegrity)
		}
		if err != nil {
			s.Close()
			return err
		}
		out = s
		return nil
	})
	return out, err
}

func (f *Fetcher) bad(p Package, u string, err error) error {
	host := ""
	if a, e := url.Parse(u); e == nil {
		host = a.Host
	}
	return &PackageError{Package: p.ID(), Host: host, Err: err}
}

// describe asks the registry where it keeps the archive: some don't use the
// usual address.
func (f *Fetcher) describe(ctx context.Context, p Package, reg string) (string, error) {
	limit := f.Limits.withDefaults().Document
	u := reg + "/" + url.PathEscape(p.Name)
	var doc struct {
		Versions map[string]struct{ Dist struct{ Tarball string } }
	}
	err := f.get(ctx, p, u, "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8", func(r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, limit+1))
		if err != nil {
			return err
		}
		if int64(len(b)) > limit || json.Unmarshal(b, &doc) != nil {
			return f.bad(p, u, errors.New("the registry's description of the package can't be read"))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	where := doc.Versions[p.Version].Dist.Tarball
	if !strings.HasPrefix(where, "http://") && !strings.HasPrefix(where, "https://") {
		return "", f.bad(p, u, ErrNotPublished)
	}
	return where, nil
}

func (f *Fetcher) cacheFile(p Package) string {
	sum := sha256.Sum256([]byte(p.Integrity))
	name := hex.EncodeToString(sum[:])
	return filepath.Join(f.Cache, name[:2], name+".tgz")
}

// cached gives an archive of the cache if it is there and still what it was.
func (f *Fetcher) cached(p Package, in integrity) *layer.Spool {
	if f.Cache == "" {
		return nil
	}
	name := f.cacheFile(p)
	file, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer file.Close()
	s := &layer.Spool{Dir: f.Temp}
	h := in.new()
	if _, err := io.Copy(io.MultiWriter(s, h), file); err != nil || !in.matches(h) {
		s.Close()
		os.Remove(name)
		return nil
	}
	return s
}

// keep puts an archive into the cache. A cache that can't be written to is a
// slow one, not a failed build.
func (f *Fetcher) keep(p Package, s *layer.Spool) {
	if f.Cache == "" {
		return
	}
	name := f.cacheFile(p)
	if os.MkdirAll(filepath.Dir(name), 0o755) != nil {
		return
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return
	}
	_, err = io.Copy(tmp, s.Section(0, s.Len()))
	if errors.Join(err, tmp.Close()) != nil || os.Rename(tmp.Name(), name) != nil {
		os.Remove(tmp.Name())
	}
}
