package project

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// compileGlob understands * and ? within a path segment, ** across segments.
// A pattern that names a folder matches everything below it.
func compileGlob(pattern string) (*regexp.Regexp, error) {
	if len(pattern) > 256 {
		return nil, fmt.Errorf("it has %d characters; at most 256 are allowed", len(pattern))
	}
	if strings.ContainsAny(pattern, "[]{}!") {
		return nil, fmt.Errorf("[ ] { } ! have no meaning here")
	}
	pattern = strings.TrimSuffix(strings.TrimPrefix(pattern, "./"), "/")
	var b strings.Builder
	b.WriteString("(?s)^") // a file name may hold a line break
	for i := 0; i < len(pattern); {
		switch rest := pattern[i:]; {
		case strings.HasPrefix(rest, "**/"):
			b.WriteString("(?:.*/)?")
			i += 3
		case strings.HasPrefix(rest, "**"):
			b.WriteString(".*")
			i += 2
		case rest[0] == '*':
			b.WriteString("[^/]*")
			i++
		case rest[0] == '?':
			b.WriteString("[^/]")
			i++
		default:
			n := strings.IndexAny(rest, "*?")
			if n < 0 {
				n = len(rest)
			}
			b.WriteString(regexp.QuoteMeta(rest[:n]))
			i += n
		}
	}
	b.WriteString("(?:/.*)?$")
	return regexp.Compile(b.String())
}

// globs match what one of them matches; none match nothing. Most name one
// segment anywhere (**/README*): those are looked at segment by segment, which
// takes a hundredth of the time of one expression for all.
type globs struct {
	names map[string]bool // segments as they are
	wild  []string        // segments with * or ?
	other *regexp.Regexp  // everything else; nil for none
}

// newGlobs leaves out what is no glob: that was reported when the file was
// parsed.
func newGlobs(patterns []string) globs {
	g := globs{names: map[string]bool{}}
	var rest []string
	for _, p := range patterns {
		re, err := compileGlob(p)
		if err != nil {
			continue
		}
		segment, anywhere := strings.CutPrefix(strings.TrimSuffix(strings.TrimPrefix(p, "./"), "/"), "**/")
		switch {
		case !anywhere || segment == "" || strings.ContainsAny(segment, "/\\") || strings.Contains(segment, "**"):
			rest = append(rest, re.String())
		case strings.ContainsAny(segment, "*?"):
			g.wild = append(g.wild, segment)
		default:
			g.names[segment] = true
		}
	}
	if rest != nil {
		g.other = regexp.MustCompile(strings.Join(rest, "|"))
	}
	return g
}

func (g globs) match(file string) bool {
	for rest, more := file, true; more && len(g.names)+len(g.wild) > 0; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if g.names[segment] {
			return true
		}
		for _, w := range g.wild {
			if ok, _ := path.Match(w, segment); ok {
				return true
			}
		}
	}
	return g.other != nil && g.other.MatchString(file)
}
