package pip

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/html"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Fetcher gets wheels from a package index. The zero value needs only an
// Index. Safe for concurrent use; its fields must not change any more.
type Fetcher struct {
	// Index is the address of a simple index (PEP 503, 691), without
	// credentials: https://packages.example/simple.
	Index string
	// Authorize, if set, adds credentials to a request for the index's own
	// host; other hosts never see it.
	Authorize func(*http.Request)
	// Client sends requests; nil means the default transport, which reads the
	// proxy settings of the environment.
	Client *http.Client
	// Cache is a folder of wheels that are checked each time they are used;
	// "" is none. Several processes may share it.
	Cache string
	// Temp is the folder for temporary files; "" is the system's.
	Temp string
	// Attempts is how often an address is tried in all; default 4.
	Attempts int
	// Delay is the longest pause before the second try; it doubles with each
	// further one. Default 250 ms.
	Delay time.Duration
	// Idle is how long a transfer may stand still. Default 1 min.
	Idle time.Duration
	// Limits bound what is unpacked.
	Limits Limits
}

// Limits are the sizes above which a wheel is taken for an attack. Zero values
// mean the defaults.
type Limits struct {
	Archive  int64 // compressed bytes of a wheel; default 2 GiB
	Package  int64 // unpacked bytes of a wheel; default 4 GiB
	Files    int   // files of a wheel; default 200,000
	Total    int64 // unpacked bytes of all wheels; default 8 GiB
	Document int64 // bytes of an index page or a metadata file; default 64 MiB
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		at  *int64
		def int64
	}{{&l.Archive, 2 << 30}, {&l.Package, 4 << 30}, {&l.Total, 8 << 30}, {&l.Document, 64 << 20}} {
		if *d.at <= 0 {
			*d.at = d.def
		}
	}
	if l.Files <= 0 {
		l.Files = 200_000
	}
	return l
}

// candidate is a file of the index.
type candidate struct {
	name   string
	url    *url.URL
	sha256 string // "" when the index does not say
}

// wheelName is {name}-{version}(-{build})?-{python}-{abi}-{platform}.whl.
var wheelName = regexp.MustCompile(`^([^-]+)-([^-]+)(?:-(\d[^-]*))?-([^-]+)-([^-]+)-([^-]+)\.whl$`)

// wheel finds, fetches and checks the wheel of r. The caller closes the spool.
func (f *Fetcher) wheel(ctx context.Context, r Requirement, p Platform) (*layer.Spool, error) {
	for _, sum := range r.Hashes {
		if s := f.cached(sum, p); s != nil {
			return s, nil
		}
	}
	all, err := f.list(ctx, r)
	if err != nil {
		return nil, err
	}
	best, err := f.choose(all, r, p)
	if err != nil {
		return nil, err
	}
	var out *layer.Spool
	var sum string
	err = f.get(ctx, r, best.url, "*/*", func(_ *url.URL, _ string, body io.Reader) error {
		if out != nil {
			out.Close()
		}
		out = &layer.Spool{Dir: f.Temp, Memory: 1 << 20}
		limit := f.Limits.withDefaults().Archive
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(body, limit+1))
		if err == nil && n > limit {
			err = &PackageError{Package: r.ID(), Host: best.url.Host, Err: fmt.Errorf("%w: more than %d bytes", ErrHostile, limit)}
		}
		sum = hex.EncodeToString(h.Sum(nil))
		return err
	})
	if err == nil && !slices.Contains(r.Hashes, sum) {
		err = &PackageError{Package: r.ID(), Host: best.url.Host, Err: fmt.Errorf("%s: %w", best.name, ErrIntegrity)}
	}
	if err != nil {
		if out != nil {
			out.Close()
		}
		return nil, err
	}
	f.keep(sum, best.name, out)
	return out, nil
}

