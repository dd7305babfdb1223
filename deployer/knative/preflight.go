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
	knserving "knative.dev/serving/pkg/apis/serving"
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
		{Group: serving, Resource: "revisions", Verbs: []string{"get", "list", "watch", "patch", "delete"}},
		{Group: serving, Resource: "routes", Verbs: []string{"get", "list", "watch"}},
		{Group: serving, Resource: "configurations", Verbs: []string{"list"}},
		{Group: "coordination.k8s.io", Resource: "leases", Verbs: []string{"get", "create", "update"}},
		{Resource: "configmaps", Verbs: []string{"get", "list", "create", "delete"}},
		{Resource: "pods", Verbs: []string{"list", "watch"}},
		{Resource: "pods", Subresource: "log", Verbs: []string{"get"}},
		{Resource: "pods", Subresource: "proxy", Verbs: []string{"get"}}, // what the adapter has counted
		// Who answers, where a revision's own URL is out of reach, and what
		// rollout.verify reads (get) and posts (create) there.
		{Resource: "services", Subresource: "proxy", Verbs: []string{"get", "create"}},
		{Resource: "events", Verbs: []string{"list", "watch"}},
		{Resource: "resourcequotas", Verbs: []string{"list"}},
		// Only versions and names of keys are looked at; Kubernetes has no
		// smaller right for that.
		// What is created is the key that timers share with their units.
		{Resource: "secrets", Verbs: []string{"get", "create"}},
		{Group: "apps", Resource: "deployments", Verbs: []string{"list"}},
		// Timers and jobs.
		{Group: "batch", Resource: "cronjobs", Verbs: []string{"get", "list", "create", "update", "delete"}},
		{Group: "batch", Resource: "jobs", Verbs: []string{"get", "list", "watch", "create", "delete"}},
	}
}

// RouteRight is what the target needs in the namespace of
// Config.IngressService, for that one name: the check at a route that is out
// of this process's reach.
func RouteRight(service string) (r Right, name string) {
	return Right{Resource: "services", Subresource: "proxy", Verbs: []string{"get"}}, proxied(service)
}

