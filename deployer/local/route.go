package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"time"
)

// route is one name requests may ask for. It never changes: new traffic is a
// new table of routes.
type route struct {
	shares []routeShare
	turn   *atomic.Uint64
}

type routeShare struct {
	percent int
	to      *instance
}

// pick chooses the revision of the next request, so that a hundred requests
// are split exactly.
func (r *route) pick() *instance {
	if len(r.shares) == 1 {
		return r.shares[0].to
	}
	// 37 and 100 have no common factor: every remainder comes once.
	at := int(r.turn.Add(37) % 100)
	for _, s := range r.shares {
		if at -= s.percent; at < 0 {
			return s.to
		}
	}
	return nil
}

// publish makes the services' traffic take effect for new requests; it needs
// mu.
func (s *Server) publish() {
	table := map[string]*route{}
	for name, svc := range s.services {
		r := &route{turn: svc.turn}
		for _, t := range svc.rec.Traffic {
			if i := svc.instances[t.Revision]; i != nil && t.Percent > 0 {
				r.shares = append(r.shares, routeShare{t.Percent, i})
			}
		}
		table[name] = r
		for name, i := range svc.instances {
			if _, ok := table[name]; !ok {
				table[name] = &route{shares: []routeShare{{100, i}}, turn: new(atomic.Uint64)}
			}
		}
	}
	s.routes.Store(&table)
}

// serve answers one request of the outside.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	// A request may meet a revision that is being removed: by then there is
	// another table.
	for range 10 {
		name, out := s.address(r)
		if name == "" {
			first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
			say(w, http.StatusNotFound, fmt.Sprintf("no unit or revision is called %q", first))
			return
		}
		to := (*s.routes.Load())[name]
		if to == nil {
			continue
		}
		i := to.pick()
		if i == nil {
			say(w, http.StatusServiceUnavailable, name+" has no traffic yet")
			return
		}
		proxy, release, err := i.acquire(r.Context())
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			if r.Context().Err() == nil {
				i.count(r, http.StatusServiceUnavailable, 0)
				say(w, http.StatusServiceUnavailable, err.Error())
			}
			return
		}
		defer release()
		start, seen := time.Now(), &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() { i.count(r, seen.status, time.Since(start)) }()
		proxy.ServeHTTP(seen, out)
		return
	}
	say(w, http.StatusServiceUnavailable, "the unit is being removed")
}

// address finds the name a request asks for: the first label of its host, or
// the first segment of its path, which is taken off then.
func (s *Server) address(r *http.Request) (string, *http.Request) {
	table := *s.routes.Load()
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host != "localhost" && net.ParseIP(strings.Trim(host, "[]")) == nil {
		label, _, _ := strings.Cut(strings.ToLower(host), ".")
		if table[label] != nil {
			return label, r
		}
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if name == "" || table[name] == nil {
		return "", r
	}
	out := r.Clone(r.Context())
	prefix := "/" + name
	out.URL.Path = rooted(strings.TrimPrefix(r.URL.Path, prefix))
	if r.URL.RawPath != "" {
		out.URL.RawPath = rooted(strings.TrimPrefix(r.URL.RawPath, prefix))
	}
	out.Header.Set("X-Forwarded-Prefix", prefix)
	return name, out
}

func rooted(path string) string {
	if !strings.HasPrefix(path, "/") {
		return "/" + path
	}
	return path
}

// proxyTo streams requests to the process at addr.
func (s *Server) proxyTo(addr string, timeout time.Duration) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", addr
			p.Out.Host = p.In.Host
			p.SetXForwarded()
			if prefix := p.In.Header.Get("X-Forwarded-Prefix"); prefix != "" {
				p.Out.Header.Set("X-Forwarded-Prefix", prefix)
			}
		},
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			MaxIdleConnsPerHost: 100,
			// Shorter than any server's own keep-alive time (Node.js: 5 s),
			// so that a connection is not used while the other side closes it.
			IdleConnTimeout:       2 * time.Second,
			ResponseHeaderTimeout: timeout,
			DisableCompression:    true,
		},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			var slow net.Error
			switch {
			case errors.Is(err, context.Canceled):
				return // the caller has gone
			case errors.As(err, &slow) && slow.Timeout():
				say(w, http.StatusGatewayTimeout, "the unit did not answer in time")
			default:
				s.host.say("%s %s: %v", r.Method, r.URL.Path, err)
				say(w, http.StatusBadGateway, "the unit ended the connection")
			}
		},
	}
}

// say answers in our own name.
func say(w http.ResponseWriter, status int, what string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": what, "from": "local target"})
}

// url is a name's address.
func (s *Server) at(name string) string { return s.url + "/" + name }
