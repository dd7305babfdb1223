// Package deployertest is the behaviour suite that every deployer.Target
// passes, an in-memory target that passes it too, and a wrapper that lets a
// run die between any two calls.
package deployertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// Cluster is a Target in memory: a real implementation of the contract whose
// containers are descriptions. The zero value works. It is safe for
// concurrent use and takes its time from package time, so that it may live in
// a synctest bubble.
type Cluster struct {
	// Behave says how a unit's containers behave; nil: well. A revision keeps
	// the behaviour it was made with.
	Behave func(deployer.Spec) Behaviour
	// Sources are the Secrets and ConfigMaps there are, with their versions.
	Sources map[deployer.Source]string

	mu       sync.Mutex
	version  int
	heads    map[string]deployer.Head
	owners   map[string]string // of heads
	scopes   map[string]deployer.Scope
	releases map[string]deployer.Release
	services map[string]*service // by namespace/name
	timers   map[string]*timer   // by scope and key
	runs     map[string]jobRun
}

var _ deployer.Lister = (*Cluster)(nil)

// Behaviour is how a container behaves.
type Behaviour struct {
	// Delay is the time until it is Ready, or until Failure shows.
	Delay   time.Duration
	Failure *deployer.Failure
	Refuse  *deployer.Failure // at preflight
	// RefuseTimer is what every SetTimer for the unit returns.
	RefuseTimer error
	// Pods is how many instances run at first; 0 means 1. Those that a floor
	// adds are Ready after Delay.
	Pods int
	// Reply is what it answers to requests; nil: 200 at once.
	Reply func(deployer.Request) (deployer.Reply, error)
	// Count is what its instances have counted; nil: nothing counts.
	Count func() []analysis.Counts
	// Answer replaces what it answers to a nonce; nil: the truth.
	Answer func(deployer.Answer) (deployer.Answer, error)
}

type service struct {
	scope     deployer.Scope
	name      string
	unit      string
	epoch     int64
	job       bool
	template  string
	traffic   []deployer.Share
	revisions map[string]*revision
	turn      int // of weighted answers
}

type revision struct {
	spec    deployer.Spec
	created time.Time
	behaves Behaviour
	floor   int
	raised  time.Time // when the floor was set
}

func key(s deployer.Scope) string { return s.Namespace + "/" + s.Service + "/" + s.Environment }

// fence checks a writer's right. Callers hold mu.
func (c *Cluster) fence(f deployer.Fence) error {
	if h := c.heads[key(f.Scope)]; f.Epoch < h.Epoch || f.Epoch == 0 {
		return fmt.Errorf("epoch %d, current %d: %w", f.Epoch, h.Epoch, deployer.ErrFenced)
	}
	return nil
}

// find returns the scope's service, nil where there is none.
func (c *Cluster) find(scope deployer.Scope, name string) (*service, error) {
	svc := c.services[scope.Namespace+"/"+name]
	if svc != nil && svc.scope.Owner != scope.Owner {
		return nil, &deployer.ForeignError{Object: "service " + name, Owner: svc.scope.Owner, Mine: scope.Owner}
	}
	return svc, nil
}

// write finds a service for a write.
func (c *Cluster) write(ctx context.Context, f deployer.Fence, name string) (*service, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := c.fence(f); err != nil {
		return nil, err
	}
	svc, err := c.find(f.Scope, name)
	if svc != nil {
		svc.epoch = f.Epoch
	}
	return svc, err
}

// Head implements deployer.Records.
func (c *Cluster) Head(ctx context.Context, scope deployer.Scope) (deployer.Head, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return deployer.Head{}, err
	}
	if o, ok := c.owners[key(scope)]; ok && o != scope.Owner {
		return deployer.Head{}, &deployer.ForeignError{Object: "head of " + scope.String(), Owner: o, Mine: scope.Owner}
	}
	return clone(c.heads[key(scope)]), nil
}

// clone makes h share nothing with the original.
func clone(h deployer.Head) deployer.Head {
	h.History = slices.Clone(h.History)
	if h.Rollout != nil {
		r := *h.Rollout
		h.Rollout = &r
	}
	return h
}

