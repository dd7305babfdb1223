package project

import (
	"fmt"
	"regexp"
	"strings"
)

// maxFilled bounds what variables may add to a file, in bytes.
const maxFilled = 1 << 20

var (
	envForm  = regexp.MustCompile(`^\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?:\s*,\s*('[^']*'))?\s*\}`)
	gitForm  = regexp.MustCompile(`^\$\{git:(sha|branch|tag)\s*\}`)
	someForm = regexp.MustCompile(`^\$\{[^}\n]*\}?`)
)

// filler replaces ${env:…} and ${git:…} in the values of a file. Nothing else
// is evaluated, and what was filled in is not looked at again.
type filler struct {
	o        Options
	left     int
	problems Problems
}

// fill walks n. open leaves values alone and only checks how variables are
// written: those of another environment may not be known in this job.
func (f *filler) fill(n *node, path string, open bool) {
	switch n.kind {
	case aList:
		for i, item := range n.items {
			f.fill(item, fmt.Sprintf("%s[%d]", path, i), open)
		}
	case aMap:
		for _, e := range n.entries {
			sub := join(path, e.key)
			switch {
			case path == "" && e.key == "custom":
			case path == "environments":
				f.fill(e.value, sub, e.key != f.o.Environment)
			default:
				f.fill(e.value, sub, open)
			}
		}
	case aText:
		if strings.Contains(n.text, "${") && !n.filled {
			f.text(n, path, open)
		}
	}
}

// shell reports a field whose text a shell reads: there ${HOME} is the shell's.
func shell(path string) bool {
	return strings.HasSuffix(path, "build.command") || strings.HasSuffix(path, "build.install") || path == "test.command"
}

func (f *filler) text(n *node, path string, open bool) {
	problem := func(why, next string) {
		n.bad = true
		f.problems = append(f.problems, Problem{n.line, n.col, path, CodeVariable, why, next})
	}
	var b strings.Builder
	rest := n.text
	for {
		i := strings.Index(rest, "${")
		if i < 0 {
			b.WriteString(rest)
			break
		}
		if i > 0 && rest[i-1] == '$' && !shell(path) { // $${ is a literal ${
			b.WriteString(rest[:i-1] + "${")
			rest = rest[i+2:]
			continue
		}
		b.WriteString(rest[:i])
		rest = rest[i:]
		if m := envForm.FindStringSubmatch(rest); m != nil {
			rest = rest[len(m[0]):]
			if !open {
				b.WriteString(f.env(m[1], m[2], problem))
			}
		} else if m := gitForm.FindStringSubmatch(rest); m != nil {
			rest = rest[len(m[0]):]
			if !open {
				b.WriteString(f.git(m[1], problem))
			}
		} else if shell(path) {
			b.WriteString("${")
			rest = rest[2:]
			continue
		} else {
			m := someForm.FindString(rest)
			problem(fmt.Sprintf("%s is not evaluated", quote(m)), "use ${env:NAME}, ${env:NAME, 'default'} or ${git:sha|branch|tag}; write $${ for a literal ${")
			return
		}
		if n.bad {
			return
		}
		if b.Len() > f.left {
			problem("variables make the file too large", fmt.Sprintf("at most %d bytes may be filled in", maxFilled))
			return
		}
	}
	if n.open = open && b.String() != n.text; n.open {
		return
	}
	f.left -= b.Len()
	n.filled = b.String() != n.text
	n.text = b.String()
}

func (f *filler) env(name, fallback string, problem func(why, next string)) string {
	var value string
	var masked, ok bool
	if f.o.Variables != nil {
		value, masked, ok = f.o.Variables(name)
	}
	switch {
	case ok && masked:
		problem(fmt.Sprintf("the CI variable %s is masked: its value would stand in plans and records", name),
			"keep it in a Secret and name it under secrets; for the build command use build.secrets")
		return ""
	case ok:
		return value
	case fallback != "":
		return fallback[1 : len(fallback)-1]
	}
	problem(fmt.Sprintf("the CI variable %s is not set", name), fmt.Sprintf("set it, or write a default: ${env:%s, 'default'}", name))
	return ""
}

func (f *filler) git(what string, problem func(why, next string)) string {
	value := map[string]string{"sha": f.o.Git.SHA, "branch": f.o.Git.Branch, "tag": f.o.Git.Tag}[what]
	if value == "" {
		problem("this pipeline has no "+what, "use ${git:sha}, which is always there")
	}
	return value
}
