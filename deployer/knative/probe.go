package knative

import (
	"context"
	"errors"
	"net"
	"net/http"
	"syscall"
	"time"

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
	at, err := t.address(ctx, scope, service, revision)
	if err != nil {
		return deployer.Answer{}, err
	}
	if at.url == "" {
		return deployer.Answer{Status: http.StatusNotFound}, nil // nothing answers for it
	}
	res, _, via, err := t.ask(ctx, scope, at, revision, http.MethodGet, "/", nonce)
	if err != nil {
		return deployer.Answer{}, err
	}
	return deployer.Answer{
		Status: res.StatusCode, Nonce: res.Header.Get(deployer.HeaderNonce), Revision: res.Header.Get(deployer.HeaderRevision),
		Image: res.Header.Get(deployer.HeaderImage), Key: res.Header.Get(deployer.HeaderKey), Via: via,
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
