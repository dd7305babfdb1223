package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/registry"
)

// transfers is how many blobs are on their way to a registry at once.
const transfers = 8

// bigEnoughToAsk is the size from which asking whether a new layer is there
// costs less than sending it.
const bigEnoughToAsk = 4 << 20

// build is one image on its way.
type build struct {
	e      *Layers
	s      *registry.Session
	req    Request
	force  bool // believe no memo about what the repository holds
	up     *errgroup.Group
	upCtx  context.Context
	ran    Ran // an installer, if any
	beside []Referrer

	mu       sync.Mutex
	warnings []string
}

// part is a layer of ours. reused and took are settled when all transfers have
// ended.
type part struct {
	titled
	reused bool
	took   time.Duration
}

// assemble makes all parts at once and pushes each as soon as it is there,
// then configuration and manifest. Nothing is tagged before everything is up.
func (e *Layers) assemble(ctx context.Context, s *registry.Session, req Request, tag name.Tag, force bool) (Image, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b := &build{e: e, s: s, req: req, force: force}
	b.up, b.upCtx = errgroup.WithContext(ctx)
	b.up.SetLimit(transfers)
	var base *baseImage
	var baseReused []part
	began := e.o.Now()
	below := len(req.BuiltIn)
	parts := make([]*part, below+len(req.Layers)+2) // built-in layers, trees, dependencies, code; nil for what there is not
	// A transfer that fails ends the work as well, with its reason.
	work, wctx := errgroup.WithContext(b.upCtx)
	work.Go(func() (err error) {
		if base, err = e.base(wctx, s, req.Base); err != nil {
			return err
		}
		if req.For != nil {
			made, err := e.base(wctx, s, *req.For)
			if err != nil {
				return err
			}
			have, want := base.config.Config.Labels[abiLabel], made.config.Config.Labels[abiLabel]
			if have == "" || have != want {
				return &InputError{
					What: fmt.Sprintf("the base image %s has the abi %q, and the runtime's packages are made for %q", req.Base, have, want),
					Next: "name a base with the runtime's abi label, or leave build.base out",
				}
			}
		}
		baseReused = make([]part, len(base.manifest.Layers))
		for i, l := range base.manifest.Layers {
			b.up.Go(func() (err error) {
				baseReused[i].reused, err = b.baseLayer(b.upCtx, l)
				baseReused[i].took = e.o.Now().Sub(began)
				return err
			})
		}
		return nil
	})
	for i, ref := range req.BuiltIn {
		work.Go(func() error {
			p, err := b.builtIn(wctx, ref)
			if err != nil {
				return err
			}
			parts[i] = p
			p.took = e.o.Now().Sub(began)
			return nil
		})
	}
	trees := append([]Tree{}, req.Layers...)
	if req.Code.FS != nil {
		trees = append(trees, req.Code)
	}
	layers := make([]*layer.Layer, len(trees))
	defer func() {
		for _, l := range layers {
			if l != nil {
				l.Close()
			}
		}
	}()
	for i, t := range trees {
		shared := i < len(req.Layers) // adapters and plugins are in many images
		at := below + i
		if !shared {
			at++ // behind the dependencies
		}
		if t.Title == "" {
			t.Title = "files"
		}
		work.Go(func() error {
			if shared {
				p, err := b.knownTree(wctx, t)
				if err != nil {
					return treeError(t, err)
				}
				if parts[at] = p; p != nil {
					return nil
				}
			}
			l, err := layer.FromTree(wctx, e.o.TempDir, layer.Gzip, t.layer())
			if err != nil {
				return treeError(t, err)
			}
			layers[i] = l
			p := &part{titled: titled{title: t.Title, info: l.Info()}}
			parts[at] = p
			if shared {
				e.memo.save("tree", treeKey(p.info.DiffID), p.info)
			}
			b.up.Go(func() (err error) {
				ask := shared || l.Info().Size >= bigEnoughToAsk
				p.reused, err = b.ensure(b.upCtx, blobOf(p.title, l), nil, ask)
				p.took = e.o.Now().Sub(began)
				return err
			})
			return nil
		})
	}
	if req.Dependencies != nil {
		work.Go(func() error {
			p, err := b.dependencies(wctx)
			if p != nil {
				p.took = e.o.Now().Sub(began)
				parts[below+len(req.Layers)] = p
			}
			return err
		})
	}
	var bom attest.BOM
	if req.Origin != nil {
		work.Go(func() (err error) {
			bom, err = b.bom(wctx)
			return err
		})
	}
	err := work.Wait()
	var config, manifest []byte
	if err == nil {
		config, manifest, err = compose(base, req.Base.DigestStr(), req.below(), titles(parts), req.Config)
	}
	if err != nil {
		cancel(err)
	} else {
		b.up.Go(func() error {
			return b.configuration(b.upCtx, bytesBlob("configuration", config))
		})
		if req.Origin != nil {
			b.up.Go(func() error { return b.referrers(b.upCtx, bom, manifest) })
		}
	}
	uerr := b.up.Wait()
	if err == nil {
		err = uerr
	}
	if err != nil {
		return Image{}, err
	}
	image := Image{Ref: req.Repository.Digest(sumOf(manifest).String()), Sandbox: b.ran.Sandbox, BuildImage: b.ran.Image, Unboxed: b.ran.Why, Referrers: b.beside, Warnings: b.warnings}
	for i, l := range base.manifest.Layers {
		image.Layers = append(image.Layers, Layer{Title: "base", Digest: l.Digest.String(), Size: l.Size, Reused: baseReused[i].reused, Took: baseReused[i].took})
	}
	for _, p := range parts {
		if p != nil {
			image.Layers = append(image.Layers, Layer{Title: p.title, Digest: p.info.Digest.String(), Size: p.info.Size, Reused: p.reused, Took: p.took})
		}
	}
	// A tag that does not come about after all costs the next build a question.
	e.memo.later("built", tag.Name(), image.Layers)
	if !e.memo.load("pushed", req.Repository.Name(), new(bool)) {
		e.memo.later("pushed", req.Repository.Name(), true)
	}
	var notes sync.WaitGroup
	notes.Go(e.memo.flush)
	err = s.PutManifest(ctx, tag, types.OCIManifestSchema1, manifest)
	notes.Wait()
	if err != nil {
		if errors.Is(err, registry.ErrBlobUnknown) {
			e.memo.distrust(req.Repository, blobsOf(base, parts, config))
		}
		return Image{}, err
	}
	return image, nil
}

