package project

import (
	"fmt"
	"strings"
)

// rest reads what is not about functions, then puts the Project together.
func (m *maker) rest() {
	p, root := m.p, m.root
	base := m.above("").filledWith(m.standard(m.language(root.at("provider", "runtime").str())))
	provider := m.over(base, m.patch("provider"), m.patchLayer("provider"))
	p.Provider = m.settings(provider)
	p.Layers, p.Build = root.get("layers").strs(), buildOf(base.get("build"))
	p.Test = Test{Command: root.at("test", "command").str()}
	p.Package = Package{Include: root.at("package", "include").strs(), Exclude: root.at("package", "exclude").strs()}
	m.plugins()
	m.preview()

	index := make(map[string]int, len(m.fns))
	for i, f := range m.fns {
		for j := range f.Routes {
			f.Routes[j].Unit = f.Unit
		}
		p.Functions = append(p.Functions, f.Function)
		index[f.name] = i
	}
	for i := range p.Units {
		for j, f := range p.Units[i].Functions {
			if k, ok := index[f.Name]; ok {
				p.Units[i].Functions[j] = p.Functions[k]
			}
		}
	}
	m.rollout()
	m.merged["provider"] = provider.without("build", "layers")
	if root.get("build").has() {
		m.merged["build"] = base.get("build")
	}
	p.tree = m.mergedFile()
}

// mergedFile is the file as it counts for this environment.
func (m *maker) mergedFile() *node {
	functions := &node{kind: aMap}
	for _, f := range m.fns {
		functions.put(entry{key: f.name, line: f.at.line, col: f.at.col, value: f.tree})
	}
	m.merged["functions"] = functions
	out := &node{kind: aMap}
	for _, e := range m.root.entries {
		switch {
		case e.key == "custom", e.key == "environments":
		case m.merged[e.key] != nil:
			e.value = m.merged[e.key]
			fallthrough
		default:
			out.put(e)
		}
	}
	for _, key := range []string{"provider", "routes", "rollout"} { // sections the file left out
		if out.entry(key) == nil && m.merged[key] != nil {
			out.put(entry{key: key, value: m.merged[key]})
		}
	}
	if m.env != nil {
		out.put(entry{key: "environment", value: m.env.only("branch", "tag", "cluster", "namespace")})
	}
	return out
}

func (m *maker) plugins() {
	list := m.root.get("plugins")
	if !list.has() || list.kind != aList {
		return
	}
	seen := map[string]int{}
	for i, n := range list.items {
		path := fmt.Sprintf("plugins[%d]", i)
		if !n.has() || n.kind != aMap || !n.get("name").has() {
			continue
		}
		p := Plugin{Name: n.get("name").str(), Apply: n.get("apply").strs(), Line: n.line}
		if line := seen[p.Name]; line > 0 {
			m.at(n.get("name"), path+".name", CodeDuplicate, fmt.Sprintf("%s is there twice; first in line %d", p.Name, line), "write it once, with apply for the functions")
		}
		seen[p.Name] = n.line
		if o := n.get("options"); o.has() && len(o.entries) > 0 {
			p.Options, _ = o.plain().(map[string]any)
		}
		for _, f := range m.fns {
			if len(p.Apply) == 0 {
				p.Functions = append(p.Functions, f.name)
				f.Plugins = append(f.Plugins, p.Name)
				continue
			}
			for _, g := range p.Apply {
				if re, err := compileGlob(g); err == nil && re.MatchString(f.name) {
					p.Functions = append(p.Functions, f.name)
					f.Plugins = append(f.Plugins, p.Name)
					break
				}
			}
		}
		if apply := n.get("apply"); apply.has() && len(p.Apply) > 0 && len(p.Functions) == 0 && len(m.fns) > 0 {
			m.at(apply, path+".apply", CodeUnknownName, "no function has a name like "+strings.Join(p.Apply, ", "), "apply takes names and globs of functions in this file")
		}
		m.p.Plugins = append(m.p.Plugins, p)
	}
}

func (m *maker) preview() {
	n := m.root.get("preview")
	if !n.has() || n.kind != aMap {
		return
	}
	n = n.filledWith(givenMap("ttl", span(m.std.PreviewTTL)))
	m.merged["preview"] = n
	m.p.Preview = &Preview{Namespace: n.get("namespace").str(), TTL: n.get("ttl").dur(), Environment: n.get("environment").strMap()}
}

