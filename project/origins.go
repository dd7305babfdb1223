package project

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Origins says where every merged value came from, in the order of the file:
// what the file wrote, and what the platform filled in. A function's settings
// are listed under the function, also those that provider wrote; lists are
// one value, because they replace each other whole.
//
// A value with a Line is one that the file wrote: a plan that can't apply a
// field finds it here.
func (p *Project) Origins() []Origin {
	var out []Origin
	p.tree.walk("", "", func(path, layer string, n *node) {
		o := Origin{Path: path, Value: n.json(), Layer: layer, Line: n.line, Column: n.col}
		switch {
		case n.layer == defaultLayer:
			o.From = fmt.Sprintf("%s (%s)", defaultLayer, p.Service.Tier)
		case n.filled:
			o.From = fmt.Sprintf("line %d, variables filled in", n.line)
		default:
			o.From = fmt.Sprintf("line %d", n.line)
		}
		out = append(out, o)
	})
	return out
}

// Position is where the value at path stands in the file: the value itself, or
// the nearest one around it that is there. 0 when only a default has it.
func (p *Project) Position(path string) (line, column int) {
	at := p.tree
	for _, key := range strings.FieldsFunc(path, func(c rune) bool { return c == '.' || c == '[' || c == ']' }) {
		next := at.get(key)
		if at != nil && at.kind == aList {
			var i int
			if _, err := fmt.Sscanf(key, "%d", &i); err == nil && i >= 0 && i < len(at.items) {
				next = at.items[i]
			}
		}
		if next == nil {
			break
		}
		at = next
		if at.line > 0 {
			line, column = at.line, at.col
		}
	}
	if at != nil && at.layer == defaultLayer {
		return 0, 0
	}
	return line, column
}

// Problem is a problem with the value at path, at its place in the file. It is
// for checks that know more than the file: what a bundle, a target or a
// cluster can't apply.
func (p *Project) Problem(path string, code Code, why, next string) Problem {
	line, column := p.Position(path)
	return Problem{Line: line, Column: column, Path: path, Code: code, Why: why, Next: next}
}

// walk visits scalars, lists and empty maps, with the layer each stands in.
func (n *node) walk(path, layer string, visit func(path, layer string, n *node)) {
	switch {
	case n == nil, n.kind == aNull, n.kind == aMap && len(n.entries) == 0 && n.line == 0:
		return
	case n.kind == aMap && len(n.entries) > 0:
		for _, e := range n.entries {
			l := layer
			if path == "" || l == "functions" && (e.key == "build" || e.key == "layers") {
				l = e.key // written at the top level
			}
			e.value.walk(join(path, e.key), l, visit)
		}
		return
	}
	if n.layer != "" {
		layer = n.layer
	}
	visit(path, layer, n)
}

// json is n as JSON with sorted keys.
func (n *node) json() string {
	b, err := json.Marshal(n.plain())
	if err != nil {
		return fmt.Sprintf("%q", n.text)
	}
	return string(b)
}
