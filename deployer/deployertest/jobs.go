package deployertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
)

// timer is a timer of the in-memory target. It never fires by itself.
type timer struct {
	scope    deployer.Scope
	timer    deployer.Timer
	revision string
	epoch    int64
	off      bool
}

// jobRun is a run of a job in memory: it has ended as its event says.
type jobRun struct {
	scope  deployer.Scope
	result deployer.RunResult
	event  string
	long   bool // never ends by itself
}

func timerID(s deployer.Scope, timerKey string) string { return key(s) + "#" + timerKey }

// Timers implements deployer.Jobs.
func (c *Cluster) Timers(ctx context.Context, scope deployer.Scope) ([]deployer.ObservedTimer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []deployer.ObservedTimer
	for _, t := range c.timers {
		if t.scope != scope {
			continue
		}
		all = append(all, deployer.ObservedTimer{
			Key: t.timer.Key(), Function: t.timer.Function, Service: t.timer.Service, Schedule: t.timer.Schedule,
			Timezone: t.timer.Timezone, Revision: t.revision, Does: t.timer.Does(t.revision), Epoch: t.epoch, Off: t.off,
		})
	}
	slices.SortFunc(all, func(a, b deployer.ObservedTimer) int { return strings.Compare(a.Key, b.Key) })
	return all, ctx.Err()
}

// ownTimer finds a timer for a write. Callers hold mu.
func (c *Cluster) ownTimer(ctx context.Context, f deployer.Fence, timerKey string) (*timer, error) {
	if err := errors.Join(ctx.Err(), c.fence(f)); err != nil {
		return nil, err
	}
	t := c.timers[timerID(f.Scope, timerKey)]
	if t != nil && t.scope.Owner != f.Scope.Owner {
		return nil, &deployer.ForeignError{Object: "timer " + timerKey, Owner: t.scope.Owner, Mine: f.Scope.Owner}
	}
	return t, nil
}

// SetTimer implements deployer.Jobs.
func (c *Cluster) SetTimer(ctx context.Context, f deployer.Fence, t deployer.Timer, s deployer.Spec, revision string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.ownTimer(ctx, f, t.Key()); err != nil {
		return err
	}
	if r := c.behave(s).RefuseTimer; r != nil {
		return r
	}
	svc, err := c.find(f.Scope, s.Name)
	if err != nil {
		return err
	}
	if svc == nil || svc.revisions[revision] == nil {
		return fmt.Errorf("revision %s: %w", revision, deployer.ErrNotFound)
	}
	if c.timers == nil {
		c.timers = map[string]*timer{}
	}
	c.timers[timerID(f.Scope, t.Key())] = &timer{scope: f.Scope, timer: t, revision: revision, epoch: f.Epoch}
	return nil
}

// RemoveTimer implements deployer.Jobs.
func (c *Cluster) RemoveTimer(ctx context.Context, f deployer.Fence, timerKey string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, err := c.ownTimer(ctx, f, timerKey)
	if t != nil && err == nil {
		delete(c.timers, timerID(f.Scope, timerKey))
	}
	return err
}

// SwitchOff does what a person may do behind the deployer's back.
func (c *Cluster) SwitchOff(scope deployer.Scope, timerKey string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.timers[timerID(scope, timerKey)]; t != nil {
		t.off = true
	}
}

// StartRun implements deployer.Jobs.
func (c *Cluster) StartRun(ctx context.Context, scope deployer.Scope, s deployer.Spec, revision string, event []byte) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.find(scope, s.Name)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return "", err
	}
	if svc == nil || svc.revisions[revision] == nil {
		return "", fmt.Errorf("revision %s: %w", revision, deployer.ErrNotFound)
	}
	c.version++
	name := fmt.Sprintf("%s-%d", revision, c.version)
	var asked struct{ Exit, Sleep int }
	if err := json.Unmarshal(event, &asked); err != nil {
		return "", fmt.Errorf("event: %w", err)
	}
	result := deployer.RunResult{Run: name, Succeeded: s.Job.Completions}
	if asked.Exit != 0 {
		f := &deployer.Failure{Code: deployer.Crash, Cause: fmt.Sprintf("exited with code %d", asked.Exit), ExitCode: asked.Exit}
		result.Succeeded, result.Failed, result.Failure = 0, s.Job.Retries+1, f
	}
	if c.runs == nil {
		c.runs = map[string]jobRun{}
	}
	c.runs[name] = jobRun{scope, result, string(event), asked.Sleep > 0}
	return name, nil
}

// FollowRun implements deployer.Jobs.
func (c *Cluster) FollowRun(ctx context.Context, scope deployer.Scope, run string, out func(string)) (deployer.RunResult, error) {
	c.mu.Lock()
	r, ok := c.runs[run]
	c.mu.Unlock()
	if !ok || r.scope != scope {
		return deployer.RunResult{}, errors.Join(ctx.Err(), deployer.ErrNotFound)
	}
	if out != nil {
		out("ran " + r.event)
	}
	if r.long {
		<-ctx.Done()
	}
	return r.result, ctx.Err()
}

// EndRuns implements deployer.Jobs.
func (c *Cluster) EndRuns(ctx context.Context, f deployer.Fence) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := errors.Join(ctx.Err(), c.fence(f)); err != nil {
		return err
	}
	for name, r := range c.runs {
		if r.scope == f.Scope {
			delete(c.runs, name)
		}
	}
	return nil
}

// observedJob is a job's service: it has neither URL nor traffic.
func (c *Cluster) observedJob(svc *service) deployer.Service {
	s := deployer.Service{Name: svc.name, Unit: svc.unit, Owner: svc.scope.Owner, Epoch: svc.epoch, Job: true}
	for name, r := range svc.revisions {
		phase, failure, _ := c.phase(r)
		s.Revisions = append(s.Revisions, deployer.Observed{
			Name: name, Hash: r.spec.Hash(), Image: r.spec.Image.String(), Phase: phase, Created: r.created, Failure: failure,
		})
	}
	slices.SortFunc(s.Revisions, func(a, b deployer.Observed) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// ensureJob is Ensure for a job: a service without traffic. Callers hold mu.
func (c *Cluster) ensureJob(f deployer.Fence, svc *service, s deployer.Spec, name string) error {
	if svc == nil {
		svc = &service{scope: f.Scope, name: s.Name, unit: s.Unit, epoch: f.Epoch, job: true, revisions: map[string]*revision{}}
		if c.services == nil {
			c.services = map[string]*service{}
		}
		c.services[f.Scope.Namespace+"/"+s.Name] = svc
	}
	if r := svc.revisions[name]; r != nil {
		if r.spec.Hash() != s.Hash() {
			return fmt.Errorf("revision %s has other content: %w", name, deployer.ErrExists)
		}
		return nil
	}
	svc.revisions[name] = &revision{spec: s, created: time.Now(), behaves: c.behave(s)}
	return nil
}
