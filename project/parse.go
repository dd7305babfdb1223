package project

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Parse reads faas.yml, checks it as a whole and merges it for one
// environment. Its error is [Problems]: all that is wrong, at once. It never
// panics, whatever the bytes are.
func Parse(data []byte, o Options) (*Project, error) { return Read(data).Parse(o) }

// Parse is [Parse] of a file that was read.
func (f File) Parse(o Options) (*Project, error) {
	if f.root == nil {
		return nil, f.problems.sorted()
	}
	m := &maker{o: o, root: f.root, merging: merging{nulls: map[*node]*null{}, done: map[pair]*node{}}, merged: map[string]*node{}, starts: map[string]*node{}, defaults: map[string]*node{}, maps: map[*node]map[string]string{}, p: &Project{}}
	m.problems = slices.Clip(f.problems)
	m.check()
	if len(m.problems) > maxProblems {
		return nil, m.problems.sorted().first(maxProblems)
	}
	m.choose()
	m.functions()
	m.units()
	m.routes()
	m.rest()
	m.notices()
	if len(m.problems) > 0 {
		return nil, m.problems.sorted().first(maxProblems)
	}
	return m.p, nil
}

// maker makes one Project. Its steps run in the order of Parse, also after
// problems: what was refused is marked in the tree and skipped.
type maker struct {
	checker
	merging
	o        Options
	root     *node
	env      *node // the environment's entry, nil without one
	envPath  string
	tier     Tier
	std      Defaults
	limit    Limits
	fns      []*function
	p        *Project
	told     []Notice
	merged   map[string]*node // sections of the merged file
	defaults map[string]*node // by language
	most     bounds
	maps     map[*node]map[string]string // of strMap
	starts   map[string]*node            // what the functions of a unit start from
}

// check holds the file against its specs.
func (m *maker) check() {
	s := fileSpec(m.o)
	m.elsewhere = elsewhere(s)
	f := filler{o: m.o, left: maxFilled}
	f.fill(m.root, "", false)
	m.problems = append(m.problems, f.problems...)
	m.value(s, m.root, "", false)
}

// elsewhere maps keys to the place they belong to, where there is one place.
func elsewhere(s *spec) map[string]string {
	places := map[string]string{}
	add := func(place string, s *spec) {
		for _, f := range s.fields {
			if f.planned == "" {
				if _, taken := places[f.name]; !taken {
					places[f.name] = place
				}
			}
		}
	}
	top := func(name string) *spec { return s.field(name).spec }
	add("", s)
	for _, name := range []string{"service", "platform", "deploy", "package", "routes", "rollout", "provider"} {
		add(name, top(name))
	}
	add("functions.<name>", top("functions").elem)
	add("environments.<name>", top("environments").elem)
	add("aggregation.<unit>", top("aggregation").elem)
	add("build", top("build"))
	add("functions.<name>.events: http", top("functions").elem.field("events").spec.elem.field("http").spec)
	add("functions.<name>.events: timer", top("functions").elem.field("events").spec.elem.field("timer").spec)
	add("provider.scale", top("provider").field("scale").spec)
	return places
}

