package deployer

import (
	"errors"
	"fmt"
	"strings"
)

// Code is the cause of a failure, the same on every target.
type Code string

// The causes. In brackets: who can act.
const (
	ImageMissing      Code = "image-missing"       // [project, platform] no such image, or its registry has lost it
	ImageUnauthorized Code = "image-unauthorized"  // [platform] the registry refused the target
	ImageUnusable     Code = "image-unusable"      // [project, platform] wrong architecture, corrupt, hostile or without a program
	ImageUnreachable  Code = "image-unreachable"   // [external] the registry did not answer
	Crash             Code = "crash"               // [project] the process ended before it was Ready
	OutOfMemory       Code = "out-of-memory"       // [project] killed for its memory limit
	ProbeNeverPasses  Code = "probe-never-passes"  // [project] it runs, but never becomes Ready
	Denied            Code = "denied"              // [platform] a right is missing or an admission policy refused
	Quota             Code = "quota"               // [platform] no room for live and new together
	NamespaceMissing  Code = "namespace-missing"   // [platform]
	SecretMissing     Code = "secret-missing"      // [project] a secret or a key of it
	ConfigMissing     Code = "config-missing"      // [project] a config map or a key of it
	IngressNotReady   Code = "ingress-not-ready"   // [platform, external] the route was not accepted in time
	Unable            Code = "unable"              // [platform] this machine can't run units
	WrongAnswer       Code = "wrong-answer"        // [platform] another revision answers than the traffic says
	VerifyFailed      Code = "verify-failed"       // [project] a request of rollout.verify was not answered as expected
	AnalysisFailed    Code = "analysis-failed"     // [project] worse than its bounds, or than the stable release
	AnalysisNoData    Code = "analysis-no-data"    // [project, external] too few requests, or nobody measured
	NoRoom            Code = "no-room"             // [platform, external] too few instances became Ready
	TooSlow           Code = "not-ready-in-time"   // [external] still pending when the time was over
	Exhausted         Code = "revisions-exhausted" // [project] this content failed too often
)

// Failure is a cause somebody can act on.
type Failure struct {
	Code Code `json:"code"`
	// Unit and Revision name the object, where it is one's.
	Unit     string `json:"unit,omitempty"`
	Revision string `json:"revision,omitempty"`
	// Cause is one sentence: "exited with code 1 after 0.2 s".
	Cause string `json:"cause"`
	// Next is what to do about it; it may be empty.
	Next string `json:"next,omitempty"`
	// ExitCode and Signal are set for a Crash.
	ExitCode int    `json:"exitCode,omitempty"`
	Signal   string `json:"signal,omitempty"`
	// Logs are the last lines the revision wrote, oldest first.
	Logs []string `json:"logs,omitempty"`
}

// Error is the cause in one line, without the logs.
func (f *Failure) Error() string {
	s := f.Cause
	switch {
	case f.Revision != "":
		s = "revision " + f.Revision + ": " + s
	case f.Unit != "":
		s = "unit " + f.Unit + ": " + s
	}
	return s
}

// Failures are the coded causes in err's tree, in order.
func Failures(err error) []*Failure {
	switch e := err.(type) {
	case nil:
		return nil
	case *Failure:
		return []*Failure{e}
	case interface{ Unwrap() []error }:
		var all []*Failure
		for _, inner := range e.Unwrap() {
			all = append(all, Failures(inner)...)
		}
		return all
	case interface{ Unwrap() error }:
		return Failures(e.Unwrap())
	}
	return nil
}

// Errors that callers tell apart.
var (
	// ErrHeld: an operator holds the release; see [HeldError].
	ErrHeld = errors.New("the release is held")
	// ErrForeign: the object belongs to another project; see [ForeignError].
	ErrForeign = errors.New("owned by another project")
	// ErrSuperseded: a newer pipeline has deployed; see [SupersededError].
	ErrSuperseded = errors.New("superseded by a newer pipeline")
	// ErrLocked: another run holds the lease; see [LockedError].
	ErrLocked = errors.New("another run is deploying")
	// ErrFenced: the writer's lease was taken over; it must stop.
	ErrFenced = errors.New("the lease was taken over by another run")
	// ErrPlanned: asked for something a later version will do.
	ErrPlanned = errors.New("planned, not available yet")

	// ErrConflict, ErrExists, ErrNotFound are plain answers of [Records].
	ErrConflict = errors.New("the record changed meanwhile")
	ErrExists   = errors.New("exists already")
	ErrNotFound = errors.New("not found")
	// ErrUnavailable: the target did not answer.
	ErrUnavailable = errors.New("target not available")
	// ErrUnreachable: this process can't reach the unit's address.
	ErrUnreachable = errors.New("address not reachable from here")
	// ErrInvalid: the caller's plan is wrong in itself.
	ErrInvalid = errors.New("invalid plan")
)

// HeldError says who or what holds a release.
type HeldError struct {
	Scope Scope
	Live  string // release id
	Why   string
	// Next is what ends it, where it is not only [Resume].
	Next string
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s is held at %s: %s", e.Scope, e.Live, e.Why)
}

// Is makes errors.Is(err, ErrHeld) true.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// ForeignError names the object and both owners.
type ForeignError struct {
	Object      string // "service hello-main"
	Owner, Mine string
}

func (e *ForeignError) Error() string {
	owner := e.Owner
	if owner == "" {
		owner = "nobody we know"
	} else {
		owner = "project " + owner
	}
	return fmt.Sprintf("%s belongs to %s, not to project %s", e.Object, owner, e.Mine)
}

// Is makes errors.Is(err, ErrForeign) true.
func (e *ForeignError) Is(target error) bool { return target == ErrForeign }

// SupersededError says which pipeline has the word.
type SupersededError struct {
	Scope    Scope
	Pipeline int64 // that was refused
	By       int64 // newer pipeline
	Live     string
}

func (e *SupersededError) Error() string {
	return fmt.Sprintf("pipeline %d of %s is superseded by pipeline %d (release %s is live)", e.Pipeline, e.Scope, e.By, e.Live)
}

// Is makes errors.Is(err, ErrSuperseded) true.
func (e *SupersededError) Is(target error) bool { return target == ErrSuperseded }

// LockedError says who holds the lease.
type LockedError struct {
	Scope  Scope
	Holder string
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is being deployed by %s", e.Scope, e.Holder)
}

// Is makes errors.Is(err, ErrLocked) true.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// Failed is a deploy that did not get live. errors.As finds the coded causes
// through it, see [Failures].
type Failed struct {
	Scope Scope
	Step  Step // where it failed
	// Serving is the release that serves now; empty where none did before.
	Serving string
	// Moved says that traffic had moved and was put back.
	Moved bool
	// Restore is why putting back was not finished; the next run does it.
	Restore error
	Err     error
}

func (e *Failed) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "deploy %s: %s: %v", e.Scope, e.Step, e.Err)
	switch {
	case errors.Is(e.Restore, ErrFenced):
		b.WriteString("; what becomes of it is the other run's business")
	case e.Restore != nil:
		fmt.Fprintf(&b, "; restoring was not finished (%v), the next run finishes it", e.Restore)
	case e.Serving == "":
		b.WriteString("; nothing was live before, nothing is now")
	case e.Moved:
		fmt.Fprintf(&b, "; traffic was put back, release %s serves", e.Serving)
	default:
		fmt.Fprintf(&b, "; release %s still serves", e.Serving)
	}
	return b.String()
}

func (e *Failed) Unwrap() error { return e.Err }
