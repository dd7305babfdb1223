package importer

import (
	"encoding/json"
	"path"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Reasons that several formats share.
const (
	whyCluster  = "the platform's clusters.yml decides where functions run; see environments.<env> in faas.yml"
	whyPlugin   = "plugins come from the platform's bundle; see plugins in faas.yml"
	whyRights   = "a function's rights come from its namespace's ServiceAccount"
	whyResource = "faas.yml describes functions only"
	whyImages   = "images go to the registry of the platform"
)

// serviceName takes service: a name, or a map with one.
func (c *converter) serviceName(in *object, out *file, key string) {
	name := in.takeText(key)
	at := in.lines[key]
	if name == "" {
		m := in.takeMap(key)
		name, at = m.takeText("name"), m.lines["name"]
		if d, ok := c.value(m.values["description"], m.at("description")); ok {
			m.take("description")
			defer put(out.service, "description", str(d))
		}
	}
	if text, ok := c.value(str(name), key); ok && text != "" {
		put(out.service, "name", str(c.label(at, "service", text, 24)))
	} else {
		put(out.service, "name", str("my-service"))
		c.note(at, "the service has no name that can be taken over: it is called my-service")
	}
	if d, ok := c.value(in.values["description"], "description"); ok && in.takeText("description") != "" {
		put(out.service, "description", str(d))
	}
}

// common takes the settings that all formats of cloud functions share.
func (c *converter) common(m *object, to *yaml.Node, function bool) {
	if r, ok := c.value(m.values["runtime"], m.at("runtime")); ok {
		m.take("runtime")
		put(to, "runtime", str(c.runtime(m.lines["runtime"], r)))
	}
	for _, key := range []string{"memorySize", "memory"} {
		if m.has(key) {
			put(to, "memory", c.megabytes(m, key))
			break
		}
	}
	put(to, "timeout", c.seconds(m, "timeout"))
	for _, key := range []string{"initTimeout", "initializationTimeout"} {
		if m.has(key) {
			put(to, "initTimeout", c.seconds(m, key))
			break
		}
	}
	put(to, "environment", c.environment(m.takeMap("environment")))
	m.drop("region", whyCluster)
	m.drop("role", whyRights)
	m.drop("iam", whyRights)
	m.drop("iamRoleStatements", whyRights)
	if function {
		m.drop("description", "functions have names only; write it as a comment")
	}
}

// functionsOf walks over the functions of a file.
func (c *converter) functionsOf(in *object, out *file, each func(m *object, fn *yaml.Node)) map[string]string {
	names := map[string]string{} // as written → ours
	all := in.takeMap("functions")
	for _, key := range all.keys {
		m := all.takeMap(key)
		if len(m.keys) == 0 {
			c.note(all.lines[key], "%s is no map of settings", all.at(key))
			all.take(key)
			continue
		}
		names[key] = c.label(all.lines[key], "function", key, 63)
		fn := mapNode()
		if h, ok := c.value(m.values["handler"], m.at("handler")); ok {
			m.take("handler")
			put(fn, "handler", str(strings.TrimPrefix(h, "./")))
		}
		c.common(m, fn, true)
		each(m, fn)
		put(out.functions, names[key], fn)
	}
	return names
}

// events turns each event into ours.
func (c *converter) events(m *object, convert func(kind string, v *yaml.Node, at *yaml.Node) *yaml.Node) *yaml.Node {
	out := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for _, item := range m.takeList("events") {
		if item == nil || item.Kind != yaml.MappingNode {
			if item != nil {
				c.note(item, "%s: an event %s has no equivalent", m.at("events"), item.Value)
			}
			continue
		}
		e := c.newMap(item, m.at("events"), 0)
		for _, kind := range e.keys {
			v := e.take(kind)
			if made := convert(kind, v, e.lines[kind]); made != nil {
				out.Content = append(out.Content, made)
			}
		}
	}
	return out
}

// texts are the scalars of a list.
func texts(list []*yaml.Node) []string {
	var out []string
	for _, n := range list {
		if n != nil && n.Kind == yaml.ScalarNode && n.Value != "" {
			out = append(out, n.Value)
		}
	}
	return out
}

// everything are the patterns that exclude all files, so that only those count
// which are included then.
var everything = map[string]bool{"**": true, "**/*": true, "*": true, "**/**": true}

func (c *converter) packages(in *object, out *file) {
	p := in.takeMap("package")
	var include, exclude []string
	nothing := false // is taken but for what include names
	for _, s := range texts(p.takeList("patterns")) {
		rest, not := strings.CutPrefix(s, "!")
		switch {
		case not && everything[strings.TrimPrefix(rest, "./")]:
			nothing, include, exclude = true, nil, nil // later patterns win
		case not:
			exclude = append(exclude, rest)
		default:
			include = append(include, s)
		}
	}
	include = append(include, texts(p.takeList("include"))...)
	for _, s := range texts(p.takeList("exclude")) {
		if everything[strings.TrimPrefix(s, "./")] {
			nothing = true
		} else {
			exclude = append(exclude, s)
		}
	}
	if len(include) > 0 && !nothing {
		c.note(in.lines["package"], "package: %s would be taken in addition; here all tracked files are. Name a folder that a build makes in build.output", strings.Join(include, ", "))
		include = nil
	}
	glob := func(list []string) *yaml.Node {
		for i, s := range list {
			list[i] = strings.TrimPrefix(s, "./")
		}
		return listNode(list...)
	}
	put(out.pack, "include", glob(include))
	put(out.pack, "exclude", glob(exclude))
	p.drop("individually", "files under functions.<fn>.source belong to one function alone")
	p.drop("artifact", "the platform makes the image from the sources")
}

func (c *converter) midway(in *object, out *file) {
	c.serviceName(in, out, "service")
	p := in.takeMap("provider")
	p.take("name")
	c.common(p, out.provider, false)
	put(out.provider, "concurrency", c.whole(p, "concurrency"))
	p.drop("serviceRole", whyRights)
	p.drop("vpcConfig", whyCluster)
	p.drop("stage", "environments are named by the CI template")
	c.packages(in, out)
	in.drop("custom", "addresses come from routes.host and the platform's gateway")
	in.drop("plugins", whyPlugin)
	in.drop("layers", "only the platform's own layers exist; see layers in faas.yml")
	in.drop("deployType", "contract: app runs a server of its own")

	names := c.functionsOf(in, out, func(m *object, fn *yaml.Node) {
		put(fn, "concurrency", c.whole(m, "concurrency"))
		put(fn, "events", c.events(m, func(kind string, v, at *yaml.Node) *yaml.Node {
			switch e := c.newMap(v, m.at("events."+kind), 0); kind {
			case "http", "apigw", "apigateway":
				if v.Kind == yaml.ScalarNode {
					return c.route(at, "/*", nil)
				}
				return c.route(at, e.takeText("path"), texts(e.takeList("method")))
			case "timer", "schedule":
				payload := e.takeText("payload")
				made := c.clock(at, e.takeText("type"), e.takeText("value"))
				if made != nil && payload != "" {
					put(made.Content[1], "payload", str(payload))
				}
				if e.takeText("enable") == "false" {
					c.note(at, "a timer that is off has no equivalent: it is left out")
					return nil
				}
				return made
			}
			c.ignore(v)
			c.note(at, "an event of kind %s has no equivalent yet", kind)
			return nil
		}))
	})

	groups := in.takeMap("aggregation")
	if len(groups.keys) == 0 {
		out.mode = "independent"
		return
	}
	member := map[string]bool{}
	for _, key := range groups.keys {
		g := groups.takeMap(key)
		unit := mapNode()
		var functions []string
		for _, f := range texts(g.takeList("functions")) {
			if names[f] == "" {
				c.note(g.lines["functions"], "%s: there is no function %s", g.at("functions"), f)
				continue
			}
			functions = append(functions, names[f])
			member[names[f]] = true
		}
		patterns := texts(g.takeList("functionsPattern"))
		for _, p := range patterns {
			for _, n := range names {
				if ok, _ := path.Match(p, n); ok {
					member[n] = true
				}
			}
		}
		put(unit, "functions", listNode(functions...))
		put(unit, "functionsPattern", listNode(patterns...))
		g.drop("deployOrigin", "a function is deployed once: alone (standalone: true) or in its aggregate")
		c.common(g, unit, false)
		put(out.aggregation, c.label(groups.lines[key], "unit", key, 63), unit)
	}
	for i := 0; i+1 < len(out.functions.Content); i += 2 {
		if !member[out.functions.Content[i].Value] {
			fn := out.functions.Content[i+1]
			fn.Content = append(fn.Content, str("standalone"), &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true"})
		}
	}
}

// ignore counts all of a value as named already.
func (c *converter) ignore(v *yaml.Node) {
	for _, m := range c.objects {
		for _, k := range m.keys {
			if v != nil && v.Kind == yaml.MappingNode && m.lines[k] != nil && within(m.lines[k], v) {
				m.taken[k] = true
			}
		}
	}
}

func within(n, in *yaml.Node) bool {
	for _, c := range in.Content {
		if c == n {
			return true
		}
	}
	return false
}

// clock is a timer of a type and a value.
func (c *converter) clock(at *yaml.Node, kind, value string) *yaml.Node {
	switch kind {
	case "every":
		return c.every(at, value)
	case "cron", "":
		return c.cron(at, value)
	}
	c.note(at, "a timer of type %s has no equivalent", kind)
	return nil
}

var methodPath = regexp.MustCompile(`^([A-Za-z]+|\*)\s+(\S+)$`)

func (c *converter) serverless(in *object, out *file) {
	c.serviceName(in, out, "service")
	in.take("frameworkVersion")
	in.take("configValidationMode")
	p := in.takeMap("provider")
	p.take("name")
	c.common(p, out.provider, false)
	p.drop("stage", "environments are named by the CI template")
	p.drop("vpc", whyCluster)
	p.drop("httpApi", "routes are set with routes and functions.<fn>.events")
	p.drop("apiGateway", "routes are set with routes and functions.<fn>.events")
	c.packages(in, out)
	in.drop("custom", "variables come from CI: ${env:NAME}")
	in.drop("plugins", whyPlugin)
	in.drop("resources", whyResource)
	in.drop("layers", "only the platform's own layers exist; see layers in faas.yml")
	in.drop("useDotenv", "variables come from CI: ${env:NAME}")
	in.drop("org", whyCluster)
	in.drop("app", whyCluster)
	out.mode = "independent"
	c.functionsOf(in, out, func(m *object, fn *yaml.Node) {
		if s := c.whole(m, "reservedConcurrency"); s != nil && s.Value != "0" {
			put(fn, "scale", flow(scale("max", s)))
			c.note(m.lines["reservedConcurrency"], "%s becomes scale.max: instances, not requests", m.at("reservedConcurrency"))
		}
		m.drop("provisionedConcurrency", "scale.min keeps instances ready")
		m.drop("layers", "only the platform's own layers exist; see layers in faas.yml")
		m.drop("vpc", whyCluster)
		put(fn, "events", c.events(m, func(kind string, v, at *yaml.Node) *yaml.Node {
			switch kind {
			case "http", "httpApi":
				if v.Kind == yaml.ScalarNode {
					if v.Value == "*" {
						return c.route(at, "/*", nil)
					}
					if f := methodPath.FindStringSubmatch(v.Value); f != nil {
						return c.route(at, f[2], []string{f[1]})
					}
					break
				}
				e := c.newMap(v, m.at("events."+kind), 0)
				// A route that was protected must not come out open.
				guarded := e.has("authorizer") || e.has("private") && e.text("private") != "false"
				e.drop("authorizer", "becomes auth: jwt; auth may also be a plugin of the platform")
				e.drop("private", "becomes auth: jwt; auth may also be a plugin of the platform")
				if e.takeText("cors") != "" || e.has("cors") {
					e.drop("cors", "write routes.cors with the origins that may call")
				}
				made := c.route(at, e.takeText("path"), texts(e.takeList("method")))
				if made != nil && guarded {
					put(made.Content[1], "auth", str("jwt"))
				}
				return made
			case "schedule":
				rule, input := "", ""
				if v.Kind == yaml.ScalarNode {
					rule = v.Value
				} else {
					e := c.newMap(v, m.at("events."+kind), 0)
					rule = strings.Join(texts(e.takeList("rate")), " ")
					input = e.takeText("input")
					if m := e.values["input"]; input == "" && m != nil && m.Kind == yaml.MappingNode {
						input = asJSON(e.take("input"))
						c.ignore(m)
					}
					if e.takeText("enabled") == "false" {
						c.note(at, "a schedule that is off has no equivalent: it is left out")
						return nil
					}
				}
				made := c.schedule(at, rule)
				if made != nil && input != "" {
					put(made.Content[1], "payload", str(input))
				}
				return made
			}
			c.note(at, "an event of kind %s has no equivalent yet", kind)
			return nil
		}))
	})
}

// asJSON is a value as JSON text; empty for one that is none.
func asJSON(n *yaml.Node) string {
	var v any
	if n.Decode(&v) != nil {
		return ""
	}
	data, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(data)
}

func scale(key string, n *yaml.Node) *yaml.Node {
	m := mapNode()
	put(m, key, n)
	return m
}

func (c *converter) schedule(at *yaml.Node, rule string) *yaml.Node {
	switch {
	case rate.MatchString(rule):
		return c.every(at, rule)
	case strings.HasPrefix(rule, "cron("):
		return c.cron(at, rule)
	}
	c.note(at, "schedule %s has no equivalent", rule)
	return nil
}

var (
	funcSecret = regexp.MustCompile(`^\{\{ *(secret|configMap):([a-z0-9]([-a-z0-9.]*[a-z0-9])?):([-._A-Za-z0-9]+) *\}\}$`)
	funcLocal  = regexp.MustCompile(`^\{\{ *env:([A-Za-z_][A-Za-z0-9_]*) *\}\}$`)
)

func (c *converter) knativeFunc(in *object, out *file) {
	in.take("specVersion")
	in.take("created")
	name, at := in.takeText("name"), in.lines["name"]
	if name == "" {
		name = "my-function"
		c.note(nil, "the function has no name: it is called my-function")
	}
	put(out.service, "name", str(c.label(at, "service", name, 24)))
	runtime := in.takeText("runtime")
	put(out.provider, "runtime", str(c.runtime(in.lines["runtime"], runtime)))

	fn := mapNode()
	cloudevent := in.takeText("invoke") == "cloudevent"
	if strings.HasPrefix(runtime, "python") {
		put(fn, "handler", str("func.main"))
	} else {
		put(fn, "handler", str("index.handle"))
	}
	if cloudevent {
		put(fn, "contract", str("cloudevent"))
	}
	c.note(in.lines["runtime"], "the handler's signature differs: a func handler gets a context first; see contract in faas.yml")

	runs := []*object{in.takeMap("run"), in.takeMap("deploy"), in}
	env, secrets, config := mapNode(), mapNode(), mapNode()
	c.funcEnvs(runs[0], env, secrets, config)
	c.funcEnvs(in, env, secrets, config)
	put(fn, "environment", env)
	put(fn, "secrets", secrets)
	put(fn, "config", config)

	for _, m := range runs[1:] {
		o := m.takeMap("options")
		s := o.takeMap("scale")
		sc := mapNode()
		put(sc, "min", c.whole(s, "min"))
		put(sc, "max", c.whole(s, "max"))
		put(sc, "target", c.whole(s, "target"))
		put(sc, "metric", str(s.takeText("metric")))
		put(fn, "scale", flow(sc))
		r := o.takeMap("resources")
		limits := r.takeMap("limits")
		put(fn, "memory", str(limits.takeText("memory")))
		put(fn, "cpu", str(limits.takeText("cpu")))
		put(fn, "concurrency", c.whole(limits, "concurrency"))
		r.drop("requests", "requests and limits are one value: memory, cpu")
		m.drop("namespace", whyCluster)
		m.drop("healthEndpoints", "the adapter answers the health checks")
		m.drop("image", whyImages)
		m.drop("serviceAccountName", whyRights)
	}
	b := in.takeMap("build")
	b.drop("builder", "layers on the platform's base, or a Dockerfile: build.builder")
	b.drop("buildpacks", "layers on the platform's base, or a Dockerfile: build.builder")
	benv := mapNode()
	for _, n := range b.takeList("buildEnvs") {
		e := c.newMap(n, "build.buildEnvs", 0)
		if k := e.takeText("name"); variableOK.MatchString(k) {
			if text, ok := c.value(e.take("value"), "build.buildEnvs."+k); ok {
				put(benv, k, str(text))
			}
		}
	}
	put(out.build, "env", benv)
	in.drop("registry", whyImages)
	in.drop("image", whyImages)
	in.drop("namespace", whyCluster)
	if !cloudevent {
		route := c.route(at, "/*", nil)
		put(fn, "events", &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{event("http", mapNode("path", "/")), route}})
	} else {
		c.note(in.lines["invoke"], "a subscription is not in func.yaml: write functions.<fn>.events: cloudevent with its type")
	}
	put(out.functions, c.label(at, "function", name, 63), fn)
}

// funcEnvs sorts values, secrets and config maps apart.
func (c *converter) funcEnvs(m *object, env, secrets, config *yaml.Node) {
	for _, n := range m.takeList("envs") {
		e := c.newMap(n, m.at("envs"), 0)
		key, v := e.takeText("name"), e.take("value")
		text := ""
		if v != nil {
			text = v.Value
		}
		switch s, l := funcSecret.FindStringSubmatch(text), funcLocal.FindStringSubmatch(text); {
		case !variableOK.MatchString(key):
			c.note(n, "%s: no variable of a function can be called %q", m.at("envs"), key)
		case s != nil && s[1] == "secret":
			put(secrets, key, str(s[2]+"/"+s[4]))
		case s != nil:
			put(config, key, str(s[2]+"/"+s[4]))
		case l != nil:
			put(env, key, str("${env:"+l[1]+"}"))
			c.note(n, "%s is read when faas.yml is read, in CI", l[1])
		case strings.Contains(text, "{{"):
			c.note(n, "%s: %s has no equivalent", m.at("envs"), text)
		default:
			if text, ok := c.value(v, m.at("envs")+"."+key); ok {
				put(env, key, str(text))
			}
		}
	}
}

func (c *converter) gitlabktl(in *object, out *file) {
	c.serviceName(in, out, "service")
	p := in.takeMap("provider")
	p.take("name")
	env := c.environment(p.takeMap("environment"))
	env.Content = append(env.Content, c.environment(p.takeMap("envs")).Content...)
	put(out.provider, "environment", env)
	p.drop("registry-secret", whyImages)
	p.drop("namespace", whyCluster)
	out.mode = "independent"
	c.functionsOf(in, out, func(m *object, fn *yaml.Node) {
		source := strings.Trim(strings.TrimPrefix(path.Clean("/"+m.takeText("source")), "/"), "/")
		// The handler was the name of an export of the folder's program.
		for i := 0; i+1 < len(fn.Content); i += 2 {
			if fn.Content[i].Value == "handler" && !strings.Contains(fn.Content[i+1].Value, ".") {
				was := fn.Content[i+1].Value
				fn.Content[i+1].Value = path.Join(source, "index.handler")
				c.note(m.lines["handler"], "%s: %s becomes %s; correct the file and the export", m.at("handler"), was, fn.Content[i+1].Value)
			}
		}
		put(fn, "source", str(source))
		put(fn, "environment", c.environment(m.takeMap("envs")))
		for _, s := range texts(m.takeList("secrets")) {
			c.note(m.lines["secrets"], "%s: write functions.<fn>.secrets: {NAME: %s/key}", m.at("secrets"), s)
		}
		m.drop("buildargs", "arguments of a Dockerfile are written in it")
		m.drop("annotations", "the platform sets the Service's annotations")
		m.drop("labels", "the platform sets the Service's labels")
		// gitlabktl gave each function a host of its own.
		name := strings.TrimPrefix(m.path, "functions.")
		put(fn, "events", &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{event("http", mapNode("path", "/"+notLabel.ReplaceAllString(strings.ToLower(name), "-")))}})
	})
}
