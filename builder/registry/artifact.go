package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// Artifact is a manifest that is no image: a bill of materials, an
// attestation, a release's record. With a subject it is a referrer of it.
type Artifact struct {
	// Type says what it is, a media type: "application/vnd.cyclonedx+json".
	Type string
	// Subject is the manifest that it is about, of the same repository; nil
	// for an artefact that stands alone. It need not be there yet.
	Subject *v1.Descriptor
	// Files are its content, in order.
	Files []File
	// Annotations are the manifest's. A referrer's are also in the list of
	// referrers.
	Annotations map[string]string
}

// File is one blob of an artefact.
type File struct {
	MediaType types.MediaType
	Title     string // a file name (org.opencontainers.image.title); may be empty
	Data      []byte
}

// titleAnnotation is what OCI clients name a file by when they save it.
const titleAnnotation = "org.opencontainers.image.title"

// emptyConfig is the configuration of what needs none.
var emptyConfig = []byte("{}")

func hashOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func memoryBlob(title string, b []byte) Blob {
	return Blob{Title: title, Digest: hashOf(b), Size: int64(len(b)), Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// manifest writes a's manifest. Equal artefacts give equal bytes.
func (a Artifact) manifest() ([]byte, error) {
	if a.Type == "" || len(a.Files) == 0 {
		return nil, errors.New("registry: an artefact needs a type and a file")
	}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: a.Type, Subject: a.Subject, Annotations: a.Annotations,
		// Registries from before OCI 1.1 know an artefact's type by its
		// configuration's.
		Config: v1.Descriptor{MediaType: types.MediaType(a.Type), Digest: hashOf(emptyConfig), Size: int64(len(emptyConfig))},
	}
	for _, f := range a.Files {
		d := v1.Descriptor{MediaType: f.MediaType, Digest: hashOf(f.Data), Size: int64(len(f.Data))}
		if f.Title != "" {
			d.Annotations = map[string]string{titleAnnotation: f.Title}
		}
		m.Layers = append(m.Layers, d)
	}
	return json.Marshal(m)
}

// Descriptor is what a's manifest will be, without sending anything.
func (a Artifact) Descriptor() (v1.Descriptor, error) {
	raw, err := a.manifest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hashOf(raw), Size: int64(len(raw)),
		ArtifactType: a.Type, Annotations: a.Annotations}, nil
}