// choose settles the header: service, tier, environment.
func (m *maker) choose() {
	p, o := m.p, m.o
	p.Version = m.root.get("version").int()
	service := m.root.get("service")
	p.Service = Service{
		Name: service.get("name").str(), Owner: service.get("owner").str(),
		Description: service.get("description").str(),
	}
	m.tier = Tier(service.get("tier").str())
	if o.Tier.Rank() > m.tier.Rank() {
		if m.tier != "" {
			m.tell(service.get("tier"), "service.tier", fmt.Sprintf("the platform's tier %s applies: a file may only tighten it", o.Tier))
		}
		m.tier = o.Tier
	}
	if m.tier.Rank() == 0 {
		m.tier = Standard
	}
	p.Service.Tier = m.tier
	m.std, m.limit = o.defaultsOf(m.tier), o.limitsOf(m.tier)
	m.most = m.limit.bounds()

	p.Platform = Platform{Channel: "stable", RuntimeUpdate: "auto"}
	if v := m.root.at("platform", "channel"); v.has() {
		p.Platform.Channel = v.str()
	}
	if v := m.root.at("platform", "runtimeUpdate"); v.has() {
		p.Platform.RuntimeUpdate = v.str()
	}

	p.Environment.Name = o.Environment
	environments := m.root.get("environments")
	if !environments.has() || environments.kind != aMap {
		return
	}
	names := make([]string, 0, len(environments.entries))
	for _, e := range environments.entries {
		if !e.value.bad {
			names = append(names, e.key)
		}
		m.environment(e)
	}
	if o.Environment == "" {
		return
	}
	e := environments.entry(o.Environment)
	if e == nil || e.value.bad {
		if e == nil {
			top := m.root.entry("environments")
			m.add(top.line, top.col, "environments", CodeEnvironment, fmt.Sprintf("this job's environment %s is not in the file", quote(o.Environment)),
				"add it, or change the template's input: "+oneOf(o.Environment, names))
		}
		return
	}
	m.env, m.envPath = e.value, join("environments", e.key)
	p.Environment.Branch = m.env.get("branch").str()
	p.Environment.Tag = m.env.get("tag").str()
	p.Environment.Cluster = m.env.get("cluster").str()
	p.Environment.Namespace = m.env.get("namespace").str()
}

// environment checks what an environment's patch refers to, also for those
// that are not merged now.
func (m *maker) environment(e entry) {
	path := join("environments", e.key)
	if b, t := e.value.get("branch"), e.value.get("tag"); b.has() && t.has() {
		m.at(t, join(path, "tag"), CodeConflict, "branch and tag are both there", "keep one: a pipeline runs for either")
	}
	for _, section := range []string{"functions", "aggregation"} {
		patch, base := e.value.get(section), m.root.get(section)
		if !patch.has() || patch.kind != aMap {
			continue
		}
		for i := range patch.entries {
			f := &patch.entries[i]
			if base.get(f.key) != nil || f.value.bad {
				continue
			}
			f.value.bad = true
			if len(m.problems) > maxProblems {
				continue
			}
			var names []string
			if base.has() {
				for _, b := range base.entries {
					names = append(names, b.key)
				}
			}
			what := map[string]string{"functions": "function", "aggregation": "unit"}[section]
			m.add(f.line, f.col, join(join(path, section), f.key), CodeUnknownName,
				fmt.Sprintf("unknown %s %s: an environment changes what the file has", what, quote(f.key)), oneOf(f.key, names))
		}
	}
}

// patch is the environment's section, nil without one.
func (m *maker) patch(keys ...string) *node { return m.env.at(keys...) }

// patchLayer names where the environment's section stands.
func (m *maker) patchLayer(section string) string { return m.envPath + "." + section }

// tell keeps a notice; n may be nil or a default.
func (m *maker) tell(n *node, path, why string) {
	t := Notice{Path: path, Why: why}
	if n != nil {
		t.Line, t.Column = n.line, n.col
	}
	m.told = append(m.told, t)
}

// refuse reports a problem with a merged value: at its place in the file, under
// the path it was written as.
func (m *maker) refuse(n *node, rel string, code Code, why, next string) {
	path := rel
	if n.layer != defaultLayer {
		path = strings.TrimPrefix(n.layer+"."+rel, ".")
	}
	m.add(n.line, n.col, path, code, why, next)
}

// notices puts what was told into the Project, in the order of the file.
func (m *maker) notices() {
	for _, n := range m.nulls {
		if !n.deleted {
			m.tell(n.node, strings.TrimPrefix(n.layer+"."+n.rel, "."), `deletes nothing: no earlier value is there; write "" for an empty text`)
		}
	}
	sort.SliceStable(m.told, func(i, j int) bool {
		a, b := m.told[i], m.told[j]
		switch {
		case a.Line != b.Line:
			return a.Line < b.Line
		case a.Column != b.Column:
			return a.Column < b.Column
		case a.Path != b.Path:
			return a.Path < b.Path
		}
		return a.Why < b.Why
	})
	for i, n := range m.told {
		if i == 0 || n != m.told[i-1] {
			m.p.Notices = append(m.p.Notices, n)
		}
	}
}
