package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"knative.dev/networking/pkg/apis/networking"
)

// backends finds the ready endpoints of Services and speaks to them. Requests
// go to endpoints and not to cluster addresses, which kube-proxy programs a
// moment after the endpoint is ready. Safe for concurrent use.
type backends struct {
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
	h1, h2   http.RoundTripper
}

func newBackends(services corelisters.ServiceLister, slices discoverylisters.EndpointSliceLister) *backends {
	dial := (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	h2 := &http.Transport{Protocols: new(http.Protocols), DialContext: dial}
	h2.Protocols.SetUnencryptedHTTP2(true)
	return &backends{services: services, slices: slices, h2: h2,
		h1: &http.Transport{MaxIdleConnsPerHost: 100, DisableCompression: true, DialContext: dial}}
}

// endpoint is host:port of a process to send a request to.
type endpoint struct {
	addr string
	h2c  bool // by prior knowledge
}

// resolve picks a ready endpoint of a Service's port.
func (b *backends) resolve(namespace, name string, want intstr.IntOrString) (endpoint, error) {
	svc, err := b.services.Services(namespace).Get(name)
	if err != nil {
		return endpoint{}, err
	}
	var port corev1.ServicePort
	for _, p := range svc.Spec.Ports {
		if p.Port == want.IntVal && want.IntVal != 0 || p.Name == want.StrVal && p.Name != "" {
			port = p
		}
	}
	h2c := port.Name == networking.ServicePortNameH2C || port.AppProtocol != nil && *port.AppProtocol == "kubernetes.io/h2c"
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		if port.Port == 0 {
			port.Port = int32(want.IntValue())
		}
		return endpoint{net.JoinHostPort(svc.Spec.ExternalName, strconv.Itoa(int(port.Port))), h2c}, nil
	}
	if port.Port == 0 {
		return endpoint{}, fmt.Errorf("service %s/%s has no port %s", namespace, name, want.String())
	}
	slices, err := b.slices.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name}))
	if err != nil {
		return endpoint{}, err
	}
	var ready []string
	for _, sl := range slices {
		if sl.AddressType != discoveryv1.AddressTypeIPv4 { // the lab's network has no other
			continue
		}
		for _, p := range sl.Ports {
			if p.Port == nil || (p.Name == nil && port.Name != "") || (p.Name != nil && *p.Name != port.Name) {
				continue
			}
			for _, e := range sl.Endpoints {
				if (e.Conditions.Ready == nil || *e.Conditions.Ready) && len(e.Addresses) > 0 {
					ready = append(ready, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	if len(ready) == 0 {
		return endpoint{}, fmt.Errorf("service %s/%s has no ready endpoint", namespace, name)
	}
	return endpoint{ready[rand.IntN(len(ready))], h2c}, nil
}

// forward sends a request on. change may alter what goes out, answer what comes
// back; either may be nil.
func (b *backends) forward(w http.ResponseWriter, r *http.Request, to endpoint, change func(*http.Request), answer func(http.Header)) {
	p := &httputil.ReverseProxy{
		FlushInterval: -1,
		Transport:     b.h1,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.Header["X-Forwarded-For"] = pr.In.Header["X-Forwarded-For"]
			pr.SetXForwarded()
			pr.Out.URL.Scheme, pr.Out.URL.Host = "http", to.addr
			pr.Out.Host = pr.In.Host
			if change != nil {
				change(pr.Out)
			}
		},
	}
	if answer != nil {
		p.ModifyResponse = func(resp *http.Response) error { answer(resp.Header); return nil }
	}
	if to.h2c && r.Header.Get("Upgrade") == "" {
		p.Transport = b.h2
	}
	p.ServeHTTP(w, r)
}
