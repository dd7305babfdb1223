package knative

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// A timer is a CronJob. One that calls a function over its address starts a
// container of the function's own image that makes the call: no foreign image
// is needed, and its log and end say how the call went.

const (
	// maxCron leaves room for what Kubernetes appends to name a run.
	maxCron = 52
	// startingDeadline is how late, in seconds, a timer may fire after a time
	// when the cluster could not: long enough for an upgrade of the control
	// plane, too short for yesterday's.
	startingDeadline = 300
	// keptRuns is how many ended runs of each outcome stay.
	keptRuns = 3

	timerSecretKey = "key"
)

var overlaps = map[string]batchv1.ConcurrencyPolicy{
	"skip": batchv1.ForbidConcurrent, "allow": batchv1.AllowConcurrent, "replace": batchv1.ReplaceConcurrent,
}

// timerSecret is the name of the Secret that the scope's timers and timed
// units share. It stays as long as the scope's records do: every revision that
// can be rolled back to names it.
func timerSecret(s deployer.Scope) string { return recordName(s) + ".timers" }

// timerName is readable first, and unique by its end. A watchdog knows the
// scope by its labels only.
func timerName(scope deployer.Scope, key, function string) string {
	sum := sha256.Sum256([]byte(label(scope.Service) + "/" + label(scope.Environment) + "/" + key))
	end := "-" + hex.EncodeToString(sum[:4])
	start := label(label(scope.Service) + "-" + function)
	return strings.TrimRight(start[:min(len(start), maxCron-len(end))], "-") + end
}

// Timers implements [deployer.Jobs].
func (t *Target) Timers(ctx context.Context, scope deployer.Scope) ([]deployer.ObservedTimer, error) {
	crons, err := t.crons(ctx, scope, scopeLabels(scope))
	if err != nil {
		return nil, err
	}
	var all []deployer.ObservedTimer
	for _, c := range crons {
		key := c.Labels[LabelTimer]
		if key == "" {
			continue
		}
		o := deployer.ObservedTimer{
			Key: key, Function: c.Annotations[AnnotationFunction], Service: c.Annotations[AnnotationService], Schedule: c.Spec.Schedule,
			Revision: c.Annotations[AnnotationRevision], Does: c.Annotations[AnnotationDoes], Epoch: writtenUnder(c.Annotations),
			Off: c.Spec.Suspend != nil && *c.Spec.Suspend, Running: len(c.Status.Active),
		}
		if c.Spec.TimeZone != nil && *c.Spec.TimeZone != utc {
			o.Timezone = *c.Spec.TimeZone
		}
		if c.Annotations[AnnotationSchedule] != scheduleOf(&c.Spec) {
			o.Does = "" // changed behind our back
		}
		if c.Status.LastScheduleTime != nil {
			o.Last = c.Status.LastScheduleTime.Time
		}
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b deployer.ObservedTimer) int { return cmp.Compare(a.Key, b.Key) })
	return all, nil
}

// utc is written out: without it the clock of the cluster's controllers decides.
const utc = "Etc/UTC"

// scheduleOf is when and how often the CronJob fires, in words that can be
// compared.
func scheduleOf(s *batchv1.CronJobSpec) string {
	zone := ""
	if s.TimeZone != nil {
		zone = *s.TimeZone
	}
	return s.Schedule + "/" + zone + "/" + string(s.ConcurrencyPolicy)
}

