package knative

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"
	authorization "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kn "knative.dev/client/pkg/serving/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// Right is something the target does in a namespace.
type Right struct {
	Group, Resource, Subresource string
	Verbs                        []string
}

// Rights are all that the target needs in a scope's namespace, and nothing
// more: an environment's Role.
func Rights() []Right {
	const serving = "serving.knative.dev"
	return []Right{
		{Group: serving, Resource: "services", Verbs: []string{"get", "list", "watch", "create", "update", "delete"}},
		{Group: serving, Resource: "revisions", Verbs: []string{"get", "list", "watch", "delete"}},
		{Group: serving, Resource: "routes", Verbs: []string{"get", "list", "watch"}},
		{Group: serving, Resource: "configurations", Verbs: []string{"list"}},
		{Group: "coordination.k8s.io", Resource: "leases", Verbs: []string{"get", "create", "update"}},
		{Resource: "configmaps", Verbs: []string{"get", "list", "create", "delete"}},
		{Resource: "pods", Verbs: []string{"list", "watch"}},
		{Resource: "pods", Subresource: "log", Verbs: []string{"get"}},
		{Resource: "events", Verbs: []string{"list"}},
		{Resource: "resourcequotas", Verbs: []string{"list"}},
		// Only versions and names of keys are looked at; Kubernetes has no
		// smaller right for that.
		{Resource: "secrets", Verbs: []string{"get"}},
		{Group: "apps", Resource: "deployments", Verbs: []string{"list"}},
	}
}

// name is how kubectl writes the resource.
func (r Right) name() string {
	n := r.Resource
	if r.Group != "" {
		n += "." + r.Group
	}
	if r.Subresource != "" {
		n += "/" + r.Subresource
	}
	return n
}

// Preflight implements [deployer.Units]. What this job may not see is not
// held against the cluster: an image that only the cluster's nodes may pull,
// a namespace object that only administrators may read.
func (t *Target) Preflight(ctx context.Context, scope deployer.Scope, units []deployer.Spec) error {
	ns := t.namespace(scope)
	var mu sync.Mutex
	var found []error
	add := func(err error) {
		if err != nil {
			mu.Lock()
			found = append(found, err)
			mu.Unlock()
		}
	}
	if _, err := t.Head(ctx, scope); err != nil && len(deployer.Failures(err)) == 0 {
		return err // foreign, or not available
	}
	if err := t.rights(ctx, ns); err != nil {
		if len(deployer.Failures(err)) == 0 {
			return err
		}
		add(err)
	}
	_, err := once(ctx, t, "read namespace "+ns, func(ctx context.Context) (*corev1.Namespace, error) {
		return t.kube.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
	})
	if errors.Is(err, deployer.ErrNotFound) || slices.ContainsFunc(deployer.Failures(err), func(f *deployer.Failure) bool { return f.Code == deployer.NamespaceMissing }) {
		return noNamespace(ns) // nothing else can be asked for
	}
	if len(found) > 0 {
		return errors.Join(found...)
	}
	for _, u := range units {
		if _, err := t.getService(ctx, scope, u.Name); err != nil {
			return err
		}
	}
	fresh, err := t.fresh(ctx, scope, units)
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, u := range fresh {
		group.Go(func() error { add(t.image(ctx, u)); return nil })
	}
	_ = group.Wait() // the functions keep their errors themselves
	add(t.room(ctx, ns, fresh))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(found...)
}

