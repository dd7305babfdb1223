package bundle

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/kuroko-faas/kuroko/oss"
)

const (
	cacheForever = "public, max-age=31536000, immutable"
	cacheBriefly = "public, max-age=15"
)

// Published says what Publish did.
type Published struct {
	Objects, Uploaded int
	Bytes             int64 // uploaded
}

// Publish stores a package's objects and then its manifest. It may be called
// again after an error: what is there already is not sent again. Nothing
// becomes visible to anybody before a channel names the manifest; see [Move].
// Manifest, pack and runners are read back, so that a store which lost or
// mangled them is found here and not by ten thousand pipelines.
func Publish(ctx context.Context, s oss.Store, p *Package) (Published, error) {
	id, err := hexOf(p.Digest)
	if err != nil {
		return Published{}, err
	}
	out := Published{Objects: len(p.objects) + 1}
	var mu sync.Mutex
	create := func(ctx context.Context, key string, body []byte) error {
		err := s.Create(ctx, key, body, oss.PutOptions{CacheControl: cacheForever, ContentType: "application/octet-stream"})
		if errors.Is(err, oss.ErrExists) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("bundle: publish: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		out.Uploaded++
		out.Bytes += int64(len(body))
		return nil
	}
	if err := each(ctx, slices.Sorted(maps.Keys(p.objects)), func(ctx context.Context, key string) error {
		return create(ctx, key, p.objects[key])
	}); err != nil {
		return out, err
	}
	if err := create(ctx, manifestKey(id), p.manifest); err != nil {
		return out, err
	}
	back := map[string][]byte{manifestKey(id): p.manifest}
	for key, body := range p.objects {
		if !isBlob(key) {
			back[key] = body
		}
	}
	return out, each(ctx, slices.Sorted(maps.Keys(back)), func(ctx context.Context, key string) error {
		raw, _, err := fetch(ctx, s, key, "", maxRunner)
		if err != nil {
			return fmt.Errorf("bundle: read back: %w", err)
		}
		if bytes.Equal(raw, back[key]) {
			return nil
		}
		return failf(ErrUntrusted, "read back %s: the store holds other bytes; delete that object and publish again", key)
	})
}

func isBlob(key string) bool { return len(key) > 8 && key[:8] == "v1/blob/" }

// each calls f for every key, eight at a time; the first error stops the rest.
func each(ctx context.Context, keys []string, f func(context.Context, string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	slots := make(chan struct{}, 8)
	for _, key := range keys {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := f(ctx, key); err != nil {
				once.Do(func() { first = err })
				cancel()
			}
		})
	}
	wg.Wait()
	if first == nil {
		return context.Cause(ctx)
	}
	return first
}

// DefaultLead is how long before its activation an entry should be published:
// longer than any cache keeps the channel document, plus clock skew. Within
// it, no pipeline can get two answers.
const DefaultLead = 60 * time.Second

// Terms are the conditions of a new channel document.
type Terms struct {
	Now time.Time
	// Lead is the least time between now and an entry's start: [DefaultLead].
	// Zero activates at once, and jobs of a pipeline that is being created right
	// now may disagree: for demonstrations and tests.
	Lead time.Duration
	// TTL is how long readers take the document as current without a word from
	// anybody; afterwards they warn. Default 30 days.
	TTL time.Duration
	// Keep is how long entries stay listed after they were replaced; it must be
	// longer than the 72 hours that readers look back. Default 96 hours.
	Keep time.Duration
	// Who, Why and Job go into the document. Why must not be empty.
	Who, Why, Job string
}

// next is prev with the next number and t's conditions.
func (t Terms) next(prev Channel) (Channel, error) {
	if t.Why == "" {
		return Channel{}, failf(ErrContent, "a change of a channel needs a reason")
	}
	if t.TTL <= 0 {
		t.TTL = 30 * 24 * time.Hour
	}
	if !okName(prev.Org) || !okName(prev.Name) {
		return Channel{}, failf(ErrContent, "organisation %q, channel %q: names are a-z, 0-9 and -", prev.Org, prev.Name)
	}
	n := prev
	n.Format = 1
	n.Seq++
	n.Issued = t.Now.UTC().Truncate(time.Second)
	n.Expires = n.Issued.Add(t.TTL)
	n.Who, n.Why, n.Job = t.Who, t.Why, t.Job
	return n, nil
}

