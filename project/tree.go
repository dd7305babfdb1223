package project

import (
	"strconv"
	"strings"
)

// kind is what stands in the file, before anybody asked what should.
type kind uint8

const (
	aNull kind = iota
	aText
	aNumber
	aBool
	aList
	aMap
)

func (k kind) String() string {
	return [...]string{"nothing", "text", "a number", "true or false", "a list", "a map"}[k]
}

// node is a value of the file with its place. After the checks, text is
// canonical. Nodes are shared between the file's tree and merged trees: only
// the checks change one, merging copies.
type node struct {
	kind      kind
	text      string // of a scalar: as written, then canonical
	line, col int    // 0 for a platform default
	entries   []entry
	index     map[string]int // of entries, when there are many
	items     []*node

	// filled says that a variable was filled in, so that "5" may be a number.
	filled bool
	// open says that variables were left alone: the value can't be judged.
	open bool
	// bad says that a problem was reported and the value means nothing.
	bad bool
	// whole says that this map was written as one text (secret/key), so it
	// replaces what it is merged over.
	whole bool
	// meant are the known keys that unknown ones of this map looked like.
	meant []string
	// layer is set in merged trees: provider, functions.list, …
	layer string
}

type entry struct {
	key       string
	line, col int
	value     *node
}

// get is the value at key, or nil; n may be nil. Null counts as a value.
func (n *node) get(key string) *node {
	if e := n.entry(key); e != nil {
		return e.value
	}
	return nil
}

func (n *node) entry(key string) *entry {
	if n == nil || n.kind != aMap {
		return nil
	}
	if n.index != nil {
		if i, ok := n.index[key]; ok {
			return &n.entries[i]
		}
		return nil
	}
	for i := range n.entries {
		if n.entries[i].key == key {
			return &n.entries[i]
		}
	}
	return nil
}

// at follows keys down; nil where one is missing.
func (n *node) at(keys ...string) *node {
	for _, k := range keys {
		n = n.get(k)
	}
	return n
}

// put sets key, keeping the order of first appearance.
func (n *node) put(e entry) {
	if old := n.entry(e.key); old != nil {
		*old = e
		return
	}
	n.entries = append(n.entries, e)
	switch {
	case n.index != nil:
		n.index[e.key] = len(n.entries) - 1
	case len(n.entries) > 16:
		n.index = make(map[string]int, 2*len(n.entries))
		for i, e := range n.entries {
			n.index[e.key] = i
		}
	}
}

// drop removes key and reports whether it was there.
func (n *node) drop(key string) bool {
	for i := range n.entries {
		if n.entries[i].key != key {
			continue
		}
		n.entries = append(n.entries[:i:i], n.entries[i+1:]...)
		if n.index != nil {
			n.index = nil
			rest := n.entries
			n.entries = nil
			for _, e := range rest {
				n.put(e)
			}
		}
		return true
	}
	return false
}

// has reports a usable value: there, not null, not refused.
func (n *node) has() bool { return n != nil && n.kind != aNull && !n.bad }

func (n *node) str() string {
	if !n.has() || n.kind == aList || n.kind == aMap {
		return ""
	}
	return n.text
}

func (n *node) int() int {
	v, _ := strconv.Atoi(n.str())
	return v
}

func (n *node) float() float64 {
	v, _ := strconv.ParseFloat(n.str(), 64)
	return v
}

func (n *node) bool() bool { return n.str() == "true" }

func (n *node) dur() Duration {
	d, _ := ParseDuration(n.str())
	return d
}

func (n *node) strs() []string {
	if !n.has() || n.kind != aList {
		return nil
	}
	out := make([]string, 0, len(n.items))
	for _, i := range n.items {
		if i.has() {
			out = append(out, i.str())
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// strMap is a map of scalars; nil when there are none.
func (n *node) strMap() map[string]string {
	if !n.has() || n.kind != aMap || len(n.entries) == 0 {
		return nil
	}
	out := make(map[string]string, len(n.entries))
	for _, e := range n.entries {
		if e.value.has() {
			out[e.key] = e.value.text
		}
	}
	return out
}

// plain is n as encoding/json would have it.
func (n *node) plain() any {
	switch {
	case n == nil:
		return nil
	case n.kind == aText:
		return n.text
	case n.kind == aBool:
		return n.text == "true" || n.text == "True" || n.text == "TRUE"
	case n.kind == aNumber:
		if v, err := strconv.ParseInt(n.text, 10, 64); err == nil {
			return v
		}
		if v, err := strconv.ParseFloat(n.text, 64); err == nil && v-v == 0 {
			return v
		}
		return n.text // infinite, or in a notation of YAML's own
	case n.kind == aList:
		out := make([]any, len(n.items))
		for i, v := range n.items {
			out[i] = v.plain()
		}
		return out
	case n.kind == aMap:
		out := make(map[string]any, len(n.entries))
		for _, e := range n.entries {
			out[e.key] = e.value.plain()
		}
		return out
	}
	return nil
}

// same reports whether two values are equal, whatever the order of keys.
func (n *node) same(m *node) bool {
	if !n.has() || !m.has() {
		return n.has() == m.has()
	}
	if n.kind != m.kind {
		return n.kind < aList && m.kind < aList && n.text == m.text
	}
	switch n.kind {
	case aList:
		if len(n.items) != len(m.items) {
			return false
		}
		for i := range n.items {
			if !n.items[i].same(m.items[i]) {
				return false
			}
		}
		return true
	case aMap:
		if len(n.entries) != len(m.entries) {
			return false
		}
		for _, e := range n.entries {
			if !e.value.same(m.get(e.key)) {
				return false
			}
		}
		return true
	}
	return n.text == m.text
}

// join builds the path people read; a key that is not a plain word is quoted.
func join(path, key string) string {
	if key == "" || strings.ContainsAny(key, ". []\"\n\t") {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}