// PushArtifacts stores artefacts in repo: the blobs it is not known to hold,
// then a manifest each, by digest. Where the registry has no Referrers API,
// those with a subject are also entered into the index under the subject's
// fallback tag, sha256-<hex>, as OCI 1.1 says.
//
// known tells which blobs repo holds; nil means none, and sends all. It may be
// called at once from several goroutines.
func (s *Session) PushArtifacts(ctx context.Context, repo name.Repository, known func(v1.Hash) bool, artifacts ...Artifact) ([]v1.Descriptor, error) {
	out := make([]v1.Descriptor, len(artifacts))
	raws := make([][]byte, len(artifacts))
	blobs := map[v1.Hash]Blob{hashOf(emptyConfig): memoryBlob("empty configuration", emptyConfig)}
	for i, a := range artifacts {
		var err error
		if raws[i], err = a.manifest(); err != nil {
			return nil, err
		}
		if out[i], err = a.Descriptor(); err != nil {
			return nil, err
		}
		for _, f := range a.Files {
			blobs[hashOf(f.Data)] = memoryBlob(f.Title, f.Data)
		}
	}
	up, uctx := errgroup.WithContext(ctx)
	up.SetLimit(4)
	for h, b := range blobs {
		if known != nil && known(h) {
			continue
		}
		up.Go(func() error {
			_, err := s.Push(uctx, repo, b, nil)
			return err
		})
	}
	if err := up.Wait(); err != nil {
		return nil, err
	}
	unlisted := map[v1.Hash][]v1.Descriptor{}
	var subjects []v1.Hash // in the order given
	for i, a := range artifacts {
		resp, err := s.putManifest(ctx, repo.Digest(out[i].Digest.String()), types.OCIManifestSchema1, raws[i])
		if err != nil {
			return nil, err
		}
		if a.Subject != nil && resp.Get("OCI-Subject") == "" {
			if unlisted[a.Subject.Digest] == nil {
				subjects = append(subjects, a.Subject.Digest)
			}
			unlisted[a.Subject.Digest] = append(unlisted[a.Subject.Digest], out[i])
		}
	}
	for _, subject := range subjects {
		if err := s.list(ctx, repo, subject, unlisted[subject]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// listTries is how often a list is written in all, when others overwrite it.
const listTries = 4

// list enters referrers into the subject's fallback index. It reads again what
// it wrote: somebody may have put a list in its place that was read before.
func (s *Session) list(ctx context.Context, repo name.Repository, subject v1.Hash, add []v1.Descriptor) error {
	tag := fallbackTag(repo, subject)
	for range listTries {
		idx, err := s.fallback(ctx, tag)
		if err != nil {
			return err
		}
		missing := false
		for _, d := range add {
			if !slices.ContainsFunc(idx.Manifests, func(h v1.Descriptor) bool { return h.Digest == d.Digest }) {
				idx.Manifests = append(idx.Manifests, d)
				missing = true
			}
		}
		if !missing {
			return nil
		}
		raw, err := json.Marshal(idx)
		if err != nil {
			return err
		}
		if err := s.PutManifest(ctx, tag, types.OCIImageIndex, raw); err != nil {
			return err
		}
	}
	return &Error{Op: "list the referrers of " + short(subject) + " in " + repo.RepositoryStr(), Host: repo.RegistryStr(),
		Err: errors.New("others kept changing the list"), Attempts: listTries}
}

func fallbackTag(repo name.Repository, subject v1.Hash) name.Tag {
	return repo.Tag(subject.Algorithm + "-" + subject.Hex)
}

// fallback reads the index under a fallback tag; an empty one when there is
// none.
func (s *Session) fallback(ctx context.Context, tag name.Tag) (v1.IndexManifest, error) {
	idx := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	m, err := s.Manifest(ctx, tag)
	if errors.Is(err, ErrNotFound) {
		return idx, nil
	}
	if err != nil {
		return idx, err
	}
	if !m.MediaType.IsIndex() || json.Unmarshal(m.Raw, &idx) != nil {
		return idx, s.fail(manifestCall(tag, "read the referrers", http.MethodGet), http.StatusOK, errors.New("the tag does not hold a list of referrers"))
	}
	return idx, nil
}

// maxReferrerPages bounds how many pages of referrers are read.
const maxReferrerPages = 20

// Referrers lists the artefacts about subject, of one type or with "" of all:
// by the Referrers API, or the fallback tag where the registry has none.
// Nothing there is an empty list.
func (s *Session) Referrers(ctx context.Context, repo name.Repository, subject v1.Hash, artifactType string) ([]v1.Descriptor, error) {
	var all []v1.Descriptor
	next := "/v2/" + repo.RepositoryStr() + "/referrers/" + subject.String()
	if artifactType != "" {
		next += "?" + url.Values{"artifactType": {artifactType}}.Encode()
	}
	for page := 0; next != ""; page++ {
		if page == maxReferrerPages {
			break
		}
		idx, after, err := s.referrersPage(ctx, repo, subject, next)
		var e *Error
		if page == 0 && errors.As(err, &e) && e.Status >= 400 && e.Status < 500 && !errors.Is(err, ErrDenied) && e.Status != http.StatusTooManyRequests {
			idx, err = s.fallback(ctx, fallbackTag(repo, subject))
			after = ""
		}
		if err != nil {
			return nil, err
		}
		all, next = append(all, idx.Manifests...), after
	}
	// The filter is a wish; a registry may answer with all.
	return slices.DeleteFunc(all, func(d v1.Descriptor) bool { return artifactType != "" && d.ArtifactType != artifactType }), nil
}

func (s *Session) referrersPage(ctx context.Context, repo name.Repository, subject v1.Hash, address string) (idx v1.IndexManifest, next string, err error) {
	c := call{
		op: "list the referrers of " + short(subject) + " in " + repo.RepositoryStr(), method: http.MethodGet, registry: repo.Registry,
		url: address, scopes: []string{pull(repo)}, accept: []int{http.StatusOK}, header: http.Header{"Accept": {string(types.OCIImageIndex)}},
	}
	err = s.retry(ctx, func() error {
		resp, err := s.once(ctx, c)
		if err != nil {
			return err
		}
		defer drain(resp)
		raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return s.fail(c, 0, fmt.Errorf("%w: the transfer broke off: %v", ErrDamaged, err))
		case len(raw) > maxManifest:
			return s.fail(c, resp.StatusCode, fmt.Errorf("a list of more than %d bytes", maxManifest))
		}
		idx = v1.IndexManifest{}
		if err := json.Unmarshal(raw, &idx); err != nil {
			return s.fail(c, http.StatusNotFound, errors.New("the answer is no list of referrers"))
		}
		next = nextLink(resp.Header.Get("Link"))
		return nil
	})
	return idx, next, err
}

// nextLink reads the address of `Link: <address>; rel="next"`.
func nextLink(header string) string {
	address, params, ok := strings.Cut(header, ">")
	if !ok || !strings.HasPrefix(strings.TrimSpace(address), "<") || !strings.Contains(params, "next") {
		return ""
	}
	return strings.TrimPrefix(strings.TrimSpace(address), "<")
}

// Artifact reads an artefact back, each file checked against its digest. limit
// is the most bytes that all files together may have.
func (s *Session) Artifact(ctx context.Context, ref name.Digest, limit int64) (Artifact, error) {
	m, err := s.Manifest(ctx, ref)
	if err != nil {
		return Artifact{}, err
	}
	var man v1.Manifest
	if err := json.Unmarshal(m.Raw, &man); err != nil {
		return Artifact{}, s.fail(manifestCall(ref, "read artefact", http.MethodGet), http.StatusOK, errors.New("its manifest can't be read"))
	}
	a := Artifact{Type: man.ArtifactType, Subject: man.Subject, Annotations: man.Annotations}
	if a.Type == "" {
		a.Type = string(man.Config.MediaType)
	}
	for _, l := range man.Layers {
		data, err := s.SmallBlob(ctx, ref.Context(), l.Digest, l.Size, limit)
		if err != nil {
			return Artifact{}, err
		}
		limit -= int64(len(data))
		a.Files = append(a.Files, File{MediaType: l.MediaType, Title: l.Annotations[titleAnnotation], Data: data})
	}
	return a, nil
}

// Tag gives what ref points to a further name: a guard against collection, a
// channel. It costs a read and a write.
func (s *Session) Tag(ctx context.Context, ref name.Reference, tag name.Tag) error {
	m, err := s.Manifest(ctx, ref)
	if err != nil {
		return err
	}
	return s.PutManifest(ctx, tag, m.MediaType, m.Raw)
}

// Delete removes a tag or, by digest, a manifest. What is not there is no
// error. Registries that forbid it answer 405, others delete all tags of one
// digest: a guard tag is better left to the registry's clean-up rules there.
func (s *Session) Delete(ctx context.Context, ref name.Reference) error {
	c := manifestCall(ref, "delete manifest", http.MethodDelete)
	c.scopes = []string{"repository:" + ref.Context().RepositoryStr() + ":delete,pull,push"}
	c.accept = []int{http.StatusAccepted, http.StatusOK, http.StatusNoContent, http.StatusNotFound}
	return s.retry(ctx, func() error {
		resp, err := s.once(ctx, c)
		if err == nil {
			drain(resp)
		}
		return err
	})
}
