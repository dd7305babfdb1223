package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// state is where a revision's process stands.
type state int

const (
	idle     state = iota // not wanted, or not started yet
	starting              // image, process, readiness
	ready                 // answers
	stopping              // drained, ending
	waiting               // between two attempts
	failed                // never became Ready; stays so
)

// instance is one revision: its process, when it is wanted, and the way to
// it. One goroutine, supervise, starts and ends processes; everybody else
// says what is wanted and waits for changes.
type instance struct {
	host    host
	service string
	name    string
	spec    deployer.Spec
	created time.Time
	log     *logFile

	ctx    context.Context // ends when everything must end at once
	cancel context.CancelFunc
	done   chan struct{} // closed when supervise has ended

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	state    state
	why      string
	failure  *deployer.Failure
	wasReady bool
	pinned   bool      // has traffic
	until    time.Time // wanted at least until then
	ending   bool      // removed, or the server ends
	inflight int
	counts   analysis.Counts
	proxy    *httputil.ReverseProxy
}

// host is what an instance needs from its server.
type host struct {
	launch  launcher
	ports   *ports
	times   Times
	say     func(format string, args ...any)
	note    func(service, revision string, change func(*revisionRecord))
	proxyTo func(addr string, timeout time.Duration) *httputil.ReverseProxy
	// timerKey is what a timer's call proves itself with, as long as the server
	// lives.
	timerKey string
}

func newInstance(h host, service, name string, rec revisionRecord, log *logFile) *instance {
	i := &instance{
		host: h, service: service, name: name, spec: rec.Spec, created: rec.Created, log: log,
		done: make(chan struct{}), changed: make(chan struct{}),
		wasReady: rec.WasReady, failure: rec.Failure,
	}
	if rec.Failure != nil {
		i.state = failed
	}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	return i
}

// change runs f under the lock and wakes everybody who waits.
func (i *instance) change(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
	close(i.changed)
	i.changed = make(chan struct{})
}

// want says whether the revision has traffic, and until when it is wanted
// without.
func (i *instance) want(pinned bool, until time.Time) {
	i.change(func() { i.pinned, i.until = pinned, until })
}

// wanted needs mu.
func (i *instance) wanted() bool { return !i.ending && (i.pinned || time.Now().Before(i.until)) }

// demand makes sure that the revision starts if it is not running.
func (i *instance) demand() {
	until := time.Now().Add(i.host.times.KeepWarm)
	i.change(func() {
		if i.until.Before(until) {
			i.until = until
		}
	})
}

var (
	errGone    = errors.New("the revision is gone")
	errTooLate = errors.New("the revision did not start in time")
)

// acquire waits until the revision can answer and returns the way to it. The
// process does not end before release was called, within the drain time.
func (i *instance) acquire(ctx context.Context) (*httputil.ReverseProxy, func(), error) {
	limit := time.NewTimer(i.host.times.StartWait)
	defer limit.Stop()
	i.mu.Lock()
	for {
		switch {
		case i.ending:
			i.mu.Unlock()
			return nil, nil, errGone
		case i.state == failed:
			f := i.failure
			i.mu.Unlock()
			return nil, nil, f
		case i.state == ready:
			i.inflight++
			i.extend()
			p := i.proxy
			i.mu.Unlock()
			return p, i.release, nil
		}
		if !i.wanted() {
			i.extend()
			close(i.changed)
			i.changed = make(chan struct{})
		}
		changed := i.changed
		i.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		case <-limit.C:
			return nil, nil, errTooLate
		}
		i.mu.Lock()
	}
}

// extend keeps the revision warm; it needs mu.
func (i *instance) extend() {
	if until := time.Now().Add(i.host.times.KeepWarm); i.until.Before(until) {
		i.until = until
	}
}

func (i *instance) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.inflight--; i.inflight == 0 {
		close(i.changed)
		i.changed = make(chan struct{})
	}
}

// end stops the revision for good, draining what is under way first, and
// waits until it has ended or ctx has; then it is killed.
func (i *instance) end(ctx context.Context) {
	i.change(func() { i.ending = true })
	select {
	case <-i.done:
	case <-ctx.Done():
		i.cancel()
		<-i.done
	}
	i.cancel()
	i.log.Close()
}

