package stages

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/deployer"
)

// Preflight is what the target says of a plan before anything is written:
// namespace, rights, quota, secrets, images. The deploy asks again.
type Preflight struct {
	// Checked says that the target was asked and has answered; otherwise Why
	// says why not.
	Checked bool   `json:"checked"`
	Why     string `json:"why,omitempty"`
	// Problems are everything that the target holds against the plan, with the
	// access that this plan was made with.
	Problems []*deployer.Failure `json:"problems,omitempty"`
}

// preflightTime bounds the questions: a plan without the answers is still one.
const preflightTime = 20 * time.Second

// preflight asks the target about the plan's units. One that has no image yet
// is asked about with its runtime's base, and nothing is said of its image.
func (s *state) preflight(ctx context.Context, plan DeployPlan, build BuildPlan, site bundle.Site) Preflight {
	ctx, cancel := context.WithTimeout(ctx, preflightTime)
	defer cancel()
	t, err := s.open(ctx)
	if err != nil {
		return Preflight{Why: err.Error()}
	}
	unbuilt := map[string]bool{} // by unit
	runtime := map[string]string{}
	for _, img := range build.Images {
		for _, u := range img.Units {
			runtime[u] = img.Runtime
		}
	}
	units := slices.Clone(plan.Deploy.Units)
	bases := map[string]name.Digest{} // by runtime: parsed once for thousands of units
	for i := range units {
		u := &units[i]
		if u.Image != (name.Digest{}) {
			continue
		}
		unbuilt[u.Unit] = true
		base, ok := bases[runtime[u.Unit]]
		if !ok {
			if base, err = name.NewDigest(site.Cluster.Image(s.Bundle.Meta.Runtimes[runtime[u.Unit]].Base)); err != nil {
				return Preflight{Why: "unit " + u.Unit + " has no image yet"}
			}
			bases[runtime[u.Unit]] = base
		}
		u.Image = base
	}
	err = t.Preflight(ctx, plan.Deploy.Scope, units)
	out := Preflight{Checked: true}
	for _, f := range deployer.Failures(err) {
		if unbuilt[f.Unit] && slices.Contains(imageCodes, f.Code) {
			continue // the base's, not the unit's
		}
		out.Problems = append(out.Problems, f)
	}
	if err == nil || len(deployer.Failures(err)) > 0 {
		return out
	}
	if errors.Is(err, deployer.ErrForeign) {
		out.Problems = []*deployer.Failure{{Code: deployer.Denied, Cause: err.Error(), Next: "choose another service name or namespace"}}
		return out
	}
	return Preflight{Why: err.Error()}
}

// imageCodes are the causes that are about an image alone.
var imageCodes = []deployer.Code{deployer.ImageMissing, deployer.ImageUnauthorized, deployer.ImageUnusable, deployer.ImageUnreachable}

// rows are the problems as a table: unit, cause, what to do.
func (p Preflight) rows() [][]string {
	var rows [][]string
	for _, f := range p.Problems {
		rows = append(rows, []string{f.Unit, string(f.Code), f.Cause, f.Next})
	}
	return rows
}

// remark is the line for what was not checked, or for a plan with nothing
// against it; empty where the problems say it.
func (p Preflight) remark() string {
	switch {
	case !p.Checked:
		return "preflight: none" + because(p.Why) + "; the deploy checks rights, secrets, quota and images before it writes"
	case len(p.Problems) == 0:
		return "preflight: the target holds nothing against it"
	}
	return ""
}
