package bundle

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func pubs(k ...ed25519.PublicKey) []ed25519.PublicKey { return k }

// theirs lets the reference implementation of DSSE sign and verify.
type theirs struct{ key ed25519.PrivateKey }

func (k theirs) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(k.key, data), nil
}

func (k theirs) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(public(k.key), data, sig) {
		return errors.New("bad signature")
	}
	return nil
}
func (k theirs) KeyID() (string, error)   { return KeyID(public(k.key)), nil }
func (k theirs) Public() crypto.PublicKey { return public(k.key) }

func TestEnvelopeIsDSSE(t *testing.T) {
	a, b := testKey(1), testKey(2)
	payload := map[string]string{"hello": "wörld\n"}

	raw, err := Seal(TypeChannel, payload, a, b)
	if err != nil {
		t.Fatal(err)
	}
	var e dsse.Envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	v, err := dsse.NewMultiEnvelopeVerifier(2, theirs{a}, theirs{b})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := v.Verify(t.Context(), &e); err != nil || len(keys) != 2 {
		t.Errorf("the reference implementation refuses our envelope: %v", err)
	}

	s, err := dsse.NewEnvelopeSigner(theirs{a}, theirs{b})
	if err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(payload)
	their, err := s.SignPayload(t.Context(), TypeChannel, body)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ = json.Marshal(their)
	ours, err := parseEnvelope(raw)
	if err != nil {
		t.Fatal(err)
	}
	both := trust{map[string]ed25519.PublicKey{KeyID(public(a)): public(a), KeyID(public(b)): public(b)}, 2}
	if got, err := ours.payload(TypeChannel, both); err != nil || string(got) != string(body) {
		t.Errorf("we refuse the reference implementation's envelope: %v", err)
	}
}

func TestThreshold(t *testing.T) {
	a, b, c := testKey(1), testKey(2), testKey(3)
	two := trust{map[string]ed25519.PublicKey{KeyID(public(a)): public(a), KeyID(public(b)): public(b)}, 2}
	for _, tc := range []struct {
		name string
		keys []ed25519.PrivateKey
		ok   bool
	}{
		{"both", []ed25519.PrivateKey{a, b}, true},
		{"both and a stranger", []ed25519.PrivateKey{c, b, a}, true},
		{"one", []ed25519.PrivateKey{a}, false},
		{"one twice", []ed25519.PrivateKey{a, a}, false},
		{"one and a stranger", []ed25519.PrivateKey{a, c}, false},
		{"none", nil, false},
	} {
		raw, err := Seal(TypeRoot, 1, tc.keys...)
		if err != nil {
			t.Fatal(err)
		}
		e, err := parseEnvelope(raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.payload(TypeRoot, two); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", tc.name, err)
		}
		// A threshold of nothing is satisfied by nobody.
		if _, err := e.payload(TypeRoot, trust{}); err == nil {
			t.Errorf("%s: accepted without a threshold", tc.name)
		}
		if _, err := e.payload(TypeRoot); err == nil {
			t.Errorf("%s: accepted without keys", tc.name)
		}
	}
	// A signature under somebody else's id doesn't count.
	raw, _ := Seal(TypeRoot, 1, a, c)
	raw = []byte(strings.Replace(string(raw), KeyID(public(c)), KeyID(public(b)), 1))
	e, _ := parseEnvelope(raw)
	if _, err := e.payload(TypeRoot, two); err == nil {
		t.Error("accepted a signature under another key's id")
	}
}

