package project

import (
	"fmt"
	"strings"
)

// routes reads the defaults of http events, then every function's events.
func (m *maker) routes() {
	t := m.over(nil, m.root.get("routes"), "routes")
	t = m.over(t, m.patch("routes"), m.patchLayer("routes"))
	r := Routes{
		Host: t.get("host").str(), BasePath: t.get("basePath").str(), CORS: m.cors(t.get("cors"), "cors"),
		Timeout: t.get("timeout").dur(), Auth: "none",
	}
	if v := t.get("auth"); v.has() {
		r.Auth = v.str()
	}
	m.p.Routes, m.merged["routes"] = r, t

	taken := map[string][]Route{}
	for _, f := range m.fns {
		m.events(f, t, taken)
	}
	// The units hold copies made before the events were read.
	byName := make(map[string]*function, len(m.fns))
	for _, f := range m.fns {
		byName[f.name] = f
	}
	for i := range m.p.Units {
		u := &m.p.Units[i]
		routed := false
		u.Timeout = 0
		for j := range u.Functions {
			f := byName[u.Functions[j].Name]
			routed = routed || len(f.Routes) > 0
			u.Timeout = max(u.Timeout, f.Timeout)
			for _, r := range f.Routes {
				u.Timeout = max(u.Timeout, r.Timeout)
			}
		}
		m.network(u, routed && r.Host != "")
		for j := range u.Functions {
			f := byName[u.Functions[j].Name]
			f.Network = u.Network
			if u.Aggregate && len(u.Functions) > 1 && len(f.Routes)+len(f.Timers)+len(f.Triggers) == 0 {
				m.tell(&node{line: f.at.line, col: f.at.col}, join("functions", f.name), "no event calls it, and in unit "+u.Name+" nothing else can")
			}
		}
	}
}

// network decides whether a unit is reachable from outside the cluster.
func (m *maker) network(u *Unit, routed bool) {
	switch {
	case u.Job:
		u.Network = "internal"
	case routed:
		if u.Network == "public" {
			if n := m.fnTree(u.Functions[0].Name).get("network"); n.has() {
				m.tellMerged(n, "network", "unit "+u.Name+" is reached through routes.host and therefore internal")
			}
		}
		u.Network = "internal"
	case u.Network == "":
		u.Network = "public"
	}
}

func (m *maker) fnTree(name string) *node {
	for _, f := range m.fns {
		if f.name == name {
			return f.tree
		}
	}
	return nil
}

// cors reads a cors map; what browsers would refuse is a problem.
func (m *maker) cors(n *node, rel string) *CORS {
	if !n.has() || n.kind != aMap {
		return nil
	}
	c := &CORS{
		Origins: n.get("origins").strs(), Methods: sorted(n.get("methods").strs()),
		Headers: n.get("headers").strs(), Credentials: n.get("credentials").bool(),
	}
	if o := n.get("origins"); c.Credentials && o.has() {
		for _, v := range o.items {
			if v.str() == "*" {
				m.refuse(n.get("credentials"), rel+".credentials", CodeConflict, "browsers refuse credentials for the origin *", "name the origins, or remove credentials")
				break
			}
		}
	}
	return c
}

// events reads a function's events.
func (m *maker) events(f *function, defaults *node, taken map[string][]Route) {
	list := f.tree.get("events")
	if timeout := f.tree.get("timeout"); list.has() && !said(timeout, f.name, m.envPath) && defaults.get("timeout").has() {
		for _, e := range list.items {
			if e.get("http").has() {
				f.Timeout = m.p.Routes.Timeout
				f.tree.put(entry{key: "timeout", value: defaults.get("timeout")})
				break
			}
		}
	}
	if !list.has() {
		return
	}
	for i, e := range list.items {
		path := fmt.Sprintf("%s.events[%d]", list.layer, i)
		if !e.has() || e.kind != aMap {
			continue
		}
		if v := e.entries; len(v) == 1 && v[0].value.kind == aNull && !v[0].value.bad {
			m.at(e, path+"."+v[0].key, CodeRequired, "the event is empty", "write what calls the function, such as http: {path: /hello}")
		}
		if n := e.get("http"); n.has() {
			m.http(f, n, path+".http", defaults, taken)
		}
		if n := e.get("timer"); n.has() {
			m.timer(f, n, path+".timer")
		}
		if n := e.get("cloudevent"); n.has() {
			m.trigger(f, n, path+".cloudevent")
		}
	}
}

