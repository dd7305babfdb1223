package ci

import (
	"fmt"
	"net/url"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// EnvError lists everything that is wrong with the job's environment, so that
// a template is fixed in one round.
type EnvError struct {
	Missing []string // names of variables that are not set
	Invalid []string // "CI_PROJECT_ID: not a number"
}

func (e *EnvError) Error() string {
	var parts []string
	if len(e.Missing) > 0 {
		parts = append(parts, "not set: "+strings.Join(e.Missing, ", "))
	}
	return strings.Join(append(parts, e.Invalid...), "; ")
}

// FromEnv builds a Job from getenv, usually os.Getenv. The error is an
// [*EnvError]. No value of a variable appears in it.
func FromEnv(getenv func(string) string) (Job, error) {
	var bad EnvError
	must := func(k string) string {
		v := getenv(k)
		if v == "" {
			bad.Missing = append(bad.Missing, k)
		}
		return v
	}
	number := func(k, v string) int64 {
		if v == "" {
			return 0
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n <= 0 {
			bad.Invalid = append(bad.Invalid, k+": not a positive number")
			return 0
		}
		return n
	}
	instant := func(k, v string) time.Time {
		if v == "" {
			return time.Time{}
		}
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			bad.Invalid = append(bad.Invalid, k+": not a time like 2026-01-31T12:00:00Z")
		}
		return t
	}
	j := Job{
		Server: getenv("CI_SERVER_URL"),
		Project: Project{
			ID:   number("CI_PROJECT_ID", must("CI_PROJECT_ID")),
			Path: must("CI_PROJECT_PATH"),
			URL:  getenv("CI_PROJECT_URL"),
		},
		Pipeline: Pipeline{
			ID:      number("CI_PIPELINE_ID", must("CI_PIPELINE_ID")),
			IID:     number("CI_PIPELINE_IID", must("CI_PIPELINE_IID")),
			Created: instant("CI_PIPELINE_CREATED_AT", must("CI_PIPELINE_CREATED_AT")),
			Source:  getenv("CI_PIPELINE_SOURCE"),
			URL:     getenv("CI_PIPELINE_URL"),
		},
		Commit: Commit{
			SHA:             must("CI_COMMIT_SHA"),
			Branch:          getenv("CI_COMMIT_BRANCH"),
			Tag:             getenv("CI_COMMIT_TAG"),
			MergeRequestIID: number("CI_MERGE_REQUEST_IID", getenv("CI_MERGE_REQUEST_IID")),
		},
		Registry: Registry{
			Host:     getenv("CI_REGISTRY"),
			Image:    getenv("CI_REGISTRY_IMAGE"),
			User:     getenv("CI_REGISTRY_USER"),
			Password: getenv("CI_REGISTRY_PASSWORD"),
		},
		ID:          number("CI_JOB_ID", getenv("CI_JOB_ID")),
		Name:        getenv("CI_JOB_NAME"),
		URL:         getenv("CI_JOB_URL"),
		Dir:         must("CI_PROJECT_DIR"),
		Environment: must("FAAS_ENVIRONMENT"),
		Action:      getenv("CI_ENVIRONMENT_ACTION"),
		Protected:   getenv("CI_COMMIT_REF_PROTECTED") == "true",
		Debug:       getenv("CI_DEBUG_TRACE") == "true" || getenv("FAAS_DEBUG") == "true",
	}
	if start, limit := instant("CI_JOB_STARTED_AT", getenv("CI_JOB_STARTED_AT")), number("CI_JOB_TIMEOUT", getenv("CI_JOB_TIMEOUT")); !start.IsZero() && limit > 0 {
		j.Deadline = start.Add(time.Duration(limit) * time.Second)
	}
	if j.Dir != "" && !filepath.IsAbs(j.Dir) {
		bad.Invalid = append(bad.Invalid, "CI_PROJECT_DIR: not an absolute path")
	}
	if len(bad.Missing)+len(bad.Invalid) > 0 {
		sort.Strings(bad.Missing)
		return Job{}, &bad
	}
	return j, nil
}

// secretWords mark the variables whose values never appear in what we write.
// The list errs on the side of masking; values shorter than redact's minimum
// are left alone anyway.
var secretWords = []string{"PASSWORD", "PASSWD", "TOKEN", "SECRET", "CREDENTIAL", "PRIVATE_KEY", "ACCESS_KEY", "API_KEY", "SIGNING_KEY", "AUTH", "JWT"}

// Secrets returns the values in environ ("NAME=value") that are secret by
// their name, those in the addresses of proxies, and what follows from the
// registry's pair: user:password, which stands base64-encoded in every docker
// config.
func Secrets(environ []string) []string {
	var values []string
	byName := map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		byName[name] = value
		upper := strings.ToUpper(name)
		for _, w := range secretWords {
			if strings.Contains(upper, w) && value != "" {
				values = append(values, value)
				break
			}
		}
	}
	for _, n := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		for _, address := range []string{byName[n], byName[strings.ToLower(n)]} {
			if u, err := url.Parse(address); err == nil && u.User != nil {
				password, _ := u.User.Password()
				values = append(values, u.User.String(), password)
			}
		}
	}
	if u, p := byName["CI_REGISTRY_USER"], byName["CI_REGISTRY_PASSWORD"]; u != "" && p != "" {
		values = append(values, u+":"+p)
	}
	return values
}

// Masked reports whether the variable's value is treated as a secret.
func Masked(name string) bool {
	return len(Secrets([]string{name + "=x"})) > 0
}

// String names the job for people: "pipeline 12 of team/hello at 1a2b3c4d".
func (j Job) String() string {
	sha := j.Commit.SHA
	if len(sha) > 8 {
		sha = sha[:8]
	}
	return fmt.Sprintf("pipeline %d of %s at %s", j.Pipeline.IID, j.Project.Path, sha)
}
