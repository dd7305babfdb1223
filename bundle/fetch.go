package bundle

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/oss"
)

// fetch reads a whole object. Its errors are the store's own (not found, not
// modified, denied), ErrUnavailable for everything a later try may heal, and
// ErrUntrusted for an object larger than limit. A transfer that broke off, or
// arrived damaged, is tried again unless the reader says that it did so itself.
func fetch(ctx context.Context, r oss.Reader, key, etag string, limit int64) (raw []byte, tag string, err error) {
	for try := 1; ; try++ {
		raw, info, err := oss.ReadAll(ctx, r, key, oss.GetOptions{IfNoneMatch: etag}, limit)
		if err == nil {
			return raw, info.ETag, nil
		}
		opened := info.Key != ""
		var u *oss.Unavailable
		retried := errors.As(err, &u) && u.Attempts > 1 && !errors.Is(err, oss.ErrCorrupt)
		if opened && !retried && try < 3 && ctx.Err() == nil && !errors.Is(err, oss.ErrTooLarge) {
			continue
		}
		return nil, "", explain(ctx, key, err)
	}
}

// explain gives a store's error its kind.
func explain(ctx context.Context, key string, err error) error {
	if e := ctx.Err(); e != nil {
		// Whether this is the caller's end or our own time-out is the caller's to
		// say; see Client.get.
		return fmt.Errorf("bundle: get %s: %w", key, e)
	}
	if errors.Is(err, oss.ErrTooLarge) {
		return &failure{ErrUntrusted, err}
	}
	for _, plain := range []error{oss.ErrNotFound, oss.ErrNoBucket, oss.ErrNotModified, oss.ErrDenied} {
		if errors.Is(err, plain) {
			return err // it names the key itself
		}
	}
	var u *oss.Unavailable
	if errors.As(err, &u) {
		return &failure{ErrUnavailable, err} // so does this
	}
	return failf(ErrUnavailable, "get %s: %w", key, err)
}

// followTo fetches and verifies the key sets after rs up to number n, which
// comes from a document that is not verified yet.
func followTo(ctx context.Context, r oss.Reader, rs roots, n int) (roots, error) {
	if n-rs.N > maxRoots {
		return rs, failf(ErrUntrusted, "document claims key set %d, this one is %d", n, rs.N)
	}
	for rs.N < n {
		raw, _, err := fetch(ctx, r, rootKey(rs.N+1), "", maxEnvelope)
		if errors.Is(err, oss.ErrNotFound) {
			return rs, failf(ErrUntrusted, "document claims key set %d, but the store has no %d", n, rs.N+1)
		}
		if err != nil {
			return rs, err
		}
		if rs, err = rs.extend([][]byte{raw}); err != nil {
			return rs, err
		}
	}
	return rs, nil
}

// get is fetch with a time-out, whose end is the store's fault, not the
// caller's.
func (c *Client) get(ctx context.Context, key, etag string, limit int64, timeout time.Duration) ([]byte, string, error) {
	if c.Store == nil {
		return nil, "", failf(ErrUnavailable, "get %s: no store is configured", key)
	}
	sub, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, tag, err := fetch(sub, c.Store, key, etag, limit)
	if err != nil && ctx.Err() == nil && sub.Err() != nil {
		return nil, "", failf(ErrUnavailable, "get %s: no answer within %s", key, timeout)
	}
	return raw, tag, err
}

// hasher writes through and sums.
type hasher struct {
	io.Writer
	h hash.Hash
}

func newHash(w io.Writer) hasher {
	h := sha256.New()
	return hasher{io.MultiWriter(w, h), h}
}

func (h hasher) sum() string { return hex.EncodeToString(h.h.Sum(nil)) }

// nonblock keeps opening a planted pipe from waiting for a writer.
const nonblock = syscall.O_NONBLOCK

func randomName() string { return rand.Text()[:12] }
