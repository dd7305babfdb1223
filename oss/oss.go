// Package oss is the object store behind the platform bundle: one bucket of
// immutable objects and a few moving pointers.
//
// [Reader] and [Store] are contracts; osstest holds the behaviour suite every
// implementation passes. [HTTP] reads without credentials, oss/aliyun speaks
// the service's protocol through its SDK, oss/ossd is a server of that
// protocol for development and tests. [Retry] and [RetryReader] add bounded
// retries to any of them; implementations themselves try once. [Network],
// [Call] and [Answer] are what implementations share.
package oss

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Reader is read access to one bucket (or a prefix of it). Implementations are
// safe for concurrent use and do not retry; see [RetryReader].
//
// Keys follow [CheckKey]. Every error names the operation and the key. What is
// none of the errors named below is a mistake of set-up (a redirect, a bad
// certificate, a key nobody can have): trying again does not help.
type Reader interface {
	// Get opens the object at key. The caller closes Object.Body.
	//
	// Errors: [ErrNotFound]; [ErrNoBucket]; [ErrNotModified] when
	// opts.IfNoneMatch names the current ETag; [ErrRange]; [ErrDenied];
	// [*Unavailable] for what a later try may heal; ctx's error when ctx ends
	// first, also while Body is read. A transfer that stops early is an error
	// of Body.Read, never a short success; so is content that differs from the
	// checksum that the service sent with it ([ErrCorrupt]).
	Get(ctx context.Context, key string, opts GetOptions) (*Object, error)
}

// Store is full access to one bucket. It is a [Reader] with the same promises.
type Store interface {
	Reader

	// Put stores body at key, replacing what is there. The object becomes
	// visible whole or not at all.
	Put(ctx context.Context, key string, body []byte, opts PutOptions) error

	// Create stores body at key only if no object is there, else [ErrExists].
	// It is the only compare-and-swap the service has, and it does nothing in
	// versioned buckets: there it returns [ErrVersioned], after the write.
	Create(ctx context.Context, key string, body []byte, opts PutOptions) error

	// List returns the objects whose keys start with prefix in byte order, at
	// most limit of them (limit ≤ 0: all). Prefix may be empty, and need not
	// end at a slash.
	List(ctx context.Context, prefix string, limit int) ([]Info, error)

	// Delete removes key. Removing what is not there is no error.
	Delete(ctx context.Context, key string) error
}

// CheckCreateOnly reports [ErrVersioned] for a bucket in which s.Create can't
// keep its promise; publishers call it before their first Create. A store
// without such a method has nothing to check.
func CheckCreateOnly(ctx context.Context, s Store) error {
	if c, ok := s.(interface{ CheckCreateOnly(context.Context) error }); ok {
		return c.CheckCreateOnly(ctx)
	}
	return nil
}

// GetOptions narrow a Get. The zero value reads the whole object.
type GetOptions struct {
	// IfNoneMatch is an ETag as Object.ETag gave it; empty reads always.
	IfNoneMatch string
	// Offset and Length select bytes; Length ≤ 0 means to the end. A selection
	// that reaches beyond the end is cut there; one that starts at or beyond
	// the end, or at a negative offset, is [ErrRange].
	Offset, Length int64
}

// PutOptions describe a new object. The zero value is fine.
type PutOptions struct {
	CacheControl string
	ContentType  string // default: application/octet-stream
}

// Object is an opened object.
type Object struct {
	Info
	Body io.ReadCloser
}

// Info describes an object without its content.
type Info struct {
	Key      string
	ETag     string // as the service wrote it, quotes included
	Size     int64  // bytes of the whole object; -1 when the server did not say
	Modified time.Time
	// CRC64 is the service's CRC-64/ECMA of the whole object, in decimal;
	// empty when it did not say (in lists it never does).
	CRC64 string
}

// MaxKey is the longest key, in bytes.
const MaxKey = 1023

