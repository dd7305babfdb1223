package builder

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// titled is a layer of ours and what people call it.
type titled struct {
	title string
	info  layer.Info
	name  string // of a built-in layer
}

func sumOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// What an image says of itself, so that its parts can be told apart, and
// changed, without the source.
const (
	noteLayer  = "io.kuroko.layer"  // on a layer: base, adapter, dependencies, code, …
	noteNative = "io.kuroko.native" // on a layer: true when it holds machine code
	noteName   = "io.kuroko.name"   // on a built-in layer: which one it is
	noteConfig = "io.kuroko.config" // on a manifest: the request's Config as JSON
	noteBase   = "org.opencontainers.image.base.digest"
)

// Kinds of the layers below ours.
const (
	kindBase = "base"
	// kindBuiltIn marks a layer of Debian packages that a function named.
	kindBuiltIn = "builtin"
	// kindDockerfile marks what a Dockerfile's instructions made: base and
	// additions in one, made for this image alone.
	kindDockerfile = "dockerfile"
)

// below is the kind of the layers that a request stands on: an image in its
// own repository was made for it by instructions.
func (r *Request) below() string {
	if r.Base.Context().Name() == r.Repository.Name() {
		return kindDockerfile
	}
	return kindBase
}

// LabelLayerBase is the label of a built-in layer's image that names, by
// digest, the base the layer was made for: it holds what that base has not.
const LabelLayerBase = "io.kuroko.layer.base"

// LabelLayerName is the label of a built-in layer's image with the name that
// functions ask for it by: ffmpeg.
const LabelLayerName = "io.kuroko.layer.name"

// abiLabel is the label of base images that changes when machine code built
// for an earlier one would not run on a later one.
const abiLabel = "abi"

// labelPrefix is OCI's. What a base says under it is about the base.
const labelPrefix = "org.opencontainers.image."

// compose writes configuration and manifest of an image: base, then layers.
// Nothing in them names a registry, a time or a machine.
func compose(base *baseImage, baseDigest, kind string, layers []titled, c Config) (config, manifest []byte, err error) {
	if config, err = composeConfig(base, layers, c); err != nil {
		return nil, nil, err
	}
	settings, err := json.Marshal(c)
	if err != nil {
		return nil, nil, err
	}
	man := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Annotations: map[string]string{noteBase: baseDigest, noteConfig: string(settings)},
		Config:      v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: sumOf(config), Size: int64(len(config))},
	}
	for _, l := range base.manifest.Layers {
		man.Layers = append(man.Layers, v1.Descriptor{MediaType: ociLayer(l.MediaType), Digest: l.Digest, Size: l.Size,
			Annotations: map[string]string{noteLayer: kind}})
	}
	for _, l := range layers {
		d := l.info.Descriptor()
		d.Annotations = map[string]string{noteLayer: l.title}
		if l.info.Native {
			d.Annotations[noteNative] = "true"
		}
		if l.name != "" {
			d.Annotations[noteName] = l.name
		}
		man.Layers = append(man.Layers, d)
	}
	manifest, err = json.Marshal(man)
	return config, manifest, err
}

func composeConfig(base *baseImage, layers []titled, c Config) ([]byte, error) {
	cfg := base.config.DeepCopy()
	epoch := v1.Time{Time: time.Unix(0, 0).UTC()}
	//lint:ignore SA1019 bases still carry it
	cfg.Created, cfg.Author, cfg.Container, cfg.DockerVersion = epoch, "", "", ""
	described := 0
	for _, h := range cfg.History {
		if !h.EmptyLayer {
			described++
		}
	}
	for ; described < len(cfg.RootFS.DiffIDs); described++ {
		cfg.History = append(cfg.History, v1.History{Created: epoch, CreatedBy: "base"})
	}
	cfg.RootFS.Type = "layers"
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.info.DiffID)
		cfg.History = append(cfg.History, v1.History{Created: epoch, CreatedBy: "kuroko: " + l.title})
	}
	r := &cfg.Config
	if c.WorkingDir != "" {
		r.WorkingDir = c.WorkingDir
	}
	if c.Entrypoint != nil {
		// The base's arguments were for the base's entry point.
		r.Entrypoint, r.Cmd = c.Entrypoint, nil
	}
	if c.Cmd != nil {
		r.Cmd = c.Cmd
	}
	if uid, _, _ := strings.Cut(r.User, ":"); c.User != "" || strings.Trim(uid, "0123456789") != "" || strings.Trim(uid, "0") == "" {
		r.User = cmp.Or(c.User, "65532:65532")
	}
	r.Env = mergeEnv(r.Env, c.Env)
	for k := range r.Labels {
		if strings.HasPrefix(k, labelPrefix) {
			delete(r.Labels, k)
		}
	}
	for k, v := range c.Labels {
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[k] = v
	}
	r.Image, r.Hostname = "", ""
	return json.Marshal(cfg)
}

// mergeEnv appends more to env; a variable that is there already is replaced
// where it stands, because programs differ in which of two they see.
func mergeEnv(env, more []string) []string {
	out := append([]string{}, env...)
	at := map[string]int{}
	for i, kv := range out {
		k, _, _ := strings.Cut(kv, "=")
		at[k] = i
	}
	for _, kv := range more {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			out[i] = kv
			continue
		}
		at[k] = len(out)
		out = append(out, kv)
	}
	return out
}
