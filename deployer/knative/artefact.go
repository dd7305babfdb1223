package knative

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"crypto/sha256"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/deployer"
)

// The full record in the registry: one layer, the gzipped JSON.
const (
	recordType   types.MediaType = "application/vnd.kuroko.release.v1+json+gzip"
	recordConfig types.MediaType = "application/vnd.kuroko.release.config.v1+json"

	// annotationArtefact names the full record on the ConfigMap, by digest;
	// annotationTags the tags that keep clean-up policies away from it and
	// from the release's images; annotationNote says why some are missing.
	annotationArtefact = group + "artefact"
	annotationTags     = group + "tags"
	annotationNote     = group + "artefact-note"
)

// artefactTime bounds all that is sent to the registry for one release. The
// deploy goes on without it.
const artefactTime = 20 * time.Second

// kept is what the registry keeps for a release.
type kept struct {
	record string   // reference by digest; empty: it has none
	tags   []string // full references
	note   string   // what did not work
}

func (t *Target) registry(ctx context.Context) []remote.Option {
	o := []remote.Option{remote.WithContext(ctx), remote.WithAuth(authn.Anonymous)}
	if t.cfg.Keychain != nil {
		o[1] = remote.WithAuthFromKeychain(t.cfg.Keychain)
	}
	if t.cfg.Transport != nil {
		o = append(o, remote.WithTransport(t.cfg.Transport))
	}
	return o
}

// keepInRegistry stores the packed record beside the release's images, and
// gives each image a tag of the release's. Errors end in the note: a registry
// that takes no artefacts, or a job that may not push, is no reason against a
// deploy.
func (t *Target) keepInRegistry(ctx context.Context, scope deployer.Scope, r deployer.Release, packed []byte) kept {
	ctx, cancel := context.WithTimeout(ctx, artefactTime)
	defer cancel()
	var k kept
	var mu sync.Mutex
	var bad []string
	var group errgroup.Group
	group.SetLimit(parallel)
	images := map[string]name.Digest{}
	for _, u := range r.Units {
		images[u.Spec.Image.String()] = u.Spec.Image
	}
	done := func(tag name.Tag, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			bad = append(bad, brief(err))
			return
		}
		k.tags = append(k.tags, tag.String())
	}
	if len(r.Units) > 0 {
		repo := r.Units[0].Spec.Image.Context()
		tag := repo.Tag(tagName("release", scope, r.ID, ""))
		group.Go(func() error {
			digest, err := t.pushRecord(ctx, tag, packed)
			if err == nil {
				k.record = digest.String()
			}
			done(tag, err)
			return nil
		})
	}
	for _, image := range images {
		tag := image.Context().Tag(tagName("keep", scope, r.ID, strings.TrimPrefix(image.DigestStr(), "sha256:")[:12]))
		group.Go(func() error {
			desc, err := remote.Get(image, t.registry(ctx)...)
			if err == nil {
				err = remote.Tag(tag, desc, t.registry(ctx)...)
			}
			done(tag, err)
			return nil
		})
	}
	_ = group.Wait() // the functions keep their errors themselves
	slices.Sort(k.tags)
	if len(bad) > 0 {
		slices.Sort(bad)
		k.note = fmt.Sprintf("release %s is not kept whole in the registry, whose clean-up may take its images: %s", r.ID, strings.Join(slices.Compact(bad), "; "))
	}
	return k
}

// brief is a registry's answer in one line, without the page it may be.
func brief(err error) string {
	var answer *transport.Error
	if errors.As(err, &answer) {
		who := "the registry"
		if answer.Request != nil {
			who = answer.Request.URL.Host
		}
		return fmt.Sprintf("%s answered %d %s", who, answer.StatusCode, http.StatusText(answer.StatusCode))
	}
	return oneLine(err.Error())
}

func (t *Target) pushRecord(ctx context.Context, tag name.Tag, packed []byte) (name.Digest, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), recordConfig)
	img, err := mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(packed, recordType), MediaType: recordType})
	if err != nil {
		return name.Digest{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return name.Digest{}, err
	}
	return tag.Context().Digest(digest.String()), remote.Write(tag, img, t.registry(ctx)...)
}

// pullRecord reads the packed record that ref names by digest.
func (t *Target) pullRecord(ctx context.Context, ref string) ([]byte, error) {
	digest, err := name.NewDigest(ref)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, artefactTime)
	defer cancel()
	img, err := remote.Image(digest, t.registry(ctx)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", deployer.ErrUnavailable, brief(err))
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", deployer.ErrUnavailable, brief(err))
	}
	if len(layers) != 1 {
		return nil, fmt.Errorf("%s has %d layers, not the one of a record", ref, len(layers))
	}
	// Verified against the digest while it is read.
	body, err := layers[0].Compressed()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", deployer.ErrUnavailable, brief(err))
	}
	defer body.Close()
	packed, err := io.ReadAll(io.LimitReader(body, maxReleasePlain+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", deployer.ErrUnavailable, err)
	}
	if len(packed) > maxReleasePlain {
		return nil, fmt.Errorf("%s is larger than %d bytes", ref, maxReleasePlain)
	}
	return packed, nil
}

// dropTags removes a release's tags, as far as the registry lets us: one that
// stays only keeps an image longer. A manifest goes never.
func (t *Target) dropTags(ctx context.Context, tags []string) {
	ctx, cancel := context.WithTimeout(ctx, artefactTime)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, s := range tags {
		tag, err := name.NewTag(s)
		if err != nil {
			continue
		}
		group.Go(func() error {
			desc, err := remote.Get(tag, t.registry(ctx)...)
			if err != nil {
				return nil // gone, or not to be had
			}
			if remote.Delete(tag, t.registry(ctx)...) != nil {
				return nil
			}
			// A registry that knows no tags of their own has removed the manifest,
			// which other tags and the live release may need.
			digest := tag.Context().Digest(desc.Digest.String())
			var answer *transport.Error
			if _, err := remote.Head(digest, t.registry(ctx)...); errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
				return remote.Put(digest, desc, t.registry(ctx)...)
			}
			return nil
		})
	}
	_ = group.Wait()
}

// tagName is <what>-<service>.<environment>-<release>[-<more>], within the
// 128 characters of a tag.
func tagName(what string, scope deployer.Scope, id, more string) string {
	n := what + "-" + recordName(scope) + "-" + label(id)
	if more != "" {
		n += "-" + more
	}
	if len(n) > 128 {
		sum := sha256.Sum256([]byte(n))
		n = n[:111] + "-" + hex.EncodeToString(sum[:8])
	}
	return n
}