// SetTimer implements [deployer.Jobs].
func (t *Target) SetTimer(ctx context.Context, f deployer.Fence, timer deployer.Timer, s deployer.Spec, revision string) error {
	policy, ok := overlaps[timer.Overlap]
	if !ok {
		return fmt.Errorf("knative: timer of %s: overlap %q", timer.Function, timer.Overlap)
	}
	var spec batchv1.JobSpec
	var err error
	if s.Job != nil {
		spec, err = runSpec(f.Scope, s, revision, timerVar(f.Scope, timer), timerEvent(timer))
	} else {
		// The key that it needs was made with the unit.
		spec, err = fireSpec(f.Scope, t.namespace(f.Scope), timer, s, revision)
	}
	if err != nil {
		return err
	}
	if err := t.exists(ctx, f.Scope, s, revision); err != nil {
		return err
	}
	key, zone := timer.Key(), cmp.Or(timer.Timezone, utc)
	deadline, kept, on := int64(startingDeadline), int32(keptRuns), false
	err = t.writeCron(ctx, f, timerName(f.Scope, key, timer.Function), func(c *batchv1.CronJob) (*batchv1.CronJob, error) {
		if c == nil {
			c = &batchv1.CronJob{}
		}
		cronMeta(&c.ObjectMeta, f.Scope, s.Unit, revision)
		c.Labels[LabelTimer] = key
		c.Spec = batchv1.CronJobSpec{
			Schedule: timer.Schedule, TimeZone: &zone, StartingDeadlineSeconds: &deadline, ConcurrencyPolicy: policy, Suspend: &on,
			SuccessfulJobsHistoryLimit: &kept, FailedJobsHistoryLimit: &kept,
			JobTemplate: batchv1.JobTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: maps.Clone(spec.Template.Labels)}, Spec: spec},
		}
		maps.Copy(c.Annotations, map[string]string{
			AnnotationFunction: timer.Function, AnnotationService: s.Name, AnnotationRevision: revision,
			AnnotationDoes: timer.Does(revision), AnnotationSchedule: scheduleOf(&c.Spec),
		})
		return c, nil
	})
	return about(s.Unit, revision, err)
}

// exists checks that there is something to call.
func (t *Target) exists(ctx context.Context, scope deployer.Scope, s deployer.Spec, revision string) error {
	var found bool
	if s.Job != nil {
		c, err := t.getJob(ctx, scope, s.Name, revision)
		if err != nil {
			return err
		}
		found = c != nil
	} else {
		r, err := t.getRevision(ctx, scope, s.Name, revision)
		if err != nil {
			return err
		}
		found = r != nil
	}
	if !found {
		return fmt.Errorf("knative: revision %s: %w", revision, deployer.ErrNotFound)
	}
	return nil
}

// RemoveTimer implements [deployer.Jobs].
func (t *Target) RemoveTimer(ctx context.Context, f deployer.Fence, key string) error {
	if err := t.fence(ctx, f); err != nil {
		return err
	}
	crons, err := t.crons(ctx, f.Scope, map[string]string{LabelTimer: key, LabelService: label(f.Scope.Service), LabelEnvironment: label(f.Scope.Environment)})
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

// ensureTimerKey makes the Secret that timers and units share, once. Nobody
// reads it here: its value is only for their containers.
func (t *Target) ensureTimerKey(ctx context.Context, f deployer.Fence) error {
	secret := timerSecret(f.Scope)
	m, err := t.metadata(ctx, f.Scope, deployer.SecretSource(secret))
	if slices.ContainsFunc(deployer.Failures(err), func(f *deployer.Failure) bool { return f.Code == deployer.Denied }) {
		return nil // a watchdog brings back what was there, and its key still is
	}
	if err != nil {
		return err
	}
	if m != nil {
		return ownSecret(f.Scope, secret, m.Labels)
	}
	if err := t.fence(ctx, f); err != nil {
		return err
	}
	labels := scopeLabels(f.Scope)
	labels[LabelRecord] = "timers"
	_, err = once(ctx, t, "create secret "+secret, func(ctx context.Context) (struct{}, error) {
		_, err := t.kube.CoreV1().Secrets(t.namespace(f.Scope)).Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: secret, Labels: labels},
			Type:       corev1.SecretTypeOpaque, Data: map[string][]byte{timerSecretKey: []byte(rand.Text() + rand.Text())},
		}, metav1.CreateOptions{})
		return struct{}{}, err
	})
	if errors.Is(err, deployer.ErrExists) {
		return nil // another of our own calls was faster
	}
	return err
}
