package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/registry"
)

// maxConfig is more than any honest image configuration has.
const maxConfig = 8 << 20

// baseImage is what of a base goes into the images on it. Raw bytes are kept,
// so that whoever reads them from a folder can check them.
type baseImage struct {
	Manifest []byte `json:"manifest"`
	Config   []byte `json:"config"`

	manifest v1.Manifest
	config   v1.ConfigFile
}

// parse reads the raw bytes, and holds the configuration against the manifest.
func (b *baseImage) parse() error {
	if err := json.Unmarshal(b.Manifest, &b.manifest); err != nil {
		return fmt.Errorf("its manifest can't be read: %w", err)
	}
	if err := json.Unmarshal(b.Config, &b.config); err != nil {
		return fmt.Errorf("its configuration can't be read: %w", err)
	}
	if sumOf(b.Config) != b.manifest.Config.Digest {
		return errors.New("its configuration is not the one that its manifest names")
	}
	if len(b.config.RootFS.DiffIDs) != len(b.manifest.Layers) {
		return fmt.Errorf("its manifest has %d layers, its configuration %d", len(b.manifest.Layers), len(b.config.RootFS.DiffIDs))
	}
	return nil
}

// base reads the base image's manifest and configuration, once per process and
// machine.
func (e *Layers) base(ctx context.Context, s *registry.Session, ref name.Digest) (*baseImage, error) {
	return once(e.memo, "base "+ref.DigestStr()+" "+e.o.Platform.String(), func() (*baseImage, error) {
		b := &baseImage{}
		key := ref.DigestStr() + " " + e.o.Platform.String()
		var kept struct {
			baseImage
			Index []byte `json:"index,omitempty"` // when ref is one: it names the manifest
		}
		if e.memo.load("base", key, &kept) && kept.parse() == nil {
			top := kept.Manifest
			named := true
			if kept.Index != nil {
				top = kept.Index
				d, err := e.choose(kept.Index)
				named = err == nil && d == sumOf(kept.Manifest)
			}
			if named && sumOf(top).String() == ref.DigestStr() {
				*b = kept.baseImage
				return b, nil
			}
		}
		m, err := s.Manifest(ctx, ref)
		if err != nil {
			return nil, missingBase(ref, err)
		}
		kept.Index = nil
		if m.MediaType.IsIndex() {
			kept.Index = m.Raw
			d, err := e.choose(m.Raw)
			if err != nil {
				return nil, fmt.Errorf("builder: base %s: %w", ref, err)
			}
			if m, err = s.Manifest(ctx, ref.Context().Digest(d.String())); err != nil {
				return nil, missingBase(ref, err)
			}
		}
		b.Manifest = m.Raw
		if err := json.Unmarshal(m.Raw, &b.manifest); err != nil {
			return nil, fmt.Errorf("builder: base %s: its manifest can't be read: %w", ref, err)
		}
		c := b.manifest.Config
		if b.Config, err = s.SmallBlob(ctx, ref.Context(), c.Digest, c.Size, maxConfig); err != nil {
			return nil, missingBase(ref, err)
		}
		if err := b.parse(); err != nil {
			return nil, fmt.Errorf("builder: base %s: %w", ref, err)
		}
		kept.baseImage = *b
		e.memo.save("base", key, kept)
		return b, nil
	})
}

func missingBase(ref name.Digest, err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return fmt.Errorf("%w: %s: %w", ErrNoBase, ref, err)
	}
	return err
}

// choose finds the engine's platform in an index.
func (e *Layers) choose(raw []byte) (v1.Hash, error) {
	var idx v1.IndexManifest
	if err := json.Unmarshal(raw, &idx); err != nil {
		return v1.Hash{}, fmt.Errorf("its index can't be read: %w", err)
	}
	var have []string
	for _, d := range idx.Manifests {
		if d.Platform == nil || !d.MediaType.IsImage() {
			continue
		}
		if d.Platform.OS == e.o.Platform.OS && d.Platform.Architecture == e.o.Platform.Architecture {
			return d.Digest, nil
		}
		have = append(have, d.Platform.String())
	}
	return v1.Hash{}, fmt.Errorf("it has no image for %s, only for %s", e.o.Platform.String(), strings.Join(have, ", "))
}

// ociLayer translates docker's names of layer types: the bytes are the same,
// and an OCI manifest names only OCI types.
func ociLayer(mt types.MediaType) types.MediaType {
	switch mt {
	case types.DockerLayer:
		return types.OCILayer
	case types.DockerUncompressedLayer:
		return types.OCIUncompressedLayer
	case types.DockerForeignLayer:
		return types.OCIRestrictedLayer
	}
	return mt
}
