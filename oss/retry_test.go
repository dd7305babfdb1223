package oss

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// scripted is a store in memory whose calls meet one error after the other.
type scripted struct {
	mu      sync.Mutex
	objects map[string]string
	// errs are met by the calls in turn; nil lets one through. What is
	// wrapped in lost was done all the same.
	errs  []error
	calls []string
	// breaks are offsets at which bodies break, one for each Get.
	breaks []int
	// flip damages the byte there in every body.
	flip   int
	change func() // before each Get
}

type lost struct{ error }

func (e lost) Unwrap() error { return e.error }

func (s *scripted) do(call string, f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
	var err error
	if len(s.errs) > 0 {
		err, s.errs = s.errs[0], s.errs[1:]
	}
	var l lost
	if err != nil && !errors.As(err, &l) {
		return err
	}
	if did := f(); did != nil {
		return did
	}
	return err
}

func (s *scripted) Get(ctx context.Context, key string, opts GetOptions) (o *Object, err error) {
	if s.change != nil {
		s.change()
	}
	err = s.do(fmt.Sprintf("get %d+%d", opts.Offset, opts.Length), func() error {
		body, ok := s.objects[key]
		if !ok {
			return ErrNotFound
		}
		sum := crc64.Checksum([]byte(body), crcTable)
		o = &Object{Info: Info{Key: key, ETag: strconv.FormatUint(sum, 16), Size: int64(len(body)), CRC64: strconv.FormatUint(sum, 10)}}
		raw := []byte(body)
		if s.flip > 0 {
			raw[s.flip] ^= 1
		}
		raw = raw[opts.Offset:]
		if opts.Length > 0 {
			raw = raw[:min(opts.Length, int64(len(raw)))]
		}
		var r io.Reader = bytes.NewReader(raw)
		if len(s.breaks) > 0 {
			if at := s.breaks[0]; at >= 0 {
				r = io.MultiReader(bytes.NewReader(raw[:at]), broken{key})
			}
			s.breaks = s.breaks[1:]
		}
		o.Body = io.NopCloser(r)
		return nil
	})
	return o, err
}

type broken struct{ key string }

func (b broken) Read([]byte) (int, error) {
	return 0, &Unavailable{Op: "get " + b.key, Err: io.ErrUnexpectedEOF}
}

func (s *scripted) Put(_ context.Context, key string, body []byte, _ PutOptions) error {
	return s.do("put", func() error { s.objects[key] = string(body); return nil })
}

func (s *scripted) Create(_ context.Context, key string, body []byte, _ PutOptions) error {
	return s.do("create", func() error {
		if _, ok := s.objects[key]; ok {
			return ErrExists
		}
		s.objects[key] = string(body)
		return nil
	})
}

func (s *scripted) List(context.Context, string, int) (l []Info, err error) {
	err = s.do("list", func() error { l = []Info{{Key: "k"}}; return nil })
	return l, err
}

func (s *scripted) Delete(_ context.Context, key string) error {
	return s.do("delete", func() error { delete(s.objects, key); return nil })
}

func (s *scripted) CheckCreateOnly(context.Context) error {
	return s.do("check", func() error { return nil })
}

// quick are options under which nothing sleeps; pauses collects what would
// have been slept.
func quick(pauses *[]time.Duration) RetryOptions {
	return RetryOptions{
		Attempts: 4, Base: time.Second, Max: 3 * time.Second, MaxWait: 10 * time.Second,
		random: func() float64 { return 0.5 },
		sleep: func(ctx context.Context, d time.Duration) error {
			if pauses != nil {
				*pauses = append(*pauses, d)
			}
			return ctx.Err()
		},
	}
}

var down error = &Unavailable{Op: "do", Endpoint: "http://oss", Status: 503, Code: "Busy"}

