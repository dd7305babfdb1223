package project

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

const (
	second = Duration(time.Second)
	minute = Duration(time.Minute)
	hour   = Duration(time.Hour)
	day    = 24 * hour

	maxServiceName = 24
	maxFunctions   = 5000
)

// fileSpec is faas.yml, version 1: every key there is, what it may hold, and
// what it means. The bundle's names come from o.
func fileSpec(o Options) *spec {
	f := fieldsOf{o}
	include := list("a list of globs", glob("a glob such as dist/**"))
	exclude := list("a list of globs", glob("a glob such as **/*.map"))
	include.max, exclude.max = 300, 300
	return object("a map",
		field{name: "version", required: true, doc: "Version of this file's format.", spec: version()},
		field{name: "service", required: true, doc: "Name of the service, or a map of name, owner, tier and description.", spec: f.service()},
		field{name: "platform", doc: "Which platform this repository follows, and when changes reach it.", spec: object("a map of channel and runtimeUpdate",
			field{name: "channel", doc: "Channel of platform bundles. Default stable.", spec: literal(enum("channel", "stable", "candidate", "edge"))},
			field{name: "runtimeUpdate", doc: "auto: a new base or adapter arrives with the next pipeline; withCode: with the unit's next own change. Default auto.", spec: enum("runtimeUpdate", "auto", "withCode")},
		)},
		field{name: "provider", doc: "Settings of every function.", spec: object("a map of settings", f.provider()...)},
		field{name: "functions", required: true, doc: "The functions: name → function.", spec: f.functions()},
		field{name: "deploy", doc: "How functions become deploy units.", spec: object("a map of mode",
			field{name: "mode", doc: "aggregated: one unit, main, of all online functions that are not standalone. independent: one unit per function. Default aggregated.", spec: enum("deploy mode", "aggregated", "independent")},
		)},
		field{name: "aggregation", doc: "More than one aggregate: unit name → members and settings.", spec: f.aggregation()},
		field{name: "routes", doc: "Defaults of all http events.", spec: f.routes()},
		field{name: "plugins", doc: "Platform plugins.", spec: f.plugins()},
		field{name: "layers", doc: "Built-in layers on the base image.", spec: f.layers()},
		field{name: "build", doc: "How the image is made.", spec: f.build()},
		field{name: "test", doc: "The project's own test.", spec: object("a map of command",
			field{name: "command", doc: "Shell command. Without it the test stage is skipped and says so.", spec: text("a shell command", 16<<10)},
		)},
		field{name: "package", doc: "What enters the code layer. Default: tracked files and build.output, without tests.", spec: object("a map of include and exclude",
			field{name: "include", doc: "Globs of files to take; everything else stays out.", spec: include},
			field{name: "exclude", doc: "Globs of files to leave out.", spec: exclude},
		)},
		field{name: "rollout", doc: "How a release takes over.", spec: f.rollout()},
		field{name: "preview", doc: "One deployment per merge request; off without it.", spec: object("a map of namespace, ttl and environment",
			field{name: "namespace", required: true, doc: "Namespace of previews, with credentials of its own.", spec: namespace()},
			field{name: "ttl", doc: "A preview is removed when it has stood this long. Default 3d.", spec: duration("3d", minute, 90*day)},
			field{name: "environment", doc: "Variables that previews have in addition.", spec: f.environment()},
		)},
		field{name: "environments", doc: "Environments: name → where it is, and a patch.", spec: f.environments()},
		field{name: "custom", doc: "Anything of your own; the platform never reads it.", spec: &spec{free: true, say: "anything"}},
	)
}

type fieldsOf struct{ Options }

func literal(s *spec) *spec {
	s.literal = true
	return s
}

func version() *spec {
	return literal(&spec{is: aNumber, say: "1", scalar: func(s string) (string, fault) {
		if s != "1" {
			return "", fault{CodeValue, fmt.Sprintf("%s is not a version that this platform reads", quote(s)), "write version: 1"}
		}
		return s, fault{}
	}, json: map[string]any{"const": 1}})
}

