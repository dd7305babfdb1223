package stages

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/oss"
)

// explainLeaf is the one place that knows every leaf's typed errors.
func explainLeaf(err error) error {
	if e := explainDeploy(err); e != nil {
		return e
	}
	var input *builder.InputError
	var registry *builder.Unavailable
	var content *bundle.ContentError
	var tool *builder.MissingTool
	switch {
	case errors.As(err, &tool) && tool.Image != "":
		return &usererr.Error{Code: usererr.CodeBundleContent, Err: err, Next: "ask the platform team for a build image that has it"}
	case errors.As(err, &tool):
		return &usererr.Error{Code: usererr.CodeUnable, Err: err, Next: "use a job runner that allows a sandbox (root with CAP_SYS_ADMIN, or user namespaces), or a job image with " + tool.Program +
			"; images whose packages need no installer, and those built before from equal inputs, work without"}
	case errors.As(err, &input):
		return &usererr.Error{Code: usererr.CodeBuildInput, Err: err, Next: input.Next}
	case errors.Is(err, sandbox.ErrForbidden), errors.Is(err, sandbox.ErrNoOverlay):
		return &usererr.Error{Code: usererr.CodeUnable, Err: err, Next: "use a job runner that allows that; images without a Dockerfile, and those built before from equal inputs, need no sandbox"}
	case errors.Is(err, builder.ErrNotFound):
		return &usererr.Error{Code: usererr.CodeUsage, What: "find the image", Err: err, Next: "check the reference; a tag may have moved, a digest never does"}
	case errors.Is(err, builder.ErrNoBase):
		return &usererr.Error{Code: usererr.CodeNoBase, Err: err}
	case errors.Is(err, builder.ErrDenied):
		return &usererr.Error{Code: usererr.CodeRegistryDenied, Err: err}
	case errors.As(err, &registry):
		return &usererr.Error{Code: usererr.CodeRegistryUnavailable, Err: err}
	case errors.Is(err, bundle.ErrUntrusted):
		return &usererr.Error{Code: usererr.CodeUntrusted, Err: err}
	case errors.Is(err, bundle.ErrRevoked):
		return &usererr.Error{Code: usererr.CodeRevoked, Err: err}
	case errors.Is(err, bundle.ErrNone):
		return &usererr.Error{Code: usererr.CodeNoBundle, Err: err}
	case errors.Is(err, bundle.ErrRunner):
		return &usererr.Error{Code: usererr.CodeRunnerBlob, Err: err}
	case errors.As(err, &content):
		e := &usererr.Error{Code: usererr.CodeBundleContent, Err: err}
		for _, line := range strings.Split(content.Error(), "\n") {
			e.Problems = append(e.Problems, usererr.Problem{Why: line})
		}
		return e
	case errors.Is(err, bundle.ErrContent):
		return &usererr.Error{Code: usererr.CodeBundleContent, Err: err}
	case errors.Is(err, oss.ErrDenied):
		return &usererr.Error{Code: usererr.CodeStoreDenied, Err: err}
	case errors.Is(err, bundle.ErrUnavailable):
		return &usererr.Error{Code: usererr.CodeStoreUnavailable, Err: err}
	case errors.Is(err, oss.ErrNotFound):
		return &usererr.Error{Code: usererr.CodeNotFound, Err: err}
	}
	var store *oss.Unavailable
	if errors.As(err, &store) {
		return &usererr.Error{Code: usererr.CodeStoreUnavailable, Err: err}
	}
	return usererr.Of(err)
}

// classOf says who can act on a cause that kept a revision from living.
var classOf = map[deployer.Code]usererr.Class{
	deployer.ImageMissing:      usererr.External,
	deployer.ImageUnauthorized: usererr.Config,
	deployer.ImageUnreachable:  usererr.External,
	deployer.Denied:            usererr.Config,
	deployer.Quota:             usererr.Config,
	deployer.NamespaceMissing:  usererr.Config,
	deployer.IngressNotReady:   usererr.External,
	deployer.Unable:            usererr.Unable,
	deployer.WrongAnswer:       usererr.External,
	deployer.TooSlow:           usererr.External,
	deployer.NoRoom:            usererr.External,
}

// explainDeploy is nil for an error that is not the deployer's.
func explainDeploy(err error) error {
	var failed *deployer.Failed
	isFailed := errors.As(err, &failed)
	if causes := deployer.Failures(err); len(causes) > 0 {
		e := &usererr.Error{Code: usererr.CodeDeployFailed, Err: err, Class: usererr.Project}
		if isFailed && failed.Moved {
			e = &usererr.Error{Code: usererr.CodeRestored, Err: err}
		} else if c, ok := classOf[causes[0].Code]; ok {
			e.Class = c
		}
		for _, c := range causes {
			why := c.Error()
			if len(c.Logs) > 0 {
				why += "\nits last log lines:"
				for _, line := range c.Logs {
					why += "\n  " + strings.ReplaceAll(readable(line), "\n", "\n    ")
				}
			}
			e.Problems = append(e.Problems, usererr.Problem{Why: why, Next: c.Next})
		}
		if isFailed {
			e.Next = serving(failed)
		}
		return e
	}
	code := usererr.Code("")
	switch {
	case errors.Is(err, deployer.ErrForeign):
		code = usererr.CodeForeignObject
	case errors.Is(err, deployer.ErrSuperseded), errors.Is(err, deployer.ErrFenced):
		code = usererr.CodeSuperseded
	case errors.Is(err, deployer.ErrHeld):
		code = usererr.CodeHeld
	case errors.Is(err, deployer.ErrLocked):
		code = usererr.CodeLocked
	case errors.Is(err, deployer.ErrUnavailable), errors.Is(err, deployer.ErrUnreachable):
		code = usererr.CodeTargetUnavailable
	case errors.Is(err, deployer.ErrPlanned), errors.Is(err, deployer.ErrInvalid):
		code = usererr.CodeProjectRefused
	case isFailed:
		return &usererr.Error{Code: usererr.CodeDeployFailed, Class: usererr.External, Err: err, Next: "run the job again; it continues safely"}
	default:
		return nil
	}
	e := &usererr.Error{Code: code, Err: err}
	var held *deployer.HeldError
	if errors.As(err, &held) {
		e.Next = held.Next
	}
	return e
}

// readable is a log line as a person reads it: of our adapters' JSON lines the
// level and the message, and the top of a stack. Other lines stay as they are.
func readable(line string) string {
	var l struct {
		Level, Msg, Stack string
	}
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &l) != nil || l.Msg == "" {
		return line
	}
	text := l.Level + ": " + l.Msg
	if l.Stack != "" {
		const frames = 4
		lines := strings.Split(l.Stack, "\n")
		text += "\n" + strings.Join(lines[:min(len(lines), frames)], "\n")
	}
	return text
}

// serving tells what users of the function see now.
func serving(f *deployer.Failed) string {
	switch {
	case f.Restore != nil:
		return fmt.Sprintf("restoring was not finished (%v): run the job again, it finishes that first", f.Restore)
	case f.Serving == "":
		return "nothing was live before and nothing is now; correct the cause and push again"
	}
	return fmt.Sprintf("release %s still serves; correct the cause and push again", f.Serving)
}
