package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
)

// controllerName is what GatewayClasses of the lab name.
const controllerName = "lab.example/ingress"

// world is everything a plan is made from, as the informers have it. Objects
// are not changed.
type world struct {
	classes    []*gatewayv1.GatewayClass
	gateways   []*gatewayv1.Gateway
	routes     []*gatewayv1.HTTPRoute
	grants     []*gatewayv1beta1.ReferenceGrant
	namespaces map[string]labels.Set
	service    func(namespace, name string) *corev1.Service // nil: none
	secret     func(namespace, name string) *corev1.Secret
}

// plan is what to serve, and what to write to status once it is served.
type plan struct {
	sockets  map[netip.AddrPort]*socket
	classes  map[string]gatewayv1.GatewayClassStatus
	gateways map[types.NamespacedName]gatewayv1.GatewayStatus
	routes   map[types.NamespacedName]gatewayv1.HTTPRouteStatus
}

// socket is an address and port to listen on.
type socket struct {
	tls       bool
	listeners []*listener // the most specific hostname first
}

// listener is one of a Gateway's, with the rules of the routes attached to it.
type listener struct {
	hostname string // "": any
	cert     *tls.Certificate
	rules    []rule // the first match wins
}

// makePlan decides everything about Gateways and HTTPRoutes of our classes. It
// does no input or output.
func makePlan(w world, pool []netip.Addr) plan {
	p := plan{sockets: map[netip.AddrPort]*socket{}, classes: map[string]gatewayv1.GatewayClassStatus{},
		gateways: map[types.NamespacedName]gatewayv1.GatewayStatus{}, routes: map[types.NamespacedName]gatewayv1.HTTPRouteStatus{}}
	ours := map[gatewayv1.ObjectName]bool{}
	for _, c := range w.classes {
		if c.Spec.ControllerName != controllerName {
			continue
		}
		ours[gatewayv1.ObjectName(c.Name)] = true
		st := *c.Status.DeepCopy()
		set(&st.Conditions, c.Generation, string(gatewayv1.GatewayClassConditionStatusAccepted), true, string(gatewayv1.GatewayClassReasonAccepted), "")
		st.SupportedFeatures = nil
		for _, f := range supportedFeatures() {
			st.SupportedFeatures = append(st.SupportedFeatures, gatewayv1.SupportedFeature{Name: gatewayv1.FeatureName(f)})
		}
		p.classes[c.Name] = st
	}
	gateways := map[types.NamespacedName]*gatewayPlan{}
	var order []*gatewayPlan
	for _, g := range w.gateways {
		if ours[g.Spec.GatewayClassName] && g.DeletionTimestamp == nil {
			gp := &gatewayPlan{gateway: g}
			gateways[nameOf(g)] = gp
			order = append(order, gp)
		}
	}
	// The oldest first, so that who came first keeps what is scarce.
	slices.SortFunc(order, func(a, b *gatewayPlan) int { return older(a.gateway, b.gateway) })
	assign(order, pool)
	for _, g := range order {
		g.plan(w)
	}
	routes := slices.Clone(w.routes)
	slices.SortFunc(routes, func(a, b *gatewayv1.HTTPRoute) int { return older(a, b) })
	for _, r := range routes {
		if r.DeletionTimestamp == nil {
			p.routes[nameOf(r)] = attach(w, gateways, r)
		}
	}
	for _, g := range order {
		p.gateways[nameOf(g.gateway)] = g.status
		for _, l := range g.listeners {
			if l.programmed {
				at := netip.AddrPortFrom(g.addr, uint16(l.spec.Port))
				if p.sockets[at] == nil {
					p.sockets[at] = &socket{tls: l.spec.Protocol == gatewayv1.HTTPSProtocolType}
				}
				slices.SortStableFunc(l.rules, moreSpecific)
				p.sockets[at].listeners = append(p.sockets[at].listeners, &l.listener)
			}
		}
	}
	for _, s := range p.sockets {
		slices.SortStableFunc(s.listeners, func(a, b *listener) int { return specificity(b.hostname) - specificity(a.hostname) })
	}
	return p
}

