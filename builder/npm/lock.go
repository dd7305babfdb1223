package npm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Lock is a package-lock.json of version 2 or 3 beside its package.json.
type Lock struct {
	version  int
	packages map[string]lockEntry
	manifest manifest
}

// lockEntry is what a lock file says about one place in the tree. Fields that
// npm computes again when it installs (dev, optional) are not read: whether a
// package is needed follows from package.json, as it does for npm ci.
type lockEntry struct {
	Name                 string
	Version              string
	Resolved             string
	Integrity            string
	Link                 bool
	InBundle             bool
	Dev                  bool
	HasInstallScript     bool
	Bin                  binField
	OS, CPU, Libc        stringList
	Dependencies         map[string]string
	OptionalDependencies map[string]string
	PeerDependencies     map[string]string
	DevDependencies      map[string]string
	PeerDependenciesMeta map[string]struct{ Optional bool }
}

type manifest struct {
	Dependencies         map[string]string
	OptionalDependencies map[string]string
	PeerDependencies     map[string]string
	DevDependencies      map[string]string
	PeerDependenciesMeta map[string]struct{ Optional bool }
	Overrides            map[string]json.RawMessage
	Workspaces           json.RawMessage
}

// stringList is a list that may be written as one string.
type stringList []string

func (l *stringList) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*l = stringList{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(l))
}

// binField is one program, named like its package, or several by name.
type binField struct {
	one  string
	many map[string]string
}

func (f *binField) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &f.one) == nil {
		return nil
	}
	var many map[string]json.RawMessage
	if json.Unmarshal(b, &many) != nil {
		return nil // npm ignores what it can't read here
	}
	f.many = map[string]string{}
	for k, v := range many {
		var s string
		if json.Unmarshal(v, &s) == nil {
			f.many[k] = s
		}
	}
	return nil
}

// Parse reads a lock file and its package.json. It fails with a [*LockError],
// or with a [*NeedsInstallerError] for forms that only npm reads.
func Parse(packageJSON, lock []byte) (*Lock, error) {
	l := &Lock{}
	if err := decode(packageJSON, &l.manifest); err != nil {
		return nil, &LockError{"package.json", err}
	}
	var raw struct {
		LockfileVersion int
		Packages        map[string]lockEntry
	}
	if err := decode(lock, &raw); err != nil {
		return nil, &LockError{"package-lock.json", err}
	}
	l.version, l.packages = raw.LockfileVersion, raw.Packages
	switch {
	case l.version == 0 && l.packages == nil:
		return nil, &LockError{"package-lock.json", errors.New("it holds neither lockfileVersion nor packages")}
	case l.version < 2:
		return nil, needs("package-lock.json", fmt.Sprintf("lockfileVersion %d is older than npm 7; %s writes the newer form", l.version, UpdateLock))
	case l.version > 3:
		return nil, needs("package-lock.json", fmt.Sprintf("lockfileVersion %d is newer than 3", l.version))
	case len(l.manifest.Workspaces) > 0 && string(l.manifest.Workspaces) != "null" && string(l.manifest.Workspaces) != "[]":
		return nil, needs("package.json", "it has workspaces")
	}
	for p, e := range l.packages {
		if err := checkEntry(p, e); err != nil {
			return nil, &LockError{"package-lock.json", fmt.Errorf("packages: %q: %w", p, err)}
		}
	}
	return l, nil
}

// decode reads JSON with npm's spelling of keys, and says where it breaks.
func decode(b []byte, v any) error {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	err := json.Unmarshal(b, v)
	var se *json.SyntaxError
	if errors.As(err, &se) {
		line := 1 + bytes.Count(b[:min(int(se.Offset), len(b))], []byte("\n"))
		hint := ""
		if bytes.Contains(b, []byte("<<<<<<< ")) {
			hint = " (it holds the marks of a merge conflict)"
		}
		return fmt.Errorf("line %d: %w%s", line, err, hint)
	}
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		field := te.Field
		if field != "" {
			field = strings.ToLower(field[:1]) + field[1:] // our name for it begins with a capital
		}
		return fmt.Errorf("%s has the wrong type: %s", field, te.Value)
	}
	return err
}

