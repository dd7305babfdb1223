package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Layout names how [Layers] lays images out and compresses them. It belongs in
// every input key: another layout gives other digests for the same input.
var Layout = "layers/3 " + layer.Gzip.ID()

// Keyer hashes the parts of a key. Each part is hashed with its length before
// it, so that no two lists of parts look alike. The zero value works. Not safe
// for concurrent use.
type Keyer struct{ h hash.Hash }

// Add adds parts in order and returns k.
func (k *Keyer) Add(parts ...string) *Keyer {
	if k.h == nil {
		k.h = sha256.New()
	}
	for _, p := range parts {
		fmt.Fprintf(k.h, "%d:", len(p))
		k.h.Write([]byte(p))
	}
	return k
}

// Sum is the key of the parts so far: 64 hexadecimal digits.
func (k *Keyer) Sum() string {
	k.Add()
	return hex.EncodeToString(k.h.Sum(nil))
}

// Key is the key of parts.
func Key(parts ...string) string { return new(Keyer).Add(parts...).Sum() }

// DigestOf names the content of a tree: equal for equal files at the same
// place, whatever their times, owners and umask. It reads every file once.
func DigestOf(ctx context.Context, t Tree) (string, error) {
	h, err := layer.Sum(ctx, t.layer())
	if err != nil {
		return "", fmt.Errorf("builder: %s: %w", t.Title, err)
	}
	return h.String(), nil
}

func (t Tree) layer() layer.Tree { return layer.Tree{FS: t.FS, Prefix: t.Prefix, Paths: t.Paths} }

// keyTag is the tag that a key's image has. A key that can't be part of one is
// hashed.
func keyTag(repo name.Repository, prefix, key string) name.Tag {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '.' && r != '-'
	}
	if key == "" || len(key) > 120 || strings.ContainsFunc(key, bad) {
		key = Key("tag", key)
	}
	return repo.Tag(prefix + key)
}
