package bundle

import (
	"crypto/ed25519"
	"encoding/json"
	"time"
)

// Root is a numbered key set: who may sign what. Clients receive one with
// their job image (platform.json) and follow signed successors from the store.
type Root struct {
	Format int       `json:"format"` // 1
	N      int       `json:"n"`      // 1, 2, …
	Issued time.Time `json:"issued,omitzero"`
	// Keys maps a key's id to its 32 bytes.
	Keys  map[string][]byte `json:"keys"`
	Roles Roles             `json:"roles"`
}

// Roles are the powers that keys can have.
type Roles struct {
	// Root may replace the key set.
	Root Role `json:"root"`
	// Channel may say which bundle is current, pin and revoke.
	Channel Role `json:"channel"`
	// Fresh may only say that a channel document is still the newest one; it is
	// for a key that is kept online. The zero Role means nobody may.
	Fresh Role `json:"fresh,omitzero"`
}

// Role is a list of key ids and how many of them must sign.
type Role struct {
	Keys      []string `json:"keys"`
	Threshold int      `json:"threshold"`
}

// NewRoot makes key set 1. With no fresh keys nobody can vouch for an expired
// document.
func NewRoot(now time.Time, root, channel, fresh []ed25519.PublicKey) Root {
	r := Root{Format: 1, N: 1, Issued: now.UTC().Truncate(time.Second), Keys: map[string][]byte{}}
	role := func(pubs []ed25519.PublicKey) Role {
		var o Role
		for _, p := range pubs {
			r.Keys[KeyID(p)] = p
			o.Keys = append(o.Keys, KeyID(p))
			o.Threshold = 1
		}
		return o
	}
	r.Roles = Roles{Root: role(root), Channel: role(channel), Fresh: role(fresh)}
	return r
}

// Validate checks that every role can be fulfilled and every key is what its
// id says.
func (r Root) Validate() error {
	if r.Format != 1 {
		return failf(ErrUntrusted, "key set has format %d, this runner reads 1", r.Format)
	}
	if r.N < 1 {
		return failf(ErrUntrusted, "key set has number %d", r.N)
	}
	if len(r.Keys) > maxSignatures {
		return failf(ErrUntrusted, "key set has more than %d keys", maxSignatures)
	}
	for id, k := range r.Keys {
		if len(k) != ed25519.PublicKeySize || KeyID(k) != id {
			return failf(ErrUntrusted, "key set: key %q is not the key of that id", id)
		}
	}
	roles := map[string]Role{"root": r.Roles.Root, "channel": r.Roles.Channel}
	if len(r.Roles.Fresh.Keys) > 0 || r.Roles.Fresh.Threshold != 0 {
		roles["fresh"] = r.Roles.Fresh
	}
	for name, o := range roles {
		seen := map[string]bool{}
		for _, id := range o.Keys {
			if r.Keys[id] == nil {
				return failf(ErrUntrusted, "key set: role %s names unknown key %q", name, id)
			}
			seen[id] = true
		}
		if o.Threshold < 1 || o.Threshold > len(seen) {
			return failf(ErrUntrusted, "key set: role %s needs %d of %d keys", name, o.Threshold, len(seen))
		}
	}
	return nil
}

func (r Root) trust(o Role) trust {
	t := trust{keys: map[string]ed25519.PublicKey{}, threshold: o.Threshold}
	for _, id := range o.Keys {
		if k := r.Keys[id]; len(k) == ed25519.PublicKeySize {
			t.keys[id] = k
		}
	}
	return t
}

// Follow verifies raw as r's successor: number r.N+1, signed by the root
// thresholds of both.
func (r Root) Follow(raw []byte) (Root, error) {
	e, err := parseEnvelope(raw)
	if err != nil {
		return Root{}, err
	}
	old, err := e.payload(TypeRoot, r.trust(r.Roles.Root))
	if err != nil {
		return Root{}, failf(ErrUntrusted, "key set %d, checked with the keys of %d: %s", r.N+1, r.N, reason(err))
	}
	var next Root
	if err := json.Unmarshal(old, &next); err != nil {
		return Root{}, failf(ErrUntrusted, "key set %d: %w", r.N+1, err)
	}
	if err := next.Validate(); err != nil {
		return Root{}, err
	}
	if next.N != r.N+1 {
		return Root{}, failf(ErrUntrusted, "key set says number %d, want %d", next.N, r.N+1)
	}
	if _, err := e.payload(TypeRoot, next.trust(next.Roles.Root)); err != nil {
		return Root{}, failf(ErrUntrusted, "key set %d, checked with its own keys: %s", next.N, reason(err))
	}
	return next, nil
}

// roots is a trusted key set and the signed successors that led to it from the
// one a client started with.
type roots struct {
	Root
	chain [][]byte
}

// extend follows signed key sets in order. Those that r already contains are
// skipped, so a chain that began at an older set is fine.
func (r roots) extend(chain [][]byte) (roots, error) {
	if len(chain) > maxRoots {
		return r, failf(ErrUntrusted, "chain of more than %d key sets", maxRoots)
	}
	for _, raw := range chain {
		e, err := parseEnvelope(raw)
		if err != nil {
			return r, err
		}
		var head struct{ N int }
		if json.Unmarshal(e.Payload, &head) == nil && head.N <= r.N {
			continue
		}
		next, err := r.Follow(raw)
		if err != nil {
			return r, err
		}
		r = roots{next, append(r.chain[:len(r.chain):len(r.chain)], raw)}
	}
	return r, nil
}

// maxRoots bounds how many rotations a client follows.
const maxRoots = 256
