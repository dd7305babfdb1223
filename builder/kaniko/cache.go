package kaniko

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"crypto/sha256"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
)

// An entry of the cache is what a stage has made up to a RUN, or up to its
// end. In a repository it is an image of these layers, without the base's,
// tagged run-<key>.
const (
	keyLabel    = "io.kuroko.cache.key"
	titlesLabel = "io.kuroko.cache.titles"
)

// deepest finds the longest beginning of a stage that an earlier build made:
// how many steps it has, and the repository that it came from, nil for the
// store.
func (b *build) deepest(ctx context.Context, chain []step, keys []string) (int, *prefix, *name.Repository, error) {
	for at := len(chain); at > 0; at-- {
		last := at == len(chain)
		if !chain[at-1].run && !last {
			continue
		}
		if p := b.store.load(b.local(keys[at])); p != nil && len(p.History) == at {
			return at, p, nil, nil
		}
		if !chain[at-1].run {
			continue
		}
		for _, repo := range b.src.Cache.Read {
			p, err := b.fetch(ctx, repo, keys[at])
			if err != nil {
				return 0, nil, nil, err
			}
			if p != nil && len(p.History) == at {
				return at, p, &repo, nil
			}
		}
	}
	return 0, nil, nil, nil
}

// local is the name of a key in the store. Builds that write to different
// repositories don't share: what an unprotected ref made must not be found by
// a protected one.
func (b *build) local(key string) string {
	who := "none"
	if w := b.src.Cache.Write; w != nil {
		who = w.String()
	}
	return keyOf(who, key)
}

// remember keeps what s has now under key: in the store, and what ends with a
// RUN also in the repository. A repository that can't take it is no failure.
func (b *build) remember(ctx context.Context, s *built, key string, run, last bool) error {
	p := &prefix{Key: b.local(key), History: slices.Clone(s.history)}
	for _, l := range s.layers {
		info, err := infoOf(l)
		if err != nil {
			return err
		}
		p.Layers = append(p.Layers, storedLayer{info, l.title})
	}
	if last {
		p.Config = &s.config
	}
	if err := b.store.save(p); err != nil {
		return err
	}
	if !run || b.src.Cache.Write == nil {
		return nil
	}
	if err := b.upload(ctx, s, p, key); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fmt.Fprintf(b.e.log, "the cache in %s was not written: %v\n", b.src.Cache.Write, err)
		return nil
	}
	// The image's repository takes them from there.
	for i, l := range s.layers {
		if _, ok := l.Layer.(*cachedLayer); !ok {
			s.layers[i].Layer = &cachedLayer{l.Layer, *b.src.Cache.Write}
		}
	}
	return nil
}

func infoOf(l v1.Layer) (layer.Info, error) {
	digest, err1 := l.Digest()
	diffID, err2 := l.DiffID()
	size, err3 := l.Size()
	mt, err4 := l.MediaType()
	return layer.Info{Digest: digest, DiffID: diffID, Size: size, MediaType: mt}, errors.Join(err1, err2, err3, err4)
}

func cacheTag(repo name.Repository, key string) name.Tag { return repo.Tag("run-" + key[:40]) }

func (b *build) upload(ctx context.Context, s *built, p *prefix, key string) error {
	var titles []string
	var adds []mutate.Addendum
	for _, l := range s.mountable() {
		titles = append(titles, l.title)
		adds = append(adds, mutate.Addendum{Layer: l.Layer, MediaType: types.OCILayer})
	}
	raw, err := json.Marshal(titles)
	if err != nil {
		return err
	}
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), adds...)
	if err != nil {
		return err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return err
	}
	c = c.DeepCopy()
	c.Config = v1.Config{Labels: map[string]string{keyLabel: key, titlesLabel: string(raw)}}
	if p.Config != nil {
		full, err := json.Marshal(p.Config)
		if err != nil {
			return err
		}
		c.Config.Labels[configLabel] = string(full)
	}
	c.History = p.History
	if img, err = mutate.ConfigFile(img, c); err != nil {
		return err
	}
	return b.r.push(ctx, cacheTag(*b.src.Cache.Write, key), img)
}

// configLabel is the configuration after the stage's last step.
const configLabel = "io.kuroko.cache.config"

// fetch takes an entry from a repository into the store; nil when there is
// none. Layers are verified, compressed and not, before anything uses them; an
// entry that is not what it says is as none.
func (b *build) fetch(ctx context.Context, repo name.Repository, key string) (*prefix, error) {
	tag := cacheTag(repo, key)
	img, err := b.r.cached(ctx, tag)
	if img == nil || err != nil {
		return nil, err
	}
	p, err := b.take(img, key)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		fmt.Fprintf(b.e.log, "%s is not used: %v\n", tag, err)
		return nil, nil
	}
	return p, nil
}

func (b *build) take(img v1.Image, key string) (*prefix, error) {
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	var titles []string
	if c.Config.Labels[keyLabel] != key {
		return nil, errors.New("it is of another key")
	}
	if err := json.Unmarshal([]byte(c.Config.Labels[titlesLabel]), &titles); err != nil {
		return nil, err
	}
	p := &prefix{Key: b.local(key), History: c.History}
	if full := c.Config.Labels[configLabel]; full != "" {
		if err := json.Unmarshal([]byte(full), &p.Config); err != nil {
			return nil, err
		}
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(titles) || len(layers) != len(c.RootFS.DiffIDs) {
		return nil, errors.New("its layers are not those that it lists")
	}
	for i, l := range layers {
		info, err := infoOf(l)
		if err != nil {
			return nil, err
		}
		if info.MediaType != types.OCILayer || info.DiffID != c.RootFS.DiffIDs[i] {
			return nil, errors.New("a layer is not one of ours")
		}
		d := storedLayer{info, titles[i]}
		kept, err := b.store.layer(d)
		if errors.Is(err, fs.ErrNotExist) {
			kept, err = b.download(l, d)
		}
		if err != nil {
			return nil, err
		}
		p.Layers, p.opened = append(p.Layers, d), append(p.opened, kept)
	}
	return p, b.store.save(p)
}

// download brings a layer into the store and verifies both its sums.
func (b *build) download(l v1.Layer, d storedLayer) (v1.Layer, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := b.store.write(filepath.Join("blob", d.Digest.Hex), r); err != nil {
		return nil, err
	}
	kept, err := b.store.layer(d)
	if err != nil {
		return nil, err
	}
	raw, err := kept.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(raw, rootfs.MaxUnpacked)); err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != d.DiffID.Hex {
		return nil, fmt.Errorf("its files have the sum sha256:%s, it says %s", got, d.DiffID)
	}
	return kept, nil
}