func TestRetryCountsAttempts(t *testing.T) {
	for _, c := range []struct {
		name  string
		errs  []error
		want  error
		calls int
	}{
		{"at once", nil, nil, 1},
		{"third time", []error{down, down}, nil, 3},
		{"last time", []error{down, down, down}, nil, 4},
		{"never", []error{down, down, down, down, down}, down, 4},
		{"denied", []error{ErrDenied}, ErrDenied, 1},
		{"then denied", []error{down, ErrDenied}, ErrDenied, 2},
		{"no bucket", []error{ErrNoBucket}, ErrNoBucket, 1},
		{"versioned", []error{ErrVersioned}, ErrVersioned, 1},
		{"cancelled", []error{context.Canceled}, context.Canceled, 1},
		{"unnamed", []error{io.ErrNoProgress}, io.ErrNoProgress, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			for op, call := range map[string]func(context.Context, Store) error{
				"get":    func(ctx context.Context, s Store) error { _, err := s.Get(ctx, "k", GetOptions{}); return err },
				"put":    func(ctx context.Context, s Store) error { return s.Put(ctx, "k", nil, PutOptions{}) },
				"list":   func(ctx context.Context, s Store) error { _, err := s.List(ctx, "", 0); return err },
				"delete": func(ctx context.Context, s Store) error { return s.Delete(ctx, "k") },
				"check":  CheckCreateOnly,
			} {
				s := &scripted{objects: map[string]string{"k": ""}, errs: slices.Clone(c.errs)}
				err := call(t.Context(), Retry(s, quick(nil)))
				if c.want == down {
					var u *Unavailable
					if !errors.As(err, &u) || u.Attempts != 4 || !strings.Contains(err.Error(), "answered 503 Busy (tried 4 times)") {
						t.Errorf("%s: got %v, want Unavailable after 4 tries", op, err)
					}
				} else if !errors.Is(err, c.want) {
					t.Errorf("%s: got %v, want %v", op, err, c.want)
				}
				if len(s.calls) != c.calls {
					t.Errorf("%s: called %q, want %d calls", op, s.calls, c.calls)
				}
			}
		})
	}
}

func TestRetryPauses(t *testing.T) {
	after := func(d time.Duration) error { return &Unavailable{Op: "do", RetryAfter: d} }
	for _, c := range []struct {
		name     string
		errs     []error
		deadline time.Duration
		want     []time.Duration
		fails    bool
	}{
		{"jitter doubles up to its end", []error{down, down, down}, 0, []time.Duration{500 * time.Millisecond, time.Second, 1500 * time.Millisecond}, false},
		{"asked for", []error{after(7 * time.Second)}, 0, []time.Duration{7500 * time.Millisecond}, false},
		{"asked for too much", []error{after(11 * time.Second)}, 0, nil, true},
		{"would outlast the deadline", []error{after(7 * time.Second)}, 5 * time.Second, nil, true},
		{"within the deadline", []error{after(7 * time.Second)}, time.Hour, []time.Duration{7500 * time.Millisecond}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := t.Context()
			if c.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.deadline)
				defer cancel()
			}
			var pauses []time.Duration
			told := 0
			o := quick(&pauses)
			o.Notify = func(err error, attempt int, pause time.Duration) { told++ }
			err := Retry(&scripted{objects: map[string]string{}, errs: c.errs}, o).Put(ctx, "k", nil, PutOptions{})
			var u *Unavailable
			if c.fails != errors.As(err, &u) || !slices.Equal(pauses, c.want) || told != len(pauses) {
				t.Errorf("got %v after %v, told %d times; want %v", err, pauses, told, c.want)
			}
		})
	}
}

func TestRetryEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o := RetryOptions{Base: time.Hour, random: func() float64 { return 1 }, Notify: func(error, int, time.Duration) { cancel() }}
	o.Max = time.Hour
	s := &scripted{objects: map[string]string{}, errs: []error{down, down}}
	err := Retry(s, o).Put(ctx, "k", nil, PutOptions{})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "503") || len(s.calls) != 1 {
		t.Errorf("got %v after %q, want the cancellation and what came before", err, s.calls)
	}
}

func TestRetryDefaults(t *testing.T) {
	var o RetryOptions
	o.defaults()
	if o.Attempts != 4 || o.Base != 200*time.Millisecond || o.Max != 5*time.Second || o.MaxWait != 30*time.Second {
		t.Errorf("got %+v", o)
	}
	for range 1000 {
		if r := o.random(); r < 0 || r >= 1 {
			t.Fatalf("random %v", r)
		}
	}
}

