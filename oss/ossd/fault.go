package ossd

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// Fault is what goes wrong with one request, for tests of clients. The zero
// value is nothing.
type Fault struct {
	// Delay passes before anything else; it ends early when the client goes.
	Delay time.Duration
	// Status answers with that error instead of serving.
	Status int
	Code   string // with Status; empty answers without the service's XML
	// RetryAfter is sent with Status, in whole seconds.
	RetryAfter time.Duration
	// Location makes Status a redirect.
	Location string
	// Drop closes the connection before the work is done.
	Drop bool
	// LoseAnswer closes the connection after the work was done.
	LoseAnswer bool
	// Body damages the answer's body from its byte BodyAt on.
	Body   BodyFault
	BodyAt int64
	// IgnoreRange serves the whole object whatever was asked.
	IgnoreRange bool
}

// BodyFault is a way to damage a body.
type BodyFault int

// The ways. Headers announce the undamaged body.
const (
	Intact BodyFault = iota
	Cut              // the connection closes
	Stall            // nothing more comes until the client goes
	Flip             // one bit is wrong
)

// SetFault asks f about every request from now on; nil ends that. f may be
// called from several goroutines at once.
func (s *Server) SetFault(f func(*http.Request) Fault) {
	if f == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&f)
}

// Script is a function for [Server.SetFault] that gives the first request the
// first fault and so on; later requests go well.
func Script(faults ...Fault) func(*http.Request) Fault {
	var n atomic.Int64
	return func(*http.Request) Fault {
		if i := n.Add(1) - 1; i < int64(len(faults)) {
			return faults[i]
		}
		return Fault{}
	}
}

// Always is a function for [Server.SetFault] that gives every request f.
func Always(f Fault) func(*http.Request) Fault {
	return func(*http.Request) Fault { return f }
}

// before is what happens instead of serving; Status 0 drops the connection.
func (f Fault) before(r *http.Request) *apiError {
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.Context().Done():
			return &apiError{}
		}
	}
	if f.IgnoreRange {
		r.Header.Del("Range")
	}
	switch {
	case f.Drop:
		return &apiError{}
	case f.Status != 0:
		e := fail(f.Status, f.Code, "This answer was ordered by a test.")
		e.Header = http.Header{}
		if f.RetryAfter > 0 {
			e.Header.Set("Retry-After", strconv.Itoa(int(f.RetryAfter/time.Second)))
		}
		if f.Location != "" {
			e.Header.Set("Location", f.Location)
		}
		return e
	}
	return nil
}

// answer counts what is sent and damages it as the fault says.
type answer struct {
	http.ResponseWriter
	server  *Server
	request *http.Request
	fault   Fault
	status  int
	n       int64 // bytes of body
	broken  bool  // the connection must not be used again
}

func (w *answer) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	w.status = status
	if !w.fault.LoseAnswer {
		w.server.count(w.request.Method+" "+strconv.Itoa(status), 0)
		w.ResponseWriter.WriteHeader(status)
	}
}

// finish is called when nothing more will be written.
func (w *answer) finish() { w.WriteHeader(http.StatusOK) }

func (w *answer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	switch at := w.fault.BodyAt - w.n; {
	case w.fault.LoseAnswer:
		return len(p), nil
	case w.broken:
		return 0, http.ErrAbortHandler
	case w.fault.Body == Intact, at >= int64(len(p)), w.fault.Body == Flip && at < 0:
	case w.fault.Body == Flip:
		p = append([]byte(nil), p...)
		p[at] ^= 1
	default:
		n, _ := w.send(p[:max(at, 0)])
		w.broken = true
		http.NewResponseController(w.ResponseWriter).Flush()
		if w.fault.Body == Stall {
			<-w.request.Context().Done()
		}
		return n, http.ErrAbortHandler
	}
	return w.send(p)
}

func (w *answer) send(p []byte) (int, error) {
	w.server.count("", len(p))
	w.n += int64(len(p))
	return w.ResponseWriter.Write(p)
}
