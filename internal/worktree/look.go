package worktree

import (
	"context"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// Look is a look at a work tree that goes on while other things are done.
type Look struct {
	dir, cache string
	cancel     context.CancelCauseFunc
	headed     chan struct{}
	sha        string
	branch     string
	headErr    error
	done       chan struct{}
	known      Known
	paths      []string // tracked
	err        error
}

// Begin begins to list the files of the work tree at dir, to find out which of
// them are as an earlier look saw them, whose sums are kept in a file below
// cache, and which commit is checked out. An empty cache keeps nothing. git
// runs in environ where it reads more than its index. The caller closes the
// Look.
func Begin(environ []string, dir, cache string) *Look {
	ctx, cancel := context.WithCancelCause(context.Background())
	l := &Look{dir: dir, cache: cache, cancel: cancel, headed: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		// One processor stays the program's own: on two, the rest is done one
		// after the other.
		var group errgroup.Group
		group.SetLimit(max(1, runtime.GOMAXPROCS(0)-1))
		group.Go(func() error {
			defer close(l.headed)
			l.sha, l.branch, l.headErr = Head(ctx, environ, dir)
			return nil
		})
		group.Go(func() error {
			l.paths, l.err = tracked(ctx, dir)
			return nil
		})
		group.Go(func() error {
			l.known = loadKnown(cache, dir, time.Now())
			l.known.holds = l.known.look() // not of what is tracked: that is not listed yet
			return nil
		})
		_ = group.Wait()
	}()
	return l
}

// At reports whether it is a look at the work tree at dir whose sums are kept
// below cache. A nil Look is at none.
func (l *Look) At(dir, cache string) bool { return l != nil && l.dir == dir && l.cache == cache }

// Until ends the look when ctx ends.
func (l *Look) Until(ctx context.Context) {
	context.AfterFunc(ctx, func() { l.cancel(context.Cause(ctx)) })
}

// Head waits for [Head].
func (l *Look) Head() (sha, branch string, err error) {
	<-l.headed
	return l.sha, l.branch, l.headErr
}

// Files waits for the tracked files.
func (l *Look) Files() ([]string, error) {
	<-l.done
	return slices.Clone(l.paths), l.err
}

// Known waits for what is known of the files.
func (l *Look) Known() Known {
	<-l.done
	return l.known
}

// Close ends what still runs, git among it. A nil Look is closed.
func (l *Look) Close() {
	if l != nil {
		l.cancel(context.Canceled)
		<-l.headed
		<-l.done
	}
}

// Cache is the folder where a user's sums are kept; empty where this user has
// none.
func Cache(getenv func(string) string) string {
	cache := getenv("XDG_CACHE_HOME")
	if home := getenv("HOME"); !filepath.IsAbs(cache) && filepath.IsAbs(home) {
		cache = filepath.Join(home, ".cache")
	}
	if !filepath.IsAbs(cache) {
		return ""
	}
	return filepath.Join(cache, "kuroko", "trees")
}
