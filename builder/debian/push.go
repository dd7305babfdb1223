package debian

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
)

// Push puts an image made before into repo; see [Builder.Find] for out. It is
// used by digest, and tagged after it, because registries collect what has no
// tag. Layers that the repository has are not sent. A registry that does not
// answer gives a [*builder.Unavailable], one that refuses a *transport.Error.
func (b *Builder) Push(ctx context.Context, image, out string, repo name.Repository, opts ...remote.Option) (Image, name.Digest, error) {
	unlock, err := b.lock(ctx, syscall.LOCK_SH)
	if err != nil {
		return Image{}, name.Digest{}, err
	}
	defer unlock()
	img, err := b.Find(image, out)
	if err != nil {
		return Image{}, name.Digest{}, err
	}
	built, err := img.Open()
	if err != nil {
		return Image{}, name.Digest{}, err
	}
	ref := repo.Digest(img.Digest)
	b.log("%s: push %d MB to %s", image, img.Size>>20, repo)
	if err := remote.Write(repo.Tag(guardTag(img.Digest)), built, append([]remote.Option{remote.WithContext(ctx)}, opts...)...); err != nil {
		if ctx.Err() != nil {
			return Image{}, name.Digest{}, context.Cause(ctx)
		}
		var dial *net.OpError
		var u *url.Error
		if errors.As(err, &dial) || errors.As(err, &u) {
			err = &builder.Unavailable{Op: "push " + repo.Name(), Host: repo.RegistryStr(), Attempts: 1, Err: err}
		}
		return Image{}, name.Digest{}, fmt.Errorf("debian: push %s: %w", image, err)
	}
	return img, ref, nil
}

// guardTag is a tag that never moves: sha256-<the digest's beginning>.
func guardTag(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return "sha256-" + hex[:min(16, len(hex))]
}
