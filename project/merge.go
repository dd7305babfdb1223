package project

// merging lays maps over each other. What it is given stays as it is.
type merging struct {
	// nulls remembers every null that was laid over something, and whether it
	// ever deleted a value.
	nulls map[*node]*null
	// done are maps inside layers that were laid over the same map before: a
	// thousand functions under one provider share its maps.
	done map[pair]*node
}

type pair struct{ below, top *node }

type null struct {
	node    *node
	layer   string
	rel     string
	deleted bool
}

// over is base with the layer's map on it: maps merge deep, anything else
// replaces, null deletes. Both may be nil. Values carry the layer's name.
func (m *merging) over(base, top *node, layer string) *node {
	return m.lay(base, top, layer, "")
}

func (m *merging) lay(base, top *node, layer, rel string) *node {
	if !top.has() || top.kind != aMap {
		if base == nil {
			return &node{kind: aMap}
		}
		return base
	}
	inner := rel != ""
	if out := m.done[pair{base, top}]; inner && out != nil {
		return out
	}
	out := &node{kind: aMap, layer: layer, line: top.line, col: top.col, whole: top.whole}
	if base != nil {
		out.entries = append(make([]entry, 0, len(base.entries)+len(top.entries)), base.entries...)
		if len(out.entries) > 16 {
			out.index = make(map[string]int, 2*len(out.entries))
			for i, e := range out.entries {
				out.index[e.key] = i
			}
		}
	}
	for _, e := range top.entries {
		sub := join(rel, e.key)
		if e.value.kind == aNull && !e.value.bad {
			seen := m.nulls[e.value]
			if seen == nil {
				seen = &null{node: e.value, layer: layer, rel: sub}
				m.nulls[e.value] = seen
			}
			seen.deleted = out.drop(e.key) || seen.deleted
			continue
		}
		var v *node
		if e.value.kind == aMap && !e.value.bad {
			below := out.get(e.key)
			if e.value.whole || !below.has() || below.kind != aMap {
				below = nil
			}
			v = m.lay(below, e.value, layer, sub)
		} else {
			c := *e.value
			c.layer = layer
			v = &c
		}
		out.put(entry{key: e.key, line: e.line, col: e.col, value: v})
	}
	if inner {
		m.done[pair{base, top}] = out
	}
	return out
}

// without is n less some keys; n stays as it is.
func (n *node) without(keys ...string) *node {
	if n == nil || n.kind != aMap {
		return n
	}
	out := &node{kind: aMap, line: n.line, col: n.col, layer: n.layer, bad: n.bad}
next:
	for _, e := range n.entries {
		for _, k := range keys {
			if e.key == k {
				continue next
			}
		}
		out.put(e)
	}
	return out
}

// only is a map of n's value at key, nil without one.
func (n *node) only(keys ...string) *node {
	out := &node{kind: aMap}
	for _, k := range keys {
		if e := n.entry(k); e != nil {
			out.put(*e)
		}
	}
	return out
}

// filledWith is n with what it lacks from defaults, deep. A refused value
// stays refused.
func (n *node) filledWith(defaults *node) *node {
	out := &node{kind: aMap, line: n.line, col: n.col, layer: n.layer}
	for _, e := range n.entries {
		out.put(e)
	}
	for _, d := range defaults.entries {
		have := out.get(d.key)
		switch {
		case have == nil || have.kind == aNull && !have.bad:
			out.put(d)
		case d.value.kind == aMap && have.kind == aMap && !have.bad:
			out.put(entry{key: d.key, value: have.filledWith(d.value)})
		}
	}
	return out
}
