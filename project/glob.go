package project

import (
	"fmt"
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
	b.WriteString("^")
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
