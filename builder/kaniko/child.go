package kaniko

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// rights finds out how a sandbox is possible here.
func (b *build) rights(ctx context.Context) error {
	if b.mode != "" {
		return nil
	}
	mode, reason := b.e.o.Mode, ""
	if mode == "" {
		if mode, reason = sandbox.Detect(ctx); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if mode == sandbox.None {
		return fmt.Errorf("kaniko: a Dockerfile needs a sandbox: %w: %s", sandbox.ErrForbidden, reason)
	}
	b.mode, b.sandbox = mode, string(mode)
	return nil
}

// child runs the executor over the folders lower, top first, and reads its
// answer. inside is a folder to be made, for what it needs and leaves; from are
// the files of COPY --from, and mounts those of a RUN.
func (b *build) child(ctx context.Context, inside string, lower []string, from [][]string, mounts []sandbox.Bind, order Order) (Outcome, error) {
	var o Outcome
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return o, fmt.Errorf("kaniko: %w", err)
	}
	order.Nonce = hex.EncodeToString(nonce)
	out := filepath.Join(inside, "out")
	err := errors.Join(
		os.Mkdir(inside, 0o755), os.Mkdir(out, 0o755), os.Mkdir(filepath.Join(inside, "context"), 0o755),
		os.WriteFile(filepath.Join(inside, "executor"), nil, 0o644),
		os.WriteFile(filepath.Join(inside, "guard"), []byte(order.Nonce), 0o444),
	)
	if err != nil {
		return o, fmt.Errorf("kaniko: %w", err)
	}
	p, pipe, err := b.start(ctx, inside, lower, from, mounts)
	if err != nil {
		return o, fmt.Errorf("kaniko: %w", err)
	}
	sent := json.NewEncoder(pipe).Encode(order)
	pipe.Close()
	err = p.Wait()
	var exited *run.ExitError
	if err != nil && !errors.As(err, &exited) {
		return o, err
	}
	root, openErr := os.OpenRoot(out)
	if openErr != nil {
		return o, fmt.Errorf("kaniko: %w", openErr)
	}
	defer root.Close()
	answer, readErr := readFile(root, "outcome.json", maxConfig)
	if readErr == nil {
		readErr = json.Unmarshal(answer, &o)
	}
	switch {
	case readErr != nil && err != nil:
		return o, fmt.Errorf("kaniko: the executor ended early: %w%s", err, tail(exited))
	case readErr != nil:
		return o, fmt.Errorf("kaniko: the executor's answer: %w", errors.Join(readErr, sent))
	case o.Code != 0:
		what := fmt.Sprintf("line %d: %s exited with code %d", o.Line, o.Command, o.Code)
		return o, &builder.InputError{What: what, Next: "read the command's output above and correct the Dockerfile"}
	case o.Failure != "":
		what := "the Dockerfile can't be built"
		if o.Command != "" {
			what = fmt.Sprintf("line %d: %s", o.Line, o.Command)
		}
		if strings.HasSuffix(o.Failure, "/sh: no such file or directory") {
			return o, &builder.InputError{
				What: what + ": this stage's image has no shell",
				Next: "run it in a stage on an image that has one and COPY --from that, or write the command as JSON",
			}
		}
		return o, &builder.InputError{What: what, Next: "read the output above and correct the Dockerfile", Err: errors.New(o.Failure)}
	case err != nil:
		return o, fmt.Errorf("kaniko: %w%s", err, tail(exited))
	}
	return o, nil
}

// start starts the executor in a sandbox. The order goes into the pipe.
func (b *build) start(ctx context.Context, inside string, lower []string, from [][]string, mounts []sandbox.Bind) (*sandbox.Process, *os.File, error) {
	executor, err := filepath.Abs(b.e.o.Executor)
	if err != nil {
		return nil, nil, err
	}
	if st, err := os.Stat(executor); err != nil || !st.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("the executor %s: %w", b.e.o.Executor, errors.Join(err, fs.ErrNotExist))
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer pr.Close()
	spec := sandbox.Spec{
		Mode: b.mode, Lower: lower, AsInit: true, KeepCapabilities: true, Changes: true,
		Argv: []string{InsideExecutor, ChildCommand},
		Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DOCKER_CONFIG=/kaniko/none"},
		Binds: []sandbox.Bind{
			{Source: inside, Target: insideDir},
			{Source: executor, Target: InsideExecutor, ReadOnly: true},
			{Source: filepath.Join(b.work, "context"), Target: InsideContext, ReadOnly: true},
		},
		ExtraFiles: []*os.File{pr}, Stdout: b.e.log, Stderr: b.e.log, Hostname: "build",
	}
	for i, dirs := range from {
		spec.Binds = append(spec.Binds, sandbox.Bind{Lower: dirs, Target: fmt.Sprintf("%s/%d", FromDir, i)})
	}
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if real, err := filepath.EvalSymlinks(f); err == nil {
			spec.Binds = append(spec.Binds, sandbox.Bind{Source: real, Target: f, ReadOnly: true})
		}
	}
	spec.Binds = append(spec.Binds, mounts...)
	if spec.TmpfsBytes = memoryForChanges(); spec.TmpfsBytes == 0 {
		spec.Upper = inside + "-changes"
		if err := os.Mkdir(spec.Upper, 0o755); err != nil {
			pw.Close()
			return nil, nil, err
		}
	}
	p, err := sandbox.Start(ctx, spec)
	if err != nil {
		pw.Close()
		return nil, nil, err
	}
	return p, pw, nil
}

func tail(e *run.ExitError) string {
	if e == nil || e.Tail == "" {
		return ""
	}
	return "\n" + e.Tail
}
