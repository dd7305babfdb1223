// Package aliyun is the object store of Alibaba Cloud OSS, through its SDK.
//
// The SDK (v1) needs care, and this package is that care: it ignores the
// environment's proxy, waits for minutes, follows redirects (a redirected
// DELETE becomes a GET), has no type for a 304 or a redirect, does not check
// the checksum of what it downloads, reads error bodies without bound, guesses
// content types from keys, and signs with an empty key rather than refuse.
// Its RetryTimes has no effect; wrap a [Store] with oss.Retry.
package aliyun

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"

	"github.com/kuroko-faas/kuroko/oss"
)

// Config says which bucket and as whom. Endpoint, Bucket and the key are
// needed.
type Config struct {
	// Endpoint is the service's address: https://oss-cn-hangzhou.aliyuncs.com,
	// or the bucket's own with CName. http:// must be written; it is only for
	// servers on this machine or the internal network.
	Endpoint string
	// Region is part of V4 signatures: cn-hangzhou.
	Region string
	Bucket string
	// Prefix is put before every key: "" or, for example, "kuroko/".
	Prefix string

	AccessKeyID, AccessKeySecret string
	// SecurityToken comes with temporary (STS) keys.
	SecurityToken string

	// Signature is "v4" (the default) or, for servers that don't know it, "v1".
	Signature string
	// PathStyle writes the bucket into the path; the service itself refuses
	// that. An endpoint that is an IP address implies it.
	PathStyle bool
	// CName means that Endpoint is a host name of the bucket's own.
	CName bool

	UserAgent string // default: kuroko
	Network   oss.Network
}

// Store implements oss.Store. Use [New].
type Store struct {
	bucket   *sdk.Bucket
	endpoint string
	prefix   string
}

var _ oss.Store = (*Store)(nil)

// New checks c; it does not reach for the network. All problems are named at
// once, none with a secret.
func New(c Config) (*Store, error) {
	var problems []error
	no := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	endpoint, err := url.Parse(c.Endpoint)
	switch {
	case c.Endpoint == "":
		no("no endpoint")
	case err != nil:
		no("the endpoint is not a URL")
	case endpoint.Scheme != "https" && endpoint.Scheme != "http", endpoint.Host == "":
		no("endpoint %q does not start with https:// (or http://) and a host", endpoint.Redacted())
	case endpoint.User != nil, strings.Trim(endpoint.Path, "/") != "", endpoint.RawQuery != "", endpoint.Fragment != "":
		no("endpoint %q has more than a scheme and a host", endpoint.Scheme+"://"+endpoint.Host)
	}
	if c.Bucket == "" {
		no("no bucket")
	} else if sdk.CheckBucketName(c.Bucket) != nil {
		no("bucket %q is not a bucket name: 3 to 63 lower-case letters, digits and hyphens", c.Bucket)
	}
	if c.AccessKeyID == "" || c.AccessKeySecret == "" {
		no("access key id and secret are both needed (to read without credentials, read over plain HTTP)")
	}
	if c.Prefix != "" {
		if err := oss.CheckKey(strings.TrimSuffix(c.Prefix, "/")); err != nil || !strings.HasSuffix(c.Prefix, "/") {
			no("prefix %q is not a path that ends with a slash", c.Prefix)
		}
	}
	version := sdk.AuthV4
	switch c.Signature {
	case "", "v4":
		if c.Region == "" {
			no("no region, which V4 signatures need")
		}
	case "v1":
		version = sdk.AuthV1
	default:
		no("signature %q is not known: v4 or v1", c.Signature)
	}
	if c.CName && endpoint != nil && net.ParseIP(endpoint.Hostname()) != nil {
		no("an IP address is not a bucket's own host name")
	}
	if c.CName && c.PathStyle {
		no("path style and own host name exclude each other")
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("oss: configure the bucket: %w", errors.Join(problems...))
	}
	if c.UserAgent == "" {
		c.UserAgent = "kuroko"
	}
	base := endpoint.Scheme + "://" + endpoint.Host
	client, err := sdk.New(base, c.AccessKeyID, c.AccessKeySecret,
		sdk.AuthVersion(version), sdk.Region(c.Region), sdk.SecurityToken(c.SecurityToken),
		sdk.UseCname(c.CName), sdk.ForcePathStyle(c.PathStyle), sdk.UserAgent(c.UserAgent),
		sdk.HTTPClient(&http.Client{Transport: answers{c.Network.Transport()}}))
	if err != nil {
		return nil, fmt.Errorf("oss: configure the bucket: %w", err)
	}
	bucket, err := client.Bucket(c.Bucket)
	if err != nil {
		return nil, fmt.Errorf("oss: configure the bucket: %w", err)
	}
	return &Store{bucket: bucket, endpoint: base, prefix: c.Prefix}, nil
}

