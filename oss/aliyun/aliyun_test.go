package aliyun_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"

	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/aliyun"
	"github.com/kuroko-faas/kuroko/oss/ossd"
	"github.com/kuroko-faas/kuroko/oss/osstest"
)

// config is the one that fits s.
func config(s *osstest.Server) aliyun.Config {
	return aliyun.Config{Endpoint: s.Endpoint, Region: osstest.Region, Bucket: osstest.Bucket, AccessKeyID: osstest.KeyID, AccessKeySecret: osstest.KeySecret}
}

func open(t *testing.T, c aliyun.Config) *aliyun.Store {
	t.Helper()
	s, err := aliyun.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	for name, change := range map[string]func(*aliyun.Config){
		"v4":     func(*aliyun.Config) {},
		"v1":     func(c *aliyun.Config) { c.Signature = "v1" },
		"prefix": func(c *aliyun.Config) { c.Prefix = "some/where/" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			osstest.TestStore(t, func(t *testing.T) oss.Store {
				c := config(osstest.Serve(t, ossd.Private))
				change(&c)
				return open(t, c)
			})
		})
	}
}

func TestManyKeys(t *testing.T) {
	osstest.TestManyKeys(t, func(t *testing.T) oss.Store {
		c := config(osstest.Serve(t, ossd.Private))
		c.Prefix = "below/"
		return open(t, c)
	})
}

func TestFaults(t *testing.T) {
	osstest.TestReaderFaults(t, func(t *testing.T, srv *osstest.Server, n oss.Network) oss.Reader {
		c := config(srv)
		c.Network = n
		return open(t, c)
	})
}

func TestNewRefuses(t *testing.T) {
	good := aliyun.Config{Endpoint: "https://oss-cn-hangzhou.aliyuncs.com", Region: "cn-hangzhou", Bucket: "bucket", AccessKeyID: "id", AccessKeySecret: "hush"}
	if _, err := aliyun.New(good); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for want, change := range map[string]func(c *aliyun.Config){
		"no endpoint":                   func(c *aliyun.Config) { c.Endpoint = "" },
		"does not start with https://":  func(c *aliyun.Config) { c.Endpoint = "oss-cn-hangzhou.aliyuncs.com" },
		"is not a URL":                  func(c *aliyun.Config) { c.Endpoint = "https://u:hush@a b" },
		"more than a scheme and a host": func(c *aliyun.Config) { c.Endpoint = "https://u:hush@host" },
		"more than a scheme":            func(c *aliyun.Config) { c.Endpoint = "https://host/bucket" },
		"no bucket":                     func(c *aliyun.Config) { c.Bucket = "" },
		"is not a bucket name":          func(c *aliyun.Config) { c.Bucket = "Bucket/" },
		"secret are both needed":        func(c *aliyun.Config) { c.AccessKeySecret = "" },
		"id and secret":                 func(c *aliyun.Config) { c.AccessKeyID = "" },
		"no region":                     func(c *aliyun.Config) { c.Region = "" },
		`signature "v3"`:                func(c *aliyun.Config) { c.Signature = "v3" },
		`prefix "/x/"`:                  func(c *aliyun.Config) { c.Prefix = "/x/" },
		`prefix "x"`:                    func(c *aliyun.Config) { c.Prefix = "x" },
		"own host name":                 func(c *aliyun.Config) { c.CName, c.Endpoint = true, "http://127.0.0.1:1" },
		"exclude each other":            func(c *aliyun.Config) { c.CName, c.PathStyle = true, true },
	} {
		c := good
		change(&c)
		if _, err := aliyun.New(c); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := aliyun.New(aliyun.Config{}); err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("got %v, want all four problems at once", err)
	}
}

