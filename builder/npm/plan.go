package npm

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// Platform is what packages are chosen for, in node's words.
type Platform struct {
	OS   string // linux
	CPU  string // x64, arm64
	Libc string // glibc, musl
}

// LinuxX64 is the platform of images for most servers.
var LinuxX64 = Platform{OS: "linux", CPU: "x64", Libc: "glibc"}

func (p Platform) String() string { return p.OS + " " + p.CPU + " " + p.Libc }

// Package is one archive to unpack at a place in the tree.
type Package struct {
	Place     string // node_modules/a/node_modules/@s/b
	Name      string // as the registry knows it
	Version   string
	Integrity string
}

// ID is name@version.
func (p Package) ID() string { return p.Name + "@" + p.Version }

// Plan is what to install: pure data, the same for the same two files and
// platform.
type Plan struct {
	Packages []Package // sorted by place
	// bins maps the place of a link in a .bin folder to the file it starts.
	bins map[string]string
}

// Empty tells that there is nothing to install.
func (p Plan) Empty() bool { return len(p.Packages) == 0 }

// Plan finds what npm ci --omit=dev would install on the platform. It fails
// with [*OutOfStepError], [*UnsupportedError] or [*NeedsInstallerError], each
// naming all there is to name.
func (l *Lock) Plan(on Platform) (Plan, error) {
	if problems := l.outOfStep(); len(problems) > 0 {
		return Plan{}, &OutOfStepError{Problems: problems, Fix: UpdateLock}
	}
	w := walk{l: l, on: on, failed: map[string]bool{}}
	if err := w.run(); err != nil {
		return Plan{}, err
	}
	if len(w.missing) > 0 {
		return Plan{}, &OutOfStepError{Problems: w.missing, Fix: UpdateLock}
	}
	if len(w.foreign) > 0 {
		return Plan{}, &OutOfStepError{Problems: w.foreign, Fix: RecreateLock}
	}
	urls := l.addresses()
	var reasons []Reason
	plan := Plan{bins: map[string]string{}}
	places := make([]string, 0, len(w.reached))
	for p := range w.reached {
		places = append(places, p)
	}
	slices.Sort(places)
	for _, p := range places {
		e := l.packages[p]
		name, _ := placeName(p)
		if e.Name != "" {
			name = e.Name
		}
		if why := needsInstaller(p, e, urls); why != "" {
			reasons = append(reasons, Reason{strings.TrimSuffix(name+"@"+e.Version, "@"), why})
			continue
		}
		if !bundled(p, e) {
			plan.Packages = append(plan.Packages, Package{Place: p, Name: name, Version: e.Version, Integrity: e.Integrity})
		}
		dir := p[:len(p)-len(mustPlaceName(p))] + ".bin/"
		for bin, file := range e.Bin.files(name) {
			// The first one wins, as it does for npm.
			if _, taken := plan.bins[dir+bin]; !taken {
				plan.bins[dir+bin] = path.Join(p, file)
			}
		}
	}
	if len(reasons) > 0 {
		return Plan{}, &NeedsInstallerError{Reasons: reasons}
	}
	return plan, nil
}

func mustPlaceName(p string) string { n, _ := placeName(p); return n }

// bundled packages arrive inside the archive of the package that holds them.
func bundled(place string, e lockEntry) bool {
	return e.InBundle && strings.Contains(place, "/node_modules/")
}

// needsInstaller says why npm has to install an entry, or nothing.
func needsInstaller(place string, e lockEntry, urls map[string]bool) string {
	scheme, _, _ := strings.Cut(e.Resolved, ":")
	switch {
	case !strings.HasPrefix(place, "node_modules/"):
		return "it is a workspace or a folder of the project"
	case e.Link:
		return "it is a link"
	case e.HasInstallScript:
		return "it has an install script"
	case bundled(place, e):
		return ""
	case strings.HasPrefix(scheme, "git") || scheme == "ssh":
		return "it comes from a git repository"
	case scheme == "file":
		return "it is a file of the project"
	case urls[address(e.Resolved)]:
		return "it comes from a web address, not from a package registry"
	case e.Version == "":
		return "the lock file has no version of it"
	case !strongIntegrity(e.Integrity):
		return "the lock file has no integrity value for it"
	}
	return ""
}