// answers makes every answer but a success an error, which is not what a
// RoundTripper should do. But above it the SDK and http.Client would follow
// redirects, lose the type of a 304 and of Retry-After, leak bodies and read
// them without bound; below it nothing of that has happened yet.
type answers struct{ base http.RoundTripper }

func (t answers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(r)
	if err == nil && resp.StatusCode/100 != 2 {
		return nil, oss.ReadAnswer(resp)
	}
	return resp, err
}

// call prepares the one request of an operation.
func (s *Store) call(op, key string) (oss.Call, string, error) {
	c := oss.Call{Op: op + " " + key, Endpoint: s.endpoint}
	if err := oss.CheckKey(key); err != nil {
		return c, "", fmt.Errorf("oss: %s: %w", op, err)
	}
	if len(s.prefix)+len(key) > oss.MaxKey {
		return c, "", fmt.Errorf("oss: %s: key %s is too long below prefix %s", op, key, s.prefix)
	}
	return c, s.prefix + key, nil
}

// Get implements oss.Reader.
func (s *Store) Get(ctx context.Context, key string, opts oss.GetOptions) (*oss.Object, error) {
	c, full, err := s.call("get", key)
	if err != nil {
		return nil, err
	}
	c.Conditional = opts.IfNoneMatch != ""
	span, err := opts.RangeHeader()
	if err != nil {
		return nil, fmt.Errorf("oss: %s: %w", c.Op, err)
	}
	options := []sdk.Option{sdk.WithContext(ctx)}
	if opts.IfNoneMatch != "" {
		options = append(options, sdk.IfNoneMatch(opts.IfNoneMatch))
	}
	if span != "" {
		// Without the second the service answers an impossible range with
		// the whole object.
		options = append(options, sdk.NormalizedRange(strings.TrimPrefix(span, "bytes=")), sdk.RangeBehavior("standard"))
	}
	got, err := s.bucket.DoGetObject(&sdk.GetObjectRequest{ObjectKey: full}, options)
	if err != nil {
		return nil, c.Fail(ctx, err)
	}
	return c.Object(ctx, key, opts, got.Response.StatusCode, got.Response.Headers, got.Response.Body)
}

// Put implements oss.Store.
func (s *Store) Put(ctx context.Context, key string, body []byte, opts oss.PutOptions) error {
	_, err := s.put(ctx, "put", key, body, opts)
	return err
}

// Create implements oss.Store. It finds versioned buckets by their answer,
// when the new version has been written.
func (s *Store) Create(ctx context.Context, key string, body []byte, opts oss.PutOptions) error {
	h, err := s.put(ctx, "create", key, body, opts, sdk.ForbidOverWrite(true))
	if err != nil {
		return err
	}
	if h.Get("X-Oss-Version-Id") != "" {
		return fmt.Errorf("oss: create %s: %s: bucket %s: %w", key, s.endpoint, s.bucket.BucketName, oss.ErrVersioned)
	}
	return nil
}

