package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/registry"
)

// Rebase is a change of an image's platform parts, made in the registry
// without the source.
type Rebase struct {
	Image name.Reference
	// Base is the new base; its zero value keeps the one that is there.
	Base name.Digest
	// BuiltIn replace the image's built-in layers, one for one and in their
	// order; they were made for Base, which has to be named with them.
	BuiltIn []name.Digest
	// Layers replace the image's layers of the same Title: adapter, a plugin.
	Layers []Tree
	// Tag is what the new image is called; "" is rebased-<its digest's beginning>.
	Tag string
	// Origin is who asked; nil leaves the new image without documents.
	Origin *attest.Provenance
}

// Rebase makes the image that a build from the same source on the new parts
// would give, byte for byte, and pushes it beside the old one. Layers of the
// project are taken as they are.
//
// Errors: an [*InputError] when the image can't be changed so: it is not
// ours, a Dockerfile made it, or the new base has another abi and there is
// machine code in the project's layers; those of [Engine.Build].
func (e *Layers) Rebase(ctx context.Context, r Rebase) (Image, error) {
	s := e.reg.Session()
	image, err := e.rebase(ctx, s, r)
	e.memo.flush()
	image.Engine, image.Requests, image.Uploaded = "layer", s.Requests(), s.Sent()
	if err != nil {
		if ctx.Err() != nil {
			return image, context.Cause(ctx)
		}
		return image, explain("rebase "+r.Image.Name(), err)
	}
	return image, nil
}

// rebuild is what to do instead.
const rebuild = "build it from its source: run the pipeline of its repository"

func (e *Layers) rebase(ctx context.Context, s *registry.Session, r Rebase) (Image, error) {
	old, err := e.open(ctx, s, r.Image)
	if err != nil {
		return Image{}, err
	}
	config, ours, err := old.parts()
	if err != nil {
		return Image{}, err
	}
	base, digest, from := old.under(len(ours)), old.manifest.Annotations[noteBase], old.ref.Context()
	if r.Base.DigestStr() != "" {
		if base, err = e.base(ctx, s, r.Base); err != nil {
			return Image{}, err
		}
		if err := old.fits(base, ours); err != nil {
			return Image{}, err
		}
		digest, from = r.Base.DigestStr(), r.Base.Context()
	}
	builtIn, err := e.swapBuiltIn(ctx, s, r, old, base, ours)
	if err != nil {
		return Image{}, err
	}
	req := Request{Name: shortName(old.ref.Context()), Repository: old.ref.Context(), Base: from.Digest(digest), BuiltIn: r.BuiltIn, Config: config, Origin: r.Origin}
	b := &build{e: e, s: s, req: req}
	fresh := map[v1.Hash]*layer.Layer{}
	defer func() {
		for _, l := range fresh {
			l.Close()
		}
	}()
	for _, t := range r.Layers {
		i := slices.IndexFunc(ours, func(o titled) bool { return o.title == t.Title })
		if i < 0 || owner(t.Title) != "platform" {
			var have []string
			for _, o := range ours {
				if owner(o.title) == "platform" {
					have = append(have, o.title)
				}
			}
			return Image{}, &InputError{What: fmt.Sprintf("%s has no platform layer %q", old.ref, t.Title), Next: "replace one of: " + strings.Join(have, ", ")}
		}
		l, err := layer.FromTree(ctx, e.o.TempDir, layer.Gzip, t.layer())
		if err != nil {
			return Image{}, treeError(t, err)
		}
		ours[i].info = l.Info()
		fresh[l.Info().Digest] = l
	}
	cfg, manifest, err := compose(base, digest, kindBase, ours, config)
	if err != nil {
		return Image{}, err
	}
	image := Image{Name: req.Name, Ref: req.Repository.Digest(sumOf(manifest).String())}
	image.Layers = make([]Layer, len(base.manifest.Layers)+len(ours))
	up, uctx := errgroup.WithContext(ctx)
	up.SetLimit(transfers)
	send := func(i int, title string, blob registry.Blob, from *name.Repository, ask bool) {
		image.Layers[i] = Layer{Title: title, Digest: blob.Digest.String(), Size: blob.Size}
		up.Go(func() (err error) {
			image.Layers[i].Reused, err = b.ensure(uctx, blob, from, ask)
			return err
		})
	}
	for i, l := range base.manifest.Layers {
		send(i, kindBase, s.Copy(from, l, "base layer"), &from, true)
	}
	for i, o := range ours {
		blob := s.Copy(req.Repository, o.info.Descriptor(), o.title+" layer")
		var at *name.Repository
		if l, ok := fresh[o.info.Digest]; ok {
			blob = blobOf(o.title, l)
		} else if ref, ok := builtIn[o.info.Digest]; ok {
			repo := ref.Context()
			blob, at = s.Copy(repo, o.info.Descriptor(), "built-in layer"), &repo
		}
		send(len(base.manifest.Layers)+i, o.title, blob, at, true)
	}
	up.Go(func() error {
		_, err := b.ensure(uctx, bytesBlob("configuration", cfg), nil, false)
		return err
	})
	if r.Origin != nil {
		up.Go(func() error { return b.inherit(uctx, old, manifest) })
	}
	if err := up.Wait(); err != nil {
		return Image{}, err
	}
	tag := r.Tag
	if tag == "" {
		tag = "rebased-" + sumOf(manifest).Hex[:12]
	}
	if err := s.PutManifest(ctx, req.Repository.Tag(tag), types.OCIManifestSchema1, manifest); err != nil {
		return Image{}, err
	}
	image.Referrers, image.Warnings = b.beside, b.warnings
	return image, nil
}

