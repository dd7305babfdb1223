package builder_test

import (
	"archive/zip"
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
)

// TestRebaseIsARebuild: what comes out is what a build from the source gives.
func TestRebaseIsARebuild(t *testing.T) {
	w := newWorld(t)
	next := pushBaseOf(t, w.reg, "base/nodejs18", "#!/bin/sh\n# patched\n", "node18")
	adapter := builder.Tree{Title: "adapter", FS: fstest.MapFS{"main.js": {Data: []byte("adapter 2")}}, Prefix: "/opt/faas/adapter"}
	rebuilt := func(key string, base name.Digest, layers ...builder.Tree) builder.Image {
		req := w.in("team/rebuilt/nodejs18", w.request(t, key, "one"))
		req.Base = base
		if len(layers) > 0 {
			req.Layers = layers
		}
		return mustBuild(t, engine(t, builder.Options{}), req)
	}
	for _, c := range []struct {
		name   string
		rebase builder.Rebase
		want   builder.Image
	}{
		{"base", builder.Rebase{Base: next}, rebuilt("r1", next)},
		{"adapter", builder.Rebase{Layers: []builder.Tree{adapter}}, rebuilt("r2", w.base, adapter)},
		{"both", builder.Rebase{Base: next, Layers: []builder.Tree{adapter}}, rebuilt("r3", next, adapter)},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := w.request(t, "k1", "one")
			req.Origin = origin(strings.Repeat("a", 40))
			e := engine(t, builder.Options{})
			old := mustBuild(t, e, req)
			w.npm.Reset()
			c.rebase.Image, c.rebase.Origin = old.Ref, origin(strings.Repeat("b", 40))
			got, err := engine(t, builder.Options{}).Rebase(t.Context(), c.rebase)
			if err != nil {
				t.Fatal(err)
			}
			if got.Ref.DigestStr() != c.want.Ref.DigestStr() {
				t.Errorf("got %s, a rebuild gives %s", got.Ref, c.want.Ref)
			}
			pulled, err := remote.Image(got.Ref)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(pulled); err != nil {
				t.Error(err)
			}
			for _, l := range got.Layers {
				if (l.Title == "code" || l.Title == "dependencies") && !l.Reused {
					t.Errorf("%s was sent again", l.Title)
				}
			}
			if len(w.npm.Requests()) != 0 {
				t.Error("packages were fetched")
			}
			docs := beside(t, got.Ref)
			bom, err := attest.ReadBOM(docs[attest.PredicateBOM], "")
			if err != nil || !strings.Contains(string(docs[attest.PredicateBOM]), "pkg:npm/generated-0") {
				t.Errorf("%+v, %v", bom, err)
			}
			claim, err := attest.ReadStatement(docs[attest.Predicate])
			if err != nil || claim.Materials[1].Name != "image" || "sha256:"+claim.Materials[1].Digest["sha256"] != old.Ref.DigestStr() {
				t.Errorf("%+v, %v", claim, err)
			}
		})
	}
}

