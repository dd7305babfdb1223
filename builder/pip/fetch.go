package pip

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/html"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Fetcher gets wheels from a package index. The zero value needs only an
// Index. Safe for concurrent use; its fields must not change any more.
type Fetcher struct {
	// Index is the address of a simple index (PEP 503, 691), without
	// credentials: https://packages.example/simple.
	Index string
	// Source is how it is asked; its Registries are set from Index.
	fetch.Source
	// Cache is a folder of wheels that are checked each time they are used;
	// "" is none. Several processes may share it.
	Cache string
	// Temp is the folder for temporary files; "" is the system's.
	Temp string
	// Limits bound what is unpacked; their defaults are far above any honest
	// wheel.
	Limits fetch.Limits
}

func (f *Fetcher) limits() fetch.Limits {
	return f.Limits.Or(fetch.Limits{Archive: 2 << 30, Package: 4 << 30, Files: 200_000, Total: 8 << 30, Document: 64 << 20})
}

func (f *Fetcher) source() fetch.Source {
	s := f.Source
	s.Registries = []string{f.Index}
	return s
}

// allowed is an archive with one of the sums; sum is which.
func (f *Fetcher) allowed(sums []string, sum *string) fetch.Check {
	return fetch.Check{Limit: f.limits().Archive, Hash: sha256.New, Right: func(h hash.Hash) error {
		if *sum = hex.EncodeToString(h.Sum(nil)); !slices.Contains(sums, *sum) {
			return ErrIntegrity
		}
		return nil
	}}
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
	var sum string
	out, err := f.source().Archive(ctx, r.ID(), best.url.String(), "*/*", f.spool(), f.allowed(r.Hashes, &sum))
	if errors.Is(err, ErrIntegrity) {
		err = &fetch.PackageError{Package: r.ID(), Host: best.url.Host, Err: fmt.Errorf("%s: %w", best.name, ErrIntegrity)}
	}
	if err != nil {
		return nil, err
	}
	if f.Cache != "" && filepath.Base(best.name) == best.name {
		fetch.Keep(filepath.Join(f.cacheFolder(sum), best.name), out)
	}
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
		return candidate{}, &fetch.PackageError{Package: r.ID(), Host: host, Err: ErrIntegrity}
	}
	return candidate{}, &fetch.PackageError{Package: r.ID(), Host: host, Err: ErrNotPublished}
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
	page := strings.TrimRight(f.Index, "/") + "/" + r.Name + "/"
	var all []candidate
	err := f.source().Get(ctx, r.ID(), page, indexJSON+", "+indexHTML+";q=0.2, text/html;q=0.1", func(a fetch.Answer) error {
		limit := f.limits().Document
		data, err := io.ReadAll(io.LimitReader(a.Body, limit+1))
		if err != nil {
			return err
		}
		if int64(len(data)) > limit {
			return fetch.Bad(r.ID(), page, fmt.Errorf("%w: an index page of more than %d bytes", fetch.ErrHostile, limit))
		}
		if media, _, _ := mime.ParseMediaType(a.Type); media == indexJSON || media == "application/json" {
			all, err = parseJSON(data, a.At)
		} else {
			all, err = parseHTML(data, a.At)
		}
		if err != nil {
			return fetch.Bad(r.ID(), page, fmt.Errorf("the index page can't be read: %w", err))
		}
		return nil
	})
	var fe *fetch.Error
	if errors.As(err, &fe) && fe.Status == http.StatusNotFound {
		return nil, fetch.Bad(r.ID(), page, ErrNotPublished)
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

func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Host
	}
	return "index"
}

func (f *Fetcher) spool() layer.Spool { return layer.Spool{Dir: f.Temp, Memory: 1 << 20} }

// cacheFolder has a wheel by its sum; its name is kept, because a file that
// another platform needs may have a hash in the same list.
func (f *Fetcher) cacheFolder(sum string) string { return filepath.Join(f.Cache, sum[:2], sum) }

// cached finds a wheel by its sum that the platform runs.
func (f *Fetcher) cached(sum string, p Platform) *layer.Spool {
	if f.Cache == "" {
		return nil
	}
	names, _ := filepath.Glob(filepath.Join(f.cacheFolder(sum), "*.whl"))
	for _, name := range names {
		m := wheelName.FindStringSubmatch(filepath.Base(name))
		if m == nil || !slices.ContainsFunc(expand(m[4], m[5], m[6]), func(t string) bool { return slices.Contains(p.tags(), t) }) {
			continue
		}
		if s := fetch.Cached(name, f.spool(), f.allowed([]string{sum}, new(string))); s != nil {
			return s
		}
	}
	return nil
}
