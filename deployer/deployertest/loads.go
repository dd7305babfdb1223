package deployertest

import (
	"context"
	"fmt"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// pods is how many instances of r are Ready now.
func (c *Cluster) pods(r *revision) int {
	if phase, _, _ := c.phase(r); phase != deployer.Ready {
		return 0
	}
	n := max(1, r.behaves.Pods)
	if r.floor > n && time.Since(r.raised) >= r.behaves.Delay {
		return r.floor
	}
	return n
}

// Instances implements deployer.Loads.
func (c *Cluster) Instances(ctx context.Context, scope deployer.Scope, svcName, name string) (int, error) {
	r, err := c.revision(scope, svcName, name)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pods(r), ctx.Err()
}

// SetFloor implements deployer.Loads.
func (c *Cluster) SetFloor(ctx context.Context, f deployer.Fence, svcName, name string, n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	svc, err := c.write(ctx, f, svcName)
	if err != nil {
		return err
	}
	if svc == nil || svc.revisions[name] == nil {
		return fmt.Errorf("revision %s: %w", name, deployer.ErrNotFound)
	}
	r := svc.revisions[name]
	if m := r.spec.MaxScale; m > 0 {
		n = min(n, m)
	}
	if n > r.floor {
		r.raised = time.Now()
	}
	r.floor = n
	return nil
}

// Ask implements deployer.Loads.
func (c *Cluster) Ask(ctx context.Context, scope deployer.Scope, svcName, name string, q deployer.Request) (deployer.Reply, error) {
	r, err := c.revision(scope, svcName, name)
	if err != nil {
		return deployer.Reply{}, err
	}
	switch {
	case ctx.Err() != nil:
		return deployer.Reply{}, context.Cause(ctx)
	case r.behaves.Reply != nil:
		return r.behaves.Reply(q)
	}
	return deployer.Reply{Status: 200}, nil
}

// Measure implements deployer.Loads.
func (c *Cluster) Measure(ctx context.Context, scope deployer.Scope, svcName, name string) ([]analysis.Counts, error) {
	r, err := c.revision(scope, svcName, name)
	if err != nil {
		return nil, err
	}
	if r.behaves.Count == nil {
		return nil, fmt.Errorf("revision %s counts nothing: %w", name, deployer.ErrNotFound)
	}
	return r.behaves.Count(), ctx.Err()
}
