// Package cluster is what a cluster needs around the deploys: the manifests
// that an administrator applies once (namespaces, accounts, rights, the
// admission policy, the watchdog), and the examination of what is there.
//
// The runner is a guard rail in a job that the repository controls. What is
// rendered here is the fence: rights that reach no further than one
// namespace, and a policy that the API server itself keeps.
package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// Names of what is rendered.
const (
	// LabelManaged marks the namespaces that the admission policy guards.
	LabelManaged = "kuroko.dev/managed"
	// LabelTier, on a namespace, says which limits hold in it.
	LabelTier = "kuroko.dev/tier"
	// LabelOwner, on a namespace, is the only project that may deploy into it.
	LabelOwner = "kuroko.dev/owner"

	DeployRole   = "kuroko-deploy"
	RouteRole    = "kuroko-routes"
	SecretRole   = "kuroko-secrets"
	ReadRole     = "kuroko-read"
	WatchdogRole = "kuroko-watchdog"
	// Watchdog is its Deployment, account and disruption budget.
	Watchdog = "kuroko-watchdog"
	// Policy is the admission policy for units; jobs have one each beside it.
	Policy = "kuroko-functions"
)

// Setup says what to render.
type Setup struct {
	// System is the watchdog's own namespace.
	System string
	// Image is the watchdog's: a reference that has faasctl in PATH. Empty:
	// no watchdog is rendered.
	Image string
	// RegistrySecret is a Secret of type kubernetes.io/dockerconfigjson in
	// System, for the watchdog; empty: it goes to registries as anybody.
	RegistrySecret string
	// Images are the prefixes that functions' images may have; each ends in /
	// or @, so that a neighbour's longer name does not match.
	Images []string
	// Tiers are the limits by tier, as policy.yml has them.
	Tiers map[string]Limits
	// IngressService is NAMESPACE/NAME of the Service in front of Knative's
	// gateway inside the cluster, as clusters.yml has it. Empty: nobody gets
	// the right to ask routes there through the API server.
	IngressService string
	// Namespaces are the places of functions.
	Namespaces []Namespace
}

// Limits bound one unit's container. Zero and empty mean: no bound.
type Limits struct {
	Memory, CPU string // Kubernetes quantities
	MaxScale    int
}

// Namespace is one place of functions.
type Namespace struct {
	Name string
	Tier string // key of Setup.Tiers
	// Owner is CI_PROJECT_ID of the only project that may deploy here; empty:
	// the labels on each object decide.
	Owner string
	// Deployers and Readers get the roles beside the rendered accounts, such
	// as the group that GitLab's agent impersonates for one environment.
	Deployers, Readers []Subject
}

// Subject is a user or group as Kubernetes' RBAC spells it.
type Subject struct {
	Kind string // User, Group
	Name string
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Validate reports every problem at once.
func (s Setup) Validate() error {
	var bad []error
	no := func(format string, args ...any) { bad = append(bad, fmt.Errorf(format, args...)) }
	if !dnsLabel.MatchString(s.System) {
		no("system namespace %q is not a DNS label", s.System)
	}
	if ns, name, _ := strings.Cut(s.IngressService, "/"); s.IngressService != "" && (!dnsLabel.MatchString(ns) || !dnsLabel.MatchString(name)) {
		no("ingress service %q is not NAMESPACE/NAME", s.IngressService)
	}
	if s.RegistrySecret != "" && !dnsLabel.MatchString(s.RegistrySecret) {
		no("registry secret %q is not a DNS label", s.RegistrySecret)
	}
	if len(s.Images) == 0 {
		no("no image prefix: every image would be refused")
	}
	for _, p := range s.Images {
		if p == "" || strings.ContainsAny(p, "'\\ \n") || !strings.HasSuffix(p, "/") && !strings.HasSuffix(p, "@") {
			no("image prefix %q does not end with / or @", p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Tiers)) {
		l := s.Tiers[name]
		for what, q := range map[string]string{"memory": l.Memory, "cpu": l.CPU} {
			if _, err := resource.ParseQuantity(q); q != "" && err != nil {
				no("tier %s: %s %q is no quantity", name, what, q)
			}
		}
		if !dnsLabel.MatchString(name) {
			no("tier %q is not a label's value", name)
		}
	}
	if len(s.Namespaces) == 0 {
		no("no namespace for functions")
	}
	seen := map[string]bool{s.System: true}
	for _, n := range s.Namespaces {
		switch {
		case !dnsLabel.MatchString(n.Name):
			no("namespace %q is not a DNS label", n.Name)
		case seen[n.Name]:
			no("namespace %s is named twice, or is the system's", n.Name)
		}
		seen[n.Name] = true
		if _, ok := s.Tiers[n.Tier]; !ok {
			no("namespace %s: no tier is called %q; use one of: %s", n.Name, n.Tier, strings.Join(slices.Sorted(maps.Keys(s.Tiers)), ", "))
		}
		for _, sub := range slices.Concat(n.Deployers, n.Readers) {
			if sub.Kind != "User" && sub.Kind != "Group" || sub.Name == "" {
				no("namespace %s: subject %s:%s is not User:NAME or Group:NAME", n.Name, sub.Kind, sub.Name)
			}
		}
	}
	return errors.Join(bad...)
}

// File is one rendered file.
type File struct {
	Name    string
	Objects []runtime.Object
}

// Files are the manifests, in the order in which they are to be applied.
func (s Setup) Files() []File {
	files := []File{{"00-policy.yaml", s.policy()}, {"10-roles.yaml", s.clusterRoles()}}
	if s.Image != "" {
		files = append(files, File{"20-watchdog.yaml", s.watchdog()})
	}
	for _, n := range s.Namespaces {
		files = append(files, File{"30-" + n.Name + ".yaml", s.namespace(n)})
	}
	return files
}

// YAML is the file's text: what a server fills in is left out.
func (f File) YAML() ([]byte, error) {
	var b bytes.Buffer
	for _, o := range f.Objects {
		data, err := json.Marshal(o)
		if err != nil {
			return nil, fmt.Errorf("cluster: %s: %w", f.Name, err)
		}
		var plain map[string]any
		if err := json.Unmarshal(data, &plain); err != nil {
			return nil, fmt.Errorf("cluster: %s: %w", f.Name, err)
		}
		delete(plain, "status")
		dropEmpty(plain)
		text, err := yaml.Marshal(plain)
		if err != nil {
			return nil, fmt.Errorf("cluster: %s: %w", f.Name, err)
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	return b.Bytes(), nil
}

// dropEmpty removes nulls and the empty objects that typed structs leave.
func dropEmpty(m map[string]any) {
	for k, v := range m {
		switch v := v.(type) {
		case nil:
			delete(m, k)
		case map[string]any:
			dropEmpty(v)
			if len(v) == 0 && (k == "resources" || k == "strategy" || k == "spec") {
				delete(m, k)
			}
		case []any:
			for _, e := range v {
				if o, ok := e.(map[string]any); ok {
					dropEmpty(o)
				}
			}
		}
	}
}
