package project

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// maxKsvc leaves room for what Knative appends to a service's name: revisions
// get 9 more characters, Kubernetes allows 63.
const maxKsvc = 40

// mainUnit is the aggregate of every function nobody placed elsewhere.
const mainUnit = "main"

// serviceName is <service>-<unit>; one that is too long is cut and ends in a
// hash of the whole.
func serviceName(service, unit string) string {
	full := service + "-" + unit
	if len(full) <= maxKsvc {
		return full
	}
	sum := sha256.Sum256([]byte(full))
	return strings.TrimRight(full[:maxKsvc-7], "-") + "-" + hex.EncodeToString(sum[:3])
}

// aggregate is an entry of `aggregation`, or main.
type aggregate struct {
	name  string
	entry *entry // nil for main that nobody mentioned
	fns   []*function
}

// units places functions, merges each, and makes what is deployed.
func (m *maker) units() {
	mode := Mode(m.root.at("deploy", "mode").str())
	if mode == "" {
		mode = Aggregated
	}
	aggregates := m.aggregates(mode)
	m.place(mode, aggregates)

	for _, f := range m.fns {
		m.merge(f)
	}
	agree := map[string]*node{}
	for _, a := range aggregates {
		if len(a.fns) > 0 {
			agree[a.name] = m.agree(a)
		}
	}
	for _, f := range m.fns {
		m.judge(f)
	}

	names := map[string]string{}
	add := func(u Unit) {
		u.ServiceName = serviceName(m.p.Service.Name, u.Name)
		if u.Job {
			// Not the name of the Service that the function was or may become:
			// both are there while the kind changes.
			u.ServiceName = serviceName(m.p.Service.Name, u.Name+"-job")
		}
		if other, taken := names[u.ServiceName]; taken {
			m.problems = append(m.problems, Problem{Path: "functions", Code: CodeName, Why: fmt.Sprintf("%s and %s get the same service name %s", other, u.Name, u.ServiceName), Next: "rename one of them"})
		}
		names[u.ServiceName] = u.Name
		m.p.Units = append(m.p.Units, u)
	}
	alone, together := false, false
	for _, a := range aggregates {
		if len(a.fns) == 0 {
			if a.entry != nil {
				m.tell(&node{line: a.entry.line, col: a.entry.col}, join("aggregation", a.name), "no function is in it")
			}
			continue
		}
		together = true
		add(m.aggregateUnit(a, agree[a.name]))
	}
	for _, f := range m.fns {
		if f.unit != "" {
			continue
		}
		f.Unit = f.name
		alone = alone || !f.job
		add(Unit{Name: f.name, Settings: f.Settings, Isolation: "shared", Functions: []Function{f.Function}, Job: f.job})
	}
	if mode == Aggregated && together && alone {
		mode = Mixed
	}
	m.p.Deploy.Mode = mode
}

// aggregates are main first, then those of the file.
func (m *maker) aggregates(mode Mode) []*aggregate {
	all := m.root.get("aggregation")
	if mode == Independent {
		if e := m.root.entry("aggregation"); e != nil && all.has() {
			m.add(e.line, e.col, "aggregation", CodeConflict, "deploy.mode is independent: no function is in an aggregate", "remove aggregation, or write deploy: {mode: aggregated}")
		}
		return nil
	}
	first := &aggregate{name: mainUnit}
	list := []*aggregate{first}
	if !all.has() || all.kind != aMap {
		return list
	}
	for i := range all.entries {
		e := &all.entries[i]
		if !e.value.has() || e.value.kind != aMap {
			continue
		}
		if e.key == mainUnit {
			first.entry = e
			continue
		}
		if m.root.at("functions", e.key) != nil {
			m.add(e.line, e.col, join("aggregation", e.key), CodeName, "a function has the same name; both would be the unit "+e.key, "rename the aggregate")
		}
		list = append(list, &aggregate{name: e.key, entry: e})
	}
	return list
}

