package builder

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/inventory"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/npm"
	"github.com/kuroko-faas/kuroko/builder/registry"
)

// maxDocument is more than any bill of materials or provenance of ours has.
const maxDocument = 16 << 20

// referrers stores the bill of materials and the provenance of the image that
// manifest describes, before the image has its tag: an image that is found by
// its key has them. A registry that refuses them costs a warning, unless they
// were to be signed.
func (b *build) referrers(ctx context.Context, bom attest.BOM, manifest []byte) error {
	subject := attest.Subject{Name: b.req.Repository.RepositoryStr(), Digest: sumOf(manifest).String()}
	origin := *b.req.Origin
	origin.Finished = b.e.o.Now()
	origin.Materials = append(slices.Clone(origin.Materials), attest.Material{
		Name: "base image", URI: "pkg:oci/" + path.Base(b.req.Base.Context().RepositoryStr()) + "@" + b.req.Base.DigestStr(),
		Digest: map[string]string{"sha256": strings.TrimPrefix(b.req.Base.DigestStr(), "sha256:")},
	})
	provenance, err := origin.Statement(subject)
	if err != nil {
		return err
	}
	signer := b.e.o.Signer
	var list []byte
	if signer == nil {
		list, err = bom.JSON()
	} else {
		list, err = bom.About(subject)
	}
	if err != nil {
		return err
	}
	described := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: sumOf(manifest), Size: int64(len(manifest))}
	var artifacts []registry.Artifact
	for _, d := range []struct {
		data                   []byte
		bare, predicate, title string
	}{{list, attest.TypeBOM, attest.PredicateBOM, "bom.cdx.json"}, {provenance, attest.TypeInToto, attest.Predicate, "provenance.json"}} {
		typ := d.bare
		if signer != nil {
			typ = attest.TypeEnvelope
			if d.data, err = signer.Seal(ctx, d.data); err != nil {
				return err
			}
		}
		artifacts = append(artifacts, registry.Artifact{Type: typ, Subject: &described, Annotations: map[string]string{attest.Annotation: d.predicate},
			Files: []registry.File{{MediaType: types.MediaType(typ), Title: d.title, Data: d.data}}})
	}
	known := func(h v1.Hash) bool { return !b.force && b.e.memo.holds(b.req.Repository, h) }
	pushed, err := b.s.PushArtifacts(ctx, b.req.Repository, known, artifacts...)
	if signer == nil && refused(err) {
		b.warn("the registry does not take bills of materials and provenance, so this image has none: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	for i, a := range artifacts {
		for _, f := range a.Files {
			b.e.memo.saw(b.req.Repository, sumOf(f.Data))
		}
		b.beside = append(b.beside, Referrer{Predicate: a.Annotations[attest.Annotation], Digest: pushed[i].Digest.String(), Signed: signer != nil})
	}
	b.e.memo.saw(b.req.Repository, sumOf([]byte("{}")))
	return nil
}

// refused tells that a registry does not take what it does not know: another
// answer than that of a missing right, or of trouble.
func refused(err error) bool {
	var e *registry.Error
	if !errors.As(err, &e) || errors.Is(err, registry.ErrDenied) || errors.Is(err, registry.ErrBlobUnknown) {
		return false
	}
	switch e.Status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, http.StatusNotImplemented:
		return true
	}
	return false
}

// bom lists what is in the image. It depends on what is in it alone, so that a
// change of the code leaves it as it was.
func (b *build) bom(ctx context.Context) (attest.BOM, error) {
	out, err := b.belowBOM(ctx)
	if err != nil {
		return attest.BOM{}, err
	}
	out.Name = b.req.Name
	out.Components = append(out.Components, b.baseComponent())
	for _, t := range append(slices.Clone(b.req.Layers), b.req.Code) {
		if t.Title = cmp.Or(t.Title, "files"); owner(t.Title) != "project" || t.FS == nil {
			continue
		}
		found, all, err := b.e.jars(ctx, t)
		if err != nil {
			return attest.BOM{}, err
		}
		out.Components = append(out.Components, found...)
		if t.Title == "dependencies" && !all { // files that the project's own build has put together
			out.Unknown = append(out.Unknown, "packages that the build command installed")
		}
	}
	if err := b.builtInBOM(ctx, &out); err != nil {
		return attest.BOM{}, err
	}
	d := b.req.Dependencies
	if d == nil {
		return out, nil
	}
	var manifest []byte
	if d.Manifest != "" {
		if manifest, err = readInput(d.FS, d.Manifest); err != nil {
			return attest.BOM{}, err
		}
	}
	lock, err := readInput(d.FS, d.Lock)
	if err != nil {
		return attest.BOM{}, err
	}
	found, unknown := b.e.locked(d, manifest, lock)
	out.Components = append(out.Components, found...)
	if unknown != "" {
		out.Unknown = append(out.Unknown, unknown)
	}
	return out, nil
}

