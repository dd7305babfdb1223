package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// supportedFeatures are Gateway API's names of what is served beyond the core
// of HTTPRoute, and of that core.
func supportedFeatures() []string {
	return []string{"Gateway", "GatewayHTTPListenerIsolation", "HTTPRoute", "HTTPRouteBackendProtocolH2C", "HTTPRouteBackendProtocolWebSocket",
		"HTTPRouteBackendRequestHeaderModification", "HTTPRouteHostRewrite", "HTTPRouteMethodMatching", "HTTPRouteParentRefPort",
		"HTTPRoutePathRedirect", "HTTPRoutePathRewrite", "HTTPRoutePortRedirect", "HTTPRouteQueryParamMatching",
		"HTTPRouteResponseHeaderModification", "HTTPRouteSchemeRedirect", "ReferenceGrant"}
}

// rule is one match of one rule of an HTTPRoute on a listener.
type rule struct {
	host     string // of listener and route together
	match    gatewayv1.HTTPRouteMatch
	filters  []gatewayv1.HTTPRouteFilter
	backends []backend
	total    int // of the weights
}

// backend is a Service's port with its share of the requests.
type backend struct {
	namespace, name string
	port            int32
	weight          int
	invalid         bool // a reference that may not be followed: its share is answered 500
	filters         []gatewayv1.HTTPRouteFilter
}

// attach finds the listeners an HTTPRoute's parents are, gives them its rules,
// and returns its status.
func attach(w world, gateways map[types.NamespacedName]*gatewayPlan, r *gatewayv1.HTTPRoute) gatewayv1.HTTPRouteStatus {
	status := *r.Status.DeepCopy()
	var mine []gatewayv1.RouteParentStatus
	for _, p := range status.Parents {
		if p.ControllerName == controllerName {
			mine = append(mine, p)
		}
	}
	status.Parents = slices.DeleteFunc(status.Parents, func(p gatewayv1.RouteParentStatus) bool { return p.ControllerName == controllerName })
	attached := map[*listenerPlan]bool{} // two parentRefs may mean the same listener
	for _, ref := range r.Spec.ParentRefs {
		if ref.Group != nil && *ref.Group != gatewayv1.GroupName || ref.Kind != nil && *ref.Kind != "Gateway" {
			continue
		}
		ns := r.Namespace
		if ref.Namespace != nil {
			ns = string(*ref.Namespace)
		}
		g := gateways[types.NamespacedName{Namespace: ns, Name: string(ref.Name)}]
		if g == nil {
			continue
		}
		st := gatewayv1.RouteParentStatus{ParentRef: ref, ControllerName: controllerName}
		for _, old := range mine {
			if sameParent(old.ParentRef, ref) {
				st.Conditions = slices.Clone(old.Conditions)
			}
		}
		listeners, reason := parents(w, g, r, ref)
		rules, problem, message := rulesOf(w, r)
		if problem == gatewayv1.RouteReasonUnsupportedValue {
			listeners, reason = nil, problem
		}
		set(&st.Conditions, r.Generation, string(gatewayv1.RouteConditionAccepted), len(listeners) > 0, string(reason), "")
		if problem == "" || problem == gatewayv1.RouteReasonUnsupportedValue {
			set(&st.Conditions, r.Generation, string(gatewayv1.RouteConditionResolvedRefs), true, string(gatewayv1.RouteReasonResolvedRefs), "")
		} else {
			set(&st.Conditions, r.Generation, string(gatewayv1.RouteConditionResolvedRefs), false, string(problem), message)
		}
		status.Parents = append(status.Parents, st)
		for _, l := range listeners {
			if attached[l] {
				continue
			}
			attached[l] = true
			g.status.Listeners[l.index].AttachedRoutes++
			for _, host := range hostsOn(l, r) {
				for _, rule := range rules {
					rule.host = host
					l.rules = append(l.rules, rule)
				}
			}
		}
	}
	return status
}

func sameParent(a, b gatewayv1.ParentReference) bool {
	str := func(r gatewayv1.ParentReference) string {
		s := string(r.Name)
		if r.Namespace != nil {
			s += "/" + string(*r.Namespace)
		}
		s += "#"
		if r.SectionName != nil {
			s += string(*r.SectionName)
		}
		if r.Port != nil {
			s += fmt.Sprint(":", *r.Port)
		}
		return s
	}
	return str(a) == str(b)
}

// parents are the listeners of g that ref means and that take r; the reason
// says why there is none.
func parents(w world, g *gatewayPlan, r *gatewayv1.HTTPRoute, ref gatewayv1.ParentReference) ([]*listenerPlan, gatewayv1.RouteConditionReason) {
	reason := gatewayv1.RouteReasonNoMatchingParent
	var found []*listenerPlan
	for _, l := range g.listeners {
		if ref.SectionName != nil && *ref.SectionName != l.spec.Name || ref.Port != nil && *ref.Port != l.spec.Port {
			continue
		}
		if !l.http || !allowed(w, g.gateway.Namespace, l.spec, r.Namespace) {
			if reason == gatewayv1.RouteReasonNoMatchingParent {
				reason = gatewayv1.RouteReasonNotAllowedByListeners
			}
			continue
		}
		if len(hostsOn(l, r)) == 0 {
			reason = gatewayv1.RouteReasonNoMatchingListenerHostname
			continue
		}
		found = append(found, l)
	}
	if len(found) > 0 {
		reason = gatewayv1.RouteReasonAccepted
	}
	return found, reason
}