// said reports whether the function itself, not provider or the platform,
// wrote a value.
func said(n *node, fn, envPath string) bool {
	return n.has() && (n.layer == join("functions", fn) || n.layer == join(envPath+".functions", fn))
}

func (m *maker) http(f *function, n *node, path string, defaults *node, taken map[string][]Route) {
	if f.job {
		m.at(n, path, CodeConflict, f.name+" is a job: it answers no requests", "remove the event, or remove kind: job")
		return
	}
	r := Route{
		Function: f.name, Unit: f.Unit, Host: m.p.Routes.Host, Line: n.line,
		Timeout: f.Timeout, Auth: m.p.Routes.Auth, CORS: m.p.Routes.CORS,
	}
	p := n.get("path")
	if !p.has() {
		return
	}
	r.Path = m.p.Routes.BasePath + p.str()
	if p.str() == "/" && m.p.Routes.BasePath != "" {
		r.Path = m.p.Routes.BasePath
	}
	if e := n.get("method"); e.has() {
		r.Methods = sorted(e.strs())
		for _, name := range r.Methods {
			if name == "any" && len(r.Methods) > 1 {
				m.at(e, path+".method", CodeConflict, "any stands beside other methods", "keep any alone, or name the methods")
			}
		}
		if len(r.Methods) > 0 && r.answersAny() {
			r.Methods = nil
		}
	}
	if v := n.get("timeout"); v.has() {
		r.Timeout = v.dur()
		if d := m.most.timeout; d > 0 && r.Timeout > d {
			m.at(v, path+".timeout", CodeLimit, fmt.Sprintf("%s is more than tier %s allows", r.Timeout, m.tier), "use at most "+d.String())
		}
	}
	if v := n.get("auth"); v.has() {
		r.Auth = v.str()
	}
	if v := n.get("cors"); v.has() {
		own := m.over(defaults.get("cors"), v, strings.TrimSuffix(path, ".cors"))
		r.CORS = m.cors(own, "cors")
	}
	for _, reserved := range []string{"/health/readiness", "/health/liveness"} {
		if r.Path == reserved {
			m.at(p, path+".path", CodeRoute, reserved+" is the platform's own", "choose another path")
		}
	}
	key := shape(r.Path)
	for _, o := range taken[key] {
		if !overlap(r.Methods, o.Methods) {
			continue
		}
		m.at(p, path+".path", CodeRoute, fmt.Sprintf("%s is routed twice: line %d routes it to %s", methodsAnd(r), o.Line, o.Function), "change the path or the methods of one of them")
		break
	}
	taken[key] = append(taken[key], r)
	f.Routes = append(f.Routes, r)
}

func (r Route) answersAny() bool {
	for _, name := range r.Methods {
		if name == "any" {
			return true
		}
	}
	return false
}

func methodsAnd(r Route) string {
	if len(r.Methods) == 0 {
		return r.Path
	}
	return strings.ToUpper(strings.Join(r.Methods, ", ")) + " " + r.Path
}

func overlap(a, b []string) bool {
	if len(a) == 0 || len(b) == 0 {
		return true
	}
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}

func (m *maker) timer(f *function, n *node, path string) {
	t := Timer{
		Cron: n.get("cron").str(), Every: n.get("every").dur(), Timezone: n.get("timezone").str(),
		Payload: n.get("payload").str(), Overlap: "skip", Line: n.line,
	}
	if v := n.get("overlap"); v.has() {
		t.Overlap = v.str()
	}
	c, e := n.get("cron"), n.get("every")
	switch {
	case c != nil && e != nil:
		m.at(e, path+".every", CodeConflict, "cron and every are both there", "keep one")
	case c == nil && e == nil:
		m.at(n, path, CodeRequired, "says neither cron nor every", `add every: 1h, or cron: "0 2 * * *"`)
	}
	f.Timers = append(f.Timers, t)
}

func (m *maker) trigger(f *function, n *node, path string) {
	if f.job {
		m.at(n, path, CodePlanned, planned("a cloudevent that starts a job"), "use a timer, or make the function online")
		return
	}
	t := Trigger{
		Broker: "default", Type: n.get("type").str(), Source: n.get("source").str(),
		Filters: n.get("filters").strMap(), Line: n.line,
	}
	if v := n.get("broker"); v.has() {
		t.Broker = v.str()
	}
	if n.get("type") == nil && n.get("source") == nil && len(t.Filters) == 0 {
		m.at(n, path, CodeRequired, "would take every event of the broker", "add type, source or filters")
	}
	f.Triggers = append(f.Triggers, t)
}
