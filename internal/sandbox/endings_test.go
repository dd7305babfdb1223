//go:build linux

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func TestEndings(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		for _, asInit := range []bool{false, true} {
			t.Run(fmt.Sprintf("init=%t", asInit), func(t *testing.T) {
				_, err := sh(t, sandbox.Spec{Mode: m, AsInit: asInit}, `echo last words >&2; exit 7`)
				var x *run.ExitError
				if !errors.As(err, &x) || x.Code != 7 || x.Signal != 0 || x.Tail != "last words" || x.Program != "/bin/sh" {
					t.Errorf("exit 7: %#v", err)
				}
				_, err = sandbox.Start(t.Context(), sandbox.Spec{Mode: m, AsInit: asInit, Root: hostTools(t), Argv: []string{"/no/such"}})
				if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/no/such") {
					t.Errorf("missing program: %v", err)
				}
				_, err = sandbox.Start(t.Context(), sandbox.Spec{Mode: m, AsInit: asInit, Root: hostTools(t), Binds: toolBinds, Argv: []string{"true"}, Dir: "/nowhere"})
				if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nowhere") {
					t.Errorf("missing folder: %v", err)
				}
			})
		}
		_, err := sh(t, sandbox.Spec{Mode: m}, `kill -KILL $$`)
		var x *run.ExitError
		if !errors.As(err, &x) || x.Code != 137 || x.Signal != syscall.SIGKILL {
			t.Errorf("killed by itself: %#v", err)
		}
		_, err = sandbox.Start(t.Context(), sandbox.Spec{Mode: m, Root: filepath.Join(t.TempDir(), "gone"), Argv: []string{"true"}})
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "gone") {
			t.Errorf("missing root: %v", err)
		}
		_, err = sandbox.Start(t.Context(), sandbox.Spec{Mode: m, Root: hostTools(t), Binds: []sandbox.Bind{{Source: "/no/source", Target: "/x"}}, Argv: []string{"true"}})
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/no/source") {
			t.Errorf("missing bind: %v", err)
		}
	})
}

func TestSignalReachesTheCommand(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		// The script says when its trap stands, and is then not process 1.
		out, w := io.Pipe()
		p, err := sandbox.Start(t.Context(), sandbox.Spec{
			Mode: m, Root: hostTools(t), Binds: toolBinds, Stdout: w,
			Argv: []string{"/bin/sh", "-c", `trap 'echo drained; exit 3' TERM; echo ready $$; while :; do sleep 0.05; done`},
			Env:  []string{"PATH=/usr/bin"},
		})
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		n, _ := out.Read(buf)
		if first := string(buf[:n]); !strings.HasPrefix(first, "ready ") || first == "ready 1\n" {
			t.Errorf("first line %q", first)
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		rest := make(chan string)
		go func() { b, _ := io.ReadAll(out); rest <- string(b) }()
		err = p.Wait()
		w.Close()
		var x *run.ExitError
		if !errors.As(err, &x) || x.Code != 3 {
			t.Errorf("ended with %v, want the trap's code 3", err)
		}
		if got := <-rest; got != "drained\n" {
			t.Errorf("output after the signal: %q", got)
		}
	})
}

// Whatever the command left running, in whatever session, ends with it; and
// zombies are reaped.
func TestNothingOutlivesTheCommand(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		p, err := sandbox.Start(t.Context(), sandbox.Spec{
			Mode: m, Root: hostTools(t), Binds: toolBinds, ExtraFiles: []*os.File{w}, Env: []string{"PATH=/usr/bin"},
			Argv:  []string{"/bin/sh", "-c", `setsid sh -c 'trap "" TERM HUP; echo started >&3; exec sleep 1000' </dev/null >/dev/null 2>&1 & (true &) ; (true &); read x`},
			Stdin: stdinUntil(t, r),
		})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		// The pipe's other end closes only when the last holder has ended.
		if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
			t.Errorf("after the end: %q, %v", rest, err)
		}
	})
}

// stdinUntil is a reader that gives a line once r brought one.
func stdinUntil(t *testing.T, r io.Reader) io.Reader {
	t.Helper()
	return readerFunc(func(p []byte) (int, error) {
		if _, err := io.ReadFull(r, make([]byte, len("started\n"))); err != nil {
			return 0, io.EOF
		}
		return copy(p, "\n"), io.EOF
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestCancelEndsTheNamespace(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		for _, asInit := range []bool{false, true} {
			t.Run(fmt.Sprintf("init=%t", asInit), func(t *testing.T) {
				reason := errors.New("the job was cancelled")
				ctx, cancel := context.WithCancelCause(t.Context())
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				p, err := sandbox.Start(ctx, sandbox.Spec{
					Mode: m, AsInit: asInit, Root: hostTools(t), Binds: toolBinds, ExtraFiles: []*os.File{w}, Env: []string{"PATH=/usr/bin"}, Grace: 10 * time.Millisecond,
					Argv: []string{"/bin/sh", "-c", `trap "" TERM; echo ready >&3; while :; do sleep 1; done`},
				})
				w.Close()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
					t.Fatal(err)
				}
				cancel(reason)
				if err := p.Wait(); !errors.Is(err, reason) {
					t.Errorf("Wait: %v, want the cause", err)
				}
				if _, err := io.ReadAll(r); err != nil {
					t.Error(err)
				}
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := sandbox.Start(ctx, sandbox.Spec{Mode: m, Root: "/", Argv: []string{"true"}}); !errors.Is(err, context.Canceled) {
			t.Errorf("Start after the end: %v", err)
		}
	})
}
