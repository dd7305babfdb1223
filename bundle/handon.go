package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// The files by which a pipeline's first job hands its bundle on.
const (
	HandedFile = "bundle.json"
	HandedPack = "bundle.pack"
)

// handedOn is bundle.json: the choice, and what proves it to somebody who
// trusts nothing but platform.json. The signed channel document names the
// manifest by sum, the manifest names the pack.
type handedOn struct {
	Format   int      `json:"format"` // 1
	Choice   Choice   `json:"choice"`
	Roots    [][]byte `json:"roots,omitempty"` // signed key sets after the image's
	Channel  []byte   `json:"channel"`         // envelope
	Manifest []byte   `json:"manifest"`
}

// maxHanded bounds bundle.json: manifest and documents in base64.
const maxHanded = 2 * (maxManifest + maxEnvelope)

// HandOn writes bundle.json and bundle.pack into dir (usually .faas) for the
// pipeline's later jobs. The pack is written first, so that a bundle.json is
// never without its pack.
func (b *Bundle) HandOn(dir string) error {
	ev := b.Choice.evidence
	if ev == nil || ev.doc == nil {
		return failf(ErrUntrusted, "bundle %s was opened without a channel document: it can't be handed on", b.Digest)
	}
	raw, err := json.Marshal(handedOn{Format: 1, Choice: b.Choice, Roots: ev.doc.roots.chain, Channel: ev.doc.raw, Manifest: b.manifest})
	if err != nil {
		return fmt.Errorf("bundle: hand on: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("bundle: hand on: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("bundle: hand on: %w", err)
	}
	defer root.Close()
	if err := writeFile(root, HandedPack, b.pack, 0o644); err != nil {
		return fmt.Errorf("bundle: hand on: %w", err)
	}
	if err := writeFile(root, HandedFile, raw, 0o644); err != nil {
		return fmt.Errorf("bundle: hand on: %w", err)
	}
	return nil
}

// handed reads what an earlier job of q's pipeline left in q.Handed. Without
// the file, or with one of another pipeline (a work tree that wasn't cleaned),
// there is no choice; note then says why, if it is worth saying.
func (c *Client) handed(ctx context.Context, q Query, l local) (ch *Choice, note string, err error) {
	root, err := os.OpenRoot(q.Handed)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("bundle: handed on: %w", err)
	}
	defer root.Close()
	raw, err := readFile(root, HandedFile, maxHanded)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if errors.Is(err, errTooLarge) || errors.Is(err, errNotRegular) {
		return nil, "", failf(ErrUntrusted, "handed on: %w", err)
	}
	if err != nil {
		return nil, "", fmt.Errorf("bundle: handed on: %w", err)
	}
	var h handedOn
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, "", failf(ErrUntrusted, "%s: %w", HandedFile, err)
	}
	if h.Choice.Project != q.ProjectID || h.Choice.Pipeline != q.PipelineID {
		return nil, fmt.Sprintf("%s is of pipeline %d of project %d, not of this one: not used", HandedFile, h.Choice.Pipeline, h.Choice.Project), nil
	}
	d, err := h.verify(q, l.roots)
	if err != nil {
		return nil, "", err
	}
	ch = &h.Choice
	ch.Seq, ch.Source = d.Seq, SourcePipeline
	ch.Tier = stricter(d.Tier(q.ProjectPath), q.Tier)
	ch.evidence = &evidence{query: q, doc: d, manifest: h.Manifest, handed: q.Handed}

	now := l.documents()
	fresh, err := c.newest(ctx, d.Org, d.Name, c.localFor(l, q, d), 0)
	switch {
	case ctx.Err() != nil:
		return nil, "", ctx.Err()
	case err != nil:
		ch.Warnings = append(ch.Warnings, fmt.Sprintf("whether bundle %s was revoked meanwhile could not be seen (%s): going on", ch.Version, reason(err)))
	default:
		now = append(now, fresh)
	}
	id, err := hexOf(ch.Digest)
	if err != nil {
		return nil, "", err
	}
	for _, doc := range now {
		if doc.Org != d.Org || doc.Name != d.Name {
			continue
		}
		if why, yes := doc.revoked(id); yes {
			return nil, "", failf(ErrRevoked, "bundle %s, which this pipeline began with, was revoked: %s", ch.Version, why)
		}
	}
	return ch, "", nil
}

// localFor is what is known here about d's channel, which may be another one
// than q's.
func (c *Client) localFor(l local, q Query, d *document) local {
	if d.Name == q.Channel {
		return l
	}
	return c.local(d.Org, d.Name)
}

// verify proves the choice from the signed documents alone.
func (h *handedOn) verify(q Query, known roots) (*document, error) {
	if h.Format != 1 {
		return nil, failf(ErrUntrusted, "%s has format %d, this runner reads 1", HandedFile, h.Format)
	}
	id, err := hexOf(h.Choice.Digest)
	if err != nil {
		return nil, err
	}
	rs, err := known.extend(h.Roots)
	if err != nil {
		return nil, failf(ErrUntrusted, "%s: %s", HandedFile, reason(err))
	}
	if h.Choice.Org != q.Org {
		return nil, failf(ErrUntrusted, "%s is of organisation %q, not %q", HandedFile, h.Choice.Org, q.Org)
	}
	d, err := openChannel(h.Channel, rs, q.Org, h.Choice.Channel)
	if err != nil {
		return nil, failf(ErrUntrusted, "%s: %s", HandedFile, reason(err))
	}
	if !d.lists(id) {
		return nil, failf(ErrUntrusted, "%s names bundle %.12s, which its channel document does not", HandedFile, id)
	}
	if !printable(h.Choice.Version) || !printable(h.Choice.Why) {
		return nil, failf(ErrUntrusted, "%s holds text that can't be printed", HandedFile)
	}
	if sum(h.Manifest) != id {
		return nil, failf(ErrUntrusted, "%s: the manifest does not have its sum", HandedFile)
	}
	return d, nil
}

// handedContent reads and verifies the pack beside bundle.json. A missing
// pack is no error; got.pack is nil then.
func handedContent(ev *evidence) (got content, err error) {
	m, err := ParseManifest(ev.manifest)
	if err != nil {
		return content{}, err
	}
	got = content{manifest: ev.manifest, parsed: m}
	root, err := os.OpenRoot(ev.handed)
	if errors.Is(err, fs.ErrNotExist) {
		return got, nil
	}
	if err != nil {
		return content{}, fmt.Errorf("bundle: handed on: %w", err)
	}
	defer root.Close()
	pack, err := readFile(root, HandedPack, m.Pack.Size)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return got, nil
	case errors.Is(err, errTooLarge), errors.Is(err, errNotRegular), err == nil && sum(pack) != m.Pack.SHA256:
		return content{}, failf(ErrUntrusted, "%s, handed on by an earlier job, does not have its sum", HandedPack)
	case err != nil:
		return content{}, fmt.Errorf("bundle: handed on: %w", err)
	}
	got.pack = pack
	return got, nil
}
