// Package project is faas.yml: what a developer wrote, checked as a whole,
// merged for one environment with the platform's defaults, positions kept.
//
// Parsing is strict. An unknown key, a planned key and a value out of range
// are problems with line, column and a next step; all of them are reported at
// once. A [Project] exists only when there are none.
//
// The same bytes and the same [Options] give the same Project, byte for byte
// in JSON. Nothing here reads the clock, the environment or the file system.
package project

// Project is faas.yml, valid and merged for one environment. It is a value
// that nobody changes after [Parse] made it.
type Project struct {
	Version     int         `json:"version"`
	Service     Service     `json:"service"`
	Platform    Platform    `json:"platform"`
	Environment Environment `json:"environment"`
	// Provider is what `provider` says for this environment, over the
	// platform's defaults: the settings of a function that overrides nothing.
	Provider Settings `json:"provider"`
	Deploy   Deploy   `json:"deploy"`
	// Functions stand in the order of the file, every value merged.
	Functions []Function `json:"functions"`
	// Units are what is deployed: aggregates first (main, then as in the
	// file), then functions of their own in the order of the file.
	Units   []Unit   `json:"units"`
	Routes  Routes   `json:"routes"`
	Plugins []Plugin `json:"plugins,omitempty"`
	// Layers and Build are the top-level ones. A unit has its own, merged.
	Layers  []string `json:"layers,omitempty"`
	Build   Build    `json:"build"`
	Test    Test     `json:"test"`
	Package Package  `json:"package"`
	Rollout Rollout  `json:"rollout"`
	Preview *Preview `json:"preview,omitempty"`

	// Notices are fields that were understood and change nothing here, in file
	// order, for the plan to print: what a strategy does not use, a tier that
	// the platform tightened.
	Notices []Notice `json:"notices,omitempty"`

	tree *node // the merged file, for Origins and Position
}

// Service says who this is.
type Service struct {
	Name        string `json:"name"` // DNS-1035, ≤ 24
	Owner       string `json:"owner,omitempty"`
	Description string `json:"description,omitempty"`
	// Tier is the effective one: the stricter of the file's and the platform's.
	Tier Tier `json:"tier"`
}

// Tier picks defaults and limits. Stricter tiers compare greater by [Tier.Rank].
type Tier string

const (
	Sandbox  Tier = "sandbox"
	Standard Tier = "standard"
	Core     Tier = "core"
)

// Rank orders tiers by strictness: sandbox 1, standard 2, core 3; 0 for
// anything else.
func (t Tier) Rank() int {
	switch t {
	case Sandbox:
		return 1
	case Standard:
		return 2
	case Core:
		return 3
	}
	return 0
}

// Platform is what the project asks of the platform itself.
type Platform struct {
	Channel string `json:"channel"` // stable, candidate, edge
	// RuntimeUpdate is auto (a new base or adapter reaches the project at its
	// next pipeline) or withCode (with the unit's next own change).
	RuntimeUpdate string `json:"runtimeUpdate"`
}

// Environment is the one this Project was merged for. Branch and Tag are
// assertions that the prepare stage checks; cluster and namespace may be empty,
// then the bundle's clusters.yml decides.
type Environment struct {
	Name      string `json:"name"`
	Branch    string `json:"branch,omitempty"`
	Tag       string `json:"tag,omitempty"`
	Cluster   string `json:"cluster,omitempty"`
	Namespace string `json:"namespace,omitempty"`
}

// Deploy says how functions become units.
type Deploy struct {
	// Mode is what came of deploy.mode, aggregation and standalone.
	Mode Mode `json:"mode"`
}

// Mode is how online functions are deployed.
type Mode string

const (
	// Aggregated: every online function is inside an aggregate.
	Aggregated Mode = "aggregated"
	// Independent: every function is a unit of its own.
	Independent Mode = "independent"
	// Mixed: aggregates, and standalone functions beside them. It is never
	// written in the file.
	Mixed Mode = "mixed"
)

// Settings are what `provider`, an aggregate and a function may all say. In a
// [Function] or [Unit] every value is the merged one.
type Settings struct {
	Runtime     string   `json:"runtime"`
	Language    string   `json:"language"` // of the runtime: node, python, java
	Contract    string   `json:"contract"` // event, http, web, cloudevent, app
	EventFormat string   `json:"eventFormat,omitempty"`
	Memory      Quantity `json:"memory"`
	CPU         Quantity `json:"cpu"`
	Timeout     Duration `json:"timeout"`
	InitTimeout Duration `json:"initTimeout"`
	// IdleTimeout is for streams; 0 when nothing was said.
	IdleTimeout Duration `json:"idleTimeout,omitempty"`
	Concurrency int      `json:"concurrency"`
	// Environment holds plain values, variables already filled in.
	Environment map[string]string `json:"environment,omitempty"`
	Secrets     map[string]Ref    `json:"secrets,omitempty"`
	Config      map[string]Ref    `json:"config,omitempty"`
	Scale       Scale             `json:"scale"`
	// Network is internal or public. In a Unit it is decided: a unit with
	// routes under routes.host is internal.
	Network string   `json:"network"`
	Layers  []string `json:"layers,omitempty"` // builtin:NAME
	Build   Build    `json:"build"`
}

