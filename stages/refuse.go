package stages

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

// refuse is the error for a faas.yml that asks for what can't be applied at
// the site.
func refuse(p *project.Project, at bundle.Site) error {
	return refused(slices.Concat(unsupported(p), unsupportedAt(p, at)))
}

func refused(problems []project.Problem) error {
	if len(problems) == 0 {
		return nil
	}
	e := &usererr.Error{Code: usererr.CodeProjectRefused}
	for _, p := range problems {
		e.Problems = append(e.Problems, usererr.Problem{Why: p.String(), Next: p.Next})
	}
	return e
}

// unsupported names every field of a valid faas.yml that this runner can't
// apply yet, in the order of the file. A field that means protection or a
// trigger and is not applied would be a hole, so the plan refuses it; it is
// never skipped quietly.
func unsupported(p *project.Project) []project.Problem {
	var out []project.Problem
	no := func(path, what string) {
		at := p.Problem(path, project.CodePlanned, "not supported by this platform version yet: "+what, "")
		// What provider says is merged into every function: it is named once.
		if !slices.ContainsFunc(out, func(o project.Problem) bool {
			return o.Line > 0 && o.Line == at.Line && o.Column == at.Column && o.Why == at.Why
		}) {
			out = append(out, at)
		}
	}
	for _, f := range p.Functions {
		at := "functions." + f.Name
		if f.Kind == project.KindJob && f.Contract != "event" && f.Contract != "app" {
			no(at+".contract", "a job with contract: "+f.Contract)
		}
		// A server needs no adapter, only its language's base.
		if _, ok := launchers[f.Language]; !ok && f.Contract != "app" {
			no(at+".runtime", "runtime "+f.Runtime+" (no adapter for "+f.Language+")")
		}
		// The adapter takes a timer's call, and knows it by its key.
		if f.Kind != project.KindJob && f.Contract != "event" {
			for _, e := range events(p, f, "timer", len(f.Timers)) {
				no(e, "a timer event of a function with contract: "+f.Contract)
			}
		}
		for _, e := range events(p, f, "cloudevent", len(f.Triggers)) {
			no(e, "a cloudevent event")
		}
		for i, e := range events(p, f, "http", len(f.Routes)) {
			r := f.Routes[i]
			if r.Auth != "" && r.Auth != "none" {
				no(eventOr(p, e, "auth", "routes.auth"), "auth: "+r.Auth)
			}
			if r.CORS != nil {
				no(eventOr(p, e, "cors", "routes.cors"), "cors")
			}
		}
		if !slices.Contains([]string{"event", "http", "app"}, f.Contract) {
			no(at+".contract", "contract: "+f.Contract)
		}
		if f.EventFormat != "" {
			no(at+".eventFormat", "eventFormat")
		}
	}
	for _, u := range p.Units {
		at := "functions." + u.Functions[0].Name
		if len(u.Layers) > 0 && u.Build.Builder != "layer" {
			no(at+".layers", "layers with build.builder: "+u.Build.Builder)
		}
		if u.Isolation == "worker" {
			no("aggregation."+u.Name+".isolation", "isolation: worker")
		}
		if _, app := appOf(u); u.Build.Builder == "none" && !app {
			no(at+".build.builder", "build.builder: none with another contract than app")
		}
		if u.Build.Builder == "none" && !strings.Contains(u.Build.Image, "@sha256:") {
			no(at+".build.image", "an image by tag; write its digest, "+u.Build.Image+"@sha256:…")
		}
		if base := u.Build.Base; base != "" && u.Build.Builder == "layer" {
			if !strings.Contains(base, "@sha256:") {
				no(at+".build.base", "a base by tag; write its digest, "+base+"@sha256:…")
			}
			if len(u.Layers) > 0 {
				no(at+".layers", "built-in layers on another base than the runtime's, for which they were made")
			}
		}
		if u.Build.Install != "" && u.Build.Install != "npm ci" {
			no(at+".build.install", "an install command other than npm ci")
		}
	}
	if p.Routes.Host != "" {
		no("routes.host", "a gateway route")
	}
	for _, pl := range p.Plugins {
		no("plugins", "plugin "+pl.Name)
	}
	if p.Preview != nil {
		no("preview", "preview")
	}
	if p.Platform.RuntimeUpdate == "withCode" {
		no("platform.runtimeUpdate", "runtimeUpdate: withCode")
	}
	asWritten(p, out)
	inFileOrder(out)
	return out
}