func (f fieldsOf) service() *spec {
	s := object("a name, or a map of name, owner, tier and description",
		field{name: "name", required: true, doc: "DNS label, at most 24 characters, a letter first.", spec: literal(label("service", maxServiceName))},
		field{name: "owner", doc: "Team that is asked, such as fe/order.", spec: matching(`^[A-Za-z0-9][-A-Za-z0-9_./@]*$`, "an owner", "fe/order", 100)},
		field{name: "tier", doc: "May only tighten the platform's table.", spec: literal(enum("tier", string(Sandbox), string(Standard), string(Core)))},
		field{name: "description", doc: "One line for people.", spec: text("text", 1000)},
	)
	s.literal = true
	s.short = func(n *node) *node {
		if n.kind != aText {
			return nil
		}
		return &node{kind: aMap, entries: []entry{{"name", n.line, n.col, &node{kind: aText, text: n.text, line: n.line, col: n.col}}}}
	}
	return s
}

var contracts = []string{"event", "http", "web", "cloudevent", "app"}

// shared are the settings that provider, aggregates and functions have alike.
func (f fieldsOf) shared() []field {
	return []field{
		{name: "runtime", doc: "Runtime of the bundle.", spec: f.runtime()},
		{name: "contract", doc: "Signature of the handler. Default event.", spec: enum("contract", contracts...)},
		{name: "eventFormat", doc: "Exact vendor form of the event, for code that checks it.", spec: enum("eventFormat", "aws-v1", "aws-v2", "fc")},
		{name: "memory", doc: "Limit and request. Default 256Mi, Java 512Mi.", spec: memory()},
		{name: "cpu", doc: "Limit and request. Default 250m.", spec: cpu()},
		{name: "timeout", doc: "Time a request may take. Default 60s.", spec: duration("60s", Duration(time.Millisecond), day)},
		{name: "initTimeout", doc: "Budget of the start-up probe. Default 10s.", spec: duration("10s", second, hour)},
		{name: "concurrency", doc: "Requests at once per instance. Default Node 100, Java 50, Python 8.", spec: integer(1, 1000)},
		{name: "environment", doc: "Plain variables.", spec: f.environment()},
		{name: "secrets", doc: "NAME: secret/key, or {secret, key, path} for a file.", spec: f.refs("secret")},
		{name: "config", doc: "NAME: configmap/key.", spec: f.refs("configmap")},
		{name: "scale", doc: "Bounds and target of autoscaling.", spec: object("a map of min, max, target and metric",
			field{name: "min", doc: "Default 0; tier core: at least 2.", spec: integer(0, 1000)},
			field{name: "max", doc: "Default 20.", spec: integer(1, 1000)},
			field{name: "target", doc: "Aim per instance, in the metric's unit.", spec: number(0.01, 1e6)},
			field{name: "metric", doc: "Default concurrency.", spec: enum("metric", "concurrency", "rps", "cpu")},
			field{name: "schedule", planned: "a scheduled minimum scale"},
			field{name: "schedules", planned: "a scheduled minimum scale"},
		)},
		{name: "async", planned: "an async retry policy"},
		{name: "retry", planned: "an async retry policy"},
		{name: "retries", planned: "an async retry policy"},
	}
}

func (f fieldsOf) network() []field {
	return []field{
		{name: "idleTimeout", doc: "Time a stream may be silent.", spec: duration("30s", second, day)},
		{name: "network", doc: "internal or public. A unit reached through routes is internal.", spec: enum("network", "internal", "public")},
	}
}

func (f fieldsOf) provider() []field { return append(f.shared(), f.network()...) }

func (f fieldsOf) runtime() *spec {
	names := make([]string, len(f.Runtimes))
	for i, r := range f.Runtimes {
		names[i] = r.Name
	}
	s := enum("runtime", names...)
	s.say = "the name of a runtime"
	return s
}

func (f fieldsOf) layers() *spec {
	names := make([]string, len(f.Layers))
	for i, l := range f.Layers {
		names[i] = "builtin:" + l
	}
	e := enum("layer", names...)
	e.say = "a layer such as builtin:ffmpeg"
	l := list("a list of layers", e)
	l.unique = true
	return l
}

var (
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	secretName   = `[a-z0-9]([-a-z0-9.]*[a-z0-9])?`
	secretKey    = `[-._A-Za-z0-9]+`
	refForm      = regexp.MustCompile(`^` + secretName + `/` + secretKey + `$`)
)

// variableKeys is variableKey for JSON Schema.
var variableKeys = map[string]any{
	"pattern": variableName.String(), "maxLength": 200,
	"not": map[string]any{"pattern": "^(PORT$|K_|FAAS_)"},
}

