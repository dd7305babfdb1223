package project

import (
	"fmt"
	"slices"
	"strings"
)

// spec says what may stand at a place of the file. The parser, the JSON Schema
// and the reference page are all made from the same specs.
type spec struct {
	is  kind // aText for every scalar that is written as text, aMap, aList, …
	say string
	// scalar checks a text and gives its canonical form.
	scalar func(text string) (canonical string, f fault)
	// number lets an unquoted number stand for its text (cpu: 2).
	number bool
	// fields are the keys of a map whose keys are known; elem is the value of
	// any key of another map, or of a list's items.
	fields []field
	elem   *spec
	// key checks a key of a map with elem.
	key func(key string) (why, next string)
	// keys is the JSON Schema of key.
	keys map[string]any
	// short turns another way of writing the value into this one; nil when it
	// can't. It must not change n.
	short func(n *node) *node
	// min and max bound the length of a list, or max that of a map whose keys
	// are free; 0 is no bound. What merging multiplies must be bounded.
	min, max int
	// unique refuses a list's scalar that is there twice.
	unique bool
	// free accepts anything that is of kind is, where that is set.
	free bool
	// planned says what a value that is not understood yet asks for; empty for
	// any other.
	planned func(n *node) string
	// exactlyOne: a map of known keys holds one of them.
	exactlyOne bool
	// patches says that everything inside changes something that is elsewhere.
	patches bool
	// literal refuses variables: the value is read before they are known.
	literal bool
	// json is the JSON Schema of a scalar, or of the short way of writing a
	// map.
	json map[string]any
	// choices are a scalar's values where they can be listed.
	choices []string
}

// fault is what is wrong with a scalar; without a why it is right.
type fault struct {
	code      Code
	why, next string
}

type field struct {
	name string
	spec *spec
	// required in the file; a patch never requires anything.
	required bool
	// planned says what is planned; such a key is always refused.
	planned string
	doc     string
}

func (s *spec) field(name string) *field {
	for i := range s.fields {
		if s.fields[i].name == name {
			return &s.fields[i]
		}
	}
	return nil
}

// names are the keys somebody may write.
func (s *spec) names() []string {
	var out []string
	for _, f := range s.fields {
		if f.planned == "" {
			out = append(out, f.name)
		}
	}
	return out
}

// maxProblems ends the checks of a file that is nothing but problems.
const maxProblems = 200

// checker walks the file along the specs. It collects problems, makes scalars
// canonical and marks what was refused, so that later checks skip it.
type checker struct {
	problems Problems
	// elsewhere maps a key to where it belongs, for "memroy" in the wrong map.
	elsewhere map[string]string
}

func (c *checker) add(line, col int, path string, code Code, why, next string) {
	c.problems = append(c.problems, Problem{Line: line, Column: col, Path: path, Code: code, Why: why, Next: next})
}

func (c *checker) at(n *node, path string, code Code, why, next string) {
	n.bad = true
	c.add(n.line, n.col, path, code, why, next)
}

// value checks n. patch says that n only changes something: nothing in it is
// required, and null deletes.
func (c *checker) value(s *spec, n *node, path string, patch bool) {
	if len(c.problems) > maxProblems {
		n.bad = true
		return
	}
	patch = patch || s.patches
	if n.bad || n.open {
		return
	}
	if s.free {
		if s.is != aNull && n.kind != s.is {
			c.at(n, path, CodeType, fmt.Sprintf("expected %s, found %s", s.say, found(n)), "write "+s.say)
		}
		return
	}
	if s.planned != nil {
		if what := s.planned(n); what != "" {
			c.at(n, path, CodePlanned, planned(what), "write "+s.say)
			return
		}
	}
	if s.short != nil {
		if m := s.short(n); m != nil {
			m.line, m.col, m.whole, m.filled = n.line, n.col, true, n.filled
			*n = *m
		}
	}
	switch s.is {
	case aMap, aList:
		if n.kind != s.is {
			next := "write " + s.say
			c.at(n, path, CodeType, fmt.Sprintf("expected %s, found %s", s.say, found(n)), next)
			return
		}
		if s.is == aList {
			c.list(s, n, path, patch)
		} else {
			c.entries(s, n, path, patch)
		}
	default:
		c.scalar(s, n, path)
	}
}

func (c *checker) scalar(s *spec, n *node, path string) {
	ok := n.kind == s.is || n.filled && n.kind == aText || s.number && n.kind == aNumber
	if !ok {
		next := "write " + s.say
		right := false
		if n.kind == aText && s.scalar != nil {
			_, f := s.scalar(n.text)
			right = f.why == ""
		}
		switch {
		case right: // a number or a truth value in quotes
			next = "write it without quotes: " + n.text
		case s.choices != nil:
			next = oneOf(n.str(), s.choices)
		case s.is == aText && n.kind < aList && n.kind != aNull:
			next = fmt.Sprintf("put it in quotes: %q", n.text)
			if s.scalar != nil {
				if _, f := s.scalar(n.text); f.why != "" {
					next = f.next
				}
			}
		}
		c.at(n, path, CodeType, fmt.Sprintf("expected %s, found %s", s.say, found(n)), next)
		return
	}
	if s.scalar == nil {
		return
	}
	canonical, f := s.scalar(n.text)
	if f.why != "" {
		c.at(n, path, f.code, f.why, f.next)
		return
	}
	n.text, n.kind = canonical, s.is
}

