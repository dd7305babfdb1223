package project

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// function is a function on its way: its layers, its merged tree, its result.
type function struct {
	name string
	at   entry // in the file
	// own is functions.<fn> with the environment's patch: what the function
	// says itself. tree is everything, merged.
	own, tree *node
	standing  bool // standalone
	job       bool
	unit      string
	Function
}

// functions lists them in file order and merges what each says itself.
func (m *maker) functions() {
	all := m.root.get("functions")
	if !all.has() || all.kind != aMap {
		return
	}
	if len(all.entries) == 0 {
		m.at(all, "functions", CodeRequired, "there is no function", "add one: hello: {handler: index.handler}")
		return
	}
	most := maxFunctions
	if m.limit.MaxFunctions > 0 {
		most = min(most, m.limit.MaxFunctions)
	}
	if len(all.entries) > most {
		m.at(all, "functions", CodeLimit, fmt.Sprintf("there are %d functions; tier %s allows %d", len(all.entries), m.tier, most), "split the repository")
		return
	}
	for _, e := range all.entries {
		patch := m.patch("functions", e.key)
		if e.value.bad || e.value.kind != aMap {
			if e.value.kind == aNull && !e.value.bad {
				m.at(e.value, join("functions", e.key), CodeRequired, "the function is empty", "give it a handler, or remove it")
			}
			continue
		}
		if patch != nil && patch.kind == aNull && !patch.bad {
			continue // removed in this environment
		}
		f := &function{name: e.key, at: e}
		f.own = m.over(nil, e.value, join("functions", e.key))
		f.own = m.over(f.own, patch, join(m.patchLayer("functions"), e.key))
		f.job = f.own.get("kind").str() == string(KindJob)
		f.standing = f.own.get("standalone").bool()
		m.fns = append(m.fns, f)
	}
	if len(m.fns) == 0 && len(m.problems) == 0 {
		m.at(all, "functions", CodeRequired, "no function is left in this environment", "keep at least one")
	}
}

// merge makes a function's tree: defaults < top-level build and layers <
// provider < aggregate < function < environment.
func (m *maker) merge(f *function) {
	t := m.over(m.above(f.unit), f.at.value, join("functions", f.name))
	t = m.over(t, m.patch("provider"), m.patchLayer("provider"))
	if f.unit != "" {
		t = m.over(t, m.patch("aggregation", f.unit).without(members...), join(m.patchLayer("aggregation"), f.unit))
	}
	f.tree = m.over(t, m.patch("functions", f.name), join(m.patchLayer("functions"), f.name))
}

// members are the keys of an aggregate that are not settings.
var members = []string{"functions", "functionsPattern", "isolation"}

// above is what every function of a unit starts from: top-level build and
// layers, provider, the aggregate. Function layers are copied over it.
func (m *maker) above(unit string) *node {
	if t := m.starts[unit]; t != nil {
		return t
	}
	var t *node
	if unit == "" {
		t = m.over(nil, m.root.only("build", "layers"), "")
		t = m.over(t, m.root.get("provider"), "provider")
	} else {
		t = m.over(m.above(""), m.root.at("aggregation", unit).without(members...), join("aggregation", unit))
	}
	m.starts[unit] = t
	return t
}

// strMap is n's, made once: functions that add nothing share it.
func (m *maker) strMap(n *node) map[string]string {
	if n == nil {
		return nil
	}
	s, ok := m.maps[n]
	if !ok {
		s = n.strMap()
		m.maps[n] = s
	}
	return s
}

// standard are the tier's defaults for a language.
func (m *maker) standard(language string) *node {
	t := m.defaults[language]
	if t == nil {
		t = m.std.settings(language)
		m.defaults[language] = t
	}
	return t
}

// language of a runtime; "" for one that is missing or unknown.
func (m *maker) language(runtime string) string {
	for _, r := range m.o.Runtimes {
		if r.Name == runtime {
			return r.Language
		}
	}
	return ""
}

// settings reads a merged and filled tree.
func (m *maker) settings(t *node) Settings {
	s := Settings{
		Runtime: t.get("runtime").str(), Contract: t.get("contract").str(), EventFormat: t.get("eventFormat").str(),
		Memory: Quantity(t.get("memory").str()), CPU: Quantity(t.get("cpu").str()),
		Timeout: t.get("timeout").dur(), InitTimeout: t.get("initTimeout").dur(), IdleTimeout: t.get("idleTimeout").dur(),
		Concurrency: t.get("concurrency").int(), Environment: m.strMap(t.get("environment")),
		Secrets: refs(t.get("secrets"), "secret"), Config: refs(t.get("config"), "configmap"),
		Scale: Scale{
			Min: t.at("scale", "min").int(), Max: t.at("scale", "max").int(),
			Target: t.at("scale", "target").float(), Metric: t.at("scale", "metric").str(),
		},
		Network: t.get("network").str(), Layers: t.get("layers").strs(), Build: buildOf(t.get("build")),
	}
	s.Language = m.language(s.Runtime)
	return s
}