// rights reads our rules in one request, and asks the cluster itself about
// what they do not show: not every authorizer can list its rules.
func (t *Target) rights(ctx context.Context, ns string) error {
	review := &authorization.SelfSubjectRulesReview{Spec: authorization.SelfSubjectRulesReviewSpec{Namespace: ns}}
	rules, err := read(ctx, t, "read our rights", func(ctx context.Context) (*authorization.SelfSubjectRulesReview, error) {
		return t.kube.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, review, metav1.CreateOptions{})
	})
	if errors.Is(err, deployer.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	var shown []authorization.ResourceRule
	if err == nil {
		shown = rules.Status.ResourceRules
	}
	var mu sync.Mutex
	var missing []string
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, r := range Rights() {
		for _, verb := range r.Verbs {
			if slices.ContainsFunc(shown, func(rule authorization.ResourceRule) bool { return r.within(rule, verb) }) {
				continue
			}
			group.Go(func() error {
				ok, err := t.may(ctx, ns, r, verb)
				if err == nil && !ok {
					mu.Lock()
					missing = append(missing, verb+" "+r.name())
					mu.Unlock()
				}
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return missingRights(ns, "", missing)
	}
	return nil
}

// within reports whether the rule grants the right on all objects.
func (r Right) within(rule authorization.ResourceRule, verb string) bool {
	has := func(all []string, one string) bool { return slices.Contains(all, one) || slices.Contains(all, "*") }
	resource := r.Resource
	if r.Subresource != "" {
		resource += "/" + r.Subresource
	}
	return len(rule.ResourceNames) == 0 && has(rule.Verbs, verb) && has(rule.APIGroups, r.Group) && has(rule.Resources, resource)
}

func (t *Target) may(ctx context.Context, ns string, r Right, verb string) (bool, error) {
	review := &authorization.SelfSubjectAccessReview{Spec: authorization.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorization.ResourceAttributes{
		Namespace: ns, Group: r.Group, Resource: r.Resource, Subresource: r.Subresource, Verb: verb,
	}}}
	got, err := read(ctx, t, "ask for our rights", func(ctx context.Context) (*authorization.SelfSubjectAccessReview, error) {
		return t.kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	})
	if err != nil {
		return false, err
	}
	return got.Status.Allowed, nil
}

// fresh are the units whose content no revision has yet: only they need their
// image and room.
func (t *Target) fresh(ctx context.Context, scope deployer.Scope, units []deployer.Spec) ([]deployer.Spec, error) {
	if len(units) == 0 {
		return nil, nil
	}
	var with []kn.ListConfig
	for k, v := range scopeLabels(scope) {
		with = append(with, kn.WithLabel(k, v))
	}
	revs, err := read(ctx, t, "list revisions of "+scope.String(), func(ctx context.Context) (*servingv1.RevisionList, error) {
		return t.knative(scope).ListRevisions(ctx, with...)
	})
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, r := range revs.Items {
		if r.IsReady() {
			have[r.Annotations[AnnotationHash]] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(units), func(u deployer.Spec) bool { return have[u.Hash()] }), nil
}

// image looks whether the registry has the unit's image. Only a plain no
// counts: the nodes may have rights and ways that this job lacks.
func (t *Target) image(ctx context.Context, u deployer.Spec) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Times.Image)
	defer cancel()
	o := []remote.Option{remote.WithContext(ctx)}
	if t.cfg.Keychain != nil {
		o = append(o, remote.WithAuthFromKeychain(t.cfg.Keychain))
	} else {
		o = append(o, remote.WithAuth(authn.Anonymous))
	}
	if t.cfg.Transport != nil {
		o = append(o, remote.WithTransport(t.cfg.Transport))
	}
	_, err := remote.Head(u.Image, o...)
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return about(u.Unit, "", missingImage(u.Image.String(), u.Image.RegistryStr()))
	}
	return nil
}

// room compares what the new revisions' first pods need with the namespace's
// quotas. Live and new run at the same time.
func (t *Target) room(ctx context.Context, ns string, units []deployer.Spec) error {
	if len(units) == 0 {
		return nil
	}
	quotas, err := read(ctx, t, "list quotas", func(ctx context.Context) (*corev1.ResourceQuotaList, error) {
		return t.kube.CoreV1().ResourceQuotas(ns).List(ctx, metav1.ListOptions{})
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, q := range quotas.Items {
		if q.Spec.Scopes != nil || q.Spec.ScopeSelector != nil {
			continue // of some pods only; the cluster itself will say
		}
		errs = append(errs, tooMuch(q, units))
	}
	return errors.Join(errs...)
}

// tooMuch compares one quota with the units' first pods; nil: they fit.
func tooMuch(q corev1.ResourceQuota, units []deployer.Spec) error {
	var short []string
	for name, hard := range q.Status.Hard {
		var need resource.Quantity
		for _, u := range units {
			pods := int64(max(1, u.MinScale))
			var one string
			switch name {
			case corev1.ResourcePods, "count/pods":
				one = "1"
			case corev1.ResourceLimitsMemory, corev1.ResourceRequestsMemory, corev1.ResourceMemory:
				one = u.Memory
			case corev1.ResourceLimitsCPU, corev1.ResourceRequestsCPU, corev1.ResourceCPU:
				one = u.CPU
			}
			v, err := resource.ParseQuantity(one)
			if err != nil {
				continue // nothing said, nothing counted
			}
			for range pods {
				need.Add(v)
			}
		}
		used := q.Status.Used[name]
		sum := used.DeepCopy()
		sum.Add(need)
		if !need.IsZero() && sum.Cmp(hard) > 0 {
			short = append(short, fmt.Sprintf("%s=%s (allowed %s, used %s)", name, need.String(), hard.String(), used.String()))
		}
	}
	if len(short) == 0 {
		return nil
	}
	slices.Sort(short)
	f := quota("exceeded quota: q, requested: r, used: u, limited: l")
	f.Cause = fmt.Sprintf("no room: quota %s is too small for the first pods of the new revisions: %s", q.Name, strings.Join(short, ", "))
	return f
}
