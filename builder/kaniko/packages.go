package kaniko

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/inventory"
)

// installed lists the packages in what a stage's instructions made.
func (b *build) installed(s *built) (*builder.Made, error) {
	var all inventory.Contents
	for _, l := range s.layers {
		c, err := b.contents(l.Layer)
		if err != nil {
			return nil, fmt.Errorf("kaniko: list the packages of %s: %w", FirstLine(l.title), err)
		}
		all = all.Over(c)
	}
	m := &builder.Made{Unknown: all.Unknown}
	m.Packages, m.Debian = all.Components()
	if s.ref == scratch {
		return m, nil
	}
	digest, err := s.base.Digest()
	if err != nil {
		return nil, fmt.Errorf("kaniko: %w", err)
	}
	ref, err := name.ParseReference(s.ref)
	if err != nil {
		return nil, fmt.Errorf("kaniko: %w", err)
	}
	from := ref.Context().Digest(digest.String())
	m.From = &from
	return m, nil
}

// contents reads a layer once; what was found stays in the store.
func (b *build) contents(l v1.Layer) (inventory.Contents, error) {
	digest, err := l.Digest()
	if err != nil {
		return inventory.Contents{}, err
	}
	file := filepath.Join("packages", inventory.Version+"-"+digest.Hex+".json")
	var c inventory.Contents
	if raw, err := os.ReadFile(filepath.Join(b.store.dir, file)); err == nil && json.Unmarshal(raw, &c) == nil {
		return c, nil
	}
	r, err := l.Uncompressed()
	if err != nil {
		return inventory.Contents{}, err
	}
	defer r.Close()
	if c, err = inventory.Layer(r, b.e.o.TmpDir); err != nil {
		return inventory.Contents{}, err
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return inventory.Contents{}, err
	}
	return c, b.store.write(file, strings.NewReader(string(raw)))
}
