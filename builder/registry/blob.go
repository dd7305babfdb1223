package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Blob is content to push.
type Blob struct {
	Title  string // for messages: "code layer"
	Digest v1.Hash
	Size   int64
	// Open starts the content from its first byte; it is called once per try.
	// nil means that there is no content here, only the hope to mount.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// ErrNoContent is Push's answer when a mount was refused and the blob has no
// content to send instead.
var ErrNoContent = errors.New("the registry did not mount the blob, and there is no content to send")

func pull(r name.Repository) string { return "repository:" + r.RepositoryStr() + ":pull" }
func push(r name.Repository) string { return "repository:" + r.RepositoryStr() + ":pull,push" }

func (b Blob) title() string {
	if b.Title == "" {
		return "blob " + short(b.Digest)
	}
	return b.Title + " " + short(b.Digest)
}

func short(h v1.Hash) string {
	if len(h.Hex) > 12 {
		return h.Algorithm + ":" + h.Hex[:12]
	}
	return h.String()
}

// HasBlob asks whether repo holds the blob: one HEAD.
func (s *Session) HasBlob(ctx context.Context, repo name.Repository, h v1.Hash) (bool, error) {
	found := false
	err := s.retry(ctx, func() error {
		resp, err := s.once(ctx, call{
			op: "look for blob " + short(h) + " in " + repo.RepositoryStr(), method: http.MethodHead, registry: repo.Registry,
			url:    "/v2/" + repo.RepositoryStr() + "/blobs/" + h.String(),
			scopes: []string{push(repo)}, accept: []int{http.StatusOK, http.StatusNotFound},
		})
		if err != nil {
			return err
		}
		found = resp.StatusCode == http.StatusOK
		drain(resp)
		return nil
	})
	return found, err
}

// Push brings b into repo: mounted from another repository of the same
// registry when from is not nil and the registry agrees, else sent in one PUT.
// It does not look first whether repo has it. mounted tells which it was.
func (s *Session) Push(ctx context.Context, repo name.Repository, b Blob, from *name.Repository) (mounted bool, err error) {
	if from != nil && from.RegistryStr() != repo.RegistryStr() {
		from = nil
	}
	err = s.retry(ctx, func() error {
		mounted, err = s.pushOnce(ctx, repo, b, from)
		if err != nil && from != nil && errors.Is(err, ErrDenied) {
			// Not allowed to read there is no reason not to write here.
			from = nil
			mounted, err = s.pushOnce(ctx, repo, b, nil)
		}
		return err
	})
	return mounted, err
}

func (s *Session) pushOnce(ctx context.Context, repo name.Repository, b Blob, from *name.Repository) (bool, error) {
	c := call{
		op: "push " + b.title() + " to " + repo.RepositoryStr(), method: http.MethodPost, registry: repo.Registry,
		url:    "/v2/" + repo.RepositoryStr() + "/blobs/uploads/",
		scopes: []string{push(repo)}, accept: []int{http.StatusAccepted},
	}
	if from != nil {
		c.url += "?" + url.Values{"mount": {b.Digest.String()}, "from": {from.RepositoryStr()}}.Encode()
		c.scopes = append(c.scopes, pull(*from))
		c.accept = append(c.accept, http.StatusCreated)
	}
	if b.Open == nil && from == nil {
		return false, ErrNoContent
	}
	resp, err := s.once(ctx, c)
	if err != nil {
		return false, err
	}
	location := resp.Header.Get("Location")
	drain(resp)
	if resp.StatusCode == http.StatusCreated {
		return true, s.sameDigest(c, resp, b.Digest)
	}
	// The address may be relative, to the address that was asked.
	asked := resp.Request.URL
	to, err := asked.Parse(location)
	if err != nil || location == "" {
		return false, s.fail(c, 0, fmt.Errorf("%w for the upload", errAddress))
	}
	if b.Open == nil {
		s.abandon(ctx, c, to)
		return false, ErrNoContent
	}
	q := to.Query()
	q.Set("digest", b.Digest.String())
	to.RawQuery = q.Encode()
	put := call{
		op: c.op, method: http.MethodPut, registry: repo.Registry, url: to.String(), scopes: c.scopes, size: b.Size,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		body:   func() (io.ReadCloser, error) { return b.Open(ctx) },
		accept: []int{http.StatusCreated, http.StatusNoContent, http.StatusAccepted},
	}
	if resp, err = s.once(ctx, put); err != nil {
		return false, err
	}
	drain(resp)
	if resp.StatusCode == http.StatusAccepted {
		return false, s.fail(c, resp.StatusCode, fmt.Errorf("the registry took the content but did not keep it: %w", ErrDamaged))
	}
	return false, s.sameDigest(c, resp, b.Digest)
}

// abandon closes an upload that nobody will use; the registry would drop it
// after some time anyway, so the answer does not matter.
func (s *Session) abandon(ctx context.Context, c call, to *url.URL) {
	c.method, c.url = http.MethodDelete, to.String()
	c.accept = []int{http.StatusNoContent, http.StatusOK, http.StatusAccepted}
	if resp, err := s.once(ctx, c); err == nil {
		drain(resp)
	}
}

func (s *Session) sameDigest(c call, resp *http.Response, want v1.Hash) error {
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != want.String() {
		return s.fail(c, 0, fmt.Errorf("%w: the registry stored %s instead of %s", ErrDamaged, oneLine(got, 80), want))
	}
	return nil
}

// Blob reads a blob. size may be -1 when it is not known. The reader fails
// with [ErrDamaged] instead of io.EOF when there were fewer or more bytes, or
// others, than the digest says. The caller closes it.
func (s *Session) Blob(ctx context.Context, repo name.Repository, h v1.Hash, size int64) (io.ReadCloser, error) {
	var resp *http.Response
	c := call{
		op: "read blob " + short(h) + " of " + repo.RepositoryStr(), method: http.MethodGet, registry: repo.Registry,
		url:    "/v2/" + repo.RepositoryStr() + "/blobs/" + h.String(),
		scopes: []string{pull(repo)}, accept: []int{http.StatusOK},
	}
	err := s.retry(ctx, func() (err error) {
		resp, err = s.once(ctx, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &verified{c: c, s: s, ctx: ctx, body: resp.Body, want: h, left: size, bounded: size >= 0, h: sha256.New()}, nil
}

// SmallBlob reads a blob of at most limit bytes, trying again when it arrives
// damaged.
func (s *Session) SmallBlob(ctx context.Context, repo name.Repository, h v1.Hash, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, &Error{Op: "read blob " + short(h) + " of " + repo.RepositoryStr(), Host: repo.RegistryStr(),
			Status: http.StatusOK, Message: fmt.Sprintf("%d bytes are more than the %d expected at most", size, limit), Attempts: 1}
	}
	var out []byte
	err := s.retry(ctx, func() error {
		r, err := s.Blob(ctx, repo, h, size)
		if err != nil {
			return err
		}
		defer r.Close()
		out, err = io.ReadAll(io.LimitReader(r, limit+1))
		return err
	})
	return out, err
}

// Copy is a Blob whose content is read from another repository while it is
// pushed.
func (s *Session) Copy(from name.Repository, d v1.Descriptor, title string) Blob {
	return Blob{Title: title, Digest: d.Digest, Size: d.Size, Open: func(ctx context.Context) (io.ReadCloser, error) {
		return s.Blob(ctx, from, d.Digest, d.Size)
	}}
}

// verified hashes what it reads.
type verified struct {
	c       call
	s       *Session
	ctx     context.Context
	body    io.ReadCloser
	want    v1.Hash
	h       hash.Hash
	left    int64
	bounded bool
	done    error
}

func (v *verified) Read(p []byte) (int, error) {
	if v.done != nil {
		return 0, v.done
	}
	n, err := v.body.Read(p)
	v.h.Write(p[:n])
	v.left -= int64(n)
	switch {
	case v.bounded && v.left < 0:
		v.done = v.damaged("more bytes arrived than announced")
	case err == io.EOF && v.bounded && v.left > 0:
		v.done = v.damaged("the transfer ended %d bytes early", v.left)
	case err == io.EOF:
		v.done = io.EOF
		if got := hex.EncodeToString(v.h.Sum(nil)); got != v.want.Hex {
			v.done = v.damaged("the bytes have digest sha256:%s", got)
		}
	case err != nil:
		if v.ctx.Err() != nil {
			v.done = context.Cause(v.ctx)
		} else {
			v.done = v.damaged("the transfer broke off: %v", err)
		}
	}
	return n, v.done
}

func (v *verified) damaged(format string, args ...any) error {
	return v.s.fail(v.c, 0, fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...)))
}

func (v *verified) Close() error { return v.body.Close() }
