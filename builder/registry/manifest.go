package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxManifest is the largest manifest that registries have to take.
const maxManifest = 4 << 20

var acceptManifests = strings.Join([]string{
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
	string(types.OCIImageIndex), string(types.DockerManifestList),
}, ", ")

// Manifest is a manifest as the registry has it.
type Manifest struct {
	Raw       []byte
	Digest    v1.Hash
	MediaType types.MediaType
}

func manifestCall(ref name.Reference, op, method string) call {
	repo := ref.Context()
	return call{
		op: op + " " + shortRef(ref) + " of " + repo.RepositoryStr(), method: method, registry: repo.Registry,
		url: "/v2/" + repo.RepositoryStr() + "/manifests/" + ref.Identifier(), scopes: []string{pull(repo)},
		header: http.Header{"Accept": {acceptManifests}}, accept: []int{http.StatusOK},
	}
}

func shortRef(ref name.Reference) string {
	if _, tag := ref.(name.Tag); tag {
		return ref.Identifier()
	}
	if h, err := v1.NewHash(ref.Identifier()); err == nil {
		return short(h)
	}
	return ref.Identifier()
}

// Head asks what ref points to: one request. It fails with [ErrNotFound] when
// there is nothing. With pushing the token asked for can also push, so that
// the same one serves what follows.
func (s *Session) Head(ctx context.Context, ref name.Reference, pushing bool) (v1.Descriptor, error) {
	c := manifestCall(ref, "look for manifest", http.MethodHead)
	if pushing {
		c.scopes = []string{push(ref.Context())}
	}
	var d v1.Descriptor
	err := s.retry(ctx, func() error {
		resp, err := s.once(ctx, c)
		if err != nil {
			return err
		}
		drain(resp)
		d.Size, d.MediaType = resp.ContentLength, types.MediaType(resp.Header.Get("Content-Type"))
		d.Digest, err = v1.NewHash(resp.Header.Get("Docker-Content-Digest"))
		if err != nil {
			// Some proxies drop the header; the body tells as well.
			m, err := s.manifestOnce(ctx, ref)
			d.Size, d.MediaType, d.Digest = int64(len(m.Raw)), m.MediaType, m.Digest
			return err
		}
		return nil
	})
	return d, err
}

// Manifest reads what ref points to and checks it against the digest asked
// for, or the one that the registry claims.
func (s *Session) Manifest(ctx context.Context, ref name.Reference) (Manifest, error) {
	var m Manifest
	err := s.retry(ctx, func() (err error) {
		m, err = s.manifestOnce(ctx, ref)
		return err
	})
	return m, err
}

func (s *Session) manifestOnce(ctx context.Context, ref name.Reference) (Manifest, error) {
	c := manifestCall(ref, "read manifest", http.MethodGet)
	resp, err := s.once(ctx, c)
	if err != nil {
		return Manifest{}, err
	}
	defer drain(resp)
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	switch {
	case ctx.Err() != nil:
		return Manifest{}, context.Cause(ctx)
	case err != nil:
		return Manifest{}, s.fail(c, 0, fmt.Errorf("%w: the transfer broke off: %v", ErrDamaged, err))
	case len(raw) > maxManifest:
		return Manifest{}, s.fail(c, resp.StatusCode, fmt.Errorf("a manifest of more than %d bytes", maxManifest))
	}
	got := hashOf(raw)
	want := resp.Header.Get("Docker-Content-Digest")
	if d, ok := ref.(name.Digest); ok {
		want = d.DigestStr()
	}
	if want != "" && want != got.String() {
		return Manifest{}, s.fail(c, 0, fmt.Errorf("%w: the manifest has digest %s, not %s", ErrDamaged, got, oneLine(want, 80)))
	}
	mt, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return Manifest{Raw: raw, Digest: got, MediaType: types.MediaType(mt)}, nil
}

// PutManifest writes raw to ref, a tag or its digest. It fails with
// [ErrBlobUnknown] when the repository lacks a blob that raw names.
func (s *Session) PutManifest(ctx context.Context, ref name.Reference, mt types.MediaType, raw []byte) error {
	_, err := s.putManifest(ctx, ref, mt, raw)
	return err
}

// putManifest also gives the answer's header, which says whether the registry
// has noted a subject.
func (s *Session) putManifest(ctx context.Context, ref name.Reference, mt types.MediaType, raw []byte) (http.Header, error) {
	c := manifestCall(ref, "push manifest", http.MethodPut)
	c.scopes = []string{push(ref.Context())}
	c.header = http.Header{"Content-Type": {string(mt)}}
	c.size = int64(len(raw))
	c.body = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	c.accept = []int{http.StatusCreated, http.StatusOK, http.StatusNoContent}
	var header http.Header
	err := s.retry(ctx, func() error {
		resp, err := s.once(ctx, c)
		if err != nil {
			return err
		}
		drain(resp)
		header = resp.Header
		return s.sameDigest(c, resp, hashOf(raw))
	})
	return header, err
}
