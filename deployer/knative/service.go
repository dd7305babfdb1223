package knative

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kn "knative.dev/client/pkg/serving/v1"
	"knative.dev/networking/pkg/apis/networking"
	knserving "knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// getService reads a Service and checks that it is the scope's; nil: there is
// none.
func (t *Target) getService(ctx context.Context, scope deployer.Scope, name string) (*servingv1.Service, error) {
	svc, err := read(ctx, t, "read service "+name, func(ctx context.Context) (*servingv1.Service, error) {
		return t.knative(scope).GetService(ctx, name)
	})
	if errors.Is(err, deployer.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return svc, ours(scope, "service", name, svc.Labels)
}

// getRevision reads a revision of the service; nil: there is none.
func (t *Target) getRevision(ctx context.Context, scope deployer.Scope, service, name string) (*servingv1.Revision, error) {
	rev, err := read(ctx, t, "read revision "+name, func(ctx context.Context) (*servingv1.Revision, error) {
		return t.knative(scope).GetRevision(ctx, name)
	})
	if errors.Is(err, deployer.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := owned(scope, "revision", name, rev.Labels); err != nil {
		return nil, err
	}
	if of := rev.Labels[knserving.ServiceLabelKey]; of != service {
		return nil, fmt.Errorf("knative: revision %s is of service %q, not of %s: %w", name, of, service, deployer.ErrExists)
	}
	return rev, nil
}

// fenced refuses a writer after whom somebody with a newer lease has written
// svc.
func fenced(f deployer.Fence, svc *servingv1.Service) error {
	if svc == nil {
		return nil
	}
	if e := epochOf(svc); e > f.Epoch {
		return fmt.Errorf("knative: service %s was written under epoch %d, ours is %d: %w", svc.Name, e, f.Epoch, deployer.ErrFenced)
	}
	return nil
}

func epochOf(svc *servingv1.Service) int64 {
	e, _ := strconv.ParseInt(svc.Annotations[AnnotationEpoch], 10, 64)
	return e
}

// write changes a Service: read, check, change, write under the version that
// was read; again from the start when somebody else was faster or the cluster
// did not answer. change gets nil where there is no Service and returns nil
// for none to be written. The Service as it stands then is returned.
func (t *Target) write(ctx context.Context, f deployer.Fence, name string, change func(*servingv1.Service) (*servingv1.Service, error)) (*servingv1.Service, error) {
	return retry(ctx, t, func() (*servingv1.Service, error) { return t.writeOnce(ctx, f, name, change) })
}

// retry repeats a write that starts with a look, while the cluster does not
// answer or somebody else is faster.
func retry[T any](ctx context.Context, t *Target, write func() (T, error)) (T, error) {
	var none T
	var last error
	silent, beaten := 0, 0
	for silent < tries && beaten < maxBeaten {
		v, err := write()
		if err == nil || !passing(err) && !errors.Is(err, deployer.ErrExists) || errors.Is(err, errKeep) {
			return v, err
		}
		last = err
		if errors.Is(err, deployer.ErrUnavailable) {
			silent++
			err = t.pause(ctx, silent)
		} else {
			// Knative's controllers write often while something rolls out; to
			// stand back longer and longer would only lose more races.
			beaten++
			err = sleep(ctx, rand.N(t.cfg.Times.Retry))
		}
		if err != nil {
			return none, err
		}
	}
	return none, last
}

// maxBeaten is how often somebody else may be faster at one write.
const maxBeaten = 30

// errKeep marks an ErrExists of change's own, which no repetition heals.
var errKeep = errors.New("the name is taken")

func (t *Target) writeOnce(ctx context.Context, f deployer.Fence, name string, change func(*servingv1.Service) (*servingv1.Service, error)) (*servingv1.Service, error) {
	// The lease first: who takes it after that writes a newer epoch on the
	// Service before we have read it, or a newer version after.
	if err := t.fence(ctx, f); err != nil {
		return nil, err
	}
	old, err := t.getService(ctx, f.Scope, name)
	if err != nil {
		return nil, err
	}
	if err := fenced(f, old); err != nil {
		return nil, err
	}
	if old != nil && old.DeletionTimestamp != nil {
		return nil, fmt.Errorf("knative: service %s is still being removed: %w", name, deployer.ErrUnavailable)
	}
	var in *servingv1.Service
	if old != nil {
		in = old.DeepCopy()
	}
	svc, err := change(in)
	if err != nil || svc == nil {
		return old, err
	}
	if svc.Annotations == nil {
		svc.Annotations = map[string]string{}
	}
	svc.Annotations[AnnotationEpoch] = strconv.FormatInt(f.Epoch, 10)
	if old == nil {
		_, err = once(ctx, t, "create service "+name, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, t.knative(f.Scope).CreateService(ctx, svc)
		})
	} else {
		if equality.Semantic.DeepEqual(svc.Spec, old.Spec) && maps.Equal(svc.Annotations, old.Annotations) && maps.Equal(svc.Labels, old.Labels) {
			return old, nil
		}
		_, err = once(ctx, t, "update service "+name, func(ctx context.Context) (bool, error) {
			return t.knative(f.Scope).UpdateService(ctx, svc)
		})
		if errors.Is(err, deployer.ErrNotFound) {
			err = fmt.Errorf("%w: %w", deployer.ErrConflict, err) // removed meanwhile: look again
		}
	}
	if err != nil {
		return nil, err
	}
	return svc, nil
}

// Ensure implements [deployer.Units].
func (t *Target) Ensure(ctx context.Context, f deployer.Fence, s deployer.Spec, revision string) error {
	if s.Job != nil {
		return t.ensureJob(ctx, f, s, revision)
	}
	if s.Timed {
		if err := t.ensureTimerKey(ctx, f); err != nil {
			return about(s.Unit, revision, err)
		}
	}
	_, err := t.write(ctx, f, s.Name, func(svc *servingv1.Service) (*servingv1.Service, error) {
		rev, err := t.getRevision(ctx, f.Scope, s.Name, revision)
		if err != nil {
			return nil, err
		}
		if svc == nil {
			return t.newService(f.Scope, s, revision)
		}
		switch {
		case rev != nil && rev.Annotations[AnnotationHash] != s.Hash():
			return nil, fmt.Errorf("knative: revision %s has other content: %w: %w", revision, deployer.ErrExists, errKeep)
		case rev != nil:
			svc.Spec.Template = templateOf(rev)
		case svc.Spec.Template.Name == revision && svc.Spec.Template.Annotations[AnnotationHash] != s.Hash():
			return nil, fmt.Errorf("knative: revision %s has other content: %w: %w", revision, deployer.ErrExists, errKeep)
		case svc.Spec.Template.Name == revision:
			// Asked for already; Knative is about to make it.
		default:
			if svc.Spec.Template, err = template(f.Scope, s, revision, t.cfg.ProgressDeadline); err != nil {
				return nil, err
			}
		}
		pin(svc)
		dead := map[string]bool{}
		for _, target := range svc.Spec.Traffic {
			if target.RevisionName == revision || target.RevisionName == "" || target.Percent != nil && *target.Percent > 0 {
				continue
			}
			other, err := t.getRevision(ctx, f.Scope, s.Name, target.RevisionName)
			if err != nil {
				return nil, err
			}
			dead[target.RevisionName] = other == nil || other.IsFailed()
		}
		svc.Spec.Traffic = stagedTraffic(svc.Spec.Traffic, revision, func(r string) bool { return dead[r] })
		setLabels(svc, f.Scope, s.Unit)
		if s.Internal {
			// Its tag answers from now on; the whole Service hides for that.
			setNetwork(svc, true)
		}
		return svc, nil
	})
	return about(s.Unit, revision, err)
}

func (t *Target) newService(scope deployer.Scope, s deployer.Spec, revision string) (*servingv1.Service, error) {
	tmpl, err := template(scope, s, revision, t.cfg.ProgressDeadline)
	if err != nil {
		return nil, err
	}
	svc := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: s.Name}}
	svc.Spec.Template = tmpl
	svc.Spec.Traffic = targets([]deployer.Share{{Revision: revision, Percent: 100, Tag: TagNext}})
	setLabels(svc, scope, s.Unit)
	setNetwork(svc, s.Internal)
	return svc, nil
}

