package knative

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/google/go-containerregistry/pkg/name"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// A job's unit has no Service. Each of its revisions is a CronJob that is
// suspended for good: the cluster has accepted its template, its name says
// which revision it is, and `kubectl create job --from=cronjob/<revision>`
// works on it as `faas run` does. Timers are CronJobs beside it.

// never is the schedule of a CronJob that is suspended for good.
const never = "0 0 1 1 *"

// getCron reads a CronJob and checks that it is the scope's; nil: there is
// none.
func (t *Target) getCron(ctx context.Context, scope deployer.Scope, cron string) (*batchv1.CronJob, error) {
	c, err := read(ctx, t, "read cron job "+cron, func(ctx context.Context) (*batchv1.CronJob, error) {
		return t.kube.BatchV1().CronJobs(t.namespace(scope)).Get(ctx, cron, metav1.GetOptions{})
	})
	if errors.Is(err, deployer.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return c, ours(scope, "cron job", cron, c.Labels)
}

// crons are the CronJobs with these labels.
func (t *Target) crons(ctx context.Context, scope deployer.Scope, labels map[string]string) ([]batchv1.CronJob, error) {
	list, err := read(ctx, t, "list cron jobs of "+scope.String(), func(ctx context.Context) (*batchv1.CronJobList, error) {
		return t.kube.BatchV1().CronJobs(t.namespace(scope)).List(ctx, metav1.ListOptions{LabelSelector: selector(labels)})
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(c batchv1.CronJob) bool { return c.DeletionTimestamp != nil }), nil
}

// writeCron changes a CronJob as [Target.write] changes a Service.
func (t *Target) writeCron(ctx context.Context, f deployer.Fence, cron string, change func(*batchv1.CronJob) (*batchv1.CronJob, error)) error {
	_, err := retry(ctx, t, func() (struct{}, error) {
		old, err := t.mayWriteCron(ctx, f, cron)
		if err != nil {
			return struct{}{}, err
		}
		var in *batchv1.CronJob
		if old != nil {
			in = old.DeepCopy()
		}
		c, err := change(in)
		if err != nil || c == nil {
			return struct{}{}, err
		}
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[AnnotationEpoch] = strconv.FormatInt(f.Epoch, 10)
		crons := t.kube.BatchV1().CronJobs(t.namespace(f.Scope))
		if old == nil {
			c.Name = cron
			_, err = once(ctx, t, "create cron job "+cron, func(ctx context.Context) (*batchv1.CronJob, error) {
				return crons.Create(ctx, c, metav1.CreateOptions{})
			})
			return struct{}{}, err
		}
		_, err = once(ctx, t, "update cron job "+cron, func(ctx context.Context) (*batchv1.CronJob, error) {
			return crons.Update(ctx, c, metav1.UpdateOptions{})
		})
		if errors.Is(err, deployer.ErrNotFound) {
			err = fmt.Errorf("%w: %w", deployer.ErrConflict, err) // removed meanwhile: look again
		}
		return struct{}{}, err
	})
	return err
}

// mayWriteCron reads a CronJob for a write: the lease first, as for Services.
func (t *Target) mayWriteCron(ctx context.Context, f deployer.Fence, cron string) (*batchv1.CronJob, error) {
	if err := t.fence(ctx, f); err != nil {
		return nil, err
	}
	old, err := t.getCron(ctx, f.Scope, cron)
	if err != nil || old == nil {
		return nil, err
	}
	if e := writtenUnder(old.Annotations); e > f.Epoch {
		return nil, fmt.Errorf("knative: cron job %s was written under epoch %d, ours is %d: %w", cron, e, f.Epoch, deployer.ErrFenced)
	}
	if old.DeletionTimestamp != nil {
		return nil, fmt.Errorf("knative: cron job %s is still being removed: %w", cron, deployer.ErrUnavailable)
	}
	return old, nil
}

// removeCron removes a CronJob under the version that was looked at. What it
// started goes on.
func (t *Target) removeCron(ctx context.Context, f deployer.Fence, cron string) error {
	_, err := retry(ctx, t, func() (struct{}, error) {
		old, err := t.mayWriteCron(ctx, f, cron)
		if err != nil || old == nil {
			return struct{}{}, err
		}
		orphan := metav1.DeletePropagationOrphan
		_, err = once(ctx, t, "remove cron job "+cron, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, t.kube.BatchV1().CronJobs(old.Namespace).Delete(ctx, cron, metav1.DeleteOptions{
				Preconditions: &metav1.Preconditions{UID: &old.UID, ResourceVersion: &old.ResourceVersion}, PropagationPolicy: &orphan,
			})
		})
		if errors.Is(err, deployer.ErrNotFound) {
			err = nil
		}
		return struct{}{}, err
	})
	return err
}

// cronMeta are the labels and annotations of a CronJob of the unit.
func cronMeta(m *metav1.ObjectMeta, scope deployer.Scope, unit, revision string) {
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	maps.Copy(m.Labels, scopeLabels(scope))
	m.Labels[LabelUnit], m.Labels[LabelRevision] = label(unit), label(revision)
	m.Annotations[group+"unit"] = unit
}

// ensureJob is Ensure for a job.
func (t *Target) ensureJob(ctx context.Context, f deployer.Fence, s deployer.Spec, revision string) error {
	fresh, err := newJob(f.Scope, s, revision)
	if err != nil {
		return err
	}
	err = t.writeCron(ctx, f, revision, func(c *batchv1.CronJob) (*batchv1.CronJob, error) {
		if c != nil {
			if c.Annotations[AnnotationHash] != s.Hash() {
				return nil, fmt.Errorf("knative: revision %s has other content: %w: %w", revision, deployer.ErrExists, errKeep)
			}
			return nil, nil
		}
		return fresh.DeepCopy(), nil
	})
	return about(s.Unit, revision, err)
}

// newJob describes s as a job's revision of that name.
func newJob(scope deployer.Scope, s deployer.Spec, revision string) (*batchv1.CronJob, error) {
	spec, err := runSpec(scope, s, revision)
	if err != nil {
		return nil, err
	}
	yes := true
	c := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: revision}, Spec: batchv1.CronJobSpec{Schedule: never, Suspend: &yes, JobTemplate: batchv1.JobTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: maps.Clone(spec.Template.Labels)}, Spec: spec,
	}}}
	cronMeta(&c.ObjectMeta, scope, s.Unit, revision)
	c.Labels[LabelJob] = s.Name
	c.Annotations[AnnotationHash] = s.Hash()
	for source, v := range s.Versions {
		c.Annotations[AnnotationVersion+label(string(source))] = v
	}
	return c, nil
}

