package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/kuroko-faas/kuroko/deployer"
)

// timerRecord is a timer on disk. It holds its unit's name and revision only:
// what they are stands with the service.
type timerRecord struct {
	Scope    deployer.Scope `json:"scope"`
	Timer    deployer.Timer `json:"timer"`
	Revision string         `json:"revision"`
	Epoch    int64          `json:"epoch"`
}

// timer is a record with its clock.
type timer struct {
	rec  timerRecord
	when cron.Schedule
	next time.Time
	last time.Time
	// calls are those under way; replace ends them.
	calls map[int]context.CancelFunc
	n     int
}

func timerID(s deployer.Scope, key string) string { return scopeKey(s) + "." + key }

func (b book) timerFile(s deployer.Scope, key string) string {
	return filepath.Join(b.dir, "timers", timerID(s, key)+".json")
}

// timers reads every timer there is.
func (b book) timers() ([]timerRecord, error) {
	entries, err := os.ReadDir(filepath.Join(b.dir, "timers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []timerRecord
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) || !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		var rec timerRecord
		if err := readJSON(filepath.Join(b.dir, "timers", e.Name()), &rec); err != nil {
			return nil, err
		}
		all = append(all, rec)
	}
	return all, nil
}

// schedule reads the timer's times.
func schedule(t deployer.Timer) (cron.Schedule, error) {
	return cron.ParseStandard("CRON_TZ=" + cmp.Or(t.Timezone, "UTC") + " " + t.Schedule)
}

// wind starts the clock of a record; it needs mu. Times that passed while no
// server ran are not made up for.
func (s *Server) wind(rec timerRecord) error {
	when, err := schedule(rec.Timer)
	if err != nil {
		return fmt.Errorf("timer %s of %s: %w", rec.Timer.Name, rec.Timer.Function, err)
	}
	id := timerID(rec.Scope, rec.Timer.Key())
	t := s.timers[id]
	if t == nil {
		t = &timer{calls: map[int]context.CancelFunc{}}
		s.timers[id] = t
	}
	t.rec, t.when = rec, when
	if t.next.IsZero() {
		t.next = when.Next(time.Now()) // one that changes in place keeps its next time
	}
	s.rewind()
	return nil
}