func (s *Store) put(ctx context.Context, op, key string, body []byte, opts oss.PutOptions, options ...sdk.Option) (http.Header, error) {
	c, full, err := s.call(op, key)
	if err != nil {
		return nil, err
	}
	if opts.ContentType == "" {
		opts.ContentType = "application/octet-stream"
	}
	// The SDK compares checksums when the object is there already; with an MD5
	// the service refuses what arrived damaged.
	sum := md5.Sum(body)
	var h http.Header
	options = append(options, sdk.WithContext(ctx), sdk.GetResponseHeader(&h),
		sdk.ContentType(opts.ContentType), sdk.ContentMD5(base64.StdEncoding.EncodeToString(sum[:])))
	if opts.CacheControl != "" {
		options = append(options, sdk.CacheControl(opts.CacheControl))
	}
	err = s.bucket.PutObject(full, bytes.NewReader(body), options...)
	var crc sdk.CRCCheckError
	switch {
	case errors.As(err, &crc):
		return nil, &oss.Unavailable{Op: c.Op, Endpoint: c.Endpoint, Err: oss.ErrCorrupt}
	case err != nil:
		return nil, c.Fail(ctx, err)
	}
	return h, nil
}

// page is the most that the service lists at once.
const page = 1000

// List implements oss.Store.
func (s *Store) List(ctx context.Context, prefix string, limit int) ([]oss.Info, error) {
	c := oss.Call{Op: strings.TrimSpace("list " + s.bucket.BucketName + " " + prefix), Endpoint: s.endpoint}
	var list []oss.Info
	token := ""
	for {
		n := page
		if limit > 0 {
			n = min(n, limit-len(list))
		}
		options := []sdk.Option{sdk.WithContext(ctx), sdk.Prefix(s.prefix + prefix), sdk.MaxKeys(n)}
		if token != "" {
			options = append(options, sdk.ContinuationToken(token))
		}
		got, err := s.bucket.ListObjectsV2(options...)
		var syntax *xml.SyntaxError
		var element xml.UnmarshalError
		if errors.As(err, &syntax) || errors.As(err, &element) {
			err = fmt.Errorf("it answered something else than a list: %w", err)
		}
		if err != nil {
			return nil, c.Fail(ctx, err)
		}
		for _, o := range got.Objects {
			key, ok := strings.CutPrefix(o.Key, s.prefix)
			if ok && key != "" { // a console may have made the prefix an object
				list = append(list, oss.Info{Key: key, ETag: o.ETag, Size: o.Size, Modified: o.LastModified})
			}
		}
		if !got.IsTruncated || limit > 0 && len(list) >= limit {
			return list, nil
		}
		if got.NextContinuationToken == "" || got.NextContinuationToken == token {
			return nil, &oss.Unavailable{Op: c.Op, Endpoint: c.Endpoint, Err: errors.New("it promised another page of the list without saying where")}
		}
		token = got.NextContinuationToken
	}
}

// Delete implements oss.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	c, full, err := s.call("delete", key)
	if err != nil {
		return err
	}
	if err := s.bucket.DeleteObject(full, sdk.WithContext(ctx)); err != nil {
		return c.Fail(ctx, err)
	}
	return nil
}

// CheckCreateOnly returns oss.ErrVersioned for a bucket in which versioning is,
// or was once, on.
func (s *Store) CheckCreateOnly(ctx context.Context) error {
	c := oss.Call{Op: "read versioning of bucket " + s.bucket.BucketName, Endpoint: s.endpoint}
	// The SDK's own function for this drops the context.
	got, err := s.bucket.Client.Conn.DoWithContext(ctx, http.MethodGet, s.bucket.BucketName, "", map[string]any{"versioning": nil}, nil, nil, 0, nil)
	if err != nil {
		return c.Fail(ctx, err)
	}
	defer got.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(got.Body, 64<<10))
	if err != nil {
		return c.Fail(ctx, err)
	}
	var v struct {
		XMLName xml.Name `xml:"VersioningConfiguration"`
		Status  string
	}
	if err := xml.Unmarshal(raw, &v); err != nil {
		return c.Fail(ctx, fmt.Errorf("it answered something else than a versioning configuration: %w", err))
	}
	if v.Status != "" {
		return fmt.Errorf("oss: %s: %s: %w (versioning is %s)", c.Op, s.endpoint, oss.ErrVersioned, v.Status)
	}
	return nil
}
