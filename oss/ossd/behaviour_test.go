package ossd_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"

	"github.com/kuroko-faas/kuroko/oss/ossd"
)

// The list of behaviours that a publisher or reader relies on, seen through
// the service's own SDK. A difference that is ever seen against the real
// service becomes a line here first.

const (
	bucketName = "behaviour"
	specialKey = "dir/a b+%中.txt"
)

var content = bytes.Repeat([]byte("0123456789abcdef"), 4096) // 64 KiB

// way is a client's way to sign and to write addresses.
type way struct {
	auth    sdk.AuthVersionType
	virtual bool
}

// client is one SDK client and what the behaviours need beside it.
type client struct {
	*sdk.Client
	b    *sdk.Bucket
	http *http.Client // reaches the same server
	// base is the bucket's address, without a slash at its end.
	base string
	// as makes another client of the same way.
	as func(id, secret string, more ...sdk.ClientOption) *sdk.Bucket
}

func newClient(t *testing.T, w way) *client {
	t.Helper()
	s, err := ossd.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.AddKey(ossd.Key{ID: "id", Secret: "secret"})
	s.Region = "cn-hangzhou"
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	c := &client{http: srv.Client(), base: srv.URL + "/" + bucketName}
	endpoint := srv.URL
	if w.virtual {
		s.Hosts, s.Strict = []string{"oss.test"}, true
		endpoint, c.base = "http://oss.test", "http://"+bucketName+".oss.test"
		c.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
		}}}
		t.Cleanup(c.http.CloseIdleConnections)
	}
	connect := func(id, secret string, more ...sdk.ClientOption) *sdk.Client {
		cl, err := sdk.New(endpoint, id, secret, append([]sdk.ClientOption{sdk.AuthVersion(w.auth), sdk.Region("cn-hangzhou"), sdk.HTTPClient(c.http)}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		return cl
	}
	c.as = func(id, secret string, more ...sdk.ClientOption) *sdk.Bucket {
		b, err := connect(id, secret, more...).Bucket(bucketName)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	c.Client, c.b = connect("id", "secret"), c.as("id", "secret")
	if err := c.CreateBucket(bucketName); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBehaviours(t *testing.T) {
	for _, auth := range []sdk.AuthVersionType{sdk.AuthV1, sdk.AuthV2, sdk.AuthV4} {
		for _, virtual := range []bool{false, true} {
			name := string(auth) + " path"
			if virtual {
				name = string(auth) + " virtual-hosted"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := newClient(t, way{auth, virtual})
				var put http.Header
				if err := c.b.PutObject(specialKey, bytes.NewReader(content), sdk.Meta("digest", "abc"), sdk.CacheControl("max-age=5"),
					sdk.ContentType("application/x-bundle"), sdk.GetResponseHeader(&put)); err != nil {
					t.Fatal(err)
				}
				for _, b := range behaviours(put) {
					t.Run(b.name, func(t *testing.T) {
						if err := b.check(t, c); err != nil {
							t.Error(err)
						}
					})
				}
			})
		}
	}
}

type behaviour struct {
	name  string
	check func(t *testing.T, c *client) error
}

// want compares "status/code" of what the service said.
func want(err error, sub string) error {
	var se sdk.ServiceError
	got := fmt.Sprint(err)
	if errors.As(err, &se) {
		got = fmt.Sprintf("%d/%s", se.StatusCode, se.Code)
	}
	if !strings.Contains(got, sub) {
		return fmt.Errorf("got %s, want %s", got, sub)
	}
	return nil
}

func (c *client) get(key string, o ...sdk.Option) ([]byte, http.Header, error) {
	var h http.Header
	r, err := c.b.GetObject(key, append(o, sdk.GetResponseHeader(&h))...)
	if err != nil {
		return nil, h, err
	}
	defer r.Close()
	p, err := io.ReadAll(r)
	return p, h, err
}

// plain is a GET without SDK.
func (c *client) plain(url string) (int, string, error) {
	r, err := c.http.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	p, err := io.ReadAll(r.Body)
	return r.StatusCode, string(p), err
}

func behaviours(put http.Header) []behaviour {
	sum := md5.Sum(content)
	etag := `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `"`
	hasRange := func(o sdk.Option, want []byte) func(*testing.T, *client) error {
		return func(_ *testing.T, c *client) error {
			p, h, err := c.get(specialKey, o)
			if err == nil && (!bytes.Equal(p, want) || len(want) < len(content) && h.Get("Content-Range") == "") {
				return fmt.Errorf("got %d bytes, Content-Range %q; want %d bytes", len(p), h.Get("Content-Range"), len(want))
			}
			return err
		}
	}
	refuses := func(code string, f func(c *client) error) func(*testing.T, *client) error {
		return func(_ *testing.T, c *client) error { return want(f(c), code) }
	}
	return []behaviour{
		{"list buckets", func(_ *testing.T, c *client) error {
			r, err := c.ListBuckets()
			if err == nil && (len(r.Buckets) != 1 || r.Buckets[0].Name != bucketName) {
				return fmt.Errorf("got %+v", r.Buckets)
			}
			return err
		}},
		{"create bucket again", func(_ *testing.T, c *client) error { return c.CreateBucket(bucketName) }},
		{"put answers with checksum, etag, request id", func(*testing.T, *client) error {
			if put.Get("X-Oss-Hash-Crc64ecma") == "" || put.Get("X-Oss-Request-Id") == "" || put.Get("ETag") != etag {
				return fmt.Errorf("got %v", put)
			}
			return nil
		}},
		{"get", func(_ *testing.T, c *client) error {
			p, h, err := c.get(specialKey)
			if err != nil {
				return err
			}
			if !bytes.Equal(p, content) || h.Get("X-Oss-Meta-Digest") != "abc" || h.Get("Cache-Control") != "max-age=5" ||
				h.Get("Content-Type") != "application/x-bundle" || h.Get("X-Oss-Hash-Crc64ecma") != put.Get("X-Oss-Hash-Crc64ecma") || h.Get("ETag") != etag {
				return fmt.Errorf("got %d bytes, %v", len(p), h)
			}
			return nil
		}},
		{"range 10-19", hasRange(sdk.Range(10, 19), content[10:20])},
		{"range 0-0", hasRange(sdk.Range(0, 0), content[:1])},
		{"range from", hasRange(sdk.NormalizedRange("65530-"), content[65530:])},
		{"range suffix", hasRange(sdk.NormalizedRange("-5"), content[len(content)-5:])},
		{"range beyond the end is cut", hasRange(sdk.Range(65530, 99999999), content[65530:])},
		{"impossible range is ignored", hasRange(sdk.Range(65536, 65540), content)},
		{"impossible range, standard behaviour", refuses("416/InvalidRange", func(c *client) error {
			_, _, err := c.get(specialKey, sdk.Range(65536, 65540), sdk.RangeBehavior("standard"))
			return err
		})},
		{"if-none-match", refuses("304", func(c *client) error { _, _, err := c.get(specialKey, sdk.IfNoneMatch(etag)); return err })},
		{"if-match", refuses("412", func(c *client) error { _, _, err := c.get(specialKey, sdk.IfMatch(`"0"`)); return err })},
		{"if-modified-since", refuses("304", func(c *client) error {
			_, _, err := c.get(specialKey, sdk.IfModifiedSince(time.Now().Add(time.Hour)))
			return err
		})},
		{"if-unmodified-since", refuses("412", func(c *client) error {
			_, _, err := c.get(specialKey, sdk.IfUnmodifiedSince(time.Now().Add(-time.Hour)))
			return err
		})},
		{"head", func(_ *testing.T, c *client) error {
			h, err := c.b.GetObjectDetailedMeta(specialKey)
			if err == nil && h.Get("Content-Length") != "65536" {
				return fmt.Errorf("length %s", h.Get("Content-Length"))
			}
			return err
		}},
		{"object meta", func(_ *testing.T, c *client) error {
			h, err := c.b.GetObjectMeta(specialKey)
			if err == nil && h.Get("ETag") != etag {
				return fmt.Errorf("got %v", h)
			}
			return err
		}},
		{"head of nothing", refuses("404/NoSuchKey", func(c *client) error { _, err := c.b.GetObjectDetailedMeta("nope"); return err })},
		{"get of nothing", refuses("404/NoSuchKey", func(c *client) error { _, err := c.b.GetObject("nope"); return err })},
		{"exists", func(_ *testing.T, c *client) error {
			yes, err1 := c.b.IsObjectExist(specialKey)
			no, err2 := c.b.IsObjectExist("nope")
			if !yes || no {
				return fmt.Errorf("got %v and %v", yes, no)
			}
			return errors.Join(err1, err2)
		}},
		{"no bucket", refuses("404/NoSuchBucket", func(c *client) error {
			b, err := c.Bucket("another-one")
			if err == nil {
				_, err = b.GetObject("k")
			}
			return err
		})},
		{"forbid overwrite, there", refuses("409/FileAlreadyExists", func(c *client) error {
			return c.b.PutObject(specialKey, strings.NewReader("x"), sdk.ForbidOverWrite(true))
		})},
		{"forbid overwrite, new", func(_ *testing.T, c *client) error {
			return c.b.PutObject("new", strings.NewReader("x"), sdk.ForbidOverWrite(true))
		}},
		{"conditional put is refused", refuses("501", func(c *client) error {
			return c.b.PutObject(specialKey, strings.NewReader("x"), sdk.IfMatch(etag))
		})},
		{"put with wrong md5", refuses("400/InvalidDigest", func(c *client) error {
			return c.b.PutObject("md5", strings.NewReader("x"), sdk.ContentMD5(base64.StdEncoding.EncodeToString(make([]byte, 16))))
		})},
		{"list by prefix", func(_ *testing.T, c *client) error {
			r, err := c.b.ListObjectsV2(sdk.Prefix("dir/"))
			if err == nil && (len(r.Objects) != 1 || r.Objects[0].Key != specialKey || r.Objects[0].Size != 65536) {
				return fmt.Errorf("got %+v", r.Objects)
			}
			return err
		}},
		{"list pages with delimiter", listPages},
		{"list, first version", func(_ *testing.T, c *client) error {
			r, err := c.b.ListObjects(sdk.Prefix("dir/"), sdk.MaxKeys(1))
			if err == nil && (len(r.Objects) != 1 || r.IsTruncated) {
				return fmt.Errorf("got %+v", r)
			}
			return err
		}},
		{"copy", func(_ *testing.T, c *client) error {
			if _, err := c.b.CopyObject(specialKey, "copy"); err != nil {
				return err
			}
			p, h, err := c.get("copy")
			if err == nil && (!bytes.Equal(p, content) || h.Get("X-Oss-Meta-Digest") != "abc") {
				return fmt.Errorf("got %d bytes, %v", len(p), h)
			}
			return err
		}},
		{"copy if-match", refuses("412", func(c *client) error {
			_, err := c.b.CopyObject(specialKey, "copy2", sdk.CopySourceIfMatch(`"0"`))
			return err
		})},
		{"multipart", multipart},
		{"list parts and abort", abortUpload},
		{"upload and download a file", transferFile},
		{"append", func(_ *testing.T, c *client) error {
			next, err := c.b.AppendObject("append", strings.NewReader("abc"), 0)
			if err == nil {
				next, err = c.b.AppendObject("append", strings.NewReader("def"), next)
			}
			if err != nil || next != 6 {
				return fmt.Errorf("next %d, %v", next, err)
			}
			if p, _, err := c.get("append"); string(p) != "abcdef" {
				return fmt.Errorf("got %q, %v", p, err)
			}
			_, err = c.b.AppendObject("append", strings.NewReader("x"), 1)
			return want(err, "409/PositionNotEqualToLength")
		}},
		{"append to what was put", refuses("409/ObjectNotAppendable", func(c *client) error {
			_, err := c.b.AppendObject(specialKey, strings.NewReader("x"), 0)
			return err
		})},
		{"delete many", func(_ *testing.T, c *client) error {
			for _, k := range []string{"many/1", "many/2 <&>"} {
				if err := c.b.PutObject(k, strings.NewReader("x")); err != nil {
					return err
				}
			}
			r, err := c.b.DeleteObjects([]string{"many/1", "many/2 <&>", "many/3"})
			if err == nil && len(r.DeletedObjects) != 3 {
				return fmt.Errorf("deleted %q", r.DeletedObjects)
			}
			if l, _ := c.b.ListObjectsV2(sdk.Prefix("many/")); len(l.Objects) != 0 {
				return fmt.Errorf("left %+v", l.Objects)
			}
			return err
		}},
		{"delete twice", func(_ *testing.T, c *client) error {
			return errors.Join(c.b.DeleteObject("copy"), c.b.DeleteObject("copy"))
		}},
		{"presigned get", func(_ *testing.T, c *client) error {
			u, err := c.b.SignURL(specialKey, sdk.HTTPGet, 60)
			if err != nil {
				return err
			}
			if status, body, err := c.plain(u); status != 200 || body != string(content) {
				return fmt.Errorf("got %d %.200s, %v", status, body, err)
			}
			return nil
		}},
		{"presigned, tampered", func(_ *testing.T, c *client) error {
			u, err := c.b.SignURL(specialKey, sdk.HTTPGet, 60)
			if err != nil {
				return err
			}
			if status, body, err := c.plain(strings.Replace(u, "dir", "pg", 1)); status != 403 || !strings.Contains(body, "SignatureDoesNotMatch") {
				return fmt.Errorf("got %d %.200s, %v", status, body, err)
			}
			return nil
		}},
		{"wrong secret", refuses("403/SignatureDoesNotMatch", func(c *client) error { _, err := c.as("id", "wrong").GetObject(specialKey); return err })},
		{"unknown key", refuses("403/InvalidAccessKeyId", func(c *client) error { _, err := c.as("who", "secret").GetObject(specialKey); return err })},
		{"anonymous, private", func(_ *testing.T, c *client) error {
			for _, path := range []string{"/new", "/", "/nope"} {
				if status, body, err := c.plain(c.base + path); status != 403 || !strings.Contains(body, "AccessDenied") {
					return fmt.Errorf("%s: got %d %s, %v", path, status, body, err)
				}
			}
			return nil
		}},
		{"anonymous, public object", func(_ *testing.T, c *client) error {
			if err := c.b.PutObject("public", strings.NewReader("x"), sdk.ObjectACL(sdk.ACLPublicRead)); err != nil {
				return err
			}
			if status, body, err := c.plain(c.base + "/public"); status != 200 || body != "x" {
				return fmt.Errorf("got %d %s, %v", status, body, err)
			}
			if err := c.b.SetObjectACL("public", sdk.ACLPrivate); err != nil {
				return err
			}
			if status, body, err := c.plain(c.base + "/public"); status != 403 {
				return fmt.Errorf("made private: got %d %s, %v", status, body, err)
			}
			r, err := c.b.GetObjectACL("public")
			if err == nil && r.ACL != "private" {
				return fmt.Errorf("ACL is %s", r.ACL)
			}
			return err
		}},
		{"anonymous, public bucket", func(_ *testing.T, c *client) error {
			if err := c.SetBucketACL(bucketName, sdk.ACLPublicRead); err != nil {
				return err
			}
			defer c.SetBucketACL(bucketName, sdk.ACLPrivate)
			if status, body, err := c.plain(c.base + "/new"); status != 200 || body != "x" {
				return fmt.Errorf("got %d %s, %v", status, body, err)
			}
			if status, _, err := c.plain(c.base + "/nope"); status != 404 {
				return fmt.Errorf("got %d, %v, want 404", status, err)
			}
			r, err := c.http.Post(c.base+"/new?append&position=0", "text/plain", strings.NewReader("x"))
			if err != nil {
				return err
			}
			r.Body.Close()
			if r.StatusCode != 403 {
				return fmt.Errorf("an anonymous write: got %d", r.StatusCode)
			}
			return nil
		}},
		{"bucket info", func(_ *testing.T, c *client) error {
			r, err := c.GetBucketInfo(bucketName)
			if err == nil && (r.BucketInfo.Name != bucketName || r.BucketInfo.ACL != "private" || r.BucketInfo.Versioning != "") {
				return fmt.Errorf("got %+v", r.BucketInfo)
			}
			return err
		}},
		{"unknown operation", refuses("501/NotImplemented", func(c *client) error { _, err := c.GetBucketLifecycle(bucketName); return err })},
		{"bucket not empty", refuses("409/BucketNotEmpty", func(c *client) error { return c.DeleteBucket(bucketName) })},
		{"versions", versions}, // last: versioning can't be taken back
	}
}

func listPages(_ *testing.T, c *client) error {
	for i := range 5 {
		if err := c.b.PutObject(fmt.Sprintf("pg/%d/f", i), strings.NewReader("x")); err != nil {
			return err
		}
	}
	var got []string
	for token := ""; ; {
		r, err := c.b.ListObjectsV2(sdk.Prefix("pg/"), sdk.Delimiter("/"), sdk.MaxKeys(2), sdk.ContinuationToken(token))
		if err != nil {
			return err
		}
		got = append(got, r.CommonPrefixes...)
		if token = r.NextContinuationToken; !r.IsTruncated || len(got) > 9 {
			break
		}
	}
	if want := "[pg/0/ pg/1/ pg/2/ pg/3/ pg/4/]"; fmt.Sprint(got) != want {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

func multipart(_ *testing.T, c *client) error {
	up, err := c.b.InitiateMultipartUpload("mp", sdk.Meta("digest", "abc"))
	if err != nil {
		return err
	}
	var parts []sdk.UploadPart
	sums := ""
	for i := 1; i <= 3; i++ {
		body := bytes.Repeat([]byte{byte(i)}, 150<<10)
		p, err := c.b.UploadPart(up, bytes.NewReader(body), int64(len(body)), i)
		if err != nil {
			return err
		}
		parts = append(parts, p)
		sum := md5.Sum(body)
		sums += strings.ToUpper(hex.EncodeToString(sum[:]))
	}
	bad := append([]sdk.UploadPart(nil), parts...)
	bad[1].ETag = bad[0].ETag
	if _, err := c.b.CompleteMultipartUpload(up, bad); want(err, "400/InvalidPart") != nil {
		return want(err, "400/InvalidPart")
	}
	done, err := c.b.CompleteMultipartUpload(up, parts)
	if err != nil {
		return err
	}
	sum := md5.Sum([]byte(sums)) // of the hex texts, where S3 takes the raw sums
	if want := `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `-3"`; done.ETag != want {
		return fmt.Errorf("etag %s, want %s", done.ETag, want)
	}
	p, h, err := c.get("mp")
	if err == nil && (len(p) != 450<<10 || p[0] != 1 || p[len(p)-1] != 3 || h.Get("X-Oss-Meta-Digest") != "abc") {
		return fmt.Errorf("got %d bytes, %v", len(p), h)
	}
	return err
}

func abortUpload(_ *testing.T, c *client) error {
	up, err := c.b.InitiateMultipartUpload("mp2")
	if err != nil {
		return err
	}
	if _, err := c.b.UploadPart(up, strings.NewReader("x"), 1, 1); err != nil {
		return err
	}
	r, err := c.b.ListUploadedParts(up)
	if err != nil || len(r.UploadedParts) != 1 || r.UploadedParts[0].Size != 1 {
		return fmt.Errorf("got %+v, %v", r.UploadedParts, err)
	}
	if err := c.b.AbortMultipartUpload(up); err != nil {
		return err
	}
	_, err = c.b.ListUploadedParts(up)
	return want(err, "404/NoSuchUpload")
}

func transferFile(t *testing.T, c *client) error {
	from, to := filepath.Join(t.TempDir(), "u"), filepath.Join(t.TempDir(), "d")
	big := bytes.Repeat(content, 10)
	if err := os.WriteFile(from, big, 0o600); err != nil {
		return err
	}
	if err := c.b.UploadFile("big", from, 200<<10, sdk.Routines(3)); err != nil {
		return err
	}
	if err := c.b.DownloadFile("big", to, 200<<10, sdk.Routines(3)); err != nil {
		return err
	}
	got, err := os.ReadFile(to)
	if err == nil && !bytes.Equal(got, big) {
		return fmt.Errorf("got %d bytes, want %d", len(got), len(big))
	}
	return err
}

func versions(_ *testing.T, c *client) error {
	if err := c.SetBucketVersioning(bucketName, sdk.VersioningConfig{Status: "Enabled"}); err != nil {
		return err
	}
	var h1, h2, h3 http.Header
	err1 := c.b.PutObject("ver", strings.NewReader("one"), sdk.GetResponseHeader(&h1))
	// The trap: create-only is silently ignored.
	err2 := c.b.PutObject("ver", strings.NewReader("two"), sdk.GetResponseHeader(&h2), sdk.ForbidOverWrite(true))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	id := sdk.GetVersionId(h1)
	if p, _, err := c.get("ver", sdk.VersionId(id)); id == "" || string(p) != "one" {
		return fmt.Errorf("version %q is %q, %v", id, p, err)
	}
	if p, _, err := c.get("ver"); string(p) != "two" {
		return fmt.Errorf("newest is %q, %v", p, err)
	}
	if err := c.b.DeleteObject("ver", sdk.GetResponseHeader(&h3)); err != nil {
		return err
	}
	if _, _, err := c.get("ver"); want(err, "404/NoSuchKey") != nil {
		return want(err, "404/NoSuchKey")
	}
	marker := sdk.GetVersionId(h3)
	if marker == "" || h3.Get("X-Oss-Delete-Marker") != "true" {
		return fmt.Errorf("the delete answered %v", h3)
	}
	if err := c.b.DeleteObject("ver", sdk.VersionId(marker)); err != nil {
		return err
	}
	if p, _, err := c.get("ver"); string(p) != "two" {
		return fmt.Errorf("without the marker the newest is %q, %v", p, err)
	}
	// What was there before versioning is version "null".
	if p, _, err := c.get(specialKey, sdk.VersionId("null")); !bytes.Equal(p, content) {
		return fmt.Errorf("version null: %d bytes, %v", len(p), err)
	}
	if err := c.SetBucketVersioning(bucketName, sdk.VersioningConfig{Status: "Suspended"}); err != nil {
		return err
	}
	if err := c.b.PutObject("ver", strings.NewReader("three"), sdk.ForbidOverWrite(true)); err != nil {
		return fmt.Errorf("suspended versioning also ignores create-only, but: %w", err)
	}
	r, err := c.GetBucketVersioning(bucketName)
	if err == nil && r.Status != "Suspended" {
		return fmt.Errorf("status is %q", r.Status)
	}
	return err
}
