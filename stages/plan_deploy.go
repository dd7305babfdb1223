package stages

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

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
	Changes []Change `json:"changes"`
	// Observed is what Changes were decided against: [ObservedLive], "release
	// ID", or [ObservedNone] without access to the cluster, as in merge
	// requests. ObservedWhy says what stood in the way.
	Observed    string `json:"observed"`
	ObservedWhy string `json:"observedWhy,omitempty"`
	// Unbuilt are the images that don't exist yet. A plan with any can't be
	// deployed, and does not know the names of their units' revisions.
	Unbuilt []string `json:"unbuilt,omitempty"`
	// Preflight is what the target says of it, for a plan that people read; nil
	// in a pipeline, whose deploy asks before it writes.
	Preflight *Preflight `json:"preflight,omitempty"`
	// RollbackTo is the release that a rollback of this deploy returns to.
	RollbackTo string `json:"rollbackTo,omitempty"`
	// Routes are the addresses the functions answer at below their unit's URL.
	Routes []PlannedRoute `json:"routes,omitempty"`
	// Timers call functions by the clock.
	Timers []PlannedTimer `json:"timers,omitempty"`
}

// What Changes were decided against.
const (
	ObservedLive = "live"
	ObservedNone = "none"
)

// Change is one unit's part of a plan.
type Change struct {
	Unit    string `json:"unit"`
	Service string `json:"service"`
	Action  Action `json:"action"`
	// Why is the text of Causes, on one line.
	Why    string  `json:"why,omitempty"`
	Causes []Cause `json:"causes,omitempty"`
	// From and To are revisions. To is empty where the image is not built yet.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Action is what a plan does to a unit.
type Action string

// The actions. Move is a creation or an update by which a function comes from
// another unit; its route is switched once the new place has proven itself.
const (
	Create    = Action(deployer.Create)
	Update    = Action(deployer.Update)
	Unchanged = Action(deployer.Unchanged)
	Remove    = Action(deployer.Remove)
	Move      = Action("move")
	// Unknown is every unit's without access to the cluster.
	Unknown = Action("unknown")
)

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
		if c.Action != Unchanged {
			return true
		}
	}
	return slices.ContainsFunc(p.Timers, func(t PlannedTimer) bool { return t.Action != Unchanged })
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
	// Unbuilt allows images that are missing in Images: the plan is for
	// reading, not for deploying.
	Unbuilt bool
	// Now is when the plan is made, for the next times of timers; the zero time
	// leaves them out.
	Now time.Time
	// Services are as in [deployer.Plan].
	Services []string
}