// SwapHead implements deployer.Records.
func (c *Cluster) SwapHead(ctx context.Context, scope deployer.Scope, h deployer.Head) (deployer.Head, error) {
	if _, err := c.Head(ctx, scope); err != nil {
		return deployer.Head{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heads[key(scope)].Version != h.Version {
		return deployer.Head{}, deployer.ErrConflict
	}
	if c.heads == nil {
		c.heads, c.owners, c.scopes = map[string]deployer.Head{}, map[string]string{}, map[string]deployer.Scope{}
	}
	c.version++
	h.Version = strconv.Itoa(c.version)
	c.heads[key(scope)], c.owners[key(scope)], c.scopes[key(scope)] = clone(h), scope.Owner, scope
	return h, nil
}

// Scopes implements deployer.Lister.
func (c *Cluster) Scopes(ctx context.Context) ([]deployer.Recorded, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []deployer.Recorded
	for k, scope := range c.scopes {
		all = append(all, deployer.Recorded{Scope: scope, Head: clone(c.heads[k])})
	}
	return all, ctx.Err()
}

// CreateRelease implements deployer.Records.
func (c *Cluster) CreateRelease(ctx context.Context, f deployer.Fence, r deployer.Release) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := errors.Join(ctx.Err(), c.fence(f)); err != nil {
		return err
	}
	id := key(f.Scope) + "/" + r.ID
	if _, ok := c.releases[id]; ok {
		return deployer.ErrExists
	}
	if c.releases == nil {
		c.releases = map[string]deployer.Release{}
	}
	r.Units = slices.Clone(r.Units)
	c.releases[id] = r
	return nil
}

// Release implements deployer.Records.
func (c *Cluster) Release(ctx context.Context, scope deployer.Scope, id string) (deployer.Release, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.releases[key(scope)+"/"+id]
	if !ok {
		return r, errors.Join(ctx.Err(), deployer.ErrNotFound)
	}
	r.Units = slices.Clone(r.Units)
	return r, ctx.Err()
}

// Releases implements deployer.Records.
func (c *Cluster) Releases(ctx context.Context, scope deployer.Scope) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for id := range c.releases {
		if rest, ok := strings.CutPrefix(id, key(scope)+"/"); ok {
			ids = append(ids, rest)
		}
	}
	slices.Sort(ids)
	return ids, ctx.Err()
}

// RemoveRelease implements deployer.Records.
func (c *Cluster) RemoveRelease(ctx context.Context, f deployer.Fence, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := errors.Join(ctx.Err(), c.fence(f)); err != nil {
		return err
	}
	delete(c.releases, key(f.Scope)+"/"+id)
	return nil
}

func (c *Cluster) behave(s deployer.Spec) Behaviour {
	if c.Behave == nil {
		return Behaviour{}
	}
	return c.Behave(s)
}

// Preflight implements deployer.Units.
func (c *Cluster) Preflight(ctx context.Context, scope deployer.Scope, units []deployer.Spec) error {
	if _, err := c.Head(ctx, scope); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, u := range units {
		if _, err := c.find(scope, u.Name); err != nil {
			return err
		}
		if f := c.behave(u).Refuse; f != nil {
			errs = append(errs, f)
		}
	}
	return errors.Join(errs...)
}

// Versions implements deployer.Units.
func (c *Cluster) Versions(ctx context.Context, _ deployer.Scope, sources []deployer.Source) (map[deployer.Source]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := map[deployer.Source]string{}
	for _, s := range sources {
		if v, ok := c.Sources[s]; ok {
			have[s] = v
		}
	}
	return have, ctx.Err()
}

// phase is where a revision stands now.
func (c *Cluster) phase(r *revision) (deployer.Phase, *deployer.Failure, time.Duration) {
	b := r.behaves
	left := b.Delay - time.Since(r.created)
	switch {
	case left > 0:
		return deployer.Pending, nil, left
	case b.Failure != nil:
		return deployer.Broken, b.Failure, 0
	}
	return deployer.Ready, nil, 0
}

