package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kuroko-faas/kuroko/oss"
)

// content is a verified bundle before it is unpacked.
type content struct {
	manifest, pack []byte
	parsed         *Manifest
}

// Open makes the chosen bundle available as a private copy on disk, or in
// memory. The caller closes the Bundle.
//
// The content comes from what an earlier job handed on, the node's cache, the
// seed or the store, and is verified wherever it comes from. A changed cache
// is a warning and fetched again; changed content from the store or from an
// earlier job is [ErrUntrusted], and nothing of it stays on disk. When the
// store fails now, although the channel could be read, last known good and seed
// stand in as in Resolve; Bundle.Choice then says so. A choice that was handed
// on is never exchanged: [ErrUnavailable].
func (c *Client) Open(ctx context.Context, ch Choice) (*Bundle, error) {
	b, err := c.open(ctx, ch, true)
	if err == nil {
		if ev := ch.evidence; ev != nil && ch.Source == SourceChannel {
			if e := (cache{c.Cache}).keep(ev.doc, roots{Root: c.Root}); e != nil {
				b.Warnings = append(b.Warnings, fmt.Sprintf("node cache: %v", e))
			}
		}
		return b, nil
	}
	ev := ch.evidence
	replaceable := errors.Is(err, ErrUnavailable) || errors.Is(err, oss.ErrNotFound) || errors.Is(err, oss.ErrNoBucket) || errors.Is(err, oss.ErrDenied)
	if ctx.Err() != nil || ev == nil || !replaceable || ch.Source == SourcePipeline || ch.Source == SourceSeed {
		return nil, err
	}
	l := c.local(ev.query.Org, ev.query.Channel)
	for _, alt := range l.standIns() {
		if alt.source == ch.Source {
			continue
		}
		other, e := c.choose(alt.document, alt.source, ev.query, append(l.documents(), ev.doc))
		if e != nil {
			continue
		}
		other.Warnings = []string{standInLine(other, alt.document, ev.query.Floor, err)}
		if b, e := c.open(ctx, other, false); e == nil {
			return b, nil
		}
	}
	return nil, err
}

// open is Open without stand-ins; download says whether the store may be
// asked.
func (c *Client) open(ctx context.Context, ch Choice, download bool) (*Bundle, error) {
	id, err := hexOf(ch.Digest)
	if err != nil {
		return nil, err
	}
	got, warnings, err := c.content(ctx, id, ch.evidence, download)
	if err != nil {
		return nil, err
	}
	b := &Bundle{
		Digest: ch.Digest, Choice: ch,
		Warnings: append(append([]string{}, ch.Warnings...), warnings...),
		manifest: got.manifest, pack: got.pack,
	}
	if c.InMemory {
		b.FS, err = got.parsed.inMemory(got.pack)
	} else if b.private, b.lock, err = privateFolder(c.Private); err != nil {
		err = fmt.Errorf("bundle: private copy: %w", err)
	} else {
		b.Dir = filepath.Join(b.private, "bundle")
		err = b.unpack(got.parsed)
	}
	if err == nil {
		err = b.describe()
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// describe reads bundle.yml.
func (b *Bundle) describe() error {
	about, err := fs.ReadFile(b.FS, "bundle.yml")
	if err != nil {
		return failf(ErrContent, "bundle.yml: %w", err)
	}
	b.Meta, err = readMeta(about)
	return err
}

func (b *Bundle) unpack(m *Manifest) error {
	if err := os.Mkdir(b.Dir, 0o755); err != nil {
		return fmt.Errorf("bundle: private copy: %w", err)
	}
	if err := os.Chmod(b.Dir, 0o755); err != nil { // whatever the umask
		return fmt.Errorf("bundle: private copy: %w", err)
	}
	if err := m.unpack(b.pack, b.Dir); err != nil {
		return err
	}
	b.FS = os.DirFS(b.Dir)
	return nil
}

// content finds and verifies manifest and pack.
func (c *Client) content(ctx context.Context, id string, ev *evidence, download bool) (content, []string, error) {
	if ev != nil && ev.handed != "" {
		got, err := handedContent(ev)
		if err != nil || got.pack != nil {
			return got, nil, err
		}
		// Without the pack the digest still stands; get it as anybody would.
	}
	got, bad := c.localContent(id)
	if got.pack != nil {
		return got, bad, nil
	}
	if !download {
		return content{}, nil, failf(ErrUnavailable, "bundle %.12s is not on this machine", id)
	}
	unlock, err := cache{c.Cache}.lock(ctx, id)
	if err != nil {
		return content{}, nil, err
	}
	defer unlock()
	if got, _ := c.localContent(id); got.pack != nil { // another job was faster
		return got, bad, nil
	}
	got, err = c.download(ctx, id)
	if err != nil {
		return content{}, nil, err
	}
	err = cache{c.Cache}.write("man", id, got.manifest)
	if err == nil {
		err = cache{c.Cache}.write("pack", got.parsed.Pack.SHA256, got.pack)
	}
	if err != nil {
		bad = append(bad, fmt.Sprintf("node cache: %v", err))
	}
	return got, bad, nil
}

// localContent looks into cache and seed. What does not verify is named in
// bad.
func (c *Client) localContent(id string) (got content, bad []string) {
	read := func(cached, key, want string, limit int64) []byte {
		raw := cache{c.Cache}.read(cached, limit)
		if raw != nil && sum(raw) == want {
			return raw
		}
		if raw != nil || (cache{c.Cache}).has(cached) {
			bad = append(bad, fmt.Sprintf("node cache: %s was changed by somebody: not used", cached))
		}
		if c.Seed == "" {
			return nil
		}
		if raw, err := readSeed(c.Seed, key, limit); err == nil && sum(raw) == want {
			return raw
		}
		return nil
	}
	got.manifest = read("man/"+id, manifestKey(id), id, maxManifest)
	if got.manifest == nil {
		return content{}, bad
	}
	m, err := ParseManifest(got.manifest)
	if err != nil {
		return content{}, bad // the digest is right, so the store's is as bad
	}
	got.parsed = m
	got.pack = read("pack/"+m.Pack.SHA256, packKey(m.Pack.SHA256), m.Pack.SHA256, m.Pack.Size)
	return got, bad
}

// download gets a bundle from the store.
func (c *Client) download(ctx context.Context, id string) (content, error) {
	raw, _, err := c.get(ctx, manifestKey(id), "", maxManifest, c.fetchTimeout())
	if err != nil {
		return content{}, err
	}
	if sum(raw) != id {
		return content{}, failf(ErrUntrusted, "manifest %.12s does not have its sum", id)
	}
	m, err := ParseManifest(raw)
	if err != nil {
		return content{}, err
	}
	pack, _, err := c.get(ctx, packKey(m.Pack.SHA256), "", m.Pack.Size, c.fetchTimeout())
	if err != nil {
		return content{}, err
	}
	if int64(len(pack)) != m.Pack.Size || sum(pack) != m.Pack.SHA256 {
		return content{}, failf(ErrUntrusted, "pack %.12s does not have its sum", m.Pack.SHA256)
	}
	return content{raw, pack, m}, nil
}
