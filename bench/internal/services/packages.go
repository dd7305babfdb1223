package services

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html"
	"net/http"
	"os"
	"path"
	"regexp"
	"strings"
	"time"
)

var separators = regexp.MustCompile(`[-_.]+`)

// Wheel is one file of a Python index.
type Wheel struct {
	File, Name, Version string
	SHA256              string
}

// Wheels lists the wheels in dir, by name.
func Wheels(dir string) ([]Wheel, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []Wheel
	for _, e := range entries {
		parts := strings.Split(e.Name(), "-")
		if path.Ext(e.Name()) != ".whl" || len(parts) < 5 {
			continue
		}
		data, err := os.ReadFile(path.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		all = append(all, Wheel{File: e.Name(), Name: separators.ReplaceAllString(parts[0], "-"), Version: parts[1], SHA256: hex.EncodeToString(sum[:])})
	}
	return all, nil
}

// Index serves the wheels of dir as a simple index (PEP 503) below /simple/.
func Index(dir string, wheels []Wheel) (*Server, error) {
	pages := map[string]string{}
	for _, w := range wheels {
		pages[w.Name] += fmt.Sprintf("<a href=\"/files/%s#sha256=%s\">%s</a><br>\n", html.EscapeString(w.File), w.SHA256, html.EscapeString(w.File))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /simple/{name}/", func(w http.ResponseWriter, r *http.Request) {
		page, ok := pages[r.PathValue("name")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!DOCTYPE html><html><body>\n%s</body></html>\n", page)
	})
	mux.Handle("GET /files/", http.StripPrefix("/files/", http.FileServer(http.Dir(dir))))
	return start(mux)
}

// Maven serves the Maven repository at the path below dir; links may lead
// anywhere in dir. It adds the sums that Maven asks for.
func Maven(dir, below string) (*Server, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	s, err := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := path.Join(below, path.Clean("/"+r.URL.Path))
		file, sum := strings.CutSuffix(name, ".sha1")
		st, err := root.Stat(file)
		if err != nil || st.IsDir() {
			http.NotFound(w, r)
			return
		}
		if !sum {
			f, err := root.Open(file)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			defer f.Close()
			http.ServeContent(w, r, path.Base(file), time.Time{}, f)
			return
		}
		data, err := root.ReadFile(file)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "%x", sha1.Sum(data))
	}))
	if err != nil {
		root.Close()
		return nil, err
	}
	s.root = root
	return s, nil
}
