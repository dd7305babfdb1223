// Package importer makes a faas.yml of another tool's file: Midway's f.yml, a
// simple serverless.yml, Knative's func.yaml, gitlabktl's serverless.yml.
//
// What has an equivalent is converted; each thing that has none is named with
// its line. Nothing is guessed silently.
package importer

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kuroko-faas/kuroko/project"
)

// Format is a file format of another tool.
type Format string

// The formats.
const (
	Midway     Format = "midway"     // f.yml
	Serverless Format = "serverless" // serverless.yml of the Serverless Framework
	Func       Format = "func"       // func.yaml of Knative's func
	Gitlabktl  Format = "gitlabktl"  // serverless.yml of GitLab's gitlabktl
)

// Formats lists what Import reads.
func Formats() []Format { return []Format{Midway, Serverless, Func, Gitlabktl} }

// Result is a converted file.
type Result struct {
	Format Format
	// YAML is the faas.yml.
	YAML []byte
	// Notes are one line for each thing without equivalent, in the order of
	// the file it was read from.
	Notes []string
	// Problems are what the parser of faas.yml says to YAML: what a person
	// must complete. None for a file that can be used at once.
	Problems project.Problems
}

// Options are what the result is made for. The zero value works.
type Options struct {
	// Format of the file; empty: by its name and content.
	Format Format
	// Runtimes that the platform has; default: those of the default bundle.
	Runtimes []project.RuntimeInfo
}

// maxSize is far above any file written by hand.
const maxSize = 1 << 20

// Import converts the file called name. An error means that nothing could be
// made of it.
func Import(name string, data []byte, o Options) (Result, error) {
	if len(data) > maxSize {
		return Result{}, fmt.Errorf("%s has more than %d bytes", name, maxSize)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return Result{}, fmt.Errorf("%s: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return Result{}, fmt.Errorf("%s is not a map of keys and values", name)
	}
	if o.Runtimes == nil {
		o.Runtimes = []project.RuntimeInfo{{Name: "nodejs18", Language: "node"}, {Name: "python3.11", Language: "python"}, {Name: "java17", Language: "java"}}
	}
	c := &converter{o: o}
	in := c.newMap(doc.Content[0], "", 0)
	if o.Format == "" {
		o.Format = detect(name, in)
	}
	out := newFile()
	switch o.Format {
	case Midway:
		c.midway(in, out)
	case Serverless:
		c.serverless(in, out)
	case Func:
		c.knativeFunc(in, out)
	case Gitlabktl:
		c.gitlabktl(in, out)
	default:
		return Result{}, fmt.Errorf("%s is in no format that can be converted; known: midway, serverless, func, gitlabktl", name)
	}
	c.rest()
	if len(out.functions.Content) == 0 {
		return Result{}, fmt.Errorf("%s has no function", name)
	}
	res := Result{Format: o.Format}
	var err error
	if res.YAML, err = out.bytes(); err != nil {
		return Result{}, err
	}
	slices.SortStableFunc(c.notes, func(a, b note) int { return a.line - b.line })
	for _, n := range c.notes {
		text := n.text
		if n.line > 0 {
			text = fmt.Sprintf("line %d: %s", n.line, n.text)
		}
		if !slices.Contains(res.Notes, text) {
			res.Notes = append(res.Notes, text)
		}
	}
	_, err = project.Parse(res.YAML, project.Options{Runtimes: o.Runtimes, Variables: func(string) (string, bool, bool) { return "1", false, true }})
	if err != nil && !errors.As(err, &res.Problems) {
		return Result{}, err
	}
	return res, nil
}

// detect finds the format by what only one of them has, then by the name.
func detect(name string, in *object) Format {
	provider := in.peek("provider")
	switch base := strings.TrimSuffix(strings.TrimSuffix(path.Base(strings.ReplaceAll(name, "\\", "/")), ".yaml"), ".yml"); {
	case in.has("specVersion") || base == "func" && !in.has("functions"):
		return Func
	case provider.text("name") == "triggermesh", provider.text("name") == "knative", provider.has("registry-secret"):
		return Gitlabktl
	case base == "f", in.has("deployType"), in.has("aggregation"), provider.text("name") == "aliyun":
		return Midway
	case in.has("functions") && in.has("service"):
		return Serverless
	}
	return ""
}

type note struct {
	line int
	text string
}

// converter collects what has no equivalent.
type converter struct {
	o       Options
	notes   []note
	objects []*object // all that were looked into, for rest
}

func (c *converter) note(n *yaml.Node, format string, args ...any) {
	line := 0
	if n != nil {
		line = n.Line
	}
	c.notes = append(c.notes, note{line, fmt.Sprintf(format, args...)})
}

// object is a map of the file that is read key by key: what nobody took is
// without equivalent.
type object struct {
	c      *converter
	path   string
	keys   []string
	values map[string]*yaml.Node
	lines  map[string]*yaml.Node // the keys themselves
	taken  map[string]bool
}

// maxMerge bounds chains of aliases.
const maxMerge = 8

// newMap reads a map, aliases and merge keys included. Anything else is an
// empty one.
func (c *converter) newMap(n *yaml.Node, at string, depth int) *object {
	m := &object{c: c, path: at, values: map[string]*yaml.Node{}, lines: map[string]*yaml.Node{}, taken: map[string]bool{}}
	n = resolve(n)
	if n != nil && n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], resolve(n.Content[i+1])
			if k.Value == "<<" && depth < maxMerge {
				for _, from := range merged(v) {
					more := c.newMap(from, at, depth+1)
					for _, key := range more.keys {
						m.set(key, more.lines[key], more.values[key], false)
					}
				}
				continue
			}
			m.set(k.Value, k, v, true)
		}
	}
	if depth == 0 {
		c.objects = append(c.objects, m)
	}
	return m
}