// choose takes the wheel that pip would: of those that the hashes allow and
// the platform runs, the one with the best tag, then the highest build number.
func (f *Fetcher) choose(all []candidate, r Requirement, p Platform) (candidate, error) {
	rank := map[string]int{}
	for i, t := range p.tags() {
		rank[t] = i
	}
	best, at, build := candidate{}, len(rank), ""
	versions, sources, allowed := 0, false, false
	for _, c := range all {
		m := wheelName.FindStringSubmatch(c.name)
		if m == nil {
			if strings.HasSuffix(c.name, ".tar.gz") || strings.HasSuffix(c.name, ".zip") {
				if slices.Contains(r.Hashes, c.sha256) {
					sources = true
				}
				if rest, ok := strings.CutPrefix(normalize(c.name), r.Name+"-"); ok && strings.HasPrefix(rest, normalize(r.Version)) {
					versions++
				}
			}
			continue
		}
		if normalize(m[1]) != r.Name || !sameVersion(m[2], r.Version) {
			continue
		}
		versions++
		if c.sha256 != "" && !slices.Contains(r.Hashes, c.sha256) {
			continue
		}
		allowed = true
		for _, t := range expand(m[4], m[5], m[6]) {
			if i, ok := rank[t]; ok && (i < at || i == at && laterBuild(m[3], build)) {
				best, at, build = c, i, m[3]
			}
		}
	}
	host := hostOf(f.Index)
	switch {
	case best.url != nil:
		return best, nil
	case sources:
		return candidate{}, needs("%s has a source archive and no wheel for CPython 3.%d on Linux %s", r.ID(), p.Minor, p.machine())
	case allowed:
		return candidate{}, needs("%s: the hashes allow no wheel for CPython 3.%d on Linux %s with glibc 2.%d", r.ID(), p.Minor, p.machine(), p.Glibc)
	case versions > 0:
		return candidate{}, &PackageError{Package: r.ID(), Host: host, Err: ErrIntegrity}
	}
	return candidate{}, &PackageError{Package: r.ID(), Host: host, Err: ErrNotPublished}
}

func expand(pythons, abis, plats string) []string {
	var all []string
	for _, python := range strings.Split(pythons, ".") {
		for _, abi := range strings.Split(abis, ".") {
			for _, plat := range strings.Split(plats, ".") {
				all = append(all, python+"-"+abi+"-"+plat)
			}
		}
	}
	return all
}

// laterBuild compares build tags: a number, then text.
func laterBuild(a, b string) bool {
	number := func(s string) (int, string) {
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		v, _ := strconv.Atoi(s[:n])
		return v, s[n:]
	}
	na, ra := number(a)
	nb, rb := number(b)
	return na > nb || na == nb && ra > rb
}

const (
	indexJSON = "application/vnd.pypi.simple.v1+json"
	indexHTML = "application/vnd.pypi.simple.v1+html"
)

// list reads the index page of a package.
func (f *Fetcher) list(ctx context.Context, r Requirement) ([]candidate, error) {
	page, err := url.Parse(strings.TrimRight(f.Index, "/") + "/" + r.Name + "/")
	if err != nil || page.Host == "" {
		return nil, &PackageError{Package: r.ID(), Host: "index", Err: errors.New("the address of the package index can't be read")}
	}
	var all []candidate
	err = f.get(ctx, r, page, indexJSON+", "+indexHTML+";q=0.2, text/html;q=0.1", func(at *url.URL, kind string, body io.Reader) error {
		limit := f.Limits.withDefaults().Document
		data, err := io.ReadAll(io.LimitReader(body, limit+1))
		if err != nil {
			return err
		}
		if int64(len(data)) > limit {
			return &PackageError{Package: r.ID(), Host: page.Host, Err: fmt.Errorf("%w: an index page of more than %d bytes", ErrHostile, limit)}
		}
		if media, _, _ := mime.ParseMediaType(kind); media == indexJSON || media == "application/json" {
			all, err = parseJSON(data, at)
		} else {
			all, err = parseHTML(data, at)
		}
		if err != nil {
			return &PackageError{Package: r.ID(), Host: page.Host, Err: fmt.Errorf("the index page can't be read: %w", err)}
		}
		return nil
	})
	var fe *FetchError
	if errors.As(err, &fe) && fe.Status == http.StatusNotFound {
		return nil, &PackageError{Package: r.ID(), Host: page.Host, Err: ErrNotPublished}
	}
	return all, err
}

func parseJSON(data []byte, at *url.URL) ([]candidate, error) {
	var page struct {
		Files []struct {
			Filename, URL string
			Hashes        map[string]string
		}
	}
	if err := json.Unmarshal(data, &page); err != nil {
		return nil, err
	}
	var all []candidate
	for _, file := range page.Files {
		if u, err := at.Parse(file.URL); err == nil {
			all = append(all, candidate{file.Filename, u, strings.ToLower(file.Hashes["sha256"])})
		}
	}
	return all, nil
}