func shortName(r name.Repository) string {
	s := r.RepositoryStr()
	return s[strings.LastIndex(s, "/")+1:]
}

// parts reads the layers above the base, and the settings they came with.
func (o *opened) parts() (Config, []titled, error) {
	bad := func(why string) error {
		return &InputError{What: fmt.Sprintf("%s can't be rebased", o.ref), Next: rebuild, Err: errors.New(why)}
	}
	config, ok := settings(o.manifest)
	if !ok || o.manifest.Annotations[noteBase] == "" {
		return Config{}, nil, bad("it does not say what it is made of: another program made it, or an older version of this one")
	}
	var ours []titled
	for i, l := range o.manifest.Layers {
		switch kind := l.Annotations[noteLayer]; {
		case kind == kindDockerfile:
			return Config{}, nil, bad("a Dockerfile made it, and what its instructions would do on another base is not known")
		case kind == kindBase && ours == nil:
		case kind == "" || kind == kindBase:
			return Config{}, nil, bad("its layers are not marked in the order that we write")
		default:
			ours = append(ours, titled{title: kind, name: l.Annotations[noteName], info: layer.Info{Digest: l.Digest, DiffID: o.config.RootFS.DiffIDs[i],
				Size: l.Size, MediaType: l.MediaType, Native: l.Annotations[noteNative] == "true"}})
		}
	}
	return config, ours, nil
}

// under is the image without its n upper layers: composing the same settings
// on it again gives the same configuration.
func (o *opened) under(n int) *baseImage {
	b := &baseImage{manifest: *o.manifest.DeepCopy(), config: *o.config.DeepCopy()}
	keep := len(b.manifest.Layers) - n
	b.manifest.Layers, b.config.RootFS.DiffIDs = b.manifest.Layers[:keep], b.config.RootFS.DiffIDs[:keep]
	if len(b.config.History) >= n {
		b.config.History = b.config.History[:len(b.config.History)-n]
	}
	return b
}

// fits makes sure that what is above the base runs on the new one.
func (o *opened) fits(base *baseImage, ours []titled) error {
	have, want := o.config.Config.Labels[abiLabel], base.config.Config.Labels[abiLabel]
	if have != "" && have == want {
		return nil
	}
	var native []string
	for _, l := range ours {
		if l.info.Native && owner(l.title) == "project" {
			native = append(native, l.title)
		}
	}
	// Without machine code the runtime's own version decides, which is the
	// first word of the label: node18-glibc2.36.
	why := ""
	switch {
	case have == "" || want == "":
		why = "one of the two bases has no abi label"
	case len(native) > 0:
		why = fmt.Sprintf("the abi of its base is %s, the new one's is %s, and there is machine code in its layer %s", have, want, strings.Join(native, ", "))
	case runtimeOf(have) != runtimeOf(want):
		why = fmt.Sprintf("its base is for %s, the new one for %s", runtimeOf(have), runtimeOf(want))
	default:
		return nil
	}
	return &InputError{What: fmt.Sprintf("%s can't be rebased", o.ref), Next: rebuild, Err: errors.New(why)}
}