func TestRetryCreate(t *testing.T) {
	lostAnswer := lost{down}
	for _, c := range []struct {
		name  string
		there string // before, "" for nothing
		errs  []error
		want  error
		calls string
	}{
		{"new", "", nil, nil, "create"},
		{"there", "ours", nil, ErrExists, "create"}, // equal content, but not by this call
		{"busy", "", []error{down}, nil, "create create"},
		{"answer lost", "", []error{lostAnswer}, nil, "create create get 0+0"},
		{"busy, and there", "other", []error{down}, ErrExists, "create create get 0+0"},
		{"busy, and a longer one there", "ours and more", []error{down}, ErrExists, "create create get 0+0"},
		{"answer lost, reading is hard", "", []error{lostAnswer, nil, down, down}, nil, "create create get 0+0 get 0+0 get 0+0"},
		{"answer lost, reading is denied", "", []error{lostAnswer, nil, ErrDenied}, ErrDenied, "create create get 0+0"},
		{"answer lost, reading fails", "", []error{lostAnswer, nil, down, down, down, down}, down, "create create get 0+0 get 0+0 get 0+0 get 0+0"},
		{"versioned", "", []error{ErrVersioned}, ErrVersioned, "create"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &scripted{objects: map[string]string{}, errs: c.errs}
			if c.there != "" {
				s.objects["k"] = c.there
			}
			err := Retry(s, quick(nil)).Create(t.Context(), "k", []byte("ours"), PutOptions{})
			var u *Unavailable
			if c.want == down && !errors.As(err, &u) || c.want != down && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if got := strings.Join(s.calls, " "); got != c.calls {
				t.Errorf("called %s, want %s", got, c.calls)
			}
		})
	}
}

func TestRetryBody(t *testing.T) {
	body := strings.Repeat("0123456789", 10)
	for _, c := range []struct {
		name   string
		opts   GetOptions
		breaks []int
		errs   []error
		want   string // or what the error says
		calls  string
	}{
		{"whole", GetOptions{}, nil, nil, body, "get 0+0"},
		{"broken at once", GetOptions{}, []int{0}, nil, body, "get 0+0 get 0+0"},
		{"broken twice", GetOptions{}, []int{30, 20}, nil, body, "get 0+0 get 30+0 get 50+0"},
		{"broken at the end", GetOptions{}, []int{99}, nil, body, "get 0+0 get 99+0"},
		{"broken range", GetOptions{Offset: 10, Length: 50}, []int{20, 10}, nil, body[10:60], "get 10+50 get 30+30 get 40+20"},
		{"broken tail", GetOptions{Offset: 10}, []int{20}, nil, body[10:], "get 10+0 get 30+0"},
		{"broken, then busy", GetOptions{}, []int{30}, []error{nil, down}, body, "get 0+0 get 30+0 get 30+0"},
		{"busy, then broken", GetOptions{}, []int{30, 30}, []error{down}, body, "get 0+0 get 0+0 get 30+0 get 60+0"},
		{"broken too often", GetOptions{}, []int{10, 10, 10, 10}, nil, "tried 4 times", "get 0+0 get 10+0 get 20+0 get 30+0"},
		{"gone meanwhile", GetOptions{}, []int{30}, []error{nil, ErrNotFound}, "no such object", "get 0+0 get 30+0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &scripted{objects: map[string]string{"k": body}, breaks: c.breaks, errs: c.errs}
			got, _, err := ReadAll(t.Context(), RetryReader(s, quick(nil)), "k", c.opts, 1000)
			if err != nil && !strings.Contains(err.Error(), c.want) || err == nil && string(got) != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
			if got := strings.Join(s.calls, " "); got != c.calls {
				t.Errorf("called %s, want %s", got, c.calls)
			}
		})
	}
}

