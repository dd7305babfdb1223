package npm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/fetch"
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
	// Source is how they are asked; its Registries are set from these.
	fetch.Source
	// Cache is a folder of archives that are checked each time they are used;
	// "" is none. Several processes may share it.
	Cache string
	// Temp is the folder for temporary files; "" is the system's.
	Temp string
	// Parallel is how many archives are fetched at once; default 16.
	Parallel int
	// Limits bound what is unpacked; their defaults are far above any honest
	// package.
	Limits fetch.Limits
}

func (f *Fetcher) limits() fetch.Limits {
	return f.Limits.Or(fetch.Limits{Archive: 512 << 20, Package: 2 << 30, Files: 200_000, Total: 8 << 30, Document: 64 << 20})
}

func (f *Fetcher) source() fetch.Source {
	s := f.Source
	s.Registries = append([]string{f.Registry}, slices.Collect(maps.Values(f.Scopes))...)
	return s
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
	check := fetch.Check{Limit: f.limits().Archive, Hash: in.new, Right: func(h hash.Hash) error {
		if !in.matches(h) {
			return ErrIntegrity
		}
		return nil
	}}
	like := layer.Spool{Dir: f.Temp}
	if f.Cache != "" {
		if s := fetch.Cached(f.cacheFile(p), like, check); s != nil {
			return s, nil
		}
	}
	download := func(address string) (*layer.Spool, error) {
		return f.source().Archive(ctx, p.ID(), address, "application/octet-stream, */*", like, check)
	}
	reg := f.base(p.Name)
	first := reg + "/" + p.Name + "/-/" + path.Base(p.Name) + "-" + p.Version + ".tgz"
	s, err := download(first)
	var fe *fetch.Error
	if errors.As(err, &fe) && fe.Status == http.StatusNotFound {
		var where string
		if where, err = f.describe(ctx, p, reg); err == nil {
			s, err = download(where)
		}
	}
	if errors.As(err, &fe) && fe.Status == http.StatusNotFound {
		return nil, &fetch.PackageError{Package: p.ID(), Host: fe.Host, Err: ErrNotPublished}
	}
	if err == nil && f.Cache != "" {
		fetch.Keep(f.cacheFile(p), s)
	}
	return s, err
}

// describe asks the registry where it keeps the archive: some don't use the
// usual address.
func (f *Fetcher) describe(ctx context.Context, p Package, reg string) (string, error) {
	limit := f.limits().Document
	u := reg + "/" + url.PathEscape(p.Name)
	var doc struct {
		Versions map[string]struct{ Dist struct{ Tarball string } }
	}
	err := f.source().Get(ctx, p.ID(), u, "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8", func(a fetch.Answer) error {
		b, err := io.ReadAll(io.LimitReader(a.Body, limit+1))
		if err != nil {
			return err
		}
		if int64(len(b)) > limit || json.Unmarshal(b, &doc) != nil {
			return fetch.Bad(p.ID(), u, errors.New("the registry's description of the package can't be read"))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	where := doc.Versions[p.Version].Dist.Tarball
	if !strings.HasPrefix(where, "http://") && !strings.HasPrefix(where, "https://") {
		return "", fetch.Bad(p.ID(), u, ErrNotPublished)
	}
	return where, nil
}

func (f *Fetcher) cacheFile(p Package) string {
	sum := sha256.Sum256([]byte(p.Integrity))
	name := hex.EncodeToString(sum[:])
	return filepath.Join(f.Cache, name[:2], name+".tgz")
}
