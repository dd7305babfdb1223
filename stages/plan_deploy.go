package stages

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/project"
	"github.com/kuroko-faas/kuroko/runtimes"
)

// DeployPlan says what a deploy would change, and why. It is pure: equal
// inputs, equal plan. The deploy itself decides again under the lease.
type DeployPlan struct {
	Version int `json:"version"` // 1
	// Deploy is what should be live: the deployer's input.
	Deploy deployer.Plan `json:"deploy"`
	// Changes compare it with what is live.
	Changes []deployer.Change `json:"changes"`
	// Observed is "live" when Changes were decided against the cluster, "none"
	// without access to it.
	Observed string `json:"observed"`
	// RollbackTo is the release that a rollback of this deploy returns to.
	RollbackTo string `json:"rollbackTo,omitempty"`
	// Routes are the addresses the functions answer at below their unit's URL.
	Routes []PlannedRoute `json:"routes,omitempty"`
}

// PlannedRoute is one http event of a function.
type PlannedRoute struct {
	Function string   `json:"function"`
	Unit     string   `json:"unit"`
	Path     string   `json:"path"`
	Methods  []string `json:"methods,omitempty"`
}

// Changed reports whether the plan does anything.
func (p DeployPlan) Changed() bool {
	for _, c := range p.Changes {
		if c.Action != deployer.Unchanged {
			return true
		}
	}
	return false
}

// DeployInput is everything a DeployPlan is made of.
type DeployInput struct {
	Job     ci.Job
	Scope   deployer.Scope
	Project *project.Project
	Bundle  string // digest, provenance only
	Build   BuildPlan
	Images  map[string]name.Digest // by planned image
	// Observed is nil without access to the cluster.
	Observed *deployer.State
}

// PlanDeploy translates the project into what should run, and compares.
func PlanDeploy(in DeployInput) (DeployPlan, error) {
	plan := DeployPlan{Version: 1, Observed: "none", Deploy: deployer.Plan{
		Scope:  in.Scope,
		Commit: in.Job.Commit.SHA, Pipeline: in.Job.Pipeline.IID, Bundle: in.Bundle,
		CreatedBy: in.Job.URL, Strategy: in.Project.Rollout.Strategy,
	}}
	imageOf := map[string]PlannedImage{}
	for _, img := range in.Build.Images {
		for _, u := range img.Units {
			imageOf[u] = img
		}
	}
	for _, u := range in.Project.Units {
		img, ok := imageOf[u.Name]
		ref, built := in.Images[img.Name]
		if !ok || !built {
			return DeployPlan{}, fmt.Errorf("unit %s has no image: the build plan is another project's or environment's", u.Name)
		}
		spec, err := specOf(u, img.Key, ref)
		if err != nil {
			return DeployPlan{}, err
		}
		plan.Deploy.Units = append(plan.Deploy.Units, spec)
		for _, f := range u.Functions {
			for _, r := range f.Routes {
				plan.Routes = append(plan.Routes, PlannedRoute{f.Name, u.Name, r.Path, r.Methods})
			}
		}
	}
	state := deployer.State{}
	if in.Observed != nil {
		state, plan.Observed = *in.Observed, "live"
		plan.RollbackTo = state.Head.Live
	}
	plan.Changes = deployer.Decide(plan.Deploy.Units, state)
	return plan, nil
}

// specOf is the unit as the deployer takes it. It carries nothing that differs
// between equal deploys: no release, commit or bundle.
func specOf(u project.Unit, key string, image name.Digest) (deployer.Spec, error) {
	table := runtimes.Unit{Name: u.Name, Functions: []runtimes.Function{}}
	for _, f := range u.Functions {
		row := runtimes.Function{
			Name: f.Name, Handler: f.Handler, Contract: f.Contract,
			TimeoutMs: f.Timeout.Std().Milliseconds(), Concurrency: f.Concurrency,
			Environment: f.Environment,
		}
		for _, r := range f.Routes {
			row.Routes = append(row.Routes, runtimes.Route{Path: r.Path, Methods: r.Methods, TimeoutMs: r.Timeout.Std().Milliseconds()})
		}
		table.Functions = append(table.Functions, row)
	}
	data, err := json.Marshal(table)
	if err != nil {
		return deployer.Spec{}, err
	}
	return deployer.Spec{
		Name: u.ServiceName, Unit: u.Name, Image: image, Key: key, Table: string(data),
		Environment: u.Environment, Memory: string(u.Memory), CPU: string(u.CPU), Concurrency: u.Concurrency,
		Timeout: u.Timeout.Std(), InitTimeout: u.InitTimeout.Std(),
		MinScale: u.Scale.Min, MaxScale: u.Scale.Max,
	}, nil
}

// String is the plan as a readable table.
func (p DeployPlan) String() string {
	var b strings.Builder
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "%-10s %-24s %s", c.Action, c.Service, c.Why)
		if c.To != "" && c.Action != deployer.Unchanged {
			fmt.Fprintf(&b, " → %s", c.To)
		}
		b.WriteByte('\n')
	}
	if p.RollbackTo != "" && p.Changed() {
		fmt.Fprintf(&b, "a rollback returns to %s\n", p.RollbackTo)
	}
	return b.String()
}
