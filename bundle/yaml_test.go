package bundle

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParseClusters(t *testing.T) {
	c, err := ParseClusters([]byte(clustersYML))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		service, env, cluster, namespace string
		name, ns                         string
	}{
		{"hello", "prod", "", "", "hz-1", "hello"},
		{"hello", "test", "", "", "hz-1", "hello-test"},
		{"hello", "test", "hz-1", "", "hz-1", "hello-test"},
		{"hello", "test", "local", "", "local", "hello-test"},
		{"hello", "test", "", "mine", "hz-1", "mine"},
		{"hello", "local", "", "", "local", "hello-local"},
		{"hello", "new", "hz-1", "", "hz-1", "hello"},
	} {
		s, err := c.Site(tc.service, tc.env, tc.cluster, tc.namespace)
		if err != nil || s.Name != tc.name || s.Namespace != tc.ns {
			t.Errorf("Site(%q, %q, %q, %q) = %s %s %v, want %s %s", tc.service, tc.env, tc.cluster, tc.namespace, s.Name, s.Namespace, err, tc.name, tc.ns)
		}
	}
	if _, err := c.Site("hello", "nowhere", "", ""); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "hz-1, local") {
		t.Errorf("unknown environment: %v", err)
	}
	if _, err := c.Site(strings.Repeat("a", 60), "test", "", ""); !errors.Is(err, ErrContent) {
		t.Errorf("namespace too long: %v", err)
	}
	hz := c.Clusters["hz-1"]
	if !hz.Has("eventing") || hz.Has("x") || !hz.HasGateway() || c.Clusters["local"].HasGateway() {
		t.Errorf("features: %+v", hz)
	}
	for in, want := range map[string]string{
		"base/node@sha256:ab":           "registry.example:5000/faas/base/node@sha256:ab",
		"node@sha256:ab":                "registry.example:5000/faas/node@sha256:ab",
		"other.example/base@sha256:ab":  "other.example/base@sha256:ab",
		"localhost/base@sha256:ab":      "localhost/base@sha256:ab",
		"host:5000/base/node@sha256:ab": "host:5000/base/node@sha256:ab",
	} {
		if got := hz.Image(in); got != want {
			t.Errorf("Image(%q) = %q, want %q", in, got, want)
		}
	}
	if got := (Cluster{}).Image("a/b"); got != "a/b" {
		t.Errorf("without a registry: %q", got)
	}
}

