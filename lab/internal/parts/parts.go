// Package parts compiles what the lab runs and keeps it in a cache outside the
// checkout: one folder per part, named by a hash of the versions, sources and
// flags it was made from, so a part is rebuilt when one of those changes and
// never otherwise. Several checkouts, and several processes, may share a cache.
package parts

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strings"
	"time"
)

// ErrUnavailable is in the chain of errors that say this machine can't provide
// a part at all, so that the lab is skipped here rather than failed.
var ErrUnavailable = errors.New("not available on this machine")

// Set is the parts of one checkout.
type Set struct {
	Lab   string                           // the checkout's lab folder
	Cache string                           // where parts are kept
	Log   func(format string, args ...any) // progress, one line per call
	Every time.Duration                    // between progress lines; 0 is 20 s
}

// A part is something the lab needs that is made once.
type part struct {
	name  string
	about func(versions map[string]string) string
	dir   string        // module folder, and hashed source, relative to lab/
	cold  time.Duration // measured on two idle cores with an empty build cache
	salt  func() (string, error)
	make  func(ctx context.Context, b *builder) error
}

// Paths are the folders of built parts by name.
type Paths map[string]string

// Names lists the parts the full lab needs, in the order they are made: the
// longest first, since the others share its libraries.
func Names() []string {
	var names []string
	for _, p := range all() {
		names = append(names, p.name)
	}
	return names
}

// APINames lists the parts the rootless tier needs.
func APINames() []string { return []string{"kube", "knative", "etcd"} }

func all() []part {
	return []part{
		{name: "kube", dir: "kube", cold: 10 * time.Minute, make: makeKube, about: version("Kubernetes", "k8s.io/kubernetes")},
		{name: "knative", dir: "knative", cold: 4 * time.Minute, make: makeKnative, about: version("Knative Serving", "knative.dev/serving")},
		{name: "coredns", dir: "coredns", cold: 2 * time.Minute, make: makeMain("coredns"), about: version("CoreDNS", "github.com/coredns/coredns")},
		{name: "etcd", dir: "etcd", cold: time.Minute, make: makeMain("etcd"), about: version("etcd", "go.etcd.io/etcd/server/v3")},
		{name: "ingress", dir: "ingress", cold: 30 * time.Second, make: makeIngress, about: plain("the lab's ingress")},
		{name: "pause", dir: "cmd/pause", cold: 10 * time.Second, make: makeMain("pause"), about: plain("pause")},
		{name: "hello", dir: "cmd/hello", cold: 10 * time.Second, make: makeMain("hello"), about: plain("the test function")},
		{name: "node", dir: "", cold: 30 * time.Second, make: makeNode, salt: nodeSalt, about: plain("containerd, runc, CNI and nftables from Debian")},
	}
}

func plain(s string) func(map[string]string) string {
	return func(map[string]string) string { return s }
}

func version(title, module string) func(map[string]string) string {
	return func(v map[string]string) string { return title + " " + v[module] }
}

// Build makes the named parts that the cache lacks and returns the folders of
// all of them. A cold build of everything takes 10 to 20 minutes on two cores.
func (s Set) Build(ctx context.Context, names []string) (Paths, error) {
	cache, err := filepath.Abs(s.Cache)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("lab cache: %w", err)
	}
	type job struct {
		part
		key, dir string
		versions map[string]string
	}
	paths := Paths{}
	var todo []job
	var cold time.Duration
	for _, p := range all() {
		if !contains(names, p.name) {
			continue
		}
		key, err := s.key(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		dir := filepath.Join(cache, p.name+"-"+key)
		paths[p.name] = dir
		if _, err := os.Stat(filepath.Join(dir, "done")); err == nil {
			continue
		}
		v, err := moduleVersions(filepath.Join(s.Lab, p.dir, "go.mod"))
		if err != nil {
			return nil, err
		}
		todo = append(todo, job{p, key, dir, v})
		cold += p.cold * 2 / time.Duration(min(2, runtime.NumCPU()))
	}
	if len(todo) == 0 {
		return paths, nil
	}
	s.Log("making %d of %d parts in %s: once per version; at most about %s where the Go build cache is empty, a minute or two where it is warm",
		len(todo), len(paths), cache, round(cold))
	start := time.Now()
	for i, j := range todo {
		s.Log("[%d/%d] %s", i+1, len(todo), j.about(j.versions))
		if err := s.buildOne(ctx, j.part, j.dir, j.versions); err != nil {
			return nil, fmt.Errorf("%s: %w", j.name, err)
		}
	}
	s.Log("parts made in %s", round(time.Since(start)))
	return paths, nil
}

func (s Set) buildOne(ctx context.Context, p part, dir string, versions map[string]string) error {
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, "done")); err == nil {
		return nil // another checkout made it while we waited for the lock
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".making-"+p.name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	every := s.Every
	if every == 0 {
		every = 20 * time.Second
	}
	b := &builder{set: s, part: p, out: tmp, versions: versions, every: every, start: time.Now()}
	if err := p.make(ctx, b); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "done"), nil, 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil { // a half-removed one
		return err
	}
	return os.Rename(tmp, dir)
}

// key hashes everything a part is made from.
func (s Set) key(ctx context.Context, p part) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "lab part 1\n%s %s %s %s\n", p.name, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if p.salt != nil {
		v, err := p.salt()
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, v)
	}
	if p.dir != "" {
		fmt.Fprintln(h, flagsOf(p.name))
		if err := hashSources(h, filepath.Join(s.Lab, p.dir)); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// hashSources adds the files below dir that end up in a binary, in a fixed
// order: no tests, no documents, no folder that is a module of its own.
func hashSources(h interface{ Write([]byte) (int, error) }, dir string) error {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path == dir {
				return nil
			}
			if name == "testdata" || strings.HasPrefix(name, ".") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".md") || !d.Type().IsRegular() {
			return nil
		}
		files = append(files, path)
		return nil
	})
	if err != nil {
		return err
	}
	sort.Strings(files)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, f)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %d %x\n", filepath.ToSlash(rel), len(b), sha256.Sum256(b))
	}
	return nil
}

var required = regexp.MustCompile(`^\s*(?:require\s+)?([a-z0-9.-]+\.[a-z]+/\S+)\s+(v\S+)`)

// moduleVersions reads the required versions of a go.mod; a missing file has none.
func moduleVersions(gomod string) (map[string]string, error) {
	b, err := os.ReadFile(gomod)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v := map[string]string{}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		if m := required.FindStringSubmatch(sc.Text()); m != nil {
			v[m[1]] = m[2]
		}
	}
	return v, nil
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// round shortens a duration for people.
func round(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