func inFileOrder(problems []project.Problem) {
	slices.SortStableFunc(problems, func(a, b project.Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// featureHPA is the feature of clusters whose Knative has the HPA autoscaler
// and whose nodes report what they use.
const featureHPA = "hpa"

// unsupportedAt names the fields that work elsewhere and not at the site.
func unsupportedAt(p *project.Project, at bundle.Site) []project.Problem {
	var out []project.Problem
	no := func(u project.Unit, field, why, next string) {
		problem := p.Problem("functions."+u.Functions[0].Name+"."+field, project.CodeConflict, why, next)
		if !slices.ContainsFunc(out, func(o project.Problem) bool {
			return o.Line > 0 && o.Line == problem.Line && o.Column == problem.Column
		}) {
			out = append(out, problem)
		}
	}
	for _, u := range p.Units {
		if at.Cluster.Kind == bundle.KindLocal {
			const next = "leave it out for this environment, or use one on a cluster"
			if len(u.Secrets) > 0 {
				no(u, "secrets", "the local target has no secrets", next)
			}
			if len(u.Config) > 0 {
				no(u, "config", "the local target has no config maps", next)
			}
			if u.Network == "internal" && p.Routes.Host == "" && !u.Job { // a job has no address to hide
				no(u, "network", "the local target has no inside that hides a unit", next)
			}
			continue
		}
		if at.Cluster.Kind == bundle.KindDirectory {
			const next = "leave it out for this environment, or deploy to the cluster itself"
			if len(u.Secrets) > 0 {
				no(u, "secrets", "a folder of manifests does not know the versions of secrets", next)
			}
			if len(u.Config) > 0 {
				no(u, "config", "a folder of manifests does not know the versions of config maps", next)
			}
			continue
		}
		if u.Scale.Metric == "cpu" && !u.Job && !at.Cluster.Has(featureHPA) {
			no(u, "scale.metric", fmt.Sprintf("cluster %s does not scale by CPU", at.Name),
				"use concurrency or rps, or ask the platform team for feature "+featureHPA+" in clusters.yml")
		}
	}
	out = append(out, badQueries(p, at)...)
	if at.Cluster.Kind == bundle.KindDirectory {
		out = append(out, needsLive(p)...)
	}
	asWritten(p, out)
	inFileOrder(out)
	return out
}

// needsLive names what of the rollout can't be done where manifests are
// written and something else applies them.
func needsLive(p *project.Project) []project.Problem {
	const why, next = "needs a live cluster, and this environment's target is a folder of manifests", "leave it out for this environment, or deploy to the cluster itself"
	var out []project.Problem
	if s := p.Rollout.Strategy; s != deployer.Direct && s != "" {
		out = append(out, p.Problem("rollout.strategy", project.CodeConflict, "strategy "+s+" "+why, next))
	}
	if len(p.Rollout.Verify) > 0 {
		out = append(out, p.Problem("rollout.verify", project.CodeConflict, "verify "+why, next))
	}
	return out
}

// badQueries names the queries of an analysis that can't be asked.
func badQueries(p *project.Project, at bundle.Site) []project.Problem {
	if p.Rollout.Analysis == nil {
		return nil
	}
	var out []project.Problem
	for i, q := range p.Rollout.Analysis.Queries {
		path := fmt.Sprintf("rollout.analysis.queries[%d].query", i)
		if at.Cluster.Prometheus == "" {
			out = append(out, p.Problem(path, project.CodeConflict, "cluster "+at.Name+" has no metrics to query",
				"leave queries out, or ask the platform team to set prometheus in clusters.yml"))
		}
		if err := (analysis.Query{Name: q.Name, Query: q.Query}).Check(); err != nil {
			out = append(out, p.Problem(path, project.CodeConflict, err.Error(), "write a variable as {{revision}}"))
		}
	}
	return out
}

// needsApproval says what of the rollout waits for a person; empty: nothing.
func needsApproval(p *project.Project) (path, what string) {
	if p.Rollout.Strategy == deployer.Manual {
		return "rollout.strategy", "strategy: manual"
	}
	if p.Rollout.Strategy == deployer.Canary {
		for i, s := range p.Rollout.Steps {
			if s.Approval {
				return fmt.Sprintf("rollout.steps[%d].pause", i), "pause: approval"
			}
		}
	}
	return "", ""
}

// graphApproval is the template's graph whose promotion is a job of its own,
// which a person starts.
const graphApproval = "approval"

// checkGraph asserts that the pipeline has the jobs that the rollout needs:
// GitLab fixed them before it could read faas.yml.
func checkGraph(p *project.Project, graph string) error {
	path, what := needsApproval(p)
	if what == "" || graph == "" || graph == graphApproval {
		return nil
	}
	inputs := "environment: " + p.Environment.Name
	if b := p.Environment.Branch; b != "" {
		inputs += ", branch: " + b
	}
	if t := p.Environment.Tag; t != "" {
		inputs += ", tag: " + t
	}
	return &usererr.Error{
		Code: usererr.CodeEnvironment,
		Err:  errors.New(p.Problem(path, project.CodeConflict, fmt.Sprintf("%s waits for a person, and this pipeline (graph: %s) has no job for that", what, graph), "").String()),
		Next: "in .gitlab-ci.yml, include the template with inputs: {" + inputs + ", graph: approval}",
	}
}

// events are the paths of a function's n events of one kind, in file order.
func events(p *project.Project, f project.Function, kind string, n int) []string {
	var out []string
	for i := 0; len(out) < n && i < maxEvents; i++ {
		at := fmt.Sprintf("functions.%s.events[%d]", f.Name, i)
		if written(p, at, kind) {
			out = append(out, at+"."+kind)
		}
	}
	for len(out) < n { // positions are for people: without one, name the list
		out = append(out, "functions."+f.Name+".events")
	}
	return out
}

// maxEvents bounds the search; the parser allows fewer.
const maxEvents = 1000

// written reports whether the map at path has the key, judged by where its
// value stands.
func written(p *project.Project, path, key string) bool {
	line, column := p.Position(path)
	l, c := p.Position(path + "." + key)
	return l != line || c != column
}

// eventOr is the event's own key, or the place of its default.
func eventOr(p *project.Project, event, key, fallback string) string {
	if written(p, event, key) {
		return event + "." + key
	}
	return fallback
}

// asWritten gives problems with merged values the path that the file has:
// provider.secrets, not functions.list.secrets.
func asWritten(p *project.Project, problems []project.Problem) {
	if len(problems) == 0 {
		return
	}
	layers := map[string]string{}
	for _, o := range p.Origins() {
		// A map's layer is that of what it holds.
		for at := o.Path; at != ""; at = at[:max(0, strings.LastIndexByte(at, '.'))] {
			if _, seen := layers[at]; !seen || at == o.Path {
				layers[at] = o.Layer
			}
		}
	}
	for i, problem := range problems {
		parts := strings.SplitN(problem.Path, ".", 3)
		if len(parts) < 3 || parts[0] != "functions" {
			continue
		}
		switch layer := layers[problem.Path]; {
		case layer == "build" || layer == "layers":
			problems[i].Path = parts[2]
		case layer != "" && layer != "platform default" && layer != "functions."+parts[1]:
			problems[i].Path = layer + "." + parts[2]
		}
	}
}