func TestParseClustersRefuses(t *testing.T) {
	cluster := func(s string) string { return "version: 1\nclusters:\n  a: {" + s + "}\n" }
	for text, want := range map[string]string{
		"":             "the file is empty",
		"# nothing\n":  "the file is empty",
		"version: 1\n": "clusters: names no cluster",
		"[]":           "want a map",
		"version: one\nclusters: {a: {kind: local}}\n":                                                 "line 1, column 10: version: want a whole number",
		"version: 3\nclusters: {a: {kind: local}}\n":                                                   "version: 3 is not a version",
		"version: 1\nversion: 1\nclusters: {a: {kind: local}}\n":                                       "line 2, column 1: version: appears twice",
		"version: 1\n---\nversion: 2\n":                                                                "more than one document",
		"version: 1\nclusters: {a: &x {kind: local}, b: *x}\n":                                         "anchors and aliases",
		"version: 1\nclusters: {a: {<<: {kind: local}}}\n":                                             "plain text",
		"version: 1\nclusters: {? [a] : {kind: local}}\n":                                              "plain text",
		"version: 1\nclusters: {A_b: {kind: local}}\n":                                                 "a-z, 0-9",
		"version: 1\nclusters: {a: {kind: local}}\nenvironments: {prod: {cluster: b}}\n":               `line 3, column 32: environments.prod.cluster: no cluster "b"; known: a`,
		"version: 1\nclusters: {a: {kind: local}}\nenvironments: {prod: {cluster: a, namespace: A}}\n": "makes no valid namespace",
		cluster("kind: k8s"):                                                    `line 3, column 13: clusters.a.kind: "k8s" is not one of: knative, local, directory`,
		cluster("domain: x"):                                                    "clusters.a.kind",
		cluster("kind: local, path: x"):                                         "only a directory has one",
		cluster("kind: directory, domain: x.example"):                           "is not a folder",
		cluster("kind: directory, path: x"):                                     "say what units' host names end with",
		cluster("kind: directory, path: ../x, domain: x.example"):               "is not a folder",
		cluster("kind: directory, path: x, domain: x.example, context: a"):      "a directory has no context",
		cluster("kind: directory, path: x, domain: x.example, ingress: 'a:80'"): "not host:port of a knative cluster",
		cluster("kind: local, context: x"):                                      "only a knative cluster",
		cluster("kind: knative, endpoint: x"):                                   "only a local cluster",
		cluster("kind: knative, ingress: x"):                                    "not host:port",
		cluster("kind: knative, ingressService: kourier"):                       "not NAMESPACE/NAME",
		cluster("kind: local, ingress: 'a:80'"):                                 "not host:port of a knative cluster",
		cluster("kind: local, endpoint: x"):                                     "not the absolute path of a local target's control socket",
		cluster("kind: local, domain: -x"):                                      "not a domain name",
		cluster("kind: local, registry: 'https://x'"):                           "not host[:port][/path]",
		cluster("kind: local, namespace: '{team}'"):                             "unknown {team}",
		cluster("kind: local, insecureRegistry: yes"):                           "want true or false",
		cluster("kind: local, features: eventing"):                              "want a list",
		cluster("kind: local, features: ['a b']"):                               "not a feature's name",
		cluster("kind: local, gateway: {kind: nginx}"):                          "none, gateway-api, istio",
		cluster("kind: local, gateway: {kind: istio}"):                          "not the name of a gateway",
		cluster("kind: local, gateway: {name: x}"):                              "need a kind",
		cluster("kind: local, gateway: istio"):                                  "gateway: want a map",
		cluster("kind: local, domain: null"):                                    "want text",
		cluster("kind: [local]"):                                                "want text",
		"version: 1\nclusters: {a: {kind: local}\n":                             "line",
		"\tx: 1": "cannot start",
		"version: 1\nclusters: {a: {kind: \"\\u0007\"}}\n": "want text",
		strings.Repeat("#", maxYAML+1):                     "larger than",
	} {
		c, err := ParseClusters([]byte(text))
		var ce *ContentError
		if err == nil || !errors.As(err, &ce) || !errors.Is(err, ErrContent) || !strings.Contains(err.Error(), want) || len(c.Clusters) > 0 {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "bundle.") || strings.Contains(err.Error(), "yaml:")) {
			t.Errorf("%.60q: speaks Go: %v", text, err)
		}
	}
	// Every problem at once, in order.
	_, err := ParseClusters([]byte("version: 2\nclusters:\n  a: {kind: x, registry: ':'}\n  b: {kind: local, namespace: _}\n"))
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[0], "clusters.yml: line 1, ") || !strings.HasPrefix(lines[3], "clusters.yml: line 4, ") {
		t.Errorf("several: %v", err)
	}
}

const policyYML = `version: 1
tiers:
  standard:
    defaults: {memory: 256Mi, cpu: 250m, maxScale: 20, timeout: 60s, initTimeout: 10s, concurrency: 100}
    limits: {memory: 4Gi, cpu: "4", maxScale: 100, timeout: 1d}
  core: {limits: {minScale: 2}, refuseStale: true}
services: {order-bff: [fe/order, "4711"]}
namespaces: {order: ["fe/**"]}
hosts:
  - {host: api.example.internal, owners: [fe/gate]}
  - {host: api.example.internal, basePath: /bff/order, owners: [fe/order]}
bases: ["registry.example/base/*"]
`

