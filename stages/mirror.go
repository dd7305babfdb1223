package stages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// mirror is where packages of a kind come from: the bundle's mirror, else what
// the machine is set up for.
func (s *state) mirror(ctx context.Context, kind string, machine func(context.Context) (string, error)) (string, error) {
	if m := s.Bundle.Meta.Mirrors[kind]; m != "" {
		return m, nil
	}
	return machine(ctx)
}

// mirrorVariables tell the commands of a Dockerfile of the bundle's mirrors, as
// programs look for them. Maven knows no variable.
func (s *state) mirrorVariables() []string {
	var out []string
	if m := s.Bundle.Meta.Mirrors["npm"]; m != "" {
		out = append(out, "npm_config_registry="+m)
	}
	if m := s.Bundle.Meta.Mirrors["pip"]; m != "" {
		out = append(out, "PIP_INDEX_URL="+m)
	}
	return out
}

// pipIndex is the package index the machine is configured for.
func pipIndex(ctx context.Context, getenv func(string) string) (string, error) {
	if v := getenv("PIP_INDEX_URL"); v != "" {
		return v, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, program := range []string{"pip3", "pip"} {
		var out bytes.Buffer
		err := run.Command{Path: program, Args: []string{"config", "get", "global.index-url"},
			Env: []string{"PATH=" + getenv("PATH"), "HOME=" + getenv("HOME")}, Stdout: &out}.Run(ctx)
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if v := strings.TrimSpace(out.String()); err == nil && v != "" {
			return v, nil
		}
		if err == nil || !errors.Is(err, exec.ErrNotFound) {
			break // it has none set
		}
	}
	return "", &usererr.Error{
		Code: usererr.CodeUnable, What: "find the Python package index", Err: errors.New("PIP_INDEX_URL is not set, pip has no global.index-url, and the bundle names no mirror"),
		Next: "set PIP_INDEX_URL, or mirrors.pip in bundle.yml",
	}
}

// netrc gives requests the credentials that a netrc file has for their host,
// as curl and pip read it. The file is read when it is first needed; one that
// can't be read is no credentials.
func netrc(file string) func(*http.Request) {
	if file == "" {
		return nil
	}
	return func(r *http.Request) {
		data, err := os.ReadFile(file)
		if err != nil {
			return
		}
		if login, password, ok := findNetrc(string(data), r.URL.Hostname()); ok {
			r.SetBasicAuth(login, password)
		}
	}
}

// findNetrc finds a host in a netrc file, or the default at its end.
func findNetrc(text, host string) (login, password string, ok bool) {
	words := strings.Fields(text)
	mine := false
	for i := 0; i < len(words); i++ {
		next := ""
		if i+1 < len(words) {
			next = words[i+1]
		}
		switch words[i] {
		case "machine", "default":
			if ok {
				return login, password, true
			}
			mine = words[i] == "default" || next == host
			if words[i] == "machine" {
				i++
			}
		case "login", "password", "account":
			if mine {
				ok = true
				switch words[i] {
				case "login":
					login = next
				case "password":
					password = next
				}
			}
			i++
		}
	}
	return login, password, ok
}

// withoutCredentials refuses an address that would end up in logs.
func withoutCredentials(address string) error {
	if at := strings.Index(address, "@"); at >= 0 && strings.Contains(address[:at], "://") {
		return fmt.Errorf("the address of a package index holds credentials; put them into a netrc file and its path into NETRC")
	}
	return nil
}
