package bundle

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Payload types. The signature covers the type, so a document of one kind can
// never pass as another.
const (
	TypeChannel = "application/vnd.kuroko.channel.v1+json"
	TypeRoot    = "application/vnd.kuroko.root.v1+json"
	TypeFresh   = "application/vnd.kuroko.fresh.v1+json"
)

const (
	maxEnvelope   = 4 << 20 // bytes of any signed document
	maxSignatures = 64
)

// envelope is a DSSE envelope (github.com/secure-systems-lab/dsse): the
// signatures cover the payload's type and its exact bytes, so no canonical
// JSON is needed.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// pae is DSSE's pre-authentication encoding, what is really signed.
func pae(typ string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(typ), typ, len(payload), payload)
}

// KeyID is the name of a public key in key sets and signatures.
func KeyID(pub ed25519.PublicKey) string {
	s := sha256.Sum256(pub)
	return hex.EncodeToString(s[:16])
}

// Seal signs v, as JSON, with every key.
func Seal(typ string, v any, keys ...ed25519.PrivateKey) ([]byte, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("bundle: seal: %w", err)
	}
	e := envelope{PayloadType: typ, Payload: p}
	for _, k := range keys {
		e.Signatures = append(e.Signatures, signature{
			KeyID: KeyID(k.Public().(ed25519.PublicKey)),
			Sig:   ed25519.Sign(k, pae(typ, p)),
		})
	}
	return json.Marshal(e)
}

// trust is the keys of one role and how many of them must have signed.
type trust struct {
	keys      map[string]ed25519.PublicKey
	threshold int
}

func parseEnvelope(raw []byte) (envelope, error) {
	var e envelope
	if len(raw) > maxEnvelope {
		return e, failf(ErrUntrusted, "signed document is larger than %d bytes", maxEnvelope)
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, failf(ErrUntrusted, "not a signed document: %w", err)
	}
	if len(e.Signatures) > maxSignatures {
		return e, failf(ErrUntrusted, "signed document carries more than %d signatures", maxSignatures)
	}
	return e, nil
}

// payload returns e's payload if it is of type typ and satisfies every one of
// the given trusts. A key counts once however often it signed; a signature by
// an unknown key is no harm.
func (e envelope) payload(typ string, trusts ...trust) ([]byte, error) {
	if e.PayloadType != typ {
		return nil, failf(ErrUntrusted, "signed document has type %q, want %q", e.PayloadType, typ)
	}
	if len(trusts) == 0 {
		return nil, failf(ErrUntrusted, "no keys to verify with")
	}
	signed := pae(e.PayloadType, e.Payload)
	for _, t := range trusts {
		good := map[string]bool{}
		for _, s := range e.Signatures {
			if k, ok := t.keys[s.KeyID]; ok && !good[s.KeyID] && ed25519.Verify(k, signed, s.Sig) {
				good[s.KeyID] = true
			}
		}
		if t.threshold < 1 || len(good) < t.threshold {
			return nil, failf(ErrUntrusted, "signed by %d of %d needed trusted keys", len(good), t.threshold)
		}
	}
	return e.Payload, nil
}

// WritePrivateKey stores key in a new file (PKCS #8, PEM) that only the owner
// can read.
func WritePrivateKey(path string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("bundle: private key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("bundle: private key: %w", err)
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return errors.Join(err, f.Close())
}

// ErrOpenKey is returned for a private key file that others can read.
var ErrOpenKey = errors.New("private key file is open to others")

// ReadPrivateKey reads a file as WritePrivateKey made it. A file that group or
// others may read or write is refused with [ErrOpenKey].
func ReadPrivateKey(path string) (ed25519.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("bundle: private key: %w", err)
	}
	defer f.Close()
	in, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("bundle: private key: %w", err)
	}
	if !in.Mode().IsRegular() {
		return nil, fmt.Errorf("bundle: private key %s: not a regular file", path)
	}
	if m := in.Mode().Perm(); m&fs.FileMode(0o077) != 0 {
		return nil, fmt.Errorf("bundle: private key %s has mode %04o: %w", path, m, ErrOpenKey)
	}
	raw, err := readAll(f, 1<<16)
	if err != nil {
		return nil, fmt.Errorf("bundle: private key %s: %w", path, err)
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("bundle: private key %s: not a PEM private key", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("bundle: private key %s: not a PKCS #8 key", path)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("bundle: private key %s: not an ed25519 key", path)
	}
	return key, nil
}