// gatewayPlan is a Gateway on its way into the plan.
type gatewayPlan struct {
	gateway   *gatewayv1.Gateway
	addr      netip.Addr
	listeners []*listenerPlan
	status    gatewayv1.GatewayStatus
}

type listenerPlan struct {
	listener
	spec       gatewayv1.Listener
	index      int // in the Gateway's status
	http       bool
	programmed bool
}

// assign gives each Gateway the address its status has, or else the next free one.
func assign(gateways []*gatewayPlan, pool []netip.Addr) {
	taken := map[netip.Addr]bool{}
	for _, g := range gateways {
		for _, a := range g.gateway.Status.Addresses {
			addr, err := netip.ParseAddr(a.Value)
			if err == nil && slices.Contains(pool, addr) && !taken[addr] {
				g.addr, taken[addr] = addr, true
				break
			}
		}
	}
	for _, g := range gateways {
		for _, addr := range pool {
			if !g.addr.IsValid() && !taken[addr] {
				g.addr, taken[addr] = addr, true
			}
		}
	}
}

// plan decides about a Gateway and its listeners.
func (g *gatewayPlan) plan(w world) {
	gw := g.gateway
	old := map[gatewayv1.SectionName]gatewayv1.ListenerStatus{}
	for _, l := range gw.Status.Listeners {
		old[l.Name] = l
	}
	g.status = *gw.Status.DeepCopy()
	g.status.Listeners, g.status.Addresses = nil, nil
	accepted, reason, message := true, string(gatewayv1.GatewayReasonAccepted), ""
	switch {
	case len(gw.Spec.Addresses) > 0:
		accepted, reason, message = false, string(gatewayv1.GatewayReasonUnsupportedAddress), "the lab's ingress chooses addresses itself"
	case !g.addr.IsValid():
		accepted, reason, message = false, string(gatewayv1.GatewayReasonInvalid), "the lab has no free address left"
	}
	seen := map[gatewayv1.PortNumber]map[string]bool{}
	protocol := map[gatewayv1.PortNumber]gatewayv1.ProtocolType{}
	bad := 0
	for i, spec := range gw.Spec.Listeners {
		l := &listenerPlan{spec: spec, index: i}
		if spec.Hostname != nil {
			l.hostname = strings.ToLower(string(*spec.Hostname))
		}
		st := gatewayv1.ListenerStatus{Name: spec.Name, Conditions: slices.Clone(old[spec.Name].Conditions), SupportedKinds: []gatewayv1.RouteGroupKind{}}
		cond := func(t gatewayv1.ListenerConditionType, ok bool, r gatewayv1.ListenerConditionReason, msg string) {
			set(&st.Conditions, gw.Generation, string(t), ok, string(r), msg)
		}
		ok := spec.Protocol == gatewayv1.HTTPProtocolType || spec.Protocol == gatewayv1.HTTPSProtocolType
		conflict := gatewayv1.ListenerConditionReason("")
		switch {
		case protocol[spec.Port] != "" && protocol[spec.Port] != spec.Protocol:
			conflict = gatewayv1.ListenerReasonProtocolConflict
		case seen[spec.Port][l.hostname]:
			conflict = gatewayv1.ListenerReasonHostnameConflict
		}
		if seen[spec.Port] == nil {
			seen[spec.Port], protocol[spec.Port] = map[string]bool{}, spec.Protocol
		}
		seen[spec.Port][l.hostname] = true
		switch {
		case !ok:
			cond(gatewayv1.ListenerConditionAccepted, false, gatewayv1.ListenerReasonUnsupportedProtocol, "HTTP and HTTPS only")
		case conflict != "":
			cond(gatewayv1.ListenerConditionAccepted, false, conflict, "another listener of this Gateway has the same port")
		default:
			cond(gatewayv1.ListenerConditionAccepted, true, gatewayv1.ListenerReasonAccepted, "")
		}
		if conflict != "" {
			cond(gatewayv1.ListenerConditionConflicted, true, conflict, "")
		} else {
			cond(gatewayv1.ListenerConditionConflicted, false, gatewayv1.ListenerReasonNoConflicts, "")
		}
		refs, refsReason, refsMessage := true, gatewayv1.ListenerReasonResolvedRefs, ""
		kinds, kindsOK := supportedKinds(spec)
		st.SupportedKinds = kinds
		l.http = ok && len(kinds) > 0
		if !kindsOK {
			refs, refsReason, refsMessage = false, gatewayv1.ListenerReasonInvalidRouteKinds, "HTTPRoute only"
		}
		if spec.Protocol == gatewayv1.HTTPSProtocolType {
			cert, r, err := certificate(w, gw.Namespace, spec.TLS)
			if err != nil {
				refs, refsReason, refsMessage = false, r, err.Error()
			}
			l.cert = cert
		}
		cond(gatewayv1.ListenerConditionResolvedRefs, refs, refsReason, refsMessage)
		l.programmed = ok && conflict == "" && accepted && len(kinds) > 0 && (l.cert != nil || spec.Protocol == gatewayv1.HTTPProtocolType)
		if l.programmed && refs {
			cond(gatewayv1.ListenerConditionProgrammed, true, gatewayv1.ListenerReasonProgrammed, "")
		} else {
			bad++
			cond(gatewayv1.ListenerConditionProgrammed, false, gatewayv1.ListenerReasonInvalid, refsMessage)
		}
		g.status.Listeners = append(g.status.Listeners, st)
		g.listeners = append(g.listeners, l)
	}
	if accepted && bad > 0 {
		reason, message = string(gatewayv1.GatewayReasonListenersNotValid), fmt.Sprintf("%d of %d listeners are not valid", bad, len(g.listeners))
		accepted = bad < len(g.listeners)
	}
	set(&g.status.Conditions, gw.Generation, string(gatewayv1.GatewayConditionAccepted), accepted, reason, message)
	if accepted {
		set(&g.status.Conditions, gw.Generation, string(gatewayv1.GatewayConditionProgrammed), true, string(gatewayv1.GatewayReasonProgrammed), "")
	} else {
		set(&g.status.Conditions, gw.Generation, string(gatewayv1.GatewayConditionProgrammed), false, string(gatewayv1.GatewayReasonInvalid), message)
	}
	if g.addr.IsValid() {
		ip := gatewayv1.IPAddressType
		g.status.Addresses = []gatewayv1.GatewayStatusAddress{{Type: &ip, Value: g.addr.String()}}
	}
}