func url(name string) string { return "http://" + name + ".test" }

// Services implements deployer.Units.
func (c *Cluster) Services(ctx context.Context, scope deployer.Scope) ([]deployer.Service, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []deployer.Service
	for _, svc := range c.services {
		if svc.scope != scope {
			continue
		}
		if svc.job {
			all = append(all, c.observedJob(svc))
			continue
		}
		s := deployer.Service{
			Name: svc.name, Unit: svc.unit, Owner: svc.scope.Owner, Epoch: svc.epoch,
			URL: url(svc.name), Template: svc.template, Traffic: slices.Clone(svc.traffic),
		}
		for name, r := range svc.revisions {
			phase, failure, _ := c.phase(r)
			s.Revisions = append(s.Revisions, deployer.Observed{
				Name: name, Hash: r.spec.Hash(), Image: r.spec.Image.String(), Phase: phase,
				URL: url(name), Created: r.created, Failure: failure, Floor: r.floor,
			})
		}
		slices.SortFunc(s.Revisions, func(a, b deployer.Observed) int { return strings.Compare(a.Name, b.Name) })
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b deployer.Service) int { return strings.Compare(a.Name, b.Name) })
	return all, ctx.Err()
}

// Ensure implements deployer.Units.
func (c *Cluster) Ensure(ctx context.Context, f deployer.Fence, s deployer.Spec, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.write(ctx, f, s.Name)
	if err != nil {
		return err
	}
	if s.Job != nil {
		return c.ensureJob(f, svc, s, name)
	}
	if svc == nil {
		svc = &service{scope: f.Scope, name: s.Name, unit: s.Unit, epoch: f.Epoch, revisions: map[string]*revision{}}
		if c.services == nil {
			c.services = map[string]*service{}
		}
		c.services[f.Scope.Namespace+"/"+s.Name] = svc
		svc.traffic = []deployer.Share{{Revision: name, Percent: 100}}
	}
	svc.template = name
	if r := svc.revisions[name]; r != nil {
		if r.spec.Hash() != s.Hash() {
			return fmt.Errorf("revision %s has other content: %w", name, deployer.ErrExists)
		}
	} else {
		svc.revisions[name] = &revision{spec: s, created: time.Now(), behaves: c.behave(s)}
	}
	if !slices.ContainsFunc(svc.traffic, func(t deployer.Share) bool { return t.Revision == name }) {
		svc.traffic = append(svc.traffic, deployer.Share{Revision: name, Tag: "next"})
	}
	return nil
}

// WaitReady implements deployer.Units.
func (c *Cluster) WaitReady(ctx context.Context, scope deployer.Scope, svcName, name string, progress func(string)) (deployer.Revision, error) {
	for {
		r, err := c.revision(scope, svcName, name)
		if err != nil {
			return deployer.Revision{}, err
		}
		phase, failure, left := c.phase(r)
		switch phase {
		case deployer.Ready:
			return deployer.Revision{Name: name, Service: svcName, Unit: r.spec.Unit, Image: r.spec.Image, URL: url(name)}, ctx.Err()
		case deployer.Broken:
			f := *failure
			f.Unit, f.Revision = r.spec.Unit, name
			return deployer.Revision{}, &f
		}
		if progress != nil {
			progress("starting")
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return deployer.Revision{}, context.Cause(ctx)
		}
	}
}

func (c *Cluster) revision(scope deployer.Scope, svcName, name string) (*revision, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.find(scope, svcName)
	if err != nil {
		return nil, err
	}
	if svc == nil || svc.revisions[name] == nil {
		return nil, fmt.Errorf("revision %s: %w", name, deployer.ErrNotFound)
	}
	return svc.revisions[name], nil
}

