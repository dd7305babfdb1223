// Package bundle is the platform's content on its way to a pipeline: how a
// bundle is built, signed, published, chosen, fetched, verified and unpacked.
//
// A bundle is a tree of regular files, named by the digest of its manifest. A
// channel is a signed document that says which bundle is current for whom.
// Trust comes from signatures alone; the store may lie, and is found out.
//
// In the store:
//
//	v1/root/<n>.json                 key set n, signed by the thresholds of n-1 and of n
//	v1/chan/<org>/<name>.json        signed channel document, the only object that is overwritten
//	v1/chan/<org>/<name>/<seq>.json  the same bytes, create-only: lock and audit log
//	v1/fresh/<org>/<name>.json       statement that a channel document is still the newest
//	v1/man/<sha256>                  manifest: every file by path, sum and size
//	v1/pack/<sha256>                 the files in the manifest's order, one zstd stream
//	v1/blob/<aa>/<sha256>            one file, zstd; the key is the sum of the plain bytes
//	v1/bin/<sha256>                  a stage runner, zstd; the key is the sum of the plain bytes
//
// These formats are frozen: a seed runner that was baked into a job image
// years ago must still be able to find, verify and start today's runner. New
// optional fields may be added to JSON documents; a field that a reader must
// not ignore is named in the document's or the entry's `needs`.
//
// Reading: [Client.Resolve] chooses, [Client.Open] makes the bundle available,
// [Bundle.HandOn] passes it to the pipeline's later jobs, [Client.Runner] and
// [PlanRunner] start the runner that the bundle names. Writing: [Build],
// [Publish], [Next], [Move].
//
// The package prints nothing. What a person should know although the call
// succeeded is in Choice.Warnings and Bundle.Warnings, one plain line each.
package bundle

import (
	"io/fs"
	"os"
	"strings"
	"time"
)

// Bundle is a verified, read-only tree and the story of how it was chosen.
type Bundle struct {
	// Digest is "sha256:<hex>" of the manifest, which names every file by sum.
	Digest string
	// FS is the content. It contains regular files and folders only.
	FS fs.FS
	// Dir is where FS stands on disk, for scripts that are executed from it: a
	// private copy made for this process, outside the job's work tree and
	// outside every cache, so that no other job can write it. Close removes it.
	// Empty under [Client.InMemory].
	Dir string
	// Meta is bundle.yml, parsed. A runner older than the bundle ignores the
	// keys it doesn't know.
	Meta Meta
	// Choice is how and why this bundle was chosen. After an outage it may name
	// another bundle than the Choice that was given to Open.
	Choice Choice
	// Warnings are plain lines for the job log: those of the Choice and what
	// opening added.
	Warnings []string

	private  string   // folder that Close removes
	lock     *os.File // held while private is in use
	manifest []byte
	pack     []byte
}

// Close removes the private copy. Dir and FS are gone afterwards. A process
// that is killed before leaves the copy to the next one on the machine.
func (b *Bundle) Close() error {
	if b.private == "" {
		return nil
	}
	err := os.RemoveAll(b.private)
	if b.lock != nil {
		b.lock.Close() // not before: others remove what nobody holds
	}
	return err
}

// Choice says which bundle a pipeline uses, and why. It travels between jobs
// inside .faas/bundle.json, so that every job and retry of a pipeline agrees.
type Choice struct {
	Digest  string `json:"digest"` // sha256:<hex> of the manifest
	Version string `json:"version"`
	Org     string `json:"org"`
	Channel string `json:"channel"`
	Seq     uint64 `json:"seq"` // of the channel document, the floor of later reads
	// At is the instant chosen for: the pipeline's creation, or now where that
	// was not believable.
	At time.Time `json:"at"`
	// Project and Pipeline are whom the choice was made for (CI_PROJECT_ID,
	// CI_PIPELINE_ID); a bundle.json of somebody else is not used.
	Project  int64 `json:"project,omitempty"`
	Pipeline int64 `json:"pipeline,omitempty"`
	// Tier is the stricter of the channel document's table and the project's own
	// word.
	Tier string `json:"tier,omitempty"`
	// Stale is set when the channel document had expired and nobody vouched for
	// it since. Policy may stop critical tiers then.
	Stale bool `json:"stale,omitempty"`
	// Source is where the choice came from: "channel", "pipeline" (handed on by
	// an earlier job), "cache" (last known good) or "seed".
	Source string `json:"source"`
	// Why is one line for people: "acme/stable seq 12: 1.4.0 at 25 %".
	Why string `json:"why"`

	// Warnings are plain lines for the job log. They don't travel.
	Warnings []string `json:"-"`

	evidence *evidence
}

// The values of Choice.Source.
const (
	SourceChannel  = "channel"
	SourcePipeline = "pipeline"
	SourceCache    = "cache"
	SourceSeed     = "seed"
)

// evidence is what proves a Choice, and what Open needs beyond it.
type evidence struct {
	query    Query
	doc      *document // the signed channel document
	manifest []byte    // set when handed on
	handed   string    // folder with bundle.pack; empty unless handed on
}

// Meta is bundle.yml: what the bundle is and what it needs.
type Meta struct {
	Version string `yaml:"version"`
	// MinRunner is the oldest runner that can read this bundle at all.
	MinRunner string `yaml:"minRunner,omitempty"`
	// Urgent lets a platform change reach projects that asked to wait.
	Urgent bool `yaml:"urgent,omitempty"`
	// Docs is the base URL of help pages, the root of every error's link.
	Docs     string             `yaml:"docs,omitempty"`
	Runner   *Runner            `yaml:"runner,omitempty"`
	Runtimes map[string]Runtime `yaml:"runtimes,omitempty"`
	// Mirrors are where packages come from, by kind (npm, pip, maven), instead of
	// what a job's machine is set up for. Addresses without credentials.
	Mirrors map[string]string `yaml:"mirrors,omitempty"`
	// Proxy is how jobs reach the web, instead of what their machine says.
	Proxy Proxy `yaml:"proxy,omitempty"`
}

// Proxy are addresses of proxies, without credentials; the zero value says
// nothing.
type Proxy struct {
	HTTP  string `yaml:"http,omitempty"`  // for http: addresses
	HTTPS string `yaml:"https,omitempty"` // for https: addresses
	// None lists what is reached without a proxy, as NO_PROXY does: host names,
	// domains that begin with a dot, addresses, networks.
	None []string `yaml:"none,omitempty"`
}

// Variables are the proxies as programs look for them.
func (p Proxy) Variables() []string {
	if p.HTTP == "" && p.HTTPS == "" {
		return nil
	}
	var out []string
	for _, v := range [][2]string{{"HTTP_PROXY", p.HTTP}, {"HTTPS_PROXY", p.HTTPS}, {"NO_PROXY", strings.Join(p.None, ",")}} {
		out = append(out, v[0]+"="+v[1], strings.ToLower(v[0])+"="+v[1])
	}
	return out
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
	// Adapter is the folder of the adapter inside the bundle. A runtime
	// without one runs servers of their own alone: contract app.
	Adapter string `yaml:"adapter,omitempty"`
	// Layers are the built-in layers made for Base, by name: images of one
	// layer, by digest like Base.
	Layers map[string]string `yaml:"layers,omitempty"`
}
