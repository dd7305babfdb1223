package oss

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"strconv"
	"time"
)

// RetryOptions bound the retries of [Retry] and [RetryReader]. The zero value
// is meant for production.
type RetryOptions struct {
	// Attempts is the number of tries altogether; 0 means 4. It is the budget
	// of a whole Get, opening and reading together.
	Attempts int
	// Base is the upper end of the first random pause, doubled each time; 0
	// means 200 ms.
	Base time.Duration
	// Max is the upper end of every random pause; 0 means 5 s.
	Max time.Duration
	// MaxWait is the longest Retry-After that is waited for; a server that
	// asks for more gets no further try. 0 means 30 s.
	MaxWait time.Duration
	// Notify is told of every failed try that another one follows; may be nil.
	// It may be called from several goroutines at once.
	Notify func(err error, attempt int, pause time.Duration)

	// sleep and random are the tests' handles.
	sleep  func(context.Context, time.Duration) error
	random func() float64
}

// Retry adds retries to s. Only [Unavailable] is tried again, after a random
// pause ("full jitter", so that a herd does not come back as one) or what the
// server asked for, and never when the pause would outlast ctx's deadline:
// then the last error is returned at once.
//
// A body that breaks while it is read is continued where it broke, if the
// object's ETag is still the same, else that read ends with [ErrChanged].
//
// A Create whose answer was lost and which then finds the key taken reads what
// is there: the same content is taken for our own write, other content is
// [ErrExists]. Two callers that create one key with equal content at the same
// time can therefore both be told that they did.
func Retry(s Store, o RetryOptions) Store {
	o.defaults()
	return &retryStore{retryReader{s, o}, s}
}

// RetryReader is [Retry] for a store that is only read.
func RetryReader(r Reader, o RetryOptions) Reader {
	o.defaults()
	return &retryReader{r, o}
}