// Ref points at a key of a Secret or ConfigMap in the environment's namespace.
// With Path it is a file, else the variable it is listed under.
type Ref struct {
	Name string `json:"name"` // of the Secret or ConfigMap
	Key  string `json:"key"`
	Path string `json:"path,omitempty"` // absolute
}

// Scale bounds a unit's instances.
type Scale struct {
	Min int `json:"min"`
	Max int `json:"max"`
	// Target per instance, in Metric's unit; 0 leaves it to the cluster.
	Target float64 `json:"target,omitempty"`
	Metric string  `json:"metric"` // concurrency, rps, cpu
}

// Function is a handler and what calls it.
type Function struct {
	Name string `json:"name"`
	Settings
	Handler    string   `json:"handler,omitempty"`
	Source     string   `json:"source,omitempty"` // folder only this function needs, no trailing slash
	Kind       Kind     `json:"kind"`
	Standalone bool     `json:"standalone,omitempty"`
	Unit       string   `json:"unit"` // name of the Unit it is in
	Plugins    []string `json:"plugins,omitempty"`
	// Job is set exactly when Kind is KindJob.
	Job      *Job      `json:"job,omitempty"`
	Routes   []Route   `json:"routes,omitempty"`
	Timers   []Timer   `json:"timers,omitempty"`
	Triggers []Trigger `json:"triggers,omitempty"`
	// Line of the function's name in faas.yml.
	Line int `json:"line"`
}

// Kind is online (answers requests) or job (runs to completion).
type Kind string

const (
	Online  Kind = "online"
	KindJob Kind = "job"
)

// Job is how a job runs.
type Job struct {
	Parallelism int      `json:"parallelism"`
	Completions int      `json:"completions"`
	Retries     int      `json:"retries"`
	Timeout     Duration `json:"timeout"`
	TTL         Duration `json:"ttl"`
}

// Route is one http event, complete: base path in front, every default filled in.
type Route struct {
	Function string `json:"function"`
	Unit     string `json:"unit"`
	Host     string `json:"host,omitempty"`
	// Path is base path and path: /a, /a/[id], /a/*.
	Path string `json:"path"`
	// Methods are lower case and sorted; empty for any.
	Methods []string `json:"methods,omitempty"`
	Timeout Duration `json:"timeout"`
	Auth    string   `json:"auth"` // none, jwt, or a plugin's name
	CORS    *CORS    `json:"cors,omitempty"`
	Line    int      `json:"line"`
}

// CORS is what browsers of other origins may do.
type CORS struct {
	Origins     []string `json:"origins,omitempty"`
	Methods     []string `json:"methods,omitempty"` // lower case
	Headers     []string `json:"headers,omitempty"`
	Credentials bool     `json:"credentials,omitempty"`
}

// Timer calls a function by the clock. Exactly one of Cron and Every is set;
// Schedule turns both into cron.
type Timer struct {
	Cron     string   `json:"cron,omitempty"` // five fields
	Every    Duration `json:"every,omitempty"`
	Timezone string   `json:"timezone,omitempty"` // IANA; empty is UTC
	Payload  string   `json:"payload,omitempty"`
	Overlap  string   `json:"overlap"` // skip, allow, replace
	Line     int      `json:"line"`
}

// Trigger subscribes a function to events of a broker.
type Trigger struct {
	Broker  string            `json:"broker"`
	Type    string            `json:"type,omitempty"`
	Source  string            `json:"source,omitempty"`
	Filters map[string]string `json:"filters,omitempty"` // attribute → exact value
	Line    int               `json:"line"`
}

// Unit is what is deployed together: one Knative Service, or one batch Job.
type Unit struct {
	// Name is main, an aggregate's or a function's.
	Name string `json:"name"`
	// ServiceName is <service>-<unit>, at most 40 characters: a longer one is
	// cut and ends in a 6-character hash.
	ServiceName string `json:"serviceName"`
	// Settings are what the members share. Timeout is the longest member's,
	// Environment the union of the members', Contract empty when they differ.
	Settings
	Isolation string     `json:"isolation"` // shared, worker
	Functions []Function `json:"functions"`
	// Job says that this is a batch Job. It has exactly one function.
	Job bool `json:"job,omitempty"`
	// Aggregate says that the unit holds functions because they are
	// aggregated, be it only one.
	Aggregate bool `json:"aggregate,omitempty"`
}