func refs(n *node, kind string) map[string]Ref {
	if !n.has() || n.kind != aMap || len(n.entries) == 0 {
		return nil
	}
	out := make(map[string]Ref, len(n.entries))
	for _, e := range n.entries {
		if e.value.has() {
			out[e.key] = Ref{Name: e.value.get(kind).str(), Key: e.value.get("key").str(), Path: e.value.get("path").str()}
		}
	}
	return out
}

func buildOf(n *node) Build {
	return Build{
		Builder: n.get("builder").str(), Base: n.get("base").str(), Install: n.get("install").str(),
		Command: n.get("command").str(), Output: n.get("output").str(), Dockerfile: n.get("dockerfile").str(),
		Image: n.get("image").str(), Env: n.get("env").strMap(), Secrets: n.get("secrets").strs(),
	}
}

// judge checks a function's merged values against each other and against the
// tier's limits, and makes the Function.
func (m *maker) judge(f *function) {
	language := m.language(f.tree.get("runtime").str())
	f.tree = f.tree.filledWith(m.standard(language))
	t, rel := f.tree, func(key string) string { return key }
	f.Function = Function{
		Name: f.name, Settings: m.settings(t), Handler: t.get("handler").str(), Source: t.get("source").str(),
		Kind: Online, Standalone: f.standing, Line: f.at.line,
	}
	if f.job {
		f.Kind = KindJob
	}
	m.runtime(f)
	m.handler(f)
	m.build(f)
	m.variables(f)
	m.scale(f)
	m.limits(f)
	m.job(f)
	for _, kind := range []string{"secrets", "config"} {
		m.complete(t.get(kind), rel(kind))
	}
	if f.Source == "." {
		m.refuse(t.get("source"), "source", CodeValue, "the whole repository can't belong to one function", "name a folder, or remove source")
	}
}

// complete refuses references that a patch left unfinished.
func (m *maker) complete(n *node, rel string) {
	if !n.has() || n.kind != aMap {
		return
	}
	kind := map[string]string{"secrets": "secret", "config": "configmap"}[rel]
	for _, e := range n.entries {
		for _, k := range []string{kind, "key"} {
			if e.value.has() && e.value.kind == aMap && e.value.get(k) == nil {
				m.refuse(e.value, join(join(rel, e.key), k), CodeRequired, "is required", "write "+kind+"/key")
			}
		}
	}
}

func (m *maker) runtime(f *function) {
	b := f.Build.Builder
	n := f.tree.get("runtime")
	if n != nil || f.Contract == "app" && (b == "dockerfile" || b == "none") {
		return
	}
	var names []string
	for _, r := range m.o.Runtimes {
		names = append(names, r.Name)
	}
	p := m.root.get("provider")
	if f.own.get("runtime") == nil && p == nil {
		m.add(m.root.line, m.root.col, "provider.runtime", CodeRequired, "is required", oneOf("", names))
		return
	}
	if p.has() {
		m.add(p.line, p.col, "provider.runtime", CodeRequired, "is required", oneOf("", names))
	}
}

var (
	fileHandler   = regexp.MustCompile(`^(.+)\.([A-Za-z_$][\w$]*)$`)
	javaHandler   = regexp.MustCompile(`^([A-Za-z_$][\w$]*\.)*[A-Za-z_$][\w$]*(::[A-Za-z_$][\w$]*)?$`)
	fileExtension = regexp.MustCompile(`\.(js|mjs|cjs|ts|mts|cts|jsx|tsx|py|java|class)$`)
)

