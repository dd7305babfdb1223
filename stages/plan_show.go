package stages

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

// Plans are both plans of a job, and what stands in their way.
type Plans struct {
	Version int `json:"version"` // 1
	// Refused are fields that this bundle, runner or target can't apply yet:
	// a pipeline fails for them.
	Refused []project.Problem `json:"refused,omitempty"`
	// Reserved are names that the platform's policy gives to other projects: a
	// pipeline fails for them too.
	Reserved []project.Problem `json:"reserved,omitempty"`
	// Notices are fields that change nothing here, Notes what to know about
	// the plans themselves.
	Notices []project.Notice `json:"notices,omitempty"`
	Notes   []string         `json:"notes,omitempty"`
	Build   BuildPlan        `json:"build"`
	Deploy  DeployPlan       `json:"deploy"`
	// Project is what the plans were made of.
	Project *project.Project `json:"-"`
}

// Err is the error that a pipeline would end with; nil when there is none.
// With strict, notices and what the target holds against the plan count too:
// a person's access to the target is not the pipeline's.
func (p Plans) Err(strict bool) error {
	if err := refused(p.Refused); err != nil {
		return err
	}
	if err := p.Build.refused(); err != nil {
		return err
	}
	if len(p.Reserved) > 0 {
		return reservedError(p.Reserved)
	}
	e := &usererr.Error{Code: usererr.CodeProjectRefused, What: "plan strictly", Next: "remove the fields that change nothing"}
	for _, n := range p.Notices {
		e.Problems = append(e.Problems, usererr.Problem{Why: noticeText(n)})
	}
	if pre := p.Deploy.Preflight; pre != nil {
		for _, f := range pre.Problems {
			e.Problems = append(e.Problems, usererr.Problem{Why: f.Error(), Next: f.Next})
		}
	}
	if !strict || len(e.Problems) == 0 {
		return nil
	}
	return e
}

func noticeText(n project.Notice) string {
	return project.Problem{Line: n.Line, Column: n.Column, Path: n.Path, Why: n.Why}.String()
}

