package project

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// DefaultPolicy is what applies where the bundle's policy says nothing.
func DefaultPolicy() Policy {
	common := Defaults{
		CPU: "250m", Timeout: "60s", InitTimeout: "10s", MaxScale: 20,
		Memory:       map[string]string{"": "256Mi", "java": "512Mi"},
		Concurrency:  map[string]int{"": 100, "node": 100, "java": 50, "python": 8},
		Strategy:     "direct",
		Steps:        []Step{{Weight: 5, Pause: 5 * minute}, {Weight: 30, Pause: 10 * minute}},
		OnFailure:    "rollback",
		ReadyTimeout: "300s", Keep: 3, KeepWarm: "10m", PreviewTTL: "3d",
	}
	core := common
	core.MinScale, core.Strategy = 2, "canary"
	limits := Limits{MaxMemory: "16Gi", MaxCPU: "8", MaxTimeout: "1h", MaxJobTimeout: "1d", MaxScale: 200, MaxParallelism: 200, MaxFunctions: 2000}
	small, strict := limits, limits
	small.MaxMemory, small.MaxCPU, small.MaxScale = "4Gi", "2", 20
	strict.MinScale = 2
	return Policy{Tiers: map[Tier]TierPolicy{
		Sandbox:  {Defaults: common, Limits: small},
		Standard: {Defaults: common, Limits: limits},
		Core:     {Defaults: core, Limits: strict},
	}}
}

// defaultsOf are the tier's defaults: the policy's, over the built-in ones.
func (o Options) defaultsOf(t Tier) Defaults {
	d := DefaultPolicy().Tiers[t].Defaults
	p := o.Policy.Tiers[t].Defaults
	set(&d.CPU, p.CPU)
	set(&d.Timeout, p.Timeout)
	set(&d.InitTimeout, p.InitTimeout)
	set(&d.Strategy, p.Strategy)
	set(&d.OnFailure, p.OnFailure)
	set(&d.ReadyTimeout, p.ReadyTimeout)
	set(&d.KeepWarm, p.KeepWarm)
	set(&d.PreviewTTL, p.PreviewTTL)
	set(&d.MinScale, p.MinScale)
	set(&d.MaxScale, p.MaxScale)
	set(&d.Keep, p.Keep)
	for k, v := range p.Memory {
		d.Memory[k] = v
	}
	for k, v := range p.Concurrency {
		d.Concurrency[k] = v
	}
	if len(p.Steps) > 0 {
		d.Steps = p.Steps
	}
	return d
}

// limitsOf are the tier's limits: the policy's, over the built-in ones.
func (o Options) limitsOf(t Tier) Limits {
	l := DefaultPolicy().Tiers[t].Limits
	p := o.Policy.Tiers[t].Limits
	for _, v := range []struct {
		to   *string
		from string
		is   func(string) error
	}{
		{&l.MaxMemory, p.MaxMemory, isMemory}, {&l.MaxCPU, p.MaxCPU, isCPU},
		{&l.MaxTimeout, p.MaxTimeout, isSpan}, {&l.MaxJobTimeout, p.MaxJobTimeout, isSpan},
	} {
		if v.is(v.from) == nil {
			*v.to = v.from // a malformed limit must not open what it limits
		}
	}
	set(&l.MaxConcurrency, p.MaxConcurrency)
	set(&l.MinScale, p.MinScale)
	set(&l.MaxScale, p.MaxScale)
	set(&l.MaxParallelism, p.MaxParallelism)
	set(&l.MaxFunctions, p.MaxFunctions)
	if len(p.Strategies) > 0 {
		l.Strategies = p.Strategies
	}
	return l
}

// bounds are limits read once.
type bounds struct {
	memory, cpu         Quantity
	bytes, milli        int64
	timeout, jobTimeout Duration
}

func (l Limits) bounds() bounds {
	var b bounds
	b.memory, _ = ParseMemory(l.MaxMemory)
	b.cpu, _ = ParseCPU(l.MaxCPU)
	b.bytes, b.milli = b.memory.Bytes(), b.cpu.MilliCPU()
	b.timeout, _ = ParseDuration(l.MaxTimeout)
	b.jobTimeout, _ = ParseDuration(l.MaxJobTimeout)
	return b
}