// handler checks how a handler is written; the plan checks that it is there.
func (m *maker) handler(f *function) {
	n := f.tree.get("handler")
	if n == nil {
		if f.Contract != "app" && !slices.Contains(f.at.value.meant, "handler") && !f.tree.get("contract").isBad() {
			m.add(f.at.value.line, f.at.value.col, join(join("functions", f.name), "handler"), CodeRequired, "is required", m.handlerExample(f))
		}
		return
	}
	if !n.has() || f.Contract == "app" {
		return
	}
	h := n.str()
	no := func(why, next string) { m.refuse(n, "handler", CodeValue, why, next) }
	switch f.Language {
	case "":
	case "java":
		if f.Contract == "web" {
			m.refuse(f.tree.get("contract"), "contract", CodeConflict, "contract web does not exist for Java", "use http or app")
			return
		}
		if !javaHandler.MatchString(h) {
			no(quote(h)+" is not a Java handler", "write pkg.Class::method")
		}
	default:
		if why, next := pathProblem(h); why != "" {
			no(why, next)
			return
		}
		if ext := fileExtension.FindString(h); ext != "" {
			no(quote(h)+" names a file, not what it exports", "write "+strings.TrimSuffix(h, ext)+".handler")
			return
		}
		if strings.Contains(h, "::") {
			no(quote(h)+" is a Java handler; runtime "+f.Runtime+" is not Java", m.handlerExample(f))
			return
		}
		g := fileHandler.FindStringSubmatch(h)
		if g == nil || strings.HasSuffix(g[1], "/") {
			if f.Contract == "web" {
				return // exports named GET, POST, …
			}
			no(quote(h)+" does not name an export", m.handlerExample(f))
			return
		}
		if ext := fileExtension.FindString(g[1]); ext != "" {
			no(quote(h)+" has a file's extension", "write "+strings.TrimSuffix(g[1], ext)+"."+g[2])
		}
	}
}

func (m *maker) handlerExample(f *function) string {
	if f.Language == "java" {
		return "write handler: pkg.Class::method"
	}
	return "write handler: path/file.export, such as index.handler"
}

func (n *node) isBad() bool { return n != nil && n.bad }

// build tells which fields a builder does not use, and what it lacks.
func (m *maker) build(f *function) {
	b := f.tree.get("build")
	inert := map[string][]string{
		"layer":      {"dockerfile", "image"},
		"dockerfile": {"base", "image"},
		"none":       {"base", "install", "command", "output", "dockerfile", "env", "secrets"},
	}[f.Build.Builder]
	for _, key := range inert {
		if n := b.get(key); n.has() {
			m.tellMerged(n, join("build", key), "builder "+f.Build.Builder+" does not use it")
		}
	}
	for _, n := range f.Build.Secrets {
		if _, twice := f.Build.Env[n]; twice {
			m.refuse(b.get("secrets"), "build.secrets", CodeConflict, n+" is also in build.env", "keep one of them")
		}
	}
	switch f.Build.Builder {
	case "none":
		if b.get("image") == nil {
			m.refuse(b.get("builder"), "build.builder", CodeRequired, "builder none needs build.image", "name the finished image")
		}
	case "dockerfile":
		if f.Build.Dockerfile == "" {
			f.Build.Dockerfile = "Dockerfile"
		}
	}
}

// tellMerged keeps a notice about a merged value that the file wrote.
func (m *maker) tellMerged(n *node, rel, why string) {
	if n.layer != defaultLayer {
		m.tell(n, strings.TrimPrefix(n.layer+"."+rel, "."), why)
	}
}

// variables of one process must not be set twice.
func (m *maker) variables(f *function) {
	env, secrets, config := f.tree.get("environment"), f.tree.get("secrets"), f.tree.get("config")
	clash := func(n *node, kind string, others ...*node) {
		if !n.has() || n.kind != aMap {
			return
		}
		for _, e := range n.entries {
			for _, o := range others { // the first is enough
				if v := o.get(e.key); v.has() && e.value.has() && e.value.get("path") == nil && v.get("path") == nil {
					m.refuse(e.value, join(kind, e.key), CodeConflict, "the variable is set twice: also in line "+fmt.Sprint(v.line), "keep one of them")
					break
				}
			}
		}
	}
	clash(secrets, "secrets", env)
	clash(config, "config", env, secrets)
}

func (m *maker) scale(f *function) {
	if f.job {
		return
	}
	s := f.tree.get("scale")
	least, most, metric := s.get("min"), s.get("max"), s.get("metric")
	if least.has() && most.has() && f.Scale.Min > f.Scale.Max {
		blame, rel := most, "scale.max"
		if most.line == 0 {
			blame, rel = least, "scale.min"
		}
		m.refuse(blame, rel, CodeConflict, fmt.Sprintf("min %d (%s) is more than max %d (%s)", f.Scale.Min, m.from(least), f.Scale.Max, m.from(most)), "lower min or raise max")
	}
	if f.Scale.Metric == "cpu" && least.has() && f.Scale.Min == 0 {
		m.refuse(metric, "scale.metric", CodeConflict, "metric cpu can't start from zero instances", "add min: 1")
	}
	if t := s.get("target"); t.has() && f.Scale.Metric == "concurrency" && f.Concurrency > 0 && f.Scale.Target > float64(f.Concurrency) {
		m.tellMerged(t, "scale.target", fmt.Sprintf("target %v is more than %s's concurrency %d, which caps it", f.Scale.Target, f.name, f.Concurrency))
	}
}

