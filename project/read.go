package project

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	maxBytes = 1 << 20 // refused before parsing
	maxDepth = 48      // of maps and lists inside each other
	maxNodes = 200_000 // after anchors are followed
	// Above this, a syntax error is placed by the YAML library alone: finding
	// the exact spot reads the file about twenty times.
	maxSearch = 32 << 10
)

// read turns bytes into a tree. On a problem the tree is nil, except for
// problems that leave the rest readable (a key that is there twice).
func read(data []byte) (*node, Problems) {
	if len(data) > maxBytes {
		return nil, Problems{{
			Code: CodeTooLarge, Why: fmt.Sprintf("the file has %d bytes; at most %d are read", len(data), maxBytes),
			Next: "keep data out of faas.yml: put it into files that the functions read",
		}}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if p := checkText(data); p != nil {
		return nil, Problems{*p}
	}
	doc, err := decode(data)
	switch {
	case errors.Is(err, io.EOF), err == nil && (doc == nil || len(doc.Content) == 0):
		return nil, Problems{{Code: CodeSyntax, Why: "the file is empty", Next: "start with the smallest one: version, service, provider.runtime, functions"}}
	case err != nil:
		return nil, Problems{syntaxProblem(data, err)}
	}
	r := reader{left: maxNodes, open: map[*yaml.Node]bool{}}
	root := r.node(doc.Content[0], "", 0)
	if r.stop {
		return nil, r.problems.sorted()
	}
	if root.kind != aMap {
		return nil, append(r.problems, Problem{
			Line: root.line, Column: root.col, Code: CodeType,
			Why:  "the file holds " + root.kind.String() + "; it must be a map",
			Next: `write one "key: value" per line, first of all "version: 1"`,
		})
	}
	return root, r.problems
}

// checkText refuses what is not UTF-8 text, with a position that an editor
// agrees with.
func checkText(data []byte) *Problem {
	line, col := 1, 1
	for i := 0; i < len(data); {
		c, size := utf8.DecodeRune(data[i:])
		why, next := "", "remove it"
		switch {
		case c == utf8.RuneError && size <= 1:
			why, next = "the file is not UTF-8 text", "save it as UTF-8"
		case c < 0x20 && c != '\n' && c != '\r' && c != '\t', c >= 0x7f && c < 0xa0, c == 0xfffe, c == 0xffff:
			why = fmt.Sprintf("the control character %U is not allowed", c)
		case c == 0x2028, c == 0x2029, c == 0xfeff,
			// These make text look like other text: https://trojansource.codes
			c >= 0x202a && c <= 0x202e, c >= 0x2066 && c <= 0x2069:
			why = fmt.Sprintf("the invisible character %U is not allowed", c)
		}
		if why != "" {
			if i == 0 && len(data) > 1 && (data[0] == 0xff || data[0] == 0xfe) {
				why = "the file is UTF-16, not UTF-8 text"
			}
			return &Problem{Line: line, Column: col, Code: CodeSyntax, Why: why, Next: next}
		}
		i += size
		col++
		if c == '\n' || c == '\r' && !bytes.HasPrefix(data[i:], []byte("\n")) {
			line, col = line+1, 1
		}
	}
	return nil
}

var errSecond = errors.New("a second document")

// decode reads the one document. A panic of the library on some input is an
// error of that input, not of the job.
func decode(data []byte) (doc *yaml.Node, err error) {
	defer func() {
		if v := recover(); v != nil {
			doc, err = nil, fmt.Errorf("yaml: %v", v)
		}
	}()
	d := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	if err := d.Decode(&first); err != nil {
		return nil, err
	}
	switch err := d.Decode(&second); {
	case errors.Is(err, io.EOF):
		return &first, nil
	case err != nil:
		return nil, err
	}
	return nil, errSecond
}

// syntaxProblem finds the place of a syntax error: the end of the shortest
// beginning of the file that fails in the same words. The library itself names
// at best the line where the enclosing block starts.
func syntaxProblem(data []byte, cause error) Problem {
	end := len(data)
	if end <= maxSearch {
		low, high := 0, end // data[:low] fails otherwise, data[:high] alike
		for high-low > 1 {
			mid := (low + high) / 2
			if _, err := decode(data[:mid]); err != nil && err.Error() == cause.Error() {
				high = mid
			} else {
				low = mid
			}
		}
		end = high
		for end < len(data) && !utf8.RuneStart(data[end]) {
			end++
		}
	}
	text := cause.Error()
	m := regexp.MustCompile(`^yaml: (?:line (\d+): )?`).FindStringSubmatch(text)
	var said string
	if m != nil {
		said = text[len(m[0]):]
	} else {
		said = text
	}
	p := Problem{Code: CodeSyntax}
	var last rune
	if len(data) <= maxSearch {
		head := data[:end]
		last, _ = utf8.DecodeLastRune(head)
		p.Line, p.Column = place(head)
		// An error after a line's end belongs to that line.
		if last == '\n' || last == '\r' {
			p.Line, p.Column = place(bytes.TrimRight(head, " \r\n"))
		}
	} else if m != nil && m[1] != "" {
		p.Line, _ = strconv.Atoi(m[1])
		p.Column = 1
	}
	if errors.Is(cause, errSecond) {
		p.Why, p.Next = "a second document starts here", `keep one document: remove the "---"`
		return p
	}
	if line, col := tabIndent(data); line > 0 && (p.Line == 0 || line <= p.Line+1) {
		p.Line, p.Column = line, col
		p.Why, p.Next = "a tab is used to indent", "indent with spaces"
		return p
	}
	if p.Why, p.Next = explain(said, last); strings.HasPrefix(p.Why, unclosed) {
		// The most frequent cause by far has a better place.
		if m := regexp.MustCompile(bareParam).FindSubmatchIndex(data); m != nil {
			p.Line, p.Column = place(data[:m[2]+1])
			p.Why = "inside { } the path " + string(data[m[2]:m[3]]) + " needs quotes, because of its brackets"
			p.Next = fmt.Sprintf("write %q", data[m[2]:m[3]])
		} else if m := regexp.MustCompile(bareVariable).FindSubmatchIndex(data); m != nil && quoting(data, m[2], m[3], cause) {
			p.Line, p.Column = place(data[:m[2]+1])
			p.Why = "inside { } the variable " + string(data[m[2]:m[3]]) + " needs quotes, because of its braces"
			p.Next = fmt.Sprintf("write %q", data[m[2]:m[3]])
		}
	}
	if p.Line == 0 {
		p.Line, p.Column = 1, 1
	}
	return p
}

const unclosed = "a { or [ is not closed, or what is inside is not separated by commas"

// bareParam is a path with a parameter and without quotes in a flow map.
const bareParam = `[{,]\s*path:\s*(/[^\s"',{}\[\]]*(?:\[\w+\]|\{\w+\})[^\s"',{}\[\]]*)`

// bareVariable is a variable without quotes in a flow map or list.
const bareVariable = `[{\[,][^"'\n#]*?(\$\{(?:env|git):[^}\n]*\})`

// quoting reports whether quotes around a part of the file take the error away.
func quoting(data []byte, from, to int, cause error) bool {
	if len(data) > maxSearch {
		return false
	}
	_, err := decode(slices.Concat(data[:from], []byte{'"'}, data[from:to], []byte{'"'}, data[to:]))
	return err == nil || err.Error() != cause.Error()
}

// explain says a YAML library's error in the words of somebody who writes the
// file; last is the character it stopped at.
func explain(said string, last rune) (why, next string) {
	has := func(s string) bool { return strings.Contains(said, s) }
	switch {
	case has("cannot start any token"):
		return fmt.Sprintf("text can't start with %q", last), "put it in quotes"
	case has("mapping values are not allowed"):
		return `a ":" stands where no key can be`, `indent the line like its neighbours, or put text that contains ": " in quotes`
	case has("expected node content"), has("expected ',' or '}'"), has("expected ',' or ']'"):
		return unclosed, `close it, and put text that contains , [ ] { } in quotes: "/detail/[id]"`
	case has("did not find expected key"), has("'-' indicator"), has("block collection entries"), has("block sequence entries"):
		return "the indentation fits neither the line above nor an outer block", "indent keys that belong together by the same number of spaces"
	case has("could not find expected ':'"):
		return `this is neither "key: value" nor "- item"`, `write ": " with a space after the key`
	case has("unexpected end of stream"):
		return "a quote is not closed", "close it"
	case has("unknown anchor"):
		return said, `define the anchor further up, or put text that starts with "*" in quotes`
	case has("exceeded max depth"):
		return "too many levels inside each other", fmt.Sprintf("use at most %d", maxDepth)
	case has("unknown escape character"):
		return "unknown escape after a \\ in double quotes", `use single quotes: '\d'`
	}
	return "this is not YAML: " + said, "correct the YAML; an editor with a YAML mode shows the spot"
}

// place is the position of the last character of head.
func place(head []byte) (line, col int) {
	start := bytes.LastIndexByte(head, '\n') + 1
	return bytes.Count(head[:start], []byte("\n")) + 1, max(1, utf8.RuneCount(head[start:]))
}

// tabIndent is the place of the first tab among a line's leading blanks, in
// front of something; 0 when there is none.
func tabIndent(data []byte) (line, col int) {
	for i, l := range bytes.Split(data, []byte("\n")) {
		body := bytes.TrimLeft(l, " \t")
		if tab := bytes.IndexByte(l[:len(l)-len(body)], '\t'); tab >= 0 && len(bytes.TrimSpace(body)) > 0 && body[0] != '#' {
			return i + 1, tab + 1
		}
	}
	return 0, 0
}

// reader turns the library's nodes into ours, following anchors within a
// budget.
type reader struct {
	left     int
	stop     bool
	open     map[*yaml.Node]bool // anchors being followed
	alias    *yaml.Node          // the outermost of them, as it stands in the file
	problems Problems
}

func (r *reader) problem(y *yaml.Node, path string, code Code, why, next string) {
	r.problems = append(r.problems, Problem{Line: y.Line, Column: y.Column, Path: path, Code: code, Why: why, Next: next})
}

// full ends the reading of a file that is too large.
func (r *reader) full(y *yaml.Node) {
	r.stop = true
	if r.alias != nil {
		y = r.alias
	}
	r.problem(y, "", CodeTooLarge, fmt.Sprintf("the file has more than %d values, anchors followed", maxNodes), "make it smaller, or use fewer anchors")
}

func (r *reader) node(y *yaml.Node, path string, depth int) *node {
	n := &node{line: y.Line, col: y.Column}
	if r.stop {
		return n
	}
	if r.left--; r.left < 0 {
		r.full(y)
		return n
	}
	if depth > maxDepth {
		r.stop = true
		r.problem(y, "", CodeTooLarge, "too many levels inside each other", fmt.Sprintf("use at most %d", maxDepth))
		return n
	}
	if y.Kind != yaml.AliasNode && y.Style&yaml.TaggedStyle != 0 && y.ShortTag() != "!!str" {
		r.problem(y, path, CodeSyntax, "the tag "+y.Tag+" is not supported", "write the value without a tag")
		n.bad = true
		return n
	}
	switch y.Kind {
	case yaml.AliasNode:
		if y.Alias == nil || r.open[y.Alias] {
			r.stop = true
			r.problem(y, path, CodeSyntax, "the anchor "+y.Value+" contains itself", "write the value out")
			return n
		}
		if r.alias == nil {
			r.alias = y
			defer func() { r.alias = nil }()
		}
		r.open[y.Alias] = true
		n = r.node(y.Alias, path, depth)
		delete(r.open, y.Alias)
	case yaml.SequenceNode:
		n.kind = aList
		n.items = make([]*node, 0, min(len(y.Content), r.left))
		for i, c := range y.Content {
			if r.stop {
				break
			}
			n.items = append(n.items, r.node(c, fmt.Sprintf("%s[%d]", path, i), depth+1))
		}
	case yaml.MappingNode:
		n.kind = aMap
		r.entries(n, y, path, depth)
	default:
		n.text = y.Value
		switch y.ShortTag() {
		case "!!null":
			n.kind = aNull
		case "!!bool":
			n.kind = aBool
		case "!!int", "!!float":
			n.kind = aNumber
		default: // also dates: YAML 1.2 has none
			n.kind = aText
		}
	}
	return n
}

func (r *reader) entries(n *node, y *yaml.Node, path string, depth int) {
	var merged []*node
	var mergedFrom *yaml.Node
	for i := 0; i+1 < len(y.Content) && !r.stop; i += 2 {
		k, v := y.Content[i], y.Content[i+1]
		if k.Kind == yaml.AliasNode && k.Alias != nil {
			k = k.Alias
		}
		if k.Kind != yaml.ScalarNode {
			r.problem(k, path, CodeSyntax, "a key is a map or a list", "use text as a key; put text that contains { } [ ] in quotes")
			continue
		}
		if k.ShortTag() == "!!merge" {
			m := r.node(v, path, depth)
			switch {
			case r.stop || m.bad:
			case m.kind != aMap && m.kind != aList:
				r.problem(v, path, CodeType, `"<<" takes a map or a list of maps`, "name an anchor of a map: <<: *shared")
			case m.kind == aMap:
				merged = append(merged, m)
			case m.kind == aList:
				merged = append(merged, m.items...)
			}
			mergedFrom = v
			continue
		}
		sub := join(path, k.Value)
		value := r.node(v, sub, depth+1)
		if old := n.entry(k.Value); old != nil {
			r.problem(k, sub, CodeDuplicate, fmt.Sprintf("the key is there twice; first in line %d", old.line), "keep one of them")
			continue
		}
		n.put(entry{key: k.Value, line: k.Line, col: k.Column, value: value})
	}
	if mergedFrom == nil || r.stop {
		return
	}
	for _, m := range merged {
		if m.kind != aMap {
			r.problem(mergedFrom, path, CodeType, `"<<" takes a map or a list of maps`, "name an anchor of a map: <<: *shared")
			return
		}
		for _, e := range m.entries {
			if r.left--; r.left < 0 {
				r.full(y)
				return
			}
			if n.entry(e.key) == nil {
				n.put(e)
			}
		}
	}
}