// supportedKinds are the kinds of route a listener takes; false when it asks
// for one that is unknown here.
func supportedKinds(l gatewayv1.Listener) ([]gatewayv1.RouteGroupKind, bool) {
	group := gatewayv1.Group(gatewayv1.GroupName)
	http := gatewayv1.RouteGroupKind{Group: &group, Kind: "HTTPRoute"}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		return []gatewayv1.RouteGroupKind{http}, true
	}
	kinds, ok := []gatewayv1.RouteGroupKind{}, true
	for _, k := range l.AllowedRoutes.Kinds {
		if k.Kind == "HTTPRoute" && (k.Group == nil || *k.Group == group) {
			kinds = []gatewayv1.RouteGroupKind{http}
		} else {
			ok = false
		}
	}
	return kinds, ok
}

// certificate reads a listener's first certificate.
func certificate(w world, namespace string, t *gatewayv1.ListenerTLSConfig) (*tls.Certificate, gatewayv1.ListenerConditionReason, error) {
	invalid := gatewayv1.ListenerReasonInvalidCertificateRef
	if t == nil || len(t.CertificateRefs) == 0 {
		return nil, invalid, fmt.Errorf("no certificate")
	}
	if t.Mode != nil && *t.Mode != gatewayv1.TLSModeTerminate {
		return nil, invalid, fmt.Errorf("TLS mode %s is not supported", *t.Mode)
	}
	ref := t.CertificateRefs[0]
	if ref.Group != nil && *ref.Group != "" || ref.Kind != nil && *ref.Kind != "Secret" {
		return nil, invalid, fmt.Errorf("certificates come from Secrets only")
	}
	ns := namespace
	if ref.Namespace != nil {
		ns = string(*ref.Namespace)
	}
	if !granted(w.grants, gatewayv1.GroupName, "Gateway", namespace, "", "Secret", ns, string(ref.Name)) {
		return nil, gatewayv1.ListenerReasonRefNotPermitted, fmt.Errorf("no ReferenceGrant permits Secret %s/%s", ns, ref.Name)
	}
	s := w.secret(ns, string(ref.Name))
	if s == nil {
		return nil, invalid, fmt.Errorf("there is no Secret %s/%s", ns, ref.Name)
	}
	// X509KeyPair's own message may hold what the Secret does.
	if b, _ := pem.Decode(s.Data[corev1.TLSCertKey]); b == nil {
		return nil, invalid, fmt.Errorf("secret %s/%s holds no certificate", ns, ref.Name)
	} else if _, err := x509.ParseCertificate(b.Bytes); err != nil {
		return nil, invalid, fmt.Errorf("secret %s/%s holds no valid certificate", ns, ref.Name)
	}
	c, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, invalid, fmt.Errorf("secret %s/%s holds no pair of certificate and key", ns, ref.Name)
	}
	return &c, "", nil
}

