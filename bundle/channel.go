package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Channel is the signed document that moves: which bundle is current for
// whom. Times are UTC. A Channel is a value; [Next], [Pinned] and [Revoke]
// make the next one.
type Channel struct {
	Format int    `json:"format"` // 1
	Org    string `json:"org"`
	Name   string `json:"name"`
	// Root is the number of the key set that the signers used; a reader with an
	// older one fetches the successors.
	Root    int       `json:"root"`
	Seq     uint64    `json:"seq"` // 1, 2, …
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	// Who, Why and Job say who published this document; with the numbered copies
	// they are the audit log.
	Who string `json:"who,omitempty"`
	Why string `json:"why,omitempty"`
	Job string `json:"job,omitempty"`
	// Entries are newest first, append-only: old ones leave at the end only.
	Entries []Entry `json:"entries"`
	// Pins hold projects on one bundle; the first that matches wins.
	Pins    []Pin     `json:"pins,omitempty"`
	Revoked []Revoked `json:"revoked,omitempty"`
	// Tiers is the platform's table: group or project path → sandbox, standard
	// or core. The longest path wins; a project may only be stricter.
	Tiers map[string]string `json:"tiers,omitempty"`
	// Needs names features that a reader must know to use this document at all.
	Needs []string `json:"needs,omitempty"`
}

// Entry makes a bundle current from From on, for Percent of the projects.
type Entry struct {
	Manifest string    `json:"manifest"` // hex sum of the manifest
	Version  string    `json:"version"`  // for people
	From     time.Time `json:"from"`
	Percent  int       `json:"percent"` // 1…100
	// Projects take part whatever Percent says (CI_PROJECT_ID).
	Projects []int64 `json:"projects,omitempty"`
	// Tiers limits the entry to projects of these tiers; empty means all.
	Tiers []string `json:"tiers,omitempty"`
	// MinRunner: an older runner passes over this entry.
	MinRunner string `json:"minRunner,omitempty"`
	Who       string `json:"who,omitempty"`
	Why       string `json:"why,omitempty"`
	// Needs names features without which this entry must be passed over.
	Needs []string `json:"needs,omitempty"`
}

// Pin holds one project, by id, or the projects whose path matches Path
// (path.Match; "group/**" is everything below group).
type Pin struct {
	Project  int64     `json:"project,omitempty"`
	Path     string    `json:"path,omitempty"`
	Manifest string    `json:"manifest"`
	Version  string    `json:"version,omitempty"`
	From     time.Time `json:"from,omitzero"`
	Until    time.Time `json:"until,omitzero"`
	Why      string    `json:"why"`
}

// Revoked takes a bundle away from everybody at once, running pipelines
// included.
type Revoked struct {
	Manifest string `json:"manifest"`
	Why      string `json:"why"`
}

const (
	maxEntries = 1000
	maxPins    = 10_000
	maxName    = 64
	maxText    = 2000
)

// tiers in order of strictness.
var tierOrder = []string{"sandbox", "standard", "core"}

// knownNeeds are the features this runner knows beyond the frozen format.
var knownNeeds = map[string]bool{}

// okName is what orgs and channels may be called: their names are part of
// keys and file names.
func okName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '-') {
			return false
		}
	}
	return true
}

// printable refuses what could forge lines in a job log.
func printable(s string) bool {
	return len(s) <= maxText && strings.IndexFunc(s, unicode.IsControl) < 0
}