// variableKey checks the name of a variable of the function's process.
func variableKey(key string) (why, next string) {
	switch {
	case !variableName.MatchString(key):
		return fmt.Sprintf("%s is not a variable's name", quote(key)), "use letters, digits and _, not a digit first"
	case len(key) > 200:
		return "the name is too long", "use at most 200 characters"
	case key == "PORT", strings.HasPrefix(key, "K_"), strings.HasPrefix(key, "FAAS_"):
		return key + " is the platform's own", "choose another name; PORT, K_… and FAAS_… are set by the platform"
	}
	return "", ""
}

func (f fieldsOf) environment() *spec {
	m := mapping("a map of NAME: text", variableKey, anyText("text"))
	m.max, m.keys = 500, variableKeys
	return m
}

// refs are references to keys of a Secret or ConfigMap.
func (f fieldsOf) refs(kind string) *spec {
	ref := object(fmt.Sprintf("%s/key, or a map of %s, key and path", kind, kind),
		field{name: kind, doc: "Name of the " + kind + ".", spec: matching(`^`+secretName+`$`, "a "+kind+"'s name", "order-bff", 253)},
		field{name: "key", doc: "Key inside it.", spec: matching(`^`+secretKey+`$`, "a key", "api-token", 253)},
		field{name: "path", doc: "File to make instead of a variable.", spec: mountPath()},
	)
	ref.short = func(n *node) *node {
		if n.kind != aText {
			return nil
		}
		if !refForm.MatchString(n.text) {
			return nil
		}
		name, key, _ := strings.Cut(n.text, "/")
		part := func(s string) *node { return &node{kind: aText, text: s, line: n.line, col: n.col} }
		return &node{kind: aMap, entries: []entry{{kind, n.line, n.col, part(name)}, {"key", n.line, n.col, part(key)}}}
	}
	ref.json = map[string]any{"type": "string", "pattern": refForm.String()}
	m := mapping("a map of NAME: "+kind+"/key", variableKey, ref)
	m.max, m.keys = 200, variableKeys
	return m
}

func mountPath() *spec {
	return &spec{is: aText, say: "an absolute path such as /etc/order/token", scalar: func(s string) (string, fault) {
		if !mountForm.MatchString(s) || strings.Contains(s, "/../") || strings.HasSuffix(s, "/..") {
			return "", fault{CodeValue, quote(s) + " is not an absolute path of a file", "write it like /etc/order/token"}
		}
		for _, own := range []string{"/app", "/opt/faas", "/proc", "/sys", "/dev"} {
			if s == own || strings.HasPrefix(s, own+"/") {
				return "", fault{CodeValue, quote(s) + " is inside " + own + ", which is the platform's", "write it like /etc/order/token"}
			}
		}
		return s, fault{}
	}, json: map[string]any{"type": "string", "pattern": mountForm.String()}}
}

var mountForm = regexp.MustCompile(`^(/[-A-Za-z0-9_.]+)+$`)

func namespace() *spec {
	return matching(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, "a namespace", "order-test", 63)
}

func (f fieldsOf) functions() *spec {
	fn := append([]field{
		{name: "handler", doc: "path/file.export from the repository's root; Java pkg.Class::method. Required unless contract is app.", spec: text("a handler such as index.handler", 500)},
		{name: "source", doc: "Folder that only this function needs; files under no function's source are shared.", spec: repoPath("a folder")},
		{name: "kind", doc: "online answers requests; job runs to completion. Default online.", spec: enum("kind", string(Online), string(KindJob))},
		{name: "standalone", doc: "Never inside an aggregate. Default false.", spec: standalone()},
		{name: "job", doc: "How a job runs.", spec: object("a map of parallelism, completions, retries, timeout and ttl",
			field{name: "parallelism", doc: "Instances at once. Default 1.", spec: integer(1, 10000)},
			field{name: "completions", doc: "Runs that must succeed. Default parallelism.", spec: integer(1, 100000)},
			field{name: "retries", doc: "How often one completion that failed is tried again. Default 0.", spec: integer(0, 100)},
			field{name: "timeout", doc: "Time for everything. Default 1h.", spec: duration("2h", second, 30*day)},
			field{name: "ttl", doc: "Time a finished job is kept. Default 1d.", spec: duration("1d", second, 90*day)},
		)},
		{name: "events", doc: "What calls the function.", spec: f.events()},
		{name: "build", doc: "Overrides the top-level build.", spec: f.build()},
		{name: "layers", doc: "Replaces the top-level layers.", spec: f.layers()},
	}, f.shared()...)
	m := mapping("a map of name: function", functionKey, object("a map with a handler", fn...))
	m.keys = labelKeys(63)
	m.keys["not"] = map[string]any{"const": mainUnit}
	return m
}

