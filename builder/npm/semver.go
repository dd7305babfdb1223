package npm

import (
	"cmp"
	"strconv"
	"strings"
)

// version is a semantic version; build metadata does not count and is dropped.
type version struct {
	n   [3]uint64
	pre []string
}

func parseVersion(s string) (version, bool) {
	p, ok := parsePartial(strings.TrimLeft(strings.TrimSpace(s), "=v"))
	return version{p.n, p.pre}, ok && p.given == 3
}

func (v version) compare(w version) int {
	for i := range v.n {
		if c := cmp.Compare(v.n[i], w.n[i]); c != 0 {
			return c
		}
	}
	switch {
	case len(v.pre) == 0 && len(w.pre) == 0:
		return 0
	case len(v.pre) == 0:
		return 1
	case len(w.pre) == 0:
		return -1
	}
	for i := 0; i < len(v.pre) && i < len(w.pre); i++ {
		if c := comparePre(v.pre[i], w.pre[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(v.pre), len(w.pre))
}

func comparePre(a, b string) int {
	x, errA := strconv.ParseUint(a, 10, 64)
	y, errB := strconv.ParseUint(b, 10, 64)
	switch {
	case errA == nil && errB == nil:
		return cmp.Compare(x, y)
	case errA == nil:
		return -1
	case errB == nil:
		return 1
	}
	return strings.Compare(a, b)
}

// partial is a version of which the last numbers may be missing or x.
type partial struct {
	n     [3]uint64
	given int // how many numbers there are
	pre   []string
}

func parsePartial(s string) (partial, bool) {
	var p partial
	s, _, _ = strings.Cut(s, "+")
	s, pre, hasPre := strings.Cut(s, "-")
	if s == "" {
		return p, !hasPre
	}
	parts := strings.Split(s, ".")
	if len(parts) > 3 {
		return p, false
	}
	open := false
	for i, part := range parts {
		if part == "x" || part == "X" || part == "*" {
			open = true
			continue
		}
		n, err := strconv.ParseUint(part, 10, 53)
		if err != nil || part[0] == '+' {
			return p, false
		}
		if !open {
			p.n[i], p.given = n, i+1
		}
	}
	if hasPre && p.given == 3 {
		p.pre = strings.Split(pre, ".")
		for _, x := range p.pre {
			if x == "" || strings.Trim(x, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" {
				return p, false
			}
		}
	}
	return p, true
}

// comparator is an operator (<, <=, >, >=, =) and a version.
type comparator struct {
	op string
	v  version
}

func (c comparator) holds(v version) bool {
	d := v.compare(c.v)
	switch c.op {
	case "<":
		return d < 0
	case "<=":
		return d <= 0
	case ">":
		return d > 0
	case ">=":
		return d >= 0
	}
	return d == 0
}

// versionRange is npm's range: any of several sets, each of which holds when
// all its comparators do.
type versionRange [][]comparator

// parseRange reads an npm version range; false means that s is something else:
// a tag, an address.
func parseRange(s string) (versionRange, bool) {
	var r versionRange
	for _, alt := range strings.Split(s, "||") {
		set, ok := parseSet(strings.TrimSpace(alt))
		if !ok {
			return nil, false
		}
		r = append(r, set)
	}
	return r, true
}

func parseSet(s string) ([]comparator, bool) {
	if from, to, ok := strings.Cut(s, " - "); ok {
		a, okA := parsePartial(strings.TrimLeft(strings.TrimSpace(from), "=v"))
		b, okB := parsePartial(strings.TrimLeft(strings.TrimSpace(to), "=v"))
		return append(atLeast(a), atMost(b)...), okA && okB
	}
	var out []comparator
	fields := strings.Fields(s)
	for i := 0; i < len(fields); i++ {
		op, rest := cutOperator(fields[i])
		if rest == "" && op != "" && i+1 < len(fields) { // "^ 1.2.3"
			i++
			rest = fields[i]
		}
		p, ok := parsePartial(strings.TrimLeft(rest, "=v"))
		if !ok {
			return nil, false
		}
		out = append(out, desugar(op, p)...)
	}
	return out, true
}

func cutOperator(s string) (op, rest string) {
	for _, o := range []string{"~>", ">=", "<=", ">", "<", "^", "~", "="} {
		if rest, ok := strings.CutPrefix(s, o); ok {
			if o == "~>" {
				o = "~"
			}
			return o, rest
		}
	}
	return "", s
}

// below is the comparator "less than n and than every pre-release of n".
func below(n [3]uint64) comparator { return comparator{"<", version{n, []string{"0"}}} }

// next is the first version after all that begin with the first i+1 numbers.
func next(n [3]uint64, i int) [3]uint64 {
	var out [3]uint64
	copy(out[:], n[:i+1])
	out[i]++
	return out
}

func atLeast(p partial) []comparator {
	if p.given == 0 {
		return nil
	}
	return []comparator{{">=", version{p.n, p.pre}}}
}

func atMost(p partial) []comparator {
	switch p.given {
	case 0:
		return nil
	case 3:
		return []comparator{{"<=", version{p.n, p.pre}}}
	}
	return []comparator{below(next(p.n, p.given-1))}
}

func desugar(op string, p partial) []comparator {
	v := version{p.n, p.pre}
	nothing := []comparator{below([3]uint64{})}
	switch op {
	case "^":
		if p.given == 0 {
			return nil
		}
		i := 0
		for i < p.given-1 && p.n[i] == 0 {
			i++
		}
		return []comparator{{">=", v}, below(next(p.n, i))}
	case "~":
		if p.given == 0 {
			return nil
		}
		return []comparator{{">=", v}, below(next(p.n, min(1, p.given-1)))}
	case ">":
		switch p.given {
		case 0:
			return nothing
		case 3:
			return []comparator{{">", v}}
		}
		return []comparator{{">=", version{n: next(p.n, p.given-1)}}}
	case ">=":
		return atLeast(p)
	case "<":
		switch p.given {
		case 0:
			return nothing
		case 3:
			return []comparator{{"<", v}}
		}
		return []comparator{below(p.n)}
	case "<=":
		return atMost(p)
	}
	if p.given == 3 {
		return []comparator{{"=", v}}
	}
	return append(atLeast(p), atMost(p)...)
}

// holds tells whether v is in the range. A pre-release is only where the
// range names a pre-release of the same version.
func (r versionRange) holds(v version) bool {
	for _, set := range r {
		if setHolds(set, v) {
			return true
		}
	}
	return false
}

func setHolds(set []comparator, v version) bool {
	named := len(v.pre) == 0
	for _, c := range set {
		if !c.holds(v) {
			return false
		}
		named = named || len(c.v.pre) > 0 && c.v.n == v.n
	}
	return named
}
