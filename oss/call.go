package oss

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Call is one request of an implementation over HTTP. It turns what came back
// into the contract's objects and errors, so that all implementations agree.
type Call struct {
	Op       string // "get v1/chan/acme/stable.json"
	Endpoint string // who is asked, without credentials
	// Conditional: the request carried If-None-Match, so 304 is an answer.
	Conditional bool
}

// Fail is the contract's error for err, which a round trip returned: an
// [*Answer], or whatever the network made of it.
func (c Call) Fail(ctx context.Context, err error) error {
	var a *Answer
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("oss: %s: %s: %w", c.Op, c.Endpoint, ctx.Err())
	case errors.As(err, &a):
		return c.refused(a)
	}
	var u *url.Error // repeats the address, with whatever it carries
	if errors.As(err, &u) {
		err = u.Err
	}
	if neverHeals(err) {
		return fmt.Errorf("oss: %s: %s: %w", c.Op, c.Endpoint, err)
	}
	if t, ok := err.(interface{ Timeout() bool }); ok && t.Timeout() {
		// A dial time-out claims to be context.DeadlineExceeded, which it is
		// not: the caller's context lives.
		err = errors.New(err.Error())
	}
	return &Unavailable{Op: c.Op, Endpoint: c.Endpoint, Err: err}
}

// neverHeals finds the failures that a second try meets again.
func neverHeals(err error) bool {
	var (
		cert   *tls.CertificateVerificationError
		host   x509.HostnameError
		auth   x509.UnknownAuthorityError
		record tls.RecordHeaderError
	)
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &cert) || errors.As(err, &host) || errors.As(err, &auth) || errors.As(err, &record)
}

// Object makes the contract's object of a successful answer (200, or 206 when
// opts selects bytes) and takes over body. The result's Body delivers exactly
// what was asked for or an error.
func (c Call) Object(ctx context.Context, key string, opts GetOptions, status int, h http.Header, body io.ReadCloser) (*Object, error) {
	o := &Object{Info: Info{Key: key, ETag: h.Get("ETag"), Size: -1, CRC64: h.Get("X-Oss-Hash-Crc64ecma")}}
	if t, err := http.ParseTime(h.Get("Last-Modified")); err == nil {
		o.Modified = t
	}
	b := &objectBody{ctx: ctx, call: c, rc: body, left: -1}
	length := int64(-1)
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		length = n
	}
	lie := func(format string, args ...any) (*Object, error) {
		body.Close()
		return nil, &Unavailable{Op: c.Op, Endpoint: c.Endpoint, Err: fmt.Errorf(format, args...)}
	}
	selected := opts.Offset > 0 || opts.Length > 0
	switch {
	case status == http.StatusOK && !selected:
		o.Size, b.left = length, length
		if sum, err := strconv.ParseUint(o.CRC64, 10, 64); err == nil {
			b.sum, b.want = crc64.New(crcTable), sum
		}
	case status == http.StatusOK:
		// Somebody on the way ignored the range: select here.
		o.Size, b.skip = length, opts.Offset
		if length >= 0 {
			if opts.Offset >= length {
				body.Close()
				return nil, fmt.Errorf("oss: %s: %w", c.Op, ErrRange)
			}
			b.left = length - opts.Offset
		}
		if opts.Length > 0 && (b.left < 0 || opts.Length < b.left) {
			b.left, b.open = opts.Length, b.left < 0
		}
	case status == http.StatusPartialContent && selected:
		first, last, size, err := parseContentRange(h.Get("Content-Range"))
		n := last - first + 1
		switch {
		case err != nil:
			return lie("it sent %w", err)
		case first != opts.Offset, opts.Length > 0 && n > opts.Length, length >= 0 && length != n,
			size >= 0 && (opts.Length <= 0 || n < opts.Length) && last != size-1:
			return lie("it sent other bytes than asked for (%s)", oneLine(h.Get("Content-Range"), 80))
		}
		o.Size, b.left = size, n
	default:
		return lie("unexpected answer %d", status)
	}
	o.Body = b
	return o, nil
}

