// Package local is a deploy target on one machine: a server that runs the
// units' images behind one HTTP port, with named revisions, traffic shares
// and the same records as a cluster, and a client that implements
// [deployer.Target] over the server's unix socket.
//
// Units run in a sandbox of their own where the machine allows it; see
// [Server.Sandbox]. Limits of memory and CPU, scaling and concurrency limits
// do not take effect here: one process per revision that is wanted. The
// network is the machine's.
//
// A request names a unit, by the first label of its host or the first segment
// of its path. So a function that moves to another unit moves to another
// address: the new one answers before the old one ends, but nothing maps one
// to the other, as a gateway's routes do on a cluster.
//
// A program that starts a Server calls sandbox.Main first thing in main, and
// in TestMain.
package local

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// Options are a server's settings. Only Dir is needed.
type Options struct {
	// Dir holds records, images and logs. One server at a time uses it.
	Dir string
	// Addr is where requests are served; default 127.0.0.1:0. A port that was
	// chosen by the system is kept over restarts while it is free.
	Addr string
	// Layers is where layers are unpacked; default: a folder in Dir. Servers of
	// one user may share a folder, so that each layer is unpacked once; what is
	// in it is never removed then.
	Layers string
	// Sandbox is auto (also when empty), root, userns or none.
	Sandbox string
	// Keychain has the credentials for pulling; default: those of the docker
	// configuration.
	Keychain authn.Keychain
	// Transport reaches registries; default: go-containerregistry's.
	Transport http.RoundTripper
	// MaxImageBytes and MaxImageFiles bound what one layer unpacks to;
	// default 4 GiB and 400,000.
	MaxImageBytes int64
	MaxImageFiles int
	// LogBytes bounds each of a revision's two log files; default 1 MiB.
	LogBytes int64
	Times    Times
	// Log receives one line per event; nil: nobody.
	Log func(string)

	launcher launcher // of tests
}

// Times are a server's times. Zero values mean the defaults.
type Times struct {
	Pull       time.Duration // for one image; 10 min
	Init       time.Duration // until Ready, where the unit doesn't say; 60 s
	StartWait  time.Duration // a request waits for a starting revision; 30 s
	KeepWarm   time.Duration // a revision without traffic runs on; 5 min
	Drain      time.Duration // for requests under way before a stop; 30 s
	Grace      time.Duration // between SIGTERM and SIGKILL; 10 s
	Backoff    time.Duration // before the first restart, doubling; 100 ms
	BackoffMax time.Duration // 10 s
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	t := &o.Times
	def(&t.Pull, 10*time.Minute)
	def(&t.Init, time.Minute)
	def(&t.StartWait, 30*time.Second)
	def(&t.KeepWarm, 5*time.Minute)
	def(&t.Drain, 30*time.Second)
	def(&t.Grace, 10*time.Second)
	def(&t.Backoff, 100*time.Millisecond)
	def(&t.BackoffMax, 10*time.Second)
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.MaxImageBytes == 0 {
		o.MaxImageBytes = 4 << 30
	}
	if o.MaxImageFiles == 0 {
		o.MaxImageFiles = 400_000
	}
	if o.LogBytes == 0 {
		o.LogBytes = 1 << 20
	}
	return o
}

// ErrBusy: another server uses the folder.
var ErrBusy = errors.New("another local target uses the folder")

// Server runs units. Make it with [Start], end it with [Server.Close].
type Server struct {
	opts   Options
	dir    string
	url    string
	why    string // why the sandbox is not a better one
	book   book
	images *images
	host   host
	lock   *os.File
	data   *http.Server
	ctl    *http.Server

	routes atomic.Pointer[map[string]*route] // by service or revision name

	mu       sync.Mutex // guards the book's writes and what follows
	services map[string]*service
	timers   map[string]*timer
	runs     map[string]*jobRun
	closing  bool
	running  sync.WaitGroup // instances that end, servers that serve, runs and calls by the clock

	changed chan struct{}   // timers changed
	alive   context.Context // ends when runs must end
	die     context.CancelFunc
}

// service is a service's record with its instances.
type service struct {
	rec       serviceRecord
	instances map[string]*instance
	turn      *atomic.Uint64
}