// Route says which revision answers the next request to the service's route,
// and whether it can.
func (c *Cluster) Route(scope deployer.Scope, svcName string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.find(scope, svcName)
	if err != nil || svc == nil {
		return "", errors.Join(err, deployer.ErrNotFound)
	}
	svc.turn = (svc.turn + 37) % 100 // 37 and 100 share no factor: every share gets exactly its part of 100 turns
	at := svc.turn
	for _, t := range svc.traffic {
		if at -= t.Percent; at >= 0 {
			continue
		}
		r := svc.revisions[t.Revision]
		if r == nil {
			return t.Revision, errors.New("traffic to a revision that is gone")
		}
		if phase, _, _ := c.phase(r); phase != deployer.Ready {
			return t.Revision, errors.New("traffic to a revision that is " + string(phase))
		}
		return t.Revision, nil
	}
	return "", errors.New("no traffic")
}

// Probe implements deployer.Units.
func (c *Cluster) Probe(ctx context.Context, scope deployer.Scope, svcName, name, nonce string) (deployer.Answer, error) {
	if err := ctx.Err(); err != nil {
		return deployer.Answer{}, err
	}
	if name == "" {
		routed, err := c.Route(scope, svcName)
		if err != nil {
			return deployer.Answer{Status: 503}, nil
		}
		name = routed
	}
	r, err := c.revision(scope, svcName, name)
	if err != nil {
		return deployer.Answer{Status: 404}, nil
	}
	if phase, _, _ := c.phase(r); phase != deployer.Ready {
		return deployer.Answer{Status: 503}, nil
	}
	a := deployer.Answer{Status: 200, Nonce: nonce, Revision: name, Image: r.spec.Image.String(), Key: r.spec.Key}
	if lie := r.behaves.Answer; lie != nil {
		return lie(a)
	}
	return a, nil
}

// SetTraffic implements deployer.Units.
func (c *Cluster) SetTraffic(ctx context.Context, f deployer.Fence, svcName string, shares []deployer.Share) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.write(ctx, f, svcName)
	if err != nil {
		return err
	}
	if svc == nil {
		return fmt.Errorf("service %s: %w", svcName, deployer.ErrNotFound)
	}
	sum := 0
	for _, s := range shares {
		sum += s.Percent
		if s.Percent < 0 || s.Percent > 100 {
			return fmt.Errorf("share of %s is %d %%", s.Revision, s.Percent)
		}
		if svc.revisions[s.Revision] == nil {
			return fmt.Errorf("revision %s: %w", s.Revision, deployer.ErrNotFound)
		}
	}
	if sum != 100 {
		return fmt.Errorf("shares of %s add up to %d", svcName, sum)
	}
	svc.traffic = slices.Clone(shares)
	return nil
}

// RestoreTemplate implements deployer.Units.
func (c *Cluster) RestoreTemplate(ctx context.Context, f deployer.Fence, s deployer.Spec, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.write(ctx, f, s.Name)
	if err != nil {
		return err
	}
	if svc == nil || svc.revisions[name] == nil {
		return fmt.Errorf("revision %s: %w", name, deployer.ErrNotFound)
	}
	svc.template = name
	return nil
}

// RemoveRevision implements deployer.Units.
func (c *Cluster) RemoveRevision(ctx context.Context, f deployer.Fence, svcName, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.write(ctx, f, svcName)
	if err != nil || svc == nil {
		return err
	}
	delete(svc.revisions, name)
	svc.traffic = slices.DeleteFunc(svc.traffic, func(t deployer.Share) bool { return t.Revision == name && t.Percent == 0 })
	return nil
}

// RemoveService implements deployer.Units.
func (c *Cluster) RemoveService(ctx context.Context, f deployer.Fence, svcName string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.write(ctx, f, svcName)
	if err != nil || svc == nil {
		return err
	}
	delete(c.services, f.Scope.Namespace+"/"+svcName)
	return nil
}

// Logs implements deployer.Units.
func (c *Cluster) Logs(ctx context.Context, scope deployer.Scope, svcName, name string, n int) ([]string, error) {
	r, err := c.revision(scope, svcName, name)
	if err != nil {
		return nil, err
	}
	lines := []string{"starting " + name}
	if f := r.behaves.Failure; f != nil {
		lines = append(lines, f.Logs...)
	}
	return lines[max(0, len(lines)-n):], ctx.Err()
}