// knownTree finds the layer of a tree that was made before and is believed to
// be in the image's repository; nil when there is none. It reads the files, but
// to compress them takes ten times as long.
func (b *build) knownTree(ctx context.Context, t Tree) (*part, error) {
	sum, err := layer.Sum(ctx, t.layer())
	if err != nil {
		return nil, err
	}
	var info layer.Info
	if b.force || !b.e.memo.load("tree", treeKey(sum), &info) || !plausible(info) || info.DiffID != sum || !b.e.memo.holds(b.req.Repository, info.Digest) {
		return nil, nil
	}
	return &part{titled: titled{title: t.Title, info: info}, reused: true}, nil
}

// treeKey has what a [layer.Info] depends on besides: compressor, and what is
// looked for in files.
func treeKey(diffID v1.Hash) string { return Layout + " " + diffID.String() }

func titles(parts []*part) []titled {
	var out []titled
	for _, p := range parts {
		if p != nil {
			out = append(out, p.titled)
		}
	}
	return out
}

func blobsOf(base *baseImage, parts []*part, config []byte) []v1.Hash {
	all := []v1.Hash{sumOf(config)}
	for _, l := range base.manifest.Layers {
		all = append(all, l.Digest)
	}
	for _, t := range titles(parts) {
		all = append(all, t.info.Digest)
	}
	return all
}

func blobOf(title string, l *layer.Layer) registry.Blob {
	i := l.Info()
	return registry.Blob{Title: title + " layer", Digest: i.Digest, Size: i.Size, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(l.Open()), nil
	}}
}

