package stages

import (
	"fmt"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/project"
)

// projectPolicy is the bundle's policy as faas.yml is read under it.
func projectPolicy(p bundle.Policy) project.Policy {
	out := project.Policy{Bases: p.Bases, Tiers: map[project.Tier]project.TierPolicy{}}
	for name, t := range p.Tiers {
		d, l := t.Defaults, t.Limits
		tp := project.TierPolicy{
			Defaults: project.Defaults{
				CPU: d.CPU, Timeout: text(d.Timeout), InitTimeout: text(d.InitTimeout),
				MinScale: d.MinScale, MaxScale: d.MaxScale,
			},
			Limits: project.Limits{
				MaxMemory: l.Memory, MaxCPU: l.CPU, MaxTimeout: text(l.Timeout),
				MaxConcurrency: l.Concurrency, MinScale: l.MinScale, MaxScale: l.MaxScale,
			},
		}
		// The policy's word holds for every language; the entry "" is the
		// fallback of languages that have none of their own.
		if d.Memory != "" {
			tp.Defaults.Memory = map[string]string{"node": d.Memory, "python": d.Memory, "": d.Memory}
		}
		if d.Concurrency != 0 {
			tp.Defaults.Concurrency = map[string]int{"": d.Concurrency}
		}
		out.Tiers[project.Tier(name)] = tp
	}
	return out
}

// text is a duration as faas.yml writes it; empty for none.
func text(d bundle.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprint(project.Duration(d))
}
