package knative

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"knative.dev/networking/pkg/apis/networking"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// unitClient asks units. Every question is a connection of its own, so that a
// balancer in front has its say each time.
func unitClient(c Config) *http.Client {
	tr := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSHandshakeTimeout: 5 * time.Second}
	dial := &net.Dialer{Timeout: 5 * time.Second}
	tr.DialContext = dial.DialContext
	if c.IngressAddress != "" {
		tr.Proxy = nil
		tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dial.DialContext(ctx, network, c.IngressAddress)
		}
	}
	return clientOf(tr, c)
}

// insideClient asks units that only the cluster's inside reaches: there is no
// way but their name, which resolves where this job runs inside too.
func insideClient(c Config) *http.Client {
	dial := &net.Dialer{Timeout: 5 * time.Second}
	return clientOf(&http.Transport{DisableKeepAlives: true, DialContext: dial.DialContext}, c)
}

func clientOf(tr *http.Transport, c Config) *http.Client {
	return &http.Client{Transport: tr, Timeout: c.Times.Probe, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Probe implements [deployer.Units].
func (t *Target) Probe(ctx context.Context, scope deployer.Scope, service, revision, nonce string) (deployer.Answer, error) {
	svc, route, err := t.routeOf(ctx, scope, service)
	if err != nil {
		return deployer.Answer{}, err
	}
	url := routeURL(svc, route)
	if revision != "" {
		url = revisionURL(revision, route)
		if url == "" && svc != nil && onlyTraffic(svc, revision) {
			url = routeURL(svc, route)
		}
	}
	if svc == nil || url == "" {
		return deployer.Answer{Status: http.StatusNotFound}, nil // nothing answers for it
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return deployer.Answer{}, fmt.Errorf("knative: ask %s: %w", url, err)
	}
	req.Header.Set(deployer.HeaderNonce, nonce)
	client, ingress := t.units, t.cfg.IngressAddress
	if svc.Labels[networking.VisibilityLabelKey] != "" {
		client, ingress = t.inside, ""
	}
	res, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return deployer.Answer{}, context.Cause(ctx)
		}
		if ingress == "" && unreachable(err) {
			return deployer.Answer{}, fmt.Errorf("knative: ask %s: %w: %w", url, deployer.ErrUnreachable, err)
		}
		// An address that was given is one that ought to answer.
		return deployer.Answer{}, fmt.Errorf("knative: ask %s: %w", url, err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	return deployer.Answer{
		Status: res.StatusCode, Nonce: res.Header.Get(deployer.HeaderNonce), Revision: res.Header.Get(deployer.HeaderRevision),
		Image: res.Header.Get(deployer.HeaderImage), Key: res.Header.Get(deployer.HeaderKey),
	}, nil
}

// unreachable reports that the address itself is out of reach: no name, no
// way, nobody there.
func unreachable(err error) bool {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dns):
		return dns.IsNotFound || dns.IsTimeout || dns.IsTemporary
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ECONNREFUSED):
		return true
	case errors.As(err, &op):
		return op.Op == "dial" && op.Timeout()
	}
	return false
}

// onlyTraffic reports whether the route reaches nothing but the revision.
func onlyTraffic(svc *servingv1.Service, revision string) bool {
	for _, s := range shares(svc.Spec.Traffic) {
		if s.Revision == revision && s.Percent == 100 {
			return true
		}
	}
	return false
}
