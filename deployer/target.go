package deployer

import (
	"context"
	"time"

	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// Target is what [Deploy] needs from a cluster: small verbs that do one thing
// and decide nothing. Implementations are safe for concurrent use; every call
// ends soon after its context.
//
// Errors: [*Failure] where the cause is known and coded; [ErrForeign] for an
// object of another owner; [ErrFenced] for a write under an epoch that is not
// the newest of its scope; [ErrNotFound]; [ErrUnavailable] when the target
// did not answer, a later try may help; ctx's error. A verb that returned
// any other error, or none because its process died, may have had its effect:
// every verb may be called again.
type Target interface {
	Records
	Units
	Jobs
	Loads
}

// Records keeps one scope's Head and Releases.
type Records interface {
	// Head returns the scope's record; the zero Head where there is none.
	Head(ctx context.Context, scope Scope) (Head, error)
	// SwapHead writes h where the record still has h.Version (empty: where
	// there is none) and returns h with its new version. [ErrConflict] when
	// the record changed meanwhile.
	SwapHead(ctx context.Context, scope Scope, h Head) (Head, error)
	// CreateRelease writes an immutable record; [ErrExists] when the id is
	// taken, whatever stands there.
	CreateRelease(ctx context.Context, f Fence, r Release) error
	// Release reads one record; [ErrNotFound].
	Release(ctx context.Context, scope Scope, id string) (Release, error)
	// Releases lists the ids there are, in any order.
	Releases(ctx context.Context, scope Scope) ([]string, error)
	// RemoveRelease forgets a record; a missing one is no error.
	RemoveRelease(ctx context.Context, f Fence, id string) error
}

// Units creates, observes and reaches the services of a scope.
type Units interface {
	// Preflight checks, before anything is written, whether the scope's
	// namespace, rights, quota and the units' images would do: all the
	// problems at once as joined [*Failure] values, or [ErrForeign].
	Preflight(ctx context.Context, scope Scope, units []Spec) error
	// Versions says which version each Secret and ConfigMap of the scope's
	// namespace has; those that don't exist are left out. Values are not read.
	Versions(ctx context.Context, scope Scope, sources []Source) (map[Source]string, error)
	// Services observes everything that carries the scope's labels.
	Services(ctx context.Context, scope Scope) ([]Service, error)
	// Ensure makes the named revision of s exist, be starting and reachable
	// at its own URL, without taking traffic from another revision. The
	// service is created where there is none; its first revision may receive
	// traffic at once, because there is nothing else. A revision of that name
	// with the same content is used as it is. Ensure does not wait.
	Ensure(ctx context.Context, f Fence, s Spec, revision string) error
	// WaitReady waits until the revision can answer; a job's, until it could
	// be run. progress, which may be
	// nil, is called with "still waiting because" reasons when they change.
	// A cause that waiting won't heal is returned as a [*Failure].
	WaitReady(ctx context.Context, scope Scope, service, revision string, progress func(why string)) (Revision, error)
	// Probe asks through the revision's own URL, or through the service's
	// route when revision is empty, who answers. [ErrUnreachable] when this
	// process can't reach the address at all, as opposed to a wrong or
	// failing answer.
	Probe(ctx context.Context, scope Scope, service, revision, nonce string) (Answer, error)
	// SetTraffic replaces the service's shares: percents of named revisions
	// that add up to 100. A revision without share and tag may be stopped
	// once its last request has ended; no request is lost.
	SetTraffic(ctx context.Context, f Fence, service string, shares []Share) error
	// RestoreTemplate makes the service describe s under the revision's name
	// again, without creating anything, so that the next difference is true.
	RestoreTemplate(ctx context.Context, f Fence, s Spec, revision string) error
	// RemoveRevision and RemoveService end and forget; what has traffic is
	// drained first. Missing ones are no error.
	RemoveRevision(ctx context.Context, f Fence, service, revision string) error
	RemoveService(ctx context.Context, f Fence, service string) error
	// Logs returns the last n lines the revision wrote, oldest first.
	Logs(ctx context.Context, scope Scope, service, revision string, n int) ([]string, error)
}

// Watcher is what a target offers that can follow a scope.
type Watcher interface {
	// Watch follows what happens in the scope until ctx ends, so that what
	// waits for something there asks less. It does not wait, and changes
	// nothing that the other verbs say.
	Watch(ctx context.Context, scope Scope)
}

// Secrets is what a target offers that keeps a scope's own Secrets: those that
// carry its owner, service and environment. Any other is [ErrForeign] and is
// never changed. Values go in and never come out.
type Secrets interface {
	// Secrets lists the keys of the scope's own Secrets, sorted by secret and
	// key.
	Secrets(ctx context.Context, scope Scope) ([]SecretKey, error)
	// SetSecret writes a value, and who and when beside it. The Secret is
	// created where there is none.
	SetSecret(ctx context.Context, scope Scope, k SecretKey, value []byte) error
	// UnsetSecret removes a key; a missing one is [ErrNotFound].
	UnsetSecret(ctx context.Context, scope Scope, k SecretKey) error
}

// SecretKey is a key of a Secret, and who set it last and when; By is empty
// for a key that was not set through [Secrets].
type SecretKey struct {
	Secret string    `json:"secret"`
	Key    string    `json:"key"`
	By     string    `json:"by,omitempty"`
	At     time.Time `json:"at,omitzero"`
}

// Loads see and steer what a unit's revisions carry, while traffic moves.
type Loads interface {
	// Instances says how many of the revision's instances are Ready.
	Instances(ctx context.Context, scope Scope, service, revision string) (int, error)
	// SetFloor keeps at least n instances of the revision running, within its
	// MaxScale, as long as it has a share or a tag; 0 leaves their number to
	// the revision's own scale again. Other parts of the unit don't change. It
	// does not wait. A target that runs one instance of each revision does
	// nothing: [Observed.Floor] stays 0 there.
	SetFloor(ctx context.Context, f Fence, service, revision string, n int) error
	// Ask sends a request to the revision, at its own URL. [ErrUnreachable] as
	// in Probe. A time-out is an error, not a Reply.
	Ask(ctx context.Context, scope Scope, service, revision string, q Request) (Reply, error)
	// Measure says what the revision's instances have counted; those that
	// can't be asked are left out. [ErrNotFound] when none counts: a container
	// without our adapter, nothing running.
	Measure(ctx context.Context, scope Scope, service, revision string) ([]analysis.Counts, error)
}

// Request is what [Loads.Ask] sends.
type Request struct {
	Method string `json:"method"`
	Path   string `json:"path"` // with query
	// Limit is how long the answer may take, in ns; 0: the target's default.
	Limit time.Duration `json:"limit,omitempty"`
}

// Reply is what came back.
type Reply struct {
	Status int           `json:"status"`
	Took   time.Duration `json:"took"`           // until the answer was complete, in ns
	Body   string        `json:"body,omitempty"` // its first 512 bytes
}

// MaxReplyBody bounds Reply.Body, in bytes.
const MaxReplyBody = 512

// Fence is the right to write: a scope, and the epoch of the lease the writer
// holds. Targets refuse an epoch that is older than the Head's or than the
// one on the object, with [ErrFenced].
type Fence struct {
	Scope Scope `json:"scope"`
	Epoch int64 `json:"epoch"`
}

// Share is a part of a service's traffic. The sum of Percent is 100. A share
// of 0 % with a Tag keeps the revision reachable at its own URL.
type Share struct {
	Revision string `json:"revision"`
	Percent  int    `json:"percent"`
	Tag      string `json:"tag,omitempty"`
}

// TagPrevious is the tag of the revision a rollback returns to.
const TagPrevious = "prev"

// Service is a unit as observed.
type Service struct {
	Name  string `json:"name"`
	Unit  string `json:"unit"`
	Owner string `json:"owner"`
	// Epoch is the lease epoch of the last write.
	Epoch int64 `json:"epoch"`
	// URL is the route's.
	URL string `json:"url"`
	// Job says that it is a job's unit: it has no URL, traffic or template.
	Job bool `json:"job,omitempty"`
	// Template is the revision that the service describes.
	Template  string     `json:"template"`
	Traffic   []Share    `json:"traffic,omitempty"`
	Revisions []Observed `json:"revisions,omitempty"`
}

// Revision finds an observed revision by name.
func (s Service) Revision(name string) (Observed, bool) {
	for _, r := range s.Revisions {
		if r.Name == name {
			return r, true
		}
	}
	return Observed{}, false
}

// Only reports whether all the traffic goes to the revision.
func (s Service) Only(revision string) bool {
	sum := 0
	for _, t := range s.Traffic {
		if t.Percent > 0 && t.Revision != revision {
			return false
		}
		sum += t.Percent
	}
	return sum == 100
}

// serving reports whether a Ready revision has traffic.
func (s Service) serving() bool {
	for _, t := range s.Traffic {
		if r, ok := s.Revision(t.Revision); ok && t.Percent > 0 && r.Phase == Ready {
			return true
		}
	}
	return false
}

// Phase is where a revision stands.
type Phase string

// The phases. A stopped revision is Ready: it starts when it is asked.
const (
	Pending Phase = "pending"
	Ready   Phase = "ready"
	Broken  Phase = "failed"
)

// Observed is a revision as seen at the target.
type Observed struct {
	Name    string    `json:"name"`
	Hash    string    `json:"hash"` // Spec.Hash
	Image   string    `json:"image"`
	Phase   Phase     `json:"phase"`
	URL     string    `json:"url"`
	Created time.Time `json:"created"`
	// Failure is set where Phase is Broken.
	Failure *Failure `json:"failure,omitempty"`
	// Why says what a pending revision waits for.
	Why string `json:"why,omitempty"`
	// Floor is what SetFloor asked for.
	Floor int `json:"floor,omitempty"`
	// Sandbox is as in [Revision].
	Sandbox string `json:"sandbox,omitempty"`
}

// Answer is what came back to a nonce. Nonce is empty when something answered
// that doesn't know nonces, such as a container without our adapter.
type Answer struct {
	Status   int    `json:"status"`
	Nonce    string `json:"nonce,omitempty"`
	Revision string `json:"revision,omitempty"`
	Image    string `json:"image,omitempty"`
	Key      string `json:"key,omitempty"`
	// Via names the way, where it was not the one that callers go.
	Via string `json:"via,omitempty"`
}

// Headers of the nonce protocol. A request that carries HeaderNonce is
// answered by the adapter itself, with the other three.
const (
	HeaderNonce    = "X-Faas-Nonce"
	HeaderRevision = "X-Faas-Revision"
	HeaderImage    = "X-Faas-Image"
	HeaderKey      = "X-Faas-Key"
)