// swapBuiltIn puts the built-in layers of r in the place of the image's own,
// and returns where each comes from.
func (e *Layers) swapBuiltIn(ctx context.Context, s *registry.Session, r Rebase, old *opened, base *baseImage, ours []titled) (map[v1.Hash]name.Digest, error) {
	var at []int
	var names []string
	for i, l := range ours {
		if l.title == kindBuiltIn {
			at = append(at, i)
			names = append(names, cmp.Or(l.name, "without a name"))
		}
	}
	based := r.Base.DigestStr() != ""
	// A base made again from the same packages is the same base.
	same := !based || r.Base.DigestStr() == old.manifest.Annotations[noteBase]
	if len(r.BuiltIn) == 0 && (len(at) == 0 || same) {
		return nil, nil
	}
	bad := func(next, format string, args ...any) error {
		return &InputError{What: fmt.Sprintf("%s can't be rebased", old.ref), Next: next, Err: fmt.Errorf(format, args...)}
	}
	list := strings.Join(names, ", ")
	switch {
	case len(at) == 0:
		return nil, bad("leave the built-in layers out", "it has none to swap")
	case len(r.BuiltIn) == 0:
		return nil, bad("name those that were made for the new base, in the same order", "its built-in layers (%s) were made for the base it has and hold what that one lacks", list)
	case !based:
		return nil, bad("name the base that they were made for as well, also when it stays", "a built-in layer fits one base alone")
	case len(r.BuiltIn) != len(at):
		return nil, bad("name one for each, in the same order", "it has %d built-in layers (%s), and %d are named", len(at), list, len(r.BuiltIn))
	}
	from := map[v1.Hash]name.Digest{}
	for i, ref := range r.BuiltIn {
		t, _, err := e.readBuiltIn(ctx, s, ref, base)
		if err != nil {
			return nil, err
		}
		if have := ours[at[i]].name; have != t.name {
			return nil, bad("name one for each, in the same order: "+list, "its built-in layer %d is %s, and %s is %s", i+1, names[i], ref, cmp.Or(t.name, "without a name"))
		}
		ours[at[i]], from[t.info.Digest] = t, ref
	}
	return from, nil
}

func runtimeOf(abi string) string {
	r, _, _ := strings.Cut(abi, "-")
	return r
}

// inherit stores the documents of a rebased image: what the old one's bill of
// materials says of the project, and the new base's.
func (b *build) inherit(ctx context.Context, old *opened, manifest []byte) error {
	bom, err := b.e.listBOM(ctx, b.s, b.req.Base, kindBase, unknownBase)
	if err != nil {
		return err
	}
	before, found, err := b.e.readBOM(ctx, b.s, old.ref.Context(), old.digest, "")
	if err != nil {
		return err
	}
	bom.Name = b.req.Name
	bom.Components = append(bom.Components, b.baseComponent())
	for _, c := range before.Components {
		if c.Layer != kindBase && (c.Layer != kindBuiltIn || len(b.req.BuiltIn) == 0) {
			bom.Components = append(bom.Components, c)
		}
	}
	if err := b.builtInBOM(ctx, &bom); err != nil {
		return err
	}
	for _, u := range before.Unknown {
		if u != unknownBase && (u != unknownBuiltIn || len(b.req.BuiltIn) == 0) {
			bom.Unknown = append(bom.Unknown, u)
		}
	}
	if !found {
		bom.Unknown = append(bom.Unknown, "packages of the image that was rebased")
	}
	origin := *b.req.Origin
	origin.Materials = append(slices.Clone(origin.Materials), attest.Material{Name: "image", Digest: map[string]string{old.digest.Algorithm: old.digest.Hex}})
	b.req.Origin = &origin
	return b.referrers(ctx, bom, manifest)
}
