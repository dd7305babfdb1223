package stages

import (
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

// refuse is the error for a faas.yml that asks for what can't be applied.
func refuse(p *project.Project) error {
	if problems := unsupported(p); len(problems) > 0 {
		return &usererr.Error{Code: usererr.CodeProjectRefused, Problems: problems}
	}
	return nil
}

// unsupported names every field of a valid faas.yml that this runner can't
// apply yet. A field that means protection or a trigger and is not applied
// would be a hole, so the plan refuses it; it is never skipped quietly.
func unsupported(p *project.Project) []usererr.Problem {
	var out []usererr.Problem
	no := func(path, what string) {
		at := p.Problem(path, project.CodePlanned, what+" is not supported by this platform version yet", "")
		out = append(out, usererr.Problem{Why: at.String()})
	}
	for _, f := range p.Functions {
		at := "functions." + f.Name
		if f.Kind == project.KindJob {
			no(at+".kind", "kind: job")
		}
		if len(f.Timers) > 0 {
			no(at+".events", "a timer event")
		}
		if len(f.Triggers) > 0 {
			no(at+".events", "a cloudevent event")
		}
		for _, r := range f.Routes {
			if r.Auth != "" && r.Auth != "none" {
				no(at+".events.http.auth", "auth: "+r.Auth)
			}
			if r.CORS != nil {
				no(at+".events.http.cors", "cors")
			}
		}
		if f.Contract != "event" && f.Contract != "http" {
			no(at+".contract", "contract: "+f.Contract)
		}
		if f.EventFormat != "" {
			no(at+".eventFormat", "eventFormat")
		}
		if f.IdleTimeout != 0 {
			no(at+".idleTimeout", "idleTimeout")
		}
	}
	for _, u := range p.Units {
		at := "functions." + u.Functions[0].Name
		if len(u.Secrets) > 0 {
			no(at+".secrets", "secrets")
		}
		if len(u.Config) > 0 {
			no(at+".config", "config")
		}
		if len(u.Layers) > 0 {
			no(at+".layers", "layers")
		}
		if u.Scale.Metric != "" && u.Scale.Metric != "concurrency" {
			no(at+".scale.metric", "scale.metric: "+u.Scale.Metric)
		}
		if u.Scale.Target != 0 {
			no(at+".scale.target", "scale.target")
		}
		if u.Isolation == "worker" {
			no("aggregation."+u.Name+".isolation", "isolation: worker")
		}
		if u.Build.Builder == "none" {
			no(at+".build.builder", "build.builder: none")
		}
		if u.Build.Base != "" {
			no(at+".build.base", "build.base")
		}
		if len(u.Build.Secrets) > 0 {
			no(at+".build.secrets", "build.secrets")
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
	if s := p.Rollout.Strategy; s != "direct" {
		no("rollout.strategy", "strategy: "+s)
	}
	if len(p.Rollout.Verify) > 0 {
		no("rollout.verify", "verify")
	}
	if p.Preview != nil {
		no("preview", "preview")
	}
	if p.Platform.RuntimeUpdate == "withCode" {
		no("platform.runtimeUpdate", "runtimeUpdate: withCode")
	}
	return out
}
