package ossd

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxSkew is how far a request's time may be from ours.
const maxSkew = 15 * time.Minute

// maxPresigned is the longest life of a V4 URL.
const maxPresigned = 7 * 24 * time.Hour

const (
	v4Algorithm = "OSS4-HMAC-SHA256"
	v4Time      = "20060102T150405Z"
)

var (
	errAuthorization = fail(400, "InvalidArgument", "Authorization header is invalid.")
	errExpired       = fail(403, "AccessDenied", "Request has expired.")
)

// authenticate returns the key that signed the request, nil for a request
// without a signature. A request that carries any part of one must be right.
func (s *Server) authenticate(c *call) (*Key, *apiError) {
	auth := c.Header.Get("Authorization")
	scheme, rest, _ := strings.Cut(auth, " ")
	switch {
	case scheme == v4Algorithm:
		return s.v4Header(c, fields(rest, "="))
	case scheme == "OSS2":
		f := fields(rest, ":")
		return s.v2(c, f["AccessKeyId"], f["Signature"], f["AdditionalHeaders"], "")
	case scheme == "OSS":
		id, sig, ok := strings.Cut(rest, ":")
		if !ok {
			return nil, errAuthorization
		}
		return s.v1(c, id, sig, "")
	case auth != "":
		return nil, errAuthorization
	}
	q := c.query
	switch {
	case q.Get("x-oss-signature-version") == v4Algorithm:
		return s.v4Query(c)
	case q.Get("x-oss-signature-version") == "OSS2":
		return s.v2(c, q.Get("x-oss-access-key-id"), q.Get("x-oss-signature"), q.Get("x-oss-additional-headers"), q.Get("x-oss-expires"))
	case q.Has("x-oss-signature-version"), q.Has("x-oss-signature"):
		return nil, fail(400, "InvalidArgument", "x-oss-signature-version is invalid.")
	case q.Has("Signature"), q.Has("OSSAccessKeyId"):
		if q.Get("Expires") == "" {
			return nil, fail(403, "AccessDenied", "Expires is required.")
		}
		return s.v1(c, q.Get("OSSAccessKeyId"), q.Get("Signature"), q.Get("Expires"))
	}
	return nil, nil
}

// fields reads "Name=value,Name=value" with the separator sep.
func fields(text, sep string) map[string]string {
	f := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), sep)
		f[k] = v
	}
	return f
}

// key finds the key id and checks the request's token against it.
func (s *Server) key(c *call, id string) (*Key, *apiError) {
	token := c.Header.Get("X-Oss-Security-Token")
	for _, p := range []string{"security-token", "x-oss-security-token"} {
		if token == "" {
			token = c.query.Get(p)
		}
	}
	s.mu.Lock()
	k, ok := s.keys[id]
	s.mu.Unlock()
	switch {
	case !ok, (k.Token != "") != (token != ""):
		return nil, fail(403, "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist in our records.")
	case !hmac.Equal([]byte(k.Token), []byte(token)):
		return nil, fail(403, "InvalidSecurityToken", "The security token you provided is invalid.")
	case !k.Expires.IsZero() && s.now().After(k.Expires):
		return nil, fail(403, "SecurityTokenExpired", "The security token you provided has expired.")
	}
	return &k, nil
}

