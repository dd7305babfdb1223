// Package npm makes a dependency layer straight from a package-lock.json: the
// archives it names are fetched, checked against its integrity values and
// written into a layer, as npm ci --omit=dev would have unpacked them, but
// without npm, node or a file system full of small files.
//
// What needs npm itself (install scripts, git sources, links, workspaces) is
// refused with [ErrNeedsInstaller], so that the caller can run npm instead.
package npm

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNeedsInstaller is what a [*NeedsInstallerError] is.
	ErrNeedsInstaller = errors.New("needs npm itself")
	// ErrIntegrity is the cause when an archive is not the one that the lock
	// file names.
	ErrIntegrity = errors.New("the archive does not match the lock file's integrity value")
	// ErrNotPublished is the cause when the registry does not have a version.
	ErrNotPublished = errors.New("the package registry does not have this version")
)

// UpdateLock is the command that brings a lock file back into step.
const UpdateLock = "npm install --package-lock-only"

// RecreateLock makes a lock file for all platforms from nothing; an update
// keeps what is missing missing.
const RecreateLock = "rm -rf node_modules package-lock.json && npm install --package-lock-only"

// LockError is a package-lock.json or package.json that can't be read.
type LockError struct {
	File string
	Err  error
}

func (e *LockError) Error() string { return fmt.Sprintf("%s: %v", e.File, e.Err) }
func (e *LockError) Unwrap() error { return e.Err }

// OutOfStepError is a lock file that does not fit package.json or itself.
type OutOfStepError struct {
	Problems []string // "lodash: package.json wants ^4.17.21, the lock file has 4.17.20"
	Fix      string   // a command
}

func (e *OutOfStepError) Error() string {
	return "package-lock.json is out of step with package.json: " + list(e.Problems)
}

// UnsupportedError is a package that does not run on the image's platform and
// is not optional.
type UnsupportedError struct {
	Package, Wants, Platform string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s runs on %s only, and the image is %s", e.Package, e.Wants, e.Platform)
}

// Reason is why a package needs npm.
type Reason struct{ Package, Why string }

func (r Reason) String() string { return r.Package + ": " + r.Why }

// NeedsInstallerError names what only npm can install. errors.Is finds
// [ErrNeedsInstaller] in it.
type NeedsInstallerError struct{ Reasons []Reason }

func (e *NeedsInstallerError) Error() string {
	var all []string
	for _, r := range e.Reasons {
		all = append(all, r.String())
	}
	return ErrNeedsInstaller.Error() + ": " + list(all)
}

// Is makes errors.Is(err, ErrNeedsInstaller) true.
func (e *NeedsInstallerError) Is(target error) bool { return target == ErrNeedsInstaller }

// list joins at most ten entries.
func list(all []string) string {
	more := ""
	if n := len(all) - 10; n > 0 {
		all, more = all[:10], fmt.Sprintf("; and %d more", n)
	}
	return strings.Join(all, "; ") + more
}
