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
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
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
	if err := b.pushBOM(ctx, img, built, ref, opts...); err != nil {
		if ctx.Err() != nil {
			return Image{}, name.Digest{}, context.Cause(ctx)
		}
		return Image{}, name.Digest{}, fmt.Errorf("debian: push the bill of materials of %s: %w", image, err)
	}
	return img, ref, nil
}

// BOM lists the image's packages.
func (img Image) BOM() attest.BOM {
	out := attest.BOM{Name: img.Name}
	for _, p := range img.Packages {
		out.Components = append(out.Components, attest.Component{Type: "deb", Namespace: "debian", Name: p.Name, Version: p.Version, Arch: p.Arch, Layer: "base"})
	}
	if img.NPM != "" {
		out.Components = append(out.Components, attest.Component{Type: "npm", Name: "npm", Version: img.NPM, Layer: "base"})
	}
	return out
}

// pushBOM stores the list of packages as a referrer of the image, where the
// images built on it find it. A registry that takes no such documents does
// without.
func (b *Builder) pushBOM(ctx context.Context, img Image, built v1.Image, ref name.Digest, opts ...remote.Option) error {
	raw, err := img.BOM().JSON()
	if err != nil {
		return err
	}
	subject, err := partial.Descriptor(built)
	if err != nil {
		return err
	}
	doc, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), attest.TypeBOM),
		static.NewLayer(raw, attest.TypeBOM))
	if err != nil {
		return err
	}
	doc, ok := mutate.Subject(mutate.Annotations(doc, map[string]string{attest.Annotation: attest.PredicateBOM}).(v1.Image), *subject).(v1.Image)
	if !ok {
		return errors.New("the document is no image")
	}
	digest, err := doc.Digest()
	if err != nil {
		return err
	}
	err = remote.Write(ref.Context().Digest(digest.String()), doc, append([]remote.Option{remote.WithContext(ctx)}, opts...)...)
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode >= 400 && answer.StatusCode < 500 && answer.StatusCode != 401 && answer.StatusCode != 403 && answer.StatusCode != 429 {
		b.log("warning: the registry takes no bill of materials: %v", err)
		return nil
	}
	return err
}

// guardTag is a tag that never moves: sha256-<the digest's beginning>.
func guardTag(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return "sha256-" + hex[:min(16, len(hex))]
}
