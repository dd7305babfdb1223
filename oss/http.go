package oss

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// HTTP is a [Reader] that makes plain GET requests without credentials: a
// public-read bucket, a bucket behind a network policy, a CDN or a mirror.
// Use [NewHTTP].
type HTTP struct {
	base      *url.URL // without trailing slash in its path
	endpoint  string
	userAgent string
	client    *http.Client
}

var _ Reader = (*HTTP)(nil)

// HTTPOptions are what a [NewHTTP] may want beyond the address. The zero value
// is fine.
type HTTPOptions struct {
	UserAgent string // default: kuroko
	Network   Network
}

// NewHTTP reads below base: https://bucket.host, https://host/bucket (path
// style), either with a prefix. Redirects are followed within the same host
// only; another host must be configured, not found out.
func NewHTTP(base string, o HTTPOptions) (*HTTP, error) {
	u, err := url.Parse(base)
	if err != nil {
		// The parser's own message repeats the address with its password.
		return nil, errors.New("oss: the object store's address is not a URL")
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "", u.Opaque != "":
		return nil, fmt.Errorf("oss: %s: the object store's address must start with https:// (or http://) and a host", u.Redacted())
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return nil, fmt.Errorf("oss: %s://%s: the object store's address has a user, a query or a fragment, which are not used here", u.Scheme, u.Host)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	if o.UserAgent == "" {
		o.UserAgent = "kuroko"
	}
	h := &HTTP{base: u, endpoint: u.Scheme + "://" + u.Host, userAgent: o.UserAgent}
	h.client = &http.Client{
		Transport: o.Network.Transport(),
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			from := via[len(via)-1].URL
			upgrade := from.Scheme == "http" && next.URL.Scheme == "https" && next.URL.Hostname() == from.Hostname()
			if len(via) > 3 || !upgrade && (next.URL.Scheme != from.Scheme || next.URL.Host != from.Host) {
				return http.ErrUseLastResponse // which becomes an error that names the target
			}
			return nil
		},
	}
	return h, nil
}

// Base is the address that keys are appended to.
func (h *HTTP) Base() string { return h.base.String() }

// Get implements [Reader].
func (h *HTTP) Get(ctx context.Context, key string, opts GetOptions) (*Object, error) {
	c := Call{Op: "get " + key, Endpoint: h.endpoint, Conditional: opts.IfNoneMatch != ""}
	if err := CheckKey(key); err != nil {
		return nil, fmt.Errorf("oss: get: %w", err)
	}
	span, err := opts.RangeHeader()
	if err != nil {
		return nil, fmt.Errorf("oss: %s: %w", c.Op, err)
	}
	u := *h.base
	u.RawPath = u.EscapedPath() + "/" + escapePath(key)
	u.Path += "/" + key
	req := (&http.Request{Method: http.MethodGet, URL: &u, Header: http.Header{}}).WithContext(ctx)
	req.Header.Set("User-Agent", h.userAgent)
	if opts.IfNoneMatch != "" {
		req.Header.Set("If-None-Match", opts.IfNoneMatch)
	}
	if span != "" {
		req.Header.Set("Range", span)
		// Otherwise the service answers an impossible range with everything.
		req.Header.Set("X-Oss-Range-Behavior", "standard")
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return nil, c.Fail(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, c.Fail(ctx, ReadAnswer(resp))
	}
	return c.Object(ctx, key, opts, resp.StatusCode, resp.Header, resp.Body)
}

// escapePath escapes everything but letters, digits, "-_.~" and slashes. A
// plus sign too: the service reads it as a space.
func escapePath(key string) string {
	e := strings.ReplaceAll(url.QueryEscape(key), "+", "%20")
	return strings.ReplaceAll(e, "%2F", "/")
}
