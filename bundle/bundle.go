// Package bundle is the platform's content on its way to a pipeline: how a
// bundle is built, signed, published, chosen, fetched, verified and unpacked.
//
// A bundle is a tree of regular files, named by the digest of its manifest. A
// channel is a signed document that says which bundle is current for whom.
// Trust comes from signatures alone; the store may lie, and is found out.
package bundle

import (
	"io/fs"
	"time"
)

// Bundle is a verified, read-only tree and the story of how it was chosen.
type Bundle struct {
	// Digest is "sha256:<hex>" of the manifest, which names every file by sum.
	Digest string
	// FS is the content. It contains regular files and folders only.
	FS fs.FS
	// Dir is where FS stands on disk, outside the job's work tree, for
	// scripts that are executed from it.
	Dir string
	// Meta is bundle.yml, parsed.
	Meta Meta
	// Choice is how and why this bundle was chosen.
	Choice Choice
}

// Choice says which bundle a pipeline uses, and why. It travels between jobs
// as .faas/bundle.json, so that every job and retry of a pipeline agrees.
type Choice struct {
	Digest  string    `json:"digest"` // sha256:<hex> of the manifest
	Version string    `json:"version"`
	Org     string    `json:"org"`
	Channel string    `json:"channel"`
	Seq     uint64    `json:"seq"` // of the channel document, the floor of later reads
	At      time.Time `json:"at"`  // the instant chosen for, usually the pipeline's creation
	// Source is where the choice came from: "channel", "pipeline" (handed on by
	// an earlier job), "cache" (last known good) or "seed".
	Source string `json:"source"`
	// Why is one line for people: "stable seq 12, 25 % rollout".
	Why string `json:"why"`
}

// Meta is bundle.yml: what the bundle is and what it needs.
type Meta struct {
	Version   string `yaml:"version"`
	MinRunner string `yaml:"minRunner,omitempty"`
	// Urgent lets a platform change reach projects that asked to wait.
	Urgent bool `yaml:"urgent,omitempty"`
	// Docs is the base URL of help pages, the root of every error's link.
	Docs     string             `yaml:"docs,omitempty"`
	Runner   *Runner            `yaml:"runner,omitempty"`
	Runtimes map[string]Runtime `yaml:"runtimes"`
}

// Runner names the stage runner that must execute this bundle. Blobs are
// keyed by "os/arch".
type Runner struct {
	Version string          `yaml:"version"`
	Blobs   map[string]Blob `yaml:"blobs"`
}

// Blob is content by sum. SHA256 is lower-case hex of the plain bytes; Size
// is their number.
type Blob struct {
	SHA256 string `yaml:"sha256" json:"sha256"`
	Size   int64  `yaml:"size" json:"size"`
}

// Runtime is a base image, the build image of the same ABI, and an adapter.
type Runtime struct {
	Language string `yaml:"language"` // node, python, java
	// Base and Build are image references by digest: repo@sha256:… The
	// repository may be relative to the cluster's registry.
	Base  string `yaml:"base"`
	Build string `yaml:"build,omitempty"`
	// ABI changes when native code built against an older base breaks.
	ABI string `yaml:"abi"`
	// Adapter is the folder of the adapter inside the bundle.
	Adapter string `yaml:"adapter"`
}
