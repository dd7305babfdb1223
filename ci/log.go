package ci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// Log is the human log of a job: sections GitLab can fold, and indented lines.
// It writes one line per event, never moves the cursor, and holds no state.
type Log struct {
	W io.Writer
	// GitLab turns on section markers and colour.
	GitLab bool
	Now    func() time.Time
}

// notSectionName is what GitLab does not accept in a section's name
// (letters, digits, "_", "." and "-" are fine).
var notSectionName = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

// Do runs f inside a section and always closes it, with the time it took.
func (l Log) Do(ctx context.Context, id, title string, f func(context.Context) error) error {
	start := l.Now()
	id = notSectionName.ReplaceAllString(id, "_")
	if l.GitLab {
		fmt.Fprintf(l.W, "\x1b[0Ksection_start:%d:%s\r\x1b[0K%s\n", start.Unix(), id, l.bold(title))
	} else {
		fmt.Fprintf(l.W, "== %s\n", title)
	}
	err := f(ctx)
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	l.Printf("%s: %s in %s", title, outcome, Took(l.Now().Sub(start)))
	if l.GitLab {
		fmt.Fprintf(l.W, "\x1b[0Ksection_end:%d:%s\r\x1b[0K\n", l.Now().Unix(), id)
	}
	return err
}

// Printf writes one event. Further lines of the text are indented below it.
func (l Log) Printf(format string, args ...any) {
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	fmt.Fprintf(l.W, "  %s\n", strings.ReplaceAll(text, "\n", "\n    "))
}

// Skip says that something did not happen, and why.
func (l Log) Skip(what, why string) { l.Printf("skipped: %s (%s)", what, why) }

// Warn writes a line that should catch the eye.
func (l Log) Warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if l.GitLab {
		text = "\x1b[33mwarning: " + text + "\x1b[0m"
	} else {
		text = "warning: " + text
	}
	l.Printf("%s", text)
}

func (l Log) bold(s string) string { return "\x1b[1m" + s + "\x1b[0m" }

// Took renders a duration for people: 12ms, 3.4s, 2m5s.
func Took(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// Annotations is the content of an `annotations` report: links GitLab shows on
// the job page.
// https://docs.gitlab.com/ci/yaml/artifacts_reports/#artifactsreportsannotations
func Annotations(links []Link) []byte {
	type external struct {
		Label string `json:"label"`
		URL   string `json:"url"`
	}
	type item struct {
		Link external `json:"external_link"`
	}
	items := make([]item, 0, len(links))
	for _, l := range links {
		items = append(items, item{external(l)})
	}
	data, err := json.MarshalIndent(map[string][]item{"faas": items}, "", "  ")
	if err != nil {
		panic(err) // strings always marshal
	}
	return append(data, '\n')
}

// Link is a labelled address.
type Link struct{ Label, URL string }

// Dotenv renders a dotenv report. GitLab accepts no blank lines, comments or
// multi-line values, at most 5 KB and by default 20 variables, so anything
// else is an error here and not a puzzle there.
// https://docs.gitlab.com/ci/yaml/artifacts_reports/#artifactsreportsdotenv
func Dotenv(vars []Variable) ([]byte, error) {
	if len(vars) > 20 {
		return nil, fmt.Errorf("dotenv: %d variables, GitLab takes 20", len(vars))
	}
	var b strings.Builder
	for _, v := range vars {
		if !dotenvName.MatchString(v.Name) {
			return nil, fmt.Errorf("dotenv: %q is not a variable name", v.Name)
		}
		if strings.ContainsAny(v.Value, "\n\r") {
			return nil, fmt.Errorf("dotenv: %s has several lines", v.Name)
		}
		fmt.Fprintf(&b, "%s=%s\n", v.Name, v.Value)
	}
	if b.Len() > 5<<10 {
		return nil, fmt.Errorf("dotenv: %d bytes, GitLab takes 5120", b.Len())
	}
	return []byte(b.String()), nil
}

var dotenvName = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// Variable is one line of a dotenv report.
type Variable struct{ Name, Value string }