// parseHTML reads the links of a page, each a file.
func parseHTML(data []byte, at *url.URL) ([]candidate, error) {
	doc, err := html.Parse(strings.NewReader(string(data)))
	if err != nil {
		return nil, err
	}
	var all []candidate
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		for _, a := range n.Attr {
			u, err := at.Parse(a.Val)
			if a.Key != "href" || err != nil {
				continue
			}
			if n.Data == "base" {
				at = u
				continue
			}
			sum, _ := strings.CutPrefix(u.Fragment, "sha256=")
			if !sha256Value.MatchString(strings.ToLower(sum)) {
				sum = ""
			}
			u.Fragment = ""
			all = append(all, candidate{path.Base(u.Path), u, strings.ToLower(sum)})
		}
	}
	return all, nil
}

var errIdle = errors.New("no byte arrived for too long")

// get asks u, and retries what a later try may cure. use reads the answer.
func (f *Fetcher) get(ctx context.Context, r Requirement, u *url.URL, accept string, use func(at *url.URL, kind string, body io.Reader) error) error {
	attempts, delay := f.Attempts, f.Delay
	if attempts <= 0 {
		attempts = 4
	}
	if delay <= 0 {
		delay = 250 * time.Millisecond
	}
	for attempt := 1; ; attempt++ {
		wait, err := f.once(ctx, r, u, accept, use)
		var fe *FetchError
		if err == nil || ctx.Err() != nil || !errors.As(err, &fe) {
			return err
		}
		fe.Attempts = attempt
		temporary := fe.Status == 0 || fe.Status >= 500 || fe.Status == http.StatusTooManyRequests || fe.Status == http.StatusRequestTimeout
		if !temporary || attempt >= attempts || wait > 30*time.Second {
			return err
		}
		pause := delay << min(attempt-1, 7)
		t := time.NewTimer(max(pause-rand.N(pause/2+1), wait))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

func (f *Fetcher) once(ctx context.Context, r Requirement, u *url.URL, accept string, use func(*url.URL, string, io.Reader) error) (time.Duration, error) {
	rctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := f.Idle
	if idle <= 0 {
		idle = time.Minute
	}
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
		return &FetchError{Package: r.ID(), Host: u.Host, Status: status, Err: err}
	}
	req, err := http.NewRequestWithContext(rctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, fail(0, err)
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("Accept-Encoding", "identity")
	if own, err := url.Parse(f.Index); err == nil && f.Authorize != nil && own.Host == u.Host && own.Scheme == u.Scheme {
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
	err = use(resp.Request.URL, resp.Header.Get("Content-Type"), body)
	if err != nil && body.err != nil {
		return 0, fail(0, body.err)
	}
	return 0, err
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

func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Host
	}
	return "index"
}

// cached finds a wheel by its sum; its name is kept beside it, because a file
// that another platform needs may have a hash in the same list.
func (f *Fetcher) cached(sum string, p Platform) *layer.Spool {
	if f.Cache == "" {
		return nil
	}
	names, _ := filepath.Glob(filepath.Join(f.Cache, sum[:2], sum, "*.whl"))
	for _, name := range names {
		m := wheelName.FindStringSubmatch(filepath.Base(name))
		if m == nil || !slices.ContainsFunc(expand(m[4], m[5], m[6]), func(t string) bool { return slices.Contains(p.tags(), t) }) {
			continue
		}
		file, err := os.Open(name)
		if err != nil {
			continue
		}
		s := &layer.Spool{Dir: f.Temp, Memory: 1 << 20}
		h := sha256.New()
		_, err = io.Copy(io.MultiWriter(s, h), file)
		file.Close()
		if err == nil && hex.EncodeToString(h.Sum(nil)) == sum {
			return s
		}
		s.Close()
		os.Remove(name)
	}
	return nil
}

// keep puts a checked wheel into the cache; a cache that takes nothing costs
// the next build a transfer.
func (f *Fetcher) keep(sum, name string, s *layer.Spool) {
	if f.Cache == "" || filepath.Base(name) != name {
		return
	}
	dir := filepath.Join(f.Cache, sum[:2], sum)
	if os.MkdirAll(dir, 0o755) != nil {
		return
	}
	tmp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return
	}
	_, err = io.Copy(tmp, s.Section(0, s.Len()))
	if cerr := tmp.Close(); err != nil || cerr != nil || os.Rename(tmp.Name(), filepath.Join(dir, name)) != nil {
		os.Remove(tmp.Name())
	}
}