// PlanDeploy translates the project into what should run, and compares.
func PlanDeploy(in DeployInput) (DeployPlan, error) {
	plan := DeployPlan{Version: 1, Observed: ObservedNone, Deploy: deployer.Plan{
		Scope:  in.Scope,
		Commit: in.Job.Commit.SHA, Pipeline: in.Job.Pipeline.IID, Bundle: in.Bundle,
		CreatedBy: in.Job.URL, Policy: policyOf(in.Project), Services: in.Services, Inputs: map[string]map[string]string{},
	}}
	state := deployer.State{}
	if in.Observed != nil {
		state, plan.Observed = *in.Observed, ObservedLive
		plan.RollbackTo = state.Head.Live
	}
	live := liveUnits(state.Live)
	imageOf := map[string]PlannedImage{}
	for _, img := range in.Build.Images {
		for _, u := range img.Units {
			imageOf[u] = img
		}
	}
	unbuilt := map[string]bool{} // by service
	missing := map[string]bool{} // by image
	for _, u := range in.Project.Units {
		img, ok := imageOf[u.Name]
		ref, built := in.Images[img.Name]
		if !built && in.Unbuilt && ok {
			// Equal inputs make an equal image.
			if l := live[u.ServiceName]; l.Spec.Key == img.Key {
				ref, built = l.Spec.Image, true
			} else {
				unbuilt[u.ServiceName] = true
				if !missing[img.Name] {
					missing[img.Name], plan.Unbuilt = true, append(plan.Unbuilt, img.Name)
				}
			}
		}
		if !ok || !built && !in.Unbuilt {
			return DeployPlan{}, fmt.Errorf("unit %s has no image: the build plan is another project's or environment's", u.Name)
		}
		key, inputs := img.Key, img.record()
		if l, ok := live[u.ServiceName]; ok && in.Build.CommandSkipped && l.Spec.Image == ref {
			// They were not looked at again, and the image says that they are equal.
			key, inputs = l.Spec.Key, l.Inputs
		}
		spec, err := specOf(u, key, ref, state.Versions)
		if err != nil {
			return DeployPlan{}, err
		}
		plan.Deploy.Units = append(plan.Deploy.Units, spec)
		plan.Deploy.Inputs[u.ServiceName] = inputs
		for _, f := range u.Functions {
			for _, r := range f.Routes {
				plan.Routes = append(plan.Routes, PlannedRoute{f.Name, u.Name, r.Path, r.Methods})
			}
		}
	}
	plan.Deploy.Timers = timersOf(in.Project)
	if in.Observed == nil {
		plan.Timers = planTimers(plan.Deploy, nil, unbuilt, state, false, in.Now)
		plan.Changes = []Change{}
		for _, u := range plan.Deploy.Units {
			plan.Changes = append(plan.Changes, Change{Unit: u.Unit, Service: u.Name, Action: Unknown})
		}
		return plan, nil
	}
	plan.Changes = explain(in.Project, plan.Deploy, state, unbuilt)
	plan.Timers = planTimers(plan.Deploy, plan.Changes, unbuilt, state, true, in.Now)
	return plan, nil
}

// explain decides the changes and says why, in the developer's words.
func explain(p *project.Project, want deployer.Plan, state deployer.State, unbuilt map[string]bool) []Change {
	compare := comparison{now: placesNow(p), were: placesWere(state.Live)}
	live := liveUnits(state.Live)
	out := []Change{}
	for i, c := range deployer.Decide(want.Units, state) {
		to := Change{Unit: c.Unit, Service: c.Service, Action: Action(c.Action), From: c.From, To: c.To}
		was, known := live[c.Service]
		moved := false
		switch {
		case c.Action == deployer.Create && !known:
			to.Causes, moved = compare.created(p.Units[i])
		case c.Action == deployer.Update && was.Spec.Hash() != want.Units[i].Hash():
			to.Causes, moved = compare.causes(was, want.Units[i], want.Inputs[c.Service])
		case c.Action == deployer.Remove:
			to.Causes = compare.removed(was)
		case c.Action != deployer.Unchanged:
			to.Causes = []Cause{{CauseTarget, c.Why}}
		}
		if moved {
			to.Action = Move
		}
		if unbuilt[c.Service] {
			to.To = ""
		}
		to.Why = causeText(to.Causes)
		out = append(out, to)
	}
	return out
}