// belowBOM lists what is in the base: by its own list, or, when instructions
// made it, by that of the image that they stand on and what they installed.
func (b *build) belowBOM(ctx context.Context) (attest.BOM, error) {
	if b.req.below() != kindDockerfile {
		list, err := b.e.listBOM(ctx, b.s, b.req.Base, kindBase, unknownBase)
		return attest.BOM{Components: slices.Clone(list.Components), Unknown: slices.Clone(list.Unknown)}, err
	}
	made := b.req.Made
	if made == nil {
		return attest.BOM{Unknown: []string{"packages that the Dockerfile installed"}}, nil
	}
	out := attest.BOM{Unknown: append(slices.Clone(made.Unknown), "files that the Dockerfile fetched or made without a package manager")}
	if made.From != nil {
		list, err := b.e.listBOM(ctx, b.s, *made.From, kindBase, unknownBase)
		if err != nil {
			return attest.BOM{}, err
		}
		out.Components = append(slices.Clone(list.Components), attest.Component{
			Type: "oci", Name: path.Base(made.From.Context().RepositoryStr()), Version: made.From.DigestStr(), Layer: kindBase,
		})
		out.Unknown = append(out.Unknown, list.Unknown...)
	}
	here := map[string]bool{}
	for _, c := range made.Packages {
		here[c.PURL()] = true
	}
	before := map[string]bool{}
	out.Components = slices.DeleteFunc(out.Components, func(c attest.Component) bool {
		gone := made.Debian && c.Type == "deb" && !here[c.PURL()] // removed, or another version now
		before[c.PURL()] = true
		return gone
	})
	for _, c := range made.Packages {
		if c.Layer = kindDockerfile; !before[c.PURL()] {
			out.Components = append(out.Components, c)
		}
	}
	return out, nil
}

// jars lists the Java archives of a tree, and tells whether there is nothing
// else in it.
func (e *Layers) jars(ctx context.Context, t Tree) (found []attest.Component, all bool, err error) {
	paths, all := t.Paths, true
	if paths == nil {
		err = fs.WalkDir(t.FS, ".", func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				paths = append(paths, p)
			}
			return err
		})
		if err != nil {
			return nil, false, treeError(t, err)
		}
	}
	for _, p := range paths {
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		if !inventory.IsJar(p) {
			all = false
			continue
		}
		list, err := e.jar(t.FS, p)
		if err != nil {
			return nil, false, treeError(t, err)
		}
		for _, c := range list {
			c.Layer = t.Title
			found = append(found, c)
		}
	}
	return found, all, nil
}

func (e *Layers) jar(fsys fs.FS, p string) ([]attest.Component, error) {
	f, err := fsys.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	if r, ok := f.(io.ReaderAt); ok {
		return inventory.Jar(path.Base(p), r, info.Size(), e.o.TempDir), nil
	}
	s := &layer.Spool{Dir: e.o.TempDir}
	defer s.Close()
	if _, err := io.Copy(s, f); err != nil {
		return nil, err
	}
	return inventory.Jar(path.Base(p), s.Section(0, s.Len()), s.Len(), e.o.TempDir), nil
}

// locked are the packages of a lock file, and what it leaves open.
func (e *Layers) locked(d *Dependencies, manifest, lock []byte) (found []attest.Component, unknown string) {
	if d.Kind == KindPip {
		plan, err := e.pipPlan(d, lock)
		if err != nil {
			return nil, "packages that pip installed"
		}
		for _, p := range plan.Packages {
			found = append(found, attest.Component{Type: "pypi", Name: p.Name, Version: p.Version, Layer: "dependencies"})
		}
		return found, ""
	}
	if d.Kind != KindNPM {
		return nil, "packages that " + d.Kind + " installed"
	}
	parsed, err := npm.Parse(manifest, lock)
	if err != nil {
		return nil, "packages that npm installed"
	}
	packages := parsed.Listed()
	if plan, err := parsed.Plan(e.npmPlatform()); err == nil {
		packages = plan.Packages
	}
	for _, p := range packages {
		scope, short, ok := strings.Cut(p.Name, "/")
		if !ok {
			scope, short = "", p.Name
		}
		found = append(found, attest.Component{Type: "npm", Namespace: scope, Name: short, Version: p.Version, Integrity: p.Integrity, Layer: "dependencies"})
	}
	return found, ""
}

