package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kuroko-faas/kuroko/oss"
)

// Client chooses and fetches bundles. Its methods are safe for concurrent
// use, also by several processes that share Cache.
type Client struct {
	// Store is the bundle store, usually an oss.HTTP at platform.json's URL with
	// oss.Retry around it. Nil is a store that never answers.
	Store oss.Reader
	// Root is the key set from platform.json.
	Root Root
	// Seed is the folder with the job image's seed; empty means there is none.
	Seed string
	// Cache is a folder on the node that jobs share; empty means there is none.
	// Nothing in it is trusted.
	Cache string
	// Private is the folder in which private copies are made; empty means
	// os.TempDir. It must be on a file system that allows execution.
	Private string
	// InMemory keeps the content of opened bundles in memory, without a private
	// copy: for programs that run nothing of it.
	InMemory bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// ChannelTimeout and FetchTimeout bound one read of a document, and of
	// content, with all its retries. Defaults: 20 s and 3 min.
	ChannelTimeout, FetchTimeout time.Duration
}

// Query says for whom a bundle is chosen.
type Query struct {
	Org, Channel string
	ProjectID    int64  // CI_PROJECT_ID
	ProjectPath  string // CI_PROJECT_PATH, for pins and the table of tiers
	PipelineID   int64  // CI_PIPELINE_ID; 0 outside pipelines
	// At is when the pipeline was created; zero means now.
	At time.Time
	// Tier is what the project says of itself; it can only tighten the
	// platform's table.
	Tier string
	// Runner is the asking runner's version, compared with minRunner.
	Runner string
	// Floor is the highest seq of this channel known from elsewhere, such as
	// the live release's.
	Floor uint64
	// Handed is the folder in which an earlier job of the pipeline left
	// bundle.json and bundle.pack, usually .faas; empty, or without these files:
	// choose.
	Handed string
}

// How believable a pipeline's creation time is. GitLab's variable can be
// overridden by the project, and clocks differ.
const (
	maxAge  = 72 * time.Hour
	maxSkew = time.Minute
)

// Resolve chooses the bundle.
//
// When an earlier job of the same pipeline handed its choice on, that is the
// answer, whatever channel or store do by now: [ErrRevoked] if a document that
// can be read now revokes it, [ErrUntrusted] if the files were changed.
//
// Otherwise the channel decides for the project and the pipeline's creation
// time. When its document can't be had, or isn't trustworthy, the last known
// good one of this node stands in, and then the image's seed, with one warning.
// With nothing to stand in: [ErrUnavailable], [ErrUntrusted], oss.ErrDenied, or
// [ErrNone] for a channel that doesn't exist. [ErrNone] also when nothing in
// the document applies to the project.
func (c *Client) Resolve(ctx context.Context, q Query) (Choice, error) {
	if !okName(q.Org) || !okName(q.Channel) {
		return Choice{}, failf(ErrNone, "organisation %q, channel %q: names are a-z, 0-9 and -", q.Org, q.Channel)
	}
	var warnings []string
	now := c.now()
	switch at := q.At; {
	case at.IsZero():
		q.At = now
	case at.After(now):
		q.At = now
		if at.Sub(now) > maxSkew {
			warnings = append(warnings, fmt.Sprintf("the pipeline says it was created at %s, which is in the future: taking now", at.UTC().Format(time.RFC3339)))
		}
	case now.Sub(at) > maxAge:
		q.At = now
		warnings = append(warnings, fmt.Sprintf("the pipeline says it was created at %s, more than %.0f hours ago: taking now", at.UTC().Format(time.RFC3339), maxAge.Hours()))
	}
	l := c.local(q.Org, q.Channel)
	warnings = append(warnings, l.warnings...)

	if q.Handed != "" {
		ch, note, err := c.handed(ctx, q, l)
		if err != nil {
			return Choice{}, err
		}
		if ch != nil {
			ch.Warnings = append(warnings, ch.Warnings...)
			return *ch, nil
		}
		if note != "" {
			warnings = append(warnings, note)
		}
	}

	d, err := c.newest(ctx, q.Org, q.Channel, l, q.Floor)
	if ctx.Err() != nil {
		return Choice{}, ctx.Err()
	}
	if err == nil {
		stale := c.stale(ctx, d)
		ch, err := c.choose(d, SourceChannel, q, nil)
		if err != nil {
			return Choice{}, err
		}
		if stale {
			ch.Stale = true
			warnings = append(warnings, fmt.Sprintf("channel %s/%s was not confirmed since %s: going on with what it said then", d.Org, d.Name, d.Expires.UTC().Format(time.RFC3339)))
		}
		ch.Warnings = append(warnings, ch.Warnings...)
		return ch, nil
	}
	for _, alt := range l.standIns() {
		ch, e := c.choose(alt.document, alt.source, q, l.documents())
		if e != nil {
			continue
		}
		ch.Warnings = append(warnings, standInLine(ch, alt.document, q.Floor, err))
		ch.Stale = c.now().After(alt.Expires)
		return ch, nil
	}
	if errors.Is(err, oss.ErrNotFound) {
		return Choice{}, failf(ErrNone, "there is no channel %s/%s: %s", q.Org, q.Channel, reason(err))
	}
	return Choice{}, err
}