// setNetwork hides the Service from everything outside the cluster, or opens
// it. The label is Knative's; it counts for the route and all its tags.
func setNetwork(svc *servingv1.Service, hide bool) {
	if !hide {
		delete(svc.Labels, networking.VisibilityLabelKey)
		return
	}
	if svc.Labels == nil {
		svc.Labels = map[string]string{}
	}
	svc.Labels[networking.VisibilityLabelKey] = knserving.VisibilityClusterLocal
}

// isInternal reports whether the revision must not be reached from outside.
func isInternal(rev *servingv1.Revision) bool { return rev.Annotations[AnnotationNetwork] == internal }

func setLabels(svc *servingv1.Service, scope deployer.Scope, unit string) {
	if svc.Labels == nil {
		svc.Labels = map[string]string{}
	}
	maps.Copy(svc.Labels, scopeLabels(scope))
	svc.Labels[LabelUnit] = label(unit)
	if svc.Annotations == nil {
		svc.Annotations = map[string]string{}
	}
	svc.Annotations[group+"unit"] = unit
}

// SetTraffic implements [deployer.Units].
func (t *Target) SetTraffic(ctx context.Context, f deployer.Fence, service string, all []deployer.Share) error {
	sum := 0
	for _, s := range all {
		sum += s.Percent
		if s.Percent < 0 || s.Percent > 100 {
			return fmt.Errorf("knative: service %s: share of %s is %d %%", service, s.Revision, s.Percent)
		}
	}
	if sum != 100 {
		return fmt.Errorf("knative: shares of service %s add up to %d", service, sum)
	}
	svc, err := t.write(ctx, f, service, func(svc *servingv1.Service) (*servingv1.Service, error) {
		if svc == nil {
			return nil, fmt.Errorf("knative: service %s: %w", service, deployer.ErrNotFound)
		}
		// Who may see the Service follows the traffic, in the same write. What
		// has to stay inside gets no tag on one that is open.
		revs := make([]*servingv1.Revision, len(all))
		var group errgroup.Group
		for i, s := range all {
			group.Go(func() (err error) {
				revs[i], err = t.getRevision(ctx, f.Scope, service, s.Revision)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return nil, err
		}
		hide, hidden := false, map[string]bool{}
		for i, s := range all {
			if revs[i] == nil {
				return nil, fmt.Errorf("knative: revision %s: %w", s.Revision, deployer.ErrNotFound)
			}
			hidden[s.Revision] = isInternal(revs[i])
			hide = hide || hidden[s.Revision] && s.Percent > 0
		}
		keep := slices.DeleteFunc(slices.Clone(all), func(s deployer.Share) bool { return !hide && hidden[s.Revision] })
		svc.Spec.Traffic = targets(keep)
		setNetwork(svc, hide)
		return svc, nil
	})
	if err != nil {
		return err
	}
	return t.settle(ctx, f.Scope, service, svc.Spec.Traffic)
}

// settle waits until the route has taken the Service's shares over, which
// were written as these.
func (t *Target) settle(ctx context.Context, scope deployer.Scope, service string, written []servingv1.TrafficTarget) error {
	ctx, cancel := context.WithTimeoutCause(ctx, t.cfg.Times.Route, errRoute)
	defer cancel()
	wait := t.wait(ctx, scope, service)
	for {
		svc, why, err := look(wait, func(from sight) (*servingv1.Service, string, error) {
			p, err := from.parts(ctx, service, "")
			switch {
			case err != nil:
				return nil, "", err
			case p.svc == nil:
				return nil, "", fmt.Errorf("knative: service %s: %w", service, deployer.ErrNotFound)
			case from != wait.now && !sameShares(p.svc.Spec.Traffic, written):
				return p.svc, "the watch has not shown the new shares yet", nil
			}
			return p.svc, routed(p.svc, p.route), nil
		})
		switch {
		case err == nil && why == "":
			return nil
		case err == nil:
		case passing(err) || errors.Is(err, errRoute):
			why = "the cluster does not answer"
		default:
			return err
		}
		if err := wait.next(ctx); err != nil {
			if !errors.Is(err, errRoute) {
				return err
			}
			return about(svcUnit(svc), "", ingressLate(t.cfg.Times.Route, why))
		}
	}
}

// ingressLate is the cause of a route that did not follow its Service.
func ingressLate(limit time.Duration, why string) *deployer.Failure {
	return &deployer.Failure{
		Code: deployer.IngressNotReady, Next: "look at the ingress of the cluster; the deploy may be repeated",
		Cause: fmt.Sprintf("the route did not follow in %s: %s", limit, why),
	}
}

var errRoute = errors.New("the route did not follow in time")

// RestoreTemplate implements [deployer.Units].
func (t *Target) RestoreTemplate(ctx context.Context, f deployer.Fence, s deployer.Spec, revision string) error {
	_, err := t.write(ctx, f, s.Name, func(svc *servingv1.Service) (*servingv1.Service, error) {
		if svc == nil {
			return nil, fmt.Errorf("knative: service %s: %w", s.Name, deployer.ErrNotFound)
		}
		rev, err := t.getRevision(ctx, f.Scope, s.Name, revision)
		if err != nil {
			return nil, err
		}
		if rev == nil {
			return nil, fmt.Errorf("knative: revision %s: %w", revision, deployer.ErrNotFound)
		}
		svc.Spec.Template = templateOf(rev)
		if onlyTraffic(svc, revision) {
			setNetwork(svc, isInternal(rev)) // a staged one may have hidden it
		}
		return svc, nil
	})
	return about(s.Unit, revision, err)
}

// RemoveRevision implements [deployer.Units].
func (t *Target) RemoveRevision(ctx context.Context, f deployer.Fence, service, revision string) error {
	dropped := false
	svc, err := t.write(ctx, f, service, func(svc *servingv1.Service) (*servingv1.Service, error) {
		if svc == nil {
			return nil, nil
		}
		if svc.Spec.Template.Name == revision {
			// Knative would make it again at once.
			return nil, fmt.Errorf("knative: revision %s is what service %s describes; restore another template first", revision, service)
		}
		pin(svc)
		var keep []deployer.Share
		for _, s := range shares(svc.Spec.Traffic) {
			if s.Revision != revision {
				keep = append(keep, s)
				continue
			}
			if s.Percent > 0 {
				return nil, fmt.Errorf("knative: revision %s has %d %% of the traffic", revision, s.Percent)
			}
			dropped = true
		}
		if dropped {
			svc.Spec.Traffic = targets(keep)
		}
		return svc, nil
	})
	if err != nil {
		return err
	}
	if svc == nil {
		c, err := t.getJob(ctx, f.Scope, service, revision)
		if err != nil || c == nil {
			return err
		}
		return t.removeCron(ctx, f, revision)
	}
	if dropped {
		if err := t.settle(ctx, f.Scope, service, svc.Spec.Traffic); err != nil {
			return err
		}
	}
	rev, err := t.getRevision(ctx, f.Scope, service, revision)
	if err != nil || rev == nil {
		return err
	}
	_, err = read(ctx, t, "remove revision "+revision, func(ctx context.Context) (struct{}, error) {
		background := metav1.DeletePropagationBackground
		return struct{}{}, t.serve.Revisions(rev.Namespace).Delete(ctx, revision, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &rev.UID}, PropagationPolicy: &background,
		})
	})
	if err != nil && !errors.Is(err, deployer.ErrNotFound) && !errors.Is(err, deployer.ErrConflict) {
		return err
	}
	// Under its own name it can only come back when its parts are gone.
	return t.gone(ctx, func(ctx context.Context) (bool, error) {
		d, err := t.kube.AppsV1().Deployments(rev.Namespace).List(ctx, metav1.ListOptions{LabelSelector: ofRevision(revision)})
		return err == nil && len(d.Items) == 0, err
	})
}

