package ossd

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"
)

// world is a server with one object, "k", in the private bucket "bucket".
func world(t testing.TB) (*Server, *httptest.Server) {
	t.Helper()
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.Region = "cn-hangzhou"
	s.AddKey(Key{ID: "id", Secret: "secret"})
	if err := s.CreateBucket("bucket", Private); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	if err := connect(t, srv.URL, sdk.AuthV4, "id", "secret").PutObject("k", strings.NewReader("content")); err != nil {
		t.Fatal(err)
	}
	return s, srv
}

func connect(t testing.TB, endpoint string, v sdk.AuthVersionType, id, secret string, more ...sdk.ClientOption) *sdk.Bucket {
	t.Helper()
	c, err := sdk.New(endpoint, id, secret, append([]sdk.ClientOption{sdk.AuthVersion(v), sdk.Region("cn-hangzhou")}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Bucket("bucket")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// code is the service's error code, "" for success.
func code(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	se, ok := err.(sdk.ServiceError)
	if !ok {
		t.Fatalf("not an answer of the service: %v", err)
	}
	return se.Code
}

var everyVersion = []sdk.AuthVersionType{sdk.AuthV1, sdk.AuthV2, sdk.AuthV4}

func TestTemporaryKeys(t *testing.T) {
	s, srv := world(t)
	s.AddKey(Key{ID: "sts", Secret: "secret", Token: "tok+en/=", Expires: time.Now().Add(time.Hour)})
	s.AddKey(Key{ID: "old", Secret: "secret", Token: "token", Expires: time.Now().Add(-time.Second)})
	for _, v := range everyVersion {
		for _, c := range []struct{ id, token, want string }{
			{"sts", "tok+en/=", ""},
			{"sts", "other", "InvalidSecurityToken"},
			{"sts", "", "InvalidAccessKeyId"},
			{"id", "token", "InvalidAccessKeyId"},
			{"old", "token", "SecurityTokenExpired"},
		} {
			b := connect(t, srv.URL, v, c.id, "secret", sdk.SecurityToken(c.token))
			r, err := b.GetObject("k")
			if got := code(t, err); got != c.want {
				t.Errorf("%s: key %s with token %q: got %q, want %q", v, c.id, c.token, got, c.want)
			}
			if err == nil {
				r.Close()
			}
			if v == sdk.AuthV2 {
				continue // the SDK signs no token into V2 URLs
			}
			u, err := b.SignURL("k", sdk.HTTPGet, 60)
			if err != nil {
				t.Fatal(err)
			}
			if status, body := fetch(t, u); (status == 200) != (c.want == "") || !strings.Contains(body, c.want) {
				t.Errorf("%s: URL of key %s with token %q: got %d %s, want %q", v, c.id, c.token, status, body, c.want)
			}
		}
	}
}

func fetch(t *testing.T, u string) (int, string) {
	t.Helper()
	r, err := http.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var b strings.Builder
	r.Write(&b)
	return r.StatusCode, b.String()
}

func TestReadOnlyKey(t *testing.T) {
	s, srv := world(t)
	s.AddKey(Key{ID: "reader", Secret: "secret", ReadOnly: true})
	b := connect(t, srv.URL, sdk.AuthV4, "reader", "secret")
	r, err := b.GetObject("k")
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := b.ListObjectsV2(); err != nil {
		t.Errorf("list: %v", err)
	}
	_, many := b.DeleteObjects([]string{"k"})
	_, multi := b.InitiateMultipartUpload("k")
	for what, err := range map[string]error{"put": b.PutObject("k", strings.NewReader("x")), "delete": b.DeleteObject("k"), "delete many": many, "multipart": multi} {
		if got := code(t, err); got != "AccessDenied" {
			t.Errorf("%s: got %q, want AccessDenied", what, got)
		}
	}
}

func TestTime(t *testing.T) {
	s, srv := world(t)
	for _, v := range everyVersion {
		for _, c := range []struct {
			ahead time.Duration
			want  string
		}{{0, ""}, {14 * time.Minute, ""}, {-14 * time.Minute, ""}, {16 * time.Minute, "RequestTimeTooSkewed"}, {-16 * time.Minute, "RequestTimeTooSkewed"}} {
			s.Now = func() time.Time { return time.Now().Add(c.ahead) }
			r, err := connect(t, srv.URL, v, "id", "secret").GetObject("k")
			if got := code(t, err); got != c.want {
				t.Errorf("%s: our clock %s ahead: got %q, want %q", v, c.ahead, got, c.want)
			}
			if err == nil {
				r.Close()
			}
		}
		s.Now = nil
		u, err := connect(t, srv.URL, v, "id", "secret").SignURL("k", sdk.HTTPGet, 60)
		if err != nil {
			t.Fatal(err)
		}
		if status, _ := fetch(t, u); status != 200 {
			t.Errorf("%s: a fresh URL: got %d", v, status)
		}
		s.Now = func() time.Time { return time.Now().Add(2 * time.Minute) }
		if status, body := fetch(t, u); status != 403 || !strings.Contains(body, "expired") {
			t.Errorf("%s: an expired URL: got %d %s", v, status, body)
		}
		s.Now = nil
	}
	u, err := connect(t, srv.URL, sdk.AuthV4, "id", "secret").SignURL("k", sdk.HTTPGet, 8*24*3600)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := fetch(t, u); status != 400 || !strings.Contains(body, "x-oss-expires") {
		t.Errorf("a URL for eight days: got %d %s", status, body)
	}
}

func TestRegion(t *testing.T) {
	_, srv := world(t)
	_, err := connect(t, srv.URL, sdk.AuthV4, "id", "secret", sdk.Region("cn-beijing")).GetObject("k")
	if got := code(t, err); got != "InvalidArgument" {
		t.Errorf("another region: got %q", got)
	}
}

func TestOwnHostName(t *testing.T) {
	s, srv := world(t)
	s.CNames = map[string]string{"localhost": "bucket"}
	s.Strict = true
	endpoint := strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	for _, v := range everyVersion {
		r, err := connect(t, endpoint, v, "id", "secret", sdk.UseCname(true)).GetObject("k")
		if err != nil {
			t.Errorf("%s: %v", v, err)
			continue
		}
		r.Close()
	}
	_, err := connect(t, srv.URL, sdk.AuthV4, "id", "secret").GetObject("k")
	if got := code(t, err); got != "SecondLevelDomainForbidden" {
		t.Errorf("path style: got %q", got)
	}
}

// TestSignatureCovers changes one thing of a good request at a time.
func TestSignatureCovers(t *testing.T) {
	s, _ := world(t)
	for _, v := range everyVersion {
		good := sign(t, v)
		if status := serve(s, good.Clone(t.Context())).Code; status != 200 {
			t.Fatalf("%s: the good request: got %d", v, status)
		}
		changes := map[string]func(*http.Request){
			"method":        func(r *http.Request) { r.Method = "DELETE" },
			"key":           func(r *http.Request) { r.URL.Path += "2" },
			"bucket":        func(r *http.Request) { r.URL.Path = "/bucket2/k" },
			"oss header":    func(r *http.Request) { r.Header.Set("X-Oss-Object-Acl", "public-read") },
			"date":          func(r *http.Request) { r.Header.Set("Date", time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)) },
			"sub-resource":  func(r *http.Request) { r.URL.RawQuery = "acl" },
			"content type":  func(r *http.Request) { r.Header.Set("Content-Type", "text/html") },
			"content md5":   func(r *http.Request) { r.Header.Set("Content-Md5", "AAAAAAAAAAAAAAAAAAAAAA==") },
			"no date":       func(r *http.Request) { r.Header.Del("Date") },
			"cut signature": func(r *http.Request) { a := r.Header.Get("Authorization"); r.Header.Set("Authorization", a[:len(a)-1]) },
			"bad query":     func(r *http.Request) { r.URL.RawQuery = "a=%zz" },
		}
		for name, change := range changes {
			r := good.Clone(t.Context())
			change(r)
			if w := serve(s, r); w.Code/100 == 2 {
				t.Errorf("%s: changed %s: got %d %s", v, name, w.Code, w.Body)
			}
		}
	}
}

func TestMalformedAuthorization(t *testing.T) {
	s, _ := world(t)
	for _, auth := range malformed {
		r := httptest.NewRequest("GET", "/bucket/k", nil)
		r.Header.Set("Authorization", auth)
		r.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
		r.Header.Set("X-Oss-Content-Sha256", "UNSIGNED-PAYLOAD")
		if w := serve(s, r); w.Code != 400 && w.Code != 403 || !strings.Contains(w.Body.String(), "<Code>") {
			t.Errorf("%q: got %d %s", auth, w.Code, w.Body)
		}
	}
	for _, query := range malformedQueries {
		w := serve(s, httptest.NewRequest("GET", "/bucket/k?"+query, nil))
		if w.Code != 400 && w.Code != 403 {
			t.Errorf("%q: got %d %s", query, w.Code, w.Body)
		}
	}
}

var malformed = []string{
	"OSS", "OSS ", "OSS id", "OSS id:", "OSS :x", "Basic eDp5", "Bearer x", "OSS2 ", "OSS2 AccessKeyId:id", "OSS2 AccessKeyId:id,Signature:",
	"OSS4-HMAC-SHA256 ", "OSS4-HMAC-SHA256 Credential=id", "OSS4-HMAC-SHA256 Credential=id/,Signature=",
	"OSS4-HMAC-SHA256 Credential=id/20200101/cn-hangzhou/oss/aliyun_v4_request,Signature=00",
	"OSS4-HMAC-SHA256 Credential=id/x/y/z,Signature=00", "OSS4-HMAC-SHA256 Credential=id////,Signature=00", "OSS4-HMAC-SHA256 =,=,=",
}

var malformedQueries = []string{
	"Signature=x", "OSSAccessKeyId=id", "OSSAccessKeyId=id&Signature=x", "OSSAccessKeyId=id&Signature=x&Expires=", "OSSAccessKeyId=id&Signature=x&Expires=9999999999",
	"OSSAccessKeyId=id&Signature=x&Expires=99999999999999999999", "x-oss-signature=x", "x-oss-signature-version=OSS3",
	"x-oss-signature-version=OSS2", "x-oss-signature-version=OSS2&x-oss-access-key-id=id&x-oss-expires=9999999999",
	"x-oss-signature-version=OSS4-HMAC-SHA256", "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential=id/a/b/oss/aliyun_v4_request&x-oss-date=20200101T000000Z&x-oss-expires=-1",
}

// sign makes a signed GET of the object, with the SDK.
func sign(t testing.TB, v sdk.AuthVersionType) *http.Request {
	t.Helper()
	var signed *http.Request
	catch := roundTripper(func(r *http.Request) (*http.Response, error) {
		signed = r
		return nil, http.ErrServerClosed
	})
	connect(t, "http://127.0.0.1", v, "id", "secret", sdk.HTTPClient(&http.Client{Transport: catch})).GetObject("k")
	if signed == nil {
		t.Fatal("the SDK made no request")
	}
	r := httptest.NewRequest("GET", "/bucket/k", nil)
	r.Header = signed.Header
	return r
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func serve(s *Server, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// FuzzAuthenticate: nothing that was not signed with the secret gets in, and
// nothing makes the server fail.
func FuzzAuthenticate(f *testing.F) {
	s, _ := world(f)
	date := time.Now().UTC().Format(http.TimeFormat)
	for _, a := range malformed {
		f.Add(a, "", date)
	}
	for _, q := range malformedQueries {
		f.Add("", q, "")
	}
	for _, v := range everyVersion {
		// The genuine signature is of another object.
		f.Add(sign(f, v).Header.Get("Authorization"), "", date)
	}
	f.Fuzz(func(t *testing.T, auth, query, date string) {
		r := httptest.NewRequest("GET", "/bucket/other", nil)
		r.URL = &url.URL{Path: "/bucket/other", RawQuery: query}
		r.Header.Set("Authorization", auth)
		r.Header.Set("Date", date)
		r.Header.Set("X-Oss-Content-Sha256", "UNSIGNED-PAYLOAD")
		w := serve(s, r)
		if w.Code != 400 && w.Code != 403 {
			t.Errorf("auth %q, query %q: got %d %s", auth, query, w.Code, w.Body)
		}
	})
}