// standInLine is the one line a job log gets for an outage.
func standInLine(ch Choice, d *document, floor uint64, why error) string {
	what := "the last one that worked on this machine"
	if ch.Source == SourceSeed {
		what = "the one in this job's image"
	}
	line := fmt.Sprintf("the platform's bundle store could not be used (%s); taking bundle %s, %s, as of %s (seq %d)",
		reason(why), ch.Version, what, d.Issued.UTC().Format(time.RFC3339), d.Seq)
	if d.Seq < floor {
		line += fmt.Sprintf(", which is older than what was used before (seq %d)", floor)
	}
	return line
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Client) channelTimeout() time.Duration {
	if c.ChannelTimeout > 0 {
		return c.ChannelTimeout
	}
	return 20 * time.Second
}

func (c *Client) fetchTimeout() time.Duration {
	if c.FetchTimeout > 0 {
		return c.FetchTimeout
	}
	return 3 * time.Minute
}

// local is what this machine knows about a channel without asking anybody.
type local struct {
	roots        roots // the newest key set known here
	cached, seed *document
	warnings     []string
}

func (c *Client) local(org, name string) local {
	l := local{roots: roots{Root: c.Root}}
	d, err := cache{c.Cache}.document(org, name, l.roots)
	if err != nil {
		l.warnings = append(l.warnings, fmt.Sprintf("node cache: %s: ignored", reason(err)))
	}
	if d != nil {
		l.cached, l.roots = d, d.roots
	}
	if c.Seed != "" {
		raw, err := readSeed(c.Seed, channelKey(org, name), maxEnvelope)
		if err == nil {
			// The seed came with the key set, so that is what signed it, even where
			// the store has a successor by now.
			l.seed, err = openChannel(raw, roots{Root: c.Root}, org, name)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			l.warnings = append(l.warnings, fmt.Sprintf("the job image's seed: %s: ignored", reason(err)))
		}
	}
	return l
}

func readSeed(dir, key string, limit int64) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return readFile(root, filepath.FromSlash(key), limit)
}

// floor is the highest seq this machine has seen.
func (l local) floor() uint64 {
	var f uint64
	for _, d := range l.documents() {
		f = max(f, d.Seq)
	}
	return f
}

func (l local) documents() []*document {
	var ds []*document
	for _, d := range []*document{l.cached, l.seed} {
		if d != nil {
			ds = append(ds, d)
		}
	}
	return ds
}

type standIn struct {
	*document
	source string
}

// standIns are what may be used during an outage, best first.
func (l local) standIns() []standIn {
	var s []standIn
	if l.cached != nil {
		s = append(s, standIn{l.cached, SourceCache})
	}
	if l.seed != nil {
		s = append(s, standIn{l.seed, SourceSeed})
	}
	return s
}

