package stages

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/builder"
)

func TestTrust(t *testing.T) {
	dir := t.TempDir()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, typ string, der []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := map[string]string{
		"FAAS_SIGNING_KEY": file("private", "PRIVATE KEY", private), "FAAS_DEPS_KEYS": file("public", "PUBLIC KEY", public),
		"FAAS_DEPS_INDEX": "registry.example.com/platform/deps",
	}
	for _, protected := range []bool{false, true} {
		var o builder.Options
		if err := trust(&o, func(n string) string { return good[n] }, protected); err != nil {
			t.Fatal(err)
		}
		if o.Signer == nil || o.CacheKeys == nil || o.CacheRepo.Name() != good["FAAS_DEPS_INDEX"] || o.CacheWrite != protected {
			t.Errorf("protected %v: %+v", protected, o)
		}
	}
	for name, c := range map[string]struct{ value, want string }{
		"FAAS_SIGNING_KEY": {"-----BEGIN PRIVATE KEY-----secret", "open the file that it names"},
		"FAAS_DEPS_KEYS":   {good["FAAS_SIGNING_KEY"], "can't be read"},
		"FAAS_DEPS_INDEX":  {"not a repository", "FAAS_DEPS_INDEX"},
	} {
		var o builder.Options
		err := trust(&o, func(n string) string {
			if n == name {
				return c.value
			}
			return ""
		}, true)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		var text strings.Builder
		text.WriteString(err.Error())
		if !strings.Contains(text.String(), c.want) || strings.Contains(text.String(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