// allowed says whether a listener takes routes of a namespace.
func allowed(w world, gateway string, l gatewayv1.Listener, route string) bool {
	from := gatewayv1.NamespacesFromSame
	if l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil && l.AllowedRoutes.Namespaces.From != nil {
		from = *l.AllowedRoutes.Namespaces.From
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return gateway == route
	case gatewayv1.NamespacesFromSelector:
		sel, err := metav1.LabelSelectorAsSelector(l.AllowedRoutes.Namespaces.Selector)
		return err == nil && sel.Matches(labels.Set(w.namespaces[route]))
	}
	return false
}

// hostsOn are the hostnames of a route that a listener has.
func hostsOn(l *listenerPlan, r *gatewayv1.HTTPRoute) []string {
	if len(r.Spec.Hostnames) == 0 {
		return []string{l.hostname}
	}
	var hosts []string
	for _, h := range r.Spec.Hostnames {
		if host, ok := intersect(l.hostname, strings.ToLower(string(h))); ok {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// rulesOf translates a route's rules. The reason says which reference can't be
// followed, or UnsupportedValue when the route asks for what isn't served:
// serving the rest of it would be something else than what was written.
func rulesOf(w world, r *gatewayv1.HTTPRoute) ([]rule, gatewayv1.RouteConditionReason, string) {
	var rules []rule
	problem, message := gatewayv1.RouteConditionReason(""), ""
	for _, spec := range r.Spec.Rules {
		if spec.Timeouts != nil || spec.Retry != nil || spec.SessionPersistence != nil || !filtersOK(spec.Filters) {
			return nil, gatewayv1.RouteReasonUnsupportedValue, "a filter, timeout, retry or session persistence that the lab's ingress has not"
		}
		var backends []backend
		total := 0
		for _, ref := range spec.BackendRefs {
			if !filtersOK(ref.Filters) {
				return nil, gatewayv1.RouteReasonUnsupportedValue, "a backend's filter that the lab's ingress has not"
			}
			b := backend{namespace: r.Namespace, name: string(ref.Name), weight: 1, filters: ref.Filters}
			if ref.Weight != nil {
				b.weight = int(*ref.Weight)
			}
			if ref.Namespace != nil {
				b.namespace = string(*ref.Namespace)
			}
			if ref.Port != nil {
				b.port = *ref.Port
			}
			reason, why := gatewayv1.RouteConditionReason(""), ""
			switch {
			case ref.Group != nil && *ref.Group != "" || ref.Kind != nil && *ref.Kind != "Service":
				reason, why = gatewayv1.RouteReasonInvalidKind, "backends are Services only"
			case !granted(w.grants, gatewayv1.GroupName, "HTTPRoute", r.Namespace, "", "Service", b.namespace, b.name):
				reason, why = gatewayv1.RouteReasonRefNotPermitted, fmt.Sprintf("no ReferenceGrant permits Service %s/%s", b.namespace, b.name)
			case w.service(b.namespace, b.name) == nil:
				reason, why = gatewayv1.RouteReasonBackendNotFound, fmt.Sprintf("there is no Service %s/%s", b.namespace, b.name)
			}
			if reason != "" {
				b.invalid, problem, message = true, reason, why
			}
			total += b.weight
			backends = append(backends, b)
		}
		matches := spec.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for _, m := range matches {
			if !matchOK(m) {
				return nil, gatewayv1.RouteReasonUnsupportedValue, "regular expressions are not served"
			}
			rules = append(rules, rule{match: m, filters: spec.Filters, backends: backends, total: total})
		}
	}
	return rules, problem, message
}

func filtersOK(filters []gatewayv1.HTTPRouteFilter) bool {
	for _, f := range filters {
		switch f.Type {
		case gatewayv1.HTTPRouteFilterRequestHeaderModifier, gatewayv1.HTTPRouteFilterResponseHeaderModifier,
			gatewayv1.HTTPRouteFilterRequestRedirect, gatewayv1.HTTPRouteFilterURLRewrite:
		default:
			return false
		}
	}
	return true
}

func matchOK(m gatewayv1.HTTPRouteMatch) bool {
	if m.Path != nil && m.Path.Type != nil && *m.Path.Type == gatewayv1.PathMatchRegularExpression {
		return false
	}
	for _, h := range m.Headers {
		if h.Type != nil && *h.Type != gatewayv1.HeaderMatchExact {
			return false
		}
	}
	for _, q := range m.QueryParams {
		if q.Type != nil && *q.Type != gatewayv1.QueryParamMatchExact {
			return false
		}
	}
	return true
}

// moreSpecific is Gateway API's order of rules; what stays equal keeps the order
// of age and of appearance that it came in.
func moreSpecific(a, b rule) int {
	exact := func(r rule) int {
		if r.match.Path != nil && r.match.Path.Type != nil && *r.match.Path.Type == gatewayv1.PathMatchExact {
			return 1
		}
		return 0
	}
	method := func(r rule) int {
		if r.match.Method != nil {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(specificity(b.host), specificity(a.host)), cmp.Compare(exact(b), exact(a)), cmp.Compare(len(pathOf(b)), len(pathOf(a))),
		cmp.Compare(method(b), method(a)), cmp.Compare(len(b.match.Headers), len(a.match.Headers)), cmp.Compare(len(b.match.QueryParams), len(a.match.QueryParams)))
}

func pathOf(r rule) string {
	if r.match.Path == nil || r.match.Path.Value == nil {
		return "/"
	}
	return *r.match.Path.Value
}
