package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// ErrUnsigned is in the chain when no signature is by a trusted key.
var ErrUnsigned = errors.New("not signed by a trusted key")

// Signer signs statements with one private key. Safe for concurrent use.
type Signer struct {
	key crypto.Signer
	id  string
}

// ReadSigner reads a private key: PEM, PKCS #8 or SEC 1, Ed25519 or ECDSA on
// P-256. An encrypted key is refused: in a job its password would lie beside
// it.
func ReadSigner(data []byte) (*Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("attest: the signing key is not PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("attest: the signing key is a PEM block of type %q; it has to be a plain PRIVATE KEY", block.Type)
	}
	if err != nil {
		return nil, errors.New("attest: the signing key can't be read") // the cause may quote it
	}
	s := &Signer{}
	switch k := key.(type) {
	case ed25519.PrivateKey:
		s.key = k
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, errors.New("attest: the signing key's curve has to be P-256")
		}
		s.key = k
	default:
		return nil, errors.New("attest: the signing key has to be Ed25519 or ECDSA on P-256")
	}
	s.id, err = keyID(s.key.Public())
	return s, err
}

// keyID is the hexadecimal sha256 of the public key's SubjectPublicKeyInfo.
func keyID(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("attest: public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// Sign implements [dsse.Signer].
func (s *Signer) Sign(_ context.Context, data []byte) ([]byte, error) {
	if k, ok := s.key.(ed25519.PrivateKey); ok {
		return ed25519.Sign(k, data), nil
	}
	sum := sha256.Sum256(data)
	return s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// KeyID implements [dsse.Signer].
func (s *Signer) KeyID() (string, error) { return s.id, nil }

// Seal puts a statement into a signed DSSE envelope.
func (s *Signer) Seal(ctx context.Context, statement []byte) ([]byte, error) {
	es, err := dsse.NewEnvelopeSigner(s)
	if err != nil {
		return nil, fmt.Errorf("attest: sign: %w", err)
	}
	e, err := es.SignPayload(ctx, TypeInToto, statement)
	if err != nil {
		return nil, fmt.Errorf("attest: sign: %w", err)
	}
	return json.Marshal(e)
}

// Verifier checks signatures with public keys. Safe for concurrent use.
type Verifier struct{ keys []dsse.Verifier }

type publicKey struct {
	key crypto.PublicKey
	id  string
}

func (p publicKey) Verify(_ context.Context, data, sig []byte) error {
	good := false
	switch k := p.key.(type) {
	case ed25519.PublicKey:
		good = ed25519.Verify(k, data, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(data)
		good = ecdsa.VerifyASN1(k, sum[:], sig)
	}
	if !good {
		return ErrUnsigned
	}
	return nil
}

func (p publicKey) KeyID() (string, error)   { return p.id, nil }
func (p publicKey) Public() crypto.PublicKey { return p.key }

// ReadVerifier reads public keys: PEM blocks of type PUBLIC KEY, any number.
func ReadVerifier(data []byte) (*Verifier, error) {
	v := &Verifier{}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("attest: a public key can't be read: %w", err)
		}
		id, err := keyID(key)
		if err != nil {
			return nil, err
		}
		v.keys = append(v.keys, publicKey{key, id})
	}
	if len(v.keys) == 0 {
		return nil, errors.New("attest: no PUBLIC KEY block in PEM")
	}
	return v, nil
}

// Public is the signer's public key as PEM, for those who verify.
func (s *Signer) Public() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, fmt.Errorf("attest: public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// Open gives the claim of a signed envelope that one of the keys signed and
// that is about the image of digest. It fails with [ErrUnsigned].
func (v *Verifier) Open(ctx context.Context, envelope []byte, digest string) (Claim, error) {
	var e dsse.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		return Claim{}, fmt.Errorf("attest: %w: no DSSE envelope", ErrUnsigned)
	}
	ev, err := dsse.NewEnvelopeVerifier(v.keys...)
	if err != nil {
		return Claim{}, fmt.Errorf("attest: %w", err)
	}
	if _, err := ev.Verify(ctx, &e); err != nil {
		return Claim{}, fmt.Errorf("attest: %w", ErrUnsigned)
	}
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil || e.PayloadType != TypeInToto {
		return Claim{}, fmt.Errorf("attest: %w: the signature is over something else", ErrUnsigned)
	}
	c, err := ReadStatement(payload)
	if err != nil {
		return Claim{}, err
	}
	if !slices.ContainsFunc(c.Subjects, func(s Subject) bool { return s.Digest == digest }) {
		return Claim{}, fmt.Errorf("attest: %w: the statement is about another image", ErrUnsigned)
	}
	return c, nil
}

// OpenUnverified gives the claim of an envelope without looking at its
// signatures, for showing it.
func OpenUnverified(envelope []byte) (Claim, error) {
	var e dsse.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		return Claim{}, fmt.Errorf("attest: no DSSE envelope: %w", err)
	}
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil {
		return Claim{}, fmt.Errorf("attest: no DSSE envelope: %w", err)
	}
	return ReadStatement(payload)
}
