package usererr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

func render(err error, docs string) string {
	var b strings.Builder
	Write(&b, err, docs)
	return b.String()
}

func TestWrite(t *testing.T) {
	tests := []struct {
		name string
		err  error
		docs string
		want string
	}{
		{"problems", &Error{Code: CodeProjectFile, Problems: []Problem{
			{`line 7, column 14: functions.list.runtime: unknown runtime "nodejs19"`, "use one of: nodejs18, python3.11, java17"},
			{`line 9, column 3: memroy: unknown key`, `did you mean "memory"?`},
		}}, "https://docs.example/", `error: read faas.yml
  why:  line 7, column 14: functions.list.runtime: unknown runtime "nodejs19"
  next: use one of: nodejs18, python3.11, java17
  why:  line 9, column 3: memroy: unknown key
  next: did you mean "memory"?
  who:  project     code: E1001     https://docs.example/errors#e1001
`},
		{"wrapped, several lines", fmt.Errorf("stage: %w", &Error{Code: CodeDeployFailed, Err: errors.New("exit code 3\nline one\nline two")}), "", `error: deploy the release
  why:  exit code 3
        line one
        line two
  next: read the function's last log lines above; the previous release still serves
  who:  project     code: E1401
`},
		{"disk full", fmt.Errorf("save: %w", syscall.ENOSPC), "", `error: write to disk
  why:  save: no space left on device
  next: free space on the runner, or choose a runner with more, and run the job again
  who:  external    code: E1109
`},
		{"disk full, designed without a step", &Error{Code: CodePublish, Err: fmt.Errorf("write the key: %w", syscall.EDQUOT)}, "", `error: publish the platform bundle
  why:  write the key: disk quota exceeded
  next: free space on the runner, or choose a runner with more, and run the job again
  who:  platform    code: E1208
`},
		{"undesigned", errors.New("surprise"), "", `error: finish the job
  why:  surprise
  next: this is a bug in Kuroko; please report it with the job's log
  who:  kuroko (our bug)  code: E1901
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := render(tt.err, tt.docs); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	for err, want := range map[error]int{
		nil:                                             0,
		&Error{Code: CodeProjectFile}:                   1,
		&Error{Code: CodeUsage}:                         2,
		errors.New("x"):                                 70,
		&Error{Code: CodeStoreUnavailable}:              75,
		&Error{Code: CodeHeld}:                          76,
		&Error{Code: CodeUnable}:                        77,
		&Error{Code: CodeUntrusted}:                     78,
		&Error{Code: CodeRevoked}:                       79,
		&Error{Code: CodeRestored}:                      80,
		context.Canceled:                                143,
		fmt.Errorf("x: %w", context.DeadlineExceeded):   75,
		&Error{Code: CodeDeployFailed, Class: External}: 75,
	} {
		if got := Exit(err); got != want {
			t.Errorf("%v: exit %d, want %d", err, got, want)
		}
	}
}

// The table is what the messages' quality hangs on: no hole, no "failed to".
func TestTable(t *testing.T) {
	code := regexp.MustCompile(`^E1[0-9]{3}$`)
	for c, e := range Codes() {
		if !code.MatchString(string(c)) {
			t.Errorf("code %q has no place in the scheme", c)
		}
		if e.What == "" || strings.Contains(e.What, "fail") || strings.HasSuffix(e.What, ".") {
			t.Errorf("%s: what %q", c, e.What)
		}
		if _, ok := classes[e.Class]; !ok {
			t.Errorf("%s: class %d is unknown", c, e.Class)
		}
	}
}

// Every code has its section in the documentation that messages link to, with
// its own exit code, and no section is left over.
func TestDocumented(t *testing.T) {
	data, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[Code]string{}
	for _, part := range strings.Split(string(data), "\n### ")[1:] {
		code, text, _ := strings.Cut(part, "\n")
		sections[Code(code)] = text
	}
	for c, e := range Codes() {
		text, ok := sections[c]
		if !ok {
			t.Errorf("docs/errors.md has no section %s", c)
			continue
		}
		if want := fmt.Sprintf("*%s* · exit %d ·", e.What, e.Class.Exit()); !strings.Contains(text, want) {
			t.Errorf("docs/errors.md, %s: want %q", c, want)
		}
		delete(sections, c)
	}
	for c := range sections {
		t.Errorf("docs/errors.md has a section %s, which no error has", c)
	}
}