// TestAddresses reaches one server by every kind of address.
func TestAddresses(t *testing.T) {
	for name, change := range map[string]func(*aliyun.Config, *osstest.Server){
		"virtual-hosted": func(c *aliyun.Config, s *osstest.Server) {
			c.Endpoint, s.Hosts, s.Strict = "http://oss.test", []string{"oss.test"}, true
		},
		"own name": func(c *aliyun.Config, s *osstest.Server) {
			c.Endpoint, c.CName, s.CNames, s.Strict = "http://bundles.example", true, map[string]string{"bundles.example": osstest.Bucket}, true
		},
		"path style": func(c *aliyun.Config, s *osstest.Server) { c.Endpoint, c.PathStyle = "http://oss.test", true },
	} {
		for _, signature := range []string{"v1", "v4"} {
			t.Run(name+" "+signature, func(t *testing.T) {
				srv := osstest.Serve(t, ossd.Private)
				c := config(srv)
				c.Signature = signature
				change(&c, srv)
				c.Network.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, strings.TrimPrefix(srv.Endpoint, "http://"))
				}
				s := open(t, c)
				if err := s.Put(t.Context(), "a b/+中", []byte("x"), oss.PutOptions{}); err != nil {
					t.Fatal(err)
				}
				if list, err := s.List(t.Context(), "a", 0); err != nil || len(list) != 1 || list[0].Key != "a b/+中" {
					t.Errorf("got %+v, %v", list, err)
				}
				if err := s.CheckCreateOnly(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestVersionedBucket(t *testing.T) {
	srv := osstest.Serve(t, ossd.Private)
	s := open(t, config(srv))
	put := func() error { return s.Create(t.Context(), "k", []byte("x"), oss.PutOptions{}) }
	if err := put(); err != nil {
		t.Fatal(err)
	}
	for _, status := range []string{"Enabled", "Suspended"} {
		setVersioning(t, srv, status)
		if err := s.CheckCreateOnly(t.Context()); !errors.Is(err, oss.ErrVersioned) || !strings.Contains(err.Error(), status) {
			t.Errorf("%s: check: got %v, want ErrVersioned", status, err)
		}
		// Also through the decorator, and by the answer alone.
		if err := oss.CheckCreateOnly(t.Context(), oss.Retry(s, oss.RetryOptions{})); !errors.Is(err, oss.ErrVersioned) {
			t.Errorf("%s: check through Retry: got %v, want ErrVersioned", status, err)
		}
		if err := put(); !errors.Is(err, oss.ErrVersioned) {
			t.Errorf("%s: create: got %v, want ErrVersioned", status, err)
		}
	}
}

func setVersioning(t *testing.T, srv *osstest.Server, status string) {
	t.Helper()
	c, err := sdk.New(srv.Endpoint, osstest.KeyID, osstest.KeySecret, sdk.AuthVersion(sdk.AuthV4), sdk.Region(osstest.Region))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetBucketVersioning(osstest.Bucket, sdk.VersioningConfig{Status: status}); err != nil {
		t.Fatal(err)
	}
}

func TestTemporaryKey(t *testing.T) {
	srv := osstest.Serve(t, ossd.Private)
	srv.AddKey(ossd.Key{ID: "sts", Secret: "s", Token: "token"})
	for _, signature := range []string{"v1", "v4"} {
		c := config(srv)
		c.AccessKeyID, c.AccessKeySecret, c.SecurityToken, c.Signature = "sts", "s", "token", signature
		if err := open(t, c).Put(t.Context(), "k", nil, oss.PutOptions{}); err != nil {
			t.Errorf("%s: %v", signature, err)
		}
		c.SecurityToken = "old"
		if err := open(t, c).Put(t.Context(), "k", nil, oss.PutOptions{}); !errors.Is(err, oss.ErrDenied) || !strings.Contains(err.Error(), "InvalidSecurityToken") {
			t.Errorf("%s: with another token: got %v, want ErrDenied", signature, err)
		}
	}
}

func TestWritesAreDenied(t *testing.T) {
	srv := osstest.Serve(t, ossd.Private)
	osstest.Fill(t, srv, map[string]string{"k": "x"})
	c := config(srv)
	c.AccessKeyID = osstest.ReaderID
	s := open(t, c)
	for op, err := range map[string]error{
		"put k":    s.Put(t.Context(), "k", nil, oss.PutOptions{}),
		"create n": s.Create(t.Context(), "n", nil, oss.PutOptions{}),
		"delete k": s.Delete(t.Context(), "k"),
	} {
		if !errors.Is(err, oss.ErrDenied) || !strings.Contains(err.Error(), op) || strings.Contains(err.Error(), osstest.KeySecret) {
			t.Errorf("%s: got %v, want ErrDenied", op, err)
		}
	}
	if got, _, err := oss.ReadAll(t.Context(), s, "k", oss.GetOptions{}, 10); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestClockIsOff(t *testing.T) {
	srv := osstest.Serve(t, ossd.Private)
	srv.Now = func() time.Time { return time.Now().Add(time.Hour) }
	err := open(t, config(srv)).Delete(t.Context(), "k")
	if !errors.Is(err, oss.ErrDenied) || !strings.Contains(err.Error(), "clock differs") {
		t.Errorf("got %v, want that the clock is off", err)
	}
}

func TestHeadersOfAnObject(t *testing.T) {
	srv := osstest.Serve(t, ossd.PublicRead)
	s := open(t, config(srv))
	for _, c := range []struct {
		opts        oss.PutOptions
		ctype, ccon string
	}{
		{oss.PutOptions{}, "application/octet-stream", ""}, // not guessed from the key
		{oss.PutOptions{ContentType: "application/json", CacheControl: "max-age=15"}, "application/json", "max-age=15"},
	} {
		if err := s.Put(t.Context(), "page.html", []byte("x"), c.opts); err != nil {
			t.Fatal(err)
		}
		r, err := http.Get(srv.Base + "/page.html")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.Header.Get("Content-Type") != c.ctype || r.Header.Get("Cache-Control") != c.ccon {
			t.Errorf("%+v: got %v", c.opts, r.Header)
		}
	}
}

// TestUploadIsChecked: content that arrives damaged must not be stored.
func TestUploadIsChecked(t *testing.T) {
	srv := osstest.Serve(t, ossd.Private)
	var sent string
	srv.SetFault(func(r *http.Request) ossd.Fault {
		sent = r.Header.Get("Content-Md5")
		r.Body = io.NopCloser(strings.NewReader("hellO"))
		return ossd.Fault{}
	})
	if err := open(t, config(srv)).Put(t.Context(), "k", []byte("hello"), oss.PutOptions{}); err == nil || sent == "" {
		t.Errorf("got %v with MD5 %q, want a refusal", err, sent)
	}
	srv.SetFault(nil)
	if _, err := open(t, config(srv)).Get(t.Context(), "k", oss.GetOptions{}); !errors.Is(err, oss.ErrNotFound) {
		t.Errorf("stored all the same: %v", err)
	}
}

// TestLostAnswers: the whole way, with a server that does the work and drops
// the connection.
func TestLostAnswers(t *testing.T) {
	srv := osstest.Serve(t, ossd.Private)
	s := oss.Retry(open(t, config(srv)), oss.RetryOptions{Base: time.Nanosecond})
	gone := ossd.Script(ossd.Fault{LoseAnswer: true})
	for _, c := range []struct {
		op   string
		call func() error
		want error
		n    int // requests
	}{
		{"create", func() error { return s.Create(t.Context(), "k", []byte("ours"), oss.PutOptions{}) }, nil, 3},
		{"put", func() error { return s.Put(t.Context(), "k", []byte("again"), oss.PutOptions{}) }, nil, 2},
		{"create over another's", func() error { return s.Create(t.Context(), "k", []byte("ours"), oss.PutOptions{}) }, oss.ErrExists, 3},
		{"delete", func() error { return s.Delete(t.Context(), "k") }, nil, 2},
	} {
		srv.SetFault(gone)
		srv.ResetCounts()
		err := c.call()
		if !errors.Is(err, c.want) || srv.Requests() != c.n {
			t.Errorf("%s: got %v after %v, want %v after %d requests", c.op, err, srv.Counts(), c.want, c.n)
		}
		gone = ossd.Script(ossd.Fault{LoseAnswer: true})
	}
}

func TestBrokenDownloadContinues(t *testing.T) {
	srv := osstest.Serve(t, ossd.Private)
	body := strings.Repeat("0123456789abcdef", 64<<10)
	osstest.Fill(t, srv, map[string]string{"k": body})
	srv.SetFault(ossd.Script(ossd.Fault{Body: ossd.Cut, BodyAt: 600 << 10}, ossd.Fault{Status: 503}, ossd.Fault{Body: ossd.Cut, BodyAt: 100 << 10}))
	s := oss.Retry(open(t, config(srv)), oss.RetryOptions{Base: time.Nanosecond})
	got, _, err := oss.ReadAll(t.Context(), s, "k", oss.GetOptions{}, 2<<20)
	if err != nil || string(got) != body {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	c := srv.Counts()
	if c["GET 200"] != 1 || c["GET 206"] != 2 || c["GET 503"] != 1 || srv.Sent() > int64(len(body))+1000 {
		t.Errorf("%v and %d bytes, want no byte twice", c, srv.Sent())
	}
}

func TestListThatLies(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"endless":  {`<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>`, "without saying where"},
		"circular": {`<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken></ListBucketResult>`, "without saying where"},
		"no XML":   {"<html>sign in", "something else than a list"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, c.body) }))
		s := open(t, aliyun.Config{Endpoint: srv.URL, Region: "r", Bucket: "bucket", AccessKeyID: "id", AccessKeySecret: "s"})
		_, err := s.List(t.Context(), "", 0)
		var u *oss.Unavailable
		if !errors.As(err, &u) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		srv.Close()
	}
}
