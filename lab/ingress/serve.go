package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// find returns the rule for a request: the most specific listener for its host
// is asked, and no other.
func (s *socket) find(r *http.Request) (rule, bool) {
	host := hostOf(r)
	for _, l := range s.listeners {
		if !hostMatches(l.hostname, host) {
			continue
		}
		for _, rule := range l.rules {
			if hostMatches(rule.host, host) && matches(rule.match, r) {
				return rule, true
			}
		}
		break
	}
	return rule{}, false
}

func matches(m gatewayv1.HTTPRouteMatch, r *http.Request) bool {
	if m.Path != nil && m.Path.Value != nil {
		if m.Path.Type != nil && *m.Path.Type == gatewayv1.PathMatchExact {
			if r.URL.Path != *m.Path.Value {
				return false
			}
		} else if !hasPathPrefix(r.URL.Path, *m.Path.Value) {
			return false
		}
	}
	if m.Method != nil && r.Method != string(*m.Method) {
		return false
	}
	for _, h := range m.Headers {
		if !strings.EqualFold(string(h.Name), "Host") && strings.Join(r.Header.Values(string(h.Name)), ",") != h.Value {
			return false
		}
	}
	if len(m.QueryParams) > 0 {
		q := r.URL.Query()
		for _, want := range m.QueryParams {
			if v, ok := q[string(want.Name)]; !ok || v[0] != want.Value {
				return false
			}
		}
	}
	return true
}

// hasPathPrefix compares whole path elements: /foo is a prefix of /foo/bar and
// not of /foobar.
func hasPathPrefix(path, prefix string) bool {
	prefix = strings.TrimSuffix(prefix, "/")
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// handle serves one request of a socket.
func (s *socket) handle(b *backends, at netip.AddrPort, w http.ResponseWriter, r *http.Request) {
	rule, ok := s.find(r)
	if !ok {
		http.Error(w, "ingress: no route for "+hostOf(r)+r.URL.Path, http.StatusNotFound)
		return
	}
	for _, f := range rule.filters {
		if f.RequestRedirect != nil {
			scheme := "http"
			if s.tls {
				scheme = "https"
			}
			to, code := redirect(f.RequestRedirect, r, scheme, at.Port(), pathOf(rule))
			answerHeaders(rule.filters, w.Header())
			w.Header().Set("Location", to)
			w.WriteHeader(code)
			return
		}
	}
	to, ok := rule.pick(rand.IntN)
	if !ok || to.invalid {
		http.Error(w, "ingress: the route has no backend", http.StatusInternalServerError)
		return
	}
	e, err := b.resolve(to.namespace, to.name, intstr.FromInt32(to.port))
	if err != nil {
		http.Error(w, "ingress: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	b.forward(w, r, e, func(out *http.Request) {
		for _, fs := range [][]gatewayv1.HTTPRouteFilter{rule.filters, to.filters} {
			for _, f := range fs {
				if f.RequestHeaderModifier != nil {
					modify(f.RequestHeaderModifier, out.Header)
				}
				if f.URLRewrite != nil {
					if f.URLRewrite.Hostname != nil {
						out.Host = string(*f.URLRewrite.Hostname)
					}
					if f.URLRewrite.Path != nil {
						out.URL.Path, out.URL.RawPath = rewritePath(f.URLRewrite.Path, out.URL.Path, pathOf(rule)), ""
					}
				}
			}
		}
	}, func(h http.Header) {
		answerHeaders(to.filters, h)
		answerHeaders(rule.filters, h)
	})
}

// pick chooses a backend by weight; rnd returns a number below its argument.
func (r rule) pick(rnd func(int) int) (backend, bool) {
	if r.total == 0 {
		return backend{}, false
	}
	n := rnd(r.total)
	for _, b := range r.backends {
		if n -= b.weight; n < 0 {
			return b, true
		}
	}
	return backend{}, false
}

func answerHeaders(filters []gatewayv1.HTTPRouteFilter, h http.Header) {
	for _, f := range filters {
		if f.ResponseHeaderModifier != nil {
			modify(f.ResponseHeaderModifier, h)
		}
	}
}

func modify(f *gatewayv1.HTTPHeaderFilter, h http.Header) {
	for _, s := range f.Set {
		h.Set(string(s.Name), s.Value)
	}
	for _, a := range f.Add {
		// One line with a list, as gateways do; more lines mean the same.
		if old := h.Values(string(a.Name)); len(old) > 0 {
			h.Set(string(a.Name), strings.Join(append(old, a.Value), ","))
		} else {
			h.Set(string(a.Name), a.Value)
		}
	}
	for _, name := range f.Remove {
		h.Del(name)
	}
}

// rewritePath replaces a whole path or the prefix that matched.
func rewritePath(m *gatewayv1.HTTPPathModifier, path, prefix string) string {
	if m.Type == gatewayv1.FullPathHTTPPathModifier && m.ReplaceFullPath != nil {
		return *m.ReplaceFullPath
	}
	if m.ReplacePrefixMatch == nil {
		return path
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(path, strings.TrimSuffix(prefix, "/")), "/")
	with := strings.TrimSuffix(*m.ReplacePrefixMatch, "/")
	if rest == "" {
		if with == "" {
			return "/"
		}
		if strings.HasSuffix(path, "/") {
			return with + "/"
		}
		return with
	}
	return with + "/" + rest
}

// redirect returns a redirect's target and status. scheme and port are those
// of the listener the request came to.
func redirect(f *gatewayv1.HTTPRequestRedirectFilter, r *http.Request, scheme string, port uint16, prefix string) (string, int) {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if f.Hostname != nil {
		host = string(*f.Hostname)
	}
	p := int(port)
	if f.Scheme != nil {
		scheme = *f.Scheme
		p = map[string]int{"http": 80, "https": 443}[scheme]
	}
	if f.Port != nil {
		p = int(*f.Port)
	}
	if !(scheme == "http" && p == 80 || scheme == "https" && p == 443) {
		host = net.JoinHostPort(host, strconv.Itoa(p))
	}
	u := *r.URL
	if f.Path != nil {
		u.Path, u.RawPath = rewritePath(f.Path, u.Path, prefix), ""
	}
	u.Scheme, u.Host = scheme, host
	code := http.StatusFound
	if f.StatusCode != nil {
		code = *f.StatusCode
	}
	return u.String(), code
}

// String is for logs and tests.
func (r rule) String() string { return fmt.Sprintf("%s%s → %v", r.host, pathOf(r), r.backends) }