// rollout merges how a release takes over, and tells what the strategy leaves
// unused.
func (m *maker) rollout() {
	t := m.over(nil, m.root.get("rollout"), "rollout")
	t = m.over(t, m.patch("rollout"), m.patchLayer("rollout"))
	t = t.filledWith(m.std.rollout())
	r := Rollout{
		Strategy: t.get("strategy").str(), OnFailure: t.get("onFailure").str(), ReadyTimeout: t.get("readyTimeout").dur(),
		Keep: t.get("keep").int(), KeepWarm: t.get("keepWarm").dur(),
	}
	if allowed := m.limit.Strategies; len(allowed) > 0 && t.get("strategy").has() {
		ok := false
		for _, s := range allowed {
			ok = ok || s == r.Strategy
		}
		if !ok {
			m.refuse(t.get("strategy"), "strategy", CodeLimit, fmt.Sprintf("%s is not allowed for tier %s", r.Strategy, m.tier), "use one of: "+strings.Join(allowed, ", "))
		}
	}
	if r.Strategy == "canary" {
		r.Steps = m.steps(t.get("steps"))
		r.Analysis = m.analysis(t.get("analysis"))
	} else {
		for _, key := range []string{"steps", "analysis"} {
			if n := t.get(key); n.has() {
				m.tell(n, n.layer+"."+key, "strategy "+r.Strategy+" does not use it")
			}
		}
	}
	r.Verify = m.verify(t.get("verify"))
	m.p.Rollout, m.merged["rollout"] = r, t
}

func (m *maker) steps(n *node) []Step {
	if n == nil {
		return m.std.Steps
	}
	if !n.has() {
		return nil
	}
	var steps []Step
	last := 0
	for i, item := range n.items {
		w, p := item.get("weight"), item.get("pause")
		s := Step{Weight: w.int()}
		if s.Approval = p.str() == "approval"; !s.Approval {
			s.Pause = p.dur()
		}
		if w.has() && s.Weight <= last {
			m.at(w, fmt.Sprintf("%s.steps[%d].weight", n.layer, i), CodeConflict, fmt.Sprintf("weight %d does not grow: the step before has %d", s.Weight, last), "write growing weights")
		}
		last = max(last, s.Weight)
		steps = append(steps, s)
	}
	return steps
}

func (m *maker) analysis(n *node) *Analysis {
	if !n.has() || n.kind != aMap {
		return nil
	}
	layer := n.layer
	n = n.filledWith(givenMap("interval", "30s", "compare", "stable", "minRequests", 50, "onNoData", "wait"))
	a := &Analysis{
		Interval: n.get("interval").dur(), Compare: n.get("compare").str(), MinRequests: n.get("minRequests").int(),
		OnNoData: n.get("onNoData").str(), P99: n.at("p99", "max").dur(),
	}
	for _, k := range [][3]string{{"successRate", "min", "a number from 0 to 100"}, {"p99", "max", "a duration such as 800ms"}} {
		if v := n.get(k[0]); v.has() && v.get(k[1]) == nil {
			m.add(v.line, v.col, layer+".analysis."+k[0]+"."+k[1], CodeRequired, "is required", "add "+k[1]+": "+k[2])
		}
	}
	if v := n.at("successRate", "min"); v.has() {
		f := v.float()
		a.SuccessRate = &f
	}
	if list := n.get("queries"); list.has() {
		for i, q := range list.items {
			out := Query{Name: q.get("name").str(), Query: q.get("query").str()}
			bound := func(key string) *float64 {
				v := q.get(key)
				if !v.has() {
					return nil
				}
				f := v.float()
				return &f
			}
			out.Min, out.Max = bound("min"), bound("max")
			path := fmt.Sprintf("%s.analysis.queries[%d]", list.layer, i)
			switch {
			case q.get("min") == nil && q.get("max") == nil:
				m.at(q, path, CodeRequired, "says neither min nor max: nothing would be judged", "add min or max")
			case out.Min != nil && out.Max != nil && *out.Min > *out.Max:
				m.at(q, path, CodeConflict, "min is more than max", "swap them")
			}
			a.Queries = append(a.Queries, out)
		}
	}
	return a
}

// verify finds the owner of every request.
func (m *maker) verify(n *node) []Verify {
	if !n.has() {
		return nil
	}
	var all []Verify
	for i, item := range n.items {
		v := Verify{Method: "GET", Path: item.at("request", "path").str(), Status: 200, Max: Duration(item.at("expect", "maxMs").int()) * Duration(1e6)}
		if s := item.at("request", "method"); s.has() {
			v.Method = s.str()
		}
		if s := item.at("expect", "status"); s.has() {
			v.Status = s.int()
		}
		at := item.at("request", "path")
		if !at.has() {
			continue
		}
		path, _, _ := strings.Cut(v.Path, "?")
		var owner *Route
		for _, f := range m.fns {
			for j := range f.Routes {
				r := &f.Routes[j]
				if r.matches(path) && r.answers(strings.ToLower(v.Method)) && (owner == nil || r.closer(*owner)) {
					owner = r
				}
			}
		}
		if owner == nil {
			if len(m.problems) == 0 { // else its route may be among what was refused
				next := "write a path that an http event has, with routes.basePath in front"
				if b := m.p.Routes.BasePath; b != "" && !strings.HasPrefix(path, b+"/") && path != b {
					next += ": " + b + path
				}
				m.at(at, fmt.Sprintf("%s.verify[%d].request.path", n.layer, i), CodeRoute, fmt.Sprintf("no http event answers %s %s", v.Method, quote(path)), next)
			}
			continue
		}
		v.Function, v.Unit = owner.Function, owner.Unit
		all = append(all, v)
	}
	return all
}
