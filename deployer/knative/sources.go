package knative

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kuroko-faas/kuroko/deployer"
)

var (
	secretResource    = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	configMapResource = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

// resourceOf is where a source is kept, and what people call it.
func resourceOf(s deployer.Source) (resource schema.GroupVersionResource, kind, name string) {
	if name, ok := strings.CutPrefix(string(s), string(deployer.SecretSource(""))); ok {
		return secretResource, "secret", name
	}
	return configMapResource, "config map", strings.TrimPrefix(string(s), string(deployer.ConfigSource("")))
}

// Versions implements [deployer.Units]. It asks for the objects' metadata
// alone: no value leaves the API server.
func (t *Target) Versions(ctx context.Context, scope deployer.Scope, sources []deployer.Source) (map[deployer.Source]string, error) {
	var mu sync.Mutex
	have := map[deployer.Source]string{}
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, s := range sources {
		group.Go(func() error {
			m, err := t.metadata(ctx, scope, s)
			if err != nil || m == nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			have[s] = m.ResourceVersion
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return have, nil
}

// metadata is the object's own; nil: there is none.
func (t *Target) metadata(ctx context.Context, scope deployer.Scope, s deployer.Source) (*metav1.PartialObjectMetadata, error) {
	resource, kind, name := resourceOf(s)
	m, err := read(ctx, t, fmt.Sprintf("read %s %s", kind, name), func(ctx context.Context) (*metav1.PartialObjectMetadata, error) {
		return t.meta.Resource(resource).Namespace(t.namespace(scope)).Get(ctx, name, metav1.GetOptions{})
	})
	if errors.Is(err, deployer.ErrNotFound) {
		return nil, nil
	}
	return m, err
}

// contents are an object's keys. The API has no way to ask for keys without
// values, so the values of a Secret do come here; they are skipped unread, and
// what held them is overwritten.
type contents struct {
	metav1.ObjectMeta `json:"metadata"`
	Data              map[string]unread `json:"data"`
	BinaryData        map[string]unread `json:"binaryData"`
}

// unread is a value that nobody looks at.
type unread struct{}

// UnmarshalJSON skips the value.
func (*unread) UnmarshalJSON([]byte) error { return nil }

func (c *contents) has(key string) bool {
	_, text := c.Data[key]
	_, binary := c.BinaryData[key]
	return text || binary
}

// contents reads which keys a source has; nil: there is no such object.
func (t *Target) contents(ctx context.Context, scope deployer.Scope, s deployer.Source) (*contents, error) {
	resource, kind, name := resourceOf(s)
	c, err := read(ctx, t, fmt.Sprintf("read the keys of %s %s", kind, name), func(ctx context.Context) (*contents, error) {
		res := t.kube.CoreV1().RESTClient().Get().Namespace(t.namespace(scope)).Resource(resource.Resource).Name(name).
			SetHeader("Accept", "application/json").Do(ctx)
		if err := res.Error(); err != nil {
			return nil, err
		}
		raw, err := res.Raw()
		if err != nil {
			return nil, err
		}
		defer clear(raw)
		var c contents
		return &c, json.Unmarshal(raw, &c)
	})
	if errors.Is(err, deployer.ErrNotFound) {
		return nil, nil
	}
	return c, err
}

// use is one name of faas.yml under which units read a key.
type use struct {
	source deployer.Source
	name   string
	ref    deployer.Ref
	unit   string // the first that reads it
}

// uses are what the units read, each once, in a fixed order.
func uses(units []deployer.Spec) []use {
	var all []use
	seen := map[string]bool{}
	for _, u := range units {
		add := func(refs map[string]deployer.Ref, source func(string) deployer.Source) {
			for n, r := range refs {
				at := use{source(r.Name), n, r, u.Unit}
				if key := fmt.Sprint(at.source, " ", n, " ", r.Key); !seen[key] {
					seen[key] = true
					all = append(all, at)
				}
			}
		}
		add(u.Secrets, deployer.SecretSource)
		add(u.Config, deployer.ConfigSource)
	}
	slices.SortFunc(all, func(a, b use) int {
		return strings.Compare(fmt.Sprint(a.source, " ", a.name), fmt.Sprint(b.source, " ", b.name))
	})
	return all
}

// missingKeys looks whether the keys that the units read are there. Each that
// is not is a [*deployer.Failure]; a reading that failed is another error.
func (t *Target) missingKeys(ctx context.Context, scope deployer.Scope, units []deployer.Spec) ([]*deployer.Failure, error) {
	wanted := uses(units)
	have := map[deployer.Source]*contents{}
	for _, u := range wanted {
		have[u.source] = nil
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(parallel)
	for s := range have {
		group.Go(func() error {
			c, err := t.contents(ctx, scope, s)
			mu.Lock()
			defer mu.Unlock()
			have[s] = c
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var missing []*deployer.Failure
	for _, u := range wanted {
		c := have[u.source]
		if c != nil && c.has(u.ref.Key) {
			continue
		}
		own := c == nil || ownSecret(scope, u.ref.Name, c.Labels) == nil
		f := missingKey(scope, u.source, u.name, u.ref.Key, c != nil, own)
		f.Unit = u.unit
		missing = append(missing, f)
	}
	return missing, nil
}

// missingKey is the cause of a unit that reads a key which is not there. exists
// says that the object is; own, that `faas secret` may write it.
func missingKey(scope deployer.Scope, s deployer.Source, variable, key string, exists, own bool) *deployer.Failure {
	resource, kind, name := resourceOf(s)
	f := &deployer.Failure{Code: deployer.ConfigMissing, Cause: fmt.Sprintf("there is no %s %s", kind, name)}
	if exists {
		f.Cause = fmt.Sprintf("%s %s has no key %s", kind, name, key)
	}
	if variable != "" {
		f.Cause += ", which " + variable + " reads"
	}
	switch {
	case resource == configMapResource:
		f.Next = fmt.Sprintf("add key %s to config map %s in the environment's namespace, or correct config in faas.yml", key, name)
		return f
	case !own:
		f.Next = fmt.Sprintf("ask who keeps secret %s to add key %s, or name another secret in faas.yml", name, key)
	case variable == "":
		f.Next = "set it with faas secret set NAME --env " + scope.Environment
	default:
		f.Next = fmt.Sprintf("faas secret set %s --env %s", variable, scope.Environment)
	}
	f.Code = deployer.SecretMissing
	return f
}