func needs(pkg, why string) *NeedsInstallerError {
	return &NeedsInstallerError{Reasons: []Reason{{pkg, why}}}
}

// checkEntry refuses places and names that could lead anywhere else than into
// node_modules, or into another address of the registry than a package's.
func checkEntry(p string, e lockEntry) error {
	if p == "" {
		return nil
	}
	if strings.ContainsAny(p, "\\\x00") || path.Clean(p) != p || path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") {
		return errors.New("not a place in the project")
	}
	if name, ok := placeName(p); ok && !validName(name) {
		return errors.New("not a package name")
	}
	if e.Name != "" && strings.HasPrefix(p, "node_modules/") && !validName(e.Name) {
		return fmt.Errorf("%q is not a package name", e.Name)
	}
	if e.Version != "" && strings.Trim(e.Version, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-+") != "" &&
		strings.HasPrefix(e.Integrity, "sha") {
		return fmt.Errorf("%q is not a version", e.Version)
	}
	return nil
}

// placeName is the package's name according to its place in the tree.
func placeName(p string) (string, bool) {
	i := strings.LastIndex("/"+p, "/node_modules/")
	if i < 0 {
		return "", false
	}
	return p[i+len("node_modules/"):], true
}

// validName is npm's rule with what old packages may have.
func validName(n string) bool {
	scope, base, scoped := strings.Cut(n, "/")
	if scoped {
		if len(scope) < 2 || scope[0] != '@' || !plain(scope[1:]) {
			return false
		}
		return plain(base)
	}
	return plain(n)
}

func plain(s string) bool {
	if s == "" || s[0] == '.' || s == "node_modules" || len(s) > 214 {
		return false
	}
	for _, r := range s {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.~!'()*", r)
		if !ok {
			return false
		}
	}
	return true
}

// find resolves a dependency the way node does: in the package's own
// node_modules, then in those above.
func (l *Lock) find(from, name string) (string, bool) {
	for {
		p := "node_modules/" + name
		if from != "" {
			p = from + "/" + p
		}
		if _, ok := l.packages[p]; ok {
			return p, true
		}
		if from == "" {
			return "", false
		}
		i := strings.LastIndex("/"+from, "/node_modules/")
		if i <= 0 {
			from = ""
			continue
		}
		from = from[:i-1]
	}
}

// edge is one dependency of a package.
type edge struct {
	name, spec string
	optional   bool // may be missing or not run here
	peer       bool
}

func edges(deps, optional, peers map[string]string, meta map[string]struct{ Optional bool }) []edge {
	var out []edge
	for n, s := range deps {
		if _, also := optional[n]; !also {
			out = append(out, edge{name: n, spec: s})
		}
	}
	for n, s := range optional {
		out = append(out, edge{name: n, spec: s, optional: true})
	}
	for n, s := range peers {
		if _, also := deps[n]; !also {
			out = append(out, edge{name: n, spec: s, peer: true, optional: meta[n].Optional})
		}
	}
	slices.SortFunc(out, func(a, b edge) int { return strings.Compare(a.name, b.name) })
	return out
}

func (l *Lock) rootEdges() []edge {
	m := l.manifest
	return edges(m.Dependencies, m.OptionalDependencies, m.PeerDependencies, m.PeerDependenciesMeta)
}

func (e lockEntry) edges() []edge {
	return edges(e.Dependencies, e.OptionalDependencies, e.PeerDependencies, e.PeerDependenciesMeta)
}

// Listed are the packages that the lock file names, without those for
// development alone; also those that only npm can install, and those of other
// platforms. Sorted by place.
func (l *Lock) Listed() []Package {
	var out []Package
	for place, e := range l.packages {
		name, ok := placeName(place)
		if !ok || e.Dev || e.Link || e.Version == "" {
			continue
		}
		if e.Name != "" {
			name = e.Name
		}
		out = append(out, Package{Place: place, Name: name, Version: e.Version, Integrity: e.Integrity})
	}
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.Place, b.Place) })
	return out
}