// rewind makes the clock look again.
func (s *Server) rewind() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// clock fires timers until ctx ends.
func (s *Server) clock(ctx context.Context) {
	for {
		wake := time.NewTimer(s.due(ctx, time.Now()))
		select {
		case <-wake.C:
		case <-s.changed:
		case <-ctx.Done():
		}
		wake.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// due fires what is due at now and says how long nothing will be.
func (s *Server) due(ctx context.Context, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := time.Hour
	for _, t := range s.timers {
		if t.next.IsZero() {
			continue // at no time ever, such as 30 February
		}
		if !t.next.After(now) {
			s.fire(ctx, t, t.next)
			t.next = t.when.Next(now)
		}
		if !t.next.IsZero() {
			wait = min(wait, max(t.next.Sub(now), 0))
		}
	}
	return wait
}

// fire starts the timer's call for the time at; it needs mu.
func (s *Server) fire(ctx context.Context, t *timer, at time.Time) {
	switch {
	case s.closing:
		return
	case len(t.calls) > 0 && t.rec.Timer.Overlap == "skip":
		s.host.say("%s: the timer %s is skipped: the call before still runs", t.rec.Timer.Function, t.rec.Timer.Name)
		return
	case t.rec.Timer.Overlap == "replace":
		for _, cancel := range t.calls {
			cancel()
		}
	}
	t.last = at
	t.n++
	n, rec := t.n, t.rec
	call, cancel := context.WithCancel(ctx)
	t.calls[n] = cancel
	s.running.Go(func() {
		defer cancel()
		if err := s.call(call, rec, at); err != nil {
			s.host.say("%s: the timer %s: %v", rec.Timer.Function, rec.Timer.Name, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(t.calls, n)
	})
}

// timerRun is how a cluster would name the run: the time stands at its end.
func timerRun(t deployer.Timer, at time.Time) string {
	return fmt.Sprintf("%s-%s-%d", t.Function, t.Key(), at.Unix()/60)
}

// call makes one call: a run of a job, or an event to a revision.
func (s *Server) call(ctx context.Context, rec timerRecord, at time.Time) error {
	s.mu.Lock()
	svc, err := s.find(rec.Scope, rec.Timer.Service)
	var spec deployer.Spec
	var i *instance
	there := false
	if svc != nil {
		var r revisionRecord
		r, there = svc.rec.Revisions[rec.Revision]
		spec, i = r.Spec, svc.instances[rec.Revision]
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("revision %s: %w", rec.Revision, deployer.ErrNotFound)
	}
	run := timerRun(rec.Timer, at)
	source := "/" + rec.Scope.Environment + "/" + rec.Scope.Service
	if spec.Job != nil {
		event, err := json.Marshal(map[string]string{"function": rec.Timer.Function, "name": rec.Timer.Name, "payload": rec.Timer.Payload, "source": source})
		if err != nil {
			return err
		}
		// For programs that read FAAS_EVENT alone.
		plain, err := json.Marshal(map[string]string{"triggerTime": at.UTC().Format(time.RFC3339), "triggerName": rec.Timer.Name, "payload": rec.Timer.Payload})
		if err != nil {
			return err
		}
		r := s.newRun(rec.Scope, run, rec.Revision, spec, map[string]string{"FAAS_TIMER": string(event), "FAAS_EVENT": string(plain)})
		if r == nil {
			return fmt.Errorf("run %s: %w", run, deployer.ErrExists)
		}
		r.work(ctx)
		if f := r.outcome().Failure; f != nil {
			return f
		}
		return nil
	}
	body, err := json.Marshal(map[string]string{
		"function": rec.Timer.Function, "triggerName": rec.Timer.Name, "payload": rec.Timer.Payload,
		"triggerTime": at.UTC().Format(time.RFC3339), "id": run, "source": source,
	})
	if err != nil {
		return err
	}
	proxy, release, err := i.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+rec.Revision+"/_faas/timer", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.RemoteAddr = "127.0.0.1:0"
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Faas-Timer", s.host.timerKey)
	var answer recorder
	proxy.ServeHTTP(&answer, req)
	if answer.status < 200 || answer.status > 299 {
		return fmt.Errorf("%s answered %d: %s", rec.Revision, answer.status, strings.TrimSpace(answer.body.String()))
	}
	return nil
}

// recorder is a response that nobody waits for: its status, and the start of
// what it says.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header {
	if r.header == nil {
		r.header = http.Header{}
	}
	return r.header
}

func (r *recorder) WriteHeader(status int) {
	if status >= 200 && r.status == 0 {
		r.status = status
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	_, _ = io.CopyN(&r.body, bytes.NewReader(p), int64(max(0, min(len(p), 1000-r.body.Len()))))
	return len(p), nil
}

func (s *Server) doTimers(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []deployer.ObservedTimer
	for _, t := range s.timers {
		if t.rec.Scope != in.Scope {
			continue
		}
		all = append(all, deployer.ObservedTimer{
			Key: t.rec.Timer.Key(), Function: t.rec.Timer.Function, Service: t.rec.Timer.Service, Schedule: t.rec.Timer.Schedule,
			Timezone: t.rec.Timer.Timezone, Revision: t.rec.Revision, Does: t.rec.Timer.Does(t.rec.Revision), Epoch: t.rec.Epoch,
			Last: t.last, Running: len(t.calls),
		})
	}
	slices.SortFunc(all, func(a, b deployer.ObservedTimer) int { return strings.Compare(a.Key, b.Key) })
	return reply{Timers: all}, nil
}

// ownTimer checks a writer's right to the scope's timer; it needs mu.
func (s *Server) ownTimer(f deployer.Fence, key string) (*timer, error) {
	if err := s.fence(f); err != nil {
		return nil, err
	}
	t := s.timers[timerID(f.Scope, key)]
	if t != nil && t.rec.Scope.Owner != f.Scope.Owner {
		return nil, &deployer.ForeignError{Object: "timer " + t.rec.Timer.Name + " of " + t.rec.Timer.Function, Owner: t.rec.Scope.Owner, Mine: f.Scope.Owner}
	}
	return t, nil
}

func (s *Server) doSetTimer(_ context.Context, in request) (reply, error) {
	if in.Timer == nil {
		return reply{}, errors.New("no timer")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.ownTimer(in.Fence, in.Timer.Key()); err != nil {
		return reply{}, err
	}
	svc, err := s.find(in.Fence.Scope, in.Service)
	if err != nil {
		return reply{}, err
	}
	there := false
	if svc != nil {
		_, there = svc.rec.Revisions[in.Revision]
	}
	if !there {
		return reply{}, fmt.Errorf("revision %s: %w", in.Revision, deployer.ErrNotFound)
	}
	if _, err := schedule(*in.Timer); err != nil {
		return reply{}, fmt.Errorf("timer %s of %s: %w", in.Timer.Name, in.Timer.Function, err)
	}
	rec := timerRecord{Scope: in.Fence.Scope, Timer: *in.Timer, Revision: in.Revision, Epoch: in.Fence.Epoch}
	if err := writeJSON(s.book.timerFile(rec.Scope, rec.Timer.Key()), rec); err != nil {
		return reply{}, err
	}
	return reply{}, s.wind(rec)
}

func (s *Server) doRemoveTimer(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.ownTimer(in.Fence, in.ID)
	if err != nil || t == nil {
		return reply{}, err
	}
	delete(s.timers, timerID(in.Fence.Scope, in.ID))
	return reply{}, removeFile(s.book.timerFile(in.Fence.Scope, in.ID))
}
