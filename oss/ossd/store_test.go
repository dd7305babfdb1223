package ossd

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"
)

func reopen(t *testing.T, root string) (*Server, *sdk.Bucket) {
	t.Helper()
	s, err := New(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.AddKey(Key{ID: "id", Secret: "secret"})
	if err := s.CreateBucket("bucket", Private); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return s, connect(t, srv.URL, sdk.AuthV4, "id", "secret")
}

func contentOf(t *testing.T, b *sdk.Bucket, key string, o ...sdk.Option) string {
	t.Helper()
	r, err := b.GetObject(key, o...)
	if err != nil {
		return "error: " + code(t, err)
	}
	defer r.Close()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestReopen(t *testing.T) {
	root := t.TempDir()
	s, b := reopen(t, root)
	for _, body := range []string{"one", "two"} {
		if err := b.PutObject("k", strings.NewReader(body), sdk.Meta("m", "v"), sdk.ObjectACL(sdk.ACLPublicRead)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.PutObject("gone", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteObject("gone"); err != nil {
		t.Fatal(err)
	}
	if err := b.Client.SetBucketVersioning("bucket", sdk.VersioningConfig{Status: "Enabled"}); err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, body := range []string{"three", "four", "five"} {
		var h http.Header
		if err := b.PutObject("k", strings.NewReader(body), sdk.GetResponseHeader(&h)); err != nil {
			t.Fatal(err)
		}
		ids[body] = sdk.GetVersionId(h)
	}
	if err := b.DeleteObject("k", sdk.VersionId(ids["four"])); err != nil {
		t.Fatal(err)
	}
	up, err := b.InitiateMultipartUpload("upload")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.UploadPart(up, strings.NewReader("x"), 1, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := New(root); !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice: got %v, want ErrLocked", err)
	}
	// As if killed: nothing is written at the end, and half an upload stays.
	if err := os.WriteFile(filepath.Join(root, ".tmp", "half"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "half-made", "objects"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.Close()

	_, b = reopen(t, root)
	if got := contentOf(t, b, "k"); got != "five" {
		t.Errorf("newest: %q", got)
	}
	for version, want := range map[string]string{"null": "two", ids["three"]: "three", ids["four"]: "error: NoSuchVersion"} {
		if got := contentOf(t, b, "k", sdk.VersionId(version)); got != want {
			t.Errorf("version %s: got %q, want %q", version, got, want)
		}
	}
	h, err := b.GetObjectDetailedMeta("k", sdk.VersionId("null"))
	if err != nil || h.Get("X-Oss-Meta-M") != "v" {
		t.Errorf("headers of version null: %v, %v", h, err)
	}
	l, err := b.ListObjectsV2()
	if err != nil || len(l.Objects) != 1 {
		t.Errorf("list: %+v, %v", l.Objects, err)
	}
	if _, err := b.ListUploadedParts(up); code(t, err) != "NoSuchUpload" {
		t.Errorf("the upload after a restart: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(root, ".tmp")); len(left) != 0 {
		t.Errorf("left in .tmp: %v", left)
	}
}

// TestOneFileForEachVersion: what is replaced or refused leaves nothing.
func TestOneFileForEachVersion(t *testing.T) {
	root := t.TempDir()
	s, b := reopen(t, root)
	for i := range 5 {
		if err := b.PutObject("k", strings.NewReader(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []sdk.Option{sdk.ForbidOverWrite(true), sdk.ContentMD5("AAAAAAAAAAAAAAAAAAAAAA=="), sdk.ObjectACL("nonsense")} {
		if b.PutObject("k", strings.NewReader("refused"), o) == nil {
			t.Error("a put was not refused")
		}
	}
	if err := b.SetObjectACL("k", sdk.ACLPublicRead); err != nil {
		t.Fatal(err)
	}
	// A client that leaves in the middle of its body.
	r := httptest.NewRequest("PUT", "/bucket/k", io.MultiReader(strings.NewReader("half"), errReader{}))
	r.Header = signedPut(t)
	if w := serve(s, r); w.Code != 400 {
		t.Errorf("a broken body: got %d %s", w.Code, w.Body)
	}
	if _, err := b.AppendObject("log", strings.NewReader("x"), 7); err == nil {
		t.Error("an append in the wrong place was not refused")
	}
	objects, err := os.ReadDir(filepath.Join(root, "bucket", "objects"))
	if err != nil || len(objects) != 1 {
		t.Errorf("got %v, %v; want one file", objects, err)
	}
	if left, _ := os.ReadDir(filepath.Join(root, ".tmp")); len(left) != 0 {
		t.Errorf("left in .tmp: %v", left)
	}
	if got := contentOf(t, b, "k"); got != "4" {
		t.Errorf("got %q", got)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func signedPut(t *testing.T) http.Header {
	t.Helper()
	var h http.Header
	catch := roundTripper(func(r *http.Request) (*http.Response, error) { h = r.Header; return nil, http.ErrServerClosed })
	connect(t, "http://127.0.0.1", sdk.AuthV4, "id", "secret", sdk.HTTPClient(&http.Client{Transport: catch})).PutObject("k", strings.NewReader("half"))
	return h
}

// TestReadersKeepWhatTheyOpened: an object that is replaced or deleted while
// it is sent arrives as it was.
func TestReadersKeepWhatTheyOpened(t *testing.T) {
	_, b := reopen(t, t.TempDir())
	old := strings.Repeat("old", 2<<20)
	if err := b.PutObject("k", strings.NewReader(old)); err != nil {
		t.Fatal(err)
	}
	r, err := b.GetObject("k")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := b.PutObject("k", strings.NewReader("new")); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteObject("k"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != old {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

func TestDamagedFolder(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"cut":      func(p string) error { return os.Truncate(p, 30) },
		"empty":    func(p string) error { return os.Truncate(p, 0) },
		"longer":   func(p string) error { return appendTo(p, "x") },
		"misnamed": func(p string) error { return os.Rename(p, p+"2") },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s, b := reopen(t, root)
			if err := b.PutObject("k", strings.NewReader(strings.Repeat("x", 100))); err != nil {
				t.Fatal(err)
			}
			s.Close()
			files, _ := filepath.Glob(filepath.Join(root, "bucket", "objects", "*"))
			if err := damage(files[0]); err != nil {
				t.Fatal(err)
			}
			if s, err := New(root); err == nil {
				s.Close()
				t.Error("opened all the same")
			} else if !strings.Contains(err.Error(), filepath.Base(files[0])) {
				t.Errorf("%q does not name the file", err)
			}
		})
	}
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

func TestParseRange(t *testing.T) {
	for _, c := range []struct {
		v    string
		size int64
		want string
	}{
		{"bytes=0-0", 10, "0-0"}, {"bytes=2-", 10, "2-9"}, {"bytes=-3", 10, "7-9"}, {"bytes=-30", 10, "0-9"}, {"BYTES=1-2", 10, "1-2"}, {"bytes=9-100", 10, "9-9"},
		{"bytes=10-", 10, ""}, {"bytes=-0", 10, ""}, {"bytes=-", 10, ""}, {"bytes=3-2", 10, ""}, {"bytes=0-0", 0, ""}, {"bytes=-1", 0, ""}, {"bytes=1-2,4-5", 10, ""},
		{"items=1-2", 10, ""}, {"bytes=+1-2", 10, ""}, {"bytes=1-+2", 10, ""}, {"bytes=--2", 10, ""}, {"bytes= 1-2", 10, ""}, {"", 10, ""},
		{"bytes=0-9223372036854775807", 10, "0-9"}, {"bytes=0-9223372036854775808", 10, ""}, {"bytes=-9223372036854775807", 10, "0-9"},
	} {
		got := ""
		if a, z, ok := parseRange(c.v, c.size); ok {
			got = fmt.Sprintf("%d-%d", a, z)
		}
		if got != c.want {
			t.Errorf("%q of %d bytes: got %q, want %q", c.v, c.size, got, c.want)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, v := range []string{"bytes=0-0", "bytes=2-", "bytes=-3", "bytes=9-100", "bytes=-", "x", "bytes=1-2,3-4"} {
		f.Add(v, int64(10))
	}
	f.Add("bytes=9223372036854775806-9223372036854775807", int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, v string, size int64) {
		if a, z, ok := parseRange(v, size); ok && (a < 0 || z < a || z >= size) {
			t.Errorf("%q of %d bytes: %d-%d", v, size, a, z)
		}
	})
}

func FuzzParseDescription(f *testing.F) {
	good := "hello" + `{"Key":"k","Version":"null","Size":5}`
	f.Add([]byte(good + fmt.Sprintf(tailFormat, len(good)-5)))
	f.Add([]byte("0000ffff ossd1\n"))
	f.Add([]byte("{}00000002 ossd1\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := parseDescription(bytes.NewReader(raw), int64(len(raw)))
		if err == nil && (o.Key == "" || o.Size < 0 || o.Size > int64(len(raw))) {
			t.Errorf("accepted %+v of %d bytes", o, len(raw))
		}
	})
}

// FuzzXML sends bodies to the two operations that read XML, from a client
// that may do everything: no answer is our own failure.
func FuzzXML(f *testing.F) {
	s, srv := world(f)
	if err := s.CreateBucket("bucket", PublicReadWrite); err != nil {
		f.Fatal(err)
	}
	up, err := connect(f, srv.URL, sdk.AuthV4, "id", "secret").InitiateMultipartUpload("up")
	if err != nil {
		f.Fatal(err)
	}
	for _, x := range []string{
		"", "<", "<Delete/>", "<Delete><Object><Key>k</Key></Object></Delete>", "<Delete><Quiet>maybe</Quiet><Object><Key></Key></Object></Delete>",
		"<Delete><Object><Key>../../x</Key><VersionId>../..</VersionId></Object></Delete>",
		"<CompleteMultipartUpload/>", "<CompleteMultipartUpload><Part><PartNumber>-1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>",
		`<!DOCTYPE x [<!ENTITY a "aaaa">]><Delete>&a;</Delete>`,
	} {
		f.Add([]byte(x))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, target := range []string{"/bucket/?delete", "/bucket/up?uploadId=" + up.UploadID} {
			if w := serve(s, httptest.NewRequest("POST", target, bytes.NewReader(body))); w.Code >= 500 {
				t.Errorf("%s %q: got %d %s", target, body, w.Code, w.Body)
			}
		}
	})
}

func TestErrorOfHead(t *testing.T) {
	_, srv := world(t)
	r, err := http.Head(srv.URL + "/nobucket/k")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	raw, err := base64.StdEncoding.DecodeString(r.Header.Get("X-Oss-Err"))
	if err != nil || !strings.Contains(string(raw), "<Code>NoSuchBucket</Code>") || r.Header.Get("X-Oss-Ec") != "0015-00000101" {
		t.Errorf("got %q, %v, %v", raw, err, r.Header)
	}
}

func TestCountsAndLog(t *testing.T) {
	s, srv := world(t)
	s.ResetCounts()
	b := connect(t, srv.URL, sdk.AuthV4, "id", "secret")
	contentOf(t, b, "k")
	contentOf(t, b, "nope")
	for _, f := range []Fault{{Drop: true}, {LoseAnswer: true}} {
		s.SetFault(Script(f))
		if err := b.PutObject("k", strings.NewReader("again")); err == nil {
			t.Error("dropped, and answered")
		}
	}
	counts := s.Counts()
	if counts["GET 200"] != 1 || counts["GET 404"] != 1 || counts["PUT dropped"] != 2 || s.Requests() != 4 || s.Sent() < 7 {
		t.Errorf("got %v, %d bytes", counts, s.Sent())
	}
	if got := contentOf(t, b, "k"); got != "again" {
		t.Errorf("the work whose answer was lost: got %q", got)
	}
	var log string
	s.Log = func(l string) { log = l }
	if serve(s, sign(t, sdk.AuthV4)); !strings.HasPrefix(log, `GET "/bucket/k" 200, 5 bytes in `) {
		t.Errorf("log: %q", log)
	}
	if serve(s, httptest.NewRequest("GET", "/bucket/k?Signature=hush", nil)); !strings.HasPrefix(log, `GET "/bucket/k" 403 AccessDenied, `) {
		t.Errorf("log: %q", log)
	}
}

// TestServe starts the server as programs do, and ends it while a client
// is connected.
func TestServe(t *testing.T) {
	s, _ := world(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	b := connect(t, "http://"+ln.Addr().String(), sdk.AuthV4, "id", "secret")
	if got := contentOf(t, b, "k"); got != "content" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
	if _, err := b.GetObject("k"); err == nil {
		t.Error("it still answers")
	}
	if err := s.Serve(t.Context(), ln); err == nil {
		t.Error("served on a closed listener")
	}
}

func TestDeleteBucket(t *testing.T) {
	root := t.TempDir()
	s, b := reopen(t, root)
	if err := b.Client.DeleteBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	if err := b.PutObject("k", strings.NewReader("x")); code(t, err) != "NoSuchBucket" {
		t.Errorf("got %v, want NoSuchBucket", err)
	}
	if _, err := os.Stat(filepath.Join(root, "bucket")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of the bucket is left (%v)", err)
	}
	s.Close()
	if _, b = reopen(t, root); contentOf(t, b, "k") != "error: NoSuchKey" {
		t.Error("the bucket made again is not empty")
	}
}
