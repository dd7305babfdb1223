package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
)

// Platform is platform.json: what a job image knows about its platform before
// it has seen any bundle. It is trusted because the image is.
//
// The seed stands beside it, laid out like the store: v1/chan/<org>/<name>.json,
// v1/man/<sha256>, v1/pack/<sha256>. A seed may hold several channels. It is
// what a job falls back to when the store can't be reached, and the floor
// below which no channel document is accepted.
type Platform struct {
	Format int `json:"format"` // 1
	// URL is the base of the bundle store, read without credentials; v1/… is
	// below it.
	URL string `json:"url"`
	Org string `json:"org"`
	// Channel is used by projects that name none.
	Channel string `json:"channel"`
	// Root is the key set that everything else is verified with.
	Root Root `json:"root"`

	// Dir is the folder it was read from: the seed's.
	Dir string `json:"-"`
}

// PlatformFile is the name of a Platform's file.
const PlatformFile = "platform.json"

// Validate checks the values.
func (p Platform) Validate() error {
	u, err := url.Parse(p.URL)
	switch {
	case p.Format != 1:
		return failf(ErrContent, "%s: format %d, this runner reads 1", PlatformFile, p.Format)
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil:
		return failf(ErrContent, "%s: url %q is not a web address without credentials", PlatformFile, p.URL)
	case !okName(p.Org) || !okName(p.Channel):
		return failf(ErrContent, "%s: organisation %q, channel %q: names are a-z, 0-9 and -", PlatformFile, p.Org, p.Channel)
	}
	if err := p.Root.Validate(); err != nil {
		return failf(ErrContent, "%s: %s", PlatformFile, reason(err))
	}
	return nil
}

// LoadPlatform reads dir's platform.json strictly.
func LoadPlatform(dir string) (*Platform, error) {
	raw, err := os.ReadFile(filepath.Join(dir, PlatformFile))
	if err != nil {
		return nil, failf(ErrContent, "platform: %w", err)
	}
	p, err := parsePlatform(raw)
	if err != nil {
		return nil, err
	}
	p.Dir = dir
	return p, nil
}

func parsePlatform(raw []byte) (*Platform, error) {
	var p Platform
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, failf(ErrContent, "%s: %w", PlatformFile, err)
	}
	if d.More() {
		return nil, failf(ErrContent, "%s: more than one document", PlatformFile)
	}
	return &p, p.Validate()
}

// Write stores p as dir's platform.json.
func (p Platform) Write(dir string) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("bundle: platform: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, PlatformFile), append(mustIndent(p), '\n'), 0o644); err != nil {
		return fmt.Errorf("bundle: platform: %w", err)
	}
	return nil
}

// WriteSeed stores a job image's seed in dir: p, the current document of p's
// channel, and the newest bundle that is out for every project. Everything is
// verified first.
func WriteSeed(ctx context.Context, c *Client, p Platform, dir string) (Choice, error) {
	if err := p.Write(dir); err != nil {
		return Choice{}, err
	}
	d, err := c.newest(ctx, p.Org, p.Channel, local{roots: roots{Root: p.Root}}, 0)
	if err != nil {
		return Choice{}, err
	}
	for _, e := range d.Entries {
		if e.Percent < 100 || len(e.Tiers) > 0 || e.From.After(c.now()) || !d.lists(e.Manifest) {
			continue
		}
		return c.writeSeed(ctx, d, e, dir)
	}
	if n := len(d.Entries); n > 0 && d.Entries[n-1].Percent >= 100 && d.lists(d.Entries[n-1].Manifest) {
		return c.writeSeed(ctx, d, d.Entries[n-1], dir) // the first one, not yet active
	}
	return Choice{}, failf(ErrNone, "%s/%s: no bundle in it is out for every project", p.Org, p.Channel)
}

func (c *Client) writeSeed(ctx context.Context, d *document, e Entry, dir string) (Choice, error) {
	got, err := c.download(ctx, e.Manifest)
	if err != nil {
		return Choice{}, err
	}
	m, err := ParseManifest(got.manifest)
	if err != nil {
		return Choice{}, err
	}
	for key, data := range map[string][]byte{
		channelKey(d.Org, d.Name): d.raw,
		manifestKey(e.Manifest):   got.manifest,
		packKey(m.Pack.SHA256):    got.pack,
	} {
		name := filepath.Join(dir, filepath.FromSlash(key))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return Choice{}, fmt.Errorf("bundle: seed: %w", err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			return Choice{}, fmt.Errorf("bundle: seed: %w", err)
		}
	}
	return Choice{Digest: digest(e.Manifest), Version: e.Version, Org: d.Org, Channel: d.Name, Seq: d.Seq}, nil
}

// mustIndent is for our own plain structs, which always marshal.
func mustIndent(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return []byte("null")
	}
	return b
}