func merged(v *yaml.Node) []*yaml.Node {
	if v != nil && v.Kind == yaml.SequenceNode {
		return v.Content
	}
	return []*yaml.Node{v}
}

func (m *object) set(key string, k, v *yaml.Node, override bool) {
	if _, there := m.values[key]; there && !override {
		return
	} else if !there {
		m.keys = append(m.keys, key)
	}
	m.values[key], m.lines[key] = v, k
}

// resolve follows aliases, a bounded number of them.
func resolve(n *yaml.Node) *yaml.Node {
	for range maxMerge {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

func (m *object) has(key string) bool { return m.values[key] != nil }

// peek looks into a map without taking it.
func (m *object) peek(key string) *object {
	return m.c.newMap(m.values[key], key, maxMerge)
}

// text is a scalar, without taking it.
func (m *object) text(key string) string {
	if v := m.values[key]; v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

// take is the value; nil when it is not there.
func (m *object) take(key string) *yaml.Node {
	m.taken[key] = true
	return m.values[key]
}

// takeText is a scalar's text; a value of another kind counts as not taken.
func (m *object) takeText(key string) string {
	v := m.values[key]
	if v == nil || v.Kind != yaml.ScalarNode || v.Tag == "!!null" {
		return ""
	}
	m.taken[key] = true
	return v.Value
}

// takeMap is the map at key; empty when there is none.
func (m *object) takeMap(key string) *object {
	v := m.values[key]
	if v != nil && v.Kind == yaml.MappingNode {
		m.taken[key] = true
	}
	at := key
	if m.path != "" {
		at = m.path + "." + key
	}
	return m.c.newMap(v, at, 0)
}

// takeList is the items of the list at key, a scalar being a list of one.
func (m *object) takeList(key string) []*yaml.Node {
	v := m.values[key]
	if v == nil {
		return nil
	}
	m.taken[key] = true
	if v.Kind == yaml.SequenceNode {
		out := make([]*yaml.Node, len(v.Content))
		for i, n := range v.Content {
			out[i] = resolve(n)
		}
		return out
	}
	return []*yaml.Node{v}
}

// drop notes a key that is understood and has no equivalent.
func (m *object) drop(key, why string) {
	if m.has(key) {
		m.taken[key] = true
		m.c.note(m.lines[key], "%s: %s", m.at(key), why)
	}
}

func (m *object) at(key string) string {
	if m.path == "" {
		return key
	}
	return m.path + "." + key
}

// rest notes what nobody took.
func (c *converter) rest() {
	for _, m := range c.objects {
		for _, k := range m.keys {
			if !m.taken[k] {
				c.note(m.lines[k], "%s has no equivalent", m.at(k))
			}
		}
	}
}