// newest reads and verifies the channel's document. One below the floor is
// [ErrUntrusted]: somebody plays an old one back.
func (c *Client) newest(ctx context.Context, org, name string, l local, floor uint64) (*document, error) {
	etag := ""
	if l.cached != nil {
		etag = l.cached.etag
	}
	raw, tag, err := c.get(ctx, channelKey(org, name), etag, maxEnvelope, c.channelTimeout())
	d := l.cached
	switch {
	case errors.Is(err, oss.ErrNotModified) && d != nil && etag != "":
	case err != nil:
		return nil, err
	default:
		rs := l.roots
		if n := claimOf(raw).Root; n > rs.N {
			if rs, err = c.follow(ctx, rs, n); err != nil {
				return nil, err
			}
		}
		if d, err = openChannel(raw, rs, org, name); err != nil {
			return nil, err
		}
		d.etag = tag
	}
	if floor = max(floor, l.floor()); d.Seq < floor {
		return nil, failf(ErrUntrusted, "channel document of %s/%s has seq %d, but %d was seen already", org, name, d.Seq, floor)
	}
	return d, nil
}

// follow fetches key sets, all within one time-out.
func (c *Client) follow(ctx context.Context, rs roots, n int) (roots, error) {
	sub, cancel := context.WithTimeout(ctx, c.channelTimeout())
	defer cancel()
	rs, err := followTo(sub, c.Store, rs, n)
	if err != nil && ctx.Err() == nil && sub.Err() != nil {
		return rs, failf(ErrUnavailable, "key set %d: no answer within %s", n, c.channelTimeout())
	}
	return rs, err
}

// stale says that d has expired and that nobody with the freshness key
// vouches for it. The statement is only looked for when it is needed.
func (c *Client) stale(ctx context.Context, d *document) bool {
	if c.now().Before(d.Expires) {
		return false
	}
	if len(d.roots.Roles.Fresh.Keys) == 0 {
		return true
	}
	raw, _, err := c.get(ctx, freshKey(d.Org, d.Name), "", maxEnvelope, c.channelTimeout())
	return err != nil || d.vouches(raw, c.now()) != nil
}

// choose applies a document to q. What any of the others revokes is revoked;
// from the seed only what the seed holds can be chosen.
func (c *Client) choose(d *document, source string, q Query, others []*document) (Choice, error) {
	doc := d.Channel
	doc.Revoked = doc.Revoked[:len(doc.Revoked):len(doc.Revoked)]
	for _, o := range others {
		doc.Revoked = append(doc.Revoked, o.Revoked...)
	}
	p, err := doc.choose(q)
	if source == SourceSeed && (err != nil || !c.seedHas(p.manifest)) {
		p, err = pick{}, failf(ErrNone, "the seed holds no bundle of %s/%s that may be used", d.Org, d.Name)
		for _, e := range doc.Entries {
			if doc.lists(e.Manifest) && c.seedHas(e.Manifest) {
				p, err = pick{e.Manifest, e.Version, fmt.Sprintf("%s/%s seq %d: %s, the seed", d.Org, d.Name, d.Seq, e.Version), nil}, nil
				break
			}
		}
	}
	if err != nil {
		return Choice{}, err
	}
	return Choice{
		Digest: digest(p.manifest), Version: p.version, Org: d.Org, Channel: d.Name, Seq: d.Seq,
		At: q.At.UTC().Truncate(time.Second), Project: q.ProjectID, Pipeline: q.PipelineID,
		Tier: stricter(d.Tier(q.ProjectPath), q.Tier), Source: source, Why: p.why, Warnings: p.warnings,
		evidence: &evidence{query: q, doc: d},
	}, nil
}

func (c *Client) seedHas(manifest string) bool {
	if c.Seed == "" || !okSum(manifest) {
		return false
	}
	in, err := os.Stat(filepath.Join(c.Seed, filepath.FromSlash(manifestKey(manifest))))
	return err == nil && in.Mode().IsRegular()
}
