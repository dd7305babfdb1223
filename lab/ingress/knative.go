package main

import (
	"context"
	"log"
	"math/rand/v2"
	"net/http"
	"sort"
	"strings"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	netclient "knative.dev/networking/pkg/client/clientset/versioned"
	"knative.dev/networking/pkg/ingress"
)

// key is a host on one of the two listeners.
type key struct {
	host  string
	local bool
}

// table is an immutable set of routes by host.
type table map[key][]v1alpha1.HTTPIngressPath

// server serves Knative's Ingresses of one class.
type server struct {
	class    string
	public   []v1alpha1.LoadBalancerIngressStatus
	private  []v1alpha1.LoadBalancerIngressStatus
	net      netclient.Interface
	backends *backends
	list     func() []*v1alpha1.Ingress
	routes   atomic.Pointer[table]
}

// sync rebuilds the routes, then reports those now served.
func (s *server) sync(ctx context.Context) {
	t := table{}
	var mine []*v1alpha1.Ingress
	for _, in := range s.list() {
		if in.Annotations[networking.IngressClassAnnotationKey] != s.class || in.DeletionTimestamp != nil {
			continue
		}
		probed := in.DeepCopy()
		if _, err := ingress.InsertProbe(probed); err != nil { // answers K-Network-Hash probes
			log.Printf("%s/%s: %v", in.Namespace, in.Name, err)
			continue
		}
		missing := ""
		for _, r := range probed.Spec.Rules {
			for _, p := range r.HTTP.Paths {
				for _, b := range p.Splits {
					if _, err := s.backends.resolve(b.ServiceNamespace, b.ServiceName, b.ServicePort); err != nil {
						missing = err.Error()
					}
				}
				for _, host := range r.Hosts {
					k := key{host, r.Visibility == v1alpha1.IngressVisibilityClusterLocal}
					t[k] = append(t[k], p)
				}
			}
		}
		if missing != "" {
			log.Printf("%s/%s: waits: %s", in.Namespace, in.Name, missing)
			continue // an event of that Service brings us back
		}
		mine = append(mine, in)
	}
	for _, rs := range t { // the longest path and the most headers win
		sort.SliceStable(rs, func(i, j int) bool {
			if a, b := len(rs[i].Path), len(rs[j].Path); a != b {
				return a > b
			}
			return len(rs[i].Headers) > len(rs[j].Headers)
		})
	}
	s.routes.Store(&t)

	for _, in := range mine {
		n := in.DeepCopy()
		n.Status.InitializeConditions()
		n.Status.MarkNetworkConfigured()
		n.Status.MarkLoadBalancerReady(s.public, s.private)
		n.Status.ObservedGeneration = n.Generation
		if equality.Semantic.DeepEqual(in.Status, n.Status) {
			continue
		}
		if _, err := s.net.NetworkingV1alpha1().Ingresses(n.Namespace).UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
			log.Printf("%s/%s: status: %v", n.Namespace, n.Name, err)
			continue
		}
		log.Printf("%s/%s: ready, generation %d", n.Namespace, n.Name, n.Generation)
	}
}

func (s *server) serve(w http.ResponseWriter, r *http.Request, local bool) {
	host := hostOf(r)
	for _, p := range (*s.routes.Load())[key{host, local}] {
		if !strings.HasPrefix(r.URL.Path, p.Path) || !headersMatch(r.Header, p.Headers) {
			continue
		}
		s.proxy(w, r, p)
		return
	}
	http.Error(w, "ingress: no route for "+host, http.StatusNotFound)
}

func headersMatch(h http.Header, want map[string]v1alpha1.HeaderMatch) bool {
	for k, m := range want {
		if h.Get(k) != m.Exact {
			return false
		}
	}
	return true
}

func pick(splits []v1alpha1.IngressBackendSplit) v1alpha1.IngressBackendSplit {
	if len(splits) == 1 {
		return splits[0]
	}
	n := rand.IntN(100)
	for _, b := range splits {
		if n -= b.Percent; n < 0 {
			return b
		}
	}
	return splits[len(splits)-1]
}

func (s *server) proxy(w http.ResponseWriter, r *http.Request, path v1alpha1.HTTPIngressPath) {
	b := pick(path.Splits)
	to, err := s.backends.resolve(b.ServiceNamespace, b.ServiceName, b.ServicePort)
	if err != nil {
		http.Error(w, "ingress: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	s.backends.forward(w, r, to, func(out *http.Request) {
		if path.RewriteHost != "" {
			out.Host = path.RewriteHost
		}
		for _, m := range []map[string]string{path.AppendHeaders, b.AppendHeaders} {
			for k, v := range m {
				out.Header.Set(k, v)
			}
		}
	}, nil)
}
