package osstest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/kuroko-faas/kuroko/oss"
)

// oddKey is legal, and goes wrong wherever somebody escapes once too often or
// not often enough.
const oddKey = "dir/a b+%2F&c=d?e#f~中.json"

// badKeys are refused before anybody is asked.
var badKeys = []string{"", "/a", "a/", "a//b", "../a", "a/../b", "./a", ".", `a\b`, "a\nb", "a\x00", "a\x7f", "\xff", strings.Repeat("k", oss.MaxKey+1)}

// TestReader checks oss.Reader's promises. open returns a reader over exactly
// these objects.
func TestReader(t *testing.T, open func(t *testing.T, objects map[string]string) oss.Reader) {
	big := strings.Repeat("0123456789abcdef", 64<<10)                 // 1 MiB
	long := strings.Repeat("k", 450) + "/" + strings.Repeat("k", 450) // leaves room for a prefix
	objects := map[string]string{"a": "hello", "empty": "", "big": big, oddKey: "odd", long: "long"}
	r := open(t, objects)

	t.Run("whole", func(t *testing.T) {
		for key, want := range objects {
			got, info, err := oss.ReadAll(t.Context(), r, key, oss.GetOptions{}, 2<<20)
			if err != nil {
				t.Errorf("get %.40q: %v", key, err)
				continue
			}
			if string(got) != want {
				t.Errorf("get %.40q: got %d bytes %.20q, want %d", key, len(got), got, len(want))
			}
			if info.Key != key || info.Size != int64(len(want)) || info.ETag == "" || info.Modified.IsZero() {
				t.Errorf("get %.40q: info %+v lacks something", key, info)
			}
		}
	})

	t.Run("not found", func(t *testing.T) {
		_, err := r.Get(t.Context(), "nope/nothing", oss.GetOptions{})
		wantErr(t, err, oss.ErrNotFound, "nope/nothing")
	})

	t.Run("bad key", func(t *testing.T) {
		for _, key := range badKeys {
			if _, err := r.Get(t.Context(), key, oss.GetOptions{}); err == nil || errors.Is(err, oss.ErrNotFound) {
				t.Errorf("get %.40q: got %v, want a refusal of the key", key, err)
			}
		}
	})

	t.Run("not modified", func(t *testing.T) {
		_, info := read(t, r, "a", oss.GetOptions{})
		_, err := r.Get(t.Context(), "a", oss.GetOptions{IfNoneMatch: info.ETag})
		wantErr(t, err, oss.ErrNotModified, "a")
		got, _ := read(t, r, "a", oss.GetOptions{IfNoneMatch: `"00000000000000000000000000000000"`})
		if got != "hello" {
			t.Errorf("with another ETag: got %q, want the object", got)
		}
		_, err = r.Get(t.Context(), "nope", oss.GetOptions{IfNoneMatch: info.ETag})
		wantErr(t, err, oss.ErrNotFound, "nope")
	})

	t.Run("range", func(t *testing.T) {
		for _, c := range []struct {
			offset, length int64
			want           string
		}{
			{0, 1, "h"}, {1, 3, "ell"}, {1, 0, "ello"}, {0, 5, "hello"}, {0, 500, "hello"}, {4, 1, "o"},
			{3, math.MaxInt64, "lo"}, {0, math.MaxInt64, "hello"}, {2, -1, "llo"}, {0, -1, "hello"}, {0, math.MinInt64, "hello"},
		} {
			got, info := read(t, r, "a", oss.GetOptions{Offset: c.offset, Length: c.length})
			if got != c.want || info.Size != 5 {
				t.Errorf("offset %d, length %d: got %q of %d, want %q of 5", c.offset, c.length, got, info.Size, c.want)
			}
		}
		for _, c := range [][2]int64{{5, 0}, {5, 1}, {6, 1}, {math.MaxInt64, 0}, {math.MaxInt64, math.MaxInt64}, {-1, 0}, {-1, 3}, {math.MinInt64, 0}} {
			o, err := r.Get(t.Context(), "a", oss.GetOptions{Offset: c[0], Length: c[1]})
			if err == nil {
				o.Body.Close()
			}
			if !errors.Is(err, oss.ErrRange) {
				t.Errorf("offset %d, length %d of 5 bytes: got %v, want ErrRange", c[0], c[1], err)
			}
		}
	})

	t.Run("too large", func(t *testing.T) {
		_, _, err := oss.ReadAll(t.Context(), r, "big", oss.GetOptions{}, 1<<20-1)
		wantErr(t, err, oss.ErrTooLarge, "big")
		if _, _, err := oss.ReadAll(t.Context(), r, "big", oss.GetOptions{}, 1<<20); err != nil {
			t.Errorf("exactly as large as allowed: %v", err)
		}
	})

	t.Run("cancelled before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := r.Get(ctx, "a", oss.GetOptions{})
		wantErr(t, err, context.Canceled, "a")
	})

	t.Run("cancelled in the body", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o, err := r.Get(ctx, "big", oss.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Body.Close()
		if _, err := io.ReadFull(o.Body, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		cancel()
		_, err = io.Copy(io.Discard, o.Body)
		wantErr(t, err, context.Canceled, "big")
		if _, again := o.Body.Read(make([]byte, 1)); again == nil || again == io.EOF {
			t.Errorf("read after the error: got %v, want the error again", again)
		}
	})

	t.Run("closed early", func(t *testing.T) {
		o, err := r.Get(t.Context(), "big", oss.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		o.Body.Close()
		if n, err := o.Body.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("read after close: got %d, %v, want an error", n, err)
		}
		if got, _ := read(t, r, "a", oss.GetOptions{}); got != "hello" {
			t.Errorf("the reader after an early close: got %q", got)
		}
	})

	t.Run("small reads", func(t *testing.T) {
		o, err := r.Get(t.Context(), "a", oss.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Body.Close()
		var got bytes.Buffer
		if _, err := io.CopyBuffer(&got, struct{ io.Reader }{o.Body}, make([]byte, 1)); err != nil || got.String() != "hello" {
			t.Errorf("byte by byte: got %q, %v", got.String(), err)
		}
		if n, err := o.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the end: got %d, %v, want io.EOF again", n, err)
		}
	})

	t.Run("concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if got, _, err := oss.ReadAll(t.Context(), r, "big", oss.GetOptions{}, 2<<20); err != nil || string(got) != big {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
			})
		}
		wg.Wait()
	})
}

func read(t *testing.T, r oss.Reader, key string, opts oss.GetOptions) (string, oss.Info) {
	t.Helper()
	got, info, err := oss.ReadAll(t.Context(), r, key, opts, 4<<20)
	if err != nil {
		t.Fatalf("get %s %+v: %v", key, opts, err)
	}
	return string(got), info
}

// wantErr checks the kind of an error, and that it names the key.
func wantErr(t *testing.T, err, want error, key string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	} else if !strings.Contains(err.Error(), key) {
		t.Errorf("%q does not name %q", err, key)
	}
}
