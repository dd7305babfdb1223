package project

// Options are everything a Project depends on besides the file. The zero
// value knows no runtime, plugin or layer, and has the built-in policy.
type Options struct {
	// Environment is the template's environment name. Empty: no patch applies.
	Environment string
	// Variables looks up a CI variable. Nil: none is set.
	Variables func(name string) (value string, masked, ok bool)
	Git       Git
	// Runtimes of the bundle, in the order messages list them.
	Runtimes []RuntimeInfo
	// Policy is the bundle's; the zero value is [DefaultPolicy].
	Policy Policy
	// Tier is the platform's word on this project. The file may only tighten
	// it; empty means that the platform says nothing.
	Tier Tier
	// Plugins and Layers are the names the bundle has.
	Plugins, Layers []string
	// Clusters are the names in clusters.yml; nil leaves names unchecked.
	Clusters []string
}

// Git is the commit that ${git:…} speaks of. An empty Branch or Tag is an
// error only for a file that uses it.
type Git struct{ SHA, Branch, Tag string }

// RuntimeInfo is what the bundle says about a runtime.
type RuntimeInfo struct {
	Name     string // nodejs18
	Language string // node, python, java
}

// Policy is the part of the bundle's policy.yml that faas.yml is read under.
type Policy struct {
	// Tiers by name; a missing tier has [DefaultPolicy]'s.
	Tiers map[Tier]TierPolicy `yaml:"tiers" json:"tiers,omitempty"`
	// Bases are the images that build.base may name: with or without tag and
	// digest, or a prefix that ends in *. Without any, build.base is refused.
	Bases []string `yaml:"bases" json:"bases,omitempty"`
}

// TierPolicy is what one tier gets and may ask for.
type TierPolicy struct {
	Defaults Defaults `yaml:"defaults" json:"defaults"`
	Limits   Limits   `yaml:"limits" json:"limits"`
}

// Defaults are values of fields that the file leaves out. A zero field means
// the built-in default; durations and quantities are written as in faas.yml.
type Defaults struct {
	CPU         string `yaml:"cpu" json:"cpu,omitempty"`
	Timeout     string `yaml:"timeout" json:"timeout,omitempty"`
	InitTimeout string `yaml:"initTimeout" json:"initTimeout,omitempty"`
	MinScale    int    `yaml:"minScale" json:"minScale,omitempty"`
	MaxScale    int    `yaml:"maxScale" json:"maxScale,omitempty"`
	// Memory and Concurrency by language; "" is any other language.
	Memory      map[string]string `yaml:"memory" json:"memory,omitempty"`
	Concurrency map[string]int    `yaml:"concurrency" json:"concurrency,omitempty"`

	Strategy     string `yaml:"strategy" json:"strategy,omitempty"`
	Steps        []Step `yaml:"steps" json:"steps,omitempty"`
	OnFailure    string `yaml:"onFailure" json:"onFailure,omitempty"`
	ReadyTimeout string `yaml:"readyTimeout" json:"readyTimeout,omitempty"`
	Keep         int    `yaml:"keep" json:"keep,omitempty"`
	KeepWarm     string `yaml:"keepWarm" json:"keepWarm,omitempty"`
	PreviewTTL   string `yaml:"previewTTL" json:"previewTTL,omitempty"`
}

// Limits bound what a file may ask for. A zero field means the built-in limit,
// so that a policy which forgets one does not open it.
type Limits struct {
	MaxMemory      string `yaml:"maxMemory" json:"maxMemory,omitempty"`
	MaxCPU         string `yaml:"maxCPU" json:"maxCPU,omitempty"`
	MaxTimeout     string `yaml:"maxTimeout" json:"maxTimeout,omitempty"`
	MaxJobTimeout  string `yaml:"maxJobTimeout" json:"maxJobTimeout,omitempty"`
	MaxConcurrency int    `yaml:"maxConcurrency" json:"maxConcurrency,omitempty"`
	MinScale       int    `yaml:"minScale" json:"minScale,omitempty"`
	MaxScale       int    `yaml:"maxScale" json:"maxScale,omitempty"`
	MaxParallelism int    `yaml:"maxParallelism" json:"maxParallelism,omitempty"`
	MaxFunctions   int    `yaml:"maxFunctions" json:"maxFunctions,omitempty"`
	// Strategies that may be used; empty for all.
	Strategies []string `yaml:"strategies" json:"strategies,omitempty"`
}
