// Package deployer brings images to life: Spec → Revision → Release.
//
// [Deploy] holds the one order of steps that every target shares: preflight,
// lease, unfinished intent, revisions at 0 %, readiness, proof, record,
// intent, room, traffic, analysis, check at the route, timers, live, cleanup. A [Target] is the small
// set of verbs that this order needs from a cluster; it decides nothing.
// deployertest holds the behaviour suite of targets.
//
// Whatever happens, including the end of the process at any step, the route
// keeps answering with one whole release, and running the same deploy again
// converges: revisions are named by content, the intent is written before
// traffic moves, and every write carries the epoch of the lease it was made
// under.
package deployer

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// Scope is one service in one environment: the thing that has a Head.
type Scope struct {
	Service     string `json:"service"`
	Environment string `json:"environment"`
	Namespace   string `json:"namespace"`
	// Owner is CI_PROJECT_ID. Every object carries it; a foreign one is refused.
	Owner string `json:"owner"`
}

// String is the scope for people: "order-bff in prod".
func (s Scope) String() string { return s.Service + " in " + s.Environment }

// Spec is one deploy unit as it should run. Two equal Specs are one Revision:
// nothing in it differs between equal deploys (no release, no bundle).
// Fields added later must be omitted from JSON when empty, so that a revision
// made before them keeps its name.
type Spec struct {
	// Name is the Knative service: <service>-<unit>, ≤ 40, DNS-1035.
	Name string `json:"name"`
	// Unit is the deploy unit's own name: main, or the function's.
	Unit  string      `json:"unit"`
	Image name.Digest `json:"-"` // "image" in JSON
	// Key is the image's input key, which the adapter answers to a nonce. It
	// is no part of the revision's content: equal images need no new revision.
	Key string `json:"key,omitempty"`
	// Table is FAAS_UNIT: the JSON of the unit's handler table.
	Table       string            `json:"table"`
	Environment map[string]string `json:"environment,omitempty"`
	Memory      string            `json:"memory,omitempty"` // Kubernetes quantity
	CPU         string            `json:"cpu,omitempty"`
	Concurrency int               `json:"concurrency,omitempty"`
	Timeout     time.Duration     `json:"timeout,omitempty"`     // of one request, in ns
	InitTimeout time.Duration     `json:"initTimeout,omitempty"` // from process start to Ready, in ns
	MinScale    int               `json:"minScale"`
	MaxScale    int               `json:"maxScale"`

	// IdleTimeout is how long an answer may be silent, in ns; 0 leaves it to
	// the target.
	IdleTimeout time.Duration `json:"idleTimeout,omitempty"`
	// ScaleMetric is what the number of instances follows: rps, cpu; empty is
	// concurrency. ScaleTarget is the aim per instance: requests at once,
	// requests per second, percent of CPU; 0 leaves it to the target.
	ScaleMetric string  `json:"scaleMetric,omitempty"`
	ScaleTarget float64 `json:"scaleTarget,omitempty"`
	// Internal keeps the unit's addresses inside the cluster.
	Internal bool `json:"internal,omitempty"`
	// Secrets and Config are keys of Secrets and ConfigMaps of the scope's
	// namespace that the unit reads, by their names in faas.yml.
	Secrets map[string]Ref `json:"secrets,omitempty"`
	Config  map[string]Ref `json:"config,omitempty"`
	// Versions are those of Secrets and Config when the plan was made, by
	// [Source]: a rotation is other content, and so a new revision.
	Versions map[Source]string `json:"versions,omitempty"`
	// Job says that the unit runs to completion; nil: it answers requests.
	Job *Job `json:"job,omitempty"`
	// Timed says that timers call functions of the unit over its address: its
	// instances are told what such a call proves itself with.
	Timed bool `json:"timed,omitempty"`
	// Server says that a server of the unit's own answers, without an adapter:
	// it is Ready as soon as $PORT takes connections.
	Server bool `json:"server,omitempty"`
}

// Ref is a key of a Secret or ConfigMap: a variable under its name in
// faas.yml, or a file at Path.
type Ref struct {
	Name string `json:"name"`
	Key  string `json:"key"`
	Path string `json:"path,omitempty"` // absolute
}

// Source names a Secret or ConfigMap of a namespace: secret/order-bff,
// config/limits.
type Source string

// SecretSource and ConfigSource are the sources of those names.
func SecretSource(name string) Source { return Source("secret/" + name) }
func ConfigSource(name string) Source { return Source("config/" + name) }