// Routes are the defaults of all http events.
type Routes struct {
	Host     string   `json:"host,omitempty"`
	BasePath string   `json:"basePath,omitempty"` // no trailing slash; empty for /
	CORS     *CORS    `json:"cors,omitempty"`
	Timeout  Duration `json:"timeout,omitempty"` // 0: none said
	Auth     string   `json:"auth"`
}

// Plugin is a platform plugin and the functions it applies to.
type Plugin struct {
	Name    string         `json:"name"`
	Apply   []string       `json:"apply,omitempty"` // globs over function names; empty for all
	Options map[string]any `json:"options,omitempty"`
	// Functions are the names that Apply matched, in file order.
	Functions []string `json:"functions"`
	Line      int      `json:"line"`
}

// Build says how the image is made.
type Build struct {
	Builder    string            `json:"builder"` // layer, dockerfile, none
	Base       string            `json:"base,omitempty"`
	Install    string            `json:"install,omitempty"`
	Command    string            `json:"command,omitempty"`
	Output     string            `json:"output,omitempty"` // folder, no trailing slash
	Dockerfile string            `json:"dockerfile,omitempty"`
	Image      string            `json:"image,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	// Secrets are names of CI variables that only installers, the command, and
	// instructions that mount them see.
	Secrets []string `json:"secrets,omitempty"`
}

// Test is the project's own test; an empty Command skips the stage.
type Test struct {
	Command string `json:"command,omitempty"`
}

// Package narrows what enters the code layer. Globs with **, from the root.
type Package struct {
	Include []string `json:"include,omitempty"`
	Exclude []string `json:"exclude,omitempty"`
}

// Rollout is how a release takes over.
type Rollout struct {
	Strategy     string    `json:"strategy"` // direct, canary, bluegreen, manual
	Steps        []Step    `json:"steps,omitempty"`
	Verify       []Verify  `json:"verify,omitempty"`
	Analysis     *Analysis `json:"analysis,omitempty"`
	OnFailure    string    `json:"onFailure"` // rollback, hold
	ReadyTimeout Duration  `json:"readyTimeout"`
	Keep         int       `json:"keep"`
	KeepWarm     Duration  `json:"keepWarm"`
}

// Step moves Weight percent of traffic, then waits: for Pause, or for a person.
type Step struct {
	Weight   int      `json:"weight"`
	Pause    Duration `json:"pause,omitempty"`
	Approval bool     `json:"approval,omitempty"`
}

// Verify is a request that must be answered as expected before traffic moves.
type Verify struct {
	Method string   `json:"method"` // upper case
	Path   string   `json:"path"`   // public: with the base path
	Status int      `json:"status"`
	Max    Duration `json:"max,omitempty"` // expect.maxMs; 0: not measured
	// Function and Unit own the path.
	Function string `json:"function"`
	Unit     string `json:"unit"`
}

// Analysis compares the new release with the old one while it takes traffic.
type Analysis struct {
	Interval    Duration `json:"interval"`
	SuccessRate *float64 `json:"successRate,omitempty"` // least, in percent
	P99         Duration `json:"p99,omitempty"`         // most; 0: not judged
	Compare     string   `json:"compare"`               // stable, none
	MinRequests int      `json:"minRequests"`
	OnNoData    string   `json:"onNoData"` // wait, pass, fail
	Queries     []Query  `json:"queries,omitempty"`
}

// Query is a measurement of the platform's metrics with bounds.
type Query struct {
	Name  string   `json:"name"`
	Query string   `json:"query"`
	Min   *float64 `json:"min,omitempty"`
	Max   *float64 `json:"max,omitempty"`
}

// Preview turns on one deployment per merge request.
type Preview struct {
	Namespace   string            `json:"namespace"`
	TTL         Duration          `json:"ttl"`
	Environment map[string]string `json:"environment,omitempty"`
}

// Notice is something to tell that is not an error.
type Notice struct {
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Path   string `json:"path"`
	Why    string `json:"why"`
}

// Origin says where a merged value came from.
type Origin struct {
	// Path in the merged file: functions.list.timeout.
	Path string `json:"path"`
	// Value as JSON, short enough for a line; lists whole.
	Value string `json:"value"`
	// From is "line 7" or "platform default (core)".
	From string `json:"from"`
	// Layer is where that stands: "platform default", "provider",
	// "functions.list", "environments.prod.functions.list", …
	Layer string `json:"layer"`
	// Line and Column are 1-based, 0 for a default. Columns count characters.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
}