// from says where a merged value stands, for people.
func (m *maker) from(n *node) string {
	if n.line > 0 {
		return fmt.Sprintf("line %d", n.line)
	}
	return fmt.Sprintf("%s (%s)", defaultLayer, m.tier)
}

func (m *maker) limits(f *function) {
	l, t := m.limit, f.tree
	over := func(n *node, rel, value, most string) {
		m.refuse(n, rel, CodeLimit, fmt.Sprintf("%s is more than tier %s allows", value, m.tier), "use at most "+most)
	}
	if q := m.most.memory; q != "" && f.Memory.Bytes() > m.most.bytes {
		over(t.get("memory"), "memory", string(f.Memory), string(q))
	}
	if q := m.most.cpu; q != "" && f.CPU.MilliCPU() > m.most.milli {
		over(t.get("cpu"), "cpu", string(f.CPU), string(q))
	}
	if f.job {
		return
	}
	if d := m.most.timeout; d > 0 && f.Timeout > d {
		over(t.get("timeout"), "timeout", f.Timeout.String(), d.String())
	}
	if l.MaxConcurrency > 0 && f.Concurrency > l.MaxConcurrency {
		over(t.get("concurrency"), "concurrency", fmt.Sprint(f.Concurrency), fmt.Sprint(l.MaxConcurrency))
	}
	if n := t.at("scale", "max"); l.MaxScale > 0 && f.Scale.Max > l.MaxScale {
		over(n, "scale.max", fmt.Sprint(f.Scale.Max), fmt.Sprint(l.MaxScale))
	}
	if n := t.at("scale", "min"); n.has() && f.Scale.Min < l.MinScale {
		m.refuse(n, "scale.min", CodeLimit, fmt.Sprintf("%d is less than tier %s requires", f.Scale.Min, m.tier), fmt.Sprintf("use at least %d", l.MinScale))
	}
}

// job makes the Job, and refuses or tells what does not go with the kind.
func (m *maker) job(f *function) {
	n := f.tree.get("job")
	if !f.job {
		if n.has() && !f.own.get("kind").isBad() {
			m.refuse(n, "job", CodeConflict, "only a function of kind job has it", "add kind: job, or remove it")
		}
		return
	}
	for _, key := range []string{"scale", "concurrency", "contract", "eventFormat", "timeout", "standalone"} {
		if v := f.own.get(key); v.has() {
			why := "a job does not use it"
			if key == "timeout" {
				why += "; job.timeout bounds it"
			}
			m.tell(v, v.layer+"."+key, why)
		}
	}
	j := n
	if j == nil || j.bad {
		j = &node{kind: aMap}
	}
	parallelism := 1
	if v := j.get("parallelism"); v.has() {
		parallelism = v.int()
	}
	j = j.filledWith(givenMap("parallelism", 1, "completions", parallelism, "retries", 0, "timeout", "1h", "ttl", "1d"))
	f.tree.put(entry{key: "job", value: j})
	f.Job = &Job{
		Parallelism: j.get("parallelism").int(), Completions: j.get("completions").int(), Retries: j.get("retries").int(),
		Timeout: j.get("timeout").dur(), TTL: j.get("ttl").dur(),
	}
	if d := m.most.jobTimeout; d > 0 && f.Job.Timeout > d {
		m.refuse(j.get("timeout"), "job.timeout", CodeLimit, fmt.Sprintf("%s is more than tier %s allows", f.Job.Timeout, m.tier), "use at most "+d.String())
	}
	if l := m.limit.MaxParallelism; l > 0 && f.Job.Parallelism > l {
		m.refuse(j.get("parallelism"), "job.parallelism", CodeLimit, fmt.Sprintf("%d is more than tier %s allows", f.Job.Parallelism, m.tier), fmt.Sprintf("use at most %d", l))
	}
	if c := j.get("completions"); c.has() && f.Job.Completions < f.Job.Parallelism {
		m.refuse(c, "job.completions", CodeConflict, fmt.Sprintf("%d is less than parallelism %d", f.Job.Completions, f.Job.Parallelism), "raise completions or lower parallelism")
	}
}
