package pip

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	version "github.com/aquasecurity/go-pep440-version"
)

// Requirement is one pinned line of a requirements.txt.
type Requirement struct {
	Name    string   // normalised: flask-login
	Version string   // as written
	Hashes  []string // sha256, lower-case hex, sorted
	Line    int
	marker  marker
	extras  []string
}

// ID names it for people.
func (r Requirement) ID() string { return r.Name + "==" + r.Version }

// File is a parsed requirements.txt.
type File struct {
	requirements []Requirement
	foreign      []string // why pip is needed, line by line
	local        []string // of them, what other files of the repository decide
}

var (
	separators  = regexp.MustCompile(`[-_.]+`)
	comment     = regexp.MustCompile(`(^|\s)#.*$`)
	pinned      = regexp.MustCompile(`^([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(\[[^\]]*\])?\s*={2,3}\s*([A-Za-z0-9][A-Za-z0-9.!+_-]*)$`)
	nameOnly    = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?`)
	hashOption  = regexp.MustCompile(`\s--hash[= ]([A-Za-z0-9]+):([0-9A-Fa-f]+)`)
	sha256Value = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// files are the options that name other files of the repository.
var files = map[string]bool{"-r": true, "--requirement": true, "-c": true, "--constraint": true, "-f": true, "--find-links": true}

// normalize is PEP 503's form of a name.
func normalize(name string) string {
	return strings.ToLower(separators.ReplaceAllString(name, "-"))
}

// Parse reads a requirements.txt. Lines that only pip understands are kept for
// [File.Plan]; what nobody could understand is a [*LockError].
func Parse(data []byte) (*File, error) {
	f := &File{}
	var bad []string
	no := func(line int, format string, args ...any) {
		bad = append(bad, fmt.Sprintf("line %d: ", line)+fmt.Sprintf(format, args...))
	}
	foreign := func(line int, format string, args ...any) {
		f.foreign = append(f.foreign, fmt.Sprintf("line %d: ", line)+fmt.Sprintf(format, args...))
	}
	local := func(line int, format string, args ...any) {
		foreign(line, format, args...)
		f.local = append(f.local, f.foreign[len(f.foreign)-1])
	}
	text := strings.TrimPrefix(strings.ReplaceAll(string(data), "\r\n", "\n"), "\ufeff")
	lines := strings.Split(text, "\n")
	for n := 0; n < len(lines); n++ {
		at, line := n+1, lines[n]
		for strings.HasSuffix(line, "\\") && n+1 < len(lines) {
			n++
			line = strings.TrimSuffix(line, "\\") + " " + comment.ReplaceAllString(lines[n], "")
		}
		line = strings.TrimSpace(comment.ReplaceAllString(line, ""))
		switch {
		case line == "":
			continue
		case strings.HasPrefix(line, "--require-hashes"), strings.HasPrefix(line, "--only-binary"), strings.HasPrefix(line, "--prefer-binary"):
			continue // what this package does
		case strings.HasPrefix(line, "-e"), strings.HasPrefix(line, "--editable"):
			local(at, "an editable install")
			continue
		case strings.HasPrefix(line, "-"):
			// Addresses of indexes may hold credentials: only the option is told.
			option, _, _ := strings.Cut(strings.Fields(line)[0], "=")
			if files[option] || !strings.HasPrefix(option, "--") && files[option[:2]] {
				local(at, "the option %s", option)
			} else {
				foreign(at, "the option %s", option)
			}
			continue
		}
		r := Requirement{Line: at}
		for _, m := range hashOption.FindAllStringSubmatch(line, -1) {
			sum := strings.ToLower(m[2])
			switch {
			case m[1] != "sha256":
				foreign(at, "a hash of kind %s", m[1])
			case !sha256Value.MatchString(sum):
				no(at, "%q is not a SHA-256 sum", m[2])
			default:
				r.Hashes = append(r.Hashes, sum)
			}
		}
		line = strings.TrimSpace(hashOption.ReplaceAllString(line, ""))
		spec, condition, conditional := strings.Cut(line, ";")
		spec = strings.TrimSpace(spec)
		if conditional {
			var err error
			if r.marker, err = parseMarker(condition); err != nil {
				no(at, "%v", err)
				continue
			}
		}
		m := pinned.FindStringSubmatch(spec)
		switch {
		case strings.HasPrefix(spec, ".") || strings.HasPrefix(spec, "/") || strings.Contains(spec, "file:"):
			local(at, "%s comes from a folder", nameOnly.FindString(spec))
			continue
		case strings.Contains(spec, "@") || strings.Contains(spec, "://"):
			foreign(at, "%s comes from an address", nameOnly.FindString(spec))
			continue
		case m == nil && nameOnly.FindString(spec) != "":
			foreign(at, "%s is not pinned with ==", nameOnly.FindString(spec))
			continue
		case m == nil || strings.Contains(spec, "*"):
			no(at, "%q is not a requirement", spec)
			continue
		}
		r.Name, r.Version = normalize(m[1]), m[3]
		if _, err := version.Parse(r.Version); err != nil {
			no(at, "%s: %q is not a version", r.Name, r.Version)
			continue
		}
		for _, e := range strings.Split(strings.Trim(m[2], "[] "), ",") {
			if e = strings.TrimSpace(e); e != "" {
				r.extras = append(r.extras, normalize(e))
			}
		}
		if len(r.Hashes) == 0 {
			foreign(at, "%s has no hash", r.ID())
			continue
		}
		slices.Sort(r.Hashes)
		r.Hashes = slices.Compact(r.Hashes)
		f.requirements = append(f.requirements, r)
	}
	if len(bad) > 0 {
		return nil, &LockError{bad}
	}
	return f, nil
}

// Plan is what is installed on a platform: each package once, by name.
type Plan struct {
	Packages []Requirement
	platform Platform
}

// Plan chooses the lines that hold on p. A [*NeedsInstallerError] names every
// line that only pip understands.
func (f *File) Plan(p Platform) (Plan, error) {
	if len(f.foreign) > 0 {
		return Plan{}, &NeedsInstallerError{f.foreign, f.local}
	}
	plan := Plan{platform: p}
	at := map[string]int{}
	var twice []string
	for _, r := range f.requirements {
		if !p.holds(r.marker, nil).maybe {
			continue
		}
		i, ok := at[r.Name]
		if !ok {
			at[r.Name] = len(plan.Packages)
			plan.Packages = append(plan.Packages, r)
			continue
		}
		have := &plan.Packages[i]
		if have.Version != r.Version {
			twice = append(twice, fmt.Sprintf("lines %d and %d pin %s to %s and %s", have.Line, r.Line, r.Name, have.Version, r.Version))
		}
		have.Hashes = append(have.Hashes, r.Hashes...)
		have.extras = append(have.extras, r.extras...)
	}
	if len(twice) > 0 {
		return Plan{}, &LockError{twice}
	}
	slices.SortFunc(plan.Packages, func(a, b Requirement) int { return strings.Compare(a.Name, b.Name) })
	return plan, nil
}

// Empty reports whether nothing is installed.
func (p Plan) Empty() bool { return len(p.Packages) == 0 }

// Parts are everything that decides the layer, for a key.
func (p Plan) Parts() []string {
	parts := []string{fmt.Sprintf("cp3%d glibc2.%d %s", p.platform.Minor, p.platform.Glibc, p.platform.Arch)}
	for _, r := range p.Packages {
		parts = append(parts, r.Name, r.Version, strings.Join(r.extras, ","), strings.Join(r.Hashes, ","))
	}
	return parts
}