func bytesBlob(title string, b []byte) registry.Blob {
	return registry.Blob{Title: title, Digest: sumOf(b), Size: int64(len(b)), Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// ensure brings a blob into the image's repository. It sends nothing when the
// repository is known to hold it, or says so when ask is set; then it tries to
// mount it, from a repository of the caller's choice or one where this process
// has seen it. reused means that no content was sent.
func (b *build) ensure(ctx context.Context, blob registry.Blob, from *name.Repository, ask bool) (reused bool, err error) {
	repo := b.req.Repository
	if !b.force && b.e.memo.holds(repo, blob.Digest) {
		return true, nil
	}
	if ask || b.force || blob.Open == nil {
		held, err := b.s.HasBlob(ctx, repo, blob.Digest)
		if err != nil {
			return false, err
		}
		if held {
			b.e.memo.saw(repo, blob.Digest)
			return true, nil
		}
	}
	if from == nil {
		from = b.e.memo.elsewhere(repo, blob.Digest)
	}
	mounted, err := b.e.watched(b.req.Name, blob, func(blob registry.Blob) (bool, error) { return b.s.Push(ctx, repo, blob, from) })
	if err != nil {
		return false, err
	}
	b.e.memo.saw(repo, blob.Digest)
	return mounted, nil
}

// configuration brings the image's into its repository. No other image has the
// same, so that it is worth no note.
func (b *build) configuration(ctx context.Context, blob registry.Blob) error {
	repo := b.req.Repository
	if !b.force && b.e.memo.holds(repo, blob.Digest) {
		return nil
	}
	_, err := b.e.watched(b.req.Name, blob, func(blob registry.Blob) (bool, error) { return b.s.Push(ctx, repo, blob, nil) })
	if err == nil {
		b.e.memo.sawNow(repo, blob.Digest)
	}
	return err
}

// builtIn brings a built-in layer into the image's repository.
func (b *build) builtIn(ctx context.Context, ref name.Digest) (*part, error) {
	own, err := b.e.base(ctx, b.s, b.req.Base)
	if err != nil {
		return nil, err
	}
	t, d, err := b.e.readBuiltIn(ctx, b.s, ref, own)
	if err != nil {
		return nil, err
	}
	from := ref.Context()
	p := &part{titled: t}
	p.reused, err = b.ensure(ctx, b.s.Copy(from, d, "built-in layer"), &from, true)
	if errors.Is(err, registry.ErrNotFound) {
		err = fmt.Errorf("%w: built-in layer %s: %w", ErrNoBase, ref, err)
	}
	return p, err
}

// readBuiltIn reads which layer an image of one is, and makes sure that it was
// made for the base.
func (e *Layers) readBuiltIn(ctx context.Context, s *registry.Session, ref name.Digest, base *baseImage) (titled, v1.Descriptor, error) {
	img, err := e.base(ctx, s, ref)
	if err != nil {
		return titled{}, v1.Descriptor{}, err
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: built-in layer %s: %s", ErrNoBase, ref, fmt.Sprintf(format, args...))
	}
	if len(img.manifest.Layers) != 1 {
		return titled{}, v1.Descriptor{}, bad("it has %d layers", len(img.manifest.Layers))
	}
	// An index's digest would name the base of every platform: the manifest's
	// is compared.
	if made := img.config.Config.Labels[LabelLayerBase]; made != sumOf(base.Manifest).String() {
		return titled{}, v1.Descriptor{}, bad("it was made for the base %s, not for %s", made, sumOf(base.Manifest))
	}
	d := img.manifest.Layers[0]
	info := layer.Info{Digest: d.Digest, DiffID: img.config.RootFS.DiffIDs[0], Size: d.Size, MediaType: ociLayer(d.MediaType), Native: true}
	return titled{title: kindBuiltIn, info: info, name: img.config.Config.Labels[LabelLayerName]}, d, nil
}

// baseLayer brings a layer of the base: mounted from the base's repository, or
// copied when that is in another registry or the mount is refused.
func (b *build) baseLayer(ctx context.Context, d v1.Descriptor) (bool, error) {
	from := b.req.Base.Context()
	reused, err := b.ensure(ctx, b.s.Copy(from, d, "base layer"), &from, true)
	if errors.Is(err, registry.ErrNotFound) {
		err = fmt.Errorf("%w: %s: a layer is missing: %w", ErrNoBase, b.req.Base, err)
	}
	return reused, err
}