// observed is the instance as the contract sees it.
func (i *instance) observed() (phase deployer.Phase, why string, f *deployer.Failure) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.state == failed:
		return deployer.Broken, "", i.failure
	case i.state == ready, i.state == stopping, i.state == idle && i.wasReady:
		return deployer.Ready, "", nil
	}
	return deployer.Pending, i.why, nil
}

// await waits, at most for d, until the revision answers or has failed.
func (i *instance) await(ctx context.Context, d time.Duration, known string) (up bool, why string, err error) {
	limit := time.NewTimer(d)
	defer limit.Stop()
	for {
		i.mu.Lock()
		st, w, f, ending, changed := i.state, i.why, i.failure, i.ending, i.changed
		if st == idle && !i.wanted() && !ending {
			i.extend()
			close(i.changed)
			i.changed = make(chan struct{})
			changed = i.changed
		}
		i.mu.Unlock()
		switch {
		case ending:
			return false, "", fmt.Errorf("revision %s: %w", i.name, deployer.ErrNotFound)
		case st == failed:
			return false, "", f
		case st == ready:
			return true, "", nil
		case w != known && w != "":
			return false, w, nil
		}
		select {
		case <-changed:
		case <-limit.C:
			return false, w, nil
		case <-ctx.Done():
			return false, "", context.Cause(ctx)
		}
	}
}

// supervise runs the revision's processes, one after the other, while it is
// wanted.
func (i *instance) supervise() {
	defer close(i.done)
	pause, attempt := i.host.times.Backoff, 0
	for i.awaitWanted() {
		start := time.Now()
		err := i.life()
		if err == nil { // stopped as it was told
			pause, attempt = i.host.times.Backoff, 0
			continue
		}
		attempt++
		if time.Since(start) > 10*time.Second {
			pause = i.host.times.Backoff
		}
		var f *deployer.Failure
		if !errors.As(err, &f) {
			f = &deployer.Failure{Code: deployer.Unable, Cause: err.Error(), Next: "look at the local target's log"}
		}
		f.Unit, f.Revision = i.spec.Unit, i.name
		i.mu.Lock()
		final := !i.wasReady && !i.mayHeal(f, attempt)
		i.mu.Unlock()
		i.host.say("%s: %s", i.name, f.Cause)
		if final {
			i.host.note(i.service, i.name, func(r *revisionRecord) { r.Failure = f })
			i.change(func() { i.state, i.failure, i.why = failed, f, "" })
			continue
		}
		i.change(func() { i.state, i.why = waiting, "trying again after: "+f.Cause })
		i.sleep(pause)
		pause = min(2*pause, i.host.times.BackoffMax)
	}
}

// mayHeal reports whether a failed first start is worth another attempt: the
// registry did not answer, or somebody else took the port we had chosen.
func (i *instance) mayHeal(f *deployer.Failure, attempt int) bool {
	if attempt > 3 {
		return false
	}
	if f.Code == deployer.ImageUnreachable {
		return true
	}
	end := strings.ToLower(strings.Join(f.Logs, "\n"))
	return f.Code == deployer.Crash && (strings.Contains(end, "eaddrinuse") || strings.Contains(end, "address already in use"))
}

// sleep waits for d, or until the revision ends.
func (i *instance) sleep(d time.Duration) {
	limit := time.NewTimer(d)
	defer limit.Stop()
	for {
		i.mu.Lock()
		ending, changed := i.ending, i.changed
		i.mu.Unlock()
		if ending {
			return
		}
		select {
		case <-limit.C:
			return
		case <-changed:
		case <-i.ctx.Done():
			return
		}
	}
}

// awaitWanted blocks until a process is wanted; false: never again.
func (i *instance) awaitWanted() bool {
	for {
		i.mu.Lock()
		ending, st, wanted, changed := i.ending, i.state, i.wanted(), i.changed
		i.mu.Unlock()
		switch {
		case ending || i.ctx.Err() != nil:
			return false
		case st != failed && wanted:
			i.change(func() { i.state, i.why = starting, "starting" })
			return true
		case st != failed && st != idle:
			i.change(func() { i.state, i.why = idle, "" })
			continue
		}
		select {
		case <-changed:
		case <-i.ctx.Done():
			return false
		}
	}
}