// place decides which aggregate an online function is in.
func (m *maker) place(mode Mode, aggregates []*aggregate) {
	byName := make(map[string]*function, len(m.fns))
	var names []string
	for _, f := range m.fns {
		byName[f.name] = f
		names = append(names, f.name)
		if mode == Independent && f.standing {
			v := f.own.get("standalone")
			m.tell(v, v.layer+".standalone", "deploy.mode is independent: every function is alone anyway")
		}
	}
	if mode == Independent {
		return
	}
	taken := map[string]string{}
	take := func(a *aggregate, f *function, n *node, path string) {
		if other := taken[f.name]; other != "" && other != a.name {
			m.at(n, path, CodeConflict, fmt.Sprintf("%s is in %s already", f.name, other), "list it once")
			return
		}
		taken[f.name] = a.name
		f.unit = a.name
	}
	for _, a := range aggregates {
		if a.entry == nil {
			continue
		}
		path := join("aggregation", a.entry.key)
		list, globs := a.entry.value.get("functions"), a.entry.value.get("functionsPattern")
		if patch := m.patch("aggregation", a.name); patch.has() { // lists replace
			if p := patch.get("functions"); p != nil {
				list = p
			}
			if p := patch.get("functionsPattern"); p != nil {
				globs = p
			}
		}
		if list == nil && globs == nil && a.name != mainUnit {
			m.at(a.entry.value, path, CodeRequired, "the aggregate names no functions", "add functions: [a, b], or functionsPattern")
			continue
		}
		if list.has() {
			for i, n := range list.items {
				sub := fmt.Sprintf("%s.functions[%d]", path, i)
				f := byName[n.str()]
				switch {
				case !n.has():
				case f == nil && m.root.at("functions", n.str()) != nil: // refused, or removed here
				case f == nil:
					m.at(n, sub, CodeUnknownName, "unknown function "+quote(n.str()), oneOf(n.str(), names))
				case f.job:
					m.at(n, sub, CodeConflict, f.name+" is a job; only online functions are aggregated", "remove it from the list")
				case f.standing:
					m.at(n, sub, CodeConflict, f.name+" is standalone", "remove it from the list, or remove standalone")
				default:
					take(a, f, n, sub)
				}
			}
		}
		if !globs.has() {
			continue
		}
		for i, n := range globs.items {
			sub := fmt.Sprintf("%s.functionsPattern[%d]", path, i)
			if !n.has() {
				continue
			}
			re, err := compileGlob(n.str())
			if err != nil {
				continue
			}
			found := false
			for _, f := range m.fns {
				if re.MatchString(f.name) && !f.job && !f.standing {
					found = true
					take(a, f, n, sub)
				}
			}
			if !found && len(m.fns) > 0 {
				m.at(n, sub, CodeUnknownName, "no online function that is not standalone has a name like "+quote(n.str()), "functions are: "+strings.Join(names, ", "))
			}
		}
	}
	for _, f := range m.fns {
		if f.unit == "" && !f.job && !f.standing {
			f.unit = mainUnit
		}
	}
	index := map[string]*aggregate{}
	for _, a := range aggregates {
		index[a.name] = a
	}
	for _, f := range m.fns {
		if a := index[f.unit]; a != nil {
			a.fns = append(a.fns, f)
		}
	}
}

// unitSettings are the keys that make up a unit.
var unitSettings = []string{
	"runtime", "eventFormat", "memory", "cpu", "initTimeout", "idleTimeout", "concurrency",
	"secrets", "config", "scale", "network", "layers", "build",
}

