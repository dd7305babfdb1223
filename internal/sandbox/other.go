//go:build !linux

package sandbox

import (
	"context"
	"errors"
	"os"
)

// Detect returns None: namespaces are a Linux facility.
func Detect(context.Context) (Mode, string) { return None, "this system is not Linux" }

// Process is a started sandbox; there is none on this system.
type Process struct{}

// Start refuses with [ErrForbidden]: namespaces are a Linux facility.
func Start(context.Context, Spec) (*Process, error) {
	return nil, &forbidden{mode: None, what: "start", err: errors.New("this system is not Linux")}
}

// Wait is never reached.
func (*Process) Wait() error { return ErrForbidden }

// Signal is never reached.
func (*Process) Signal(os.Signal) error { return ErrForbidden }

// Pid is never reached.
func (*Process) Pid() int { return 0 }

// Mode is None.
func (*Process) Mode() Mode { return None }

// Main does nothing: this system has no sandbox to be the first process of.
func Main() {}