// Next appends an entry. For the first document prev holds Org, Name and Root
// only.
//
// History is append-only, so that the answer for a past instant never changes
// except by revocation: an entry starts at least Lead from now and after every
// listed one, and a rollout can't shrink. To raise it, append the same
// manifest with a higher percentage; to go back, append the older manifest.
// An e.From of zero means as early as allowed.
func Next(prev Channel, e Entry, t Terms) (Channel, error) {
	n, err := t.next(prev)
	if err != nil {
		return Channel{}, err
	}
	earliest := n.Issued.Add(t.Lead)
	if t.Now.After(n.Issued) && t.Lead > 0 {
		earliest = earliest.Add(time.Second) // Issued was rounded down
	}
	if e.From.IsZero() {
		e.From = earliest
		if len(prev.Entries) > 0 && !e.From.After(prev.Entries[0].From) {
			e.From = prev.Entries[0].From.Add(time.Second)
		}
	}
	e.From = e.From.UTC().Truncate(time.Second)
	if e.From.Before(earliest) {
		return Channel{}, failf(ErrContent, "an entry must start %s after it is published, not at %s", t.Lead, e.From.Format(time.RFC3339))
	}
	for _, o := range prev.Entries {
		if !o.From.Before(e.From) {
			return Channel{}, failf(ErrContent, "an entry from %s is listed already; a new one must start later", o.From.UTC().Format(time.RFC3339))
		}
	}
	if why, no := prev.revoked(e.Manifest); no {
		return Channel{}, failf(ErrContent, "bundle %.12s is revoked: %s", e.Manifest, why)
	}
	if last := prev.Entries; len(last) > 0 && last[0].Manifest == e.Manifest && last[0].Percent > e.Percent {
		return Channel{}, failf(ErrContent, "a rollout can't shrink from %d to %d %%; append the older bundle, or revoke", last[0].Percent, e.Percent)
	}
	e.Who, e.Why = t.Who, t.Why
	n.Entries = append([]Entry{e}, prev.Entries...)
	n.Entries = prune(n.Entries, n.Issued, t.Keep)
	return n, n.Validate()
}

// prune drops what no pipeline can ask for any more: entries older than keep
// and older than a full one that is itself older than keep.
func prune(es []Entry, now time.Time, keep time.Duration) []Entry {
	if keep <= 0 {
		keep = 96 * time.Hour
	}
	covered := false
	return slices.DeleteFunc(es, func(e Entry) bool {
		old := now.Sub(e.From) > keep
		drop := covered && old
		if old && e.Percent >= 100 && len(e.Tiers) == 0 && e.MinRunner == "" && len(e.Needs) == 0 {
			covered = true
		}
		return drop
	})
}

// Revoke takes a bundle away from everybody, at once and for good. A bundle
// that is the only one listed can't be revoked: publish another first.
func Revoke(prev Channel, manifest, why string, t Terms) (Channel, error) {
	n, err := t.next(prev)
	if err != nil {
		return Channel{}, err
	}
	if !prev.lists(manifest) {
		return Channel{}, failf(ErrContent, "bundle %.12s is not listed, or revoked already", manifest)
	}
	n.Revoked = append(slices.Clone(prev.Revoked), Revoked{Manifest: manifest, Why: why})
	if !slices.ContainsFunc(n.Entries, func(e Entry) bool { return e.Percent >= 100 && n.lists(e.Manifest) }) {
		return Channel{}, failf(ErrContent, "without bundle %.12s nothing would be left for every project; publish another one first", manifest)
	}
	return n, n.Validate()
}

// Move signs and publishes a channel document made by [Next] or [Revoke]. The
// numbered copy is created first: of several publishers all but one lose there,
// with [ErrConflict], and the copies are the audit log. Then the pointer is
// overwritten and read back.
func Move(ctx context.Context, s oss.Store, c Channel, keys ...ed25519.PrivateKey) error {
	if err := c.Validate(); err != nil {
		return &failure{ErrContent, errors.New(reason(err))}
	}
	if len(keys) == 0 {
		return failf(ErrContent, "no key to sign the channel document with")
	}
	raw, err := Seal(TypeChannel, c, keys...)
	if err != nil {
		return err
	}
	key := numberedKey(c.Org, c.Name, c.Seq)
	err = s.Create(ctx, key, raw, oss.PutOptions{CacheControl: cacheForever, ContentType: "application/json"})
	if errors.Is(err, oss.ErrExists) {
		// Our own earlier attempt, whose answer got lost, is no conflict.
		mine, _, e := fetch(ctx, s, key, "", maxEnvelope)
		if e != nil || !bytes.Equal(mine, raw) {
			return failf(ErrConflict, "%s/%s: seq %d exists already", c.Org, c.Name, c.Seq)
		}
	} else if err != nil {
		return fmt.Errorf("bundle: publish: %w", err)
	}
	return point(ctx, s, c.Org, c.Name, c.Seq, raw)
}

// point makes raw the channel's current document. A publisher who was late may
// put an older one over it; that is seen on reading back.
func point(ctx context.Context, s oss.Store, org, name string, seq uint64, raw []byte) error {
	key := channelKey(org, name)
	for range 3 {
		if err := s.Put(ctx, key, raw, oss.PutOptions{CacheControl: cacheBriefly, ContentType: "application/json"}); err != nil {
			return fmt.Errorf("bundle: publish: %w", err)
		}
		got, _, err := fetch(ctx, s, key, "", maxEnvelope)
		if err != nil {
			return fmt.Errorf("bundle: read back: %w", err)
		}
		if bytes.Equal(got, raw) || claimOf(got).Seq > seq {
			return nil // ours, or one built on ours
		}
	}
	return failf(ErrUntrusted, "read back %s: the store holds other bytes", key)
}

