// Package npmtest is a small package registry for tests: it serves archives
// that it makes itself, to our own code and to a real npm alike, and writes
// the lock files that belong to them.
package npmtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Package is one version of a package.
type Package struct {
	Name, Version string
	// Files are the contents by name below the package's folder;
	// package.json is made.
	Files map[string]string
	// Executable names the files that have the execute bits.
	Executable []string
	// Manifest holds more of package.json: dependencies, bin, os, scripts.
	Manifest map[string]any
	// Extra entries end the archive as they are; for hostile ones.
	Extra []tar.Header
	// Archive replaces everything that is served.
	Archive []byte
}

// Registry serves packages. Safe for concurrent use.
type Registry struct {
	// URL is the registry's base address once it is started.
	URL string

	mu       sync.Mutex
	packages map[string][]Package // by name, in the order added
	archives map[string][]byte    // by name@version
	requests []string
	fault    func(http.ResponseWriter, *http.Request) bool
}

// Start serves packages on a loopback address until the test ends.
func Start(t testing.TB, packages ...Package) *Registry {
	t.Helper()
	r := New(packages...)
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	r.URL = srv.URL
	return r
}

// New makes a registry that the caller serves; URL is then the caller's to set.
func New(packages ...Package) *Registry {
	r := &Registry{packages: map[string][]Package{}, archives: map[string][]byte{}}
	r.Add(packages...)
	return r
}

// Add publishes packages.
func (r *Registry) Add(packages ...Package) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range packages {
		r.packages[p.Name] = append(r.packages[p.Name], p)
		r.archives[p.Name+"@"+p.Version] = p.archive()
	}
}

// Fault installs f, which may answer a request itself and then returns true.
func (r *Registry) Fault(f func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

// Requests are the addresses asked for so far.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Reset forgets the requests so far.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Integrity is the integrity value of a version.
func (r *Registry) Integrity(name, version string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return integrity(r.archives[name+"@"+version])
}

func integrity(b []byte) string {
	sum := sha512.Sum512(b)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

// ServeHTTP answers for archives and package descriptions.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.URL.Path)
	fault := r.fault
	r.mu.Unlock()
	if fault != nil && fault(w, req) {
		return
	}
	name, _ := url.PathUnescape(strings.TrimPrefix(req.URL.EscapedPath(), "/"))
	r.mu.Lock()
	defer r.mu.Unlock()
	if pkg, file, ok := strings.Cut(name, "/-/"); ok {
		version := strings.TrimSuffix(strings.TrimPrefix(file, path.Base(pkg)+"-"), ".tgz")
		if b, ok := r.archives[pkg+"@"+version]; ok {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(b)
			return
		}
	}
	versions, ok := r.packages[name]
	if !ok {
		http.NotFound(w, req)
		return
	}
	doc := map[string]any{"name": name, "modified": "2020-01-01T00:00:00.000Z"}
	all := map[string]any{}
	for _, p := range versions {
		m := p.manifest()
		m["dist"] = map[string]any{
			"tarball":   fmt.Sprintf("%s/%s/-/%s-%s.tgz", r.URL, name, path.Base(name), p.Version),
			"integrity": integrity(r.archives[name+"@"+p.Version]),
		}
		if p.installs() {
			m["hasInstallScript"] = true
		}
		all[p.Version] = m
		doc["dist-tags"] = map[string]string{"latest": p.Version}
	}
	doc["versions"] = all
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc)
}

func (p Package) manifest() map[string]any {
	m := map[string]any{"name": p.Name, "version": p.Version}
	maps.Copy(m, p.Manifest)
	return m
}

func (p Package) installs() bool {
	scripts, _ := p.Manifest["scripts"].(map[string]string)
	return scripts["install"]+scripts["preinstall"]+scripts["postinstall"] != ""
}

func (p Package) archive() []byte {
	if p.Archive != nil {
		return p.Archive
	}
	files := maps.Clone(p.Files)
	if files == nil {
		files = map[string]string{}
	}
	if _, own := files["package.json"]; !own {
		m, _ := json.MarshalIndent(p.manifest(), "", "  ")
		files["package.json"] = string(m) + "\n"
	}
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		mode := int64(0o644)
		if slices.Contains(p.Executable, name) {
			mode = 0o755
		}
		_ = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "package/" + name, Mode: mode, Size: int64(len(files[name])),
			ModTime: time.Date(1985, 10, 26, 8, 15, 0, 0, time.UTC)})
		_, _ = tw.Write([]byte(files[name]))
	}
	for _, h := range p.Extra {
		_ = tw.WriteHeader(&h)
		_, _ = tw.Write(make([]byte, h.Size))
	}
	_ = tw.Close()
	_ = zw.Close()
	return out.Bytes()
}