// Start makes a server, brings back the units its folder remembers and
// returns as soon as it listens; units become ready meanwhile and requests
// wait for them.
//
// Errors: [ErrBusy]; [sandbox.ErrForbidden] in the chain when the machine
// does not allow the sandbox asked for.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	o = o.withDefaults()
	dir, err := filepath.Abs(o.Dir)
	if o.Dir == "" || err != nil {
		return nil, fmt.Errorf("local target: a folder is needed: %w", errors.Join(os.ErrInvalid, err))
	}
	s := &Server{opts: o, dir: dir, book: book{dir}, services: map[string]*service{},
		timers: map[string]*timer{}, runs: map[string]*jobRun{}, changed: make(chan struct{}, 1)}
	s.alive, s.die = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = fmt.Errorf("local target: %w", err)
			s.die()
			if s.lock != nil {
				err = errors.Join(err, s.lock.Close())
			}
		}
	}()
	if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o700); err != nil {
		return nil, err
	}
	if s.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	s.images = &images{
		dir: filepath.Join(dir, "cache"), shared: o.Layers, keychain: o.Keychain, rt: o.Transport,
		limits: limits{o.MaxImageBytes, o.MaxImageFiles}, owners: os.Geteuid() == 0,
	}
	say := func(format string, args ...any) {
		if o.Log != nil {
			o.Log(fmt.Sprintf(format, args...))
		}
	}
	launch := o.launcher
	if launch == nil {
		if launch, s.why, err = chooseLauncher(ctx, o.Sandbox, s.images, say); err != nil {
			return nil, err
		}
	}
	s.host = host{launch: launch, ports: new(ports), times: o.Times, note: s.note, proxyTo: s.proxyTo, say: say, timerKey: rand.Text()}
	records, err := s.book.services()
	if err != nil {
		return nil, err
	}
	timers, err := s.book.timers()
	if err != nil {
		return nil, err
	}
	inUse := map[string]name.Digest{}
	for _, r := range records {
		for _, rev := range r.Revisions {
			inUse[rev.Spec.Image.String()] = rev.Spec.Image
		}
	}
	if err := s.images.sweep(inUse); err != nil {
		return nil, err
	}
	listen, err := s.listen()
	if err != nil {
		return nil, err
	}
	control, err := listenControl(dir)
	if err != nil {
		return nil, errors.Join(err, listen.Close())
	}
	s.mu.Lock()
	for _, rec := range records {
		s.adopt(rec)
	}
	s.publish()
	for _, rec := range timers {
		if err := s.wind(rec); err != nil {
			say("%v", err)
		}
	}
	s.mu.Unlock()
	s.running.Go(func() { s.clock(s.alive) })
	s.data = &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	s.ctl = &http.Server{Handler: s.control(), ReadHeaderTimeout: 10 * time.Second}
	for _, x := range []struct {
		srv *http.Server
		l   net.Listener
	}{{s.data, listen}, {s.ctl, control}} {
		s.running.Go(func() {
			if err := x.srv.Serve(x.l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.host.say("%s: %v", x.l.Addr(), err)
			}
		})
	}
	return s, nil
}

// chooseLauncher finds the sandbox that is asked for, or the best there is.
func chooseLauncher(ctx context.Context, want string, im *images, say func(string, ...any)) (launcher, string, error) {
	switch want {
	case string(sandbox.None):
		return &plain{images: im, say: say}, "asked for", nil
	case "", "auto", string(sandbox.Root), string(sandbox.UserNS):
	default:
		return nil, "", fmt.Errorf("sandbox %q: want auto, root, userns or none: %w", want, os.ErrInvalid)
	}
	if want == string(sandbox.UserNS) {
		return &sandboxed{images: im, how: sandbox.UserNS}, "asked for", nil
	}
	mode, why := sandbox.Detect(ctx)
	if err := ctx.Err(); err != nil {
		return nil, "", context.Cause(ctx)
	}
	if want == string(sandbox.Root) && mode != sandbox.Root {
		return nil, "", fmt.Errorf("sandbox root: %w: %s", sandbox.ErrForbidden, why)
	}
	if mode == sandbox.None {
		return &plain{images: im, say: say}, why, nil
	}
	return &sandboxed{images: im, how: mode}, why, nil
}

// lockDir makes sure that one server uses the folder. The lock ends with the
// process, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), f.Close())
	}
	return f, nil
}