// agree is the unit's own tree: what all members have alike. A member that
// wants something else for itself can't live in the unit.
func (m *maker) agree(a *aggregate) *node {
	t := m.over(m.above(a.name), m.patch("provider"), m.patchLayer("provider"))
	t = m.over(t, m.patch("aggregation", a.name).without(members...), join(m.patchLayer("aggregation"), a.name))

	for _, key := range unitSettings {
		first, same := a.fns[0].tree.get(key), true
		for _, f := range a.fns[1:] {
			same = same && first.same(f.tree.get(key))
		}
		if same {
			t = t.without(key)
			if e := a.fns[0].tree.entry(key); e != nil {
				t.put(*e)
			}
			continue
		}
		for _, f := range a.fns {
			m.differ(a, f, key, t.get(key), f.tree.get(key), key)
		}
	}
	env := map[string]*node{}
	owner := map[string]string{}
	seen := map[*node]bool{}
	for _, f := range a.fns {
		vars := f.tree.get("environment")
		if !vars.has() || vars.kind != aMap || seen[vars] {
			continue
		}
		seen[vars] = true
		for _, e := range vars.entries {
			if !e.value.has() {
				continue
			}
			old := env[e.key]
			if old == nil {
				env[e.key], owner[e.key] = e.value, f.name
				continue
			}
			if old.text == e.value.text {
				continue
			}
			n, who, other := e.value, f.name, owner[e.key]
			if !strings.Contains(n.layer, "functions.") {
				n, who, other = old, other, who
			}
			m.refuse(n, join("environment", e.key), CodeAggregate,
				fmt.Sprintf("%s and %s are both in unit %s, one process, and want different values of %s", who, other, a.name, e.key), m.apart(who))
		}
	}
	if len(a.fns) > 1 {
		for _, f := range a.fns {
			if c := f.tree.get("contract"); c.str() == "app" {
				m.refuse(c, "contract", CodeAggregate, fmt.Sprintf("%s is a server of its own; unit %s has %d functions behind one port", f.name, a.name, len(a.fns)), m.apart(f.name))
			}
		}
	}
	return t
}

func (m *maker) apart(fn string) string {
	return fmt.Sprintf("make it standalone: functions.%s.standalone: true", fn)
}

// differ reports what a member wants for itself, at the value that differs.
func (m *maker) differ(a *aggregate, f *function, key string, unit, own *node, rel string) {
	if own.same(unit) || unit.isBad() {
		return
	}
	// A reference is one thing, not a name and a key.
	ref := rel != key && (key == "secrets" || key == "config")
	if !ref && own.has() && own.kind == aMap && (unit == nil || unit.kind == aMap) {
		for _, e := range own.entries {
			m.differ(a, f, key, unit.get(e.key), e.value, join(rel, e.key))
		}
		return
	}
	if own == nil {
		m.add(f.at.line, f.at.col, join("functions", f.name)+"."+rel, CodeAggregate, fmt.Sprintf("%s removes what unit %s has", f.name, a.name), m.apart(f.name))
		return
	}
	if own.bad {
		return
	}
	next := m.apart(f.name)
	switch {
	case key == "runtime":
		next += ", or list functions of one runtime in an aggregate of their own: aggregation.<unit>.functions"
	case a.name == mainUnit:
		next += ", or write it under provider for all"
	default:
		next += fmt.Sprintf(", or write it under aggregation.%s for all", a.name)
	}
	what, has := "this", "its default"
	if own.kind < aList {
		what = quote(own.text)
	}
	switch {
	case unit.has() && unit.kind < aList:
		has = quote(unit.text)
	case unit.has():
		has = "another"
	case key != "memory" && key != "cpu" && key != "scale" && key != "concurrency" && key != "initTimeout" && key != "build":
		has = "none"
	}
	m.refuse(own, rel, CodeAggregate, fmt.Sprintf("%s can't have %s for itself: unit %s is one process for its functions and has %s", f.name, what, a.name, has), next)
}

// aggregateUnit makes the unit once its members are judged.
func (m *maker) aggregateUnit(a *aggregate, t *node) Unit {
	language := m.language(t.get("runtime").str())
	t = t.filledWith(m.standard(language))
	u := Unit{Name: a.name, Settings: m.settings(t), Isolation: "shared", Aggregate: true}
	if a.entry != nil {
		if v := a.entry.value.get("isolation"); v.has() {
			u.Isolation = v.str()
		}
		if v := m.patch("aggregation", a.name, "isolation"); v.has() {
			u.Isolation = v.str()
		}
	}
	u.Environment = nil
	u.Build = a.fns[0].Build
	u.Contract, u.Timeout = a.fns[0].Contract, 0
	seen := map[*node]bool{}
	for _, f := range a.fns {
		f.Unit = a.name
		u.Timeout = max(u.Timeout, f.Timeout)
		if f.Contract != u.Contract {
			u.Contract = ""
		}
		u.Functions = append(u.Functions, f.Function)
		if vars := f.tree.get("environment"); !seen[vars] {
			seen[vars] = true
			for k, v := range f.Environment {
				if u.Environment == nil {
					u.Environment = map[string]string{}
				}
				u.Environment[k] = v
			}
		}
	}
	return u
}