// mismatch repeats what we signed, as the service does: it is how people find
// out what their client did otherwise.
func mismatch(signed string) *apiError {
	e := fail(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.")
	e.StringToSign = signed
	return e
}

// fresh checks the time of a request that is signed in its header.
func (s *Server) fresh(t time.Time, err error) *apiError {
	if err != nil {
		return fail(403, "AccessDenied", "OSS authentication requires a valid Date.")
	}
	if s.now().Sub(t).Abs() > maxSkew {
		return fail(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
	}
	return nil
}

// unexpired checks the end of a URL that is signed in V1 or V2.
func (s *Server) unexpired(expires string) *apiError {
	n, err := strconv.ParseInt(expires, 10, 64)
	if err != nil {
		return fail(403, "AccessDenied", "Invalid date (should be seconds since epoch).")
	}
	if s.now().Unix() > n {
		return errExpired
	}
	return nil
}

// v1 checks the first signature scheme. expires is set for presigned URLs.
func (s *Server) v1(c *call, id, signature, expires string) (*Key, *apiError) {
	k, e := s.key(c, id)
	if e != nil {
		return nil, e
	}
	date := expires
	if expires != "" {
		e = s.unexpired(expires)
	} else {
		if date = c.Header.Get("X-Oss-Date"); date == "" { // browsers and Node can't set Date
			date = c.Header.Get("Date")
		}
		e = s.fresh(http.ParseTime(date))
	}
	if e != nil {
		return nil, e
	}
	resource := "/"
	if c.bucket != "" {
		resource += c.bucket + "/" + c.key
	}
	sub := map[string]string{}
	for p, v := range c.query {
		if slices.Contains(v1SubResources, p) {
			sub[p] = v[0]
		}
	}
	if len(sub) > 0 {
		resource += "?" + canonicalQuery(sub)
	}
	signed := c.Method + "\n" + c.Header.Get("Content-Md5") + "\n" + c.Header.Get("Content-Type") + "\n" + date + "\n" +
		canonicalHeaders(c.signedHeaders("")) + resource
	m := hmac.New(sha1.New, []byte(k.Secret))
	m.Write([]byte(signed))
	if !hmac.Equal([]byte(base64.StdEncoding.EncodeToString(m.Sum(nil))), []byte(signature)) {
		return nil, mismatch(signed)
	}
	return k, nil
}

// v2 checks the second scheme, which few clients use.
func (s *Server) v2(c *call, id, signature, additional, expires string) (*Key, *apiError) {
	k, e := s.key(c, id)
	if e != nil {
		return nil, e
	}
	date := expires
	if c.query.Has("x-oss-signature-version") {
		e = s.unexpired(expires)
	} else {
		date = c.Header.Get("Date")
		e = s.fresh(http.ParseTime(date))
	}
	if e != nil {
		return nil, e
	}
	resource := escape("/")
	if c.bucket != "" {
		resource = escape("/" + c.bucket + "/" + c.key)
	}
	if q := canonicalQuery(c.escapedQuery()); q != "" {
		resource += "?" + q
	}
	signed := c.Method + "\n" + c.Header.Get("Content-Md5") + "\n" + c.Header.Get("Content-Type") + "\n" + date + "\n" +
		canonicalHeaders(c.signedHeaders(additional)) + additional + "\n" + resource
	m := hmac.New(sha256.New, []byte(k.Secret))
	m.Write([]byte(signed))
	if !hmac.Equal([]byte(base64.StdEncoding.EncodeToString(m.Sum(nil))), []byte(signature)) {
		return nil, mismatch(signed)
	}
	return k, nil
}

func (s *Server) v4Header(c *call, f map[string]string) (*Key, *apiError) {
	id, scope, ok := strings.Cut(f["Credential"], "/")
	if !ok {
		return nil, errAuthorization
	}
	k, e := s.key(c, id)
	if e != nil {
		return nil, e
	}
	date := c.Header.Get("X-Oss-Date")
	t, err := time.Parse(v4Time, date)
	if date == "" {
		date = c.Header.Get("Date")
		t, err = http.ParseTime(date)
	}
	if e := s.fresh(t, err); e != nil {
		return nil, e
	}
	if c.Header.Get("X-Oss-Content-Sha256") != "UNSIGNED-PAYLOAD" {
		return nil, fail(400, "InvalidArgument", "x-oss-content-sha256 must be UNSIGNED-PAYLOAD.")
	}
	return k, s.v4(c, k, scope, t, date, f["AdditionalHeaders"], f["Signature"])
}

func (s *Server) v4Query(c *call) (*Key, *apiError) {
	id, scope, ok := strings.Cut(c.query.Get("x-oss-credential"), "/")
	if !ok {
		return nil, fail(400, "InvalidArgument", "x-oss-credential is invalid.")
	}
	k, e := s.key(c, id)
	if e != nil {
		return nil, e
	}
	date := c.query.Get("x-oss-date")
	t, err := time.Parse(v4Time, date)
	n, err2 := strconv.ParseInt(c.query.Get("x-oss-expires"), 10, 32)
	life := time.Duration(n) * time.Second
	if err != nil || err2 != nil || life <= 0 || life > maxPresigned {
		return nil, fail(400, "InvalidArgument", "x-oss-date or x-oss-expires is invalid.")
	}
	if now := s.now(); now.After(t.Add(life)) || t.Sub(now) > maxSkew {
		return nil, errExpired
	}
	return k, s.v4(c, k, scope, t, date, c.query.Get("x-oss-additional-headers"), c.query.Get("x-oss-signature"))
}

// v4 checks the fourth scheme: t and date are the request's time, parsed and
// as it was sent.
func (s *Server) v4(c *call, k *Key, scope string, t time.Time, date, additional, signature string) *apiError {
	part := strings.Split(scope, "/")
	switch {
	case len(part) != 4, part[2] != "oss", part[3] != "aliyun_v4_request":
		return fail(400, "InvalidArgument", "The credential scope is invalid.")
	case part[0] != t.UTC().Format("20060102"):
		return fail(403, "InvalidArgument", "The date in the credential scope does not match the request's.")
	case s.Region != "" && part[1] != s.Region:
		return fail(403, "InvalidArgument", "Invalid signing region in Authorization header.")
	}
	uri := "/"
	if c.bucket != "" {
		uri += escape(c.bucket) + "/" + strings.ReplaceAll(escape(c.key), "%2F", "/")
	}
	canonical := strings.Join([]string{c.Method, uri, canonicalQuery(c.escapedQuery()), canonicalHeaders(c.signedHeaders(additional)), additional, "UNSIGNED-PAYLOAD"}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	signed := v4Algorithm + "\n" + date + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	mac := []byte("aliyun_v4" + k.Secret)
	for _, p := range append(part, signed) {
		m := hmac.New(sha256.New, mac)
		m.Write([]byte(p))
		mac = m.Sum(nil)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(mac)), []byte(signature)) {
		return mismatch(canonical)
	}
	return nil
}

// signedHeaders are the headers that every V4 signature covers, and those
// named in additional ("host;range"). V1 and V2 have lines of their own for
// content-type and content-md5.
func (c *call) signedHeaders(additional string) map[string]string {
	v4 := strings.HasPrefix(c.Header.Get("Authorization"), v4Algorithm) || c.query.Get("x-oss-signature-version") == v4Algorithm
	want := strings.Split(strings.ToLower(additional), ";")
	headers := map[string]string{}
	for name, values := range c.Header {
		l := strings.ToLower(name)
		if strings.HasPrefix(l, "x-oss-") || v4 && (l == "content-type" || l == "content-md5") || slices.Contains(want, l) {
			headers[l] = strings.TrimSpace(values[0])
		}
	}
	if slices.Contains(want, "host") {
		headers["host"] = c.Host // net/http takes it out of the headers
	}
	return headers
}

func (c *call) escapedQuery() map[string]string {
	q := map[string]string{}
	for p, v := range c.query {
		if p != "x-oss-signature" {
			q[escape(p)] = escape(v[0])
		}
	}
	return q
}

// canonicalHeaders and canonicalQuery sort by name, never by the joined line:
// "a:" sorts after "a-b:".
func canonicalHeaders(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.WriteString(k + ":" + m[k] + "\n")
	}
	return b.String()
}

func canonicalQuery(m map[string]string) string {
	var p []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] == "" {
			p = append(p, k)
		} else {
			p = append(p, k+"="+m[k])
		}
	}
	return strings.Join(p, "&")
}

// escape escapes everything but letters, digits and "-_.~".
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// v1SubResources are the parameters that are part of a V1 resource, by the
// service's documentation; also those of operations we don't know, so that
// clients of them are told NotImplemented rather than a wrong signature.
var v1SubResources = strings.Fields(`acl append asyncFetch bucketInfo callback callback-var cname comp
	continuation-token cors delete encryption endTime img inventory inventoryId lifecycle live location logging
	metaQuery objectMeta partNumber policy position qos qosInfo referer regionList replication
	replicationLocation replicationProgress requestPayment resourceGroup response-cache-control
	response-content-disposition response-content-encoding response-content-language response-content-type
	response-expires restore security-token sequential startTime stat status style styleName symlink tagging
	transferAcceleration uploadId uploads versionId versioning versions vod website withHashContext worm
	wormExtend wormId x-oss-ac-forward-allow x-oss-ac-source-ip x-oss-ac-subnet-mask x-oss-ac-vpc-id
	x-oss-async-process x-oss-enable-md5 x-oss-enable-sha1 x-oss-enable-sha256 x-oss-hash-ctx x-oss-md5-ctx
	x-oss-process x-oss-request-payer x-oss-traffic-limit`)