// listen opens the units' address, the one of the last time where the system
// may choose.
func (s *Server) listen() (net.Listener, error) {
	file := filepath.Join(s.dir, "server.json")
	var last struct {
		Port int `json:"port"`
	}
	host, port, err := net.SplitHostPort(s.opts.Addr)
	if err != nil {
		return nil, err
	}
	var l net.Listener
	if port == "0" && readJSON(file, &last) == nil && last.Port > 0 {
		l, _ = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(last.Port)))
	}
	if l == nil {
		if l, err = net.Listen("tcp", s.opts.Addr); err != nil {
			return nil, err
		}
	}
	addr := l.Addr().(*net.TCPAddr)
	if host == "" || addr.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	s.url = "http://" + net.JoinHostPort(host, strconv.Itoa(addr.Port))
	last.Port = addr.Port
	if err := writeJSON(file, last); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// URL is where units are reached: URL/<service>/<path>.
func (s *Server) URL() string { return s.url }

// Socket is the control socket, for [Dial].
func (s *Server) Socket() string { return socketIn(s.dir) }

// Sandbox is how units run, and why not better.
func (s *Server) Sandbox() (mode, why string) { return string(s.host.launch.mode()), s.why }

// Close ends the server: what is under way is answered, units get SIGTERM.
// When ctx ends first, everything is killed. The folder remembers the units.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	var all []*instance
	for _, svc := range s.services {
		for _, i := range svc.instances {
			all = append(all, i)
		}
	}
	s.mu.Unlock()
	s.die() // no more calls by the clock; runs get SIGTERM
	// A call that waits for a revision may be cut short; one that writes is
	// quicker than this.
	short, cancel := context.WithTimeout(ctx, longPoll+time.Second)
	defer cancel()
	err := s.ctl.Shutdown(short)
	if err != nil {
		err = s.ctl.Close()
	}
	// Requests first: they need their units.
	if e := s.data.Shutdown(ctx); e != nil {
		err = errors.Join(err, s.data.Close())
	}
	for _, i := range all {
		s.running.Go(func() { i.end(ctx) })
	}
	s.running.Wait()
	err = errors.Join(err, removeFile(s.Socket()), s.lock.Close())
	if err != nil {
		return fmt.Errorf("local target: close: %w", err)
	}
	return nil
}

// adopt takes a record into service; it needs mu.
func (s *Server) adopt(rec serviceRecord) {
	svc := &service{rec: rec, instances: map[string]*instance{}, turn: new(atomic.Uint64)}
	s.services[rec.Name] = svc
	for name, r := range rec.Revisions {
		if r.Spec.Job == nil {
			s.instance(svc, name, r)
		}
	}
	s.pin(svc)
}

// instance starts to look after a revision; it needs mu.
func (s *Server) instance(svc *service, name string, r revisionRecord) *instance {
	log := &logFile{name: filepath.Join(s.dir, "logs", fileName(name)+".log"), max: s.opts.LogBytes}
	i := newInstance(s.host, svc.rec.Name, name, r, log)
	svc.instances[name] = i
	go i.supervise()
	return i
}

// pin tells the instances what the record's traffic wants of them; it needs
// mu.
func (s *Server) pin(svc *service) {
	for name, i := range svc.instances {
		var share deployer.Share
		for _, t := range svc.rec.Traffic {
			if t.Revision == name {
				share = t
			}
		}
		switch {
		case share.Percent > 0:
			i.want(true, time.Time{})
		case share.Tag != "":
			i.want(false, time.Now().Add(s.opts.Times.KeepWarm))
		default:
			i.want(false, time.Time{})
		}
	}
}

// note changes what is recorded about a revision.
func (s *Server) note(svcName, revision string, change func(*revisionRecord)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := s.services[svcName]
	if svc == nil {
		return
	}
	r, ok := svc.rec.Revisions[revision]
	if !ok {
		return
	}
	rec := svc.rec.clone()
	change(&r)
	rec.Revisions[revision] = r
	if err := s.save(svc, rec); err != nil {
		// It is found out again at the next start.
		s.host.say("%s: %v", revision, err)
	}
}

// save writes a record and takes it into service; it needs mu.
func (s *Server) save(svc *service, rec serviceRecord) error {
	if err := writeJSON(s.book.serviceFile(rec.Name), rec); err != nil {
		return err
	}
	svc.rec = rec
	return nil
}
