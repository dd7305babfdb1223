// Package attest writes what lies beside an image: the bill of materials
// (CycloneDX), the provenance (SLSA v1, an in-toto statement), and signatures
// over it (DSSE).
//
// It turns facts into documents and back, and sends nothing: the builder
// stores them in the registry as referrers of the image.
package attest

// Media types of the documents, which are the artefact types of the referrers.
const (
	TypeBOM      = "application/vnd.cyclonedx+json"
	TypeInToto   = "application/vnd.in-toto+json"          // a bare statement
	TypeEnvelope = "application/vnd.dsse.envelope.v1+json" // a signed one
	PredicateBOM = "https://cyclonedx.org/bom"             // of a signed bill of materials
	Predicate    = "https://slsa.dev/provenance/v1"        // of provenance
	Annotation   = "in-toto.io/predicate-type"             // names the predicate of a referrer
)