var crcTable = crc64.MakeTable(crc64.ECMA)

// parseContentRange reads "bytes 0-9/100"; size is -1 for "*".
func parseContentRange(v string) (first, last, size int64, err error) {
	bad := fmt.Errorf("a bad Content-Range %q", oneLine(v, 80))
	span, total, ok := strings.Cut(strings.TrimPrefix(v, "bytes "), "/")
	if !ok || !strings.HasPrefix(v, "bytes ") {
		return 0, 0, 0, bad
	}
	a, z, ok := strings.Cut(span, "-")
	first, err1 := parseDigits(a)
	last, err2 := parseDigits(z)
	size, err3 := int64(-1), error(nil)
	if total != "*" {
		size, err3 = parseDigits(total)
	}
	if !ok || err1 != nil || err2 != nil || err3 != nil || last < first || (size >= 0 && last >= size) {
		return 0, 0, 0, bad
	}
	return first, last, size, nil
}

// parseDigits refuses the signs that strconv accepts.
func parseDigits(s string) (int64, error) {
	if strings.HasPrefix(s, "-") || strings.HasPrefix(s, "+") {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 10, 64)
}

// objectBody keeps Reader's promises about Object.Body.
type objectBody struct {
	ctx  context.Context // of the Get that opened it
	call Call
	rc   io.ReadCloser
	skip int64 // bytes to drop first
	left int64 // bytes still to deliver; -1 unknown
	open bool  // left is a limit only: the object may end earlier
	sum  hash.Hash64
	want uint64
	done error
}

func (b *objectBody) Read(p []byte) (int, error) {
	if b.done != nil {
		return 0, b.done
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.read(p)
	if err != nil {
		b.done = err
	}
	return n, err
}

func (b *objectBody) read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, b.call.Fail(b.ctx, nil)
	}
	if b.skip > 0 {
		n, err := io.CopyN(io.Discard, b.rc, b.skip)
		if b.skip -= n; b.skip > 0 {
			if err == io.EOF && (b.open || b.left < 0) {
				return 0, fmt.Errorf("oss: %s: %w", b.call.Op, ErrRange)
			}
			return 0, b.broken(err)
		}
	}
	if b.left == 0 {
		return 0, b.end()
	}
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.rc.Read(p)
	if b.sum != nil {
		b.sum.Write(p[:n])
	}
	if b.left > 0 {
		b.left -= int64(n)
	}
	switch {
	case b.left == 0, err == io.EOF && (b.left < 0 || b.open):
		// The last bytes are withheld when the whole is wrong: a reader that
		// knows the size never asks for what comes after them.
		if end := b.end(); end != io.EOF {
			return 0, end
		}
		b.left, err = 0, nil
		if n == 0 {
			err = io.EOF
		}
	case err != nil:
		err = b.broken(err)
	}
	return n, err
}

// end is io.EOF if everything that arrived is right.
func (b *objectBody) end() error {
	if b.sum != nil && b.sum.Sum64() != b.want {
		return &Unavailable{Op: b.call.Op, Endpoint: b.call.Endpoint, Err: ErrCorrupt}
	}
	return io.EOF
}

func (b *objectBody) broken(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b.call.Fail(b.ctx, err)
}

// Close releases the connection. What was not read is not checked.
func (b *objectBody) Close() error {
	if b.done == nil {
		b.done = fmt.Errorf("oss: %s: read after close", b.call.Op)
	}
	return b.rc.Close()
}

// RangeHeader is the Range header that selects opts' bytes, empty for the
// whole object. A negative offset is [ErrRange].
func (o GetOptions) RangeHeader() (string, error) {
	switch {
	case o.Offset < 0:
		return "", ErrRange
	case o.Length > 0 && o.Offset+o.Length-1 >= o.Offset:
		return fmt.Sprintf("bytes=%d-%d", o.Offset, o.Offset+o.Length-1), nil
	case o.Offset > 0:
		return fmt.Sprintf("bytes=%d-", o.Offset), nil
	}
	return "", nil
}
