package run

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"
)

func sh(script string) Command {
	return Command{Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

func TestExitCodeSignalAndTail(t *testing.T) {
	err := sh("echo bad news >&2; exit 42").Run(t.Context())
	var e *ExitError
	if !errors.As(err, &e) || e.Code != 42 || e.Tail != "bad news" || e.Signal != 0 {
		t.Errorf("got %#v", err)
	}
	err = sh("kill -9 $$").Run(t.Context())
	if !errors.As(err, &e) || e.Signal != syscall.SIGKILL || e.Code != 137 {
		t.Errorf("got %#v", err)
	}
	if err := sh("exit 0").Run(t.Context()); err != nil {
		t.Error(err)
	}
	if err := (Command{Path: "/nowhere/at/all"}).Run(t.Context()); err == nil || errors.As(err, &e) {
		t.Errorf("a missing program gave %#v", err)
	}
}

func TestEnvironmentIsNotInherited(t *testing.T) {
	t.Setenv("CI_JOB_TOKEN", "leak")
	var out bytes.Buffer
	c := Command{Path: "/usr/bin/env", Stdout: &out}
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out.Len() != 0 {
		t.Errorf("child saw %q", out.String())
	}
}

// A child that ignores SIGTERM, and its own child, are gone after the grace.
func TestCancelEndsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("job cancelled")
	out := &started{found: make(chan struct{})}
	c := sh("trap '' TERM; (trap '' TERM; sleep 300) & echo $! started; wait; wait; sleep 300")
	c.Stdout, c.Grace = out, 50*time.Millisecond
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	<-out.found
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

// started closes found when the child has said that it runs.
type started struct {
	buf   bytes.Buffer
	found chan struct{}
}

func (s *started) Write(p []byte) (int, error) {
	s.buf.Write(p)
	if strings.Contains(s.buf.String(), "started") {
		select {
		case <-s.found:
		default:
			close(s.found)
		}
	}
	return len(p), nil
}

// Both outputs into one writer that knows no locks: nothing is lost, and what
// the child wrote first comes first, also within a line. (With a pipe for each,
// lines were cut in two: a job's last line was read as none.)
func TestOneWriterForBothOutputs(t *testing.T) {
	var out bytes.Buffer
	c := sh("i=0; while [ $i -lt 2000 ]; do printf 'name '; echo finished >&2; i=$((i+1)); done; exit 3")
	c.Stdout, c.Stderr = &out, &out
	var e *ExitError
	if err := c.Run(t.Context()); !errors.As(err, &e) || !strings.HasSuffix(e.Tail, "name finished") {
		t.Fatalf("got %#v", err)
	}
	if want := strings.Repeat("name finished\n", 2000); out.String() != want {
		t.Errorf("%d bytes arrived, not in the order they were written in; want %d", out.Len(), len(want))
	}
}

// Two writers are still told apart, and a writer that can't be compared is one
// of two.
func TestTwoWritersForTwoOutputs(t *testing.T) {
	var out, errs bytes.Buffer
	c := sh("echo out; echo err >&2")
	c.Stdout, c.Stderr = incomparable{nil, &out}, incomparable{nil, &errs}
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out.String() != "out\n" || errs.String() != "err\n" {
		t.Errorf("got %q and %q", out.String(), errs.String())
	}
}

type incomparable struct {
	_ []int
	io.Writer
}

func TestTailKeepsWholeLines(t *testing.T) {
	tail := &Tail{Max: 10}
	for _, s := range []string{"first line\n", "second\n", "third\n"} {
		tail.Write([]byte(s))
	}
	if got := tail.String(); got != "third" {
		t.Errorf("got %q", got)
	}
}
