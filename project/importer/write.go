package importer

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kuroko-faas/kuroko/project"
)

// file is the faas.yml that is being made.
type file struct {
	service, provider, functions, aggregation *yaml.Node
	pack, build                               *yaml.Node
	mode                                      string
}

func newFile() *file {
	return &file{service: mapNode(), provider: mapNode(), functions: mapNode(), aggregation: mapNode(), pack: mapNode(), build: mapNode()}
}

// bytes writes the sections in the order of the documentation.
func (f *file) bytes() ([]byte, error) {
	root := mapNode()
	put(root, "version", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: "1"})
	put(root, "service", f.service)
	put(root, "provider", f.provider)
	put(root, "functions", f.functions)
	if f.mode != "" {
		put(root, "deploy", flow(mapNode("mode", f.mode)))
	}
	put(root, "aggregation", f.aggregation)
	put(root, "build", f.build)
	put(root, "package", f.pack)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// mapNode is a map of texts.
func mapNode(pairs ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i+1 < len(pairs); i += 2 {
		put(n, pairs[i], str(pairs[i+1]))
	}
	return n
}

// put adds a key; an empty map, list or text is left out.
func put(n *yaml.Node, key string, v *yaml.Node) {
	if v == nil || v.Kind != yaml.ScalarNode && len(v.Content) == 0 || v.Kind == yaml.ScalarNode && v.Value == "" {
		return
	}
	n.Content = append(n.Content, str(key), v)
}

func str(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

func number(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: s} }

func listNode(items ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: yaml.FlowStyle}
	for _, s := range items {
		n.Content = append(n.Content, str(s))
	}
	return n
}

// flow writes the map on one line.
func flow(n *yaml.Node) *yaml.Node {
	n.Style = yaml.FlowStyle
	return n
}

var (
	notLabel   = regexp.MustCompile(`[^a-z0-9]+`)
	camel      = regexp.MustCompile(`([a-z0-9])([A-Z])`)
	variableOK = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	wholeOK    = regexp.MustCompile(`^[0-9]{1,9}$`)
	// foreign are variables that only the other tool can fill in; ours are env
	// and git.
	foreign = regexp.MustCompile(`\$\{[^}]*\}`)
	ours    = regexp.MustCompile(`^\$\{env:([A-Za-z_][A-Za-z0-9_]*)(, *('[^']*'|"[^"]*"))?\}$`)
)

// label makes a name that can be part of a DNS name.
func (c *converter) label(n *yaml.Node, what, name string, max int) string {
	s := strings.ToLower(camel.ReplaceAllString(name, "$1-$2"))
	s = strings.Trim(notLabel.ReplaceAllString(s, "-"), "-")
	if s == "" || s[0] >= '0' && s[0] <= '9' || s == "main" {
		s = "fn-" + s
	}
	if len(s) > max {
		s = s[:max]
	}
	s = strings.Trim(s, "-")
	if s != name {
		c.note(n, "%s %s is called %s: its name becomes part of a DNS name", what, name, s)
	}
	return s
}

// value is a text that stands in both files. One with variables of the other
// tool is left out, with a note.
func (c *converter) value(n *yaml.Node, at string) (string, bool) {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", false
	}
	if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") {
		c.note(n, "%s: %s %s has no equivalent; write ${env:NAME} or the value", at, n.Tag, n.Value)
		return "", false
	}
	for _, v := range foreign.FindAllString(n.Value, -1) {
		if !ours.MatchString(v) {
			c.note(n, "%s: the variable %s has no equivalent; write ${env:NAME}, ${git:…} or the value", at, v)
			return "", false
		}
	}
	return n.Value, true
}

// environment copies plain variables.
func (c *converter) environment(from *object) *yaml.Node {
	out := mapNode()
	for _, k := range from.keys {
		v := from.take(k)
		text, ok := c.value(v, from.at(k))
		switch {
		case !ok && v != nil && v.Kind != yaml.ScalarNode:
			c.note(from.lines[k], "%s is no text", from.at(k))
		case !ok:
		case !variableOK.MatchString(k) || k == "PORT" || strings.HasPrefix(k, "K_") || strings.HasPrefix(k, "FAAS_"):
			c.note(from.lines[k], "%s: no variable of a function can have this name", from.at(k))
		default:
			n := str(text)
			if text == "" {
				n.Style = yaml.DoubleQuotedStyle
			}
			out.Content = append(out.Content, str(k), n)
		}
	}
	return out
}