func TestPolicy(t *testing.T) {
	p, err := ParsePolicy([]byte(policyYML))
	if err != nil {
		t.Fatal(err)
	}
	std := p.Tier("standard")
	if std.Defaults.Memory != "256Mi" || time.Duration(std.Limits.Timeout) != 24*time.Hour || time.Duration(std.Defaults.InitTimeout) != 10*time.Second || !p.Tier("core").RefuseStale || p.Tier("sandbox").RefuseStale {
		t.Errorf("tiers: %+v", p.Tiers)
	}
	order, byID, other, gate := Project{1, "fe/order"}, Project{4711, "x/y"}, Project{2, "fe/ordering"}, Project{3, "fe/gate"}
	for name, tc := range map[string]struct{ got, want bool }{
		"service, owner":             {p.MayUseService(order, "order-bff"), true},
		"service, owner by id":       {p.MayUseService(byID, "order-bff"), true},
		"service, another":           {p.MayUseService(other, "order-bff"), false},
		"service, free":              {p.MayUseService(other, "hello"), true},
		"namespace, group":           {p.MayUseNamespace(other, "order"), true},
		"namespace, outside":         {p.MayUseNamespace(byID, "order"), false},
		"namespace, free":            {p.MayUseNamespace(byID, "hello"), true},
		"host, path's owner":         {p.MayUseHost(order, "api.example.internal", "/bff/order"), true},
		"host, below the path":       {p.MayUseHost(order, "API.example.internal", "/bff/order/v2"), true},
		"host, not a prefix by text": {p.MayUseHost(order, "api.example.internal", "/bff/orders"), false},
		"host, beside the path":      {p.MayUseHost(order, "api.example.internal", "/bff"), false},
		"host, dots":                 {p.MayUseHost(order, "api.example.internal", "/bff/order/../x"), false},
		"host, host's owner":         {p.MayUseHost(gate, "api.example.internal", ""), true},
		"host, longest decides":      {p.MayUseHost(gate, "api.example.internal", "/bff/order"), false},
		"host, not listed":           {p.MayUseHost(order, "www.example.internal", "/"), false},
		"base":                       {p.MayUseBase("registry.example/base/node:18@sha256:ab"), true},
		"base, deeper":               {p.MayUseBase("registry.example/base/x/node"), false},
		"base, elsewhere":            {p.MayUseBase("evil.example/base/node"), false},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %v", name, tc.got)
		}
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"version: 2":                    "use 1",
		"version: 1\ntiers: {gold: {}}": "line 2, column 15: tiers.gold: not a tier; the tiers are: sandbox, standard, core",
		"version: 1\ntiers: {core: {limits: {memory: lots}}}":                              "not a quantity",
		"version: 1\ntiers: {core: {limits: {cpu: -1}}}":                                   "not a quantity",
		"version: 1\ntiers: {core: {limits: {maxScale: -1}}}":                              "negative",
		"version: 1\ntiers: {core: {defaults: {minScale: 3, maxScale: 2}}}":                "more than maxScale",
		"version: 1\ntiers: {core: {limits: {timeout: soon}}}":                             `"soon" is not a duration`,
		"version: 1\ntiers: {core: {limits: {timeout: -1s}}}":                              "not a duration",
		"version: 1\ntiers: {core: {limits: {timeout: [1]}}}":                              "single value",
		"version: 1\nservices: {a: []}":                                                    "names no owner",
		"version: 1\nservices: {A: [x]}":                                                   "not a DNS label",
		"version: 1\nservices: {a: ['[']}":                                                 "line 2, column 16: services.a.0: \"[\" is not a project id",
		"version: 1\nhosts: [{host: a, owners: [x]}, {host: a, basePath: /, owners: [y]}]": "listed twice",
		"version: 1\nhosts: [{host: a, basePath: x, owners: [x]}]":                         "not a clean absolute path",
		"version: 1\nhosts: [{host: '*', owners: [x]}]":                                    "not a host name",
		"version: 1\nbases: ['[']":                                                         "not a pattern",
		"version: 1\nunpinned: [a@sha256:b]":                                               "not a pattern",
		"version: 1\nbases: [a@sha256:b]":                                                  "not a pattern",
	} {
		_, err := ParsePolicy([]byte(text))
		if !errors.Is(err, ErrContent) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"3d": 72 * time.Hour, "1h30m": 90 * time.Minute, "0s": 0, "0d": 0} {
		if got, err := parseDuration(in); err != nil || got != want {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	for _, in := range []string{"", "d", "-1d", "1", "1.5d", "99999d", "-1s", "1w"} {
		if got, err := parseDuration(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}
