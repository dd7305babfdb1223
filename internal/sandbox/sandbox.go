// Package sandbox runs a command in its own namespaces inside a given root
// folder, as root or in a user namespace. Where the kernel forbids both it
// says so, and callers decide whether a weaker form will do.
//
// The command sees its root, the binds it was given, a small /dev and a /proc
// of its own: no other process, no file and no environment variable of the
// caller. It has no capabilities unless asked for, and can't gain any. The
// network is the caller's, so loopback ports are reachable. Everything that
// the command started ends with it.
//
// A sandbox is set up by the calling program itself, run again as the first
// process of the new namespaces. So [Main] is the first line of every main
// and TestMain of a program that calls [Start] or [Detect].
package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// Mode is how a sandbox gets the rights to exist.
type Mode string

// The modes, best first.
const (
	// Root makes namespaces with root's own rights: any UID and GID inside,
	// overlay everywhere.
	Root Mode = "root"
	// UserNS makes a user namespace first, in which exactly one id exists:
	// the caller, seen inside as Spec.UID and Spec.GID. Overlay needs Linux
	// 5.11.
	UserNS Mode = "userns"
	// None is a machine that allows neither.
	None Mode = "none"
)

// DefaultTmpfsBytes is the size limit of the changes kept in memory when
// [Spec.TmpfsBytes] is 0.
const DefaultTmpfsBytes = 512 << 20

// ErrForbidden is in the chain of every error that says: this machine does
// not allow it, whatever the caller passes. The message names the right.
var ErrForbidden = errors.New("sandbox: forbidden on this machine")

// ErrNoOverlay is in the chain of the error that says that namespaces work
// here, but overlay does not: use Spec.Root with a folder of one's own.
var ErrNoOverlay = errors.New("sandbox: no overlay on this machine")

// Bind shows a file or folder inside: the caller's Source, or one of those
// that may stand instead of it.
type Bind struct {
	Source string // must exist
	// Target is absolute, inside. Missing parents are made; a symbolic link in
	// it stays inside the root.
	Target   string
	ReadOnly bool
	// Lower, instead of Source, are folders shown laid over each other by
	// overlay, top first, read-only.
	Lower []string
	// Part, with Lower, is a path in them that is shown instead of all; a
	// symbolic link in it stays inside them.
	Part string
	// File, instead of Source, is a file of its own, read-only.
	File *File
	// Memory, instead of Source, is an empty folder of at most so many bytes, with
	// the mode of the one at Target.
	Memory int64
}

// File is a file that is in memory and nowhere else.
type File struct {
	Data     []byte
	Mode     fs.FileMode // permission bits
	UID, GID int
}

// Spec is a sandbox and the command in it.
type Spec struct {
	// Mode is Root or UserNS; "" is the best that [Detect] finds.
	Mode Mode
	// Lower are read-only folders, top first, that form / by overlay; or
	Lower []string
	// Root is a folder that becomes / itself. Mount points that it lacks are
	// made in it.
	Root string
	// Upper, with Lower, is an existing folder that receives the changes in
	// overlay's form, nothing of our own among them; it gets mode 0755,
	// because it is /. "" keeps them in memory, up to TmpfsBytes.
	Upper      string
	TmpfsBytes int64 // 0 means DefaultTmpfsBytes
	Binds      []Bind
	// Argv is the command; a name without slash is looked up in Env's PATH,
	// inside.
	Argv []string
	Env  []string // complete, nothing is inherited
	Dir  string   // inside, must exist; "" is /
	// UID and GID inside. In mode Root there are no supplementary groups; in
	// mode UserNS the caller's stay, because the kernel forbids dropping them.
	UID, GID int
	// KeepCapabilities leaves a builder's capabilities (those that change
	// owners, modes, ids and devices) and set-user-ID programs to the command;
	// UID must be 0. What could leave the sandbox is dropped all the same, and
	// device nodes can be made but never opened.
	KeepCapabilities bool
	// AsInit makes the command itself process 1 instead of a child of our
	// small init: it must reap orphans and handle signals.
	AsInit bool
	// Changes, with Lower and AsInit, gives the command two descriptors after
	// ExtraFiles, of folders to which no path inside leads: the changes in
	// overlay's form, and the files as they were without them. Both are
	// read-only.
	Changes bool
	Stdin   io.Reader
	// Stdout and Stderr may be the same Writer: then lines keep their order.
	Stdout, Stderr io.Writer
	ExtraFiles     []*os.File // descriptors 3 and up inside
	Hostname       string     // "" is "sandbox"
	// Grace is the time between SIGTERM and the end of the whole namespace
	// after cancellation; 0 means run.DefaultGrace.
	Grace time.Duration
}

// forbidden is an error with the missing right in it.
type forbidden struct {
	mode  Mode
	what  string // "make namespaces"
	right string // what the machine's owner would have to allow
	err   error
}

func (e *forbidden) Error() string {
	s := "sandbox: mode " + string(e.mode) + ": " + e.what
	if e.err != nil {
		s += ": " + e.err.Error()
	}
	if e.right != "" {
		s += " (" + e.right + ")"
	}
	return s
}

func (e *forbidden) Unwrap() error { return e.err }

func (e *forbidden) Is(target error) bool { return target == ErrForbidden }

// check refuses a Spec that can't mean anything, all reasons at once.
func (s *Spec) check() error {
	var bad []string
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	switch s.Mode {
	case "", Root, UserNS:
	case None:
		return &forbidden{mode: None, what: "asked for explicitly"}
	default:
		say("unknown mode %q", s.Mode)
	}
	if (len(s.Lower) == 0) == (s.Root == "") {
		say("exactly one of Lower and Root is needed")
	}
	if s.Upper != "" && len(s.Lower) == 0 {
		say("Upper needs Lower")
	}
	if s.Changes && (len(s.Lower) == 0 || !s.AsInit) {
		say("Changes needs Lower and AsInit")
	}
	if len(s.Argv) == 0 || s.Argv[0] == "" {
		say("Argv is empty")
	}
	if s.Dir != "" && !path.IsAbs(s.Dir) {
		say("Dir %q is not absolute", s.Dir)
	}
	if s.UID < 0 || s.GID < 0 {
		say("UID %d or GID %d is negative", s.UID, s.GID)
	}
	if s.KeepCapabilities && s.UID != 0 {
		say("KeepCapabilities needs UID 0, not %d", s.UID)
	}
	if s.TmpfsBytes < 0 {
		say("TmpfsBytes is negative")
	}
	for _, b := range s.Binds {
		if !path.IsAbs(b.Target) || path.Clean(b.Target) == "/" {
			say("bind target %q is not an absolute path below /", b.Target)
		}
		kinds := 0
		for _, given := range []bool{b.Source != "", len(b.Lower) > 0, b.File != nil, b.Memory != 0} {
			if given {
				kinds++
			}
		}
		if kinds != 1 {
			say("bind %q: exactly one of Source, Lower, File and Memory is needed", b.Target)
		}
		if b.Memory < 0 || b.Part != "" && len(b.Lower) == 0 {
			say("bind %q: Memory is negative, or Part without Lower", b.Target)
		}
	}
	for _, list := range [][]string{s.Argv, s.Env} {
		for _, v := range list {
			if strings.IndexByte(v, 0) >= 0 {
				say("a NUL byte in Argv or Env")
			}
		}
	}
	if len(bad) > 0 {
		return errors.New("sandbox: " + strings.Join(bad, "; "))
	}
	return nil
}
