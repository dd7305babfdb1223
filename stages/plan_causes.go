package stages

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/project"
	"github.com/kuroko-faas/kuroko/runtimes"
)

// Cause is one reason for a change, in the developer's words.
type Cause struct {
	Kind CauseKind `json:"kind"`
	Text string    `json:"text"` // "code of functions/quote", "setting memory: 256Mi → 512Mi"
}

// CauseKind sorts causes by who brought them about.
type CauseKind string

// The kinds, in the order a plan names them.
const (
	CauseFunctions   CauseKind = "functions" // added, moved, removed, their routes
	CauseCode        CauseKind = "code"
	CauseBuild       CauseKind = "build" // dependencies, build command
	CauseSetting     CauseKind = "setting"
	CauseEnvironment CauseKind = "environment"
	CausePlatform    CauseKind = "platform" // nobody changed the repository
	CauseTarget      CauseKind = "target"   // something happened to what runs
)

var causeOrder = []CauseKind{CauseFunctions, CauseCode, CauseBuild, CauseSetting, CauseEnvironment, CausePlatform, CauseTarget}

// The names of inputs that have a meaning here. Any other is a file or a
// setting of the build, and is its own explanation. Releases carry them: a
// renamed one shows as a change once.
const (
	inputCode       = "code"
	inputCodeOf     = "code of "
	inputRuntime    = "runtime" // its sum is the runtime's name
	inputPlatform   = "platform: "
	inputBase       = inputPlatform + "base image"
	inputAdapter    = inputPlatform + "adapter"
	inputBuildImage = inputPlatform + "build image"
	inputLayout     = inputPlatform + "image format"
)

// record is what a release remembers of an image's inputs: the beginning of
// their sums, and versions behind a space. It is enough to name what changed,
// not to prove anything.
func (i PlannedImage) record() map[string]string {
	out := make(map[string]string, len(i.Inputs))
	for _, in := range i.Inputs {
		out[in.Name] = in.Sum[:min(16, len(in.Sum))]
		if v := i.Versions[in.Name]; v != "" {
			out[in.Name] += " " + v
		}
	}
	return out
}

// liveUnits are a release's units by service; none of a nil release.
func liveUnits(r *deployer.Release) map[string]deployer.Live {
	out := map[string]deployer.Live{}
	if r != nil {
		for _, u := range r.Units {
			out[u.Spec.Name] = u
		}
	}
	return out
}

// inputCauses says what differs between two records of inputs. With regrouped,
// the unit has other functions than before, so a source folder that came or
// went is no cause of its own.
func inputCauses(was, now map[string]string, regrouped bool) []Cause {
	var out []Cause
	add := func(kind CauseKind, text string) { out = append(out, Cause{kind, text}) }
	if a, b := was[inputRuntime], now[inputRuntime]; a != b {
		add(CauseSetting, fmt.Sprintf("setting runtime: %s → %s", a, b))
	}
	split := false
	for n := range both(was, now) {
		split = split || strings.HasPrefix(n, inputCodeOf)
	}
	for _, n := range slices.Sorted(maps.Keys(both(was, now))) {
		a, before := was[n]
		b, after := now[n]
		a, from, _ := strings.Cut(a, " ")
		b, to, _ := strings.Cut(b, " ")
		if a == b && before == after || n == inputRuntime {
			continue
		}
		switch {
		case strings.HasPrefix(n, inputPlatform):
			// Another runtime brings another base and adapter along; a build
			// command that came or went, its image.
			if was[inputRuntime] == now[inputRuntime] && before && after {
				if from != "" && to != "" && from != to {
					n += " " + from + " → " + to
				}
				add(CausePlatform, n)
			}
		case n == inputCode && split:
			add(CauseCode, "shared code")
		case n == inputCode:
			add(CauseCode, n)
		case strings.HasPrefix(n, inputCodeOf):
			if before && after || !regrouped {
				add(CauseCode, n)
			}
		case !before:
			add(CauseBuild, n+" added")
		case !after:
			add(CauseBuild, n+" removed")
		default:
			add(CauseBuild, n)
		}
	}
	return inOrder(out)
}

func both[V any](a, b map[string]V) map[string]bool {
	out := make(map[string]bool, len(a)+len(b))
	for k := range a {
		out[k] = true
	}
	for k := range b {
		out[k] = true
	}
	return out
}

