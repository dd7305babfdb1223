package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/builder/attest"
)

var components = []attest.Component{
	{Type: "npm", Namespace: "@team", Name: "lib", Version: "1.2.3", Integrity: "sha512-" + strings.Repeat("A", 86) + "==", Layer: "dependencies"},
	{Type: "deb", Namespace: "debian", Name: "libc6", Version: "2.36-9+deb12u10", Arch: "amd64", Layer: "base"},
	{Type: "pypi", Name: "requests", Version: "2.31.0", Layer: "dependencies"},
}

func TestBOM(t *testing.T) {
	b := attest.BOM{Name: "nodejs18", Components: components}
	first, err := b.JSON()
	if err != nil {
		t.Fatal(err)
	}
	shuffled := slices.Clone(components)
	slices.Reverse(shuffled)
	second, err := attest.BOM{Name: "nodejs18", Components: append(shuffled, shuffled[0])}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("equal lists, other bytes:\n%s\n%s", first, second)
	}
	for _, want := range []string{`"specVersion":"1.6"`, `pkg:npm/%40team/lib@1.2.3`, `pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64`, `"aggregate":"complete"`, `"alg":"SHA-512"`} {
		if !strings.Contains(string(first), want) {
			t.Errorf("no %s in %s", want, first)
		}
	}
	if strings.Contains(string(first), "timestamp") || strings.Contains(string(first), "serialNumber") {
		t.Error("something differs from run to run")
	}
	got, err := attest.ReadBOM(first, "")
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(components)
	slices.SortFunc(want, func(a, b attest.Component) int { return strings.Compare(a.Layer+a.PURL(), b.Layer+b.PURL()) })
	if got.Name != "nodejs18" || !reflect.DeepEqual(got.Components, want) {
		t.Errorf("read back %+v\nwant %+v", got.Components, want)
	}
	b.Unknown = []string{"packages of the base image"}
	part, err := b.JSON()
	if err != nil || !strings.Contains(string(part), `"aggregate":"incomplete"`) {
		t.Errorf("%s, %v", part, err)
	}
	if got, err := attest.ReadBOM(part, "base"); err != nil || len(got.Unknown) != 1 || got.Components[0].Layer != "base" {
		t.Errorf("%+v, %v", got, err)
	}
}

var provenance = attest.Provenance{
	Builder: "https://kuroko.dev/stage-runner", BuildType: "https://kuroko.dev/layers/v1", Versions: map[string]string{"stage-runner": "1.0"},
	Parameters: map[string]any{"source": "https://gitlab.example/team/app"}, Internal: map[string]any{"engine": "layer"},
	Materials:  []attest.Material{{Name: "source", URI: "git+https://gitlab.example/team/app", Digest: map[string]string{"gitCommit": strings.Repeat("a", 40)}}},
	Invocation: "https://gitlab.example/team/app/-/jobs/1", Started: time.Unix(1700000000, 5),
}

var image = attest.Subject{Name: "team/app/nodejs18", Digest: "sha256:" + strings.Repeat("b", 64)}

func TestProvenance(t *testing.T) {
	raw, err := provenance.Statement(image)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Type          string `json:"_type"`
		PredicateType string
		Predicate     struct {
			BuildDefinition struct{ BuildType string }
			RunDetails      struct {
				Builder  struct{ ID string }
				Metadata struct{ StartedOn string }
			}
		}
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Type != "https://in-toto.io/Statement/v1" || doc.PredicateType != attest.Predicate || doc.Predicate.BuildDefinition.BuildType != provenance.BuildType ||
		doc.Predicate.RunDetails.Builder.ID != provenance.Builder || doc.Predicate.RunDetails.Metadata.StartedOn != "2023-11-14T22:13:20Z" {
		t.Errorf("%+v", doc)
	}
	c, err := attest.ReadStatement(raw)
	if err != nil || c.Builder != provenance.Builder || !reflect.DeepEqual(c.Subjects, []attest.Subject{image}) || !reflect.DeepEqual(c.Materials, provenance.Materials) {
		t.Errorf("%+v, %v", c, err)
	}
	again, err := provenance.Statement(image)
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("equal facts, other bytes: %v", err)
	}
	if _, err := (attest.Provenance{Builder: "x"}).Statement(image); err == nil {
		t.Error("a statement without a build type")
	}
}

func keyPEM(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestSignatures(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	stranger, err := attest.ReadSigner(keyPEM(t, other))
	if err != nil {
		t.Fatal(err)
	}
	strangers, err := stranger.Public()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := provenance.Statement(image)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"ed25519": ed, "ecdsa": ec} {
		t.Run(name, func(t *testing.T) {
			s, err := attest.ReadSigner(keyPEM(t, key))
			if err != nil {
				t.Fatal(err)
			}
			env, err := s.Seal(t.Context(), raw)
			if err != nil {
				t.Fatal(err)
			}
			public, err := s.Public()
			if err != nil {
				t.Fatal(err)
			}
			v, err := attest.ReadVerifier(append(strangers, public...))
			if err != nil {
				t.Fatal(err)
			}
			if c, err := v.Open(t.Context(), env, image.Digest); err != nil || c.Builder != provenance.Builder {
				t.Errorf("%+v, %v", c, err)
			}
			if _, err := v.Open(t.Context(), env, "sha256:"+strings.Repeat("c", 64)); !errors.Is(err, attest.ErrUnsigned) {
				t.Errorf("another image: %v", err)
			}
			wrong, err := attest.ReadVerifier(strangers)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := wrong.Open(t.Context(), env, image.Digest); !errors.Is(err, attest.ErrUnsigned) {
				t.Errorf("another key: %v", err)
			}
			forged := bytes.Replace(env, []byte(`"payload":"`), []byte(`"payload":"e30`), 1)
			if _, err := v.Open(t.Context(), forged, image.Digest); !errors.Is(err, attest.ErrUnsigned) {
				t.Errorf("another payload: %v", err)
			}
		})
	}
}

func TestBadKeys(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pem  []byte
		want string
	}{
		"empty":     {nil, "not PEM"},
		"encrypted": {pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), "plain PRIVATE KEY"},
		"garbage":   {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")}), "can't be read"},
		"curve":     {keyPEM(t, p384), "P-256"},
	} {
		if _, err := attest.ReadSigner(c.pem); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := attest.ReadVerifier([]byte("x")); err == nil {
		t.Error("a verifier without keys")
	}
}

// FuzzDocuments reads what a registry may send.
func FuzzDocuments(f *testing.F) {
	raw, err := provenance.Statement(image)
	if err != nil {
		f.Fatal(err)
	}
	b, err := attest.BOM{Name: "x", Components: components}.JSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(b)
	f.Add([]byte(`{"payload":"e30=","payloadType":"application/vnd.in-toto+json"}`))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = attest.ReadStatement(data)
		_, _ = attest.ReadBOM(data, "base")
		_, _ = attest.OpenUnverified(data)
	})
}
