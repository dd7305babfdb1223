package osstest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kuroko-faas/kuroko/oss"
)

// TestStore checks oss.Store's promises, [TestReader]'s among them. open
// returns an empty store.
func TestStore(t *testing.T, open func(t *testing.T) oss.Store) {
	t.Run("reader", func(t *testing.T) {
		TestReader(t, func(t *testing.T, objects map[string]string) oss.Reader {
			s := open(t)
			for key, body := range objects {
				put(t, s, key, body)
			}
			return s
		})
	})

	t.Run("put replaces", func(t *testing.T) {
		s := open(t)
		for _, body := range []string{"one", "two, which is longer", "", "x"} {
			put(t, s, "k", body)
			if got, _ := read(t, s, "k", oss.GetOptions{}); got != body {
				t.Errorf("after put %q: got %q", body, got)
			}
		}
	})

	t.Run("put is whole", func(t *testing.T) {
		s := open(t)
		bodies := []string{strings.Repeat("a", 300<<10), strings.Repeat("b", 200<<10)}
		put(t, s, "k", bodies[0])
		var wg sync.WaitGroup
		for w := range 2 {
			wg.Go(func() {
				for range 5 {
					if err := s.Put(t.Context(), "k", []byte(bodies[w]), oss.PutOptions{}); err != nil {
						t.Errorf("put: %v", err)
					}
				}
			})
		}
		for range 10 {
			if got, _ := read(t, s, "k", oss.GetOptions{}); !slices.Contains(bodies, got) {
				t.Errorf("read a mixture of %d bytes", len(got))
			}
		}
		wg.Wait()
	})

	t.Run("create only", func(t *testing.T) {
		s := open(t)
		if err := oss.CheckCreateOnly(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if err := s.Create(t.Context(), "k", []byte("first"), oss.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, body := range []string{"second", "first"} {
			wantErr(t, s.Create(t.Context(), "k", []byte(body), oss.PutOptions{}), oss.ErrExists, "k")
		}
		if got, _ := read(t, s, "k", oss.GetOptions{}); got != "first" {
			t.Errorf("got %q, want the first", got)
		}
		if err := s.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if err := s.Create(t.Context(), "k", nil, oss.PutOptions{}); err != nil {
			t.Errorf("create after delete: %v", err)
		}
	})

	t.Run("one creator wins", func(t *testing.T) {
		s := open(t)
		var won atomic.Int32
		var winner atomic.Value
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				body := fmt.Sprintf("racer %d", i)
				switch err := s.Create(t.Context(), "lock", []byte(body), oss.PutOptions{}); {
				case err == nil:
					won.Add(1)
					winner.Store(body)
				case !errors.Is(err, oss.ErrExists):
					t.Errorf("racer %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if got, _ := read(t, s, "lock", oss.GetOptions{}); won.Load() != 1 || got != winner.Load() {
			t.Errorf("%d racers won, %q is there, want one and %q", won.Load(), got, winner.Load())
		}
	})

	t.Run("list", func(t *testing.T) {
		s := open(t)
		if got := keys(t, s, "", 0); len(got) != 0 {
			t.Errorf("an empty store lists %q", got)
		}
		all := []string{"a", "a/b", "a/b/c", "a0", "aa", oddKey, "z"}
		slices.Sort(all)
		for _, k := range all {
			put(t, s, k, k)
		}
		for _, c := range []struct {
			prefix string
			limit  int
			want   []string
		}{
			{"", 0, all}, {"", -1, all}, {"", 3, all[:3]}, {"", 100, all}, {"a/", 0, []string{"a/b", "a/b/c"}}, {"a/b", 0, []string{"a/b", "a/b/c"}},
			{"a", 2, all[:2]}, {"dir/", 0, []string{oddKey}}, {"nope", 0, nil}, {"zz", 5, nil},
		} {
			if got := keys(t, s, c.prefix, c.limit); !slices.Equal(got, c.want) {
				t.Errorf("prefix %q, limit %d: got %q, want %q", c.prefix, c.limit, got, c.want)
			}
		}
		list, err := s.List(t.Context(), "z", 1)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		_, info := read(t, s, "z", oss.GetOptions{})
		if l := list[0]; l.Size != 1 || l.ETag != info.ETag || l.Modified.Sub(info.Modified).Abs().Seconds() > 1 {
			t.Errorf("the list says %+v, the object %+v", l, info)
		}
	})

	t.Run("delete", func(t *testing.T) {
		s := open(t)
		put(t, s, "k", "x")
		put(t, s, "k/below", "y")
		for range 2 {
			if err := s.Delete(t.Context(), "k"); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		_, err := s.Get(t.Context(), "k", oss.GetOptions{})
		wantErr(t, err, oss.ErrNotFound, "k")
		if got := keys(t, s, "", 0); !slices.Equal(got, []string{"k/below"}) {
			t.Errorf("left over: %q", got)
		}
	})

	t.Run("bad key", func(t *testing.T) {
		s := open(t)
		for _, key := range badKeys {
			if s.Put(t.Context(), key, nil, oss.PutOptions{}) == nil || s.Create(t.Context(), key, nil, oss.PutOptions{}) == nil || s.Delete(t.Context(), key) == nil {
				t.Errorf("key %.40q was taken", key)
			}
		}
		if got := keys(t, s, "", 0); len(got) != 0 {
			t.Errorf("written all the same: %q", got)
		}
	})

	t.Run("cancelled", func(t *testing.T) {
		s := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		wantErr(t, s.Put(ctx, "k", []byte("x"), oss.PutOptions{}), context.Canceled, "k")
		wantErr(t, s.Create(ctx, "k", []byte("x"), oss.PutOptions{}), context.Canceled, "k")
		wantErr(t, s.Delete(ctx, "k"), context.Canceled, "k")
		_, err := s.List(ctx, "k", 0)
		wantErr(t, err, context.Canceled, "k")
		if err := oss.CheckCreateOnly(ctx, s); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("check: %v", err)
		}
		if got := keys(t, s, "", 0); len(got) != 0 {
			t.Errorf("written all the same: %q", got)
		}
	})
}

// TestManyKeys lists more keys than the service gives at once. It is apart
// from [TestStore] because writing them takes a while.
func TestManyKeys(t *testing.T, open func(t *testing.T) oss.Store) {
	if testing.Short() {
		t.Skip("writes 1100 objects")
	}
	s := open(t)
	var want []string
	for i := range 1100 { // more than the service lists at once
		want = append(want, fmt.Sprintf("many/%04d", i))
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(want, 275) {
		wg.Go(func() {
			for _, k := range part {
				if err := s.Put(t.Context(), k, nil, oss.PutOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, limit := range []int{0, 1000, 1001, 1100, 5000} {
		n := len(want)
		if limit > 0 {
			n = min(n, limit)
		}
		if got := keys(t, s, "many/", limit); !slices.Equal(got, want[:n]) {
			t.Errorf("limit %d: got %d keys, want %d", limit, len(got), n)
		}
	}
}

func put(t *testing.T, s oss.Store, key, body string) {
	t.Helper()
	if err := s.Put(t.Context(), key, []byte(body), oss.PutOptions{}); err != nil {
		t.Fatalf("put %.40q: %v", key, err)
	}
}

func keys(t *testing.T, s oss.Store, prefix string, limit int) []string {
	t.Helper()
	list, err := s.List(t.Context(), prefix, limit)
	if err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	var got []string
	for _, i := range list {
		got = append(got, i.Key)
	}
	return got
}
