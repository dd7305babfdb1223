package ossd

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/xml"
	"io"
	"net/http"
	"strings"
)

type contentXML struct {
	Key, LastModified, ETag, Type string
	Size                          int64
	StorageClass                  string
	Owner                         *ownerXML `xml:",omitempty"`
}

type prefixXML struct{ Prefix string }

// listXML is the answer to both versions of the list.
type listXML struct {
	XMLName      xml.Name `xml:"ListBucketResult"`
	Name, Prefix string
	MaxKeys      int
	Delimiter    string
	EncodingType string `xml:",omitempty"`
	IsTruncated  bool

	Marker     *string `xml:",omitempty"` // version 1
	NextMarker string  `xml:",omitempty"`

	StartAfter            string `xml:",omitempty"` // version 2
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	KeyCount              *int   `xml:",omitempty"`

	Contents       []contentXML
	CommonPrefixes []prefixXML
}

// list answers both versions of the list of keys. The caller holds the
// store's lock.
func (s *Server) list(w http.ResponseWriter, c *call, b *bucket) *apiError {
	q := c.query
	v2 := q.Get("list-type") == "2"
	limit, e := maxKeys(c, "max-keys")
	if e != nil {
		return e
	}
	encode := func(x string) string { return x }
	if q.Get("encoding-type") == "url" {
		encode = escape
	}
	after := q.Get("marker")
	if v2 {
		after = q.Get("start-after")
		if t := q.Get("continuation-token"); t != "" {
			raw, err := base64.RawURLEncoding.DecodeString(t)
			if err != nil {
				return fail(400, "InvalidArgument", "The continuation token is invalid.")
			}
			after = string(raw)
		}
	}
	prefix, delimiter := q.Get("prefix"), q.Get("delimiter")
	out := listXML{Name: b.Name, Prefix: encode(prefix), MaxKeys: limit, Delimiter: encode(delimiter), EncodingType: q.Get("encoding-type")}
	last, n := "", 0
	for _, key := range b.keys() {
		o := b.newest(key)
		if o.Deleted || !strings.HasPrefix(key, prefix) {
			continue
		}
		name := key
		if i := strings.Index(key[len(prefix):], delimiter); delimiter != "" && i >= 0 {
			name = key[:len(prefix)+i+len(delimiter)]
		}
		// Everything below a common prefix that was returned sorts behind it.
		if name <= after || n > 0 && name == last {
			continue
		}
		if n == limit {
			out.IsTruncated = true
			break
		}
		n++
		last = name
		if name != key {
			out.CommonPrefixes = append(out.CommonPrefixes, prefixXML{encode(name)})
			continue
		}
		item := contentXML{Key: encode(key), LastModified: o.Mod.UTC().Format(timeFormat), ETag: `"` + o.ETag + `"`, Type: o.Type, Size: o.Size, StorageClass: "Standard"}
		if !v2 || q.Get("fetch-owner") == "true" {
			item.Owner = &owner
		}
		out.Contents = append(out.Contents, item)
	}
	if v2 {
		out.StartAfter, out.ContinuationToken, out.KeyCount = encode(q.Get("start-after")), q.Get("continuation-token"), &n
		if out.IsTruncated {
			out.NextContinuationToken = base64.RawURLEncoding.EncodeToString([]byte(last))
		}
	} else {
		marker := encode(after)
		out.Marker = &marker
		if out.IsTruncated {
			out.NextMarker = encode(last)
		}
	}
	return writeXML(w, out)
}

// deleteMany removes up to 1000 keys.
func (s *Server) deleteMany(w http.ResponseWriter, c *call, b *bucket) *apiError {
	raw, err := io.ReadAll(io.LimitReader(c.Body, maxXML+1))
	if err != nil {
		return errBody
	}
	if len(raw) > maxXML {
		return errTooLarge
	}
	if sent := c.Header.Get("Content-Md5"); sent != "" {
		if sum := md5.Sum(raw); sent != base64.StdEncoding.EncodeToString(sum[:]) {
			return errDigest
		}
	}
	var in struct {
		XMLName xml.Name `xml:"Delete"`
		Quiet   bool
		Object  []struct{ Key, VersionId string }
	}
	if xml.Unmarshal(raw, &in) != nil || len(in.Object) == 0 || len(in.Object) > 1000 {
		return errXML
	}
	type deletedXML struct {
		Key                   string
		VersionId             string `xml:",omitempty"`
		DeleteMarker          bool   `xml:",omitempty"`
		DeleteMarkerVersionId string `xml:",omitempty"`
	}
	var out struct {
		XMLName      xml.Name `xml:"DeleteResult"`
		EncodingType string   `xml:",omitempty"`
		Deleted      []deletedXML
	}
	out.EncodingType = c.query.Get("encoding-type")
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	for _, o := range in.Object {
		id, marker, err := s.store.remove(b, o.Key, o.VersionId, s.now())
		if err != nil {
			return internal(err)
		}
		d := deletedXML{Key: o.Key, VersionId: o.VersionId, DeleteMarker: marker}
		if marker {
			d.DeleteMarkerVersionId = id
		}
		if out.EncodingType == "url" {
			d.Key = escape(o.Key)
		}
		out.Deleted = append(out.Deleted, d)
	}
	if in.Quiet {
		return nil
	}
	return writeXML(w, out)
}