// RemoveService implements [deployer.Units].
func (t *Target) RemoveService(ctx context.Context, f deployer.Fence, service string) error {
	var svc *servingv1.Service
	for n := 1; ; n++ {
		err := t.fence(ctx, f)
		if err != nil {
			return err
		}
		if svc, err = t.getService(ctx, f.Scope, service); err != nil {
			return err
		}
		if svc == nil {
			return t.removeJob(ctx, f, service)
		}
		if err := fenced(f, svc); err != nil {
			return err
		}
		_, err = once(ctx, t, "remove service "+service, func(ctx context.Context) (struct{}, error) {
			background := metav1.DeletePropagationBackground
			return struct{}{}, t.serve.Services(svc.Namespace).Delete(ctx, service, metav1.DeleteOptions{
				// The version too: a newer holder's write in between counts.
				Preconditions:     &metav1.Preconditions{UID: &svc.UID, ResourceVersion: &svc.ResourceVersion},
				PropagationPolicy: &background,
			})
		})
		if err == nil || errors.Is(err, deployer.ErrNotFound) {
			break
		}
		if !passing(err) || n == tries+3 {
			return err
		}
		if err := t.pause(ctx, n); err != nil {
			return err
		}
	}
	// The name is free when Knative's parts of the same name are gone.
	return t.gone(ctx, func(ctx context.Context) (bool, error) {
		revs, err := t.knative(f.Scope).ListRevisions(ctx, kn.WithService(service))
		if err != nil || len(revs.Items) > 0 {
			return false, err
		}
		routes, err := t.knative(f.Scope).ListRoutes(ctx, kn.WithName(service))
		if err != nil || len(routes.Items) > 0 {
			return false, err
		}
		configs, err := t.serve.Configurations(svc.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector(map[string]string{knserving.ServiceLabelKey: service})})
		return err == nil && len(configs.Items) == 0, err
	})
}

// gone waits until look says so, a bounded time: what the cluster's collector
// has not removed by then it removes later, and that is no error.
func (t *Target) gone(ctx context.Context, look func(context.Context) (bool, error)) error {
	deadline := time.Now().Add(t.cfg.Times.Remove)
	// Mostly it is a matter of a moment.
	for wait := 25 * time.Millisecond; time.Now().Before(deadline); wait *= 2 {
		done, err := once(ctx, t, "look for what is left", look)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if done {
			return nil
		}
		if err != nil && !passing(err) {
			return nil // not allowed to look; the collector does its work all the same
		}
		if err := sleep(ctx, min(t.cfg.Times.Poll, wait, 250*time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}