func TestRebaseRefuses(t *testing.T) {
	w := newWorld(t)
	e := engine(t, builder.Options{Install: (&fake{}).install})
	plain := mustBuild(t, e, w.request(t, "k1", "one"))
	native := w.request(t, "k2", "one")
	native.Layers[0].Title = "adapter"
	native.Code.FS = fstest.MapFS{"index.js": {Data: []byte("x")}, "addon.node": {Data: []byte("\x7fELF...")}}
	native.Code.Paths = nil
	machine := mustBuild(t, e, native)
	var jar bytes.Buffer
	z := zip.NewWriter(&jar)
	f, err := z.Create("org/x/linux-x86_64/libx.so")
	if err == nil {
		_, err = f.Write([]byte("\x7fELF..."))
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	packed := w.request(t, "k4", "one")
	packed.Code.FS, packed.Code.Paths = fstest.MapFS{"lib/x.jar": {Data: jar.Bytes()}}, nil
	inJar := mustBuild(t, e, packed)
	foreign := w.base.Context().Registry.Repo("team/foreign").Tag("latest")
	if err := remote.Write(foreign, empty.Image); err != nil {
		t.Fatal(err)
	}
	dockerfile := w.request(t, "k3", "one")
	dockerfile.Base = pushBaseOf(t, w.reg, "team/app/nodejs18", "made by instructions", "node18")
	dockerfile.Dependencies = nil
	made := mustBuild(t, e, dockerfile)
	newer := pushBaseOf(t, w.reg, "base/nodejs18", "a", "node18-glibc2.39")
	other := pushBaseOf(t, w.reg, "base/nodejs20", "b", "node20")
	mute := pushBaseOf(t, w.reg, "base/mute", "c", "")
	for _, c := range []struct {
		name   string
		rebase builder.Rebase
		want   string // "" works
	}{
		{"another glibc", builder.Rebase{Image: plain.Ref, Base: newer}, ""},
		{"another glibc, machine code", builder.Rebase{Image: machine.Ref, Base: newer}, "there is machine code in its layer code"},
		{"another glibc, machine code in a jar", builder.Rebase{Image: inJar.Ref, Base: newer}, "there is machine code in its layer code"},
		{"same abi, machine code", builder.Rebase{Image: machine.Ref, Base: w.base}, ""},
		{"another runtime", builder.Rebase{Image: plain.Ref, Base: other}, "its base is for node18, the new one for node20"},
		{"no abi", builder.Rebase{Image: plain.Ref, Base: mute}, "has no abi label"},
		{"not ours", builder.Rebase{Image: foreign, Base: newer}, "does not say what it is made of"},
		{"a Dockerfile's", builder.Rebase{Image: made.Ref, Base: newer}, "a Dockerfile made it"},
		{"the project's layer", builder.Rebase{Image: plain.Ref, Layers: []builder.Tree{{Title: "code", FS: fstest.MapFS{}}}}, `no platform layer "code"`},
		{"no such layer", builder.Rebase{Image: plain.Ref, Layers: []builder.Tree{{Title: "plugin", FS: fstest.MapFS{}}}}, `no platform layer "plugin"`},
	} {
		_, err := e.Rebase(t.Context(), c.rebase)
		var input *builder.InputError
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!errors.As(err, &input) || !strings.Contains(err.Error(), c.want) || input.Next == ""):
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	if _, err := e.Rebase(t.Context(), builder.Rebase{Image: foreign.Context().Tag("gone"), Base: newer}); !errors.Is(err, builder.ErrNotFound) {
		t.Errorf("no image: %v", err)
	}
}

// pushBuiltIn puts a built-in layer for a base into the registry, with its
// list of packages beside it.
func pushBuiltIn(t *testing.T, w *world, layer string, base name.Digest) name.Digest {
	t.Helper()
	ref := pushOf(t, w.reg, "layer/"+layer+"/nodejs18", layer+" for "+base.DigestStr(), map[string]string{
		builder.LabelLayerBase: base.DigestStr(), builder.LabelLayerName: layer,
	})
	pushBOM(t, ref, attest.BOM{Name: layer, Components: []attest.Component{{Type: "deb", Namespace: "debian", Name: "lib" + layer, Version: base.DigestStr()[7:15], Arch: "amd64"}}})
	return ref
}

// Built-in layers fit one base. With those of the new one an image is rebased
// as if it had been built on them.
func TestRebaseBuiltIn(t *testing.T) {
	w := newWorld(t)
	next := pushBaseOf(t, w.reg, "base/nodejs18", "#!/bin/sh\n# patched\n", "node18-glibc2.39")
	now := []name.Digest{pushBuiltIn(t, w, "ffmpeg", w.base), pushBuiltIn(t, w, "fonts", w.base)}
	then := []name.Digest{pushBuiltIn(t, w, "ffmpeg", next), pushBuiltIn(t, w, "fonts", next)}
	build := func(repo string, base name.Digest, layers []name.Digest) builder.Image {
		req := w.in(repo, w.request(t, "k", "one"))
		req.Base, req.BuiltIn, req.Origin = base, layers, origin(strings.Repeat("a", 40))
		return mustBuild(t, engine(t, builder.Options{}), req)
	}
	old, want, plain := build("team/app/nodejs18", w.base, now), build("team/rebuilt/nodejs18", next, then), build("team/plain/nodejs18", w.base, nil)
	e := engine(t, builder.Options{})
	got, err := e.Rebase(t.Context(), builder.Rebase{Image: old.Ref, Base: next, BuiltIn: then, Origin: origin(strings.Repeat("b", 40))})
	if err != nil {
		t.Fatal(err)
	}
	if got.Ref.DigestStr() != want.Ref.DigestStr() {
		t.Errorf("got %s, a rebuild gives %s", got.Ref, want.Ref)
	}
	pulled, err := remote.Image(got.Ref)
	if err == nil {
		err = validate.Image(pulled)
	}
	if err != nil {
		t.Error(err)
	}
	in, err := e.Inspect(t.Context(), got.Ref)
	if err != nil || in.Layers[1].Name != "ffmpeg" || in.Layers[2].Name != "fonts" {
		t.Errorf("%+v, %v", in, err)
	}
	purls := func(ref name.Digest) (all []string) {
		bom, err := attest.ReadBOM(beside(t, ref)[attest.PredicateBOM], "")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range bom.Components {
			all = append(all, c.Layer+" "+c.PURL())
		}
		return all
	}
	if got, want := purls(got.Ref), purls(want.Ref); !slices.Equal(got, want) || !strings.Contains(strings.Join(got, " "), "builtin pkg:deb/debian/libffmpeg@"+next.DigestStr()[7:15]) {
		t.Errorf("bill of materials %q, a rebuild's has %q", got, want)
	}
	// Only the layers, on the base that is there.
	patched := pushOf(t, w.reg, "layer/fonts/nodejs18", "a new font", map[string]string{builder.LabelLayerBase: w.base.DigestStr(), builder.LabelLayerName: "fonts"})
	swapped, err := e.Rebase(t.Context(), builder.Rebase{Image: old.Ref, Base: w.base, BuiltIn: []name.Digest{now[0], patched}})
	if again := build("team/patched/nodejs18", w.base, []name.Digest{now[0], patched}); err != nil || swapped.Ref.DigestStr() != again.Ref.DigestStr() {
		t.Errorf("%+v, %v; a rebuild gives %s", swapped, err, again.Ref)
	}
	for _, c := range []struct {
		name   string
		rebase builder.Rebase
		want   string
	}{
		{"none named", builder.Rebase{Image: old.Ref, Base: next}, "its built-in layers (ffmpeg, fonts) were made for the base it has"},
		{"one named", builder.Rebase{Image: old.Ref, Base: next, BuiltIn: then[:1]}, "it has 2 built-in layers (ffmpeg, fonts), and 1 are named"},
		{"another order", builder.Rebase{Image: old.Ref, Base: next, BuiltIn: []name.Digest{then[1], then[0]}}, "its built-in layer 1 is ffmpeg, and"},
		{"no base", builder.Rebase{Image: old.Ref, BuiltIn: then}, "fits one base alone"},
		{"nothing to swap", builder.Rebase{Image: plain.Ref, Base: next, BuiltIn: then}, "it has none to swap"},
	} {
		_, err := e.Rebase(t.Context(), c.rebase)
		var input *builder.InputError
		if !errors.As(err, &input) || !strings.Contains(err.Error(), c.want) || input.Next == "" {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	if _, err := e.Rebase(t.Context(), builder.Rebase{Image: old.Ref, Base: next, BuiltIn: now}); !errors.Is(err, builder.ErrNoBase) || !strings.Contains(err.Error(), "it was made for the base") {
		t.Errorf("layers of another base: %v", err)
	}
}

func TestInspectAndVerify(t *testing.T) {
	w := newWorld(t)
	signer, keys := newSigner(t)
	_, strangers := newSigner(t)
	e := engine(t, builder.Options{Signer: signer})
	req := w.request(t, "k1", "one")
	req.Origin = origin(strings.Repeat("a", 40))
	img := mustBuild(t, e, req)
	in, err := engine(t, builder.Options{}).Inspect(t.Context(), req.Repository.Tag("k-k1"))
	if err != nil {
		t.Fatal(err)
	}
	var layers []string
	var size int64
	for i, l := range in.Layers {
		layers = append(layers, l.Kind+" "+l.Owner)
		size += l.Size
		if l.Digest != img.Layers[i].Digest || l.Native {
			t.Errorf("%+v", l)
		}
	}
	if got := strings.Join(layers, ", "); got != "base platform, adapter platform, dependencies project, code project" {
		t.Errorf("layers: %s", got)
	}
	if in.Ref != img.Ref.String() || in.Base != w.base.DigestStr() || in.ABI != "node18" || in.Size != size || in.User != "65532:65532" || len(in.Documents) != 2 || !in.Documents[0].Signed {
		t.Errorf("%+v", in)
	}
	verified, err := e.Verify(t.Context(), img.Ref, keys)
	if err != nil || len(verified) != 2 {
		t.Fatalf("%+v, %v", verified, err)
	}
	if _, err := e.Verify(t.Context(), img.Ref, strangers); !errors.Is(err, attest.ErrUnsigned) {
		t.Errorf("another key: %v", err)
	}
	bare := mustBuild(t, engine(t, builder.Options{}), w.request(t, "k2", "two"))
	if _, err := e.Verify(t.Context(), bare.Ref, keys); !errors.Is(err, attest.ErrUnsigned) {
		t.Errorf("nothing signed: %v", err)
	}
	if in, err := e.Inspect(t.Context(), w.base); err != nil || in.Layers[0].Kind != "unknown" || in.Layers[0].Owner != "unknown" {
		t.Errorf("not ours: %+v, %v", in, err)
	}
	if _, err := e.Inspect(t.Context(), req.Repository.Tag("gone")); !errors.Is(err, builder.ErrNotFound) {
		t.Errorf("no image: %v", err)
	}
}