// SweepRights are what the watchdog needs in a scope's namespace: it brings
// back and removes, and makes no records.
func SweepRights() []Right {
	var all []Right
	for _, r := range Rights() {
		switch {
		case r.Resource == "secrets", r.Resource == "resourcequotas":
			continue
		case r.Resource == "configmaps", r.Resource == "leases":
			r.Verbs = slices.DeleteFunc(slices.Clone(r.Verbs), func(v string) bool { return v == "create" })
		}
		all = append(all, r)
	}
	return all
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
	// All that is looked at first is asked for at once, then judged in this
	// order: what needs a right that is missing counts for nothing.
	var (
		headErr, spaceErr, servicesErr, revisionsErr error

		missing  []string
		routes   *deployer.Failure
		services *metav1.PartialObjectMetadataList
		revs     *servingv1.RevisionList
		first    errgroup.Group
	)
	first.Go(func() error { _, headErr = t.Head(ctx, scope); return nil })
	first.Go(func() (err error) { missing, err = t.rights(ctx, ns); return err })
	first.Go(func() (err error) { routes, err = t.mayAskRoutes(ctx); return err })
	first.Go(func() error {
		_, spaceErr = once(ctx, t, "read namespace "+ns, func(ctx context.Context) (*corev1.Namespace, error) {
			return t.kube.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		})
		return nil
	})
	if len(units) > 0 {
		first.Go(func() error { services, servicesErr = t.listNames(ctx, scope); return nil })
		first.Go(func() error { revs, revisionsErr = t.listRevisions(ctx, scope); return nil })
	}
	err := first.Wait()
	if headErr != nil && len(deployer.Failures(headErr)) == 0 {
		return headErr // foreign, or not available
	}
	if err != nil {
		return err
	}
	if errors.Is(spaceErr, deployer.ErrNotFound) || slices.ContainsFunc(deployer.Failures(spaceErr), func(f *deployer.Failure) bool { return f.Code == deployer.NamespaceMissing }) {
		return noNamespace(ns) // nothing else can be asked for
	}
	var found []error
	if len(missing) > 0 {
		slices.Sort(missing)
		found = append(found, missingRights(ns, "", missing))
	}
	if routes != nil {
		found = append(found, routes)
	}
	may := func(rights ...string) bool {
		return !slices.ContainsFunc(rights, func(r string) bool { return slices.Contains(missing, r) })
	}
	if len(units) > 0 && may("list "+servingServices) {
		if servicesErr != nil {
			return servicesErr
		}
		if err := freeNames(scope, units, services); err != nil {
			return err
		}
	}
	for _, u := range units {
		if u.Job != nil && may("list "+cronJobs) {
			if _, err := t.jobsOf(ctx, scope, u.Name); err != nil {
				return err
			}
		}
	}
	fresh, running := units, map[string]int64{}
	if len(units) > 0 && may("list revisions.serving.knative.dev") {
		if revisionsErr != nil {
			return revisionsErr
		}
		fresh, running = without(units, revs)
	}
	checks := []func() ([]*deployer.Failure, error){
		func() ([]*deployer.Failure, error) { return t.images(ctx, fresh), nil },
	}
	if may("get secrets", "get configmaps") {
		checks = append(checks, func() ([]*deployer.Failure, error) { return t.missingKeys(ctx, scope, units) })
	}
	if may("list resourcequotas") {
		checks = append(checks, func() ([]*deployer.Failure, error) { return t.room(ctx, ns, online(fresh), running) })
	}
	if may("get "+servingServices, "create "+servingServices, "update "+servingServices) {
		checks = append(checks, func() ([]*deployer.Failure, error) { return t.rehearse(ctx, scope, online(fresh), services) })
	}
	if may("create " + cronJobs) {
		checks = append(checks, func() ([]*deployer.Failure, error) { return t.rehearseJobs(ctx, scope, fresh) })
	}
	results := make([][]*deployer.Failure, len(checks))
	var group errgroup.Group
	for i, check := range checks {
		group.Go(func() (err error) { results[i], err = check(); return err })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, f := range slices.Concat(results...) {
		// The rehearsal meets a quota too, and counts only one pod.
		if !slices.ContainsFunc(found, func(e error) bool { return sameTrouble(e, f) }) {
			found = append(found, f)
		}
	}
	return errors.Join(found...)
}

const (
	servingServices = "services.serving.knative.dev"
	cronJobs        = "cronjobs.batch"
)

// online are the units that answer requests. A run that finds no room waits
// for it.
func online(units []deployer.Spec) []deployer.Spec {
	return slices.DeleteFunc(slices.Clone(units), func(u deployer.Spec) bool { return u.Job != nil })
}

// sameTrouble reports whether err has told what f says.
func sameTrouble(err error, f *deployer.Failure) bool {
	return slices.ContainsFunc(deployer.Failures(err), func(had *deployer.Failure) bool {
		return had.Code == deployer.Quota && f.Code == deployer.Quota || had.Code == f.Code && had.Cause == f.Cause
	})
}

// listNames are the names and labels of the namespace's Services.
func (t *Target) listNames(ctx context.Context, scope deployer.Scope) (*metav1.PartialObjectMetadataList, error) {
	return read(ctx, t, "list services", func(ctx context.Context) (*metav1.PartialObjectMetadataList, error) {
		return t.meta.Resource(servingv1.SchemeGroupVersion.WithResource("services")).Namespace(t.namespace(scope)).List(ctx, metav1.ListOptions{})
	})
}

// freeNames refuses units whose Services are somebody else's.
func freeNames(scope deployer.Scope, units []deployer.Spec, have *metav1.PartialObjectMetadataList) error {
	labels := map[string]map[string]string{}
	for _, m := range have.Items {
		labels[m.Name] = m.Labels
	}
	for _, u := range units {
		if have, there := labels[u.Name]; there {
			if err := ours(scope, "service", u.Name, have); err != nil {
				return err
			}
		}
	}
	return nil
}

// rights are those that we lack: "get secrets". It reads our rules in one
// request, and asks the cluster itself about what they do not show: not every
// authorizer can list its rules.
func (t *Target) rights(ctx context.Context, ns string) ([]string, error) {
	review := &authorization.SelfSubjectRulesReview{Spec: authorization.SelfSubjectRulesReviewSpec{Namespace: ns}}
	rules, err := read(ctx, t, "read our rights", func(ctx context.Context) (*authorization.SelfSubjectRulesReview, error) {
		return t.kube.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, review, metav1.CreateOptions{})
	})
	if errors.Is(err, deployer.ErrUnavailable) || ctx.Err() != nil {
		return nil, err
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
				ok, err := t.may(ctx, ns, r, "", verb)
				if err == nil && !ok {
					mu.Lock()
					missing = append(missing, verb+" "+r.name())
					mu.Unlock()
				}
				return err
			})
		}
	}
	return missing, group.Wait()
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

