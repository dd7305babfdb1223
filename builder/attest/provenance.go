package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Provenance says who made an image, when, and of what. Nothing secret belongs
// here: whoever can pull the image can read it.
type Provenance struct {
	// Builder is the URI that identifies the builder to those who trust it.
	Builder string
	// Versions of the builder's parts: "stage-runner" → "1.4.0".
	Versions map[string]string
	// BuildType is the URI that explains the parameters.
	BuildType string
	// Parameters are under the repository's control; Internal are the
	// builder's own. Values are strings, numbers, booleans, lists and maps.
	Parameters, Internal map[string]any
	// Materials are the inputs by digest.
	Materials []Material
	// Invocation is the address of the job.
	Invocation        string
	Started, Finished time.Time // zero: not told
}

// Material is one input: a commit, a bundle, a base image, a lock file.
type Material struct {
	Name, URI string
	Digest    map[string]string // algorithm → hexadecimal
}

// Subject is an image by digest.
type Subject struct {
	Name   string // the repository, without its host
	Digest string // sha256:…
}

// Statement is p about subject: an in-toto statement in JSON. It fails when a
// field that SLSA demands is missing.
func (p Provenance) Statement(subject Subject) ([]byte, error) {
	alg, sum := split(subject.Digest)
	s := &intoto.Statement{
		Type: intoto.StatementTypeUri, PredicateType: Predicate,
		Subject: []*intoto.ResourceDescriptor{{Name: subject.Name, Digest: map[string]string{alg: sum}}},
	}
	parameters, err := structpb.NewStruct(p.Parameters)
	if err != nil {
		return nil, fmt.Errorf("attest: provenance: parameters: %w", err)
	}
	internal, err := structpb.NewStruct(p.Internal)
	if err != nil {
		return nil, fmt.Errorf("attest: provenance: internal parameters: %w", err)
	}
	pred := &slsa.Provenance{
		BuildDefinition: &slsa.BuildDefinition{BuildType: p.BuildType, ExternalParameters: parameters, InternalParameters: internal},
		RunDetails: &slsa.RunDetails{
			Builder:  &slsa.Builder{Id: p.Builder, Version: p.Versions},
			Metadata: &slsa.BuildMetadata{InvocationId: p.Invocation},
		},
	}
	for _, m := range p.Materials {
		pred.BuildDefinition.ResolvedDependencies = append(pred.BuildDefinition.ResolvedDependencies,
			&intoto.ResourceDescriptor{Name: m.Name, Uri: m.URI, Digest: m.Digest})
	}
	if !p.Started.IsZero() {
		pred.RunDetails.Metadata.StartedOn = timestamppb.New(p.Started.UTC().Truncate(time.Second))
	}
	if !p.Finished.IsZero() {
		pred.RunDetails.Metadata.FinishedOn = timestamppb.New(p.Finished.UTC().Truncate(time.Second))
	}
	if err := pred.Validate(); err != nil {
		return nil, fmt.Errorf("attest: provenance: %w", err)
	}
	raw, err := protojson.Marshal(pred)
	if err == nil {
		s.Predicate = &structpb.Struct{}
		err = protojson.Unmarshal(raw, s.Predicate)
	}
	if err != nil {
		return nil, fmt.Errorf("attest: provenance: %w", err)
	}
	return statement(s)
}

// About wraps a bill of materials as a statement, which can be signed.
func (b BOM) About(subject Subject) ([]byte, error) {
	raw, err := b.JSON()
	if err != nil {
		return nil, err
	}
	alg, sum := split(subject.Digest)
	s := &intoto.Statement{
		Type: intoto.StatementTypeUri, PredicateType: PredicateBOM, Predicate: &structpb.Struct{},
		Subject: []*intoto.ResourceDescriptor{{Name: subject.Name, Digest: map[string]string{alg: sum}}},
	}
	if err := protojson.Unmarshal(raw, s.Predicate); err != nil {
		return nil, fmt.Errorf("attest: bill of materials: %w", err)
	}
	return statement(s)
}

// statement writes s; protojson varies its spaces on purpose, so they go.
func statement(s *intoto.Statement) ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("attest: statement: %w", err)
	}
	raw, err := protojson.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("attest: statement: %w", err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return nil, fmt.Errorf("attest: statement: %w", err)
	}
	return out.Bytes(), nil
}

// Claim is what a statement says.
type Claim struct {
	Subjects  []Subject
	Predicate string // its type
	// Builder and Materials are those of provenance.
	Builder   string
	Materials []Material
}

// ReadStatement reads an in-toto statement.
func ReadStatement(data []byte) (Claim, error) {
	var s intoto.Statement
	if err := protojson.Unmarshal(data, &s); err != nil {
		return Claim{}, fmt.Errorf("attest: read the statement: %w", err)
	}
	if err := s.Validate(); err != nil {
		return Claim{}, fmt.Errorf("attest: read the statement: %w", err)
	}
	c := Claim{Predicate: s.PredicateType}
	for _, d := range s.Subject {
		for _, alg := range slices.Sorted(maps.Keys(d.Digest)) {
			c.Subjects = append(c.Subjects, Subject{Name: d.Name, Digest: alg + ":" + d.Digest[alg]})
		}
	}
	if s.PredicateType != Predicate {
		return c, nil
	}
	raw, err := protojson.Marshal(s.Predicate)
	var p slsa.Provenance
	if err == nil {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, &p)
	}
	if err != nil {
		return Claim{}, fmt.Errorf("attest: read the provenance: %w", err)
	}
	c.Builder = p.GetRunDetails().GetBuilder().GetId()
	for _, d := range p.GetBuildDefinition().GetResolvedDependencies() {
		c.Materials = append(c.Materials, Material{Name: d.Name, URI: d.Uri, Digest: d.Digest})
	}
	return c, nil
}

func split(digest string) (alg, sum string) {
	for i := range digest {
		if digest[i] == ':' {
			return digest[:i], digest[i+1:]
		}
	}
	return "sha256", digest
}
