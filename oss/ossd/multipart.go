package ossd

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// minPart is the smallest size of any part but the last.
const minPart = 100 << 10

// upload is a multipart upload under way. A restart forgets it, as an abort
// would. The store's lock guards it.
type upload struct {
	key    string
	id     string
	header map[string]string
	acl    ACL
	parts  map[int]part
}

type part struct {
	*staged
	mod time.Time
}

func (u *upload) drop() {
	for _, p := range u.parts {
		p.drop()
	}
}

func (s *Server) startUpload(w http.ResponseWriter, c *call, b *bucket) *apiError {
	acl, e := objectACLHeader(c)
	if e != nil {
		return e
	}
	u := &upload{key: c.key, id: randomID(16), header: c.keptHeaders(), acl: acl, parts: map[int]part{}}
	s.store.mu.Lock()
	if e = c.forbidden(b); e == nil {
		b.uploads[u.id] = u
	}
	s.store.mu.Unlock()
	if e != nil {
		return e
	}
	encoding := c.query.Get("encoding-type")
	return writeXML(w, struct {
		XMLName                             xml.Name `xml:"InitiateMultipartUploadResult"`
		EncodingType, Bucket, Key, UploadId string
	}{EncodingType: encoding, Bucket: b.Name, Key: encodeKey(c.key, encoding), UploadId: u.id})
}

func encodeKey(key, encoding string) string {
	if encoding == "url" {
		return escape(key)
	}
	return key
}

// upload finds the request's upload. The caller holds the lock.
func (c *call) upload(b *bucket) (*upload, *apiError) {
	if u := b.uploads[c.query.Get("uploadId")]; u != nil && u.key == c.key {
		return u, nil
	}
	return nil, errNoUpload
}

func (s *Server) uploadOp(w http.ResponseWriter, c *call, b *bucket) *apiError {
	switch c.Method {
	case http.MethodPut:
		return s.putPart(w, c, b)
	case http.MethodGet:
		return s.listParts(w, c, b)
	case http.MethodPost:
		return s.completeUpload(w, c, b)
	case http.MethodDelete:
		s.store.mu.Lock()
		defer s.store.mu.Unlock()
		u, e := c.upload(b)
		if e != nil {
			return e
		}
		u.drop()
		delete(b.uploads, u.id)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return errNotImpl
}

func (s *Server) putPart(w http.ResponseWriter, c *call, b *bucket) *apiError {
	if c.Header.Get("X-Oss-Copy-Source") != "" {
		return errNotImpl
	}
	n, err := strconv.Atoi(c.query.Get("partNumber"))
	if err != nil || n < 1 || n > 10000 {
		return fail(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive.")
	}
	content, e := s.receive(c)
	if e != nil {
		return e
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	u, e := c.upload(b)
	if e != nil {
		content.drop()
		return e
	}
	if old, ok := u.parts[n]; ok {
		old.drop()
	}
	u.parts[n] = part{content, s.now()}
	h := w.Header()
	h.Set("ETag", `"`+content.md5+`"`)
	h.Set("X-Oss-Hash-Crc64ecma", strconv.FormatUint(content.crc, 10))
	h.Set("Content-MD5", content.base64MD5())
	return nil
}

func (s *Server) listParts(w http.ResponseWriter, c *call, b *bucket) *apiError {
	type partXML struct {
		PartNumber         int
		LastModified, ETag string
		HashCrc64ecma      uint64
		Size               int64
	}
	var out struct {
		XMLName                                xml.Name `xml:"ListPartsResult"`
		Bucket, EncodingType, Key, UploadId    string
		StorageClass                           string
		PartNumberMarker, NextPartNumberMarker int
		MaxParts                               int
		IsTruncated                            bool
		Part                                   []partXML
	}
	limit, e := maxKeys(c, "max-parts")
	if e != nil {
		return e
	}
	if !c.query.Has("max-parts") {
		limit = 1000
	}
	after, _ := strconv.Atoi(c.query.Get("part-number-marker")) // nonsense starts at the front
	encoding := c.query.Get("encoding-type")
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	u, e := c.upload(b)
	if e != nil {
		return e
	}
	out.Bucket, out.EncodingType, out.Key, out.UploadId = b.Name, encoding, encodeKey(c.key, encoding), u.id
	out.StorageClass, out.MaxParts, out.PartNumberMarker = "Standard", limit, after
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		if n <= after {
			continue
		}
		if len(out.Part) == limit {
			out.IsTruncated = true
			break
		}
		p := u.parts[n]
		out.Part = append(out.Part, partXML{n, p.mod.Format(timeFormat), `"` + p.md5 + `"`, p.crc, p.size})
		out.NextPartNumberMarker = n
	}
	return writeXML(w, out)
}

type completeXML struct {
	XMLName xml.Name `xml:"CompleteMultipartUpload"`
	Part    []struct {
		PartNumber int
		ETag       string
	}
}

// completeUpload makes one object of the parts that the request names.
func (s *Server) completeUpload(w http.ResponseWriter, c *call, b *bucket) *apiError {
	var in completeXML
	if e := readXML(c, &in); e != nil {
		return e
	}
	if len(in.Part) == 0 {
		return errXML
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	u, e := c.upload(b)
	if e != nil {
		return e
	}
	if e := c.forbidden(b); e != nil {
		return e
	}
	var paths []string
	sums := md5.New()
	last := 0
	for i, want := range in.Part {
		p, ok := u.parts[want.PartNumber]
		switch {
		case !ok || !strings.EqualFold(strings.Trim(want.ETag, `" `), p.md5):
			return fail(400, "InvalidPart", "One or more of the specified parts could not be found or the specified entity tag might not have matched the part's entity tag.")
		case want.PartNumber <= last:
			return fail(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
		case p.size < minPart && i < len(in.Part)-1:
			return fail(400, "EntityTooSmall", "Your proposed upload smaller than the minimum allowed size.")
		}
		last = want.PartNumber
		paths = append(paths, p.path)
		io.WriteString(sums, p.md5) // the hex text, where S3 takes the raw sums
	}
	content, err := s.store.concat(paths)
	if err != nil {
		return internal(err)
	}
	o := &object{Key: c.key, Type: "Multipart", Header: u.header, ACL: u.acl}
	o.ETag = fmt.Sprintf("%s-%d", strings.ToUpper(hex.EncodeToString(sums.Sum(nil))), len(paths))
	if e := s.commitLocked(w, c, b, o, content); e != nil {
		return e
	}
	u.drop()
	delete(b.uploads, u.id)
	encoding := c.query.Get("encoding-type")
	return writeXML(w, struct {
		XMLName                                   xml.Name `xml:"CompleteMultipartUploadResult"`
		EncodingType, Location, Bucket, Key, ETag string
	}{EncodingType: encoding, Location: "http://" + c.Host + "/" + b.Name + "/" + escape(c.key), Bucket: b.Name, Key: encodeKey(c.key, encoding), ETag: `"` + o.ETag + `"`})
}
