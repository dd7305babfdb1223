package gitlabci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Call is one use of a program in a job of a template.
type Call struct {
	Job  string   // as written, with its input in the name
	Args []string // what follows the program's name
}

// Calls lists how a GitLab CI file calls a program in its scripts, in the
// order of the file. A script line is split at spaces; templates hold nothing
// that needs a shell's rules, and a line with a quote, a variable or a pipe is
// an error, so that a template can't hide a call from the tests.
func Calls(file []byte, program string) ([]Call, error) {
	var calls []Call
	dec := yaml.NewDecoder(bytes.NewReader(file))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return calls, nil
		} else if err != nil {
			return nil, fmt.Errorf("gitlabci: %w", err)
		}
		if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
			continue
		}
		top := doc.Content[0].Content
		for i := 0; i+1 < len(top); i += 2 {
			switch top[i].Value {
			case "spec", "variables", "include", "stages", "workflow":
				continue // not a job, whatever its keys are called
			}
			found, err := jobCalls(top[i].Value, top[i+1], program)
			if err != nil {
				return nil, err
			}
			calls = append(calls, found...)
		}
	}
}

func jobCalls(name string, job *yaml.Node, program string) ([]Call, error) {
	if job.Kind != yaml.MappingNode {
		return nil, nil
	}
	var calls []Call
	for i := 0; i+1 < len(job.Content); i += 2 {
		switch job.Content[i].Value {
		case "before_script", "script", "after_script":
		default:
			continue
		}
		for _, line := range scriptLines(job.Content[i+1]) {
			words := strings.Fields(line)
			if strings.Contains(line, program) && (words[0] != program || strings.ContainsAny(line, "'\"`$|&;<>\\")) {
				return nil, fmt.Errorf("gitlabci: job %s: %q is more than a plain call of %s", name, line, program)
			}
			if words[0] == program {
				calls = append(calls, Call{Job: name, Args: words[1:]})
			}
		}
	}
	return calls, nil
}

// scriptLines are a script's lines that are not empty; GitLab allows one
// string, a list, and lists in it.
func scriptLines(n *yaml.Node) []string {
	var lines []string
	if n.Kind == yaml.ScalarNode {
		for _, l := range strings.Split(n.Value, "\n") {
			if strings.TrimSpace(l) != "" {
				lines = append(lines, l)
			}
		}
	}
	for _, c := range n.Content {
		lines = append(lines, scriptLines(c)...)
	}
	return lines
}
