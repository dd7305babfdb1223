// Package deployer brings images to life: Spec → Revision → Release.
//
// [Deploy] holds the one order of steps that every target shares: lease,
// unfinished intent, revisions at 0 %, readiness, record, intent, traffic,
// check at the route, live. A [Target] is the small set of verbs that order
// needs from a cluster. deployertest holds the behaviour suite of targets.
package deployer

import (
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

// Spec is one deploy unit as it should run. Two equal Specs are one Revision:
// nothing in it differs between equal deploys (no release, no bundle).
type Spec struct {
	// Name is the Knative service: <service>-<unit>, ≤ 40, DNS-1035.
	Name string `json:"name"`
	// Unit is the deploy unit's own name: main, or the function's.
	Unit  string      `json:"unit"`
	Image name.Digest `json:"-"`
	// Table is FAAS_UNIT: the JSON of the unit's handler table.
	Table       string            `json:"table"`
	Environment map[string]string `json:"environment,omitempty"`
	Memory      string            `json:"memory,omitempty"` // Kubernetes quantity
	CPU         string            `json:"cpu,omitempty"`
	Concurrency int               `json:"concurrency,omitempty"`
	Timeout     time.Duration     `json:"timeout,omitempty"`
	InitTimeout time.Duration     `json:"initTimeout,omitempty"`
	MinScale    int               `json:"minScale"`
	MaxScale    int               `json:"maxScale"`
}

// Revision is a version of a unit that became Ready.
type Revision struct {
	Name  string      `json:"name"` // <ksvc>-<8 hex of the template>
	Unit  string      `json:"unit"`
	Image name.Digest `json:"-"`
	// URL reaches this revision whatever the traffic says.
	URL string `json:"url"`
	// Replaces is the revision that was live before; empty for a first deploy.
	Replaces string `json:"replaces,omitempty"`
	// Reused says that the revision existed already and nothing was created.
	Reused bool `json:"reused"`
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
	Previous  string    `json:"previous,omitempty"` // release it replaced
	CreatedBy string    `json:"createdBy,omitempty"`
}

// Live is one unit of a Release: which revision serves, and its whole Spec,
// so that a rollback needs nothing but the record.
type Live struct {
	Unit     string `json:"unit"`
	Revision string `json:"revision"`
	Image    string `json:"image"`
	URL      string `json:"url"`
	Spec     Spec   `json:"spec"`
}

// Head says which Release is live, and what is under way. It lives on the
// Lease, so that lock and pointer share one version.
type Head struct {
	Live     string `json:"live,omitempty"`     // release id
	Previous string `json:"previous,omitempty"` // release id a rollback returns to
	Staged   string `json:"staged,omitempty"`
	Held     string `json:"held,omitempty"` // why it is held; empty: it is not
	// Rollout is the open intent: a run that finds one finishes or restores it.
	Rollout *Rollout `json:"rollout,omitempty"`
	// Pipeline is the IID that made Live. An older pipeline never overwrites it.
	Pipeline int64 `json:"pipeline,omitempty"`
	// Epoch counts holders. A write with an older epoch is refused.
	Epoch int64 `json:"epoch"`
	// Version is the record's own version, for compare-and-swap.
	Version string `json:"-"`
}

// Rollout is an intent written before traffic moves.
type Rollout struct {
	To       string    `json:"to"`             // release id
	From     string    `json:"from,omitempty"` // release id to restore
	Step     string    `json:"step"`
	Deadline time.Time `json:"deadline"`
	OnDeath  string    `json:"onDeath"` // finish or restore
}