func functionKey(key string) (why, next string) {
	if key == "main" {
		return `no function may be called main: it is the name of the aggregate`, "choose another name"
	}
	return labelProblem("function", key, 63)
}

func standalone() *spec {
	s := boolean()
	s.planned = func(n *node) string {
		if n.kind == aText && n.text == "both" {
			return "deploying one function both alone and in its aggregate"
		}
		return ""
	}
	return s
}

func (f fieldsOf) aggregation() *spec {
	names := list("a list of functions", label("function", 63))
	names.unique = true
	patterns := list("a glob over function names, or a list of them", nameGlob())
	patterns.short, patterns.max = oneAsList, 20
	fields := append([]field{
		{name: "functions", doc: "Members, by name.", spec: names},
		{name: "functionsPattern", doc: "Members, by glob over function names.", spec: patterns},
		{name: "isolation", doc: "shared: one process; worker: one worker per function. Default shared.", spec: enum("isolation", "shared", "worker")},
		{name: "build", doc: "Overrides the top-level build.", spec: f.build()},
		{name: "layers", doc: "Replaces the top-level layers.", spec: f.layers()},
	}, f.provider()...)
	m := mapping("a map of unit: members and settings", func(key string) (string, string) {
		return labelProblem("unit", key, 63)
	}, object("a map of functions and settings", fields...))
	m.max, m.keys = 200, labelKeys(63)
	return m
}

func nameGlob() *spec {
	return matching(`^[-a-z0-9*?]+$`, "a glob over function names", "order-*", 63)
}

func oneAsList(n *node) *node {
	if n.kind != aText {
		return nil
	}
	return &node{kind: aList, items: []*node{{kind: aText, text: n.text, line: n.line, col: n.col, filled: n.filled}}}
}

func (f fieldsOf) events() *spec {
	filters := mapping("a map of attribute: value", attributeKey, text("text", 1024))
	filters.max = 20
	filters.keys = map[string]any{"pattern": attributeName.String(), "not": map[string]any{"enum": []string{"type", "source"}}}
	ev := object("one of http, timer, cloudevent",
		field{name: "http", doc: "A route.", spec: object("a map with a path",
			field{name: "path", required: true, doc: "/a, /a/[id], /a/*; basePath comes in front.", spec: routePath("a path such as /orders/[id]", false)},
			field{name: "method", doc: "any, one method, or a list. Default any.", spec: f.method()},
			field{name: "cors", doc: "Overrides routes.cors.", spec: f.cors()},
			field{name: "timeout", doc: "Time a request may take.", spec: duration("15s", Duration(time.Millisecond), day)},
			field{name: "auth", doc: "Overrides routes.auth.", spec: f.auth()},
			field{name: "rateLimit", planned: "a rate limit per route"},
			field{name: "cache", planned: "a cache per route"},
		)},
		field{name: "timer", doc: "A clock; follows the release.", spec: object("a map of cron or every",
			field{name: "cron", doc: "Five fields.", spec: cron()},
			field{name: "every", doc: "A span that divides the hour or the day evenly.", spec: every()},
			field{name: "timezone", doc: "IANA name. Default UTC.", spec: timezone()},
			field{name: "payload", doc: "Text that the event carries.", spec: anyText("text")},
			field{name: "overlap", doc: "When the last run still runs: skip, allow, replace. Default skip.", spec: enum("overlap", "skip", "allow", "replace")},
		)},
		field{name: "cloudevent", doc: "A subscription to a broker's events.", spec: object("a map of type, source or filters",
			field{name: "broker", doc: "Default default.", spec: matching(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, "a broker's name", "default", 63)},
			field{name: "type", doc: "Exact type.", spec: text("an event type", 256)},
			field{name: "source", doc: "Exact source.", spec: text("an event source", 1024)},
			field{name: "filters", doc: "Other attributes, exact.", spec: filters},
		)},
		field{name: "oss", planned: "an object-storage event"},
		field{name: "s3", planned: "an object-storage event"},
		field{name: "objectStorage", planned: "an object-storage event"},
		field{name: "cos", planned: "an object-storage event"},
		field{name: "obs", planned: "an object-storage event"},
		field{name: "minio", planned: "an object-storage event"},
		field{name: "mq", planned: "a message-queue event"},
		field{name: "mns", planned: "a message-queue event"},
		field{name: "kafka", planned: "a message-queue event"},
		field{name: "rocketmq", planned: "a message-queue event"},
		field{name: "queue", planned: "a message-queue event"},
		field{name: "rabbitmq", planned: "a message-queue event"},
		field{name: "pulsar", planned: "a message-queue event"},
		field{name: "ons", planned: "a message-queue event"},
		field{name: "sqs", planned: "a message-queue event"},
	)
	ev.exactlyOne = true
	l := list("a list of events, such as [{http: {path: /hello}}]", ev)
	l.max = 200
	return l
}

