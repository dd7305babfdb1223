package deployer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// lease is this run's right to write, and its view of the Head, which shares
// the lease's record. It renews itself in the background until release.
type lease struct {
	t     Target
	scope Scope
	opts  Options

	mu   sync.Mutex // held across SwapHead: one writer of the record here
	head Head

	stop func()
	done chan struct{}
}

// acquire takes the scope's lease, waiting for another holder to release it
// or to stand still. The returned context ends, with cause [ErrFenced], when
// the lease is lost.
func acquire(ctx context.Context, t Target, scope Scope, o Options) (*lease, context.Context, error) {
	var seen string // version of somebody else's record
	var since time.Time
	start := time.Now()
	for {
		h, err := t.Head(ctx, scope)
		if err != nil {
			return nil, nil, fmt.Errorf("deployer: read lease of %s: %w", scope, err)
		}
		fresh := h.Version != seen
		if fresh {
			seen, since = h.Version, time.Now()
		}
		// Another's clock is not ours: only how long the record stood still
		// before our own eyes counts.
		free := h.Holder == "" || time.Since(since) >= max(o.Lease.For, h.LeaseFor)
		if free {
			h.Holder, h.LeaseFor, h.Renewed = o.Holder, o.Lease.For, o.Now().UTC()
			h.Epoch++
			h, err = t.SwapHead(ctx, scope, h)
			if err == nil {
				return hold(ctx, t, scope, o, h)
			}
			if !errors.Is(err, ErrConflict) {
				return nil, nil, fmt.Errorf("deployer: take lease of %s: %w", scope, err)
			}
			seen = "" // somebody was faster
			continue
		}
		if o.Lease.Wait < 0 || time.Since(start) >= o.Lease.Wait {
			return nil, nil, &LockedError{Scope: scope, Holder: h.Holder}
		}
		if fresh {
			o.say(Event{Step: StepLease, Text: "waiting: " + h.Holder + " is deploying"})
		}
		if err := sleep(ctx, o.Lease.Poll); err != nil {
			return nil, nil, err
		}
	}
}

func hold(ctx context.Context, t Target, scope Scope, o Options, h Head) (*lease, context.Context, error) {
	held, cancel := context.WithCancelCause(ctx)
	l := &lease{t: t, scope: scope, opts: o, head: h, done: make(chan struct{})}
	renewing, stop := context.WithCancel(held)
	l.stop = stop
	go func() {
		defer close(l.done)
		last := time.Now()
		for sleep(renewing, o.Lease.Renew) == nil {
			err := l.update(renewing, func(*Head) {})
			switch {
			case err == nil:
				last = time.Now()
			case errors.Is(err, ErrFenced):
				cancel(err)
				return
			case time.Since(last) >= o.Lease.For:
				// Somebody else may hold it by now; writing on would race.
				cancel(fmt.Errorf("%w: not renewed for %s: %w", ErrFenced, o.Lease.For, err))
				return
			}
		}
	}()
	return l, held, nil
}

// current is the Head as last read or written by this run.
func (l *lease) current() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

func (l *lease) fence() Fence { return Fence{Scope: l.scope, Epoch: l.current().Epoch} }

// update changes the Head by compare-and-swap; every update is a renewal too.
// change may be called again on a newer record, so it must depend on nothing
// else. [ErrFenced] when the record shows another epoch.
func (l *lease) update(ctx context.Context, change func(*Head)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last error
	for range 5 {
		want := l.head
		if want.Rollout != nil {
			r := *want.Rollout
			want.Rollout = &r
		}
		change(&want)
		now := l.opts.Now().UTC()
		want.Renewed = now
		if want.Rollout != nil && !want.Rollout.Absolute {
			want.Rollout.Deadline = now.Add(l.opts.Lease.For)
		}
		got, err := l.t.SwapHead(ctx, l.scope, want)
		if err == nil {
			l.head = got
			return nil
		}
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrUnavailable) {
			return fmt.Errorf("deployer: write head of %s: %w", l.scope, err)
		}
		last = err
		// The write may have been ours though its answer was lost: look.
		seen, err := l.t.Head(ctx, l.scope)
		if err != nil {
			last = err
			if err := sleep(ctx, l.opts.ProbeEvery); err != nil {
				return err
			}
			continue
		}
		if seen.Epoch != l.head.Epoch {
			if seen.Holder == "" { // it is done already
				return fmt.Errorf("deployer: write head of %s: %w", l.scope, ErrFenced)
			}
			return fmt.Errorf("deployer: write head of %s: %w (%s)", l.scope, ErrFenced, seen.Holder)
		}
		l.head = seen
		if sameHead(seen, want) {
			return nil
		}
	}
	return fmt.Errorf("deployer: write head of %s: %w", l.scope, last)
}

// release gives the lease back. An error leaves it to run out.
func (l *lease) release(ctx context.Context) error {
	l.stop()
	<-l.done
	return l.update(ctx, func(h *Head) { h.Holder = "" })
}

// sameHead compares what two Heads say, whatever their versions.
func sameHead(a, b Head) bool {
	a.Version, b.Version = "", ""
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// sleep waits for d or the end of ctx, whose cause it returns.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (o Options) say(e Event) {
	if o.Progress != nil {
		o.Progress(e)
	}
}
