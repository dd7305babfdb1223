package local

import (
	"errors"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// request is what any verb may need; reply what any may return. Both ends are
// always of one version: the socket belongs to one user on one machine.
type request struct {
	Scope    deployer.Scope    `json:"scope"`
	Fence    deployer.Fence    `json:"fence"`
	Head     deployer.Head     `json:"head,omitzero"`
	Version  string            `json:"version,omitempty"`
	Release  *deployer.Release `json:"release,omitempty"`
	ID       string            `json:"id,omitempty"`
	Units    []deployer.Spec   `json:"units,omitempty"`
	Check    []checkedUnit     `json:"check,omitempty"`
	Service  string            `json:"service,omitempty"`
	Revision string            `json:"revision,omitempty"`
	Shares   []deployer.Share  `json:"shares,omitempty"`
	Known    string            `json:"known,omitempty"`
	N        int               `json:"n,omitempty"`
	Timer    *deployer.Timer   `json:"timer,omitempty"`
	Event    []byte            `json:"event,omitempty"`
}

// checkedUnit is what a preflight looks at of a unit: all of it is long, and
// there may be thousands.
type checkedUnit struct {
	Name     string `json:"name"`
	Unit     string `json:"unit"`
	Image    string `json:"image"`
	Secrets  bool   `json:"secrets,omitempty"`
	Config   bool   `json:"config,omitempty"`
	Internal bool   `json:"internal,omitempty"`
}

type reply struct {
	Head     deployer.Head            `json:"head,omitzero"`
	Version  string                   `json:"version,omitempty"`
	Release  *deployer.Release        `json:"release,omitempty"`
	IDs      []string                 `json:"ids,omitempty"`
	Services []deployer.Service       `json:"services,omitempty"`
	Revision *deployer.Revision       `json:"revision,omitempty"`
	Why      string                   `json:"why,omitempty"`
	Lines    []string                 `json:"lines,omitempty"`
	N        int                      `json:"n,omitempty"`
	ID       string                   `json:"id,omitempty"`
	Timers   []deployer.ObservedTimer `json:"timers,omitempty"`
	Result   *deployer.RunResult      `json:"result,omitempty"`
	URL      string                   `json:"url,omitempty"`
	Sandbox  string                   `json:"sandbox,omitempty"`
	Counts   []analysis.Counts        `json:"counts,omitempty"`
	Error    *wireError               `json:"error,omitempty"`
}

// wireError carries an error with what callers tell apart.
type wireError struct {
	Text     string                 `json:"text"`
	Kind     string                 `json:"kind,omitempty"`
	Foreign  *deployer.ForeignError `json:"foreign,omitempty"`
	Failures []*deployer.Failure    `json:"failures,omitempty"`
}

// kinds are the errors that keep their identity over the socket.
var kinds = map[string]error{
	"fenced":   deployer.ErrFenced,
	"conflict": deployer.ErrConflict,
	"exists":   deployer.ErrExists,
	"notfound": deployer.ErrNotFound,
}

func toWire(err error) *wireError {
	w := &wireError{Text: err.Error(), Failures: deployer.Failures(err)}
	_ = errors.As(err, &w.Foreign)
	for kind, e := range kinds {
		if errors.Is(err, e) {
			w.Kind = kind
		}
	}
	return w
}

func (w *wireError) err() error {
	switch {
	case w.Foreign != nil:
		return w.Foreign
	case len(w.Failures) == 1:
		return w.Failures[0]
	case len(w.Failures) > 1:
		var all []error
		for _, f := range w.Failures {
			all = append(all, f)
		}
		return errors.Join(all...)
	case kinds[w.Kind] != nil:
		return &remoteError{w.Text, kinds[w.Kind]}
	}
	return errors.New(w.Text)
}

// remoteError says what the server said, without saying it twice.
type remoteError struct {
	text string
	is   error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }
