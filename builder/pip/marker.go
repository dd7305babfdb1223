package pip

import (
	"fmt"
	"regexp"
	"strings"

	version "github.com/aquasecurity/go-pep440-version"
)

// marker is a parsed environment marker (PEP 508); nil holds everywhere.
type marker interface {
	eval(env func(name string) (value, other string)) answer
}

// answer is a marker's value on a platform of which the patch version of
// Python is not known: certain holds whatever it is, maybe for some.
type answer struct{ certain, maybe bool }

type (
	both   struct{ a, b marker }
	either struct{ a, b marker }
	test   struct {
		left, op, right         string
		leftQuoted, rightQuoted bool
	}
)

func (m both) eval(env func(string) (string, string)) answer {
	a, b := m.a.eval(env), m.b.eval(env)
	return answer{a.certain && b.certain, a.maybe && b.maybe}
}

func (m either) eval(env func(string) (string, string)) answer {
	a, b := m.a.eval(env), m.b.eval(env)
	return answer{a.certain || b.certain, a.maybe || b.maybe}
}

func (m test) eval(env func(string) (string, string)) answer {
	l1, l2, r1, r2 := m.left, m.left, m.right, m.right
	if !m.leftQuoted {
		l1, l2 = env(m.left)
	}
	if !m.rightQuoted {
		r1, r2 = env(m.right)
	}
	first, second := compare(l1, m.op, r1), compare(l2, m.op, r2)
	return answer{first && second, first || second}
}

// compare is PEP 508's: as versions where the right side is one, else as text.
func compare(left, op, right string) bool {
	switch op {
	case "in":
		return strings.Contains(right, left)
	case "not in":
		return !strings.Contains(right, left)
	}
	if s, err := version.NewSpecifiers(op+right, version.WithPreRelease(true)); err == nil {
		if v, err := version.Parse(left); err == nil {
			return s.Check(v)
		}
	}
	switch op {
	case "==", "===":
		return left == right
	case "!=":
		return left != right
	case "<":
		return left < right
	case "<=":
		return left <= right
	case ">":
		return left > right
	case ">=":
		return left >= right
	}
	return false
}

// holds evaluates m on the platform, with the extras asked for; nil is none.
func (p Platform) holds(m marker, extras []string) answer {
	if m == nil {
		return answer{true, true}
	}
	if len(extras) == 0 {
		extras = []string{""}
	}
	var out answer
	for _, extra := range extras {
		a := m.eval(func(name string) (string, string) {
			if name == "extra" {
				return extra, extra
			}
			return p.variable(name)
		})
		out.certain, out.maybe = out.certain || a.certain, out.maybe || a.maybe
	}
	return out
}

// lastPatch is later than any patch version.
const lastPatch = 99

// variable is a marker's variable: the two values that it can have at the ends
// of what is not known.
func (p Platform) variable(name string) (first, last string) {
	short := fmt.Sprintf("3.%d", p.Minor)
	switch strings.ReplaceAll(name, ".", "_") {
	case "python_version":
		return short, short
	case "python_full_version", "implementation_version":
		return short + ".0", fmt.Sprintf("%s.%d", short, lastPatch)
	case "os_name":
		return "posix", "posix"
	case "sys_platform":
		return "linux", "linux"
	case "platform_system":
		return "Linux", "Linux"
	case "platform_machine":
		return p.machine(), p.machine()
	case "platform_python_implementation", "python_implementation":
		return "CPython", "CPython"
	case "implementation_name":
		return "cpython", "cpython"
	}
	return "", "" // platform_release, platform_version: the kernel's, unknown
}

var (
	markerToken = regexp.MustCompile(`^\s*(?:(\()|(\))|'([^']*)'|"([^"]*)"|(===|~=|==|!=|<=|>=|<|>)|(not\s+in|in|and|or)\b|([A-Za-z_][A-Za-z0-9_.]*))`)
	variables   = map[string]bool{
		"python_version": true, "python_full_version": true, "os_name": true, "sys_platform": true, "platform_release": true,
		"platform_system": true, "platform_version": true, "platform_machine": true, "platform_python_implementation": true,
		"implementation_name": true, "implementation_version": true, "extra": true,
		// Older names that packages still use.
		"os.name": true, "sys.platform": true, "platform.machine": true, "platform.version": true, "platform.python_implementation": true, "python_implementation": true,
	}
)

// markers nest a few levels deep in practice.
const maxMarkerDepth = 50

type markerParser struct {
	rest  string
	depth int
	// One token of look-ahead.
	kind, text string
	err        error
}

// parseMarker reads an environment marker.
func parseMarker(s string) (marker, error) {
	p := &markerParser{rest: s}
	p.next()
	m := p.or()
	if p.err == nil && p.kind != "" {
		p.err = fmt.Errorf("unexpected %q", p.text)
	}
	if p.err != nil {
		return nil, fmt.Errorf("the marker %q can't be read: %w", strings.TrimSpace(s), p.err)
	}
	return m, nil
}

func (p *markerParser) next() {
	p.kind, p.text = "", ""
	if p.err != nil || strings.TrimSpace(p.rest) == "" {
		return
	}
	at := markerToken.FindStringSubmatchIndex(p.rest)
	if at == nil {
		p.err = fmt.Errorf("unexpected %.20q", strings.TrimSpace(p.rest))
		return
	}
	for i, kind := range []string{"(", ")", "text", "text", "op", "word", "name"} {
		if from := at[2*i+2]; from >= 0 {
			p.kind, p.text = kind, p.rest[from:at[2*i+3]]
		}
	}
	p.rest = p.rest[at[1]:]
}

func (p *markerParser) or() marker {
	m := p.and()
	for p.err == nil && p.kind == "word" && p.text == "or" {
		p.next()
		m = either{m, p.and()}
	}
	return m
}

func (p *markerParser) and() marker {
	m := p.atom()
	for p.err == nil && p.kind == "word" && p.text == "and" {
		p.next()
		m = both{m, p.atom()}
	}
	return m
}

func (p *markerParser) atom() marker {
	if p.kind == "(" {
		if p.depth++; p.depth > maxMarkerDepth {
			p.err = fmt.Errorf("more than %d levels", maxMarkerDepth)
			return nil
		}
		p.next()
		m := p.or()
		if p.err == nil && p.kind != ")" {
			p.err = fmt.Errorf("a parenthesis is not closed")
		}
		p.depth--
		p.next()
		return m
	}
	var t test
	t.left, t.leftQuoted = p.value()
	switch {
	case p.err != nil:
		return nil
	case p.kind == "op", p.kind == "word" && p.text != "and" && p.text != "or":
		t.op = strings.Join(strings.Fields(p.text), " ")
		p.next()
	default:
		p.err = fmt.Errorf("no comparison after %q", t.left)
	}
	t.right, t.rightQuoted = p.value()
	if t.left == "extra" || t.right == "extra" {
		if t.leftQuoted {
			t.left = normalize(t.left)
		}
		if t.rightQuoted {
			t.right = normalize(t.right)
		}
	}
	return t
}

func (p *markerParser) value() (text string, quoted bool) {
	text, kind := p.text, p.kind
	switch {
	case p.err != nil:
	case kind == "text":
		quoted = true
	case kind == "name" && variables[text]:
	case kind == "name":
		p.err = fmt.Errorf("unknown variable %q", text)
	default:
		p.err = fmt.Errorf("a value is missing")
	}
	p.next()
	return text, quoted
}
