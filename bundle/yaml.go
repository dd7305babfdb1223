package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// ContentError lists everything that is wrong in one of the bundle's files.
// It is an [ErrContent].
type ContentError struct {
	File     string
	Problems []Problem
}

// Problem is one mistake, at a position that an editor understands; zero when
// there is none.
type Problem struct {
	Line, Column int
	Path         string // clusters.test-1.kind
	Text         string
}

func (p Problem) String() string {
	s := p.Text
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if p.Line > 0 {
		s = fmt.Sprintf("line %d, column %d: %s", p.Line, p.Column, s)
	}
	return s
}

// Error has one line for each problem.
func (e *ContentError) Error() string {
	all := make([]string, 0, len(e.Problems))
	for _, p := range e.Problems {
		all = append(all, e.File+": "+p.String())
	}
	return strings.Join(all, "\n")
}

// Is makes every ContentError an ErrContent.
func (e *ContentError) Is(target error) bool { return target == ErrContent }

// maxYAML bounds the platform's own configuration files.
const maxYAML = 4 << 20

// yamlDoc is a parsed file together with the positions of its parts.
type yamlDoc struct {
	file     string
	root     *yaml.Node
	problems []Problem
}

// decodeYAML reads one strict YAML document into v, a pointer to a struct:
// unknown and repeated keys, wrong types, anchors and further documents are
// problems. Check d.err before using v.
func decodeYAML(file string, data []byte, v any) *yamlDoc {
	d := &yamlDoc{file: file}
	if len(data) > maxYAML {
		d.badf(nil, "larger than %d bytes", maxYAML)
		return d
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var top yaml.Node
	switch err := dec.Decode(&top); {
	case errors.Is(err, io.EOF):
		d.badf(nil, "the file is empty")
		return d
	case err != nil:
		d.badf(nil, "%s", yamlReason(err))
		return d
	}
	d.root = top.Content[0]
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		d.badf(nil, "holds more than one document")
	}
	d.walk(nil, d.root, reflect.TypeOf(v).Elem())
	if len(d.problems) > 0 {
		return d
	}
	if err := d.root.Decode(v); err != nil {
		d.badf(nil, "%s", yamlReason(err))
	}
	return d
}

func (d *yamlDoc) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	p := slices.Clone(d.problems)
	slices.SortStableFunc(p, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return &ContentError{File: d.file, Problems: p}
}

// badf adds a problem at the value of path, or at the nearest part of the path
// that exists.
func (d *yamlDoc) badf(path []string, format string, args ...any) {
	p := Problem{Path: strings.Join(path, "."), Text: fmt.Sprintf(format, args...)}
	if n := d.root; n != nil {
		for _, key := range path {
			next := child(n, key)
			if next == nil {
				break
			}
			n = next
		}
		if len(path) > 0 {
			p.Line, p.Column = n.Line, n.Column
		}
	}
	d.problems = append(d.problems, p)
}

func child(n *yaml.Node, key string) *yaml.Node {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}

var (
	unmarshaler  = reflect.TypeFor[yaml.Unmarshaler]()
	typeDuration = reflect.TypeFor[Duration]()
)

// walk compares a node with the type it will be decoded into.
func (d *yamlDoc) walk(path []string, n *yaml.Node, t reflect.Type) {
	bad := func(n *yaml.Node, path []string, format string, args ...any) {
		d.problems = append(d.problems, Problem{Line: n.Line, Column: n.Column, Path: strings.Join(path, "."), Text: fmt.Sprintf(format, args...)})
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		bad(n, path, "anchors and aliases are not allowed")
		return
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == typeDuration || reflect.PointerTo(t).Implements(unmarshaler) {
		if n.Kind != yaml.ScalarNode {
			bad(n, path, "want a single value")
		} else if err := n.Decode(reflect.New(t).Interface()); err != nil {
			bad(n, path, "%s", yamlReason(err))
		}
		return
	}
	sub := func(key string) []string { return append(path[:len(path):len(path)], key) }
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		if n.Kind != yaml.MappingNode {
			bad(n, path, "want a map")
			return
		}
		var fields map[string]reflect.Type
		if t.Kind() == reflect.Struct {
			fields = yamlFields(t)
		}
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, val := n.Content[i], n.Content[i+1]
			if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" || key.Anchor != "" {
				bad(key, path, "a key must be plain text")
				continue
			}
			if seen[key.Value] {
				bad(key, sub(key.Value), "appears twice")
				continue
			}
			seen[key.Value] = true
			if fields == nil {
				d.walk(sub(key.Value), val, t.Elem())
				continue
			}
			ft, ok := fields[key.Value]
			if !ok {
				bad(key, sub(key.Value), "unknown key%s", suggest(key.Value, fields))
				continue
			}
			d.walk(sub(key.Value), val, ft)
		}
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			bad(n, path, "want a list")
			return
		}
		for i, e := range n.Content {
			d.walk(sub(strconv.Itoa(i)), e, t.Elem())
		}
	case reflect.String:
		if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" || !printable(n.Value) {
			bad(n, path, "want text")
		}
	case reflect.Int, reflect.Int64, reflect.Uint64:
		if _, err := strconv.ParseInt(n.Value, 10, 64); n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
			bad(n, path, "want a whole number")
		}
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
			bad(n, path, "want true or false")
		}
	}
}

func yamlFields(t reflect.Type) map[string]reflect.Type {
	m := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			m[name] = f.Type
		}
	}
	return m
}

// suggest finds the known key that somebody probably meant.
func suggest(key string, known map[string]reflect.Type) string {
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	slices.Sort(names)
	best, at := "", 3
	for _, k := range names {
		if dist := distance(strings.ToLower(key), strings.ToLower(k)); dist < at {
			best, at = k, dist
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; known: " + strings.Join(names, ", ")
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost = 1 + min(prev, row[j], row[j+1])
			}
			prev, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

var goType = regexp.MustCompile(` into \S+$`)

// yamlReason is a decoder's error without the library's name and Go's types.
func yamlReason(err error) string {
	s := strings.TrimPrefix(err.Error(), "yaml: ")
	s = strings.TrimPrefix(s, "unmarshal errors:\n  ")
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = goType.ReplaceAllString(strings.TrimSpace(l), "")
	}
	return strings.Join(lines, "; ")
}

// Duration is a time span in Go's syntax plus d for days: 30s, 10m, 3d.
type Duration time.Duration

// UnmarshalYAML accepts a scalar.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseDuration(n.Value)
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes Go's syntax.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

func parseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a duration, such as 30s, 10m or 3d", s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, bad
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return 0, bad
	}
	return v, nil
}
