package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	gwclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
	gwinformers "sigs.k8s.io/gateway-api/pkg/client/informers/externalversions"
)

// gateways serves Gateway API: it makes a plan of all objects at each change,
// listens as planned, and writes status.
type gateways struct {
	client    gwclient.Interface
	backends  *backends
	pool      []netip.Addr
	informers []cache.SharedIndexInformer
	world     func() (world, error)
	sockets   map[netip.AddrPort]*openSocket
}

// openSocket is a socket that is listened on; what it serves is replaced while
// it is.
type openSocket struct {
	current atomic.Pointer[socket]
	server  *http.Server
}

func newGateways(client gwclient.Interface, b *backends, kf informers.SharedInformerFactory, gf gwinformers.SharedInformerFactory, pool []netip.Addr) *gateways {
	classes, gws, routes := gf.Gateway().V1().GatewayClasses(), gf.Gateway().V1().Gateways(), gf.Gateway().V1().HTTPRoutes()
	grants, spaces, secrets := gf.Gateway().V1beta1().ReferenceGrants(), kf.Core().V1().Namespaces(), kf.Core().V1().Secrets()
	g := &gateways{client: client, backends: b, pool: pool, sockets: map[netip.AddrPort]*openSocket{}}
	g.informers = []cache.SharedIndexInformer{classes.Informer(), gws.Informer(), routes.Informer(), grants.Informer(), spaces.Informer(), secrets.Informer()}
	g.world = func() (world, error) {
		var w world
		var err error
		if w.classes, err = classes.Lister().List(labels.Everything()); err != nil {
			return w, err
		}
		if w.gateways, err = gws.Lister().List(labels.Everything()); err != nil {
			return w, err
		}
		if w.routes, err = routes.Lister().List(labels.Everything()); err != nil {
			return w, err
		}
		if w.grants, err = grants.Lister().List(labels.Everything()); err != nil {
			return w, err
		}
		all, err := spaces.Lister().List(labels.Everything())
		if err != nil {
			return w, err
		}
		w.namespaces = map[string]labels.Set{}
		for _, n := range all {
			w.namespaces[n.Name] = n.Labels
		}
		// A lister knows one error only: that there is none of that name.
		w.service = func(ns, name string) *corev1.Service { s, _ := b.services.Services(ns).Get(name); return s }
		w.secret = func(ns, name string) *corev1.Secret { s, _ := secrets.Lister().Secrets(ns).Get(name); return s }
		return w, nil
	}
	return g
}

// sync serves what the objects now ask for, then reports it.
func (g *gateways) sync(ctx context.Context) {
	w, err := g.world()
	if err != nil {
		log.Printf("gateways: %v", err)
		return
	}
	p := makePlan(w, g.pool)
	for at, s := range p.sockets {
		if open := g.sockets[at]; open != nil {
			if open.current.Load().tls == s.tls {
				open.current.Store(s)
				continue
			}
			open.server.Close()
			delete(g.sockets, at)
		}
		if err := g.listen(at, s); err != nil {
			log.Printf("gateways: %v", err)
		}
	}
	for at, open := range g.sockets {
		if p.sockets[at] == nil {
			open.server.Close()
			delete(g.sockets, at)
		}
	}
	g.report(ctx, w, p)
}

// report writes the statuses that changed. A conflict means the object did too;
// its event brings us back.
func (g *gateways) report(ctx context.Context, w world, p plan) {
	note := func(kind, name string, err error) {
		if err != nil {
			log.Printf("gateways: status of %s %s: %v", kind, name, err)
		}
	}
	api := g.client.GatewayV1()
	for _, c := range w.classes {
		if st, ok := p.classes[c.Name]; ok && !equality.Semantic.DeepEqual(st, c.Status) {
			n := c.DeepCopy()
			n.Status = st
			_, err := api.GatewayClasses().UpdateStatus(ctx, n, metav1.UpdateOptions{})
			note("GatewayClass", c.Name, err)
		}
	}
	for _, gw := range w.gateways {
		st, ok := p.gateways[nameOf(gw)]
		if ok && !equality.Semantic.DeepEqual(st, gw.Status) {
			n := gw.DeepCopy()
			n.Status = st
			_, err := api.Gateways(gw.Namespace).UpdateStatus(ctx, n, metav1.UpdateOptions{})
			note("Gateway", nameOf(gw).String(), err)
		}
	}
	for _, r := range w.routes {
		st, ok := p.routes[nameOf(r)]
		if ok && !equality.Semantic.DeepEqual(st, r.Status) {
			n := r.DeepCopy()
			n.Status = st
			_, err := api.HTTPRoutes(r.Namespace).UpdateStatus(ctx, n, metav1.UpdateOptions{})
			note("HTTPRoute", nameOf(r).String(), err)
		}
	}
}

// listen opens a socket and serves it until it is closed.
func (g *gateways) listen(at netip.AddrPort, s *socket) error {
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		return fmt.Errorf("listen on %s: %w", at, err)
	}
	open := &openSocket{}
	open.current.Store(s)
	open.server = newHTTPServer(func(w http.ResponseWriter, r *http.Request) { open.current.Load().handle(g.backends, at, w, r) })
	g.sockets[at] = open
	go func() {
		if s.tls {
			open.server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: open.certificate}
			err = open.server.ServeTLS(ln, "", "")
		} else {
			err = open.server.Serve(ln)
		}
		if err != http.ErrServerClosed {
			log.Printf("gateways: %s: %v", at, err)
		}
	}()
	return nil
}

// certificate is the one of the most specific listener for the name asked for.
func (o *openSocket) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	for _, l := range o.current.Load().listeners {
		if hostMatches(l.hostname, strings.ToLower(hello.ServerName)) {
			return l.cert, nil
		}
	}
	return nil, fmt.Errorf("no listener for %q", hello.ServerName)
}

func (g *gateways) close() {
	for _, o := range g.sockets {
		o.server.Close()
	}
}
