package knative

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiwatch "k8s.io/apimachinery/pkg/watch"

	"github.com/kuroko-faas/kuroko/deployer"
)

// StartRun implements [deployer.Jobs].
func (t *Target) StartRun(ctx context.Context, scope deployer.Scope, s deployer.Spec, revision string, event []byte) (string, error) {
	if s.Job == nil {
		return "", fmt.Errorf("knative: unit %s is no job", s.Unit)
	}
	if err := t.exists(ctx, scope, s, revision); err != nil {
		return "", err
	}
	spec, err := runSpec(scope, s, revision, corev1.EnvVar{Name: "FAAS_EVENT", Value: escape(string(event))})
	if err != nil {
		return "", err
	}
	run := revision + "-" + strings.ToLower(rand.Text()[:8])
	labels := maps.Clone(spec.Template.Labels)
	labels[LabelRun] = "hand"
	_, err = read(ctx, t, "create job "+run, func(ctx context.Context) (struct{}, error) {
		_, err := t.kube.BatchV1().Jobs(t.namespace(scope)).Create(ctx, &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Name: run, Labels: labels}, Spec: spec,
		}, metav1.CreateOptions{})
		return struct{}{}, err
	})
	if errors.Is(err, deployer.ErrExists) {
		err = nil // the name is random: an answer to our own request was lost
	}
	return run, about(s.Unit, revision, err)
}

func jobs(name string) watched {
	return func(ctx context.Context, t *Target, ns string) (apiwatch.Interface, error) {
		return t.kube.BatchV1().Jobs(ns).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	}
}

func podsOfRun(run string) watched {
	return func(ctx context.Context, t *Target, ns string) (apiwatch.Interface, error) {
		return t.kube.CoreV1().Pods(ns).Watch(ctx, metav1.ListOptions{LabelSelector: ofRun(run)})
	}
}

func ofRun(run string) string { return selector(map[string]string{batchv1.JobNameLabel: run}) }

// FollowRun implements [deployer.Jobs].
func (t *Target) FollowRun(ctx context.Context, scope deployer.Scope, run string, out func(string)) (deployer.RunResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := t.watch(ctx, scope, jobs(run), podsOfRun(run))
	f := follower{t: t, out: out, seen: map[string]bool{}}
	defer f.wg.Wait()
	defer cancel() // before the wait: a log may go on
	for {
		j, err := read(ctx, t, "read job "+run, func(ctx context.Context) (*batchv1.Job, error) {
			return t.kube.BatchV1().Jobs(t.namespace(scope)).Get(ctx, run, metav1.GetOptions{})
		})
		if err != nil {
			return deployer.RunResult{}, err
		}
		if err := ours(scope, "job", run, j.Labels); err != nil {
			return deployer.RunResult{}, err
		}
		list, err := read(ctx, t, "list pods of "+run, func(ctx context.Context) (*corev1.PodList, error) {
			return t.kube.CoreV1().Pods(t.namespace(scope)).List(ctx, metav1.ListOptions{LabelSelector: ofRun(run)})
		})
		if err != nil {
			return deployer.RunResult{}, err
		}
		f.follow(ctx, list.Items)
		if result, ended := outcome(j, list.Items); ended {
			f.finish(ctx)
			return result, nil
		}
		if failure := stuck(list.Items); failure != nil {
			return deployer.RunResult{Run: run, Succeeded: int(j.Status.Succeeded), Failed: int(j.Status.Failed), Failure: failure}, nil
		}
		if err := changed(ctx); err != nil {
			return deployer.RunResult{}, err
		}
	}
}

// follower reads the logs of a run's pods, each once.
type follower struct {
	t    *Target
	out  func(string)
	mu   sync.Mutex
	seen map[string]bool
	wg   sync.WaitGroup
}

func (f *follower) follow(ctx context.Context, pods []corev1.Pod) {
	for _, p := range pods {
		c := unitStatus(&p)
		if f.out == nil || f.seen[p.Name] || c == nil || c.State.Running == nil && c.State.Terminated == nil {
			continue
		}
		f.seen[p.Name] = true
		mark := ""
		if i, ok := p.Annotations[batchv1.JobCompletionIndexAnnotation]; ok {
			mark = "[" + i + "] "
		}
		f.wg.Go(func() {
			r, err := f.t.kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: container, Follow: true}).Stream(ctx)
			if err != nil {
				f.say(mark + "its log could not be read: " + oneLine(err.Error()))
				return
			}
			defer r.Close()
			lines := bufio.NewReader(r)
			for {
				line, err := lines.ReadString('\n')
				if line != "" {
					f.say(mark + strings.TrimSuffix(line, "\n"))
				}
				if err != nil {
					if !errors.Is(err, io.EOF) && ctx.Err() == nil {
						f.say(mark + "its log broke off: " + oneLine(err.Error()))
					}
					return
				}
			}
		})
	}
}