// addresses are the web addresses that package.json or a package names
// instead of a version.
func (l *Lock) addresses() map[string]bool {
	urls := map[string]bool{}
	add := func(specs map[string]string) {
		for _, s := range specs {
			if strings.HasPrefix(s, "http:") || strings.HasPrefix(s, "https:") {
				urls[address(s)] = true
			}
		}
	}
	add(l.manifest.Dependencies)
	add(l.manifest.OptionalDependencies)
	add(l.manifest.PeerDependencies)
	for _, e := range l.packages {
		add(e.Dependencies)
		add(e.OptionalDependencies)
		add(e.PeerDependencies)
	}
	return urls
}

// address is a web address without its fragment.
func address(s string) string { s, _, _ = strings.Cut(s, "#"); return s }

// walk finds the packages that package.json reaches without development
// dependencies, leaving out optional ones that don't run on the platform.
type walk struct {
	l       *Lock
	on      Platform
	failed  map[string]bool
	reached map[string][]dependent
	missing []string
	foreign []string
}

// dependent is a package that needs another, and whether it can do without.
type dependent struct {
	place    string
	optional bool
}

func (w *walk) run() error {
	for {
		w.reached, w.missing, w.foreign = map[string][]dependent{}, nil, nil
		w.visit("", w.l.rootEdges())
		again := false
		for p := range w.reached {
			e := w.l.packages[p]
			if e.Link || w.on.runs(e) {
				continue
			}
			if err := w.fail(p, p); err != nil {
				return err
			}
			again = true
		}
		if !again {
			slices.Sort(w.missing)
			slices.Sort(w.foreign)
			w.missing, w.foreign = slices.Compact(w.missing), slices.Compact(w.foreign)
			return nil
		}
	}
}

