package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxRelayed is the longest document of a registry that is searched for its
// own address; package archives are of another type.
const maxRelayed = 64 << 20

// Relay shows a package registry to an installer on a loopback address, until
// stop is called. It adds the credentials, so that they are nowhere an install
// script could read them, and trusts whom this machine trusts, where a build
// image has certificates of its own; and it asks the proxies that some
// installers don't know. An address without any of that is as good.
func (e *Layers) Relay(address string) (here string, stop func(), err error) {
	if address == "" || e.o.Authorize == nil && !strings.HasPrefix(address, "https:") && !e.proxied() {
		return address, func() {}, nil
	}
	registry, err := url.Parse(address)
	if err != nil || registry.Host == "" {
		return "", nil, errors.New("builder: the package registry's address can't be read") // it may hold a password
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("builder: %w", err)
	}
	own := &url.URL{Scheme: "http", Host: ln.Addr().String()}
	origin := registry.Scheme + "://" + registry.Host
	proxy := &httputil.ReverseProxy{
		Transport: e.o.Transport,
		ErrorLog:  log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = registry.Scheme, registry.Host, registry.Host
			r.Out.Header.Del("Authorization")
			r.Out.Header.Del("Accept-Encoding")
			if e.o.Authorize != nil {
				e.o.Authorize(r.Out)
			}
		},
		ModifyResponse: func(r *http.Response) error {
			if to := r.Header.Get("Location"); strings.HasPrefix(to, origin+"/") {
				r.Header.Set("Location", own.String()+strings.TrimPrefix(to, origin))
			}
			return hereInstead(r, origin, own.String())
		},
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: proxy.ErrorLog, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			http.Error(w, "an installation reads", http.StatusMethodNotAllowed)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	go srv.Serve(ln)
	shown := *registry
	shown.Scheme, shown.Host, shown.User = own.Scheme, own.Host, nil
	return shown.String(), func() { srv.Close() }, nil
}

// proxied says whether the machine reaches the web by a proxy.
func (e *Layers) proxied() bool {
	return slices.ContainsFunc(e.o.Env, func(kv string) bool {
		name, value, _ := strings.Cut(kv, "=")
		return value != "" && strings.EqualFold(name, "HTTP_PROXY")
	})
}

// hereInstead puts another origin for the registry's into its lists of
// packages: their links lead to archives.
func hereInstead(r *http.Response, origin, own string) error {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind != "text/html" && kind != "application/json" && !strings.HasSuffix(kind, "+json") && !strings.HasSuffix(kind, "+html") {
		return nil
	}
	if r.Request.Method == http.MethodHead {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, maxRelayed+1))
	r.Body.Close()
	if err != nil {
		return err
	}
	if len(text) > maxRelayed {
		return fmt.Errorf("a list of more than %d bytes", maxRelayed)
	}
	text = bytes.ReplaceAll(text, []byte(origin+"/"), []byte(own+"/"))
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
	r.Header.Set("Content-Length", strconv.Itoa(len(text)))
	return nil
}