// specOf is the unit as the deployer takes it. It carries nothing that differs
// between equal deploys: no release, commit or bundle. versions are those of
// the Secrets and ConfigMaps there are.
func specOf(u project.Unit, key string, image name.Digest, versions map[deployer.Source]string) (deployer.Spec, error) {
	table := runtimes.Unit{Name: u.Name, Functions: []runtimes.Function{}}
	for _, f := range u.Functions {
		row := runtimes.Function{
			Name: f.Name, Handler: f.Handler, Contract: f.Contract,
			TimeoutMs: f.Timeout.Std().Milliseconds(), Concurrency: f.Concurrency,
			Environment: f.Environment,
		}
		if f.Job != nil {
			row.TimeoutMs, row.Concurrency = f.Job.Timeout.Std().Milliseconds(), 0
			row.Job = &runtimes.Job{Completions: f.Job.Completions, Parallelism: f.Job.Parallelism}
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
	spec := deployer.Spec{
		Name: u.ServiceName, Unit: u.Name, Image: image, Key: key, Table: string(data),
		Environment: u.Environment, Memory: string(u.Memory), CPU: string(u.CPU), Concurrency: u.Concurrency,
		Timeout: u.Timeout.Std(), InitTimeout: u.InitTimeout.Std(), IdleTimeout: u.IdleTimeout.Std(),
		MinScale: u.Scale.Min, MaxScale: u.Scale.Max, ScaleTarget: u.Scale.Target,
		Internal: u.Network == "internal", Secrets: refs(u.Secrets), Config: refs(u.Config),
	}
	if f, ok := appOf(u); ok {
		// No adapter will set the function's own variables.
		spec.Server, spec.Environment = true, f.Environment
	}
	if u.Job {
		j := u.Functions[0].Job
		spec.Job = &deployer.Job{Completions: j.Completions, Parallelism: j.Parallelism, Retries: j.Retries, Timeout: j.Timeout.Std(), TTL: j.TTL.Std()}
		// What only a server has would make revisions that do the same.
		spec.Concurrency, spec.Timeout, spec.InitTimeout, spec.IdleTimeout = 0, 0, 0, 0
		spec.MinScale, spec.MaxScale, spec.ScaleTarget, spec.Internal, spec.Server = 0, 0, 0, false, false
	}
	for _, f := range u.Functions {
		spec.Timed = spec.Timed || !u.Job && len(f.Timers) > 0
	}
	if u.Scale.Metric != "concurrency" && !u.Job { // the default has no name, so that older revisions keep theirs
		spec.ScaleMetric = u.Scale.Metric
	}
	for _, source := range spec.Sources() {
		if v, ok := versions[source]; ok {
			if spec.Versions == nil {
				spec.Versions = map[deployer.Source]string{}
			}
			spec.Versions[source] = v
		}
	}
	return spec, nil
}

// refs are the project's references as the deployer takes them; nil for none.
func refs(in map[string]project.Ref) map[string]deployer.Ref {
	var out map[string]deployer.Ref
	for n, r := range in {
		if out == nil {
			out = map[string]deployer.Ref{}
		}
		out[n] = deployer.Ref{Name: r.Name, Key: r.Key, Path: r.Path}
	}
	return out
}

// sources are the Secrets and ConfigMaps that the project's units read.
func sources(p *project.Project) []deployer.Source {
	var all []deployer.Source
	for _, u := range p.Units {
		all = append(all, deployer.Spec{Secrets: refs(u.Secrets), Config: refs(u.Config)}.Sources()...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// String is the plan as a readable table.
func (p DeployPlan) String() string {
	var b strings.Builder
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "%-10s %-24s %s", c.Action, c.Service, c.Why)
		if c.To != "" && c.Action != Unchanged && c.Action != Remove {
			fmt.Fprintf(&b, " → %s", c.To)
		}
		b.WriteByte('\n')
	}
	section(&b, "timers", timerRows(p.Timers))
	switch {
	case p.Observed == ObservedNone:
		b.WriteString("observed: none" + because(p.ObservedWhy) + "; the deploy compares with what is live\n")
	case p.Observed != ObservedLive:
		fmt.Fprintf(&b, "compared with %s\n", p.Observed)
	}
	if p.RollbackTo != "" && p.Changed() {
		fmt.Fprintf(&b, "a rollback returns to %s\n", p.RollbackTo)
	}
	return b.String()
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}

// redecided says what a deploy did otherwise than this plan, which was made
// before it held the lease.
func (p DeployPlan) redecided(done []deployer.Change) []string {
	planned := map[string]Change{}
	for _, c := range p.Changes {
		planned[c.Service] = c
	}
	var out []string
	for _, d := range done {
		c := planned[d.Service]
		delete(planned, d.Service)
		was := c.Action
		if was == Move {
			was = Create
			if c.From != "" {
				was = Update
			}
		}
		if was != Unknown && (was != Action(d.Action) || c.To != d.To && d.Action != deployer.Remove) {
			out = append(out, fmt.Sprintf("%s: planned %s %s, now %s %s", d.Service, or(string(c.Action), "nothing"), c.To, d.Action, d.To))
		}
	}
	for _, c := range p.Changes {
		if _, left := planned[c.Service]; left {
			out = append(out, fmt.Sprintf("%s: planned %s, now nothing", c.Service, c.Action))
		}
	}
	return out
}
