package project

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// compileGlob understands * and ? within a path segment, ** across segments.
// A pattern that names a folder matches everything below it.
func compileGlob(pattern string) (*regexp.Regexp, error) {
	if err := checkGlob(pattern); err != nil {
		return nil, err
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

// checkGlob refuses what is no glob.
func checkGlob(pattern string) error {
	if len(pattern) > 256 {
		return fmt.Errorf("it has %d characters; at most 256 are allowed", len(pattern))
	}
	if strings.ContainsAny(pattern, "[]{}!") {
		return errors.New("[ ] { } ! have no meaning here")
	}
	return nil
}

// globs match what one of them matches; none match nothing. What matches a
// folder matches everything below it, so each folder is judged once; most
// patterns name a path or one segment anywhere (**/README*) and need no
// expression. Not for use by several goroutines.
type globs struct {
	paths   map[string]bool // from the root, as they are
	names   map[string]bool // segments as they are
	wild    []wildSegment   // segments with * or ?
	other   *regexp.Regexp  // everything else; nil for none
	folders map[string]bool // judged so far
	dir     string          // the last one of them: neighbours follow each other
	below   bool            // what was said of it
}

// wildSegment is a segment with * or ?, and a text that is in whatever matches.
type wildSegment struct{ pattern, text string }

// newGlobs leaves out what is no glob: that was reported when the file was
// parsed.
func newGlobs(patterns []string) *globs {
	g := &globs{paths: map[string]bool{}, names: map[string]bool{}, folders: map[string]bool{"": false}}
	var rest []string
	for _, p := range patterns {
		if checkGlob(p) != nil {
			continue
		}
		p = strings.TrimSuffix(strings.TrimPrefix(p, "./"), "/")
		segment, anywhere := strings.CutPrefix(p, "**/")
		switch {
		case !strings.ContainsAny(p, "*?"):
			g.paths[p] = true
		case !anywhere || segment == "" || strings.Contains(segment, "/") || strings.Contains(segment, "**"):
			if re, err := compileGlob(p); err == nil {
				rest = append(rest, re.String())
			}
		case strings.ContainsAny(segment, "*?"):
			text := ""
			for _, t := range strings.FieldsFunc(segment, func(c rune) bool { return c == '*' || c == '?' }) {
				if len(t) > len(text) {
					text = t
				}
			}
			g.wild = append(g.wild, wildSegment{segment, text})
		default:
			g.names[segment] = true
		}
	}
	if rest != nil {
		g.other = regexp.MustCompile(strings.Join(rest, "|"))
	}
	return g
}

func (g *globs) match(file string) bool {
	dir := file[:max(0, strings.LastIndexByte(file, '/'))]
	if dir != g.dir {
		below, known := g.folders[dir]
		if !known {
			below = g.match(dir)
			g.folders[dir] = below
		}
		g.dir, g.below = dir, below
	}
	return g.below || g.itself(file)
}

// itself reports whether a pattern matches the path, other than by a folder
// above it.
func (g *globs) itself(file string) bool {
	segment := file[strings.LastIndexByte(file, '/')+1:]
	if g.paths[file] || g.names[segment] {
		return true
	}
	for _, w := range g.wild {
		if strings.Contains(segment, w.text) && matchSegment(w.pattern, segment) {
			return true
		}
	}
	return g.other != nil && g.other.MatchString(file)
}

// matchSegment is a glob of * and ? within one segment. After a * it tries the
// shortest rest first and comes back only to the last *, so it takes time in
// the product of the two lengths at most.
func matchSegment(pattern, segment string) bool {
	p, s := 0, 0
	star, from := -1, 0 // the last *, and where what it stands for ends
	for s < len(segment) {
		_, size := utf8.DecodeRuneInString(segment[s:])
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, s
			p++
		case p < len(pattern) && pattern[p] == '?':
			p, s = p+1, s+size
		case p < len(pattern) && pattern[p] == segment[s]:
			p, s = p+1, s+1
		case star >= 0:
			_, size = utf8.DecodeRuneInString(segment[from:])
			from += size
			p, s = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
