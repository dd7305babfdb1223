// Package oss is the object store behind the platform bundle: one bucket of
// immutable objects and a few moving pointers.
//
// [Reader] and [Store] are contracts; osstest holds the behaviour suite every
// implementation passes. [HTTP] reads without credentials, oss/aliyun speaks
// the service's protocol through its SDK, oss/ossd is a server of that
// protocol for development and tests. [Retry] adds bounded retries to any of
// them; implementations themselves try once.
package oss

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Reader is read access to one bucket (or a prefix of it). Implementations are
// safe for concurrent use and do not retry; see [Retry].
type Reader interface {
	// Get opens the object at key. The caller closes Object.Body.
	//
	// Errors: [ErrNotFound]; [ErrNotModified] when opts.IfNoneMatch names the
	// current ETag; [ErrDenied]; [*Unavailable] for what a later try may heal;
	// ctx's error when ctx ends first, also while Body is read. A transfer that
	// stops early is an error of Body.Read, never a short success.
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
	// versioned buckets; see [ErrVersioned].
	Create(ctx context.Context, key string, body []byte, opts PutOptions) error

	// List returns the keys under prefix in byte order, at most limit of them
	// (limit ≤ 0: all).
	List(ctx context.Context, prefix string, limit int) ([]Info, error)

	// Delete removes key. Removing what is not there is no error.
	Delete(ctx context.Context, key string) error
}

// GetOptions narrow a Get. The zero value reads the whole object.
type GetOptions struct {
	// IfNoneMatch is an ETag as Object.ETag gave it; empty reads always.
	IfNoneMatch string
	// Offset and Length select bytes; Length ≤ 0 means to the end.
	Offset, Length int64
}

// PutOptions describe a new object. The zero value is fine.
type PutOptions struct {
	CacheControl string
	ContentType  string
}

// Object is an opened object.
type Object struct {
	Info
	Body io.ReadCloser
}

// Info describes an object without its content.
type Info struct {
	Key      string
	ETag     string
	Size     int64 // bytes of the whole object; -1 when the server did not say
	Modified time.Time
}

// What a call can find, compared with errors.Is.
var (
	ErrNotFound    = errors.New("no such object")
	ErrExists      = errors.New("object exists already")
	ErrNotModified = errors.New("not modified")
	// ErrDenied covers a refused signature, unknown key, missing permission and
	// an expired token. Retrying does not help.
	ErrDenied = errors.New("access denied")
	// ErrVersioned is returned by checks that find a bucket with versioning
	// on: there the service silently ignores create-only writes.
	ErrVersioned = errors.New("bucket is versioned, create-only writes have no effect")
)

// Unavailable is an error that a later try may heal: throttling, a server
// fault, a broken connection. After [Retry] gave up it says how often was tried.
type Unavailable struct {
	Op       string // "get v1/chan/acme/stable.json"
	Endpoint string // who was asked, without credentials
	Status   int    // HTTP status; 0 when none was received
	Code     string // the service's error code, when it gave one
	Attempts int
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
	if e.Attempts > 1 {
		s += fmt.Sprintf(" (tried %d times)", e.Attempts)
	}
	return s
}

func (e *Unavailable) Unwrap() error { return e.Err }