// fail takes out a package that does not run here, and with it every package
// that can't do without it. Only an optional one may be taken out.
func (w *walk) fail(place, because string) error {
	if w.failed[place] {
		return nil
	}
	w.failed[place] = true
	for _, d := range w.reached[place] {
		if d.optional {
			continue
		}
		if d.place == "" {
			e := w.l.packages[because]
			return &UnsupportedError{Package: mustPlaceName(because) + "@" + e.Version, Wants: e.wants(), Platform: w.on.String()}
		}
		if err := w.fail(d.place, because); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) visit(from string, deps []edge) {
	for _, d := range deps {
		to, ok := w.l.find(from, d.name)
		if !ok {
			w.absent(from, d)
			continue
		}
		if w.failed[to] {
			continue
		}
		_, seen := w.reached[to]
		w.reached[to] = append(w.reached[to], dependent{from, d.optional})
		if !seen {
			w.visit(to, w.l.packages[to].edges())
		}
	}
}

// absent judges a dependency that the lock file does not have. A peer may be
// left out on purpose. An optional one that is made for our platform was lost
// when the lock file was written on another.
func (w *walk) absent(from string, d edge) {
	by := "package.json"
	if from != "" {
		by = mustPlaceName(from) + "@" + w.l.packages[from].Version
	}
	switch {
	case d.peer:
	case d.optional && w.on.named(d.name):
		w.foreign = append(w.foreign, fmt.Sprintf("%s: %s wants it on this platform, and the lock file was written without it", d.name, by))
	case !d.optional:
		w.missing = append(w.missing, fmt.Sprintf("%s: %s wants %s, the lock file has none", d.name, by, orAny(d.spec)))
	}
}

func orAny(spec string) string {
	if spec == "" {
		return "any version"
	}
	return spec
}

// named tells whether a package's name says that it is made for p.
func (p Platform) named(name string) bool {
	words := strings.FieldsFunc(name, func(r rune) bool { return r == '-' || r == '/' || r == '_' || r == '.' })
	if !slices.Contains(words, p.OS) || !slices.Contains(words, p.CPU) {
		return false
	}
	musl := slices.Contains(words, "musl")
	glibc := slices.Contains(words, "gnu") || slices.Contains(words, "glibc")
	return p.Libc == "musl" && !glibc || p.Libc != "musl" && !musl
}

func (p Platform) runs(e lockEntry) bool {
	return allows(e.OS, p.OS) && allows(e.CPU, p.CPU) && allows(e.Libc, p.Libc)
}

func (e lockEntry) wants() string {
	var out []string
	for _, l := range []stringList{e.OS, e.CPU, e.Libc} {
		if len(l) > 0 {
			out = append(out, strings.Join(l, " or "))
		}
	}
	return strings.Join(out, ", ")
}

// allows is npm's rule: none of the negated values, and one of the others if
// there are any.
func allows(list stringList, v string) bool {
	if len(list) == 0 || len(list) == 1 && list[0] == "any" {
		return true
	}
	negated, match := 0, false
	for _, l := range list {
		if n, ok := strings.CutPrefix(l, "!"); ok {
			negated++
			if n == v {
				return false
			}
		} else if l == v {
			match = true
		}
	}
	return match || negated == len(list)
}

// outOfStep compares package.json with the lock file, development
// dependencies included, as npm ci does.
func (l *Lock) outOfStep() []string {
	var out []string
	root := l.packages[""]
	m := l.manifest
	all := append(edges(m.Dependencies, m.OptionalDependencies, nil, nil), edges(m.DevDependencies, nil, nil, nil)...)
	for _, d := range all {
		e, ok := l.packages["node_modules/"+d.name]
		switch {
		case !ok && d.optional:
			// Judged with the platform in mind, by walk.
		case !ok:
			out = append(out, fmt.Sprintf("%s: package.json wants %s, the lock file has none", d.name, orAny(d.spec)))
		case d.spec == root.spec(d.name), m.Overrides[d.name] != nil:
		case !satisfies(d, e):
			have := e.Version
			if have == "" {
				have = e.Resolved
			}
			out = append(out, fmt.Sprintf("%s: package.json wants %s, the lock file has %s", d.name, orAny(d.spec), have))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// spec is what the lock file believes package.json to want.
func (e lockEntry) spec(name string) string {
	for _, deps := range []map[string]string{e.OptionalDependencies, e.Dependencies, e.DevDependencies} {
		if s, ok := deps[name]; ok {
			return s
		}
	}
	return "\x00" // equal to no spec
}

// satisfies tells whether the locked package is what an edited spec wants.
func satisfies(d edge, e lockEntry) bool {
	name, spec := d.name, strings.TrimSpace(d.spec)
	if alias, ok := strings.CutPrefix(spec, "npm:"); ok {
		name, spec = alias, ""
		if i := strings.LastIndex(alias, "@"); i > 0 {
			name, spec = alias[:i], alias[i+1:]
		}
		if e.Name != name && (e.Name != "" || d.name != name) {
			return false
		}
	} else if e.Name != "" && e.Name != name {
		return false
	}
	r, ok := parseRange(spec)
	if !ok {
		// A tag is satisfied by what it pointed to; an address is not.
		return plain(spec) && e.Integrity != ""
	}
	v, ok := parseVersion(e.Version)
	return ok && r.holds(v)
}

// files are the programs of a package by the name of their link. Names and
// files are cut to something inside .bin and inside the package.
func (f binField) files(pkg string) map[string]string {
	many := f.many
	if f.one != "" {
		many = map[string]string{pkg: f.one}
	}
	out := map[string]string{}
	for name, file := range many {
		name = path.Base(path.Clean("/" + strings.NewReplacer("\\", "/", ":", "/").Replace(name)))
		file = strings.TrimPrefix(path.Clean("/"+strings.ReplaceAll(file, "\\", "/")), "/")
		if name != "/" && name != "." && file != "" && !strings.ContainsRune(name+file, 0) {
			out[name] = file
		}
	}
	return out
}

// Parts is everything that decides the plan's content, for a key: equal parts,
// equal layers.
func (p Plan) Parts() []string {
	var out []string
	for _, k := range p.Packages {
		out = append(out, k.Place, k.Name, k.Version, k.Integrity)
	}
	for _, place := range slices.Sorted(maps.Keys(p.bins)) {
		out = append(out, place, p.bins[place])
	}
	return out
}
