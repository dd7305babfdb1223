package npm

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // old lock files have nothing else, and it is npm's own rule
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"hash"
	"strings"
)

// hashes are the algorithms of integrity values, strongest first; md5 is not
// one of them.
var hashes = []struct {
	name string
	new  func() hash.Hash
}{
	{"sha512", sha512.New}, {"sha384", sha512.New384}, {"sha256", sha256.New}, {"sha1", sha1.New},
}

// integrity is one algorithm and the values it may give.
type integrity struct {
	new  func() hash.Hash
	want [][]byte
}

// parseIntegrity picks the strongest algorithm of a list like "sha512-…
// sha1-…"; the weaker ones don't count beside it.
func parseIntegrity(s string) (integrity, bool) {
	for _, h := range hashes {
		var in integrity
		for _, field := range strings.Fields(s) {
			alg, value, _ := strings.Cut(field, "-")
			value, _, _ = strings.Cut(value, "?")
			if alg != h.name {
				continue
			}
			if b, err := base64.StdEncoding.DecodeString(value); err == nil && len(b) == h.new().Size() {
				in.want = append(in.want, b)
			}
		}
		if len(in.want) > 0 {
			in.new = h.new
			return in, true
		}
	}
	return integrity{}, false
}

func strongIntegrity(s string) bool {
	_, ok := parseIntegrity(s)
	return ok
}

func (in integrity) matches(h hash.Hash) bool {
	sum := h.Sum(nil)
	for _, w := range in.want {
		if bytes.Equal(w, sum) {
			return true
		}
	}
	return false
}