// life is one process from start to end. nil: it ended because it was told
// to.
func (i *instance) life() error {
	progress := func(why string) { i.change(func() { i.why = why }) }
	pull, cancelPull := context.WithTimeout(i.ctx, i.host.times.Pull)
	defer cancelPull()
	fs, err := i.host.launch.prepare(pull, i.spec.Image, i.name, progress)
	if err != nil {
		if i.isEnding() {
			return nil
		}
		return err
	}
	port, err := i.host.ports.take()
	if err != nil {
		return err
	}
	defer i.host.ports.give(port)
	o, err := orderFor(fs, i.environment(port))
	if err != nil {
		return &deployer.Failure{Code: deployer.ImageUnusable, Cause: err.Error(), Next: "give the image an entry point"}
	}
	o.log, o.grace = i.log, i.host.times.Grace
	ctx, stop := context.WithCancel(i.ctx)
	defer stop()
	progress("starting the process")
	began := time.Now()
	wait, err := i.host.launch.start(ctx, o)
	if errors.Is(err, errAgain) {
		stop()
		return i.life()
	}
	if err != nil {
		return startFailure(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- wait() }()
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	up, err := i.becomeReady(addr, began, exited)
	if up {
		err = i.serve(addr, exited)
	}
	stop()
	<-exited
	var f *deployer.Failure
	if !up && errors.As(err, &f) && i.host.launch.another(o, f) {
		return i.life()
	}
	return err
}

func (i *instance) isEnding() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ending
}

// environment is what the unit is told.
func (i *instance) environment(port int) map[string]string {
	env := unitEnvironment(i.spec, i.service, i.name)
	env["PORT"] = fmt.Sprint(port)
	env["FAAS_HOST"] = "127.0.0.1" // nobody outside this machine is meant
	if i.spec.Timed {
		env["FAAS_TIMER_KEY"] = i.host.timerKey
	}
	return env
}

// becomeReady asks until the process says it is Ready. up and err are both
// empty when it is no longer wanted.
func (i *instance) becomeReady(addr string, began time.Time, exited chan error) (up bool, err error) {
	limit := i.spec.InitTimeout
	if limit == 0 {
		limit = i.host.times.Init
	}
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil}, Timeout: time.Second}
	pause, said := 10*time.Millisecond, "nothing listens on $PORT"
	i.change(func() { i.why = "waiting for the process to listen" })
	for {
		up, answer := i.answers(client, addr)
		if up {
			return true, nil
		}
		if answer != "" {
			said = answer
			i.change(func() { i.why = said })
		}
		next := time.NewTimer(pause)
		i.mu.Lock()
		wanted, changed := i.wanted(), i.changed
		i.mu.Unlock()
		if !wanted {
			next.Stop()
			return false, nil
		}
		select {
		case <-next.C:
			pause = min(2*pause, 200*time.Millisecond)
		case <-changed:
			next.Stop()
		case <-deadline.C:
			next.Stop()
			return false, i.timeout(limit, said)
		case err := <-exited:
			next.Stop()
			exited <- err
			if i.isEnding() || i.ctx.Err() != nil {
				return false, nil
			}
			return false, i.crash(err, time.Since(began))
		}
	}
}

// answers reports whether the process is Ready, or what it said instead.
func (i *instance) answers(client *http.Client, addr string) (up bool, said string) {
	if i.spec.Server {
		c, err := net.DialTimeout("tcp", addr, client.Timeout)
		if err != nil {
			return false, ""
		}
		c.Close()
		return true, ""
	}
	res, err := client.Get("http://" + addr + "/health/readiness")
	if err != nil {
		return false, ""
	}
	res.Body.Close()
	// A server without our adapter may know no such path: that it answers is
	// all one can ask then.
	if res.StatusCode < 400 || res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed {
		return true, ""
	}
	return false, fmt.Sprintf("the readiness probe answers %d", res.StatusCode)
}

