package deployer

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"
)

// WatchOptions are the watchdog's times and ears. The zero value works.
type WatchOptions struct {
	// Every is the time between two looks at all records; default 5 s.
	Every time.Duration
	// Full is the time between two whole sweeps of a scope; default 10 min.
	// Between them only dead rollouts are looked for, with one request for all
	// scopes.
	Full time.Duration
	// Limit bounds one scope's sweep; default 5 min.
	Limit time.Duration
	// Parallel is how many scopes are swept at once; default 8.
	Parallel int
	// Report is told of sweeps that did something, were kept from it, or
	// failed; of a failed look at all records with the zero Swept. It may be
	// called from several goroutines at once. nil: nobody is.
	Report func(Swept, error)
	// Looked is called after each look that the target answered, for health
	// checks; nil: nobody is told.
	Looked func()
}

// Watch sweeps all of l's scopes, which is the Sweeper's target, until ctx ends, and returns when the
// sweeps under way have ended too. A scope that failed is tried again, no
// sooner than after six looks.
func (s *Sweeper) Watch(ctx context.Context, l Lister, w WatchOptions) {
	w.Every, w.Full, w.Limit = cmp.Or(w.Every, 5*time.Second), cmp.Or(w.Full, 10*time.Minute), cmp.Or(w.Limit, 5*time.Minute)
	if w.Parallel <= 0 {
		w.Parallel = 8
	}
	report := func(sw Swept, err error) {
		if w.Report != nil && (err != nil || len(sw.Done) > 0 || len(sw.Notes) > 0) && ctx.Err() == nil {
			w.Report(sw, err)
		}
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		busy  = map[Scope]bool{}
		next  = map[Scope]time.Time{} // whole sweep
		after = map[Scope]time.Time{} // no try before
	)
	defer wg.Wait()
	slots := make(chan struct{}, w.Parallel)
	for {
		all, err := list(ctx, l, w.Every)
		if err != nil {
			report(Swept{}, err)
		}
		if w.Looked != nil && (err == nil || len(all) > 0) { // one bad record is no outage
			w.Looked()
		}
		s.forget(all, err == nil)
		now := time.Now()
		for _, rec := range all {
			dead := s.Due(rec)
			mu.Lock()
			skip := busy[rec.Scope] || now.Before(after[rec.Scope]) || !dead && now.Before(next[rec.Scope])
			busy[rec.Scope] = busy[rec.Scope] || !skip
			mu.Unlock()
			if skip {
				continue
			}
			wg.Go(func() {
				select {
				case slots <- struct{}{}:
					defer func() { <-slots }()
				case <-ctx.Done():
				}
				limited, cancel := context.WithTimeout(ctx, w.Limit)
				defer cancel()
				sw, err := s.Sweep(limited, rec, all)
				report(sw, err)
				mu.Lock()
				defer mu.Unlock()
				delete(busy, rec.Scope)
				if err != nil {
					after[rec.Scope] = time.Now().Add(6 * w.Every)
				} else if sw.Waits == "" {
					next[rec.Scope] = time.Now().Add(w.Full)
				}
			})
		}
		if sleep(ctx, w.Every) != nil {
			return
		}
	}
}

// list reads all records, in a bounded time: a hanging answer must not keep
// the watchdog from asking again.
func list(ctx context.Context, l Lister, every time.Duration) ([]Recorded, error) {
	ctx, cancel := context.WithTimeout(ctx, max(30*time.Second, every))
	defer cancel()
	all, err := l.Scopes(ctx)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = errors.Join(ErrUnavailable, err)
	}
	return all, err
}

// forget drops what is remembered of scopes that are gone.
func (s *Sweeper) forget(all []Recorded, complete bool) {
	if !complete {
		return
	}
	there := make(map[Scope]bool, len(all))
	for _, rec := range all {
		there[rec.Scope] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for scope := range s.seen {
		if !there[scope] {
			delete(s.seen, scope)
		}
	}
}
