package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/registry"
)

// Inspection is what an image in a registry is made of.
type Inspection struct {
	Ref      string `json:"ref"` // by digest
	Platform string `json:"platform"`
	User     string `json:"user"`
	ABI      string `json:"abi,omitempty"`
	Base     string `json:"base,omitempty"` // digest of the base image
	// Size is what a pull of all layers transfers.
	Size      int64             `json:"size"`
	Labels    map[string]string `json:"labels,omitempty"`
	Layers    []InspectedLayer  `json:"layers"`
	Documents []Document        `json:"documents"`
}

// InspectedLayer is one layer, from the bottom up.
type InspectedLayer struct {
	// Kind is base, adapter, dependencies, code and the like; "unknown" in
	// images that are not ours.
	Kind   string `json:"kind"`
	Name   string `json:"name,omitempty"` // of a built-in layer
	Owner  string `json:"owner"`          // platform, project, unknown
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // compressed bytes
	Native bool   `json:"native,omitempty"`
}

// Document is a referrer of an image.
type Document struct {
	Type      string `json:"type"`                // artefact type
	Predicate string `json:"predicate,omitempty"` // what it states: a URI
	Digest    string `json:"digest"`
	Signed    bool   `json:"signed"`
}

// kindUnknown is of layers without our note.
const kindUnknown = "unknown"

// owner tells who decides the content of a kind of layer.
func owner(kind string) string {
	switch head, _, _ := strings.Cut(kind, ":"); strings.Fields(head + " ")[0] {
	case kindUnknown:
		return kindUnknown
	case kindBase, "adapter", "plugin", "builtin":
		return "platform"
	}
	return "project" // dependencies, classes, code, dockerfile
}

// Inspect describes the image behind ref, in an index that of the engine's
// platform: manifest, configuration and list of referrers, no layer.
//
// Errors: [ErrNotFound], [ErrDenied], [*Unavailable]; ctx's cause.
func (e *Layers) Inspect(ctx context.Context, ref name.Reference) (Inspection, error) {
	s := e.reg.Session()
	in, err := e.inspect(ctx, s, ref)
	if err != nil && ctx.Err() == nil {
		err = explain("inspect "+ref.Name(), err)
	}
	return in, err
}

// ErrNotFound is in the chain when there is no image behind a reference.
var ErrNotFound = errors.New("there is no such image")

func (e *Layers) inspect(ctx context.Context, s *registry.Session, ref name.Reference) (Inspection, error) {
	img, err := e.open(ctx, s, ref)
	if err != nil {
		return Inspection{}, err
	}
	in := Inspection{
		Ref: img.ref.String(), Platform: img.config.Platform().String(), User: img.config.Config.User, ABI: img.config.Config.Labels[abiLabel],
		Base: img.manifest.Annotations[noteBase], Labels: img.config.Config.Labels, Layers: []InspectedLayer{}, Documents: []Document{},
	}
	for _, l := range img.manifest.Layers {
		kind := l.Annotations[noteLayer]
		if kind == "" {
			kind = kindUnknown
		}
		in.Layers = append(in.Layers, InspectedLayer{Kind: kind, Name: l.Annotations[noteName], Owner: owner(kind), Digest: l.Digest.String(), Size: l.Size, Native: l.Annotations[noteNative] == "true"})
		in.Size += l.Size
	}
	all, err := s.Referrers(ctx, img.ref.Context(), img.digest, "")
	if err != nil && !refused(err) && !errors.Is(err, registry.ErrNotFound) {
		return Inspection{}, err
	}
	for _, d := range all {
		in.Documents = append(in.Documents, Document{Type: d.ArtifactType, Predicate: d.Annotations[attest.Annotation], Digest: d.Digest.String(),
			Signed: d.ArtifactType == attest.TypeEnvelope})
	}
	return in, nil
}

// opened is an image of a registry, without its layers.
type opened struct {
	baseImage
	ref    name.Digest
	digest v1.Hash
}

// open reads manifest and configuration of the image behind ref.
func (e *Layers) open(ctx context.Context, s *registry.Session, ref name.Reference) (*opened, error) {
	m, err := s.Manifest(ctx, ref)
	if err == nil && m.MediaType.IsIndex() {
		var d v1.Hash
		if d, err = e.choose(m.Raw); err == nil {
			m, err = s.Manifest(ctx, ref.Context().Digest(d.String()))
		}
	}
	if errors.Is(err, registry.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotFound, ref, err)
	}
	if err != nil {
		return nil, err
	}
	img := &opened{ref: ref.Context().Digest(m.Digest.String()), digest: m.Digest}
	img.Manifest = m.Raw
	var man v1.Manifest
	if err := json.Unmarshal(m.Raw, &man); err != nil || len(man.Config.Digest.Hex) == 0 {
		return nil, fmt.Errorf("builder: %s is no image", ref)
	}
	if img.Config, err = s.SmallBlob(ctx, ref.Context(), man.Config.Digest, man.Config.Size, maxConfig); err != nil {
		return nil, err
	}
	if err := img.parse(); err != nil {
		return nil, fmt.Errorf("builder: %s: %w", ref, err)
	}
	return img, nil
}

// Verified is a document that a trusted key signed.
type Verified struct {
	Predicate string `json:"predicate"`
	Digest    string `json:"digest"`
	Builder   string `json:"builder,omitempty"` // of provenance
	// Materials are the inputs that provenance names: name to digest.
	Materials map[string]string `json:"materials,omitempty"`
}

// Verify gives the documents about ref that one of the keys signed. Fewer than
// the provenance is an error: [attest.ErrUnsigned] is in the chain.
func (e *Layers) Verify(ctx context.Context, ref name.Reference, keys *attest.Verifier) ([]Verified, error) {
	s := e.reg.Session()
	out, err := e.verify(ctx, s, ref, keys)
	if err != nil && ctx.Err() == nil && !errors.Is(err, attest.ErrUnsigned) {
		err = explain("verify "+ref.Name(), err)
	}
	return out, err
}

func (e *Layers) verify(ctx context.Context, s *registry.Session, ref name.Reference, keys *attest.Verifier) ([]Verified, error) {
	img, err := e.open(ctx, s, ref)
	if err != nil {
		return nil, err
	}
	all, err := s.Referrers(ctx, img.ref.Context(), img.digest, attest.TypeEnvelope)
	if err != nil {
		return nil, err
	}
	var out []Verified
	proven := false
	for _, d := range all {
		a, err := s.Artifact(ctx, img.ref.Context().Digest(d.Digest.String()), maxDocument)
		if err != nil {
			return nil, err
		}
		if len(a.Files) != 1 {
			continue
		}
		claim, err := keys.Open(ctx, a.Files[0].Data, img.digest.String())
		if errors.Is(err, attest.ErrUnsigned) {
			continue // anybody who can push can add a document
		}
		if err != nil {
			return nil, err
		}
		v := Verified{Predicate: claim.Predicate, Digest: d.Digest.String(), Builder: claim.Builder}
		for _, m := range claim.Materials {
			for alg, sum := range m.Digest {
				if v.Materials == nil {
					v.Materials = map[string]string{}
				}
				v.Materials[m.Name] = alg + ":" + sum
			}
		}
		out = append(out, v)
		proven = proven || claim.Predicate == attest.Predicate
	}
	if !proven {
		return nil, fmt.Errorf("builder: %s: provenance: %w", img.ref, attest.ErrUnsigned)
	}
	return out, nil
}