// CheckKey says whether key can be used with every implementation: not empty,
// at most [MaxKey] bytes of UTF-8, slash-separated without empty, "." or ".."
// elements (proxies rewrite those in URLs), no backslash, no control
// characters. The service itself allows more.
func CheckKey(key string) error {
	switch {
	case key == "":
		return errors.New("the key is empty")
	case len(key) > MaxKey:
		return fmt.Errorf("the key has %d bytes, more than %d", len(key), MaxKey)
	case key == "." || !fs.ValidPath(key):
		return fmt.Errorf("key %q is not a plain slash-separated path", key)
	}
	for _, r := range key {
		if r < ' ' || r == 0x7f || r == '\\' {
			return fmt.Errorf("key %q has a control character or a backslash", key)
		}
	}
	return nil
}

// ReadAll reads the object at key into memory. An object of more than max
// bytes is [ErrTooLarge]; at most max+1 bytes of it are read.
func ReadAll(ctx context.Context, r Reader, key string, opts GetOptions, max int64) ([]byte, Info, error) {
	o, err := r.Get(ctx, key, opts)
	if err != nil {
		return nil, Info{}, err
	}
	defer o.Body.Close()
	tooLarge := fmt.Errorf("oss: get %s: %w: more than %d bytes", key, ErrTooLarge, max)
	if opts == (GetOptions{IfNoneMatch: opts.IfNoneMatch}) && o.Size > max {
		return nil, o.Info, tooLarge
	}
	raw, err := io.ReadAll(io.LimitReader(o.Body, max+1))
	if err != nil {
		return nil, o.Info, err
	}
	if int64(len(raw)) > max {
		return nil, o.Info, tooLarge
	}
	return raw, o.Info, nil
}

// What a call can find, compared with errors.Is.
var (
	ErrNotFound = errors.New("no such object")
	// ErrNoBucket is not an [ErrNotFound]: a wrong bucket name is a mistake of
	// set-up, not an answer about an object.
	ErrNoBucket    = errors.New("no such bucket")
	ErrExists      = errors.New("object exists already")
	ErrNotModified = errors.New("not modified")
	ErrRange       = errors.New("no such range of bytes")
	// ErrDenied covers a refused signature, unknown key, missing permission and
	// an expired token. Retrying does not help.
	ErrDenied = errors.New("access denied")
	// ErrVersioned is returned by checks that find a bucket with versioning
	// on: there the service silently ignores create-only writes.
	ErrVersioned = errors.New("bucket is versioned, create-only writes have no effect")
	// ErrCorrupt is found inside an [Unavailable]: another transfer may arrive
	// whole.
	ErrCorrupt = errors.New("content differs from the service's checksum")
	// ErrChanged means that an object was replaced while it was being read.
	ErrChanged = errors.New("object was replaced while it was read")
	// ErrTooLarge is [ReadAll]'s.
	ErrTooLarge = errors.New("object is too large")
)

// Unavailable is an error that a later try may heal: throttling, a server
// fault, a broken connection. After [Retry] gave up it says how often was tried.
type Unavailable struct {
	Op       string // "get v1/chan/acme/stable.json"
	Endpoint string // who was asked, without credentials
	Status   int    // HTTP status; 0 when none was received
	Code     string // the service's error code, when it gave one
	// RequestID is what the service's support asks for, when it gave one.
	RequestID string
	Attempts  int
	// RetryAfter is what the server asked for; 0 when it did not.
	RetryAfter time.Duration
	Err        error
}

func (e *Unavailable) Error() string {
	s := "oss: " + e.Op + ": " + e.Endpoint
	switch {
	case e.Status != 0 && e.Code != "":
		s += fmt.Sprintf(" answered %d %s", e.Status, e.Code)
	case e.Status != 0:
		s += fmt.Sprintf(" answered %d", e.Status)
	case e.Err != nil:
		s += ": " + e.Err.Error()
	}
	if e.RequestID != "" {
		s += ", request " + e.RequestID
	}
	if e.Attempts > 1 {
		s += fmt.Sprintf(" (tried %d times)", e.Attempts)
	}
	return s
}

func (e *Unavailable) Unwrap() error { return e.Err }
