package project

import (
	"regexp"
	"slices"
	"strings"
)

// Place is where a service lives in one environment, as faas.yml says it.
// Where Cluster or Namespace is empty the bundle's clusters.yml decides.
type Place struct {
	Service, Cluster, Namespace string
}

// ParsePlace reads the place alone, of a file that [Parse] refuses: what runs
// can be looked at and ended while somebody repairs the file. Of one that is
// no YAML, those top-level parts count that are. What is in doubt is an error,
// never a default, because another place is another service; the error is
// [Problems].
func ParsePlace(data []byte, environment string) (Place, error) {
	root, problems := read(data)
	part := func(key string) (n *node, ok bool) {
		if root != nil {
			return root.get(key), !slices.ContainsFunc(problems, func(p Problem) bool { return p.Path == key || strings.HasPrefix(p.Path, key+".") })
		}
		for _, text := range topParts(data, key) {
			doc, wrong := read(text)
			if n != nil || doc == nil || len(wrong) > 0 {
				return nil, false
			}
			n = doc.get(key)
		}
		return n, true
	}
	service, ok := part("service")
	environments, ok2 := part("environments")
	if !ok || !ok2 {
		return Place{}, problems
	}
	if service != nil && service.kind == aMap {
		service = service.get("name")
	}
	env := environments.get(environment)
	p := Place{Service: service.str(), Cluster: env.get("cluster").str(), Namespace: env.get("namespace").str()}
	for _, n := range []*node{service, env.get("cluster"), env.get("namespace")} {
		if n != service && n == nil {
			continue // clusters.yml says it
		}
		if why, next := labelProblem("name", n.str(), 63); why != "" {
			bad := Problem{Code: CodeName, Why: "where the service runs can't be read: " + why, Next: next}
			if n != nil {
				bad.Line, bad.Column = n.line, n.col
			}
			return Place{}, append(slices.Clone(problems), bad)
		}
	}
	return p, nil
}

var topKey = regexp.MustCompile(`(?m)^([A-Za-z][A-Za-z0-9]*)[ \t]*:`)

// topParts are the pieces of text that start with the key, each up to the
// next line that starts with any.
func topParts(data []byte, key string) [][]byte {
	var parts [][]byte
	at := topKey.FindAllSubmatchIndex(data, -1)
	for i, m := range at {
		end := len(data)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		if string(data[m[2]:m[3]]) == key {
			parts = append(parts, data[m[0]:end])
		}
	}
	return parts
}