// title is the plan in one line.
func (p Plans) title() string {
	return fmt.Sprintf("%s in %s: %s in %s (%s), tier %s", p.Project.Service.Name, p.Build.Environment,
		count(len(p.Project.Functions), "function"), count(len(p.Project.Units), "unit"), p.Project.Deploy.Mode, p.Project.Service.Tier)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// unitRows are the plan's units: action, unit, functions, why, next revision.
func (p Plans) unitRows() [][]string {
	functions := map[string]string{}
	for _, u := range p.Project.Units {
		names := make([]string, len(u.Functions))
		for i, f := range u.Functions {
			names[i] = f.Name
		}
		functions[u.ServiceName] = strings.Join(names, ", ")
	}
	rows := [][]string{}
	for _, c := range p.Deploy.Changes {
		to := c.To
		if c.Action == Remove || c.Action == Unchanged {
			to = c.From
		} else if to == "" {
			to = "known after the build"
		}
		rows = append(rows, []string{string(c.Action), c.Service, functions[c.Service], c.Why, to})
	}
	return rows
}

func (p Plans) imageRows() [][]string {
	rows := [][]string{}
	for _, i := range p.Build.Images {
		rows = append(rows, []string{i.Action, i.Name, strings.Join(i.Units, ", "), i.Why, count(len(p.Build.Shared)+len(i.Files), "file") + ", " + i.Engine})
	}
	return rows
}

// remarks are the lines below the tables.
func (p Plans) remarks() []string {
	notes := slices.Concat(p.Build.Notes, p.Notes)
	switch d := p.Deploy; {
	case d.Observed == ObservedNone:
		notes = append(notes, "observed: none"+because(d.ObservedWhy)+"; the deploy compares with what is live")
	case d.Observed != ObservedLive:
		notes = append(notes, "compared with "+d.Observed)
	case d.RollbackTo != "" && d.Changed():
		notes = append(notes, "a rollback returns to "+d.RollbackTo)
	case !d.Changed():
		notes = append(notes, "nothing changes: "+d.RollbackTo+" is live with just this")
	}
	if d := p.Deploy; d.Preflight != nil && d.Observed != ObservedNone {
		if text := d.Preflight.remark(); text != "" {
			notes = append(notes, text)
		}
	}
	return notes
}

// String is the plans as people read them in a terminal.
func (p Plans) String() string {
	var b strings.Builder
	b.WriteString(p.title() + "\n")
	section(&b, "not supported yet, a pipeline refuses", problemRows(p.Refused))
	section(&b, "names of other projects, a pipeline refuses", problemRows(p.Reserved))
	section(&b, "images", p.imageRows())
	section(&b, "instructions", p.Build.findings())
	section(&b, "units", p.unitRows())
	var routes [][]string
	for _, r := range p.Deploy.Routes {
		routes = append(routes, []string{methods(r.Methods), r.Path, r.Function, "in " + r.Unit})
	}
	section(&b, "routes", routes)
	section(&b, "timers", timerRows(p.Deploy.Timers))
	var rows [][]string
	for _, n := range p.Notices {
		rows = append(rows, []string{noticeText(n)})
	}
	section(&b, "changes nothing", rows)
	if pre := p.Deploy.Preflight; pre != nil {
		section(&b, "held against it by the target", pre.rows())
	}
	for _, n := range p.remarks() {
		b.WriteString("note: " + n + "\n")
	}
	return b.String()
}

func problemRows(list []project.Problem) [][]string {
	var rows [][]string
	for _, r := range list {
		rows = append(rows, []string{r.String()})
	}
	return rows
}

func methods(list []string) string {
	if len(list) == 0 {
		return "ANY"
	}
	return strings.ToUpper(strings.Join(list, ","))
}

// section writes rows in columns as wide as their widest cell; the last column
// is as long as it is. Empty columns are left out.
func section(b *strings.Builder, title string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "%s:\n", title)
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, r := range rows {
		line := " "
		for i, cell := range r {
			if width[i] > 0 {
				line += " " + cell + strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)) + " "
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// Markdown is the plans for a merge request's comment.
func (p Plans) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### Plan: %s\n\n", cell(p.title()))
	if len(p.Refused) > 0 {
		b.WriteString("**Not supported yet; a pipeline refuses:**\n\n")
		for _, r := range p.Refused {
			fmt.Fprintf(&b, "- %s\n", cell(r.String()))
		}
		b.WriteString("\n")
	}
	if len(p.Reserved) > 0 {
		b.WriteString("**Names of other projects; a pipeline refuses:**\n\n")
		for _, r := range p.Reserved {
			fmt.Fprintf(&b, "- %s\n", cell(r.String()))
		}
		b.WriteString("\n")
	}
	table := func(head []string, rows [][]string) {
		if len(rows) == 0 {
			return
		}
		fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
		for _, r := range rows {
			for i := range r {
				r[i] = cell(r[i])
			}
			fmt.Fprintf(&b, "| %s |\n", strings.Join(r, " | "))
		}
		b.WriteString("\n")
	}
	table([]string{"unit", "", "functions", "why", "revision"}, columns(p.unitRows(), 1, 0, 2, 3, 4))
	table([]string{"timer of", "", "when", "next", "why"}, columns(timerRows(p.Deploy.Timers), 1, 0, 2, 3, 4))
	table([]string{"image", "", "units", "why", "made of"}, columns(p.imageRows(), 1, 0, 2, 3, 4))
	for _, f := range p.Build.findings() {
		fmt.Fprintf(&b, "- %s\n", cell(strings.Join(f, " ")))
	}
	if pre := p.Deploy.Preflight; pre != nil {
		table([]string{"preflight", "unit", "why", "what to do"}, columns(pre.rows(), 1, 0, 2, 3))
	}
	for _, n := range p.Notices {
		fmt.Fprintf(&b, "- changes nothing: %s\n", cell(noticeText(n)))
	}
	for _, n := range p.remarks() {
		fmt.Fprintf(&b, "- %s\n", cell(n))
	}
	return b.String()
}

func columns(rows [][]string, order ...int) [][]string {
	out := make([][]string, len(rows))
	for i, r := range rows {
		for _, c := range order {
			out[i] = append(out[i], r[c])
		}
	}
	return out
}

// cell is text inside Markdown: what a handler or a variable is called must
// not become a link, a heading or another cell.
func cell(s string) string {
	return strings.NewReplacer("\n", " ", "\\", `\\`, "|", `\|`, "<", "&lt;", ">", "&gt;", "`", "\\`", "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "@", "&#64;").Replace(s)
}

// OriginsText is the merged file, one value a line, with where each comes from.
func OriginsText(list []project.Origin) string {
	var b strings.Builder
	for _, o := range list {
		layer := o.Layer
		if strings.HasPrefix(o.From, layer) || o.Path == layer || strings.HasPrefix(o.Path, layer+".") {
			layer = ""
		}
		fmt.Fprintf(&b, "%s: %s  # %s%s\n", o.Path, o.Value, o.From, because(layer))
	}
	return b.String()
}