func (c *checker) list(s *spec, n *node, path string, patch bool) {
	if len(n.items) < s.min {
		c.at(n, path, CodeValue, fmt.Sprintf("the list has %d items; at least %d are needed", len(n.items), s.min), "write "+s.say)
		return
	}
	if s.max > 0 && len(n.items) > s.max {
		c.at(n, path, CodeValue, fmt.Sprintf("the list has %d items; at most %d are allowed", len(n.items), s.max), "make it shorter")
		return
	}
	seen := map[string]bool{}
	for i, item := range n.items {
		sub := fmt.Sprintf("%s[%d]", path, i)
		if item.kind == aNull && !item.bad {
			c.at(item, sub, CodeType, "an item of the list is empty", "remove the item or write its value")
			continue
		}
		c.value(s.elem, item, sub, false)
		if s.unique && item.has() && item.kind < aList {
			if seen[item.text] {
				c.at(item, sub, CodeDuplicate, fmt.Sprintf("%q is in the list twice", item.text), "keep one of them")
			}
			seen[item.text] = true
		}
	}
}

func (c *checker) entries(s *spec, n *node, path string, patch bool) {
	if s.elem != nil && s.max > 0 && len(n.entries) > s.max {
		c.at(n, path, CodeValue, fmt.Sprintf("the map has %d entries; at most %d are allowed", len(n.entries), s.max), "make it smaller")
		return
	}
	for i := range n.entries {
		e := &n.entries[i]
		if len(c.problems) > maxProblems {
			return
		}
		sub := join(path, e.key)
		if s.elem != nil {
			if why, next := s.key(e.key); why != "" {
				c.add(e.line, e.col, sub, CodeName, why, next)
				e.value.bad = true
				continue
			}
			if e.value.kind != aNull {
				c.value(s.elem, e.value, sub, patch)
			}
			continue
		}
		f := s.field(e.key)
		switch {
		case f == nil:
			c.unknown(s, n, e, path)
			e.value.bad = true
		case f.planned != "":
			c.add(e.line, e.col, sub, CodePlanned, planned(f.planned), "remove the key; until it works it is refused rather than ignored")
			e.value.bad = true
		case f.spec.literal && (e.value.filled || e.value.open):
			c.at(e.value, sub, CodeVariable, "a variable can't stand here: the field is read before variables are known", "write the value itself")
		case e.value.kind != aNull:
			c.value(f.spec, e.value, sub, patch)
		}
	}
	if s.exactlyOne && len(n.entries) != 1 {
		c.at(n, path, CodeValue, fmt.Sprintf("expected %s, found %d keys", s.say, len(n.entries)), "write each as an item of its own: - http: {…}")
	}
	for _, f := range s.fields {
		if v := n.get(f.name); f.required && !patch && (v == nil || v.kind == aNull) && !slices.Contains(n.meant, f.name) {
			c.add(n.line, n.col, join(path, f.name), CodeRequired, "is required", "add "+f.name+": "+f.spec.say)
		}
	}
}

// unknown reports a key nobody knows, with the nearest known one.
func (c *checker) unknown(s *spec, n *node, e *entry, path string) {
	sub := join(path, e.key)
	next := ""
	known := s.names()
	if m := suggest(e.key, known); m != "" {
		next = "did you mean " + m + "?"
		n.meant = append(n.meant, m)
	} else if place, ok := c.elsewhere[e.key]; ok && place == "" {
		next = e.key + " belongs at the top level"
	} else if ok {
		next = fmt.Sprintf("%s belongs under %s", e.key, place)
	} else {
		next = "use one of: " + strings.Join(known, ", ")
		if path == "" {
			next += "; anything of your own goes under custom"
		}
	}
	c.add(e.line, e.col, sub, CodeUnknownKey, "unknown key", next)
}

// planned is the cause of a refusal of what does not exist yet.
func planned(what string) string { return "is planned, this version can't do it yet: " + what }

// found describes a value in a message.
func found(n *node) string {
	switch n.kind {
	case aNumber:
		return "the number " + n.text
	case aBool:
		return n.text
	case aText:
		return "the text " + quote(n.text)
	}
	return n.kind.String()
}

// quote shortens what a message repeats.
func quote(s string) string {
	r := []rune(s)
	if len(r) > 60 {
		s = string(r[:57]) + "…"
	}
	return fmt.Sprintf("%q", s)
}
