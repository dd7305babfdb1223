package osstest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/ossd"
)

// TestReaderFaults checks what a reader over HTTP makes of a server that
// fails, lies or hangs. open returns a reader of srv's bucket that tries once,
// over a network with these time-outs.
func TestReaderFaults(t *testing.T, open func(t *testing.T, srv *Server, n oss.Network) oss.Reader) {
	body := strings.Repeat("0123456789abcdef", 16<<10) // 256 KiB
	start := func(t *testing.T) (*Server, oss.Reader) {
		srv := Serve(t, ossd.PublicRead)
		Fill(t, srv, map[string]string{"k": body})
		return srv, open(t, srv, oss.Network{})
	}
	get := func(t *testing.T, r oss.Reader, opts oss.GetOptions) ([]byte, error) {
		got, _, err := oss.ReadAll(t.Context(), r, "k", opts, 1<<20)
		return got, err
	}

	t.Run("status", func(t *testing.T) {
		srv, r := start(t)
		for _, c := range []struct {
			fault ossd.Fault
			want  error // nil: Unavailable
		}{
			{ossd.Fault{Status: 500, Code: "InternalError"}, nil},
			{ossd.Fault{Status: 503, Code: "PartitionQpsLimitted"}, nil},
			{ossd.Fault{Status: 503, RetryAfter: 7 * time.Second}, nil},
			{ossd.Fault{Status: 502}, nil},
			{ossd.Fault{Status: 408, Code: "RequestTimeout"}, nil},
			{ossd.Fault{Status: 429}, nil},
			{ossd.Fault{Status: 599}, nil},
			{ossd.Fault{Status: 401}, oss.ErrDenied},
			{ossd.Fault{Status: 403, Code: "SignatureDoesNotMatch"}, oss.ErrDenied},
			{ossd.Fault{Status: 403, Code: "RequestTimeTooSkewed"}, oss.ErrDenied},
			{ossd.Fault{Status: 403}, oss.ErrDenied},
			{ossd.Fault{Status: 404, Code: "NoSuchKey"}, oss.ErrNotFound},
			{ossd.Fault{Status: 404}, oss.ErrNotFound},
			{ossd.Fault{Status: 404, Code: "NoSuchBucket"}, oss.ErrNoBucket},
			{ossd.Fault{Status: 501, Code: "NotImplemented"}, errOther},
			{ossd.Fault{Status: 400, Code: "InvalidArgument"}, errOther},
			{ossd.Fault{Status: 304}, errOther}, // not asked for
			{ossd.Fault{Status: 204}, nil},
			{ossd.Fault{Status: 206}, nil},
		} {
			srv.SetFault(ossd.Always(c.fault))
			srv.ResetCounts()
			_, err := r.Get(t.Context(), "k", oss.GetOptions{})
			f := c.fault
			switch u := (*oss.Unavailable)(nil); {
			case c.want == nil && !errors.As(err, &u):
				t.Errorf("%d %s: got %v, want Unavailable", f.Status, f.Code, err)
			case c.want == nil && f.Status >= 400 && (u.Status != f.Status || u.Code != f.Code || u.RetryAfter != f.RetryAfter || u.Endpoint != srv.Endpoint):
				t.Errorf("%d %s: got %+v", f.Status, f.Code, u)
			case c.want == errOther && kind(err) != errOther, c.want != nil && c.want != errOther && !errors.Is(err, c.want):
				t.Errorf("%d %s: got %v, want %v", f.Status, f.Code, err, c.want)
			}
			if !strings.Contains(err.Error(), "get k") || strings.Contains(err.Error(), KeySecret) {
				t.Errorf("%d %s: message %q", f.Status, f.Code, err)
			}
			if n := srv.Requests(); n != 1 {
				t.Errorf("%d %s: asked %d times, want once", f.Status, f.Code, n)
			}
		}
	})

	t.Run("denied", func(t *testing.T) {
		srv, _ := start(t)
		if err := srv.CreateBucket(Bucket, ossd.Private); err != nil {
			t.Fatal(err)
		}
		srv.AddKey(ossd.Key{ID: KeyID, Secret: "another one"})
		_, err := open(t, srv, oss.Network{}).Get(t.Context(), "k", oss.GetOptions{})
		wantErr(t, err, oss.ErrDenied, "get k")
	})

	t.Run("no bucket", func(t *testing.T) {
		_, err := open(t, Serve(t, ""), oss.Network{}).Get(t.Context(), "k", oss.GetOptions{})
		if !errors.Is(err, oss.ErrNoBucket) || errors.Is(err, oss.ErrNotFound) {
			t.Errorf("got %v, want ErrNoBucket and nothing else", err)
		}
	})

	t.Run("redirect to another host", func(t *testing.T) {
		srv, r := start(t)
		other := Serve(t, ossd.PublicRead)
		Fill(t, other, map[string]string{"k": "from another host"})
		other.ResetCounts()
		for _, status := range []int{301, 302, 303, 307, 308} {
			srv.SetFault(ossd.Always(ossd.Fault{Status: status, Location: other.Base + "/k?token=hush"}))
			_, err := r.Get(t.Context(), "k", oss.GetOptions{})
			if kind(err) != errOther || !strings.Contains(err.Error(), other.Endpoint) || strings.Contains(err.Error(), "hush") {
				t.Errorf("%d: got %v, want an error that names the other host without its query", status, err)
			}
		}
		if n := other.Requests(); n != 0 {
			t.Errorf("the other host was asked %d times", n)
		}
	})

	t.Run("cut", func(t *testing.T) {
		srv, r := start(t)
		for _, at := range []int64{0, 1, 100 << 10, int64(len(body)) - 1} {
			srv.SetFault(ossd.Always(ossd.Fault{Body: ossd.Cut, BodyAt: at}))
			_, err := get(t, r, oss.GetOptions{})
			wantUnavailable(t, err)
			_, err = get(t, r, oss.GetOptions{Offset: 10, Length: 200 << 10})
			if at < 200<<10 {
				wantUnavailable(t, err)
			}
		}
	})

	t.Run("wrong bit", func(t *testing.T) {
		srv, r := start(t)
		for _, at := range []int64{0, int64(len(body)) - 1} {
			srv.SetFault(ossd.Always(ossd.Fault{Body: ossd.Flip, BodyAt: at}))
			_, err := get(t, r, oss.GetOptions{})
			wantUnavailable(t, err)
			if !errors.Is(err, oss.ErrCorrupt) {
				t.Errorf("bit of byte %d: got %v, want ErrCorrupt", at, err)
			}
			// A reader that knows the size must not get all of it either.
			o, err := r.Get(t.Context(), "k", oss.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(o.Body, make([]byte, len(body))); !errors.Is(err, oss.ErrCorrupt) {
				t.Errorf("ReadFull, bit of byte %d: got %v, want ErrCorrupt", at, err)
			}
			o.Body.Close()
		}
	})

	t.Run("range ignored", func(t *testing.T) {
		srv, r := start(t)
		srv.SetFault(ossd.Always(ossd.Fault{IgnoreRange: true}))
		for _, o := range []oss.GetOptions{{Offset: 3}, {Offset: 3, Length: 4}, {Length: 5}, {Offset: 200 << 10, Length: 1 << 20}} {
			want := body[o.Offset:]
			if o.Length > 0 {
				want = want[:min(o.Length, int64(len(want)))]
			}
			if got, err := get(t, r, o); err != nil || string(got) != want {
				t.Errorf("%+v: got %d bytes, %v; want %d", o, len(got), err, len(want))
			}
		}
		_, err := r.Get(t.Context(), "k", oss.GetOptions{Offset: int64(len(body))})
		wantErr(t, err, oss.ErrRange, "k")
	})

	t.Run("silent", func(t *testing.T) {
		srv, _ := start(t)
		srv.SetFault(ossd.Always(ossd.Fault{Delay: time.Hour}))
		r := open(t, srv, oss.Network{Header: 20 * time.Millisecond})
		_, err := r.Get(t.Context(), "k", oss.GetOptions{})
		wantUnavailable(t, err)
	})

	t.Run("stalled", func(t *testing.T) {
		srv, _ := start(t)
		srv.SetFault(ossd.Always(ossd.Fault{Body: ossd.Stall, BodyAt: 100 << 10}))
		r := open(t, srv, oss.Network{Idle: 20 * time.Millisecond})
		got, err := get(t, r, oss.GetOptions{})
		wantUnavailable(t, err)
		if len(got) > 0 {
			t.Errorf("and %d bytes", len(got))
		}
	})

	t.Run("cancelled while silent", func(t *testing.T) {
		srv, r := start(t)
		ctx, cancel := context.WithCancel(t.Context())
		srv.SetFault(func(r *http.Request) ossd.Fault {
			cancel() // when the request has arrived
			return ossd.Fault{Delay: time.Hour}
		})
		_, err := r.Get(ctx, "k", oss.GetOptions{})
		wantErr(t, err, context.Canceled, "get k")
	})

	t.Run("deadline while stalled", func(t *testing.T) {
		srv, r := start(t)
		srv.SetFault(ossd.Always(ossd.Fault{Body: ossd.Stall, BodyAt: 10}))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, _, err := oss.ReadAll(ctx, r, "k", oss.GetOptions{}, 1<<20)
		wantErr(t, err, context.DeadlineExceeded, "get k")
	})

	t.Run("nobody there", func(t *testing.T) {
		srv, r := start(t)
		srv.Stop()
		_, err := r.Get(t.Context(), "k", oss.GetOptions{})
		wantUnavailable(t, err)
	})
}

// errOther stands for an error that is none of the contract's.
var errOther = errors.New("an error that is none of the contract's")

// kind is errOther for an error that the contract has no name for.
func kind(err error) error {
	var u *oss.Unavailable
	for _, known := range []error{nil, oss.ErrNotFound, oss.ErrNoBucket, oss.ErrNotModified, oss.ErrRange, oss.ErrDenied, oss.ErrExists, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return known
		}
	}
	if errors.As(err, &u) {
		return u
	}
	return errOther
}

// wantUnavailable also checks that our own time-outs don't look like the
// caller's.
func wantUnavailable(t *testing.T, err error) {
	t.Helper()
	var u *oss.Unavailable
	if !errors.As(err, &u) {
		t.Errorf("got %v, want Unavailable", err)
		return
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		t.Errorf("%v looks like the caller's context, which lives", err)
	}
	if u.Op != "get k" || !strings.HasPrefix(u.Endpoint, "http://127.0.0.1:") {
		t.Errorf("%+v does not say what was asked of whom", u)
	}
}
