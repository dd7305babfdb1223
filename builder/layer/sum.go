package layer

import (
	"context"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Sum is the diffID that a layer of t would have, without compressing or
// keeping anything: a name for the tree's content.
func Sum(ctx context.Context, t Tree) (v1.Hash, error) {
	w := openWriter(&Spool{}, Gzip, nopCloser{io.Discard})
	defer w.Abort()
	if err := w.AddTree(ctx, t); err != nil {
		return v1.Hash{}, err
	}
	l, err := w.Close()
	if err != nil {
		return v1.Hash{}, err
	}
	return l.info.DiffID, l.Close()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
