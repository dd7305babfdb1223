package deployertest

import (
	"context"
	"errors"
	"sync"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// ErrDead is what a dead run's calls return: nobody hears it in real life.
var ErrDead = errors.New("the run is dead")

// Dying is a Target whose user dies at one call: that call has its effect or
// not, and its answer is lost either way.
type Dying struct {
	Target deployer.Target
	// At is the number of the fatal call, counted from 1; 0: none.
	At int
	// Effect says whether the fatal call still reaches the target.
	Effect bool
	// Once makes only that call fail, with Err: the run lives on.
	Once bool
	Err  error // default ErrDead
	// After, when set, is called after every call that reached the target.
	After func(verb string)

	mu    sync.Mutex
	calls int
}

var _ deployer.Target = (*Dying)(nil)

// Calls is how many calls were made.
func (d *Dying) Calls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

func (d *Dying) call(verb string, do func() error) error {
	d.mu.Lock()
	d.calls++
	n := d.calls
	d.mu.Unlock()
	lost := d.Err
	if lost == nil {
		lost = ErrDead
	}
	fatal := d.At > 0 && (n == d.At || n > d.At && !d.Once)
	if fatal && (n > d.At || !d.Effect) {
		return lost
	}
	err := do()
	if d.After != nil {
		d.After(verb)
	}
	if fatal {
		return lost
	}
	return err
}

// ask is call for verbs with a result.
func ask[T any](d *Dying, verb string, do func() (T, error)) (T, error) {
	var v T
	err := d.call(verb, func() (err error) { v, err = do(); return err })
	if err != nil {
		var none T
		return none, err
	}
	return v, nil
}

// Head implements deployer.Records.
func (d *Dying) Head(ctx context.Context, s deployer.Scope) (deployer.Head, error) {
	return ask(d, "Head", func() (deployer.Head, error) { return d.Target.Head(ctx, s) })
}

// SwapHead implements deployer.Records.
func (d *Dying) SwapHead(ctx context.Context, s deployer.Scope, h deployer.Head) (deployer.Head, error) {
	return ask(d, "SwapHead", func() (deployer.Head, error) { return d.Target.SwapHead(ctx, s, h) })
}

// CreateRelease implements deployer.Records.
func (d *Dying) CreateRelease(ctx context.Context, f deployer.Fence, r deployer.Release) error {
	return d.call("CreateRelease", func() error { return d.Target.CreateRelease(ctx, f, r) })
}

// Release implements deployer.Records.
func (d *Dying) Release(ctx context.Context, s deployer.Scope, id string) (deployer.Release, error) {
	return ask(d, "Release", func() (deployer.Release, error) { return d.Target.Release(ctx, s, id) })
}

// Releases implements deployer.Records.
func (d *Dying) Releases(ctx context.Context, s deployer.Scope) ([]string, error) {
	return ask(d, "Releases", func() ([]string, error) { return d.Target.Releases(ctx, s) })
}

// RemoveRelease implements deployer.Records.
func (d *Dying) RemoveRelease(ctx context.Context, f deployer.Fence, id string) error {
	return d.call("RemoveRelease", func() error { return d.Target.RemoveRelease(ctx, f, id) })
}

// Preflight implements deployer.Units.
func (d *Dying) Preflight(ctx context.Context, s deployer.Scope, units []deployer.Spec) error {
	return d.call("Preflight", func() error { return d.Target.Preflight(ctx, s, units) })
}

// Versions implements deployer.Units.
func (d *Dying) Versions(ctx context.Context, s deployer.Scope, sources []deployer.Source) (map[deployer.Source]string, error) {
	return ask(d, "Versions", func() (map[deployer.Source]string, error) { return d.Target.Versions(ctx, s, sources) })
}

// Services implements deployer.Units.
func (d *Dying) Services(ctx context.Context, s deployer.Scope) ([]deployer.Service, error) {
	return ask(d, "Services", func() ([]deployer.Service, error) { return d.Target.Services(ctx, s) })
}

// Ensure implements deployer.Units.
func (d *Dying) Ensure(ctx context.Context, f deployer.Fence, s deployer.Spec, revision string) error {
	return d.call("Ensure", func() error { return d.Target.Ensure(ctx, f, s, revision) })
}

// WaitReady implements deployer.Units.
func (d *Dying) WaitReady(ctx context.Context, s deployer.Scope, service, revision string, progress func(string)) (deployer.Revision, error) {
	return ask(d, "WaitReady", func() (deployer.Revision, error) {
		return d.Target.WaitReady(ctx, s, service, revision, progress)
	})
}

// Probe implements deployer.Units.
func (d *Dying) Probe(ctx context.Context, s deployer.Scope, service, revision, nonce string) (deployer.Answer, error) {
	return ask(d, "Probe", func() (deployer.Answer, error) { return d.Target.Probe(ctx, s, service, revision, nonce) })
}

// SetTraffic implements deployer.Units.
func (d *Dying) SetTraffic(ctx context.Context, f deployer.Fence, service string, shares []deployer.Share) error {
	return d.call("SetTraffic", func() error { return d.Target.SetTraffic(ctx, f, service, shares) })
}

// RestoreTemplate implements deployer.Units.
func (d *Dying) RestoreTemplate(ctx context.Context, f deployer.Fence, s deployer.Spec, revision string) error {
	return d.call("RestoreTemplate", func() error { return d.Target.RestoreTemplate(ctx, f, s, revision) })
}

// RemoveRevision implements deployer.Units.
func (d *Dying) RemoveRevision(ctx context.Context, f deployer.Fence, service, revision string) error {
	return d.call("RemoveRevision", func() error { return d.Target.RemoveRevision(ctx, f, service, revision) })
}

// RemoveService implements deployer.Units.
func (d *Dying) RemoveService(ctx context.Context, f deployer.Fence, service string) error {
	return d.call("RemoveService", func() error { return d.Target.RemoveService(ctx, f, service) })
}

// Logs implements deployer.Units.
func (d *Dying) Logs(ctx context.Context, s deployer.Scope, service, revision string, n int) ([]string, error) {
	return ask(d, "Logs", func() ([]string, error) { return d.Target.Logs(ctx, s, service, revision, n) })
}

// Timers implements deployer.Jobs.
func (d *Dying) Timers(ctx context.Context, s deployer.Scope) ([]deployer.ObservedTimer, error) {
	return ask(d, "Timers", func() ([]deployer.ObservedTimer, error) { return d.Target.Timers(ctx, s) })
}

// SetTimer implements deployer.Jobs.
func (d *Dying) SetTimer(ctx context.Context, f deployer.Fence, t deployer.Timer, s deployer.Spec, revision string) error {
	return d.call("SetTimer", func() error { return d.Target.SetTimer(ctx, f, t, s, revision) })
}

// RemoveTimer implements deployer.Jobs.
func (d *Dying) RemoveTimer(ctx context.Context, f deployer.Fence, key string) error {
	return d.call("RemoveTimer", func() error { return d.Target.RemoveTimer(ctx, f, key) })
}

// StartRun implements deployer.Jobs.
func (d *Dying) StartRun(ctx context.Context, s deployer.Scope, u deployer.Spec, revision string, event []byte) (string, error) {
	return ask(d, "StartRun", func() (string, error) { return d.Target.StartRun(ctx, s, u, revision, event) })
}

// FollowRun implements deployer.Jobs.
func (d *Dying) FollowRun(ctx context.Context, s deployer.Scope, run string, out func(string)) (deployer.RunResult, error) {
	return ask(d, "FollowRun", func() (deployer.RunResult, error) { return d.Target.FollowRun(ctx, s, run, out) })
}

// EndRuns implements deployer.Jobs.
func (d *Dying) EndRuns(ctx context.Context, f deployer.Fence) error {
	return d.call("EndRuns", func() error { return d.Target.EndRuns(ctx, f) })
}

// Instances implements deployer.Loads.
func (d *Dying) Instances(ctx context.Context, s deployer.Scope, service, revision string) (int, error) {
	return ask(d, "Instances", func() (int, error) { return d.Target.Instances(ctx, s, service, revision) })
}

// SetFloor implements deployer.Loads.
func (d *Dying) SetFloor(ctx context.Context, f deployer.Fence, service, revision string, n int) error {
	return d.call("SetFloor", func() error { return d.Target.SetFloor(ctx, f, service, revision, n) })
}

// Ask implements deployer.Loads.
func (d *Dying) Ask(ctx context.Context, s deployer.Scope, service, revision string, q deployer.Request) (deployer.Reply, error) {
	return ask(d, "Ask", func() (deployer.Reply, error) { return d.Target.Ask(ctx, s, service, revision, q) })
}

// Measure implements deployer.Loads.
func (d *Dying) Measure(ctx context.Context, s deployer.Scope, service, revision string) ([]analysis.Counts, error) {
	return ask(d, "Measure", func() ([]analysis.Counts, error) { return d.Target.Measure(ctx, s, service, revision) })
}
