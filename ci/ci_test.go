package ci

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func env(over map[string]string) func(string) string {
	all := map[string]string{
		"CI_PROJECT_ID": "42", "CI_PROJECT_PATH": "team/hello", "CI_PROJECT_DIR": "/builds/team/hello",
		"CI_PIPELINE_ID": "1000", "CI_PIPELINE_IID": "7", "CI_PIPELINE_CREATED_AT": "2026-01-31T12:00:00Z",
		"CI_COMMIT_SHA": "1a2b3c4d5e6f", "FAAS_ENVIRONMENT": "test", "CI_COMMIT_REF_PROTECTED": "true",
	}
	return func(k string) string {
		if v, ok := over[k]; ok {
			return v
		}
		return all[k]
	}
}

func TestFromEnv(t *testing.T) {
	j, err := FromEnv(env(nil))
	if err != nil {
		t.Fatal(err)
	}
	if j.Project.ID != 42 || j.Pipeline.IID != 7 || !j.Protected || j.Environment != "test" {
		t.Errorf("got %+v", j)
	}
	if want := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC); !j.Pipeline.Created.Equal(want) {
		t.Errorf("created %v, want %v", j.Pipeline.Created, want)
	}
	if got, want := j.String(), "pipeline 7 of team/hello at 1a2b3c4d"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDeadline(t *testing.T) {
	j, err := FromEnv(env(map[string]string{"CI_JOB_STARTED_AT": "2026-01-31T12:00:00Z", "CI_JOB_TIMEOUT": "3600"}))
	if want := time.Date(2026, 1, 31, 13, 0, 0, 0, time.UTC); err != nil || !j.Deadline.Equal(want) {
		t.Errorf("got %v, %v; want %v", j.Deadline, err, want)
	}
	if j, err := FromEnv(env(nil)); err != nil || !j.Deadline.IsZero() {
		t.Errorf("without the variables: %v, %v", j.Deadline, err)
	}
}

func TestFromEnvNamesEverythingAtOnce(t *testing.T) {
	_, err := FromEnv(func(string) string { return "" })
	var e *EnvError
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	want := "CI_COMMIT_SHA CI_PIPELINE_CREATED_AT CI_PIPELINE_ID CI_PIPELINE_IID CI_PROJECT_DIR CI_PROJECT_ID CI_PROJECT_PATH FAAS_ENVIRONMENT"
	if got := strings.Join(e.Missing, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestFromEnvRefusesNonsenseWithoutPrintingIt(t *testing.T) {
	_, err := FromEnv(env(map[string]string{
		"CI_PROJECT_ID": "secret-value", "CI_PIPELINE_IID": "-3", "CI_PIPELINE_CREATED_AT": "yesterday",
		"CI_PROJECT_DIR": "relative", "CI_MERGE_REQUEST_IID": "x",
	}))
	var e *EnvError
	if !errors.As(err, &e) || len(e.Invalid) != 5 || len(e.Missing) != 0 {
		t.Fatalf("got %#v", err)
	}
	if strings.Contains(err.Error(), "secret-value") {
		t.Error("the message holds the variable's value")
	}
}

func TestSecrets(t *testing.T) {
	got := Secrets([]string{"CI_JOB_TOKEN=t0ken-value", "HOME=/root", "CI_REGISTRY_USER=bob", "CI_REGISTRY_PASSWORD=pa55word", "EMPTY_TOKEN=",
		"https_proxy=http://ci:pr0xy@proxy.example:3128", "HTTP_PROXY=http://proxy.example"})
	want := "t0ken-value pa55word ci:pr0xy pr0xy bob:pa55word"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %q, want %q", s, want)
	}
	if Masked("PATH") || !Masked("OSS_ACCESS_KEY_SECRET") {
		t.Error("PATH must not be masked, OSS_ACCESS_KEY_SECRET must")
	}
}

func TestLogSections(t *testing.T) {
	var out bytes.Buffer
	tick := int64(100)
	l := Log{W: &out, GitLab: true, Now: func() time.Time { tick++; return time.Unix(tick, 0) }}
	boom := errors.New("boom")
	err := l.Do(t.Context(), "build images!", "Build images", func(context.Context) error {
		l.Printf("one\ntwo")
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	want := "\x1b[0Ksection_start:101:build_images_\r\x1b[0K\x1b[1mBuild images\x1b[0m\n" +
		"  one\n    two\n  Build images: failed in 1s\n\x1b[0Ksection_end:103:build_images_\r\x1b[0K\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

func TestDotenvRefusesWhatGitLabRefuses(t *testing.T) {
	if _, err := Dotenv([]Variable{{"A-B", "x"}}); err == nil {
		t.Error("accepted a name with a dash")
	}
	if _, err := Dotenv([]Variable{{"A", "x\ny"}}); err == nil {
		t.Error("accepted two lines")
	}
	if _, err := Dotenv([]Variable{{"A", strings.Repeat("x", 6000)}}); err == nil {
		t.Error("accepted 6000 bytes")
	}
	if _, err := Dotenv(make([]Variable, 21)); err == nil {
		t.Error("accepted 21 variables")
	}
	got, err := Dotenv([]Variable{{"A", "1"}, {"B", "x y"}})
	if err != nil || string(got) != "A=1\nB=x y\n" {
		t.Errorf("got %q %v", got, err)
	}
}