// runtime maps another platform's runtime to one of ours by language.
func (c *converter) runtime(n *yaml.Node, name string) string {
	if name == "" {
		return ""
	}
	low := path.Base(strings.ToLower(name)) // gitlab/runtimes/nodejs
	language := ""
	for _, l := range []struct{ prefix, language string }{
		{"node", "node"}, {"typescript", "node"}, {"python", "python"}, {"java", "java"}, {"quarkus", "java"}, {"springboot", "java"},
	} {
		if strings.HasPrefix(low, l.prefix) {
			language = l.language
		}
	}
	for _, r := range c.o.Runtimes {
		if r.Name == low || r.Language == language && language != "" {
			if r.Name != name {
				c.note(n, "runtime %s becomes %s", name, r.Name)
			}
			return r.Name
		}
	}
	c.note(n, "runtime %s has no equivalent; use a Dockerfile: build.builder: dockerfile", name)
	return ""
}

// megabytes is a number of MiB as memory.
func (c *converter) megabytes(m *object, key string) *yaml.Node {
	s := m.takeText(key)
	switch {
	case s == "":
		return nil
	case !wholeOK.MatchString(s):
		c.note(m.lines[key], "%s: %s is no number of megabytes", m.at(key), s)
		return nil
	}
	return str(s + "Mi")
}

// seconds is a number of seconds as a duration.
func (c *converter) seconds(m *object, key string) *yaml.Node {
	s := m.takeText(key)
	switch {
	case s == "":
		return nil
	case !wholeOK.MatchString(s):
		c.note(m.lines[key], "%s: %s is no number of seconds", m.at(key), s)
		return nil
	}
	n, _ := strconv.Atoi(s) // nine digits
	return str(fmt.Sprint(project.Duration(time.Duration(n) * time.Second)))
}

func (c *converter) whole(m *object, key string) *yaml.Node {
	s := m.takeText(key)
	if s == "" {
		return nil
	}
	if !wholeOK.MatchString(s) {
		c.note(m.lines[key], "%s: %s is no whole number", m.at(key), s)
		return nil
	}
	return number(s)
}

var parameter = regexp.MustCompile(`^(?::([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})$`)

// path turns /a/{id}, /a/:id and /a/{proxy+} into /a/[id] and /a/*.
func (c *converter) path(n *yaml.Node, p string) string {
	parts := strings.Split(strings.Trim(p, "/"), "/")
	for i, s := range parts {
		last := i == len(parts)-1
		switch m := parameter.FindStringSubmatch(s); {
		case m != nil:
			parts[i] = "[" + m[1] + m[2] + "]"
		case strings.HasSuffix(s, "+}") && last, (s == "*" || s == "**") && last:
			parts[i] = "*"
		case strings.ContainsAny(s, "{}:*+"):
			c.note(n, "path %s: the segment %s has no equivalent", p, s)
			return ""
		}
	}
	return "/" + strings.Join(parts, "/")
}

// route is an http event.
func (c *converter) route(n *yaml.Node, p string, methods []string) *yaml.Node {
	at := c.path(n, p)
	if at == "" {
		return nil
	}
	http := mapNode("path", at)
	var list []string
	for _, m := range methods {
		if m = strings.ToLower(m); m == "any" || m == "all" || m == "*" {
			list = nil
			break
		}
		list = append(list, m)
	}
	switch len(list) {
	case 0:
	case 1:
		put(http, "method", str(list[0]))
	default:
		put(http, "method", listNode(list...))
	}
	return event("http", http)
}

func event(kind string, v *yaml.Node) *yaml.Node {
	n := mapNode()
	put(n, kind, flow(v))
	return flow(n)
}

// cron drops the seconds and the year that other clocks have.
func (c *converter) cron(n *yaml.Node, s string) *yaml.Node {
	f := strings.Fields(strings.TrimPrefix(strings.TrimSuffix(strings.TrimPrefix(s, "cron("), ")"), "CRON_TZ="))
	aws := strings.HasPrefix(s, "cron(")
	switch {
	case aws && len(f) == 6 && strings.ContainsAny(f[4], "0123456789"):
		c.note(n, "schedule %s: its weekdays count from 1, ours from 0; write the timer by hand", s)
		return nil
	case aws && len(f) == 6: // minute … weekday year
		f = f[:5]
	case !aws && len(f) >= 6 && f[0] == "0": // second minute …
		f = f[1:6]
	case len(f) != 5:
		c.note(n, "schedule %s has no equivalent: a cron line has five fields", s)
		return nil
	}
	for i := range f {
		f[i] = strings.ReplaceAll(f[i], "?", "*")
	}
	return event("timer", mapNode("cron", strings.Join(f, " ")))
}

var rate = regexp.MustCompile(`^rate\(([0-9]+) (minute|hour|day)s?\)$`)

// every is a span between two runs.
func (c *converter) every(n *yaml.Node, s string) *yaml.Node {
	if m := rate.FindStringSubmatch(s); m != nil {
		s = m[1] + map[string]string{"minute": "m", "hour": "h", "day": "d"}[m[2]]
	}
	return event("timer", mapNode("every", s))
}