// What is left open when a base or a built-in layer has no bill of materials.
const (
	unknownBase    = "packages of the base image"
	unknownBuiltIn = "packages of a built-in layer"
)

// builtInBOM adds the built-in layers and their packages.
func (b *build) builtInBOM(ctx context.Context, out *attest.BOM) error {
	for _, ref := range b.req.BuiltIn {
		list, err := b.e.listBOM(ctx, b.s, ref, kindBuiltIn, unknownBuiltIn)
		if err != nil {
			return err
		}
		out.Components = append(append(out.Components, list.Components...), attest.Component{
			Type: "oci", Name: path.Base(path.Dir(ref.Context().RepositoryStr())), Version: ref.DigestStr(), Layer: kindBuiltIn,
		})
		out.Unknown = append(out.Unknown, list.Unknown...)
	}
	return nil
}

// baseComponent is the base image itself.
func (b *build) baseComponent() attest.Component {
	return attest.Component{Type: "oci", Name: path.Base(b.req.Base.Context().RepositoryStr()), Version: b.req.Base.DigestStr(), Layer: kindBase}
}

// listBOM is what the own bill of materials of a base or a built-in layer
// says, kept by digest. Without one, its packages are unknown.
func (e *Layers) listBOM(ctx context.Context, s *registry.Session, ref name.Digest, kind, unknown string) (attest.BOM, error) {
	return once(e.memo, "bom "+ref.DigestStr(), func() (attest.BOM, error) {
		var kept attest.BOM
		if e.memo.load("bom", ref.DigestStr(), &kept) {
			return kept, nil
		}
		h, err := v1.NewHash(ref.DigestStr())
		if err != nil {
			return attest.BOM{}, err
		}
		list, found, err := e.readBOM(ctx, s, ref.Context(), h, kind)
		if err != nil {
			return attest.BOM{}, err
		}
		if !found {
			return attest.BOM{Unknown: []string{unknown}}, nil
		}
		e.memo.save("bom", ref.DigestStr(), list)
		return list, nil
	})
}

// readBOM reads the bill of materials beside an image. What can't be read, or
// is not about the image, is not found.
func (e *Layers) readBOM(ctx context.Context, s *registry.Session, repo name.Repository, h v1.Hash, layer string) (bom attest.BOM, found bool, err error) {
	gone := func(err error) bool {
		return errors.Is(err, registry.ErrDenied) || errors.Is(err, registry.ErrNotFound) || refused(err)
	}
	all, err := s.Referrers(ctx, repo, h, attest.TypeBOM)
	if gone(err) || err == nil && len(all) == 0 {
		return attest.BOM{}, false, nil
	}
	if err != nil {
		return attest.BOM{}, false, err
	}
	// One image has one list; of several the choice must not depend on the
	// order in which they arrived.
	slices.SortFunc(all, func(x, y v1.Descriptor) int { return strings.Compare(x.Digest.String(), y.Digest.String()) })
	a, err := s.Artifact(ctx, repo.Digest(all[0].Digest.String()), maxDocument)
	if gone(err) {
		return attest.BOM{}, false, nil
	}
	if err != nil {
		return attest.BOM{}, false, err
	}
	if len(a.Files) != 1 || a.Subject == nil || a.Subject.Digest != h {
		return attest.BOM{}, false, nil
	}
	bom, err = attest.ReadBOM(a.Files[0].Data, layer)
	return bom, err == nil, nil
}

func (b *build) warn(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.warnings = append(b.warnings, fmt.Sprintf(format, args...))
}

// settings reads the Config that an image was made with.
func settings(m v1.Manifest) (Config, bool) {
	var c Config
	raw, ok := m.Annotations[noteConfig]
	return c, ok && json.Unmarshal([]byte(raw), &c) == nil
}