// mayAskRoutes looks whether routes may be asked at Config.IngressService;
// nil: they may, or there is none.
func (t *Target) mayAskRoutes(ctx context.Context) (*deployer.Failure, error) {
	ns, service, named := strings.Cut(t.cfg.IngressService, "/")
	if !named {
		return nil, nil
	}
	r, name := RouteRight(service)
	ok, err := t.may(ctx, ns, r, name, r.Verbs[0])
	if err != nil || ok {
		return nil, err
	}
	f := missingRights(ns, "", []string{r.Verbs[0] + " " + r.name() + " " + name})
	f.Next = "ask the platform team to apply again what faasctl render cluster writes; it binds this for each namespace"
	return f, nil
}

// may asks the cluster whether we have the right; name is the one object's;
// empty: on all.
func (t *Target) may(ctx context.Context, ns string, r Right, name, verb string) (bool, error) {
	review := &authorization.SelfSubjectAccessReview{Spec: authorization.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorization.ResourceAttributes{
		Namespace: ns, Group: r.Group, Resource: r.Resource, Subresource: r.Subresource, Name: name, Verb: verb,
	}}}
	got, err := read(ctx, t, "ask for our rights", func(ctx context.Context) (*authorization.SelfSubjectAccessReview, error) {
		return t.kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	})
	if err != nil {
		return false, err
	}
	return got.Status.Allowed, nil
}

// listRevisions are the scope's revisions.
func (t *Target) listRevisions(ctx context.Context, scope deployer.Scope) (*servingv1.RevisionList, error) {
	var with []kn.ListConfig
	for k, v := range scopeLabels(scope) {
		with = append(with, kn.WithLabel(k, v))
	}
	return read(ctx, t, "list revisions of "+scope.String(), func(ctx context.Context) (*servingv1.RevisionList, error) {
		return t.knative(scope).ListRevisions(ctx, with...)
	})
}

// without are the units whose content no revision has yet: only they need
// their image and room. running are the pods that each Service runs now.
func without(units []deployer.Spec, revs *servingv1.RevisionList) (fresh []deployer.Spec, running map[string]int64) {
	have := map[string]bool{}
	running = map[string]int64{}
	for _, r := range revs.Items {
		if r.IsReady() {
			have[r.Annotations[AnnotationHash]] = true
		}
		if n := r.Status.ActualReplicas; n != nil {
			of := r.Labels[knserving.ServiceLabelKey]
			running[of] = max(running[of], int64(*n))
		}
	}
	return slices.DeleteFunc(slices.Clone(units), func(u deployer.Spec) bool { return have[u.Hash()] }), running
}

// images looks whether the registry has the units' images.
func (t *Target) images(ctx context.Context, units []deployer.Spec) []*deployer.Failure {
	var mu sync.Mutex
	var missing []*deployer.Failure
	var group errgroup.Group
	group.SetLimit(parallel)
	asked := map[string]bool{}
	for _, u := range units {
		if asked[u.Image.String()] {
			continue
		}
		asked[u.Image.String()] = true
		group.Go(func() error {
			if f := t.image(ctx, u); f != nil {
				mu.Lock()
				defer mu.Unlock()
				missing = append(missing, f)
			}
			return nil
		})
	}
	_ = group.Wait() // there are none but failures
	slices.SortFunc(missing, func(a, b *deployer.Failure) int { return strings.Compare(a.Unit, b.Unit) })
	return missing
}

// image looks whether the registry has the unit's image. Only a plain no
// counts: the nodes may have rights and ways that this job lacks.
func (t *Target) image(ctx context.Context, u deployer.Spec) *deployer.Failure {
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
		f := missingImage(u.Image.String(), u.Image.RegistryStr())
		f.Unit = u.Unit
		return f
	}
	return nil
}

// room compares what the new revisions' pods need with the namespace's
// quotas. Live and new run at the same time, and the new one takes over with
// as many pods as the old one has.
func (t *Target) room(ctx context.Context, ns string, units []deployer.Spec, running map[string]int64) ([]*deployer.Failure, error) {
	if len(units) == 0 {
		return nil, nil
	}
	quotas, err := read(ctx, t, "list quotas", func(ctx context.Context) (*corev1.ResourceQuotaList, error) {
		return t.kube.CoreV1().ResourceQuotas(ns).List(ctx, metav1.ListOptions{})
	})
	if err != nil {
		return nil, err
	}
	var all []*deployer.Failure
	for _, q := range quotas.Items {
		if q.Spec.Scopes != nil || q.Spec.ScopeSelector != nil {
			continue // of some pods only; the cluster itself will say
		}
		if f := tooMuch(q, units, running); f != nil {
			all = append(all, f)
		}
	}
	return all, nil
}