// Sources are the Secrets and ConfigMaps that s reads, sorted.
func (s Spec) Sources() []Source {
	seen := map[Source]bool{}
	for _, r := range s.Secrets {
		seen[SecretSource(r.Name)] = true
	}
	for _, r := range s.Config {
		seen[ConfigSource(r.Name)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// Revision is a version of a unit that became Ready.
type Revision struct {
	Name    string      `json:"name"` // <ksvc>-<8 hex of the template>
	Service string      `json:"service"`
	Unit    string      `json:"unit"`
	Image   name.Digest `json:"-"` // "image" in JSON
	// URL reaches this revision whatever the traffic says.
	URL string `json:"url"`
	// Replaces is the revision that was live before; empty for a first deploy.
	Replaces string `json:"replaces,omitempty"`
	// Reused says that the revision existed already and nothing was created.
	Reused bool `json:"reused"`
	// Sandbox is how a local target runs it: root, userns or none. Empty on a
	// cluster, where the runtime isolates.
	Sandbox string `json:"sandbox,omitempty"`
}

// Release is the immutable record of what a service looked like in one
// environment: the thing that is promoted and rolled back.
type Release struct {
	ID        string    `json:"id"` // r<seq> per service and environment
	Scope     Scope     `json:"scope"`
	Created   time.Time `json:"created"`
	Commit    string    `json:"commit"`
	Pipeline  int64     `json:"pipeline"` // IID
	Bundle    string    `json:"bundle"`   // digest
	Units     []Live    `json:"units"`
	Timers    []Timer   `json:"timers,omitempty"`
	Policy    Policy    `json:"policy,omitzero"`    // how it came, or was to come, live
	Previous  string    `json:"previous,omitempty"` // release it replaced
	CreatedBy string    `json:"createdBy,omitempty"`
	Services  []string  `json:"services,omitempty"` // as in [Plan]
}

// Live is one unit of a Release: which revision serves, and its whole Spec,
// so that a rollback needs nothing but the record.
type Live struct {
	Unit     string `json:"unit"`
	Revision string `json:"revision"`
	Image    string `json:"image"`
	URL      string `json:"url"` // of the route
	Spec     Spec   `json:"spec"`
	// Inputs are the unit's of [Plan.Inputs].
	Inputs map[string]string `json:"inputs,omitempty"`
}

// unit returns the release's unit with that service name.
func (r Release) unit(service string) (Live, bool) {
	for _, u := range r.Units {
		if u.Spec.Name == service {
			return u, true
		}
	}
	return Live{}, false
}

// Head says which Release is live, what is under way and who may write. On a
// cluster it is the Lease with annotations, so that lock and pointer share
// one version.
type Head struct {
	Live     string `json:"live,omitempty"`     // release id
	Previous string `json:"previous,omitempty"` // release id a rollback returns to
	Staged   string `json:"staged,omitempty"`
	Held     string `json:"held,omitempty"` // why it is held; empty: it is not
	// Rollout is the open intent: a run that finds one finishes or restores it.
	Rollout *Rollout `json:"rollout,omitempty"`
	// Undone is the newest rollout that was taken back after its traffic had,
	// or may have, moved, until another release is live.
	Undone *Undone `json:"undone,omitempty"`
	// Warm is until when Previous is kept ready; zero: it is not.
	Warm time.Time `json:"warm,omitzero"`
	// Tombstones mark services that nothing refers to any more, by name;
	// [TombstoneAll] stands for all of the scope. A sweep writes them first and
	// removes later. The map is never changed in place.
	Tombstones map[string]Tombstone `json:"tombstones,omitempty"`
	// Services are as the last deploy's [Plan] had them. Another service of the
	// project that is not among them was renamed or removed.
	Services []string `json:"services,omitempty"`
	// Pipeline is the highest IID that was ever made live. An older pipeline
	// never overwrites it.
	Pipeline int64 `json:"pipeline,omitempty"`
	// Seq is the number of the newest release.
	Seq int64 `json:"seq,omitempty"`
	// History lists what was live, oldest first, at most [HistoryLimit].
	History []WasLive `json:"history,omitempty"`

	// Holder is who may write; empty: nobody does.
	Holder string `json:"holder,omitempty"`
	// Epoch counts holders. A write with an older epoch is refused.
	Epoch int64 `json:"epoch"`
	// Renewed is the holder's clock at its last renewal, for people. Others
	// judge the holder by whether the record changes, by their own clock.
	Renewed time.Time `json:"renewed,omitzero"`
	// LeaseFor is how long the record must stand still before another takes
	// over, in ns.
	LeaseFor time.Duration `json:"leaseFor,omitempty"`

	// Version is the record's own version, for compare-and-swap; empty where
	// there is no record yet.
	Version string `json:"-"`
}

// HistoryLimit bounds Head.History, which lives in an annotation.
const HistoryLimit = 50

// WasLive is one line of Head.History.
type WasLive struct {
	Release  string    `json:"release"`
	Pipeline int64     `json:"pipeline,omitempty"`
	At       time.Time `json:"at"`
}

// Tombstone says since when, by the clock of who wrote it, something is
// nobody's, and why it is thought so.
type Tombstone struct {
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
}

// TombstoneAll is the name under which the whole scope has its tombstone.
const TombstoneAll = "*"

// MarshalJSON writes the image as its reference.
func (s Spec) MarshalJSON() ([]byte, error) {
	type plain Spec
	return json.Marshal(struct {
		plain
		Image string `json:"image"`
	}{plain(s), ref(s.Image)})
}

// UnmarshalJSON accepts what MarshalJSON writes. An image that is not a
// reference by digest is an error.
func (s *Spec) UnmarshalJSON(b []byte) error {
	type plain Spec
	v := struct {
		*plain
		Image string `json:"image"`
	}{plain: (*plain)(s)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	return setRef(&s.Image, v.Image)
}

// MarshalJSON writes the image as its reference.
func (r Revision) MarshalJSON() ([]byte, error) {
	type plain Revision
	return json.Marshal(struct {
		plain
		Image string `json:"image"`
	}{plain(r), ref(r.Image)})
}

// UnmarshalJSON accepts what MarshalJSON writes. An image that is not a
// reference by digest is an error.
func (r *Revision) UnmarshalJSON(b []byte) error {
	type plain Revision
	v := struct {
		*plain
		Image string `json:"image"`
	}{plain: (*plain)(r)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	return setRef(&r.Image, v.Image)
}

// ref is d's reference, empty for the zero Digest (whose String panics on
// none of its parts but would say "@").
func ref(d name.Digest) string {
	if d.DigestStr() == "" {
		return ""
	}
	return d.String()
}

func setRef(d *name.Digest, s string) error {
	if s == "" {
		*d = name.Digest{}
		return nil
	}
	parsed, err := name.NewDigest(s)
	if err != nil {
		return fmt.Errorf("deployer: image %q: %w", s, err)
	}
	*d = parsed
	return nil
}
