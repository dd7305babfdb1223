package stages

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/oss"
)

// Whatever a leaf reports ends as the right code and exit code, however deep
// it is wrapped.
func TestExplain(t *testing.T) {
	tests := []struct {
		err  error
		code usererr.Code
		exit int
	}{
		{&builder.InputError{What: "lock file", Next: "npm install"}, usererr.CodeBuildInput, 1},
		{&builder.Unavailable{Op: "push", Host: "r"}, usererr.CodeRegistryUnavailable, 75},
		{builder.ErrDenied, usererr.CodeRegistryDenied, 78},
		{builder.ErrNoBase, usererr.CodeNoBase, 78},
		{bundle.ErrUntrusted, usererr.CodeUntrusted, 78},
		{bundle.ErrRevoked, usererr.CodeRevoked, 79},
		{bundle.ErrNone, usererr.CodeNoBundle, 78},
		{bundle.ErrUnavailable, usererr.CodeStoreUnavailable, 75},
		{&oss.Unavailable{Op: "get x"}, usererr.CodeStoreUnavailable, 75},
		{oss.ErrDenied, usererr.CodeStoreDenied, 78},
		{oss.ErrNotFound, usererr.CodeNotFound, 78},
		{&deployer.HeldError{}, usererr.CodeHeld, 76},
		{&deployer.SupersededError{}, usererr.CodeSuperseded, 79},
		{deployer.ErrFenced, usererr.CodeSuperseded, 79},
		{&deployer.LockedError{}, usererr.CodeLocked, 75},
		{&deployer.ForeignError{}, usererr.CodeForeignObject, 78},
		{deployer.ErrUnavailable, usererr.CodeTargetUnavailable, 75},
		{&deployer.Failed{Err: &deployer.Failure{Code: deployer.Crash, Cause: "exited"}}, usererr.CodeDeployFailed, 1},
		{&deployer.Failed{Err: &deployer.Failure{Code: deployer.Quota, Cause: "no room"}}, usererr.CodeDeployFailed, 78},
		{&deployer.Failed{Err: &deployer.Failure{Code: deployer.ImageUnreachable, Cause: "registry"}}, usererr.CodeDeployFailed, 75},
		{&deployer.Failed{Moved: true, Err: &deployer.Failure{Code: deployer.WrongAnswer, Cause: "other"}}, usererr.CodeRestored, 80},
		{errNoFile, usererr.CodeWorkFiles, 79},
		{context.Canceled, usererr.CodeCancelled, 143},
		{errors.New("nobody designed this"), usererr.CodeInternal, 70},
	}
	for _, tt := range tests {
		got := usererr.Of(Explain(t.Context(), fmt.Errorf("outer: %w", fmt.Errorf("inner: %w", tt.err))))
		if got.Code != tt.code || usererr.Exit(got) != tt.exit {
			t.Errorf("%v: %s, exit %d; want %s, %d", tt.err, got.Code, usererr.Exit(got), tt.code, tt.exit)
		}
	}
}

func TestCrashReadsLikeALog(t *testing.T) {
	err := Explain(t.Context(), &deployer.Failed{Serving: "r1", Err: &deployer.Failure{
		Code: deployer.Crash, Cause: "exited with code 1",
		Logs: []string{"plain words", `{"ts":"x","level":"fatal","msg":"no database","stack":"Error: no\n at a\n at b\n at c\n at d\n at e"}`, `{"not": "ours"}`},
	}})
	var b strings.Builder
	usererr.Write(&b, err, "")
	want := `error: deploy the release
  why:  exited with code 1
        its last log lines:
          plain words
          fatal: no database
            Error: no
             at a
             at b
             at c
          {"not": "ours"}
  next: release r1 still serves; correct the cause and push again
  who:  project     code: E1401
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
