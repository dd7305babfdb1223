package builder

import (
	"context"
	"errors"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/registry"
)

// What a signed entry of the shared index of dependency layers says of itself.
const (
	indexBuilder = "https://github.com/kuroko-faas/kuroko/builder"
	indexType    = "https://github.com/kuroko-faas/kuroko/blob/main/docs/supply-chain.md#index-of-dependency-layers"
)

// maxEnvelopes bounds how many signatures of one entry are looked at: anybody
// who can push can add some.
const maxEnvelopes = 8

// signEntry signs that the packages of key give the layer in manifest, when
// there is a signer.
func (b *build) signEntry(ctx context.Context, repo name.Repository, manifest []byte, key string) error {
	if b.e.o.Signer == nil {
		return nil
	}
	subject := attest.Subject{Name: keyTag(repo, "deps-", key).TagStr(), Digest: sumOf(manifest).String()}
	statement, err := attest.Provenance{Builder: indexBuilder, BuildType: indexType, Parameters: map[string]any{"key": key}}.Statement(subject)
	if err != nil {
		return err
	}
	envelope, err := b.e.o.Signer.Seal(ctx, statement)
	if err != nil {
		return err
	}
	_, err = b.s.PushArtifacts(ctx, repo, nil, registry.Artifact{
		Type: attest.TypeEnvelope, Annotations: map[string]string{attest.Annotation: attest.Predicate},
		Subject: &v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: sumOf(manifest), Size: int64(len(manifest))},
		Files:   []registry.File{{MediaType: types.MediaType(attest.TypeEnvelope), Data: envelope}},
	})
	return err
}

// signedEntry tells whether a trusted key signed that the packages of key,
// which holds the integrity of each, give the layer of the manifest with this
// digest.
func (b *build) signedEntry(ctx context.Context, repo name.Repository, manifest v1.Hash, key string) (bool, error) {
	if b.e.o.CacheKeys == nil {
		return false, nil
	}
	all, err := b.s.Referrers(ctx, repo, manifest, attest.TypeEnvelope)
	if errors.Is(err, registry.ErrDenied) || errors.Is(err, registry.ErrNotFound) || refused(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	want := attest.Subject{Name: keyTag(repo, "deps-", key).TagStr(), Digest: manifest.String()}
	for _, d := range all[:min(len(all), maxEnvelopes)] {
		a, err := b.s.Artifact(ctx, repo.Digest(d.Digest.String()), maxDocument)
		if err != nil || len(a.Files) != 1 {
			continue
		}
		claim, err := b.e.o.CacheKeys.Open(ctx, a.Files[0].Data, manifest.String())
		if err == nil && claim.Builder == indexBuilder && slices.Contains(claim.Subjects, want) {
			return true, nil
		}
	}
	return false, nil
}