func TestRootRotation(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	old := l.root
	node := t.TempDir()
	c := l.client()
	c.Cache = node
	l.must(c, l.query())

	// Rotate to a new key for everything, twice.
	next := func(prev Root, k ed25519.PrivateKey) Root {
		r := NewRoot(l.now, pubs(public(k)), pubs(public(k)), nil)
		r.N = prev.N + 1
		return r
	}
	r2, r3 := next(old, testKey(2)), next(next(old, testKey(2)), testKey(3))
	for name, keys := range map[string][]ed25519.PrivateKey{"old only": {testKey(1)}, "new only": {testKey(2)}, "strangers": {testKey(8), testKey(9)}} {
		if err := PublishRoot(t.Context(), l.store, old, r2, keys...); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := PublishRoot(t.Context(), l.store, old, r3, testKey(1), testKey(3)); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a skipped number: %v", err)
	}
	if err := PublishRoot(t.Context(), l.store, old, r2, testKey(1), testKey(2)); err != nil {
		t.Fatal(err)
	}
	if err := PublishRoot(t.Context(), l.store, old, r2, testKey(1), testKey(2)); !errors.Is(err, ErrConflict) {
		t.Errorf("again: %v", err)
	}
	if err := PublishRoot(t.Context(), l.store, r2, r3, testKey(2), testKey(3)); err != nil {
		t.Fatal(err)
	}
	if err := r3.MaySign(testKey(3)); err != nil {
		t.Error(err)
	}
	if r3.MaySign(testKey(1)) == nil || r3.MaySign() == nil {
		t.Error("any key may sign")
	}
	if r, err := NewestRoot(t.Context(), l.store, old); err != nil || r.N != 3 {
		t.Errorf("newest: %+v %v", r, err)
	}
	// The channel's document is still the old keys'; publishers can read it.
	if c, _, err := Current(t.Context(), l.store, old, "acme", "stable"); err != nil || c.Seq != 1 {
		t.Errorf("after rotation: %+v %v", c, err)
	}
	l.last.Root, l.key = 3, testKey(3)
	l.now = l.now.Add(time.Hour)
	id := l.publish("2.0.0", 100, "platform/scripts/new.sh", "x")

	// Clients with key set 1 follow, also those that only have the node's cache
	// to remember it.
	fresh := l.client()
	handed := t.TempDir()
	b := l.must(fresh, l.query())
	if b.Digest != "sha256:"+id {
		t.Errorf("got %+v", b.Choice)
	}
	if err := b.HandOn(handed); err != nil {
		t.Fatal(err)
	}
	l.must(c, l.query())
	l.store.reset()
	l.must(c, l.query())
	if l.store.count("v1/root/") != 0 {
		t.Error("key sets are fetched again although the cache has them")
	}
	// A document by the retired key is refused by whoever saw the rotation.
	was := l.store.at("v1/chan/acme/stable.json")
	evil := l.last
	evil.Seq, evil.Root = 50, 1
	l.store.set("v1/chan/acme/stable.json", l.seal(evil, testKey(1)))
	if ch, err := c.Resolve(t.Context(), l.query()); err != nil || ch.Source != SourceCache {
		t.Errorf("retired key: %+v %v", ch, err)
	}
	l.store.set("v1/chan/acme/stable.json", was)
	// A later job verifies with key set 1 and the chain it was handed, also
	// when the store is down.
	l.store.setFault(down)
	q := l.query()
	q.Handed = handed
	if b := l.must(l.client(), q); b.Choice.Source != SourcePipeline {
		t.Errorf("handed on: %+v", b.Choice)
	}
	l.store.setFault(nil)
	// Missing or broken successors are refused.
	l.store.set(rootKey(2), []byte("{}"))
	if _, err := l.client().Resolve(t.Context(), l.query()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("broken successor: %v", err)
	}
	l.store.Delete(t.Context(), rootKey(2))
	if _, err := l.client().Resolve(t.Context(), l.query()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("missing successor: %v", err)
	}
}

func TestRootValidate(t *testing.T) {
	good := NewRoot(t0, pubs(public(testKey(1))), pubs(public(testKey(2))), pubs(public(testKey(3))))
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Root){
		"format":           func(r *Root) { r.Format = 2 },
		"number":           func(r *Root) { r.N = 0 },
		"key of other id":  func(r *Root) { r.Keys[KeyID(public(testKey(1)))] = public(testKey(4)) },
		"short key":        func(r *Root) { r.Keys["x"] = []byte("x") },
		"unknown key":      func(r *Root) { r.Roles.Channel.Keys = []string{"x"} },
		"threshold 0":      func(r *Root) { r.Roles.Root.Threshold = 0 },
		"threshold 2 of 1": func(r *Root) { r.Roles.Root.Threshold = 2 },
		"same key twice": func(r *Root) {
			r.Roles.Root = Role{Keys: append(r.Roles.Root.Keys, r.Roles.Root.Keys...), Threshold: 2}
		},
		"no channel role": func(r *Root) { r.Roles.Channel = Role{} },
		"fresh threshold": func(r *Root) { r.Roles.Fresh.Threshold = 0 },
	} {
		r := NewRoot(t0, pubs(public(testKey(1))), pubs(public(testKey(2))), pubs(public(testKey(3))))
		spoil(&r)
		if err := r.Validate(); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPrivateKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "publisher.key")
	key := testKey(1)
	if err := WritePrivateKey(path, key); err != nil {
		t.Fatal(err)
	}
	in, err := os.Stat(path)
	if err != nil || in.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", in.Mode(), err)
	}
	if err := WritePrivateKey(path, key); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwritten: %v", err)
	}
	got, err := ReadPrivateKey(path)
	if err != nil || !got.Equal(key) {
		t.Errorf("read back: %v", err)
	}
	for _, m := range []os.FileMode{0o640, 0o604, 0o660, 0o666} {
		if err := os.Chmod(path, m); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPrivateKey(path); !errors.Is(err, ErrOpenKey) {
			t.Errorf("mode %o: %v", m, err)
		}
	}
	os.Chmod(path, 0o600)
	if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPrivateKey(path); err == nil || strings.Contains(err.Error(), "hello") {
		t.Errorf("not a key: %v", err)
	}
	if _, err := ReadPrivateKey(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := ReadPrivateKey(filepath.Dir(path)); err == nil {
		t.Error("a folder is no key")
	}
}