// rehearseJobs asks the cluster, policies and webhooks included, whether it
// would take the jobs among the units.
func (t *Target) rehearseJobs(ctx context.Context, scope deployer.Scope, units []deployer.Spec) ([]*deployer.Failure, error) {
	var all []*deployer.Failure
	for _, u := range units {
		if u.Job == nil {
			continue
		}
		c, err := newJob(scope, u, u.RevisionName(1)+"-0") // a name that no revision ever has
		if err != nil {
			return nil, err
		}
		_, err = once(ctx, t, "rehearse job "+u.Name, func(ctx context.Context) (*batchv1.CronJob, error) {
			return t.kube.BatchV1().CronJobs(t.namespace(scope)).Create(ctx, c, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		})
		f, err := rehearsed(ctx, u, err)
		if err != nil {
			return nil, err
		}
		if f != nil {
			all = append(all, f)
		}
	}
	return all, nil
}

// getJob reads a job's revision; nil: there is none.
func (t *Target) getJob(ctx context.Context, scope deployer.Scope, service, revision string) (*batchv1.CronJob, error) {
	c, err := t.getCron(ctx, scope, revision)
	if err != nil || c == nil || c.Labels[LabelJob] != service {
		return nil, err
	}
	return c, nil
}

// readyJob is WaitReady for a job, which waits for nothing: the cluster has
// accepted the template, and the registry does not say that the image is
// missing.
func (t *Target) readyJob(ctx context.Context, c *batchv1.CronJob) (deployer.Revision, error) {
	rev := deployer.Revision{Name: c.Name, Service: c.Labels[LabelJob], Unit: c.Annotations[group+"unit"]}
	image := ""
	if u := unitContainer(c.Spec.JobTemplate.Spec.Template.Spec.Containers); u != nil {
		image = u.Image
	}
	var err error
	if rev.Image, err = name.NewDigest(image); err != nil {
		return deployer.Revision{}, fmt.Errorf("knative: revision %s: %w", c.Name, err)
	}
	if f := t.image(ctx, deployer.Spec{Unit: rev.Unit, Image: rev.Image}); f != nil {
		return deployer.Revision{}, about(rev.Unit, c.Name, f)
	}
	return rev, nil
}

// jobServices are the scope's job units.
func jobServices(scope deployer.Scope, crons []batchv1.CronJob) []deployer.Service {
	byName := map[string]*deployer.Service{}
	for _, c := range crons {
		service := c.Labels[LabelJob]
		if service == "" {
			continue
		}
		s := byName[service]
		if s == nil {
			s = &deployer.Service{Name: service, Unit: cmp.Or(c.Annotations[group+"unit"], c.Labels[LabelUnit]), Owner: scope.Owner, Job: true}
			byName[service] = s
		}
		s.Epoch = max(s.Epoch, writtenUnder(c.Annotations))
		o := deployer.Observed{Name: c.Name, Hash: c.Annotations[AnnotationHash], Phase: deployer.Ready, Created: c.CreationTimestamp.Time}
		if u := unitContainer(c.Spec.JobTemplate.Spec.Template.Spec.Containers); u != nil {
			o.Image = u.Image
		}
		s.Revisions = append(s.Revisions, o)
	}
	var all []deployer.Service
	for _, s := range byName {
		slices.SortFunc(s.Revisions, func(a, b deployer.Observed) int { return cmp.Compare(a.Name, b.Name) })
		all = append(all, *s)
	}
	return all
}

// jobsOf are a job unit's revisions, whoever they belong to: an error where
// that is somebody else.
func (t *Target) jobsOf(ctx context.Context, scope deployer.Scope, service string) ([]batchv1.CronJob, error) {
	crons, err := t.crons(ctx, scope, map[string]string{LabelJob: service})
	if err != nil {
		return nil, err
	}
	for _, c := range crons {
		if err := ours(scope, "job "+service+", cron job", c.Name, c.Labels); err != nil {
			return nil, err
		}
	}
	return crons, nil
}

// removeJob is RemoveService for a job. Its runs go on.
func (t *Target) removeJob(ctx context.Context, f deployer.Fence, service string) error {
	crons, err := t.jobsOf(ctx, f.Scope, service)
	if err != nil {
		return err
	}
	for _, c := range crons {
		if err := t.removeCron(ctx, f, c.Name); err != nil {
			return err
		}
	}
	return nil
}
