package project

import "strconv"

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
	limits := Limits{MaxMemory: "16Gi", MaxCPU: "8", MaxTimeout: "1h", MaxJobTimeout: "1d", MaxScale: 200, MaxParallelism: 200, MaxFunctions: 500}
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
	set := func(to *string, from string) {
		if from != "" {
			*to = from
		}
	}
	setInt := func(to *int, from int) {
		if from != 0 {
			*to = from
		}
	}
	set(&d.CPU, p.CPU)
	set(&d.Timeout, p.Timeout)
	set(&d.InitTimeout, p.InitTimeout)
	set(&d.Strategy, p.Strategy)
	set(&d.OnFailure, p.OnFailure)
	set(&d.ReadyTimeout, p.ReadyTimeout)
	set(&d.KeepWarm, p.KeepWarm)
	set(&d.PreviewTTL, p.PreviewTTL)
	setInt(&d.MinScale, p.MinScale)
	setInt(&d.MaxScale, p.MaxScale)
	setInt(&d.Keep, p.Keep)
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

// limitsOf are the tier's limits. A policy that names the tier says all of them.
func (o Options) limitsOf(t Tier) Limits {
	if p, ok := o.Policy.Tiers[t]; ok {
		return p.Limits
	}
	return DefaultPolicy().Tiers[t].Limits
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
