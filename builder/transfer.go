package builder

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/kuroko-faas/kuroko/builder/registry"
)

// Transfer is how far one blob is on its way to a registry.
type Transfer struct {
	Image string // the request's name
	Title string // "code layer"
	Size  int64  // bytes in all
	Sent  int64  // bytes so far; less than before after a try that failed
	// Done is set once, at the end; Reused tells that nothing had to be sent.
	Done, Reused bool
	Took         time.Duration // since the transfer began
}

// tellEach is how often a transfer under way is told of.
const tellEach = 100 * time.Millisecond

// watched tells the engine's Progress about a push of b.
func (e *Layers) watched(image string, b registry.Blob, push func(registry.Blob) (bool, error)) (bool, error) {
	if e.o.Progress == nil {
		return push(b)
	}
	t := Transfer{Image: image, Title: b.Title, Size: b.Size}
	start := e.o.Now()
	if open := b.Open; open != nil {
		b.Open = func(ctx context.Context) (io.ReadCloser, error) {
			r, err := open(ctx)
			if err != nil {
				return nil, err
			}
			return &told{ReadCloser: r, tell: func(sent int64) {
				now := t
				now.Sent, now.Took = sent, e.o.Now().Sub(start)
				e.o.Progress(now)
			}, now: e.o.Now, last: start}, nil
		}
	}
	reused, err := push(b)
	if err == nil {
		t.Done, t.Reused, t.Took = true, reused, e.o.Now().Sub(start)
		if !reused {
			t.Sent = t.Size
		}
		e.o.Progress(t)
	}
	return reused, err
}

// told counts what is read and tells of it from time to time.
type told struct {
	io.ReadCloser
	tell func(sent int64)
	now  func() time.Time
	sent atomic.Int64
	last time.Time
}

func (r *told) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	sent := r.sent.Add(int64(n))
	if now := r.now(); now.Sub(r.last) >= tellEach {
		r.last = now
		r.tell(sent)
	}
	return n, err
}
