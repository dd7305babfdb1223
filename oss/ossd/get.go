package ossd

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func (s *Server) get(w http.ResponseWriter, c *call, b *bucket) *apiError {
	// Opened under the lock: whoever replaces the object renames over it, and
	// this file stays what it is.
	s.store.mu.RLock()
	o, e := s.find(w, c, b)
	var f *os.File
	var err error
	if e == nil {
		f, err = os.Open(s.store.path(b, o))
	}
	versioned := b.Versioning != ""
	s.store.mu.RUnlock()
	if e != nil {
		return e
	}
	if err != nil {
		return internal(err)
	}
	defer f.Close()

	h := w.Header()
	h.Set("ETag", `"`+o.ETag+`"`)
	h.Set("Last-Modified", o.Mod.UTC().Format(http.TimeFormat))
	h.Set("X-Oss-Object-Type", o.Type)
	h.Set("X-Oss-Hash-Crc64ecma", strconv.FormatUint(o.CRC, 10))
	if versioned {
		h.Set("X-Oss-Version-Id", o.Version)
	}
	if c.query.Has("objectMeta") {
		h.Set("Content-Length", strconv.FormatInt(o.Size, 10))
		if c.Method != http.MethodHead { // a GET with a length must have a body
			h.Set("Content-Length", "0")
		}
		return nil
	}
	if e := precondition(c.Header, "", o); e != nil {
		return e
	}
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Oss-Storage-Class", "Standard")
	h.Set("Accept-Ranges", "bytes")
	for name, v := range o.Header {
		h.Set(name, v)
	}
	switch o.Type {
	case "Normal":
		h.Set("Content-MD5", base64MD5(o.MD5))
	case "Appendable":
		h.Set("X-Oss-Next-Append-Position", strconv.FormatInt(o.Size, 10))
	}
	for p, v := range c.query {
		if name, ok := strings.CutPrefix(p, "response-"); ok {
			h.Set(name, v[0])
		}
	}
	first, n, status := int64(0), o.Size, http.StatusOK
	if span := c.Header.Get("Range"); span != "" {
		a, z, ok := parseRange(span, o.Size)
		switch {
		case ok:
			first, n, status = a, z-a+1, http.StatusPartialContent
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", a, z, o.Size))
		case strings.EqualFold(c.Header.Get("X-Oss-Range-Behavior"), "standard"):
			return fail(416, "InvalidRange", "The requested range cannot be satisfied.")
		} // else the service ignores it
	}
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	w.WriteHeader(status)
	if c.Method == http.MethodGet {
		if _, err := io.Copy(w, io.NewSectionReader(f, first, n)); err != nil && !errors.Is(err, http.ErrAbortHandler) && s.Log != nil {
			s.Log(fmt.Sprintf("GET %q: %v", c.URL.Path, err)) // the client left
		}
	}
	return nil
}

// parseRange reads "bytes=a-z", "bytes=a-" and "bytes=-n" for a content of
// size bytes. Anything else, or beyond the end, is not ok.
func parseRange(v string, size int64) (first, last int64, ok bool) {
	v, ok = strings.CutPrefix(strings.ToLower(v), "bytes=")
	a, z, dash := strings.Cut(v, "-")
	if !ok || !dash || size <= 0 {
		return 0, 0, false
	}
	if a == "" {
		n, err := strconv.ParseUint(z, 10, 63)
		if err != nil || n == 0 {
			return 0, 0, false
		}
		return max(0, size-int64(n)), size - 1, true
	}
	from, err := strconv.ParseUint(a, 10, 63)
	if err != nil || int64(from) >= size {
		return 0, 0, false
	}
	if z == "" {
		return int64(from), size - 1, true
	}
	to, err := strconv.ParseUint(z, 10, 63)
	if err != nil || to < from {
		return 0, 0, false
	}
	return int64(from), min(int64(to), size-1), true
}

// precondition implements the conditional headers, whose names start with
// prefix when they speak of a copy's source.
func precondition(h http.Header, prefix string, o *object) *apiError {
	same := func(tag string) bool { return strings.EqualFold(strings.Trim(strings.TrimSpace(tag), `"`), o.ETag) }
	modified := o.Mod.Truncate(time.Second)
	if v := h.Get(prefix + "If-Match"); v != "" && !same(v) {
		return errPrecond
	}
	if t, err := http.ParseTime(h.Get(prefix + "If-Unmodified-Since")); err == nil && modified.After(t) {
		return errPrecond
	}
	if v := h.Get(prefix + "If-None-Match"); v != "" {
		if same(v) {
			return errUnchanged
		}
		return nil
	}
	if t, err := http.ParseTime(h.Get(prefix + "If-Modified-Since")); err == nil && !modified.After(t) {
		return errUnchanged
	}
	return nil
}