// Current reads and verifies a channel's newest document for a publisher. An
// oss.ErrNotFound means the channel does not exist yet.
//
// A publisher may have died between the numbered copy and the pointer. Then
// the numbered copy is newer; it is returned with repair true, and [Repair]
// finishes that publication.
func Current(ctx context.Context, r oss.Reader, root Root, org, name string) (c Channel, repair bool, err error) {
	d, repair, err := current(ctx, r, roots{Root: root}, org, name)
	if err != nil {
		return Channel{}, false, err
	}
	return d.Channel, repair, nil
}

func current(ctx context.Context, r oss.Reader, rs roots, org, name string) (*document, bool, error) {
	if !okName(org) || !okName(name) {
		return nil, false, failf(ErrContent, "organisation %q, channel %q: names are a-z, 0-9 and -", org, name)
	}
	var d *document
	raw, _, err := fetch(ctx, r, channelKey(org, name), "", maxEnvelope)
	switch {
	case err == nil:
		if rs, err = followTo(ctx, r, rs, claimOf(raw).Root); err != nil {
			return nil, false, err
		}
		if d, err = openChannel(raw, rs, org, name); err != nil {
			return nil, false, err
		}
	case !errors.Is(err, oss.ErrNotFound):
		return nil, false, err
	}
	pointer := err == nil
	behind := false
	for seq := uint64(1); ; seq++ {
		if d != nil {
			seq = d.Seq + 1
		}
		raw, _, e := fetch(ctx, r, numberedKey(org, name, seq), "", maxEnvelope)
		if errors.Is(e, oss.ErrNotFound) {
			break
		}
		if e != nil {
			return nil, false, e
		}
		if rs, e = followTo(ctx, r, rs, claimOf(raw).Root); e != nil {
			return nil, false, e
		}
		next, e := openChannel(raw, rs, org, name)
		if e != nil {
			return nil, false, e
		}
		if next.Seq != seq {
			return nil, false, failf(ErrUntrusted, "%s says seq %d", numberedKey(org, name, seq), next.Seq)
		}
		d, behind = next, true
	}
	if d == nil && !pointer {
		return nil, false, err
	}
	return d, behind, nil
}

// Repair makes the newest numbered copy the current document.
func Repair(ctx context.Context, s oss.Store, root Root, org, name string) (Channel, error) {
	d, behind, err := current(ctx, s, roots{Root: root}, org, name)
	if err != nil {
		return Channel{}, err
	}
	if behind {
		err = point(ctx, s, org, name, d.Seq, d.raw)
	}
	return d.Channel, err
}

// NewestRoot follows root's signed successors in the store to the end, as a
// publisher must: its documents name the newest key set.
func NewestRoot(ctx context.Context, r oss.Reader, root Root) (Root, error) {
	rs := roots{Root: root}
	for range maxRoots {
		raw, _, err := fetch(ctx, r, rootKey(rs.N+1), "", maxEnvelope)
		if errors.Is(err, oss.ErrNotFound) {
			return rs.Root, nil
		}
		if err != nil {
			return Root{}, err
		}
		if rs, err = rs.extend([][]byte{raw}); err != nil {
			return Root{}, err
		}
	}
	return Root{}, failf(ErrUntrusted, "chain of more than %d key sets", maxRoots)
}

// MaySign says whether the keys together reach the threshold for channel
// documents.
func (r Root) MaySign(keys ...ed25519.PrivateKey) error {
	good := map[string]bool{}
	for _, k := range keys {
		id := KeyID(k.Public().(ed25519.PublicKey))
		if !slices.Contains(r.Roles.Channel.Keys, id) {
			return failf(ErrContent, "key %s may not sign channel documents of key set %d", id, r.N)
		}
		good[id] = true
	}
	if len(good) < r.Roles.Channel.Threshold {
		return failf(ErrContent, "%d of %d needed keys given", len(good), r.Roles.Channel.Threshold)
	}
	return nil
}

// ReadRoot reads a key set from a file, as `faasctl bundle keygen` writes it.
func ReadRoot(path string) (Root, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Root{}, fmt.Errorf("bundle: key set: %w", err)
	}
	var r Root
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Root{}, failf(ErrContent, "key set %s: %w", path, err)
	}
	return r, r.Validate()
}

// PublishRoot stores the successor of a key set, signed by keys of both.
func PublishRoot(ctx context.Context, s oss.Store, old, next Root, keys ...ed25519.PrivateKey) error {
	raw, err := Seal(TypeRoot, next, keys...)
	if err != nil {
		return err
	}
	if _, err := old.Follow(raw); err != nil {
		return err
	}
	err = s.Create(ctx, rootKey(next.N), raw, oss.PutOptions{CacheControl: cacheForever, ContentType: "application/json"})
	if errors.Is(err, oss.ErrExists) {
		return failf(ErrConflict, "key set %d exists already", next.N)
	}
	if err != nil {
		return fmt.Errorf("bundle: publish: %w", err)
	}
	return nil
}
