package main

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// object reads one of Gateway API's objects as a user writes it.
func object[T any](t *testing.T, text string) *T {
	t.Helper()
	o := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return o
}

// testWorld has a Gateway "gw" with one listener on port 80, and Services a and b.
func testWorld(t *testing.T, routes ...string) world {
	t.Helper()
	w := world{
		classes: []*gatewayv1.GatewayClass{{ObjectMeta: metav1.ObjectMeta{Name: "lab"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: controllerName}}},
		gateways: []*gatewayv1.Gateway{object[gatewayv1.Gateway](t, `
metadata: {name: gw, namespace: ns}
spec: {gatewayClassName: lab, listeners: [{name: http, port: 80, protocol: HTTP}]}`)},
		namespaces: map[string]labels.Set{"ns": nil, "other": nil},
		service: func(_, name string) *corev1.Service {
			if name != "a" && name != "b" {
				return nil
			}
			return &corev1.Service{}
		},
		secret: func(string, string) *corev1.Secret { return nil },
	}
	for _, r := range routes {
		w.routes = append(w.routes, object[gatewayv1.HTTPRoute](t, r))
	}
	return w
}

func pool(t *testing.T) []netip.Addr {
	t.Helper()
	p, err := parsePool("10.99.1.16-10.99.1.17")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var first = netip.MustParseAddrPort("10.99.1.16:80")

func TestRulesAreMatchedInOrderOfSpecificity(t *testing.T) {
	p := makePlan(testWorld(t, `
metadata: {name: r, namespace: ns}
spec:
  parentRefs: [{name: gw}]
  hostnames: [faas.example, "*.faas.example"]
  rules:
  - {name: root, backendRefs: [{name: a, port: 1}]}
  - {matches: [{path: {value: /shop}}], backendRefs: [{name: a, port: 2}]}
  - {matches: [{path: {type: Exact, value: /shop/cart}}], backendRefs: [{name: a, port: 3}]}
  - {matches: [{path: {value: /shop}, method: POST}], backendRefs: [{name: a, port: 4}]}
  - {matches: [{path: {value: /shop}, headers: [{name: X-Beta, value: "1"}]}], backendRefs: [{name: a, port: 5}]}
  - {matches: [{path: {value: /shop}, queryParams: [{name: v, value: "2"}]}], backendRefs: [{name: a, port: 6}]}
`), pool(t))
	s := p.sockets[first]
	if s == nil {
		t.Fatalf("nothing listens on %v: %v", first, p.sockets)
	}
	for _, c := range []struct {
		method, host, target string
		header               string
		want                 int32 // 0: no route
	}{
		{"GET", "faas.example", "/", "", 1},
		{"GET", "FAAS.example:80", "/shopping", "", 1},
		{"GET", "faas.example", "/shop", "", 2},
		{"GET", "faas.example", "/shop/", "", 2},
		{"GET", "faas.example", "/shop/cart", "", 3},
		{"POST", "faas.example", "/shop/cart", "", 3},
		{"POST", "faas.example", "/shop/x", "1", 4},
		{"GET", "faas.example", "/shop/x", "1", 5},
		{"GET", "faas.example", "/shop/x", "2", 2},
		{"GET", "faas.example", "/shop?v=2", "", 6},
		{"GET", "faas.example", "/shop?v=1&v=2", "", 2},
		{"GET", "a.faas.example", "/", "", 1},
		{"GET", "a.b.faas.example", "/", "", 1},
		{"GET", "xfaas.example", "/", "", 0},
		{"GET", "example", "/", "", 0},
	} {
		r := httptest.NewRequest(c.method, c.target, nil)
		r.Host = c.host
		if c.header != "" {
			r.Header.Set("X-Beta", c.header)
		}
		got := int32(0)
		if rule, ok := s.find(r); ok {
			got = rule.backends[0].port
		}
		if got != c.want {
			t.Errorf("%s %s%s (X-Beta %q): rule %d, want %d", c.method, c.host, c.target, c.header, got, c.want)
		}
	}
}

// conditionOf returns STATUS/REASON of a route's condition at its only parent.
func conditionOf(p plan, route, kind string) string {
	st := p.routes[types.NamespacedName{Namespace: "ns", Name: route}]
	if len(st.Parents) != 1 {
		return "no parent"
	}
	c := meta.FindStatusCondition(st.Parents[0].Conditions, kind)
	if c == nil {
		return "none"
	}
	return string(c.Status) + "/" + c.Reason
}

func TestRouteStatus(t *testing.T) {
	for name, c := range map[string]struct{ spec, accepted, resolved string }{
		"good":             {`{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: a, port: 80}]}]}`, "True/Accepted", "True/ResolvedRefs"},
		"no such listener": {`{parentRefs: [{name: gw, sectionName: x}]}`, "False/NoMatchingParent", "True/ResolvedRefs"},
		"no such port":     {`{parentRefs: [{name: gw, port: 81}]}`, "False/NoMatchingParent", "True/ResolvedRefs"},
		"no such service":  {`{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: c, port: 80}]}]}`, "True/Accepted", "False/BackendNotFound"},
		"foreign service":  {`{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: a, namespace: other, port: 80}]}]}`, "True/Accepted", "False/RefNotPermitted"},
		"other kind":       {`{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: a, kind: Bucket, port: 80}]}]}`, "True/Accepted", "False/InvalidKind"},
		"regexp":           {`{parentRefs: [{name: gw}], rules: [{matches: [{path: {type: RegularExpression, value: .}}]}]}`, "False/UnsupportedValue", "True/ResolvedRefs"},
		"mirror":           {`{parentRefs: [{name: gw}], rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}}}]}]}`, "False/UnsupportedValue", "True/ResolvedRefs"},
		"timeout":          {`{parentRefs: [{name: gw}], rules: [{timeouts: {request: 1s}}]}`, "False/UnsupportedValue", "True/ResolvedRefs"},
		"another gateway":  {`{parentRefs: [{name: gw2}]}`, "no parent", "no parent"},
	} {
		p := makePlan(testWorld(t, "metadata: {name: r, namespace: ns, generation: 3}\nspec: "+c.spec), pool(t))
		if got := conditionOf(p, "r", "Accepted"); got != c.accepted {
			t.Errorf("%s: Accepted %s, want %s", name, got, c.accepted)
		}
		if got := conditionOf(p, "r", "ResolvedRefs"); got != c.resolved {
			t.Errorf("%s: ResolvedRefs %s, want %s", name, got, c.resolved)
		}
	}
}

func TestRefusedRouteIsNotServed(t *testing.T) {
	p := makePlan(testWorld(t, `
metadata: {name: r, namespace: ns}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: a, port: 80}]}, {timeouts: {request: 1s}, backendRefs: [{name: a, port: 80}]}]}`), pool(t))
	if _, ok := p.sockets[first].find(httptest.NewRequest("GET", "/", nil)); ok {
		t.Error("a refused route is served in part")
	}
}

func TestGatewaysKeepTheirAddresses(t *testing.T) {
	w := testWorld(t)
	second := w.gateways[0].DeepCopy()
	second.Name = "old"
	second.Status.Addresses = []gatewayv1.GatewayStatusAddress{{Value: "10.99.1.16"}}
	third := w.gateways[0].DeepCopy()
	third.Name = "without"
	w.gateways = append(w.gateways, second, third)
	p := makePlan(w, pool(t))
	addr := func(name string) string {
		st := p.gateways[types.NamespacedName{Namespace: "ns", Name: name}]
		if len(st.Addresses) == 0 {
			return ""
		}
		return st.Addresses[0].Value
	}
	if addr("old") != "10.99.1.16" || addr("gw") != "10.99.1.17" || addr("without") != "" {
		t.Errorf("addresses: old %q, gw %q, without %q", addr("old"), addr("gw"), addr("without"))
	}
	c := meta.FindStatusCondition(p.gateways[types.NamespacedName{Namespace: "ns", Name: "without"}].Conditions, "Programmed")
	if c == nil || c.Status != metav1.ConditionFalse {
		t.Errorf("a Gateway without address: %+v", c)
	}
}

func TestStatusStaysTheSame(t *testing.T) {
	w := testWorld(t, "metadata: {name: r, namespace: ns}\nspec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: a, port: 80}]}]}")
	one := makePlan(w, pool(t))
	for _, r := range w.routes {
		r.Status = one.routes[nameOf(r)]
	}
	for _, g := range w.gateways {
		g.Status = one.gateways[nameOf(g)]
	}
	two := makePlan(w, pool(t))
	for name, st := range one.routes {
		if len(two.routes[name].Parents) != len(st.Parents) || !two.routes[name].Parents[0].Conditions[0].LastTransitionTime.Equal(&st.Parents[0].Conditions[0].LastTransitionTime) {
			t.Errorf("status of %s changes each time: an endless loop of updates", name)
		}
	}
	if n := two.gateways[types.NamespacedName{Namespace: "ns", Name: "gw"}].Listeners[0].AttachedRoutes; n != 1 {
		t.Errorf("%d routes attached, want 1", n)
	}
}

func TestIntersect(t *testing.T) {
	for _, c := range [][3]string{{"", "a.b", "a.b"}, {"a.b", "", "a.b"}, {"*.b", "a.b", "a.b"}, {"a.b", "*.b", "a.b"}, {"*.b", "*.a.b", "*.a.b"},
		{"*.a.b", "*.b", "*.a.b"}, {"*.b", "*.b", "*.b"}, {"*.b", "b", "-"}, {"a.b", "c.b", "-"}, {"*.a", "*.b", "-"}} {
		got, ok := intersect(c[0], c[1])
		if !ok {
			got = "-"
		}
		if got != c[2] {
			t.Errorf("intersect(%q, %q) = %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestRewritePath(t *testing.T) {
	for _, c := range [][4]string{{"/a/b", "/a", "/x", "/x/b"}, {"/a", "/a", "/x", "/x"}, {"/a/", "/a", "/x", "/x/"}, {"/a/b", "/a/", "/", "/b"},
		{"/a", "/a", "/", "/"}, {"/a/b", "/", "/x", "/x/a/b"}, {"/a/b", "/a", "", "/b"}} {
		m := &gatewayv1.HTTPPathModifier{Type: gatewayv1.PrefixMatchHTTPPathModifier, ReplacePrefixMatch: &c[2]}
		if got := rewritePath(m, c[0], c[1]); got != c[3] {
			t.Errorf("%s with prefix %s → %q: %q, want %q", c[0], c[1], c[2], got, c[3])
		}
	}
}

func TestPickFollowsWeights(t *testing.T) {
	r := rule{total: 4, backends: []backend{{name: "a", weight: 3}, {name: "none"}, {name: "b", weight: 1}}}
	count := map[string]int{}
	for i := range 4 {
		b, ok := r.pick(func(int) int { return i })
		if !ok {
			t.Fatal("no backend")
		}
		count[b.name]++
	}
	if count["a"] != 3 || count["b"] != 1 {
		t.Errorf("of four: %v", count)
	}
	if _, ok := (rule{}).pick(func(int) int { return 0 }); ok {
		t.Error("a rule without backends has one")
	}
}

func TestModifyHeaders(t *testing.T) {
	h := http.Header{"X-A": {"1"}, "X-B": {"1"}, "X-C": {"1"}}
	modify(&gatewayv1.HTTPHeaderFilter{Set: []gatewayv1.HTTPHeader{{Name: "x-a", Value: "2"}}, Add: []gatewayv1.HTTPHeader{{Name: "x-b", Value: "2"}}, Remove: []string{"x-c"}}, h)
	if h.Get("X-A") != "2" || h.Get("X-B") != "1,2" || h.Get("X-C") != "" {
		t.Errorf("headers: %v", h)
	}
}