func (o *RetryOptions) defaults() {
	if o.Attempts <= 0 {
		o.Attempts = 4
	}
	if o.Base <= 0 {
		o.Base = 200 * time.Millisecond
	}
	if o.Max <= 0 {
		o.Max = 5 * time.Second
	}
	if o.MaxWait <= 0 {
		o.MaxWait = 30 * time.Second
	}
	if o.sleep == nil {
		o.sleep = sleep
	}
	if o.random == nil {
		o.random = rand.Float64
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tries counts the attempts of one operation.
type tries struct {
	o    *RetryOptions
	used int
}

// final is an error that is not tried again, whatever it wraps: its own tries
// are used up.
type final struct{ error }

// again reports whether the try that ended with err is followed by another,
// after the pause. If not, the error says why and how often was tried.
func (t *tries) again(ctx context.Context, err error) (bool, error) {
	t.used++
	var f *final
	if errors.As(err, &f) {
		return false, f.error
	}
	var u *Unavailable
	if !errors.As(err, &u) {
		return false, err
	}
	last := *u
	last.Attempts = t.used
	if t.used >= t.o.Attempts {
		return false, &last
	}
	pause := t.o.Max
	if shift := t.used - 1; shift < 30 && t.o.Base<<shift < t.o.Max {
		pause = t.o.Base << shift
	}
	pause = time.Duration(t.o.random() * float64(pause))
	if u.RetryAfter > t.o.MaxWait {
		return false, &last
	}
	pause += u.RetryAfter
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
		return false, &last
	}
	if t.o.Notify != nil {
		t.o.Notify(err, t.used, pause)
	}
	if slept := t.o.sleep(ctx, pause); slept != nil {
		return false, fmt.Errorf("oss: %s: %w while waiting to try again after: %v", u.Op, slept, &last)
	}
	return true, nil
}

func (o *RetryOptions) do(ctx context.Context, f func() error) error {
	t := tries{o: o}
	for {
		err := f()
		if err == nil {
			return nil
		}
		if again, err := t.again(ctx, err); !again {
			return err
		}
	}
}

type retryReader struct {
	r Reader
	o RetryOptions
}

func (r *retryReader) Get(ctx context.Context, key string, opts GetOptions) (*Object, error) {
	t := tries{o: &r.o}
	for {
		obj, err := r.r.Get(ctx, key, opts)
		if err == nil {
			b := &resumingBody{ctx: ctx, r: r.r, tries: t, info: obj.Info, opts: opts, rc: obj.Body}
			if sum, err := strconv.ParseUint(obj.CRC64, 10, 64); err == nil && opts.Offset <= 0 && opts.Length <= 0 {
				b.sum, b.want = crc64.New(crcTable), sum
			}
			return &Object{Info: obj.Info, Body: b}, nil
		}
		if again, err := t.again(ctx, err); !again {
			return nil, err
		}
	}
}

// resumingBody continues a broken transfer with a request for the rest.
type resumingBody struct {
	ctx   context.Context // of the Get that opened it
	r     Reader
	tries tries
	info  Info
	opts  GetOptions
	rc    io.ReadCloser // nil between a broken transfer and the next
	read  int64         // bytes delivered
	// resumed transfers are parts, which the implementation can't check.
	resumed bool
	sum     hash.Hash64
	want    uint64
	done    error
}

func (b *resumingBody) Read(p []byte) (int, error) {
	if b.done != nil {
		return 0, b.done
	}
	for {
		n, err := b.rc.Read(p)
		b.read += int64(n)
		if b.sum != nil {
			b.sum.Write(p[:n])
		}
		if whole := err == io.EOF || b.read == b.info.Size; whole && b.resumed && b.sum != nil && b.sum.Sum64() != b.want {
			b.done = &Unavailable{Op: "get " + b.info.Key, Endpoint: "the service", Attempts: b.tries.used + 1, Err: ErrCorrupt}
			return 0, b.done // the last bytes are withheld, as implementations do
		}
		var u *Unavailable
		if err == nil || !errors.As(err, &u) || errors.Is(err, ErrCorrupt) {
			// What was delivered can't be taken back, so corrupt content is
			// the caller's to read again.
			b.done = err
			return n, err
		}
		if b.done = b.resume(err); b.done != nil || n > 0 {
			return n, b.done
		}
	}
}

// resume replaces b.rc by a transfer of what is missing.
func (b *resumingBody) resume(err error) error {
	b.rc.Close()
	b.rc = io.NopCloser(bytes.NewReader(nil))
	opts := GetOptions{Offset: b.opts.Offset + b.read}
	if b.opts.Length > 0 {
		if opts.Length = b.opts.Length - b.read; opts.Length == 0 {
			return io.EOF
		}
	}
	for {
		again, err1 := b.tries.again(b.ctx, err)
		if !again {
			return err1
		}
		var obj *Object
		if obj, err = b.r.Get(b.ctx, b.info.Key, opts); err != nil {
			continue
		}
		if b.info.ETag == "" || obj.ETag != b.info.ETag {
			obj.Body.Close()
			return fmt.Errorf("oss: get %s: %w", b.info.Key, ErrChanged)
		}
		b.rc, b.resumed = obj.Body, true
		return nil
	}
}

func (b *resumingBody) Close() error {
	if b.done == nil {
		b.done = fmt.Errorf("oss: get %s: read after close", b.info.Key)
	}
	return b.rc.Close()
}

type retryStore struct {
	retryReader
	s Store
}

func (s *retryStore) Put(ctx context.Context, key string, body []byte, opts PutOptions) error {
	return s.o.do(ctx, func() error { return s.s.Put(ctx, key, body, opts) })
}

func (s *retryStore) Create(ctx context.Context, key string, body []byte, opts PutOptions) error {
	lost := false // an earlier try may have done it
	return s.o.do(ctx, func() error {
		err := s.s.Create(ctx, key, body, opts)
		var u *Unavailable
		if errors.As(err, &u) {
			lost = true
		}
		if !lost || !errors.Is(err, ErrExists) {
			return err
		}
		there, _, readErr := ReadAll(ctx, &s.retryReader, key, GetOptions{}, int64(len(body)))
		switch {
		case readErr == nil && bytes.Equal(there, body):
			return nil
		case readErr == nil, errors.Is(readErr, ErrTooLarge):
			return err
		}
		return &final{fmt.Errorf("oss: create %s: it exists, and whether by this call is unknown: %w", key, readErr)}
	})
}

func (s *retryStore) List(ctx context.Context, prefix string, limit int) ([]Info, error) {
	var list []Info
	err := s.o.do(ctx, func() (err error) {
		list, err = s.s.List(ctx, prefix, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

func (s *retryStore) Delete(ctx context.Context, key string) error {
	return s.o.do(ctx, func() error { return s.s.Delete(ctx, key) })
}

func (s *retryStore) CheckCreateOnly(ctx context.Context) error {
	return s.o.do(ctx, func() error { return CheckCreateOnly(ctx, s.s) })
}
