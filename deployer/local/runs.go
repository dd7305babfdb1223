package local

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/run"
)

// jobRun is a run of a job: its processes, and what they write. It ends with
// the server.
type jobRun struct {
	server   *Server
	scope    deployer.Scope
	name     string
	revision string
	spec     deployer.Spec
	env      map[string]string
	end      context.CancelFunc // of the run; set before it is known

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	lines   []string
	dropped int // lines before those
	result  deployer.RunResult
	ended   time.Time
}

// maxRunLines is how much of a run's log is kept.
const maxRunLines = 10_000

// keptRun is how long an ended run stays where the job doesn't say.
const keptRun = time.Hour

// newRun notes a run; nil: there is one of that name. Runs that have ended
// long ago are forgotten.
func (s *Server) newRun(scope deployer.Scope, name, revision string, spec deployer.Spec, env map[string]string) *jobRun {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range s.runs {
		kept := r.spec.Job.TTL
		if kept == 0 {
			kept = keptRun
		}
		r.mu.Lock()
		if !r.ended.IsZero() && time.Since(r.ended) > kept {
			delete(s.runs, id)
		}
		r.mu.Unlock()
	}
	if s.runs[name] != nil || s.closing {
		return nil
	}
	r := &jobRun{
		server: s, scope: scope, name: name, revision: revision, spec: spec, env: env, end: func() {},
		changed: make(chan struct{}), result: deployer.RunResult{Run: name},
	}
	s.runs[name] = r
	return r
}

// change runs f under the lock and wakes those who follow.
func (r *jobRun) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *jobRun) say(line string) {
	if len(line) > maxLine {
		line = line[:maxLine] + "…"
	}
	r.change(func() {
		r.lines = append(r.lines, strings.ToValidUTF8(strings.TrimRight(line, "\r"), "�"))
		if over := len(r.lines) - maxRunLines; over > 0 {
			r.lines, r.dropped = r.lines[over:], r.dropped+over
		}
	})
}

func (r *jobRun) outcome() deployer.RunResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result
}

// work runs every completion, parallelism of them at once, and returns when
// all has ended.
func (r *jobRun) work(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.spec.Job.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, r.spec.Job.Timeout, errTooLong)
		defer stop()
	}
	r.change(func() { r.end = cancel })
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(r.spec.Job.Parallelism, r.spec.Job.Completions) {
		workers.Go(func() {
			for index := range next {
				r.complete(ctx, index)
			}
		})
	}
	for index := range r.spec.Job.Completions {
		next <- index
	}
	close(next)
	workers.Wait()
	r.change(func() { r.ended = time.Now() })
}

var errTooLong = errors.New("the run did not end in time")

// complete runs one completion with its retries.
func (r *jobRun) complete(ctx context.Context, index int) {
	for try := 0; ; try++ {
		f := r.try(ctx, index)
		if f == nil {
			r.change(func() { r.result.Succeeded++ })
			return
		}
		r.change(func() {
			r.result.Failed++
			if try >= r.spec.Job.Retries || f.Code != deployer.Crash {
				r.result.Failure = f
			}
		})
		if try >= r.spec.Job.Retries || f.Code != deployer.Crash || ctx.Err() != nil {
			return
		}
	}
}

// try is one process; nil: it ended well.
func (r *jobRun) try(ctx context.Context, index int) *deployer.Failure {
	failure := func(err error) *deployer.Failure {
		var f *deployer.Failure
		switch {
		case errors.Is(context.Cause(ctx), errTooLong):
			return &deployer.Failure{Code: deployer.TooSlow, Cause: fmt.Sprintf("the run did not end within its %s", r.spec.Job.Timeout), Next: "raise job.timeout, or give the work more completions"}
		case ctx.Err() != nil:
			return &deployer.Failure{Code: deployer.Unable, Cause: "the run was ended"}
		case errors.As(err, &f):
			return f
		}
		return &deployer.Failure{Code: deployer.Unable, Cause: err.Error(), Next: "look at the local target's log"}
	}
	if err := ctx.Err(); err != nil {
		return failure(err)
	}
	launch := r.server.host.launch
	pull, cancel := context.WithTimeout(ctx, r.server.opts.Times.Pull)
	defer cancel()
	fs, err := launch.prepare(pull, r.spec.Image, r.revision, func(string) {})
	if err != nil {
		return failure(err)
	}
	env := unitEnvironment(r.spec, r.spec.Name, r.revision)
	maps.Copy(env, r.env)
	env["FAAS_JOB_NAME"], env["JOB_COMPLETION_INDEX"] = r.name, strconv.Itoa(index)
	o, err := orderFor(fs, env)
	if err != nil {
		return &deployer.Failure{Code: deployer.ImageUnusable, Cause: err.Error(), Next: "give the image an entry point"}
	}
	log := &lineWriter{say: r.say}
	if r.spec.Job.Completions > 1 {
		log.mark = fmt.Sprintf("[%d] ", index)
	}
	o.log, o.grace = log, r.server.opts.Times.Grace
	wait, err := launch.start(ctx, o)
	if errors.Is(err, errAgain) {
		return r.try(ctx, index)
	}
	if err != nil {
		return failure(startFailure(err))
	}
	err = wait()
	log.flush()
	var x *run.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return failure(err)
	case errors.As(err, &x) && x.Signal != 0:
		f := &deployer.Failure{Code: deployer.Crash, ExitCode: x.Code, Signal: x.Signal.String(), Cause: fmt.Sprintf("ended by signal %d (%v)", int(x.Signal), x.Signal), Next: "read its last lines"}
		return r.orAgain(ctx, index, o, f)
	case errors.As(err, &x):
		f := &deployer.Failure{Code: deployer.Crash, ExitCode: x.Code, Cause: fmt.Sprintf("exited with code %d", x.Code), Next: "read its last lines"}
		return r.orAgain(ctx, index, o, f)
	}
	return failure(err)
}