// Validate finds what a policy says that faas.yml could not: the check for
// whoever publishes one.
func (p Policy) Validate() error {
	var bad []error
	for _, t := range slices.Sorted(maps.Keys(p.Tiers)) {
		check := func(field, value string, parse func(string) error) {
			if value == "" {
				return
			}
			if err := parse(value); err != nil {
				bad = append(bad, fmt.Errorf("policy: tiers.%s.%s: %w", t, field, err))
			}
		}
		d, l := p.Tiers[t].Defaults, p.Tiers[t].Limits
		if t.Rank() == 0 {
			bad = append(bad, fmt.Errorf("policy: tiers.%s: there is no such tier", t))
		}
		for _, language := range slices.Sorted(maps.Keys(d.Memory)) {
			check("defaults.memory."+language, d.Memory[language], isMemory)
		}
		check("defaults.cpu", d.CPU, isCPU)
		check("defaults.timeout", d.Timeout, isSpan)
		check("defaults.initTimeout", d.InitTimeout, isSpan)
		check("defaults.readyTimeout", d.ReadyTimeout, isSpan)
		check("defaults.keepWarm", d.KeepWarm, isSpan)
		check("defaults.previewTTL", d.PreviewTTL, isSpan)
		check("limits.maxMemory", l.MaxMemory, isMemory)
		check("limits.maxCPU", l.MaxCPU, isCPU)
		check("limits.maxTimeout", l.MaxTimeout, isSpan)
		check("limits.maxJobTimeout", l.MaxJobTimeout, isSpan)
	}
	return errors.Join(bad...)
}

func isMemory(s string) error { _, err := ParseMemory(s); return err }
func isCPU(s string) error    { _, err := ParseCPU(s); return err }
func isSpan(s string) error   { _, err := ParseDuration(s); return err }

// set replaces what is built in, where the policy says something.
func set[T comparable](to *T, from T) {
	var zero T
	if from != zero {
		*to = from
	}
}

// defaultLayer names the origin of what the platform filled in.
const defaultLayer = "platform default"

// given builds the tree of a default.
func given(kind kind, text string) *node {
	return &node{kind: kind, text: text, layer: defaultLayer}
}

func givenInt(n int) *node { return given(aNumber, strconv.Itoa(n)) }

func givenMap(kv ...any) *node {
	n := &node{kind: aMap, layer: defaultLayer}
	for i := 0; i+1 < len(kv); i += 2 {
		var v *node
		switch x := kv[i+1].(type) {
		case *node:
			v = x
		case int:
			v = givenInt(x)
		case string:
			v = given(aText, x)
		}
		n.put(entry{key: kv[i].(string), value: v})
	}
	return n
}

// settings are the defaults of a function in a language.
func (d Defaults) settings(language string) *node {
	memory, ok := d.Memory[language]
	if !ok {
		memory = d.Memory[""]
	}
	concurrency, ok := d.Concurrency[language]
	if !ok {
		concurrency = d.Concurrency[""]
	}
	return givenMap(
		"contract", "event", "memory", canonical(memory, ParseMemory), "cpu", canonical(d.CPU, ParseCPU),
		"timeout", span(d.Timeout), "initTimeout", span(d.InitTimeout), "concurrency", concurrency,
		"scale", givenMap("min", d.MinScale, "max", d.MaxScale, "metric", "concurrency"),
		"build", givenMap("builder", "layer"),
	)
}

func (d Defaults) rollout() *node {
	return givenMap("strategy", d.Strategy, "onFailure", d.OnFailure, "readyTimeout", span(d.ReadyTimeout),
		"keep", d.Keep, "keepWarm", span(d.KeepWarm))
}

// canonical and span make the platform's own values canonical; one that is
// malformed is left as it stands, for the checks to find.
func canonical(s string, parse func(string) (Quantity, error)) string {
	if q, err := parse(s); err == nil {
		return string(q)
	}
	return s
}

func span(s string) string {
	if d, err := ParseDuration(s); err == nil {
		return d.String()
	}
	return s
}
