// Package piptest makes wheels and serves them as a package index.
package piptest

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Wheel describes a wheel to make.
type Wheel struct {
	Name, Version string
	Tag           string // "" is py3-none-any
	Requires      []string
	// Files by name in the wheel; a name that ends in "*" is executable.
	Files map[string]string
	// EntryPoints is the text of entry_points.txt; "" is none.
	EntryPoints string
}

// FileName is the wheel's.
func (w Wheel) FileName() string {
	return strings.ReplaceAll(w.Name, "-", "_") + "-" + w.Version + "-" + w.tag() + ".whl"
}

func (w Wheel) tag() string {
	if w.Tag == "" {
		return "py3-none-any"
	}
	return w.Tag
}

// Bytes is the wheel itself.
func (w Wheel) Bytes(t testing.TB) []byte {
	t.Helper()
	info := strings.ReplaceAll(w.Name, "-", "_") + "-" + w.Version + ".dist-info"
	files := map[string]string{}
	for n, text := range w.Files {
		files[n] = text
	}
	meta := "Metadata-Version: 2.1\nName: " + w.Name + "\nVersion: " + w.Version + "\n"
	for _, r := range w.Requires {
		meta += "Requires-Dist: " + r + "\n"
	}
	files[info+"/METADATA"] = meta + "\ntext\n"
	files[info+"/WHEEL"] = "Wheel-Version: 1.0\nGenerator: piptest\nRoot-Is-Purelib: true\nTag: " + w.tag() + "\n"
	if w.EntryPoints != "" {
		files[info+"/entry_points.txt"] = w.EntryPoints
	}
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	record := ""
	add := func(name, text string) {
		h := &zip.FileHeader{Name: strings.TrimSuffix(name, "*"), Method: zip.Deflate}
		h.SetMode(0o644)
		if strings.HasSuffix(name, "*") {
			h.SetMode(0o755)
		}
		f, err := z.CreateHeader(h)
		if err == nil {
			_, err = f.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(text))
		record += fmt.Sprintf("%s,sha256=%s,%d\n", h.Name, base64.RawURLEncoding.EncodeToString(sum[:]), len(text))
	}
	for _, n := range names {
		add(n, files[n])
	}
	record += info + "/RECORD,,\n"
	add(info+"/RECORD", record)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Index is a running package index.
type Index struct {
	// URL is the simple index's address.
	URL string
	// Token, when set, is the password that every request needs.
	Token string
	// Before, when set, may answer a request itself.
	Before func(w http.ResponseWriter, r *http.Request) (answered bool)

	mu       sync.Mutex
	files    map[string][]byte
	requests []string
}

// NewIndex serves until the test ends.
func NewIndex(t testing.TB, wheels ...Wheel) *Index {
	t.Helper()
	i := &Index{files: map[string][]byte{}}
	srv := httptest.NewServer(i)
	t.Cleanup(srv.Close)
	i.URL = srv.URL + "/simple"
	for _, w := range wheels {
		i.Add(w.FileName(), w.Bytes(t))
	}
	return i
}

// Add publishes a file.
func (i *Index) Add(name string, data []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.files[name] = data
}

// Requests are the paths asked for so far.
func (i *Index) Requests() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.requests)
}

// Line is a wheel's line in a requirements.txt.
func (w Wheel) Line(t testing.TB) string {
	return w.Name + "==" + w.Version + " --hash=sha256:" + Sum(w.Bytes(t)) + "\n"
}

// Sum is the SHA-256 of data in hex.
func Sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

var separators = regexp.MustCompile(`[-_.]+`)

// ServeHTTP answers /simple/NAME/ and /files/FILE.
func (i *Index) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.requests = append(i.requests, r.URL.Path)
	i.mu.Unlock()
	if i.Before != nil && i.Before(w, r) {
		return
	}
	if _, password, _ := r.BasicAuth(); i.Token != "" && password != i.Token {
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if name, ok := strings.CutPrefix(r.URL.Path, "/files/"); ok {
		data, ok := i.files[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(data)
		return
	}
	want := path.Base(r.URL.Path)
	var links string
	for name, data := range i.files {
		// The project's name ends where the version begins.
		if own, _, _ := strings.Cut(name, "-"); strings.ToLower(separators.ReplaceAllString(own, "-")) == want {
			links += fmt.Sprintf("<a href=\"../../files/%s#sha256=%s\">%s</a><br>\n", name, Sum(data), name)
		}
	}
	if links == "" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprintf(w, "<!DOCTYPE html><html><body>%s</body></html>", links)
}
