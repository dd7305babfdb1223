package bundle

import (
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Clusters is clusters.yml: where functions run. Facts about clusters change
// here, not in ten thousand repositories.
//
//	version: 1
//	clusters:
//	  hz-1:
//	    kind: knative
//	    context: platform/agents:hz-1
//	    domain: faas.example.internal
//	    registry: registry.example.internal/faas
//	    namespace: "{service}"
//	    gateway: {kind: gateway-api, name: public, namespace: gateways}
//	    features: [eventing]
//	environments:
//	  prod: {cluster: hz-1}
type Clusters struct {
	Version  int                `yaml:"version"` // 1
	Clusters map[string]Cluster `yaml:"clusters"`
	// Environments says where an environment's functions go when faas.yml
	// doesn't. An environment that isn't listed goes to the cluster of its name.
	Environments map[string]Placement `yaml:"environments,omitempty"`
}

// Placement is where an environment lives.
type Placement struct {
	Cluster string `yaml:"cluster"`
	// Namespace overrides the cluster's pattern.
	Namespace string `yaml:"namespace,omitempty"`
}

// The kinds of a Cluster.
const (
	KindKnative = "knative"
	KindLocal   = "local"
	// KindDirectory writes manifests into a folder, for GitOps.
	KindDirectory = "directory"
)

// Cluster is one place that runs functions.
type Cluster struct {
	Kind string `yaml:"kind"` // knative, local, directory
	// Path is the folder of manifests; a relative one is in the work tree.
	// Directory only, and needed there.
	Path string `yaml:"path,omitempty"`
	// Context is the kubeconfig context, such as GitLab's agent puts there;
	// empty means the current one. Knative only.
	Context string `yaml:"context,omitempty"`
	// Endpoint is the local target's control socket, an absolute path. Local
	// only.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Domain is what units' host names end with.
	Domain string `yaml:"domain,omitempty"`
	// Ingress is where the runner reaches units when their names don't resolve
	// where it runs: host:port. Empty leaves it to DNS. Knative only.
	Ingress string `yaml:"ingress,omitempty"`
	// IngressService is NAMESPACE/NAME of the Service in front of Knative's
	// gateway inside the cluster. Where the runner reaches no unit by its name,
	// it asks there, through the API server. Knative only.
	IngressService string `yaml:"ingressService,omitempty"`
	// Prometheus is the address, in front of /api/v1, that the queries of
	// rollout.analysis are sent to; empty: there is none.
	Prometheus string `yaml:"prometheus,omitempty"`
	// Gateway serves `routes.host`; the zero value means there is none.
	Gateway Gateway `yaml:"gateway,omitempty"`
	// Registry is the host and path in front of relative image references.
	Registry string `yaml:"registry,omitempty"`
	// InsecureRegistry: the registry speaks plain HTTP.
	InsecureRegistry bool `yaml:"insecureRegistry,omitempty"`
	// Namespace is a pattern with {service} and {environment}; default
	// "{service}-{environment}".
	Namespace string `yaml:"namespace,omitempty"`
	// Features are facts a plan may ask for, such as eventing or pingsource.
	Features []string `yaml:"features,omitempty"`
}

// Gateway maps a host and path to one unit.
type Gateway struct {
	Kind      string `yaml:"kind"` // none, gateway-api, istio
	Name      string `yaml:"name,omitempty"`
	Namespace string `yaml:"namespace,omitempty"`
}

var (
	dnsLabel    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	dnsName     = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	registryRef = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?)*$`)
	hostPort    = regexp.MustCompile(`^[A-Za-z0-9.:\[\]-]+:[0-9]{1,5}$`)
	featureName = regexp.MustCompile(`^[a-z][a-zA-Z0-9-]*$`)
	placeholder = regexp.MustCompile(`\{[^}]*\}`)
)

// Lengths are counted apart: an expression that counts to 253 takes every
// start of a program a third of a millisecond.
func isDNSLabel(s string) bool { return len(s) <= 63 && dnsLabel.MatchString(s) }
func isDNSName(s string) bool  { return len(s) <= 253 && dnsName.MatchString(s) }

// ParseClusters reads clusters.yml strictly. Its error is a [ContentError]
// with every problem.
func ParseClusters(data []byte) (Clusters, error) {
	var c Clusters
	d := decodeYAML("clusters.yml", data, &c)
	if len(d.problems) > 0 {
		return Clusters{}, d.err()
	}
	if c.Version != 1 {
		d.badf([]string{"version"}, "%d is not a version this runner reads; use 1", c.Version)
	}
	if len(c.Clusters) == 0 {
		d.badf([]string{"clusters"}, "names no cluster")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Clusters)) {
		c.Clusters[name].check(d, name)
	}
	for _, env := range slices.Sorted(maps.Keys(c.Environments)) {
		p := c.Environments[env]
		at := func(key string) []string { return []string{"environments", env, key} }
		if _, ok := c.Clusters[p.Cluster]; !ok {
			d.badf(at("cluster"), "no cluster %q; known: %s", p.Cluster, strings.Join(slices.Sorted(maps.Keys(c.Clusters)), ", "))
		}
		if why := badNamespace(p.Namespace); why != "" {
			d.badf(at("namespace"), "%s", why)
		}
	}
	if err := d.err(); err != nil {
		return Clusters{}, err
	}
	return c, nil
}

func (c Cluster) check(d *yamlDoc, name string) {
	at := func(keys ...string) []string { return append([]string{"clusters", name}, keys...) }
	if !isDNSLabel(name) {
		d.badf(at(), "a cluster's name is a-z, 0-9 and -")
	}
	switch c.Kind {
	case KindKnative:
		if c.Endpoint != "" {
			d.badf(at("endpoint"), "only a local cluster has one")
		}
	case KindLocal:
		if c.Context != "" {
			d.badf(at("context"), "only a knative cluster has one")
		}
		if c.Endpoint != "" && !path.IsAbs(c.Endpoint) {
			d.badf(at("endpoint"), "%q is not the absolute path of a local target's control socket", c.Endpoint)
		}
	case KindDirectory:
		if c.Context != "" || c.Endpoint != "" || c.HasGateway() {
			d.badf(at("kind"), "a directory has no context, endpoint or gateway")
		}
		if c.Path == "" || !path.IsAbs(c.Path) && !fs.ValidPath(path.Clean(c.Path)) {
			d.badf(at("path"), "%q is not a folder: name one in the work tree, or an absolute path", c.Path)
		}
		if c.Domain == "" {
			d.badf(at("domain"), "say what units' host names end with, as the cluster has it")
		}
	default:
		d.badf(at("kind"), "%q is not one of: knative, local, directory", c.Kind)
	}
	if c.Path != "" && c.Kind != KindDirectory {
		d.badf(at("path"), "only a directory has one")
	}
	if c.Ingress != "" && (c.Kind != KindKnative || !hostPort.MatchString(c.Ingress)) {
		d.badf(at("ingress"), "%q is not host:port of a knative cluster", c.Ingress)
	}
	if ns, name, _ := strings.Cut(c.IngressService, "/"); c.IngressService != "" && (c.Kind != KindKnative || !dnsLabel.MatchString(ns) || !dnsLabel.MatchString(name)) {
		d.badf(at("ingressService"), "%q is not NAMESPACE/NAME of a Service in a knative cluster", c.IngressService)
	}
	if u, err := url.Parse(c.Prometheus); c.Prometheus != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "") {
		d.badf(at("prometheus"), "%q is not an http or https address without user and query", c.Prometheus)
	}
	if c.Domain != "" && !isDNSName(c.Domain) {
		d.badf(at("domain"), "%q is not a domain name", c.Domain)
	}
	if c.Registry != "" && !registryRef.MatchString(c.Registry) {
		d.badf(at("registry"), "%q is not host[:port][/path]", c.Registry)
	}
	if why := badNamespace(c.Namespace); why != "" {
		d.badf(at("namespace"), "%s", why)
	}
	switch c.Gateway.Kind {
	case "", "none":
		if c.Gateway.Name != "" || c.Gateway.Namespace != "" {
			d.badf(at("gateway"), "name and namespace need a kind: gateway-api or istio")
		}
	case "gateway-api", "istio":
		if !isDNSName(c.Gateway.Name) {
			d.badf(at("gateway", "name"), "%q is not the name of a gateway", c.Gateway.Name)
		}
		if c.Gateway.Namespace != "" && !isDNSLabel(c.Gateway.Namespace) {
			d.badf(at("gateway", "namespace"), "%q is not a namespace", c.Gateway.Namespace)
		}
	default:
		d.badf(at("gateway", "kind"), "%q is not one of: none, gateway-api, istio", c.Gateway.Kind)
	}
	for i, f := range c.Features {
		if len(f) > 63 || !featureName.MatchString(f) {
			d.badf(at("features", fmt.Sprint(i)), "%q is not a feature's name", f)
		}
	}
}

// badNamespace checks a pattern by filling it.
func badNamespace(pattern string) string {
	if pattern == "" {
		return ""
	}
	for _, p := range placeholder.FindAllString(pattern, -1) {
		if p != "{service}" && p != "{environment}" {
			return fmt.Sprintf("unknown %s; known: {service}, {environment}", p)
		}
	}
	if ns := fill(pattern, "a", "b"); !isDNSLabel(ns) {
		return fmt.Sprintf("%q makes no valid namespace", pattern)
	}
	return ""
}

func fill(pattern, service, environment string) string {
	return strings.NewReplacer("{service}", service, "{environment}", environment).Replace(pattern)
}

// Has says whether the cluster has a feature.
func (c Cluster) Has(feature string) bool { return slices.Contains(c.Features, feature) }

// HasGateway says whether routes.host can be served.
func (c Cluster) HasGateway() bool { return c.Gateway.Kind != "" && c.Gateway.Kind != "none" }

// Image makes a reference absolute: one without a host is relative to the
// cluster's registry.
func (c Cluster) Image(ref string) string {
	first, _, more := strings.Cut(ref, "/")
	if c.Registry == "" || more && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return ref
	}
	return c.Registry + "/" + ref
}

// Site is a cluster and namespace for one service in one environment.
type Site struct {
	Name      string // the cluster's
	Cluster   Cluster
	Namespace string
}

// Site finds where a service's environment lives. cluster and namespace are
// what faas.yml says, empty when it says nothing. The error is [ErrNone] for
// an unknown cluster and [ErrContent] for an impossible namespace.
func (c Clusters) Site(service, environment, cluster, namespace string) (Site, error) {
	p := c.Environments[environment]
	switch {
	case cluster != "":
		if cluster != p.Cluster {
			p.Namespace = "" // it belonged to the other cluster
		}
	case p.Cluster != "":
		cluster = p.Cluster
	default:
		cluster = environment
	}
	cl, ok := c.Clusters[cluster]
	if !ok {
		return Site{}, failf(ErrNone, "no cluster %q for environment %q; clusters.yml knows: %s",
			cluster, environment, strings.Join(slices.Sorted(maps.Keys(c.Clusters)), ", "))
	}
	if namespace == "" {
		pattern := p.Namespace
		if pattern == "" {
			pattern = cl.Namespace
		}
		if pattern == "" {
			pattern = "{service}-{environment}"
		}
		namespace = fill(pattern, service, environment)
	}
	if !isDNSLabel(namespace) {
		return Site{}, failf(ErrContent, "namespace %q is not a DNS label of at most 63 characters", namespace)
	}
	return Site{Name: cluster, Cluster: cl, Namespace: namespace}, nil
}

// Clusters reads the bundle's clusters.yml.
func (b *Bundle) Clusters() (Clusters, error) {
	raw, err := fs.ReadFile(b.FS, "clusters.yml")
	if err != nil {
		return Clusters{}, failf(ErrContent, "clusters.yml: %w", err)
	}
	return ParseClusters(raw)
}
