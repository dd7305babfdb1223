package main

import (
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/devenv/gitlabci"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// Outside a checkout there is nothing to publish; that is no bug of ours.
func TestOutsideACheckout(t *testing.T) {
	t.Chdir(t.TempDir())
	var stdout, stderr strings.Builder
	if code := run(t.Context(), []string{"demo", "try"}, &stdout, &stderr); code != 2 {
		t.Errorf("exit %d, want 2", code)
	}
	if got := stderr.String(); !strings.Contains(got, "in no checkout of Kuroko") || !strings.Contains(got, "next: run this in a checkout of Kuroko") {
		t.Error(got)
	}
}

func TestMarkThatNoHeaderCanShow(t *testing.T) {
	for _, mark := range []string{"字", "", "a\nb", strings.Repeat("x", 129)} {
		var stdout, stderr strings.Builder
		if code := run(t.Context(), []string{"demo", "run", "--mark", mark}, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), "1 to 128 printable ASCII") {
			t.Errorf("%q: exit %d, %s", mark, code, stderr.String())
		}
	}
}

// What a job of the demo could not do is no bug of ours: the demo ends as the
// job did.
func TestFailedPipeline(t *testing.T) {
	for code, want := range map[int]int{1: 1, 2: 1, 75: 75, 77: 77, 78: 78, 70: 70, 143: 143} {
		err := failed(devenv.Outcome{Result: gitlabci.Result{Jobs: []gitlabci.Job{
			{Name: "build:test", Status: gitlabci.Success}, {Name: "deploy:test", Status: gitlabci.Failed, Code: code}, {Name: "never", Status: gitlabci.Failed, Code: 9},
		}}})
		if got := usererr.Exit(err); got != want {
			t.Errorf("job's code %d: exit %d, want %d", code, got, want)
		}
		var b strings.Builder
		usererr.Write(&b, err, "")
		if !strings.Contains(b.String(), "job deploy:test ended with code") || !strings.Contains(b.String(), "above") {
			t.Errorf("job's code %d:\n%s", code, b.String())
		}
	}
	if got := usererr.Exit(failed(devenv.Outcome{})); got != 1 {
		t.Errorf("no job at all: exit %d, want 1", got)
	}
}
