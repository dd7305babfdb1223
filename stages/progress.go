package stages

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/ci"
)

// meter shows transfers. On a terminal the last line follows the one that
// moved last; elsewhere there are whole lines only: one for each transfer that
// ended after a while, and one from time to time for those that last.
type meter struct {
	w        io.Writer
	terminal bool
	now      func() time.Time

	mu     sync.Mutex
	said   map[string]time.Time // when a transfer was last told of
	shown  bool                 // the last line of the terminal is ours
	moving map[string]builder.Transfer
}

const (
	// sayEach is how often a long transfer gets a line in a job's log.
	sayEach = 10 * time.Second
	// worthALine is the time from which on a transfer that ended gets one; the
	// table at the end has them all.
	worthALine = 2 * time.Second
)

// newMeter shows transfers on w, as a person's terminal when it says that it
// is one.
func newMeter(w io.Writer, now func() time.Time) *meter {
	t, ok := w.(interface{ Terminal() bool })
	return &meter{w: w, terminal: ok && t.Terminal(), now: now, said: map[string]time.Time{}, moving: map[string]builder.Transfer{}}
}

// show is a builder's Progress. Safe for concurrent use.
func (m *meter) show(t builder.Transfer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := t.Image + " " + t.Title
	if m.terminal {
		m.follow(key, t)
		return
	}
	began, known := m.said[key]
	switch now := m.now(); {
	case t.Done:
		delete(m.said, key)
		if !t.Reused && t.Took >= worthALine {
			fmt.Fprintf(m.w, "  pushed %s: %s\n", t.Title, moved(t))
		}
	case !known && t.Took < sayEach:
		m.said[key] = now
	case now.Sub(began) >= sayEach:
		m.said[key] = now
		fmt.Fprintf(m.w, "  push %s: %s\n", t.Title, moved(t))
	}
}

// follow keeps one line at the bottom of a terminal.
func (m *meter) follow(key string, t builder.Transfer) {
	const clear = "\r\x1b[K"
	if t.Done {
		delete(m.moving, key)
		if len(m.moving) == 0 && m.shown {
			m.shown = false
			_, _ = io.WriteString(m.w, clear)
		}
		return
	}
	m.moving[key] = t
	m.shown = true
	more := ""
	if n := len(m.moving) - 1; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	fmt.Fprintf(m.w, "%s  push %s: %s%s", clear, t.Title, moved(t), more)
}

// moved is "1.2 of 4.5 MiB, 12.0 MiB/s".
func moved(t builder.Transfer) string {
	s := Size(t.Sent)
	if t.Sent != t.Size {
		s += " of " + Size(t.Size)
	}
	if t.Took > 0 {
		s += fmt.Sprintf(", %s/s", Size(int64(float64(t.Sent)/t.Took.Seconds())))
	}
	if t.Done {
		s += " in " + ci.Took(t.Took)
	}
	return s
}