var attributeName = regexp.MustCompile(`^[a-z0-9]{1,20}$`)

func attributeKey(key string) (why, next string) {
	switch {
	case key == "type" || key == "source":
		return key + " has a key of its own", "write it beside filters"
	case !attributeName.MatchString(key):
		return fmt.Sprintf("%s is not an event attribute", quote(key)), "use lower-case letters and digits, at most 20"
	}
	return "", ""
}

var httpMethods = []string{"get", "post", "put", "patch", "delete", "head", "options"}

func (f fieldsOf) method() *spec {
	l := list("any, a method, or a list of methods", enum("method", append([]string{"any"}, httpMethods...)...))
	l.short, l.unique, l.min = oneAsList, true, 1
	return l
}

func (f fieldsOf) cors() *spec {
	methods := list("a list of methods", enum("method", httpMethods...))
	methods.unique = true
	return object("a map of origins, methods, headers and credentials",
		field{name: "origins", doc: "Origins such as https://www.example.com, or *.", spec: list("a list of origins",
			matching(`^(\*|https?://(\*\.)?[A-Za-z0-9.-]+(:[0-9]{1,5})?)$`, "an origin", "https://www.example.com", 300))},
		field{name: "methods", doc: "Default: the route's.", spec: methods},
		field{name: "headers", doc: "Request headers that are allowed.", spec: list("a list of headers", headerName())},
		field{name: "credentials", doc: "Whether cookies are allowed. Default false.", spec: boolean()},
	)
}

func headerName() *spec {
	return matching("^[-A-Za-z0-9!#$%&'*+.^_`|~]+$", "a header's name", "X-Trace", 200)
}

func (f fieldsOf) auth() *spec {
	return enum("auth", append([]string{"none", "jwt"}, f.Plugins...)...)
}

