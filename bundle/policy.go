package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Policy is policy.yml: what the platform allows, and what it presets.
//
//	version: 1
//	tiers:
//	  standard:
//	    defaults: {memory: 256Mi, cpu: 250m, maxScale: 20, timeout: 60s}
//	    limits:   {memory: 4Gi, cpu: "4", maxScale: 100, timeout: 10m}
//	  core: {limits: {minScale: 2}, refuseStale: true}
//	services:   {order-bff: [fe/order]}
//	namespaces: {order: ["fe/**", "4711"]}
//	hosts:
//	  - {host: api.example.internal, basePath: /bff/order, owners: [fe/order]}
//	bases:    ["registry.example.internal/base/*"]
//	unpinned: ["registry.example.internal/base/debian"]
//
// An owner is a project's id in digits, a project's path, a pattern
// (path.Match), or "group/**". Tables of names reserve: a service or namespace
// that is not listed is free. Hosts are the opposite: one that is not listed
// is nobody's.
type Policy struct {
	Version    int                 `yaml:"version"` // 1
	Tiers      map[string]Tier     `yaml:"tiers,omitempty"`
	Services   map[string][]string `yaml:"services,omitempty"`
	Namespaces map[string][]string `yaml:"namespaces,omitempty"`
	Hosts      []Host              `yaml:"hosts,omitempty"`
	// Bases are patterns (path.Match, on the reference without tag and digest)
	// that build.base and a Dockerfile's FROM may name beside the bundle's own.
	Bases []string `yaml:"bases,omitempty"`
	// Unpinned are patterns like Bases: those that a Dockerfile may name by a
	// tag. All others need a digest, because an image that is planned anew from
	// equal inputs is not built again, whatever the tag points to by then.
	Unpinned []string `yaml:"unpinned,omitempty"`
}

// Tier presets and bounds the projects of one tier.
type Tier struct {
	Defaults Settings `yaml:"defaults,omitempty"`
	// Limits are upper bounds; MinScale is a lower one.
	Limits Settings `yaml:"limits,omitempty"`
	// RefuseStale: don't deploy while the channel document is expired.
	RefuseStale bool `yaml:"refuseStale,omitempty"`
}

// Settings are a unit's numbers. Zero and empty mean: not said.
type Settings struct {
	Memory      string   `yaml:"memory,omitempty"` // Kubernetes quantity
	CPU         string   `yaml:"cpu,omitempty"`
	Concurrency int      `yaml:"concurrency,omitempty"`
	MinScale    int      `yaml:"minScale,omitempty"`
	MaxScale    int      `yaml:"maxScale,omitempty"`
	Timeout     Duration `yaml:"timeout,omitempty"`
	InitTimeout Duration `yaml:"initTimeout,omitempty"`
}

// Host reserves a host, or the part of it below BasePath.
type Host struct {
	Host     string   `yaml:"host"`
	BasePath string   `yaml:"basePath,omitempty"`
	Owners   []string `yaml:"owners"`
}