// parseChannel decodes and validates the payload of a verified envelope.
// Unknown fields are allowed: old runners read new documents.
func parseChannel(payload []byte) (*Channel, error) {
	var c Channel
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, failf(ErrUntrusted, "channel document: %w", err)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Validate checks the document by itself.
func (c *Channel) Validate() error {
	bad := func(format string, args ...any) error {
		return failf(ErrUntrusted, "channel document: "+format, args...)
	}
	switch {
	case c.Format != 1:
		return bad("format %d, this runner reads 1", c.Format)
	case !okName(c.Org) || !okName(c.Name):
		return bad("organisation %q, channel %q: names are a-z, 0-9 and -", c.Org, c.Name)
	case c.Seq < 1 || c.Root < 1:
		return bad("seq %d, root %d", c.Seq, c.Root)
	case c.Issued.IsZero() || !c.Expires.After(c.Issued):
		return bad("it expires before it was issued")
	case len(c.Entries) > maxEntries || len(c.Pins) > maxPins || len(c.Revoked) > maxPins || len(c.Tiers) > maxPins:
		return bad("too many entries, pins, revocations or tiers")
	case !printable(c.Who) || !printable(c.Why) || !printable(c.Job):
		return bad("unprintable text")
	}
	for i, e := range c.Entries {
		switch {
		case !okSum(e.Manifest):
			return bad("entry %d: %q is not a manifest's sum", i, e.Manifest)
		case e.Percent < 1 || e.Percent > 100:
			return bad("entry %d: %d percent", i, e.Percent)
		case e.From.IsZero():
			return bad("entry %d: no start", i)
		case i > 0 && e.From.After(c.Entries[i-1].From):
			return bad("entry %d is newer than the one before it", i)
		case !printable(e.Version) || !printable(e.Who) || !printable(e.Why) || !printable(e.MinRunner):
			return bad("entry %d: unprintable text", i)
		}
		for _, t := range e.Tiers {
			if !slices.Contains(tierOrder, t) {
				return bad("entry %d: unknown tier %q", i, t)
			}
		}
	}
	for i, p := range c.Pins {
		_, err := path.Match(p.Path, "")
		switch {
		case !okSum(p.Manifest):
			return bad("pin %d: %q is not a manifest's sum", i, p.Manifest)
		case (p.Project == 0) == (p.Path == "") || p.Project < 0:
			return bad("pin %d names a project id or a path, one of both", i)
		case err != nil:
			return bad("pin %d: path %q is no pattern", i, p.Path)
		case !printable(p.Path) || !printable(p.Why) || !printable(p.Version):
			return bad("pin %d: unprintable text", i)
		}
	}
	for i, r := range c.Revoked {
		if !okSum(r.Manifest) || !printable(r.Why) {
			return bad("revocation %d is malformed", i)
		}
	}
	for g, t := range c.Tiers {
		if !slices.Contains(tierOrder, t) {
			return bad("tiers: %q: unknown tier %q", g, t)
		}
	}
	return nil
}

// Bucket is the stable place, 0…99, of a project in a rollout:
// sha256(manifest ‖ project id) mod 100, with the manifest's hex sum, the id
// in decimal, and the digest read as one big-endian number. The salt is the
// manifest, so that not always the same projects go first; raising the
// percentage only ever adds projects; a rename changes nothing.
func Bucket(manifest string, project int64) int {
	r := 0
	for _, b := range sha256.Sum256([]byte(manifest + strconv.FormatInt(project, 10))) {
		r = (r<<8 | int(b)) % 100
	}
	return r
}

// Tier is what the platform's table says about a project: standard where it
// says nothing.
func (c *Channel) Tier(projectPath string) string {
	tier, longest := "standard", -1
	name := strings.ToLower(projectPath)
	for group, t := range c.Tiers {
		group = strings.ToLower(group)
		if name != group && !strings.HasPrefix(name, group+"/") || len(group) < longest {
			continue
		}
		if len(group) == longest { // two spellings of one group
			t = stricter(tier, t)
		}
		tier, longest = t, len(group)
	}
	return tier
}

// stricter returns the stricter tier; an unknown one loses.
func stricter(a, b string) string {
	if slices.Index(tierOrder, b) > slices.Index(tierOrder, a) {
		return b
	}
	return a
}

// revoked returns why a manifest was revoked.
func (c *Channel) revoked(manifest string) (why string, yes bool) {
	for _, r := range c.Revoked {
		if r.Manifest == manifest {
			return r.Why, true
		}
	}
	return "", false
}

// lists says whether the document names a manifest as usable.
func (c *Channel) lists(manifest string) bool {
	if _, no := c.revoked(manifest); no {
		return false
	}
	return slices.ContainsFunc(c.Entries, func(e Entry) bool { return e.Manifest == manifest }) ||
		slices.ContainsFunc(c.Pins, func(p Pin) bool { return p.Manifest == manifest })
}

// pick is the outcome of choose.
type pick struct {
	manifest, version, why string
	warnings               []string
}

// choose is a pure function of the document and q: every job of a pipeline
// passes the same project and creation time, and so gets the same answer
// whenever it runs.
func (c *Channel) choose(q Query) (pick, error) {
	tier := stricter(c.Tier(q.ProjectPath), q.Tier)
	head := fmt.Sprintf("%s/%s seq %d", c.Org, c.Name, c.Seq)
	for _, p := range c.Pins {
		if !p.holds(q) {
			continue
		}
		version := p.Version
		if version == "" {
			version = p.Manifest[:12]
		}
		if why, no := c.revoked(p.Manifest); no {
			return pick{}, failf(ErrNone, "%s pins this project to %s, which is revoked: %s", head, version, why)
		}
		return pick{manifest: p.Manifest, version: version, why: fmt.Sprintf("%s: %s, pinned: %s", head, version, p.Why)}, nil
	}
	var warnings []string
	usable := func(e Entry) bool {
		if _, no := c.revoked(e.Manifest); no {
			return false
		}
		if len(e.Tiers) > 0 && !slices.Contains(e.Tiers, tier) {
			return false
		}
		if older(q.Runner, e.MinRunner) {
			warnings = append(warnings, fmt.Sprintf("bundle %s needs runner %s or newer, this one is %s: passed over", e.Version, e.MinRunner, q.Runner))
			return false
		}
		if need := unknownNeed(e.Needs); need != "" {
			warnings = append(warnings, fmt.Sprintf("bundle %s needs %q, which this runner doesn't know: passed over", e.Version, need))
			return false
		}
		return true
	}
	for _, e := range c.Entries {
		if e.From.After(q.At) {
			continue
		}
		in := e.Percent >= 100 || slices.Contains(e.Projects, q.ProjectID) || Bucket(e.Manifest, q.ProjectID) < e.Percent
		if in && usable(e) {
			return pick{e.Manifest, e.Version, fmt.Sprintf("%s: %s at %d %%, from %s", head, e.Version, e.Percent, e.From.UTC().Format(time.RFC3339)), warnings}, nil
		}
	}
	// The pipeline is older than every entry that applies. The oldest full one
	// is the nearest to what was current then, and what a first publication is.
	for _, e := range slices.Backward(c.Entries) {
		if e.Percent >= 100 && e.From.After(q.At) && usable(e) {
			return pick{e.Manifest, e.Version, fmt.Sprintf("%s: %s, the oldest listed", head, e.Version), warnings}, nil
		}
	}
	return pick{}, failf(ErrNone, "%s: no entry applies to project %d", head, q.ProjectID)
}

func (p Pin) holds(q Query) bool {
	if q.At.Before(p.From) || !p.Until.IsZero() && !q.At.Before(p.Until) {
		return false
	}
	if p.Project != 0 {
		return p.Project == q.ProjectID
	}
	return matchPath(p.Path, q.ProjectPath)
}

// matchPath is path.Match where "group/**" means everything below group.
func matchPath(pattern, name string) bool {
	// GitLab's paths differ by more than case.
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	if group, ok := strings.CutSuffix(pattern, "/**"); ok {
		return strings.HasPrefix(name, group+"/")
	}
	ok, _ := path.Match(pattern, name)
	return ok
}

func unknownNeed(needs []string) string {
	for _, n := range needs {
		if !knownNeeds[n] {
			return n
		}
	}
	return ""
}

// older says that version own is known to be before min. A version that is
// not numbers and dots, such as a developer's build, is never too old.
func older(own, min string) bool {
	a, okA := numbers(own)
	b, okB := numbers(min)
	return okA && okB && slices.Compare(a, b) < 0
}

// numbers reads v1.2.3, ignoring what follows a - or +. Trailing zeros are
// cut, so that 1.2 equals 1.2.0.
func numbers(v string) ([]int, bool) {
	v = strings.TrimPrefix(v, "v")
	if i := strings.IndexAny(v, "-+"); i >= 0 {
		v = v[:i]
	}
	if v == "" {
		return nil, false
	}
	var n []int
	for p := range strings.SplitSeq(v, ".") {
		i, err := strconv.Atoi(p)
		if err != nil || i < 0 {
			return nil, false
		}
		n = append(n, i)
	}
	for len(n) > 0 && n[len(n)-1] == 0 {
		n = n[:len(n)-1]
	}
	return n, true
}

// document is a verified channel document with the bytes that prove it.
type document struct {
	Channel
	raw   []byte
	roots roots
	etag  string
}

// openChannel verifies raw under r's channel keys and that it is the document
// of org/name.
func openChannel(raw []byte, r roots, org, name string) (*document, error) {
	e, err := parseEnvelope(raw)
	if err != nil {
		return nil, err
	}
	p, err := e.payload(TypeChannel, r.trust(r.Roles.Channel))
	if err != nil {
		return nil, err
	}
	c, err := parseChannel(p)
	if err != nil {
		return nil, err
	}
	if c.Org != org || c.Name != name {
		return nil, failf(ErrUntrusted, "channel document is that of %s/%s, not of %s/%s", c.Org, c.Name, org, name)
	}
	if need := unknownNeed(c.Needs); need != "" {
		return nil, failf(ErrUntrusted, "channel document needs %q, which this runner doesn't know", need)
	}
	return &document{Channel: *c, raw: raw, roots: r}, nil
}

// claim is what an unverified document says of itself. It decides what to
// fetch next, never what to believe.
type claim struct {
	Root int
	Seq  uint64
}

func claimOf(raw []byte) claim {
	var c claim
	e, err := parseEnvelope(raw)
	if err != nil || json.Unmarshal(e.Payload, &c) != nil {
		return claim{}
	}
	return c
}

// Fresh says that a channel document is still the newest, so that nobody has
// to publish during a holiday. Its key can do nothing else.
type Fresh struct {
	Format  int       `json:"format"` // 1
	Org     string    `json:"org"`
	Name    string    `json:"name"`
	Seq     uint64    `json:"seq"`
	SHA256  string    `json:"sha256"` // of the document's envelope
	Expires time.Time `json:"expires"`
}

// vouches verifies a freshness statement for d at now.
func (d *document) vouches(raw []byte, now time.Time) error {
	if len(d.roots.Roles.Fresh.Keys) == 0 {
		return failf(ErrUntrusted, "the key set has no freshness key")
	}
	e, err := parseEnvelope(raw)
	if err != nil {
		return err
	}
	p, err := e.payload(TypeFresh, d.roots.trust(d.roots.Roles.Fresh))
	if err != nil {
		return err
	}
	var f Fresh
	if err := json.Unmarshal(p, &f); err != nil {
		return failf(ErrUntrusted, "freshness statement: %w", err)
	}
	h := sha256.Sum256(d.raw)
	if f.Format != 1 || f.Org != d.Org || f.Name != d.Name || f.Seq != d.Seq || f.SHA256 != hex.EncodeToString(h[:]) {
		return failf(ErrUntrusted, "freshness statement is about another document")
	}
	if !now.Before(f.Expires) {
		return failf(ErrUntrusted, "freshness statement expired at %s", f.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}