// granted says whether a reference from one namespace to another is permitted
// by a ReferenceGrant there; within a namespace it always is.
func granted(grants []*gatewayv1beta1.ReferenceGrant, fromGroup, fromKind, from, toGroup, toKind, to, name string) bool {
	if from == to {
		return true
	}
	for _, g := range grants {
		if g.Namespace != to {
			continue
		}
		fromOK, toOK := false, false
		for _, f := range g.Spec.From {
			fromOK = fromOK || string(f.Group) == fromGroup && string(f.Kind) == fromKind && string(f.Namespace) == from
		}
		for _, t := range g.Spec.To {
			toOK = toOK || string(t.Group) == toGroup && string(t.Kind) == toKind && (t.Name == nil || *t.Name == "" || string(*t.Name) == name)
		}
		if fromOK && toOK {
			return true
		}
	}
	return false
}

// set keeps the time of a condition that did not change.
func set(conds *[]metav1.Condition, generation int64, kind string, ok bool, reason, message string) {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(conds, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: generation})
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// older orders objects by age, then by name.
func older(a, b metav1.Object) int {
	at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	if c := at.Compare(bt.Time); c != 0 {
		return c
	}
	return strings.Compare(nameOf(a).String(), nameOf(b).String())
}

// specificity orders hostnames: an exact name over any wildcard, a longer
// wildcard over a shorter one, anything over none.
func specificity(host string) int {
	switch {
	case host == "":
		return 0
	case strings.HasPrefix(host, "*."):
		return len(host)
	}
	return 1000 + len(host)
}

// hostMatches says whether host is the name pattern stands for.
func hostMatches(pattern, host string) bool {
	if pattern == "" || pattern == host {
		return true
	}
	suffix, wild := strings.CutPrefix(pattern, "*")
	return wild && strings.HasSuffix(host, suffix) && len(host) > len(suffix)
}

// intersect returns the names both patterns stand for.
func intersect(a, b string) (string, bool) {
	switch {
	case a == "" || a == b:
		return b, true
	case b == "":
		return a, true
	case hostMatches(a, strings.TrimPrefix(b, "*")) && strings.HasPrefix(b, "*"), hostMatches(a, b) && !strings.HasPrefix(b, "*"):
		return b, true
	case hostMatches(b, strings.TrimPrefix(a, "*")) && strings.HasPrefix(a, "*"), hostMatches(b, a) && !strings.HasPrefix(a, "*"):
		return a, true
	}
	return "", false
}
