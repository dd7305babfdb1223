// Package run starts child processes that end when they should: own process
// group, explicit environment, bounded memory of output, a short grace after
// cancellation.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DefaultGrace is how long a child may take to end after SIGTERM before its
// whole group is killed.
const DefaultGrace = 5 * time.Second

// Command is a child process to run. Nothing is inherited: an empty Env is an
// empty environment.
type Command struct {
	Path string   // program; looked up in PATH of the parent when it has no slash
	Args []string // without the program's name
	Env  []string
	Dir  string
	// Stdin, Stdout and Stderr may be nil. Stdout and Stderr are never written
	// at the same time. Where both are one writer, the child gets one pipe
	// for both and its own order is kept.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Grace is the time between SIGTERM and SIGKILL; 0 means [DefaultGrace].
	Grace time.Duration
}

// ExitError says how a child ended other than with 0, and the end of what it
// wrote to stderr, or to both where both are one writer (at most 4 KiB), for
// messages.
type ExitError struct {
	Program string
	Code    int            // exit code, or 128 + signal as shells say it
	Signal  syscall.Signal // 0 when it ended by itself
	Tail    string
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("%s was ended by signal %d (%v)", e.Program, int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("%s exited with code %d", e.Program, e.Code)
}

// Run starts the child and waits for it and its output. When ctx ends first,
// the child's process group gets SIGTERM, then SIGKILL after the grace, and
// ctx's cause is returned. A child that ends otherwise than with 0 gives an
// [*ExitError]; one that can't be started gives the system's error.
func (c Command) Run(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	grace := c.Grace
	if grace == 0 {
		grace = DefaultGrace
	}
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir, cmd.Stdin = c.Dir, c.Stdin
	cmd.Env = append([]string{}, c.Env...)
	var one sync.Mutex
	last := &Tail{Max: 4 << 10}
	cmd.Stderr = last
	if c.Stderr != nil {
		cmd.Stderr = &serial{&one, io.MultiWriter(c.Stderr, last)}
	}
	switch {
	case c.Stdout == nil:
	case reflect.ValueOf(c.Stdout).Comparable() && c.Stdout == c.Stderr:
		cmd.Stdout = cmd.Stderr // os/exec opens one pipe then
	default:
		cmd.Stdout = &serial{&one, c.Stdout}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return signalGroup(cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	err := cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		// Grandchildren that ignored SIGTERM keep nothing of ours alive.
		_ = signalGroup(cmd.Process.Pid, syscall.SIGKILL)
		return context.Cause(ctx)
	}
	var x *exec.ExitError
	if !errors.As(err, &x) {
		return err
	}
	e := &ExitError{Program: c.Path, Code: x.ExitCode(), Tail: last.String()}
	if ws, ok := x.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal, e.Code = ws.Signal(), 128+int(ws.Signal())
	}
	return e
}

// serial lets one goroutine at a time write: a child's two outputs are copied
// by two.
type serial struct {
	mu *sync.Mutex
	w  io.Writer
}

func (s *serial) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

func signalGroup(pid int, s syscall.Signal) error {
	err := syscall.Kill(-pid, s)
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// Tail is a writer that keeps the last Max bytes of whole lines.
type Tail struct {
	Max int
	buf []byte
}

// Write keeps the end of p. It never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.Max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String is what was kept, from the first whole line on.
func (t *Tail) String() string {
	s := string(t.buf)
	if len(t.buf) >= t.Max {
		if _, rest, ok := strings.Cut(s, "\n"); ok {
			s = rest
		}
	}
	return strings.TrimRight(s, "\n")
}
