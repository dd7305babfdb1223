package builder

import (
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
}

func sumOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// compose writes configuration and manifest of an image: base, then layers.
// Nothing in them names a registry, a time or a machine.
func compose(base *baseImage, baseDigest string, layers []titled, c Config) (config, manifest []byte, err error) {
	cfg := base.config.DeepCopy()
	epoch := v1.Time{Time: time.Unix(0, 0).UTC()}
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
	man := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Annotations: map[string]string{"org.opencontainers.image.base.digest": baseDigest},
	}
	for _, l := range base.manifest.Layers {
		man.Layers = append(man.Layers, v1.Descriptor{MediaType: ociLayer(l.MediaType), Digest: l.Digest, Size: l.Size})
	}
	cfg.RootFS.Type = "layers"
	for _, l := range layers {
		man.Layers = append(man.Layers, l.info.Descriptor())
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
	r.User = c.User
	if r.User == "" {
		r.User = "65532:65532"
	}
	r.Env = mergeEnv(r.Env, c.Env)
	for k, v := range c.Labels {
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[k] = v
	}
	r.Image, r.Hostname = "", ""
	if config, err = json.Marshal(cfg); err != nil {
		return nil, nil, err
	}
	man.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: sumOf(config), Size: int64(len(config))}
	manifest, err = json.Marshal(man)
	return config, manifest, err
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
