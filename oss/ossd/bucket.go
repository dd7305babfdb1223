package ossd

import (
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// maxXML bounds the XML bodies that requests carry.
const maxXML = 4 << 20

// timeFormat is the one of XML bodies.
const timeFormat = "2006-01-02T15:04:05.000Z"

type ownerXML struct{ ID, DisplayName string }

var owner = ownerXML{"1000000000000000", "1000000000000000"}

func validBucket(name string) bool {
	if len(name) < 3 || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

func validACL(a ACL, object bool) bool {
	return a == Private || a == PublicRead || a == PublicReadWrite || object && a == "default"
}

// allows reports whether a request without a signature may pass.
func (a ACL) allows(read bool) bool { return a == PublicReadWrite || a == PublicRead && read }

func readXML(c *call, v any) *apiError {
	raw, err := io.ReadAll(io.LimitReader(c.Body, maxXML+1))
	switch {
	case err != nil:
		return errBody
	case len(raw) > maxXML:
		return errTooLarge
	case xml.Unmarshal(raw, v) != nil:
		return errXML
	}
	return nil
}

// serviceOp is what has no bucket: the list of them.
func (s *Server) serviceOp(w http.ResponseWriter, c *call) *apiError {
	if c.auth == nil {
		return errACL
	}
	if c.Method != http.MethodGet {
		return errNotImpl
	}
	type bucketXML struct{ Name, Location, CreationDate, ExtranetEndpoint, IntranetEndpoint, StorageClass, Region string }
	var out struct {
		XMLName xml.Name `xml:"ListAllMyBucketsResult"`
		Prefix  string
		Marker  string
		MaxKeys int
		// IsTruncated and NextMarker lead through the pages.
		IsTruncated bool
		NextMarker  string `xml:",omitempty"`
		Owner       ownerXML
		Buckets     struct{ Bucket []bucketXML }
	}
	limit, e := maxKeys(c, "max-keys")
	if e != nil {
		return e
	}
	out.Owner, out.Prefix, out.Marker, out.MaxKeys = owner, c.query.Get("prefix"), c.query.Get("marker"), limit
	s.store.mu.RLock()
	for _, name := range slices.Sorted(maps.Keys(s.store.buckets)) {
		if !strings.HasPrefix(name, out.Prefix) || name <= out.Marker {
			continue
		}
		if len(out.Buckets.Bucket) == limit {
			out.IsTruncated = true
			break
		}
		out.NextMarker = name
		created := s.store.buckets[name].Created.Format(timeFormat)
		out.Buckets.Bucket = append(out.Buckets.Bucket, bucketXML{name, "oss-" + s.region(), created, c.Host, c.Host, "Standard", s.region()})
	}
	s.store.mu.RUnlock()
	if !out.IsTruncated {
		out.NextMarker = ""
	}
	return writeXML(w, out)
}

// maxKeys reads a page size: 100 unless the request says otherwise.
func maxKeys(c *call, param string) (int, *apiError) {
	v := c.query.Get(param)
	if v == "" {
		return 100, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > 1000 {
		return 0, fail(400, "InvalidArgument", "Argument "+param+" must be an integer between 1 and 1000.")
	}
	return n, nil
}

func (s *Server) bucketOp(w http.ResponseWriter, c *call) *apiError {
	if c.Method == http.MethodPut && len(c.query) == 0 {
		return s.putBucket(w, c)
	}
	b, e := s.openBucket(c)
	if e != nil {
		return e
	}
	st := s.store
	switch has := c.query.Has; {
	case has("delete") && c.Method == http.MethodPost:
		return s.deleteMany(w, c, b)
	case has("acl"):
		return s.bucketACL(w, c, b)
	case has("versioning"):
		return s.bucketVersioning(w, c, b)
	case has("bucketInfo") && c.Method == http.MethodGet:
		return s.bucketInfo(w, c, b)
	case has("location") && c.Method == http.MethodGet:
		return writeXML(w, struct {
			XMLName xml.Name `xml:"LocationConstraint"`
			Name    string   `xml:",chardata"`
		}{Name: "oss-" + s.region()})
	case c.Method == http.MethodDelete && len(c.query) == 0:
		st.mu.Lock()
		defer st.mu.Unlock()
		if len(b.objects) > 0 {
			return fail(409, "BucketNotEmpty", "The bucket you tried to delete is not empty.")
		}
		if err := st.deleteBucket(b); err != nil {
			return internal(err)
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	case c.reads() && !hasSubResource(c):
		st.mu.RLock()
		defer st.mu.RUnlock()
		return s.list(w, c, b)
	}
	return errNotImpl
}

// hasSubResource keeps operations we don't know from being taken for a list.
func hasSubResource(c *call) bool {
	for p := range c.query {
		if p != "continuation-token" && p != "security-token" && slices.Contains(v1SubResources, p) {
			return true
		}
	}
	return false
}

// openBucket finds the request's bucket and checks what the bucket's ACL says
// about requests without a signature; objects have ACLs of their own.
func (s *Server) openBucket(c *call) (*bucket, *apiError) {
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	b := s.store.buckets[c.bucket]
	if b == nil {
		return nil, errNoBucket
	}
	if c.auth == nil && c.key == "" && !b.ACL.allows(c.reads()) {
		return nil, errACL
	}
	return b, nil
}

func (s *Server) putBucket(w http.ResponseWriter, c *call) *apiError {
	if c.auth == nil {
		return errACL
	}
	if !validBucket(c.bucket) {
		return fail(400, "InvalidBucketName", "The specified bucket is not valid.")
	}
	acl := ACL(c.Header.Get("X-Oss-Acl"))
	if acl == "" {
		acl = Private
		s.store.mu.RLock()
		if b := s.store.buckets[c.bucket]; b != nil {
			acl = b.ACL
		}
		s.store.mu.RUnlock()
	}
	if !validACL(acl, false) {
		return fail(400, "InvalidArgument", "no such bucket access control exists")
	}
	if err := s.store.createBucket(c.bucket, acl, s.now()); err != nil {
		return internal(err)
	}
	w.Header().Set("Location", "/"+c.bucket)
	return nil
}

func (s *Server) bucketACL(w http.ResponseWriter, c *call, b *bucket) *apiError {
	if c.auth == nil {
		return errACL
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	switch c.Method {
	case http.MethodGet:
		return writeXML(w, aclXML(b.ACL))
	case http.MethodPut:
		acl := ACL(c.Header.Get("X-Oss-Acl"))
		if !validACL(acl, false) {
			return fail(400, "InvalidArgument", "no such bucket access control exists")
		}
		b.ACL = acl
		if err := s.store.saveBucket(b); err != nil {
			return internal(err)
		}
		return nil
	}
	return errNotImpl
}

func aclXML(acl ACL) any {
	var out struct {
		XMLName           xml.Name `xml:"AccessControlPolicy"`
		Owner             ownerXML
		AccessControlList struct{ Grant ACL }
	}
	out.Owner, out.AccessControlList.Grant = owner, acl
	return out
}

func (s *Server) bucketVersioning(w http.ResponseWriter, c *call, b *bucket) *apiError {
	type versioning struct {
		XMLName xml.Name `xml:"VersioningConfiguration"`
		Status  string   `xml:",omitempty"`
	}
	if c.auth == nil {
		return errACL
	}
	switch c.Method {
	case http.MethodGet:
		s.store.mu.RLock()
		defer s.store.mu.RUnlock()
		return writeXML(w, versioning{Status: b.Versioning})
	case http.MethodPut:
		var in versioning
		if e := readXML(c, &in); e != nil {
			return e
		}
		if in.Status != "Enabled" && in.Status != "Suspended" {
			return errXML
		}
		s.store.mu.Lock()
		defer s.store.mu.Unlock()
		b.Versioning = in.Status
		if err := s.store.saveBucket(b); err != nil {
			return internal(err)
		}
		return nil
	}
	return errNotImpl
}

func (s *Server) bucketInfo(w http.ResponseWriter, c *call, b *bucket) *apiError {
	type info struct {
		Name, Location, CreationDate, ExtranetEndpoint, IntranetEndpoint, StorageClass string

		Versioning        string `xml:",omitempty"`
		Owner             ownerXML
		AccessControlList struct{ Grant ACL }
	}
	s.store.mu.RLock()
	defer s.store.mu.RUnlock()
	i := info{
		Name: b.Name, Location: "oss-" + s.region(), CreationDate: b.Created.Format(timeFormat),
		ExtranetEndpoint: c.Host, IntranetEndpoint: c.Host, StorageClass: "Standard",
		Versioning: b.Versioning, Owner: owner,
	}
	i.AccessControlList.Grant = b.ACL
	return writeXML(w, struct {
		XMLName xml.Name `xml:"BucketInfo"`
		Bucket  info
	}{Bucket: i})
}