// pods are how many the unit's new revision starts with.
func pods(u deployer.Spec, running map[string]int64) int64 {
	n := max(1, int64(u.MinScale), running[u.Name])
	if u.MaxScale > 0 {
		n = min(n, int64(u.MaxScale))
	}
	return n
}

// tooMuch compares one quota with the units' pods; nil: they fit.
func tooMuch(q corev1.ResourceQuota, units []deployer.Spec, running map[string]int64) *deployer.Failure {
	var short []string
	for name, hard := range q.Status.Hard {
		var need resource.Quantity
		for _, u := range units {
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
			v.Mul(pods(u, running))
			need.Add(v)
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
	return &deployer.Failure{
		Code: deployer.Quota, Next: quotaNext,
		Cause: fmt.Sprintf("no room: quota %s is too small for the pods of the new revisions beside the live ones: %s", q.Name, strings.Join(short, ", ")),
	}
}

// rehearse asks the API server what it would say to each unit's Service, with
// all its defaults, webhooks and policies, and lets it write nothing. That is
// also the test of Knative's version and features: what they do not know they
// refuse.
//
// have are the names of the namespace's Services, nil where nobody knows them.
func (t *Target) rehearse(ctx context.Context, scope deployer.Scope, units []deployer.Spec, have *metav1.PartialObjectMetadataList) ([]*deployer.Failure, error) {
	results := make([]*deployer.Failure, len(units))
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, u := range units {
		fresh := have != nil && !slices.ContainsFunc(have.Items, func(m metav1.PartialObjectMetadata) bool { return m.Name == u.Name })
		group.Go(func() (err error) { results[i], err = t.rehearseOne(ctx, scope, u, fresh); return err })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(results, func(f *deployer.Failure) bool { return f == nil }), nil
}

// rehearseOne rehearses one unit; fresh says that it has no Service.
func (t *Target) rehearseOne(ctx context.Context, scope deployer.Scope, u deployer.Spec, fresh bool) (_ *deployer.Failure, err error) {
	var svc *servingv1.Service
	if !fresh {
		if svc, err = t.getService(ctx, scope, u.Name); err != nil {
			return nil, err
		}
	}
	// A name that no revision ever has: attempts count from 1.
	revision := u.RevisionName(1) + "-0"
	all := []string{metav1.DryRunAll}
	if svc == nil {
		if svc, err = t.newService(scope, u, revision); err != nil {
			return nil, err
		}
		_, err = once(ctx, t, "rehearse service "+u.Name, func(ctx context.Context) (*servingv1.Service, error) {
			return t.serve.Services(t.namespace(scope)).Create(ctx, svc, metav1.CreateOptions{DryRun: all})
		})
	} else {
		svc = svc.DeepCopy()
		if svc.Spec.Template, err = template(scope, u, revision, t.cfg.ProgressDeadline); err != nil {
			return nil, err
		}
		svc.Spec.Traffic = stagedTraffic(svc.Spec.Traffic, revision, func(string) bool { return false })
		_, err = once(ctx, t, "rehearse service "+u.Name, func(ctx context.Context) (*servingv1.Service, error) {
			return t.serve.Services(svc.Namespace).Update(ctx, svc, metav1.UpdateOptions{DryRun: all})
		})
	}
	return rehearsed(ctx, u, err)
}

// rehearsed judges the answer to a rehearsal; nil: nothing stands in the way.
func rehearsed(ctx context.Context, u deployer.Spec, err error) (*deployer.Failure, error) {
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil, passing(err), errors.Is(err, deployer.ErrExists), errors.Is(err, deployer.ErrNotFound):
		return nil, nil // what is wrong with it shows at the write itself
	case strings.Contains(err.Error(), "does not support dry run"):
		return nil, nil // a webhook that can't be rehearsed with
	}
	if all := deployer.Failures(err); len(all) > 0 {
		f := all[0]
		// Knative's webhook also rehearses a pod. That one has none of our
		// labels, so what a policy says about it need not be true of ours.
		if f.Code != deployer.Quota && strings.Contains(f.Cause, "dry run failed with") {
			return nil, nil
		}
		f.Unit = u.Unit
		return f, nil
	}
	return &deployer.Failure{Code: deployer.Denied, Unit: u.Unit, Cause: "the cluster does not take it: " + oneLine(err.Error()), Next: "Knative does not take these settings; change them in faas.yml, or tell the platform team"}, nil
}
