package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

// quick is a client that waits so little that tests don't notice.
func quick(o Options) *Session {
	o.Delay = time.Microsecond
	return New(o).Session()
}

func blobOf(content string) Blob {
	sum := sha256.Sum256([]byte(content))
	return Blob{Title: "test layer", Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}, Size: int64(len(content)),
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
}

func repoOf(t testing.TB, srv *registrytest.Server, path string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(srv.Host + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func manifestOf(blobs ...Blob) []byte {
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: blobs[0].Digest, Size: blobs[0].Size}}
	for _, b := range blobs[1:] {
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCILayer, Digest: b.Digest, Size: b.Size})
	}
	var buf bytes.Buffer
	fmt.Fprintf(&buf, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[`,
		m.MediaType, m.Config.MediaType, m.Config.Digest, m.Config.Size)
	for i, l := range m.Layers {
		if i > 0 {
			buf.WriteByte(',')
		}
		fmt.Fprintf(&buf, `{"mediaType":%q,"digest":%q,"size":%d}`, l.MediaType, l.Digest, l.Size)
	}
	buf.WriteString("]}")
	return buf.Bytes()
}

func TestPushAndReadBack(t *testing.T) {
	srv := registrytest.New(t)
	repo := repoOf(t, srv, "team/app")
	s := quick(Options{})
	cfg, layer := blobOf("{}"), blobOf(strings.Repeat("layer ", 1000))
	for _, b := range []Blob{cfg, layer} {
		if mounted, err := s.Push(t.Context(), repo, b, nil); err != nil || mounted {
			t.Fatalf("push: %v, mounted %v", err, mounted)
		}
	}
	raw := manifestOf(cfg, layer)
	tag := repo.Tag("v1")
	if err := s.PutManifest(t.Context(), tag, types.OCIManifestSchema1, raw); err != nil {
		t.Fatal(err)
	}
	if got := s.Requests(); got != 5 {
		t.Errorf("pushing two blobs and a manifest took %d requests, want 5: %v", got, srv.Requests())
	}
	if got, want := s.Sent(), cfg.Size+layer.Size+int64(len(raw)); got != want {
		t.Errorf("sent %d bytes, want %d", got, want)
	}
	d, err := s.Head(t.Context(), tag, false)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(t.Context(), repo.Digest(d.Digest.String()))
	if err != nil || !bytes.Equal(m.Raw, raw) || m.MediaType != types.OCIManifestSchema1 {
		t.Errorf("manifest: %q, %v", m.Raw, err)
	}
	r, err := s.Blob(t.Context(), repo, layer.Digest, layer.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || len(got) != int(layer.Size) {
		t.Errorf("blob: %d bytes, %v", len(got), err)
	}
}

func TestMissingThings(t *testing.T) {
	srv := registrytest.New(t)
	repo := repoOf(t, srv, "team/app")
	s := quick(Options{})
	if _, err := s.Head(t.Context(), repo.Tag("none"), false); !errors.Is(err, ErrNotFound) {
		t.Errorf("Head: %v", err)
	}
	if _, err := s.Manifest(t.Context(), repo.Tag("none")); !errors.Is(err, ErrNotFound) {
		t.Errorf("Manifest: %v", err)
	}
	if _, err := s.Blob(t.Context(), repo, blobOf("x").Digest, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("Blob: %v", err)
	}
	if ok, err := s.HasBlob(t.Context(), repo, blobOf("x").Digest); ok || err != nil {
		t.Errorf("HasBlob: %v, %v", ok, err)
	}
	err := s.PutManifest(t.Context(), repo.Tag("v1"), types.OCIManifestSchema1, manifestOf(blobOf("{}"), blobOf("x")))
	if !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("PutManifest: %v", err)
	}
	if want := "registry: push manifest v1 of team/app: " + srv.Host + " answered 400 Bad Request (MANIFEST_BLOB_UNKNOWN): manifest references unknown blob sha256:"; !strings.HasPrefix(fmt.Sprint(err), want) {
		t.Errorf("got  %v\nwant %s…", err, want)
	}
	if got := s.Requests(); got != 5 {
		t.Errorf("%d requests: what is missing must not be asked for twice", got)
	}
}

func TestMount(t *testing.T) {
	srv := registrytest.New(t)
	from, to := repoOf(t, srv, "base/node"), repoOf(t, srv, "team/app")
	s := quick(Options{})
	b := blobOf("base layer")
	if _, err := s.Push(t.Context(), from, b, nil); err != nil {
		t.Fatal(err)
	}
	none := b
	none.Open = nil
	if mounted, err := s.Push(t.Context(), to, none, &from); err != nil || !mounted {
		t.Fatalf("mounted %v, %v", mounted, err)
	}
	// 202 on mount: the upload that was opened is used.
	other := blobOf("unknown in from")
	srv.Reset()
	if mounted, err := s.Push(t.Context(), to, other, &from); err != nil || mounted {
		t.Fatalf("mounted %v, %v", mounted, err)
	}
	if got := len(srv.Requests()); got != 2 {
		t.Errorf("a refused mount took %d requests, want 2", got)
	}
	// 202 without content to send: the upload is given up.
	lost := blobOf("nowhere")
	lost.Open = nil
	srv.Reset()
	if _, err := s.Push(t.Context(), to, lost, &from); !errors.Is(err, ErrNoContent) {
		t.Errorf("got %v", err)
	}
	if r := srv.Requests(); len(r) != 2 || r[1].Method != http.MethodDelete {
		t.Errorf("got %v", r)
	}
	// A source that may not be read does not stop the push.
	srv.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Has("mount") {
			registrytest.Refuse(w, http.StatusForbidden, "DENIED", "no")
			return true
		}
		return false
	})
	if mounted, err := s.Push(t.Context(), to, blobOf("forbidden"), &from); err != nil || mounted {
		t.Errorf("mounted %v, %v", mounted, err)
	}
}

func TestCopyStreamsBetweenRegistries(t *testing.T) {
	a, b := registrytest.New(t), registrytest.New(t)
	from, to := repoOf(t, a, "base/node"), repoOf(t, b, "team/app")
	s := quick(Options{})
	layer := blobOf(strings.Repeat("base ", 50000))
	if _, err := s.Push(t.Context(), from, layer, nil); err != nil {
		t.Fatal(err)
	}
	d := v1.Descriptor{Digest: layer.Digest, Size: layer.Size}
	if _, err := s.Push(t.Context(), to, s.Copy(from, d, "base layer"), &from); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.HasBlob(t.Context(), to, layer.Digest); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	// The source is damaged once: the whole copy starts again.
	var n atomic.Int32
	a.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && n.Add(1) == 1 {
			w.Write([]byte("shorter"))
			return true
		}
		return false
	})
	b.Forget("team/app", layer.Digest)
	if _, err := s.Push(t.Context(), to, s.Copy(from, d, "base layer"), nil); err != nil {
		t.Error(err)
	}
	// The source is gone: said at once.
	a.Fault(nil)
	a.Forget("base/node", layer.Digest)
	a.Reset()
	_, err := s.Push(t.Context(), to, s.Copy(from, d, "base layer"), nil)
	if !errors.Is(err, ErrNotFound) || len(a.Requests()) != 1 {
		t.Errorf("%d requests, %v", len(a.Requests()), err)
	}
}

// first fails the first n requests that match, then lets all pass.
func first(n int32, match func(*http.Request) bool, f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
	var seen atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) bool {
		if match(r) && seen.Add(1) <= n {
			f(w, r)
			return true
		}
		return false
	}
}

func method(m string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == m }
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

func hangUp(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }

func TestFaults(t *testing.T) {
	tests := map[string]struct {
		fault func(w http.ResponseWriter, r *http.Request) bool
		want  string // part of the error; "" means that it works in the end
	}{
		"429 once":                  {first(1, method("POST"), status(429, "Retry-After", "0")), ""},
		"503 twice":                 {first(2, method("PUT"), status(503)), ""},
		"500 on the manifest":       {first(1, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }, status(500)), ""},
		"hangs up once":             {first(1, method("POST"), hangUp), ""},
		"hangs up during an upload": {first(1, method("PUT"), hangUp), ""},
		"429 for ever":              {first(99, method("POST"), status(429)), "answered 429 Too Many Requests (tried 4 times)"},
		"asks to wait an hour":      {first(99, method("POST"), status(503, "Retry-After", "3600")), "answered 503 Service Unavailable; it asks to wait 1h0m0s"},
		"forbidden":                 {first(99, method("POST"), status(403)), "answered 403 Forbidden"},
		"quota, as text": {first(99, method("PUT"), func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(http.StatusInsufficientStorage)
			io.WriteString(w, "quota of\x1b[31m team is used up\nsecond line")
		}), "answered 507 Insufficient Storage: quota of[31m team is used up (tried 4 times)"},
		"stored under another digest": {first(99, method("PUT"), status(201, "Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))),
			"damaged: the registry stored sha256:000"},
		"took it and kept it not":  {first(99, method("PUT"), status(202)), "the registry took the content but did not keep it"},
		"upload without address":   {first(99, method("POST"), status(202)), "the registry gave a bad address for the upload"},
		"upload to another scheme": {first(99, method("POST"), status(202, "Location", "ftp://example.test/x")), "the registry gave a bad address"},
		"stands still":             {first(99, method("POST"), func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), "no byte moved for too long"},
		"is not a registry":        {first(99, method("POST"), status(404)), "answered 404 Not Found"},
	}
	for title, tt := range tests {
		t.Run(title, func(t *testing.T) {
			srv := registrytest.New(t)
			srv.Fault(tt.fault)
			repo := repoOf(t, srv, "team/app")
			o := Options{}
			if title == "stands still" {
				o.Idle, o.Attempts = 20*time.Millisecond, 1
			}
			s := quick(o)
			cfg := blobOf("{}")
			_, err := s.Push(t.Context(), repo, cfg, nil)
			if err == nil {
				err = s.PutManifest(t.Context(), repo.Tag("v1"), types.OCIManifestSchema1, manifestOf(cfg))
			}
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && !strings.Contains(fmt.Sprint(err), tt.want):
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			if _, gone := errors.AsType[*Error](err); err != nil && !gone {
				t.Errorf("%T is not an *Error", err)
			}
			if err == nil {
				if _, err := s.Head(t.Context(), repo.Tag("v1"), false); err != nil {
					t.Error("it said it worked:", err)
				}
			} else if srv.Fault(nil); true {
				if _, err := s.Head(t.Context(), repo.Tag("v1"), false); !errors.Is(err, ErrNotFound) {
					t.Error("something half-pushed is tagged:", err)
				}
			}
		})
	}
}

func TestDamagedReads(t *testing.T) {
	content := strings.Repeat("content ", 1000)
	b := blobOf(content)
	for title, f := range map[string]http.HandlerFunc{
		"truncated": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			io.WriteString(w, content[:100])
		},
		"short": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, content[:100]) },
		"long":  func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, content+"x") },
		"other": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.ToUpper(content)) },
		"breaks": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, content[:100])
			w.(http.Flusher).Flush()
			hangUp(w, r)
		},
	} {
		t.Run(title, func(t *testing.T) {
			srv := registrytest.New(t)
			repo := repoOf(t, srv, "team/app")
			s := quick(Options{})
			srv.Fault(first(99, method("GET"), f))
			r, err := s.Blob(t.Context(), repo, b.Digest, b.Size)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := io.ReadAll(r); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v", err)
			}
			if _, err := s.SmallBlob(t.Context(), repo, b.Digest, b.Size, 1<<20); !errors.Is(err, ErrDamaged) {
				t.Errorf("SmallBlob: got %v", err)
			}
			if _, err := s.Manifest(t.Context(), repo.Digest(b.Digest.String())); !errors.Is(err, ErrDamaged) {
				t.Errorf("Manifest: got %v", err)
			}
			// Damaged once is not damaged for ever.
			srv.Fault(nil)
			if _, err := s.Push(t.Context(), repo, b, nil); err != nil {
				t.Fatal(err)
			}
			srv.Fault(first(1, method("GET"), f))
			if got, err := s.SmallBlob(t.Context(), repo, b.Digest, b.Size, 1<<20); err != nil || string(got) != content {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	s := quick(Options{})
	if _, err := s.SmallBlob(t.Context(), name.Repository{}, b.Digest, 1<<30, 1<<20); err == nil {
		t.Error("a blob far too big was read")
	}
}

func TestHeadWithoutDigestReadsTheBody(t *testing.T) {
	srv := registrytest.New(t)
	repo := repoOf(t, srv, "team/app")
	s := quick(Options{})
	cfg := blobOf("{}")
	if _, err := s.Push(t.Context(), repo, cfg, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.PutManifest(t.Context(), repo.Tag("v1"), types.OCIManifestSchema1, manifestOf(cfg)); err != nil {
		t.Fatal(err)
	}
	srv.Fault(first(99, method("HEAD"), status(200)))
	d, err := s.Head(t.Context(), repo.Tag("v1"), false)
	sum := sha256.Sum256(manifestOf(cfg))
	if err != nil || d.Digest.Hex != hex.EncodeToString(sum[:]) {
		t.Errorf("%v, %v", d, err)
	}
}

func TestSchemes(t *testing.T) {
	for host, want := range map[string]string{
		"127.0.0.1:5000": "http", "localhost:5000": "http", "10.1.2.3": "http", "192.168.0.9:5000": "http",
		"127.0.0.1": "http", "registry.example.test": "https", "8.8.8.8": "https",
	} {
		r, err := name.NewRegistry(host)
		if err != nil {
			t.Fatal(err)
		}
		if got := base(r); got != want+"://"+host {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	srv := registrytest.New(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("the job was cancelled")
	srv.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		cancel(stop)
		w.WriteHeader(503)
		return true
	})
	s := New(Options{Delay: time.Hour}).Session()
	if _, err := s.Push(ctx, repoOf(t, srv, "team/app"), blobOf("a"), nil); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

// A sibling's failure cancels the others: one whose answer came just then must
// not stand for it, as if it had been tried only once.
func TestCancelledWhileAnswered(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("another transfer failed")
	err := New(Options{}).Session().retry(ctx, func() error {
		cancel(stop)
		return &Error{Status: 503, Attempts: 1}
	})
	if !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999": 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(v, now); got != want {
			t.Errorf("%q: got %v, want %v", v, got, want)
		}
	}
}

func TestChallenges(t *testing.T) {
	for in, want := range map[string]challenge{
		`Bearer realm="https://a/b?c=d,e",service="s",scope="repository:x:pull,push"`: {"bearer", "https://a/b?c=d,e", "s", "repository:x:pull,push"},
		`Basic realm="x", Bearer realm="https://t", service=reg`:                      {"bearer", "https://t", "reg", ""},
		`bearer REALM = "https://t\"q"`:                                               {"bearer", `https://t"q`, "", ""},
		`Basic`:                                                                       {scheme: "basic"},
		`Basic realm=""`:                                                              {scheme: "basic"},
	} {
		got := choose([]string{in})
		if got == nil || *got != want {
			t.Errorf("%s: got %+v, want %+v", in, got, want)
		}
	}
	for _, in := range []string{"", `realm="x"`, "Negotiate", `Bearer`, `Bearer realm=`, `"`, `,,,`} {
		if got := choose([]string{in}); got != nil {
			t.Errorf("%q: got %+v", in, got)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a",service="s"`)
	f.Add(`Basic realm="\`)
	f.Add(`=`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges(s) {
			if c.scheme == "" {
				t.Errorf("%q gives an unnamed scheme", s)
			}
		}
	})
}