func (i *instance) timeout(limit time.Duration, said string) error {
	lines, _ := i.log.tail(deployer.LogLines)
	return &deployer.Failure{
		Code: deployer.ProbeNeverPasses, Cause: fmt.Sprintf("not Ready after %s: %s", limit, said), Logs: lines,
		Next: "listen on $PORT soon after start; raise initTimeout if the start needs longer",
	}
}

// crash names how a process ended that should not have.
func (i *instance) crash(err error, after time.Duration) *deployer.Failure {
	f := &deployer.Failure{Code: deployer.Crash, Cause: "ended by itself with code 0", Next: "read the last log lines"}
	var x *run.ExitError
	switch {
	case errors.As(err, &x) && x.Signal != 0:
		f.Signal, f.Cause, f.ExitCode = x.Signal.String(), fmt.Sprintf("ended by signal %d (%v)", int(x.Signal), x.Signal), x.Code
	case errors.As(err, &x):
		f.ExitCode, f.Cause = x.Code, fmt.Sprintf("exited with code %d", x.Code)
	case err != nil:
		f.Cause = err.Error()
	}
	f.Cause += " " + after.Round(10*time.Millisecond).String() + " after its start"
	f.Logs, _ = i.log.tail(deployer.LogLines)
	return f
}

// startFailure names why there is no process.
func startFailure(err error) error {
	f := &deployer.Failure{Code: deployer.Unable, Cause: err.Error(), Next: "look at the local target's log"}
	switch {
	case errors.Is(err, os.ErrNotExist):
		f.Code, f.Next = deployer.ImageUnusable, "put the program into the image, or correct its entry point"
	case errors.Is(err, sandbox.ErrForbidden):
		f.Next = "allow it, or start the local target with --sandbox none"
	}
	return f
}

// serve lets requests in until the revision is no longer wanted and drained
// (nil), or the process has ended by itself.
func (i *instance) serve(addr string, exited chan error) error {
	began := time.Now()
	proxy := i.host.proxyTo(addr, i.spec.Timeout)
	defer proxy.Transport.(*http.Transport).CloseIdleConnections()
	first := false
	i.change(func() {
		first = !i.wasReady
		i.state, i.why, i.proxy, i.wasReady = ready, "", proxy, true
	})
	if first {
		i.host.note(i.service, i.name, func(r *revisionRecord) { r.WasReady = true })
	}
	i.host.say("%s: ready at %s", i.name, addr)
	var drain time.Time
	for {
		i.mu.Lock()
		wanted, changed, until := i.wanted(), i.changed, i.until
		if i.pinned {
			until = time.Time{}
		}
		if wanted {
			drain = time.Time{}
		} else {
			if drain.IsZero() {
				drain = time.Now().Add(i.host.times.Drain)
			}
			if i.inflight == 0 || time.Now().After(drain) {
				i.state, i.proxy = stopping, nil
				i.mu.Unlock()
				return nil
			}
			until = drain
		}
		i.mu.Unlock()
		var wake <-chan time.Time
		var timer *time.Timer
		if !until.IsZero() {
			timer = time.NewTimer(time.Until(until))
			wake = timer.C
		}
		var err error
		ended := false
		select {
		case <-changed:
		case <-wake:
		case err = <-exited:
			ended = true
		}
		if timer != nil {
			timer.Stop()
		}
		if ended {
			exited <- err
			i.change(func() { i.state, i.proxy, i.why = waiting, nil, "the process has ended" })
			if i.isEnding() || i.ctx.Err() != nil {
				return nil
			}
			return i.crash(err, time.Since(began))
		}
	}
}

// ports hands out loopback ports that nobody listens on, none of them twice
// at a time. Somebody else may still be faster than the unit; then the unit
// fails to start and is started again with another.
type ports struct {
	mu    sync.Mutex
	taken map[int]bool
}

func (p *ports) take() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken == nil {
		p.taken = map[int]bool{}
	}
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		if !p.taken[port] {
			p.taken[port] = true
			return port, nil
		}
	}
	return 0, errors.New("no free port")
}

func (p *ports) give(port int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, port)
}