func TestRetryBodyOfAChangedObject(t *testing.T) {
	s := &scripted{objects: map[string]string{"k": "0123456789"}, breaks: []int{5}}
	n := 0
	s.change = func() {
		if n++; n == 2 {
			s.objects["k"] = "abcdefghij"
		}
	}
	got, _, err := ReadAll(t.Context(), RetryReader(s, quick(nil)), "k", GetOptions{}, 100)
	if !errors.Is(err, ErrChanged) || got != nil {
		t.Errorf("got %q, %v; want ErrChanged", got, err)
	}
}

// TestRetryBodyIsChecked: the parts of a continued transfer have no checksum
// of their own.
func TestRetryBodyIsChecked(t *testing.T) {
	s := &scripted{objects: map[string]string{"k": "0123456789"}, breaks: []int{5}, flip: 7}
	o, err := RetryReader(s, quick(nil)).Get(t.Context(), "k", GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(o.Body, make([]byte, 10)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if _, err := o.Body.Read(make([]byte, 1)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("again: got %v, want ErrCorrupt", err)
	}
}

func TestRetryBodyEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := &scripted{objects: map[string]string{"k": "0123456789"}, breaks: []int{5}}
	o, err := RetryReader(s, quick(nil)).Get(ctx, "k", GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(o.Body); !errors.Is(err, context.Canceled) || len(s.calls) != 1 {
		t.Errorf("got %v after %q, want the cancellation", err, s.calls)
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		name, value string
		want        time.Duration
	}{
		{"Retry-After", "7", 7 * time.Second}, {"Retry-After", " 7 ", 7 * time.Second}, {"Retry-After", "-7", 0}, {"Retry-After", "soon", 0},
		{"Retry-After", "Fri, 02 Jan 2026 03:04:35 GMT", 30 * time.Second}, {"Retry-After", "Thu, 01 Jan 2026 03:04:35 GMT", 0},
		{"Retry-After", "2000000000", 24 * time.Hour}, {"Retry-After", "99999999999999999999", 0},
		{"X-Oss-Qos-Delay-Time", "250", 250 * time.Millisecond}, {"X-Oss-Qos-Delay-Time", "x", 0},
	} {
		h := http.Header{}
		h.Set(c.name, c.value)
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("%s: %s: got %s, want %s", c.name, c.value, got, c.want)
		}
	}
}

// TestIdleTimeIsTheReadersOnly: what the consumer does between two reads does
// not run the watch.
func TestIdleTimeIsTheReadersOnly(t *testing.T) {
	watch := time.AfterFunc(time.Hour, func() {})
	watch.Stop()
	b := &receivedBody{ReadCloser: io.NopCloser(strings.NewReader("hello")), ctx: t.Context(), cancel: func(error) {}, watch: watch, idle: time.Hour}
	if _, err := b.Read(make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	if watch.Stop() {
		t.Error("the watch runs between reads")
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, v := range []string{"bytes 0-9/100", "bytes 0-9/*", "bytes 9-0/10", "bytes 0-10/10", "", "bytes", "bytes -1-2/3", "bytes 0-+9/100"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		first, last, size, err := parseContentRange(v)
		if err == nil && (first < 0 || last < first || size >= 0 && last >= size || size < -1) {
			t.Errorf("%q: %d-%d/%d", v, first, last, size)
		}
	})
}

// FuzzParseAnswer: whatever a server says becomes one short printable line.
func FuzzParseAnswer(f *testing.F) {
	f.Add(403, "<Error><Code>AccessDenied</Code><Message>no</Message><RequestId>1</RequestId></Error>", "https://u:p@host/x?token=hush")
	f.Add(503, "<html>", "%zz")
	f.Add(400, "<Error><Code>\n\x1b[31m</Code></Error>", "")
	f.Fuzz(func(t *testing.T, status int, body, location string) {
		h := http.Header{"Location": {location}, "X-Oss-Err": {body}, "X-Oss-Request-Id": {body}}
		a := parseAnswer(status, h, []byte(body))
		err := Call{Op: "get k", Endpoint: "http://oss"}.Fail(context.Background(), a)
		if err == nil {
			t.Fatal("no error")
		}
		if s := err.Error(); len(s) > 1500 || strings.ContainsAny(s, "\n\r\x1b\x00") {
			t.Errorf("status %d, body %q, location %q: message %q", status, body, location, s)
		}
	})
}