// inOrder sorts causes by kind and drops repetitions.
func inOrder(list []Cause) []Cause {
	var out []Cause
	for _, kind := range causeOrder {
		for _, c := range list {
			if c.Kind == kind && !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	return out
}

func causeText(list []Cause) string {
	text := make([]string, len(list))
	for i, c := range list {
		text[i] = c.Text
	}
	return strings.Join(text, ", ")
}

// places says which unit each function is in, by the names people use.
type places map[string]string

func placesNow(p *project.Project) places {
	out := places{}
	for _, u := range p.Units {
		for _, f := range u.Functions {
			out[f.Name] = u.Name
		}
	}
	return out
}

func placesWere(r *deployer.Release) places {
	out := places{}
	if r != nil {
		for _, u := range r.Units {
			for _, f := range table(u.Spec).Functions {
				out[f.Name] = u.Unit
			}
		}
	}
	return out
}

// table is the unit's handler table; empty when it is none of ours.
func table(s deployer.Spec) runtimes.Unit {
	var u runtimes.Unit
	if json.Unmarshal([]byte(s.Table), &u) != nil {
		return runtimes.Unit{}
	}
	return u
}

// comparison explains the changes between what is live and what a plan wants.
type comparison struct {
	now, were places
}

// causes says why a unit that both have is not the same. moved reports whether
// a function came from another unit.
func (c comparison) causes(live deployer.Live, spec deployer.Spec, made map[string]string) (list []Cause, moved bool) {
	add := func(kind CauseKind, format string, args ...any) {
		list = append(list, Cause{kind, fmt.Sprintf(format, args...)})
	}
	setting := func(name, a, b string) {
		if a != b {
			add(CauseSetting, "setting %s: %s → %s", name, or(a, "none"), or(b, "none"))
		}
	}
	was := live.Spec
	regrouped := false
	if was.Table != spec.Table {
		var texts []Cause
		texts, regrouped, moved = c.tableCauses(was, spec)
		list = append(list, texts...)
	}
	for _, k := range slices.Sorted(maps.Keys(both(was.Environment, spec.Environment))) {
		a, before := was.Environment[k]
		if b, after := spec.Environment[k]; a != b || before != after {
			add(CauseEnvironment, "environment %s", k)
		}
	}
	refCauses(add, "secret", was.Secrets, spec.Secrets, was.Versions, spec.Versions, deployer.SecretSource)
	refCauses(add, "config", was.Config, spec.Config, was.Versions, spec.Versions, deployer.ConfigSource)
	setting("memory", was.Memory, spec.Memory)
	setting("cpu", was.CPU, spec.CPU)
	setting("timeout", span(was.Timeout), span(spec.Timeout))
	setting("initTimeout", span(was.InitTimeout), span(spec.InitTimeout))
	setting("idleTimeout", span(was.IdleTimeout), span(spec.IdleTimeout))
	setting("concurrency", number(was.Concurrency), number(spec.Concurrency))
	setting("scale.min", strconv.Itoa(was.MinScale), strconv.Itoa(spec.MinScale))
	if a, b := was.Job, spec.Job; a != nil && b != nil {
		setting("job.completions", number(a.Completions), number(b.Completions))
		setting("job.parallelism", number(a.Parallelism), number(b.Parallelism))
		setting("job.retries", strconv.Itoa(a.Retries), strconv.Itoa(b.Retries))
		setting("job.timeout", span(a.Timeout), span(b.Timeout))
		setting("job.ttl", span(a.TTL), span(b.TTL))
	}
	switch {
	case spec.Timed && !was.Timed:
		add(CauseFunctions, "a timer calls it now")
	case was.Timed && !spec.Timed:
		add(CauseFunctions, "no timer calls it any more")
	}
	setting("scale.max", strconv.Itoa(was.MaxScale), strconv.Itoa(spec.MaxScale))
	setting("scale.metric", or(was.ScaleMetric, "concurrency"), or(spec.ScaleMetric, "concurrency"))
	setting("scale.target", decimal(was.ScaleTarget), decimal(spec.ScaleTarget))
	setting("network", network(was), network(spec))
	if was.Image != spec.Image {
		switch from := inputCauses(live.Inputs, made, regrouped); {
		case live.Inputs == nil:
			add(CauseCode, "another image than the live one")
		case len(from) == 0 && !regrouped && was.Key == spec.Key:
			add(CauseTarget, "the image was built again")
		default:
			list = append(list, from...)
		}
	}
	if len(list) == 0 {
		add(CauseSetting, "settings that this version does not name")
	}
	return inOrder(list), moved
}

// refCauses says which secrets or config a unit reads otherwise than before,
// and which of them have another version: they were rotated.
func refCauses(add func(CauseKind, string, ...any), what string, was, now map[string]deployer.Ref, had, have map[deployer.Source]string, source func(string) deployer.Source) {
	for _, n := range slices.Sorted(maps.Keys(both(was, now))) {
		a, before := was[n]
		b, after := now[n]
		from := source(b.Name)
		switch {
		case a != b || before != after:
			add(CauseEnvironment, "%s %s", what, n)
		case had[from] != have[from] && have[from] == "":
			add(CauseEnvironment, "%s %s/%s is missing", what, b.Name, b.Key)
		case had[from] != have[from]:
			add(CauseEnvironment, "%s %s/%s rotated", what, b.Name, b.Key)
		}
	}
}

// network is how faas.yml calls where the unit can be reached from.
func network(s deployer.Spec) string {
	if s.Internal {
		return "internal"
	}
	return "public"
}

// tableCauses compares handler tables: members, then what the members say.
// What the unit says too is left to the caller, who names it once.
func (c comparison) tableCauses(before, after deployer.Spec) (list []Cause, regrouped, moved bool) {
	was, now := table(before), table(after)
	add := func(kind CauseKind, format string, args ...any) {
		list = append(list, Cause{kind, fmt.Sprintf(format, args...)})
	}
	old := map[string]runtimes.Function{}
	for _, f := range was.Functions {
		old[f.Name] = f
	}
	for _, f := range now.Functions {
		o, there := old[f.Name]
		delete(old, f.Name)
		if !there {
			regrouped = true
			if from := c.were[f.Name]; from != "" && from != after.Unit {
				moved = true
				add(CauseFunctions, "function %s moved here from %s", f.Name, from)
			} else {
				add(CauseFunctions, "function %s added", f.Name)
			}
			continue
		}
		if o.Handler != f.Handler {
			add(CauseSetting, "handler of %s: %s → %s", f.Name, o.Handler, f.Handler)
		}
		if o.Contract != f.Contract {
			add(CauseSetting, "contract of %s: %s → %s", f.Name, o.Contract, f.Contract)
		}
		if f.Job == nil && o.TimeoutMs != f.TimeoutMs && (o.TimeoutMs != before.Timeout.Milliseconds() || f.TimeoutMs != after.Timeout.Milliseconds()) {
			add(CauseSetting, "setting timeout of %s: %s → %s", f.Name, millis(o.TimeoutMs), millis(f.TimeoutMs))
		}
		for _, k := range slices.Sorted(maps.Keys(both(o.Environment, f.Environment))) {
			a, b := o.Environment[k], f.Environment[k]
			if a != b && before.Environment[k] == after.Environment[k] {
				add(CauseEnvironment, "environment %s of %s", k, f.Name)
			}
		}
		switch {
		case !slices.EqualFunc(o.Routes, f.Routes, sameRoute):
			add(CauseFunctions, "routes of %s", f.Name)
		case o.TimeoutMs == f.TimeoutMs && !slices.EqualFunc(o.Routes, f.Routes, func(a, b runtimes.Route) bool { return a.TimeoutMs == b.TimeoutMs }):
			add(CauseSetting, "time-outs of routes of %s", f.Name)
		}
	}
	for _, f := range was.Functions {
		if _, gone := old[f.Name]; !gone {
			continue
		}
		regrouped = true
		if to := c.now[f.Name]; to != "" {
			add(CauseFunctions, "function %s moved to %s", f.Name, to)
		} else {
			add(CauseFunctions, "function %s removed from faas.yml", f.Name)
		}
	}
	return list, regrouped, moved
}

// created says why a unit is new.
func (c comparison) created(unit project.Unit) (list []Cause, moved bool) {
	moved = true
	for _, f := range unit.Functions {
		if from := c.were[f.Name]; from != "" && from != unit.Name {
			list = append(list, Cause{CauseFunctions, fmt.Sprintf("function %s moved here from %s", f.Name, from)})
			continue
		}
		moved = false
		switch {
		case c.were[f.Name] == unit.Name:
			list = append(list, Cause{CauseSetting, "kind of " + f.Name})
		case len(c.were) > 0:
			list = append(list, Cause{CauseFunctions, fmt.Sprintf("function %s added", f.Name)})
		}
	}
	if len(c.were) == 0 {
		return []Cause{{CauseFunctions, "nothing is live yet"}}, false
	}
	return list, moved
}

// removed says why a unit that is there is no longer wanted.
func (c comparison) removed(live deployer.Live) []Cause {
	var list []Cause
	for _, f := range table(live.Spec).Functions {
		switch to := c.now[f.Name]; {
		case to == live.Unit:
			list = append(list, Cause{CauseSetting, "kind of " + f.Name})
		case to != "":
			list = append(list, Cause{CauseFunctions, fmt.Sprintf("function %s moved to %s", f.Name, to)})
		default:
			list = append(list, Cause{CauseFunctions, fmt.Sprintf("function %s removed from faas.yml", f.Name)})
		}
	}
	if list == nil {
		list = []Cause{{CauseTarget, "no release has this unit"}}
	}
	return list
}

func sameRoute(a, b runtimes.Route) bool {
	return a.Path == b.Path && slices.Equal(a.Methods, b.Methods)
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// span is a duration as faas.yml writes it; empty for none.
func span(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprint(project.Duration(d))
}

func millis(n int64) string { return or(span(time.Duration(n)*time.Millisecond), "none") }

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func decimal(n float64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatFloat(n, 'g', -1, 64)
}
