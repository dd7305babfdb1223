package project

import (
	"fmt"
	"sort"
	"strings"
)

// Code names a kind of problem for good. The numbers continue the table of
// designed errors (E10 is faas.yml).
type Code string

const (
	CodeSyntax      Code = "E1010" // not YAML, or YAML we refuse
	CodeUnknownKey  Code = "E1011"
	CodeUnknownName Code = "E1012" // a runtime, plugin, … that does not exist
	CodeType        Code = "E1013" // text where a map is due
	CodeValue       Code = "E1014" // malformed or out of range
	CodeRequired    Code = "E1015"
	CodePlanned     Code = "E1016"
	CodeDuplicate   Code = "E1017"
	CodeVariable    Code = "E1018"
	CodeName        Code = "E1019"
	CodeConflict    Code = "E1020" // two fields contradict each other
	CodeRoute       Code = "E1021"
	CodeAggregate   Code = "E1022" // functions that can't live in one unit
	CodeLimit       Code = "E1023" // the platform's limits
	CodeTooLarge    Code = "E1024" // size, depth, number of nodes
	CodeEnvironment Code = "E1025"
)

// Problem is one reason why faas.yml is refused.
type Problem struct {
	Line   int    `json:"line"`           // 1-based; 0: the file as a whole
	Column int    `json:"column"`         // 1-based, in characters
	Path   string `json:"path,omitempty"` // functions.list.runtime
	Code   Code   `json:"code"`
	Why    string `json:"why"`  // unknown runtime "nodejs19"
	Next   string `json:"next"` // use one of: nodejs18, python3.11, java17
}

// String is the line people read: `line 7, column 14: functions.list.runtime:
// unknown runtime "nodejs19"`, without the next step.
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d, column %d: ", p.Line, p.Column)
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Why)
	return b.String()
}

// Problems are all that is wrong with a file, in the order of the file. It is
// never an empty error.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return "faas.yml: " + strings.Join(lines, "; ")
}

// first cuts a list that nobody would read to its end.
func (ps Problems) first(n int) Problems {
	if len(ps) <= n {
		return ps
	}
	return append(ps[:n:n], Problem{Code: CodeTooLarge, Why: "there are more problems than these", Next: "correct these first"})
}

// sorted orders by position and drops exact repetitions, which one anchor used
// twice would cause.
func (ps Problems) sorted() Problems {
	sort.SliceStable(ps, func(i, j int) bool {
		a, b := ps[i], ps[j]
		switch {
		case a.Line != b.Line:
			return a.Line < b.Line
		case a.Column != b.Column:
			return a.Column < b.Column
		case a.Path != b.Path:
			return a.Path < b.Path
		case a.Code != b.Code:
			return a.Code < b.Code
		}
		return a.Why < b.Why
	})
	out := ps[:0]
	for i, p := range ps {
		if i == 0 || p != out[len(out)-1] {
			out = append(out, p)
		}
	}
	return out
}