// lockFields are what a lock file repeats of package.json.
var lockFields = []string{"bin", "dependencies", "optionalDependencies", "peerDependencies", "peerDependenciesMeta", "os", "cpu", "libc"}

// Lock writes a package-lock.json of version 3 for a package.json, without
// registry addresses. A dependency is placed at the top unless another version
// is there; its version is the one named, else the newest.
func (r *Registry) Lock(packageJSON string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var root map[string]any
	if err := json.Unmarshal([]byte(packageJSON), &root); err != nil {
		panic(err)
	}
	packages := map[string]any{"": root}
	at := map[string]string{} // place to version
	type want struct{ from, name, spec string }
	var queue []want
	push := func(from string, m map[string]any, kinds ...string) {
		for _, kind := range kinds {
			b, _ := json.Marshal(m[kind])
			var deps map[string]string
			_ = json.Unmarshal(b, &deps)
			for _, n := range slices.Sorted(maps.Keys(deps)) {
				queue = append(queue, want{from, n, deps[n]})
			}
		}
	}
	push("", root, "dependencies", "devDependencies", "optionalDependencies")
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		p, ok := r.pick(w.name, w.spec)
		if !ok {
			continue
		}
		place := "node_modules/" + w.name
		if v, taken := at[place]; taken && v != p.Version {
			place = w.from + "/" + place
		}
		if _, done := at[place]; done {
			continue
		}
		at[place] = p.Version
		e := map[string]any{"version": p.Version, "integrity": integrity(r.archives[p.Name+"@"+p.Version])}
		if p.Name != w.name {
			e["name"] = p.Name
		}
		for _, f := range lockFields {
			if v, ok := p.Manifest[f]; ok {
				e[f] = v
			}
		}
		if p.installs() {
			e["hasInstallScript"] = true
		}
		packages[place] = e
		push(place, p.Manifest, "dependencies", "optionalDependencies", "peerDependencies")
	}
	lock := map[string]any{"name": root["name"], "version": root["version"], "lockfileVersion": 3, "requires": true, "packages": packages}
	b, _ := json.MarshalIndent(lock, "", "  ")
	return string(b) + "\n"
}

func (r *Registry) pick(name, spec string) (Package, bool) {
	if alias, ok := strings.CutPrefix(spec, "npm:"); ok {
		name = alias
		if i := strings.LastIndex(alias, "@"); i > 0 {
			name, spec = alias[:i], alias[i+1:]
		}
	}
	all := r.packages[name]
	for _, p := range all {
		if strings.TrimLeft(spec, "^~=") == p.Version {
			return p, true
		}
	}
	if len(all) == 0 {
		return Package{}, false
	}
	return all[len(all)-1], true
}

// Generate makes n packages with files files of about size bytes each, that
// look like source text to a compressor. The same arguments give the same
// packages. Package 0 depends on all others, so that it alone is named in a
// package.json: "generated-0".
func Generate(n, files, size int) []Package {
	rnd := rand.New(rand.NewPCG(uint64(n), uint64(files)))
	words := make([]string, 400)
	for i := range words {
		b := make([]byte, 2+rnd.IntN(9))
		for j := range b {
			b[j] = byte('a' + rnd.IntN(26))
		}
		words[i] = string(b)
	}
	deps := map[string]string{}
	out := make([]Package, n)
	for i := range out {
		p := Package{Name: fmt.Sprintf("generated-%d", i), Version: "1.0.0", Files: map[string]string{}, Manifest: map[string]any{}}
		for j := range files {
			var b strings.Builder
			for b.Len() < size {
				fmt.Fprintf(&b, "const %s = require('./%s') // %s\n", words[rnd.IntN(len(words))], words[rnd.IntN(len(words))], words[rnd.IntN(len(words))])
			}
			p.Files[fmt.Sprintf("lib/%s-%d.js", words[rnd.IntN(len(words))], j)] = b.String()
		}
		if i > 0 {
			deps[p.Name] = "^1.0.0"
		}
		out[i] = p
	}
	if n > 0 {
		out[0].Manifest["dependencies"] = deps
	}
	return out
}