var quantity = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$`)

// ParsePolicy reads policy.yml strictly. Its error is a [ContentError] with
// every problem.
func ParsePolicy(data []byte) (Policy, error) {
	var p Policy
	d := decodeYAML("policy.yml", data, &p)
	if len(d.problems) > 0 {
		return Policy{}, d.err()
	}
	if p.Version != 1 {
		d.badf([]string{"version"}, "%d is not a version this runner reads; use 1", p.Version)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Tiers)) {
		if !slices.Contains(tierOrder, name) {
			d.badf([]string{"tiers", name}, "not a tier; the tiers are: %s", strings.Join(tierOrder, ", "))
		}
		p.Tiers[name].Defaults.check(d, "tiers", name, "defaults")
		p.Tiers[name].Limits.check(d, "tiers", name, "limits")
	}
	owners := func(list []string, at ...string) {
		if len(list) == 0 {
			d.badf(at, "names no owner")
		}
		for i, o := range list {
			if !okOwner(o) {
				d.badf(append(slices.Clone(at), strconv.Itoa(i)), "%q is not a project id, a path or a pattern", o)
			}
		}
	}
	for table, names := range map[string]map[string][]string{"services": p.Services, "namespaces": p.Namespaces} {
		for _, name := range slices.Sorted(maps.Keys(names)) {
			if !isDNSLabel(name) {
				d.badf([]string{table, name}, "not a DNS label")
			}
			owners(names[name], table, name)
		}
	}
	seen := map[string]bool{}
	for i, h := range p.Hosts {
		at := func(key string) []string { return []string{"hosts", strconv.Itoa(i), key} }
		if !isDNSName(h.Host) {
			d.badf(at("host"), "%q is not a host name", h.Host)
		}
		if h.BasePath != "" && (!strings.HasPrefix(h.BasePath, "/") || path.Clean(h.BasePath) != h.BasePath) {
			d.badf(at("basePath"), "%q is not a clean absolute path", h.BasePath)
		}
		key := h.Host + " " + strings.TrimSuffix(h.BasePath, "/")
		if seen[key] {
			d.badf(at("host"), "this host and basePath are listed twice")
		}
		seen[key] = true
		owners(h.Owners, "hosts", strconv.Itoa(i), "owners")
	}
	for key, list := range map[string][]string{"bases": p.Bases, "unpinned": p.Unpinned} {
		for i, b := range list {
			if _, err := path.Match(b, ""); err != nil || b == "" || strings.Contains(b, "@") {
				d.badf([]string{key, strconv.Itoa(i)}, "%q is not a pattern of a repository", b)
			}
		}
	}
	if err := d.err(); err != nil {
		return Policy{}, err
	}
	return p, nil
}

func (s Settings) check(d *yamlDoc, at ...string) {
	key := func(k string) []string { return append(slices.Clone(at), k) }
	if s.Memory != "" && !quantity.MatchString(s.Memory) {
		d.badf(key("memory"), "%q is not a quantity, such as 256Mi", s.Memory)
	}
	if s.CPU != "" && !quantity.MatchString(s.CPU) {
		d.badf(key("cpu"), "%q is not a quantity, such as 250m", s.CPU)
	}
	for k, v := range map[string]int{"concurrency": s.Concurrency, "minScale": s.MinScale, "maxScale": s.MaxScale} {
		if v < 0 {
			d.badf(key(k), "%d is negative", v)
		}
	}
	if s.MaxScale > 0 && s.MinScale > s.MaxScale {
		d.badf(key("minScale"), "%d is more than maxScale, %d", s.MinScale, s.MaxScale)
	}
}

func okOwner(o string) bool {
	if o == "" || strings.HasPrefix(o, "/") {
		return false
	}
	_, err := path.Match(strings.TrimSuffix(o, "/**"), "")
	return err == nil
}

// Project is whom a policy is asked about.
type Project struct {
	ID   int64  // CI_PROJECT_ID
	Path string // CI_PROJECT_PATH
}

func (p Project) among(owners []string) bool {
	return slices.ContainsFunc(owners, func(o string) bool {
		if id, err := strconv.ParseInt(o, 10, 64); err == nil {
			return id == p.ID
		}
		return matchPath(o, p.Path)
	})
}

// MayUseService says whether p may deploy a service of this name.
func (y Policy) MayUseService(p Project, service string) bool {
	owners, reserved := y.Services[service]
	return !reserved || p.among(owners)
}

// MayUseNamespace says whether p may deploy into a namespace.
func (y Policy) MayUseNamespace(p Project, namespace string) bool {
	owners, reserved := y.Namespaces[namespace]
	return !reserved || p.among(owners)
}

// MayUseHost says whether p may answer at a host below a path. The longest
// entry that covers the path decides.
func (y Policy) MayUseHost(p Project, host, basePath string) bool {
	best, ok := -1, false
	want := strings.TrimSuffix(path.Clean("/"+basePath), "/") + "/"
	for _, h := range y.Hosts {
		base := strings.TrimSuffix(h.BasePath, "/") + "/"
		if strings.EqualFold(h.Host, host) && strings.HasPrefix(want, base) && len(base) > best {
			best, ok = len(base), p.among(h.Owners)
		}
	}
	return ok
}

// MayUseBase says whether an image may be built on ref.
func (y Policy) MayUseBase(ref string) bool { return matchesImage(y.Bases, ref) }

// MayFloat says whether ref may be named without a digest.
func (y Policy) MayFloat(ref string) bool { return matchesImage(y.Unpinned, ref) }

func matchesImage(patterns []string, ref string) bool {
	repo, _, _ := strings.Cut(ref, "@")
	if i := strings.LastIndex(repo, ":"); i > strings.LastIndex(repo, "/") {
		repo = repo[:i]
	}
	return slices.ContainsFunc(patterns, func(b string) bool { return matchPath(b, repo) })
}

// Tier is the presets and bounds of a tier; zero when the policy has none.
func (y Policy) Tier(name string) Tier { return y.Tiers[name] }

// Policy reads the bundle's policy.yml. Without that file nothing is reserved
// or bounded, and no host or foreign base is allowed.
func (b *Bundle) Policy() (Policy, error) {
	raw, err := fs.ReadFile(b.FS, "policy.yml")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Policy{Version: 1}, nil
	case err != nil:
		return Policy{}, fmt.Errorf("bundle: policy.yml: %w", err)
	}
	return ParsePolicy(raw)
}
