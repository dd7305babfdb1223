package ossd

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxKey    = 1023
	maxObject = 5 << 30
)

func validKey(key string) bool {
	return len(key) <= maxKey && key[0] != '/' && key[0] != '\\' && utf8.ValidString(key)
}

func (s *Server) objectOp(w http.ResponseWriter, c *call) *apiError {
	if !validKey(c.key) {
		return fail(400, "InvalidObjectName", "The specified object is not valid.")
	}
	b, e := s.openBucket(c)
	if e != nil {
		return e
	}
	if e := s.allowed(c, b); e != nil {
		return e
	}
	switch has := c.query.Has; {
	case has("acl"):
		return s.objectACL(w, c, b)
	case has("append") && c.Method == http.MethodPost:
		return s.appendObject(w, c, b)
	case has("uploads") && c.Method == http.MethodPost:
		return s.startUpload(w, c, b)
	case has("uploadId"):
		return s.uploadOp(w, c, b)
	case has("tagging"), has("symlink"), has("restore"), has("x-oss-process"):
		return errNotImpl
	}
	switch c.Method {
	case http.MethodGet, http.MethodHead:
		return s.get(w, c, b)
	case http.MethodPut:
		if c.Header.Get("X-Oss-Copy-Source") != "" {
			return s.copyObject(w, c, b)
		}
		return s.put(w, c, b)
	case http.MethodDelete:
		s.store.mu.Lock()
		defer s.store.mu.Unlock()
		id, marker, err := s.store.remove(b, c.key, c.query.Get("versionId"), s.now())
		if err != nil {
			return internal(err)
		}
		if b.Versioning != "" {
			w.Header().Set("X-Oss-Version-Id", id)
		}
		if marker {
			w.Header().Set("X-Oss-Delete-Marker", "true")
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return errNotImpl
}

// allowed checks requests without a signature against the object's ACL, which
// comes before the bucket's.
func (s *Server) allowed(c *call, b *bucket) *apiError {
	if c.auth != nil {
		return nil
	}
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	acl := b.ACL
	if o := b.version(c.key, c.query.Get("versionId")); o != nil {
		acl = o.effective(b)
	}
	if c.query.Has("acl") || !acl.allows(c.reads()) {
		return errACL
	}
	return nil
}

func (o *object) effective(b *bucket) ACL {
	if o.ACL == "" || o.ACL == "default" {
		return b.ACL
	}
	return o.ACL
}

// find is the version that the request names. The caller holds the lock.
func (s *Server) find(w http.ResponseWriter, c *call, b *bucket) (*object, *apiError) {
	id := c.query.Get("versionId")
	o := b.version(c.key, id)
	switch {
	case o == nil && id != "":
		return nil, errNoVersion
	case o == nil:
		return nil, errNoKey
	case o.Deleted:
		w.Header().Set("X-Oss-Delete-Marker", "true")
		w.Header().Set("X-Oss-Version-Id", o.Version)
		if id != "" {
			return nil, errMethod
		}
		return nil, errNoKey
	}
	return o, nil
}

func (s *Server) objectACL(w http.ResponseWriter, c *call, b *bucket) *apiError {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	o, e := s.find(w, c, b)
	if e != nil {
		return e
	}
	switch c.Method {
	case http.MethodGet:
		acl := o.ACL
		if acl == "" {
			acl = "default"
		}
		return writeXML(w, aclXML(acl))
	case http.MethodPut:
		acl, e := objectACLHeader(c)
		if e != nil {
			return e
		}
		if err := s.store.setACL(b, o, acl); err != nil {
			return internal(err)
		}
		return nil
	}
	return errNotImpl
}

func objectACLHeader(c *call) (ACL, *apiError) {
	acl := ACL(c.Header.Get("X-Oss-Object-Acl"))
	if acl != "" && !validACL(acl, true) {
		return "", fail(400, "InvalidArgument", "no such object access control exists")
	}
	return acl, nil
}

// keptHeaders are stored with an object, besides x-oss-meta-*.
var keptHeaders = []string{"Content-Type", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires"}

func (c *call) keptHeaders() map[string]string {
	kept := map[string]string{}
	for name, values := range c.Header {
		if strings.HasPrefix(name, "X-Oss-Meta-") {
			kept[name] = values[0]
		}
	}
	for _, name := range keptHeaders {
		if v := c.Header.Get(name); v != "" {
			kept[name] = v
		}
	}
	return kept
}

// forbidden implements x-oss-forbid-overwrite, which a bucket with versioning
// (also suspended) silently ignores. The caller holds the lock.
func (c *call) forbidden(b *bucket) *apiError {
	if strings.EqualFold(c.Header.Get("X-Oss-Forbid-Overwrite"), "true") && b.Versioning == "" && b.newest(c.key) != nil {
		return errExists
	}
	return nil
}

// receive stages the request's body and checks its length and MD5.
func (s *Server) receive(c *call) (*staged, *apiError) {
	if c.ContentLength > maxObject {
		return nil, errTooLarge
	}
	content, err := s.store.stage(io.LimitReader(c.Body, maxObject+1))
	if err != nil {
		return nil, errBody
	}
	var e *apiError
	switch sent := c.Header.Get("Content-Md5"); {
	case content.size > maxObject:
		e = errTooLarge
	case c.ContentLength >= 0 && content.size != c.ContentLength:
		e = errBody
	case sent != "" && sent != content.base64MD5():
		e = errDigest
	}
	if e != nil {
		content.drop()
		return nil, e
	}
	return content, nil
}

func (st *staged) base64MD5() string { return base64MD5(st.md5) }

func base64MD5(hexSum string) string {
	raw, _ := hex.DecodeString(hexSum) // our own hex
	return base64.StdEncoding.EncodeToString(raw)
}

func (s *Server) put(w http.ResponseWriter, c *call, b *bucket) *apiError {
	acl, e := objectACLHeader(c)
	if e != nil {
		return e
	}
	// The service has no conditional overwrite: it refuses rather than ignores.
	for _, h := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if c.Header.Get(h) != "" {
			return errNotImpl
		}
	}
	s.store.mu.RLock()
	e = c.forbidden(b) // before the body is read; commit looks again
	s.store.mu.RUnlock()
	if e != nil {
		return e
	}
	content, e := s.receive(c)
	if e != nil {
		return e
	}
	return s.commit(w, c, b, &object{Key: c.key, Type: "Normal", Header: c.keptHeaders(), ACL: acl}, content)
}

// commit makes content visible as o, or drops it.
func (s *Server) commit(w http.ResponseWriter, c *call, b *bucket, o *object, content *staged) *apiError {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	return s.commitLocked(w, c, b, o, content)
}

func (s *Server) commitLocked(w http.ResponseWriter, c *call, b *bucket, o *object, content *staged) *apiError {
	e := c.forbidden(b) // somebody may have won meanwhile
	if s.store.buckets[b.Name] != b {
		e = errNoBucket
	}
	if e != nil {
		content.drop()
		return e
	}
	if err := s.store.commit(b, o, content, s.now()); err != nil {
		content.drop()
		return internal(err)
	}
	h := w.Header()
	h.Set("ETag", `"`+o.ETag+`"`)
	h.Set("X-Oss-Hash-Crc64ecma", strconv.FormatUint(o.CRC, 10))
	if o.Type == "Normal" {
		h.Set("Content-MD5", base64MD5(o.MD5))
	}
	if b.Versioning != "" {
		h.Set("X-Oss-Version-Id", o.Version)
	}
	return nil
}

func (s *Server) copyObject(w http.ResponseWriter, c *call, b *bucket) *apiError {
	acl, e := objectACLHeader(c)
	if e != nil {
		return e
	}
	name, query, _ := strings.Cut(c.Header.Get("X-Oss-Copy-Source"), "?")
	name, err := url.QueryUnescape(strings.TrimPrefix(name, "/"))
	if err != nil {
		return fail(400, "InvalidArgument", "x-oss-copy-source is invalid.")
	}
	fromBucket, fromKey, _ := strings.Cut(name, "/")
	version, _ := strings.CutPrefix(query, "versionId=")
	src, content, e := s.copySource(c, fromBucket, fromKey, version)
	if e != nil {
		return e
	}
	o := &object{Key: c.key, Type: "Normal", Header: src.Header, ACL: acl}
	if strings.EqualFold(c.Header.Get("X-Oss-Metadata-Directive"), "REPLACE") {
		o.Header = c.keptHeaders()
	}
	if e := s.commit(w, c, b, o, content); e != nil {
		return e
	}
	w.Header().Del("Content-MD5")
	return writeXML(w, struct {
		XMLName            xml.Name `xml:"CopyObjectResult"`
		ETag, LastModified string
	}{ETag: `"` + o.ETag + `"`, LastModified: o.Mod.UTC().Format(timeFormat)})
}

// copySource stages the content of the object to copy from.
func (s *Server) copySource(c *call, bucket, key, version string) (*object, *staged, *apiError) {
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	b := s.store.buckets[bucket]
	if b == nil {
		return nil, nil, errNoBucket
	}
	o := b.version(key, version)
	switch {
	case o == nil || o.Deleted:
		return nil, nil, errNoKey
	case c.auth == nil && !o.effective(b).allows(true):
		return nil, nil, errACL
	}
	if e := precondition(c.Header, "X-Oss-Copy-Source-", o); e != nil {
		return nil, nil, e
	}
	content, err := s.store.copyOf(b, o)
	if err != nil {
		return nil, nil, internal(err)
	}
	return o, content, nil
}

func (s *Server) appendObject(w http.ResponseWriter, c *call, b *bucket) *apiError {
	acl, e := objectACLHeader(c)
	if e != nil {
		return e
	}
	position, err := strconv.ParseInt(c.query.Get("position"), 10, 64)
	if err != nil || position < 0 {
		return fail(400, "InvalidArgument", "position must be a whole number.")
	}
	more, e := s.receive(c)
	if e != nil {
		return e
	}
	defer more.drop()
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	o := &object{Key: c.key, Type: "Appendable", Header: c.keptHeaders(), ACL: acl}
	var parts []string
	var size int64
	if old := b.newest(c.key); old != nil && !old.Deleted {
		if old.Type != "Appendable" {
			return fail(409, "ObjectNotAppendable", "The object is not appendable.")
		}
		o.Header, size = old.Header, old.Size
		if acl == "" {
			o.ACL = old.ACL
		}
		before, err := s.store.copyOf(b, old)
		if err != nil {
			return internal(err)
		}
		defer before.drop()
		parts = append(parts, before.path)
	}
	if size != position {
		w.Header().Set("X-Oss-Next-Append-Position", strconv.FormatInt(size, 10))
		return fail(409, "PositionNotEqualToLength", "Position is not equal to file length.")
	}
	content, err := s.store.concat(append(parts, more.path))
	if err != nil {
		return internal(err)
	}
	w.Header().Set("X-Oss-Next-Append-Position", strconv.FormatInt(content.size, 10))
	return s.commitLocked(w, c, b, o, content)
}

// concat stages the content of files, one after the other.
func (s *store) concat(paths []string) (*staged, error) {
	readers := make([]io.Reader, len(paths))
	for i, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return nil, fmt.Errorf("concat: %w", err)
		}
		defer f.Close()
		readers[i] = f
	}
	return s.stage(io.MultiReader(readers...))
}