func (f fieldsOf) routes() *spec {
	return object("a map of host, basePath, cors, timeout and auth",
		field{name: "host", doc: "Host name that the gateway serves.", spec: matching(`^([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, "a host name", "api.example.internal", 253)},
		field{name: "basePath", doc: "In front of every path.", spec: routePath("a path such as /bff/order", true)},
		field{name: "cors", doc: "What browsers of other origins may do.", spec: f.cors()},
		field{name: "timeout", doc: "Time a request may take, unless event or function say otherwise.", spec: duration("10s", Duration(time.Millisecond), day)},
		field{name: "auth", doc: "none, jwt, or a plugin. Default none.", spec: f.auth()},
		field{name: "rateLimit", planned: "a rate limit per route"},
		field{name: "cache", planned: "a cache per route"},
	)
}

func (f fieldsOf) plugins() *spec {
	e := enum("plugin", f.Plugins...)
	e.say = "the name of a plugin"
	globs := list("a list of globs over function names", nameGlob())
	globs.max = 100
	l := list("a list of {name, apply, options}", object("a map of name, apply and options",
		field{name: "name", required: true, doc: "Plugin of the bundle; its version comes with the bundle.", spec: e},
		field{name: "apply", doc: "Globs over function names. Default all.", spec: globs},
		field{name: "options", doc: "The plugin's own.", spec: &spec{is: aMap, free: true, say: "a map"}},
	))
	l.max = 50
	return l
}

func (f fieldsOf) build() *spec {
	names := list("a list of CI variable names", buildSecret())
	names.unique, names.max = true, 100
	return object("a map of builder, base, install, command, output, …",
		field{name: "builder", doc: "layer: code on a base image; dockerfile: your Dockerfile; none: a finished image. Default layer.", spec: enum("builder", "layer", "dockerfile", "none")},
		field{name: "base", doc: "Base image; the platform's policy must allow it.", spec: f.base()},
		field{name: "install", doc: "Command that installs dependencies.", spec: text("a shell command", 16<<10)},
		field{name: "command", doc: "Command that builds.", spec: text("a shell command", 16<<10)},
		field{name: "output", doc: "Folder that the command fills.", spec: repoPath("a folder")},
		field{name: "dockerfile", doc: "Default Dockerfile.", spec: repoPath("a file")},
		field{name: "image", doc: "The finished image of builder none.", spec: matching(`^[a-z0-9][-A-Za-z0-9_./:]*(@sha256:[0-9a-f]{64})?$`, "an image", "registry.example/team/app@sha256:…", 500)},
		field{name: "env", doc: "Variables of the build commands, and values of a Dockerfile's ARGs.", spec: f.environment()},
		field{name: "secrets", doc: "CI variables that only install, command and RUN --mount=type=secret see; also files in /run/secrets.", spec: names},
	)
}

// ownSecrets are variables that no command of a repository gets: GitLab's and
// the platform's, the job's credentials, and what decides how programs start.
var ownSecrets = `^(CI$|CI_|GITLAB_|FAAS_|(KUBECONFIG|DOCKER_AUTH_CONFIG|DOCKER_CONFIG|NETRC|PATH|HOME|TMPDIR|LD_PRELOAD|LD_LIBRARY_PATH)$)`

var ownSecret = regexp.MustCompile(ownSecrets)

func buildSecret() *spec {
	s := matching(`^[A-Za-z_][A-Za-z0-9_]*$`, "a variable's name", "NPM_TOKEN", 200)
	form := s.scalar
	s.scalar = func(t string) (string, fault) {
		c, p := form(t)
		if p.why == "" && ownSecret.MatchString(t) {
			return "", fault{CodeName, t + " is the job's own, and no command of a repository gets it", "put a token that is for this purpose alone into a variable of another name"}
		}
		return c, p
	}
	s.json["not"] = map[string]any{"pattern": ownSecrets}
	return s
}

func (f fieldsOf) base() *spec {
	s := matching(`^[a-z0-9][-A-Za-z0-9_./:@]*$`, "an image", "base/nodejs18-ffmpeg", 500)
	form := s.scalar
	s.scalar = func(t string) (string, fault) {
		if c, p := form(t); p.why != "" {
			return c, p
		}
		repo, _, _ := strings.Cut(t, "@")
		if i := strings.LastIndexByte(repo, ':'); i > strings.LastIndexByte(repo, '/') {
			repo = repo[:i]
		}
		for _, b := range f.Policy.Bases {
			prefix, star := strings.CutSuffix(b, "*")
			if t == b || repo == b || star && strings.HasPrefix(t, prefix) {
				return t, fault{}
			}
		}
		next := "remove it: the platform's policy allows no other base"
		if len(f.Policy.Bases) > 0 {
			next = "use one of: " + strings.Join(f.Policy.Bases, ", ")
		}
		return "", fault{CodeLimit, fmt.Sprintf("the base image %s is not allowed by the platform's policy", quote(t)), next}
	}
	return s
}

func (f fieldsOf) rollout() *spec {
	verify := list("a list of {request, expect}", object("a map of request and expect",
		field{name: "request", required: true, doc: "Public path, with basePath.", spec: object("a map of method and path",
			field{name: "method", doc: "Default GET.", spec: enum("method", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")},
			field{name: "path", required: true, doc: "As a client writes it.", spec: matching(`^/[!-~]*$`, "a path", "/bff/order/ping", 2000)},
		)},
		field{name: "expect", doc: "Default: status 200.", spec: object("a map of status and maxMs",
			field{name: "status", doc: "Default 200.", spec: integer(100, 599)},
			field{name: "maxMs", doc: "Longest time, in milliseconds.", spec: integer(1, 600000)},
		)},
	))
	verify.max = 50
	optional := func(fs ...field) *spec { return object("a map of min or max", fs...) }
	return object("a map of strategy, steps, verify, …",
		field{name: "strategy", doc: "How traffic moves. The default is the tier's.", spec: enum("strategy", "direct", "canary", "bluegreen", "manual")},
		field{name: "steps", doc: "Canary: weights in percent and pauses, before everything.", spec: steps()},
		field{name: "verify", doc: "Requests that must be answered before traffic moves.", spec: verify},
		field{name: "analysis", doc: "What is measured while weights grow.", spec: object("a map of interval, successRate, p99, …",
			field{name: "interval", doc: "Default 30s.", spec: duration("30s", second, hour)},
			field{name: "successRate", doc: "In percent.", spec: optional(field{name: "min", required: true, doc: "Least.", spec: number(0, 100)})},
			field{name: "p99", doc: "Of the latency.", spec: optional(field{name: "max", required: true, doc: "Most.", spec: duration("800ms", Duration(time.Millisecond), hour)})},
			field{name: "compare", doc: "stable: also against the release that serves. Default stable.", spec: enum("compare", "stable", "none")},
			field{name: "minRequests", doc: "Fewer are no data. Default 50.", spec: integer(0, 1000000)},
			field{name: "onNoData", doc: "Default wait.", spec: enum("onNoData", "wait", "pass", "fail")},
			field{name: "queries", doc: "Measurements of your own.", spec: list("a list of {name, query, min, max}", object("a map of name, query, min and max",
				field{name: "name", required: true, doc: "For messages.", spec: label("query", 63)},
				field{name: "query", required: true, doc: "In the platform's metrics language.", spec: text("a query", 8<<10)},
				field{name: "min", doc: "Least.", spec: number(-1e12, 1e12)},
				field{name: "max", doc: "Most.", spec: number(-1e12, 1e12)},
			))},
		)},
		field{name: "onFailure", doc: "rollback or hold. Default rollback.", spec: enum("onFailure", "rollback", "hold")},
		field{name: "readyTimeout", doc: "Time for new revisions to become ready. Default 300s.", spec: duration("300s", second, hour)},
		field{name: "keep", doc: "Releases kept, of those that were live for over an hour. Default 3.", spec: integer(1, 50)},
		field{name: "keepWarm", doc: "Time the previous release stays ready. Default 10m.", spec: duration("10m", 0, day)},
	)
}

func steps() *spec {
	pause := duration("5m", 0, 7*day)
	pause.say = "a duration such as 5m, or approval"
	span := pause.scalar
	pause.scalar = func(s string) (string, fault) {
		if s == "approval" {
			return s, fault{}
		}
		return span(s)
	}
	pause.json = map[string]any{"type": "string", "pattern": "^approval$|" + durationPattern, "minLength": 2}
	l := list("a list of {weight, pause}", object("a map of weight and pause",
		field{name: "weight", required: true, doc: "Percent of traffic.", spec: integer(1, 100)},
		field{name: "pause", doc: "Time to wait after it, or approval.", spec: pause},
	))
	l.min, l.max = 1, 20
	return l
}

func (f fieldsOf) environments() *spec {
	cluster := matching(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`, "a cluster's name", "hz-1", 63)
	if f.Clusters != nil {
		cluster = enum("cluster", f.Clusters...)
	}
	cluster.say = "the name of a cluster"
	cluster.planned = func(n *node) string {
		if n.kind == aList {
			return "several clusters in waves"
		}
		return ""
	}
	functions := *f.functions()
	functions.key = func(string) (string, string) { return "", "" } // must exist; checked later
	rollout, routes, aggregation := f.rollout(), f.routes(), f.aggregation()
	env := object("a map of branch, cluster, namespace and a patch",
		field{name: "branch", doc: "Asserts the template's branch.", spec: text("a branch", 255)},
		field{name: "tag", doc: "Asserts the template's tag, glob allowed.", spec: text("a tag", 255)},
		field{name: "cluster", doc: "Name in the platform's list of clusters.", spec: cluster},
		field{name: "namespace", doc: "Namespace in it.", spec: namespace()},
		field{name: "provider", doc: "Patch.", spec: object("a map of settings", f.provider()...)},
		field{name: "aggregation", doc: "Patch.", spec: aggregation},
		field{name: "functions", doc: "Patch; null removes a function here.", spec: &functions},
		field{name: "routes", doc: "Patch.", spec: routes},
		field{name: "rollout", doc: "Patch.", spec: rollout},
		field{name: "clusters", planned: "several clusters in waves"},
		field{name: "waves", planned: "several clusters in waves"},
	)
	env.patches = true
	m := mapping("a map of name: environment", environmentKey, env)
	m.max, m.keys = 100, labelKeys(63)
	return m
}

func environmentKey(key string) (why, next string) {
	return labelProblem("environment", key, 63)
}