func (f *follower) say(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out(line)
}

// logPatience is how long the logs of an ended run may take to come to their
// end.
const logPatience = 10 * time.Second

func (f *follower) finish(ctx context.Context) {
	done := make(chan struct{})
	go func() { f.wg.Wait(); close(done) }()
	patience := time.NewTimer(logPatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// outcome is how the run ended, if it has.
func outcome(j *batchv1.Job, pods []corev1.Pod) (r deployer.RunResult, ended bool) {
	r = deployer.RunResult{Run: j.Name, Succeeded: int(j.Status.Succeeded), Failed: int(j.Status.Failed)}
	for _, c := range j.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete:
			return r, true
		case batchv1.JobFailed:
			r.Failure = runFailure(j, c, pods)
			return r, true
		}
	}
	return r, false
}

// runFailure is the cause of the newest failed pod, or the cluster's own.
func runFailure(j *batchv1.Job, c batchv1.JobCondition, pods []corev1.Pod) *deployer.Failure {
	f := &deployer.Failure{Code: deployer.Crash, Cause: "the run failed: " + oneLine(c.Message), Next: "read its last lines"}
	if c.Reason == batchv1.JobReasonDeadlineExceeded {
		return &deployer.Failure{Code: deployer.TooSlow, Cause: fmt.Sprintf("the run did not end within its %d s", *j.Spec.ActiveDeadlineSeconds), Next: "raise job.timeout, or give the work more completions"}
	}
	pods = slices.Clone(pods)
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	for _, p := range pods {
		s := unitStatus(&p)
		if s == nil || s.State.Terminated == nil || s.State.Terminated.ExitCode == 0 {
			continue
		}
		e := s.State.Terminated
		switch e.Reason {
		case "OOMKilled":
			f.Code, f.Cause, f.Next = deployer.OutOfMemory, "killed: it needs more memory than its limit of "+p.Spec.Containers[0].Resources.Limits.Memory().String(), "raise memory, or hold less at once"
		case "StartError", "ContainerCannotRun":
			return unusable(e.Message)
		default:
			f.ExitCode, f.Cause = int(e.ExitCode), fmt.Sprintf("exited with code %d", e.ExitCode)
		}
		if tries := int(j.Status.Failed); tries > 1 {
			f.Cause += fmt.Sprintf(", %d failed tries in all", tries)
		}
		return f
	}
	return f
}

// stuck is a cause that keeps the run from ever starting; nil: there is none.
func stuck(pods []corev1.Pod) *deployer.Failure {
	for _, p := range pods {
		if c := unitStatus(&p); c != nil && c.State.Waiting != nil {
			if f, _ := waiting(c.State.Waiting.Reason, c.State.Waiting.Message, p.Spec.Containers[0].Image); f != nil {
				f.Cause += "; the run goes on trying"
				return f
			}
		}
	}
	return nil
}

// EndRuns implements [deployer.Jobs].
func (t *Target) EndRuns(ctx context.Context, f deployer.Fence) error {
	if err := t.fence(ctx, f); err != nil {
		return err
	}
	list, err := read(ctx, t, "list jobs of "+f.Scope.String(), func(ctx context.Context) (*batchv1.JobList, error) {
		return t.kube.BatchV1().Jobs(t.namespace(f.Scope)).List(ctx, metav1.ListOptions{LabelSelector: selector(scopeLabels(f.Scope))})
	})
	if err != nil {
		return err
	}
	for _, j := range list.Items {
		background := metav1.DeletePropagationBackground
		_, err := read(ctx, t, "remove job "+j.Name, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, t.kube.BatchV1().Jobs(j.Namespace).Delete(ctx, j.Name, metav1.DeleteOptions{
				Preconditions: &metav1.Preconditions{UID: &j.UID}, PropagationPolicy: &background,
			})
		})
		if err != nil && !errors.Is(err, deployer.ErrNotFound) {
			return err
		}
	}
	return nil
}