// orAgain tries once more where the launcher has found another way to run the
// image.
func (r *jobRun) orAgain(ctx context.Context, index int, o order, f *deployer.Failure) *deployer.Failure {
	if r.server.host.launch.another(o, f) {
		return r.try(ctx, index)
	}
	return f
}

// lineWriter cuts what processes write into lines.
type lineWriter struct {
	mark string
	say  func(string)

	mu   sync.Mutex
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 && len(w.rest) <= maxLine {
			return len(p), nil
		}
		if i < 0 {
			w.say(w.mark + string(w.rest))
			w.rest = nil
			return len(p), nil
		}
		w.say(w.mark + string(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.say(w.mark + string(w.rest))
		w.rest = nil
	}
}

func (s *Server) doStartRun(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	svc, err := s.find(in.Scope, in.Service)
	var spec deployer.Spec
	there := false
	if svc != nil {
		var rec revisionRecord
		rec, there = svc.rec.Revisions[in.Revision]
		spec = rec.Spec
	}
	s.mu.Unlock()
	if err != nil {
		return reply{}, err
	}
	if !there || spec.Job == nil {
		return reply{}, fmt.Errorf("revision %s: %w", in.Revision, deployer.ErrNotFound)
	}
	r := s.newRun(in.Scope, in.Revision+"-"+strings.ToLower(rand.Text()[:8]), in.Revision, spec, map[string]string{"FAAS_EVENT": string(in.Event)})
	if r == nil {
		return reply{}, errors.New("the local target is ending")
	}
	s.running.Go(func() { r.work(s.alive) })
	return reply{ID: r.name}, nil
}

func (s *Server) doFollowRun(ctx context.Context, in request) (reply, error) {
	s.mu.Lock()
	r := s.runs[in.ID]
	s.mu.Unlock()
	if r == nil || r.scope != in.Scope {
		return reply{}, fmt.Errorf("run %s: %w", in.ID, deployer.ErrNotFound)
	}
	limit := time.NewTimer(longPoll)
	defer limit.Stop()
	for {
		r.mu.Lock()
		from := max(0, in.N-r.dropped)
		out := reply{Lines: append([]string(nil), r.lines[min(from, len(r.lines)):]...), N: r.dropped + len(r.lines)}
		if !r.ended.IsZero() {
			result := r.result
			out.Result = &result
		}
		changed := r.changed
		r.mu.Unlock()
		if len(out.Lines) > 0 || out.Result != nil {
			return out, nil
		}
		select {
		case <-changed:
		case <-limit.C:
			return out, nil
		case <-ctx.Done():
			return reply{}, context.Cause(ctx)
		}
	}
}

func (s *Server) doEndRuns(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fence(in.Fence); err != nil {
		return reply{}, err
	}
	for id, r := range s.runs {
		if r.scope == in.Fence.Scope {
			r.mu.Lock()
			r.end()
			r.mu.Unlock()
			delete(s.runs, id)
		}
	}
	return reply{}, nil
}

// unitEnvironment is what every process of the unit is told.
func unitEnvironment(s deployer.Spec, service, revision string) map[string]string {
	env := maps.Clone(s.Environment)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, map[string]string{
		"FAAS_UNIT":       s.Table,
		"FAAS_IMAGE":      s.Image.String(),
		"FAAS_KEY":        s.Key,
		"K_REVISION":      revision,
		"K_SERVICE":       service,
		"K_CONFIGURATION": service,
	})
	return env
}

// prepareJob looks whether a job's image can be had.
func (s *Server) prepareJob(ctx context.Context, spec deployer.Spec, revision string) (reply, error) {
	if f := s.images.check(ctx, spec.Image); f != nil {
		f.Unit, f.Revision = spec.Unit, revision
		return reply{}, f
	}
	return reply{Revision: &deployer.Revision{Name: revision, Service: spec.Name, Unit: spec.Unit, Image: spec.Image, Sandbox: string(s.host.launch.mode())}}, nil
}

// observedJob is a job's service, which has no processes of its own.
func (s *Server) observedJob(rec serviceRecord) deployer.Service {
	o := deployer.Service{Name: rec.Name, Unit: rec.Unit, Owner: rec.Scope.Owner, Epoch: rec.Epoch, Job: true}
	for name, r := range rec.Revisions {
		o.Revisions = append(o.Revisions, deployer.Observed{
			Name: name, Hash: r.Spec.Hash(), Image: r.Spec.Image.String(), Phase: deployer.Ready,
			Created: r.Created, Sandbox: string(s.host.launch.mode()),
		})
	}
	return o
}
