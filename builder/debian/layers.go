package debian

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// BuildLayer makes r, a recipe of kind layer, for one base: an image of one
// layer that holds what r's packages have and the base has not, called
// r.Name/<the base's runtime>. Base is made first, or found; the layer fits
// that very image, which the label [builder.LabelLayerBase] names.
//
// Errors are those of [Builder.Build].
func (b *Builder) BuildLayer(ctx context.Context, r, base Recipe, o Options) (Image, error) {
	name := LayerName(r, base)
	for _, each := range []Recipe{r, base} {
		if err := each.validate(); err != nil {
			return Image{}, fmt.Errorf("debian: recipe %s: %w", each.Name, err)
		}
	}
	if r.Kind != BuiltIn || base.Kind != Base {
		return Image{}, fmt.Errorf("debian: image %s: %w: %s is no layer or %s no base", name, ErrRecipe, r.Name, base.Name)
	}
	unlock, err := b.lock(ctx, syscall.LOCK_EX)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	img, err := b.buildLayer(ctx, name, r, base, o)
	if err != nil {
		return Image{}, fmt.Errorf("debian: image %s: %w", name, err)
	}
	b.prune()
	return img, nil
}

// LayerName is what the layer's image for a base is called:
// layer/ffmpeg/nodejs18.
func LayerName(r, base Recipe) string { return r.Name + "/" + path.Base(base.Name) }

func (b *Builder) buildLayer(ctx context.Context, name string, r, base Recipe, o Options) (Image, error) {
	below, err := b.build(ctx, base, o)
	if err != nil {
		return Image{}, err
	}
	a, err := b.newApt(ctx)
	if err != nil {
		return Image{}, err
	}
	// Both together, so that apt chooses nothing that does not go with the base.
	whole := r
	whole.Name, whole.ABI = name, base.ABI
	whole.Packages = append(slices.Clone(base.Packages), r.Packages...)
	whole.Without = append(slices.Clone(base.Without), r.Without...)
	whole.Links = map[string]string{}
	for _, links := range []map[string]string{base.Links, r.Links} {
		for from, to := range links {
			whole.Links[from] = to
		}
	}
	pkgs, err := b.plan(ctx, a, whole)
	if err != nil {
		return Image{}, err
	}
	var own, of []Package
	for _, p := range pkgs {
		i := slices.IndexFunc(below.Packages, func(q Package) bool { return q.Name == p.Name && q.Arch == p.Arch })
		switch {
		case i < 0:
			own = append(own, p)
		case below.Packages[i].SHA256 != p.SHA256:
			return Image{}, fmt.Errorf("%w: it wants %s %s, %s has %s", ErrRecipe, p.Name, p.Version, base.Name, below.Packages[i].Version)
		default:
			of = append(of, p)
		}
	}
	abi, err := base.abi(below.Packages, a.arch)
	if err != nil {
		return Image{}, err
	}
	img := Image{Name: name, Kind: BuiltIn, ABI: abi, Arch: below.Arch, Packages: own}
	key := layerKey("built-in", a.arch, pkgs, whole.Without, whole.Links, r.Drop, r.Expect, r.Absent, below.Digest)
	l, reused, err := b.stored(ctx, key, func(w *layer.Writer) error {
		upper, err := b.merge(ctx, a, whole, pkgs)
		if err != nil {
			return err
		}
		defer upper.close()
		plain := base
		plain.Absent = nil
		lower, err := b.merge(ctx, a, plain, of)
		if err != nil {
			return err
		}
		defer lower.close()
		return upper.writeBeyond(ctx, w, lower)
	})
	if err != nil {
		return Image{}, err
	}
	img.Layers = []Layer{{Title: strings.TrimPrefix(r.Name, "layer/"), Digest: l.info.Digest.String(), Size: l.info.Size, Reused: reused}}
	img.Size, img.Unpacked = l.info.Size, l.info.Raw
	labelled := Recipe{Name: name, Title: r.Title, Labels: map[string]string{
		builder.LabelLayerBase: below.Digest, builder.LabelLayerName: strings.TrimPrefix(r.Name, "layer/"),
	}}
	if o.Out == "" {
		o.Out = b.images()
	}
	return b.writeLayout(labelled, img, []*storedLayer{l}, o.Out)
}
