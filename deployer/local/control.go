package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
)

// maxControl bounds a request or reply on the socket.
const maxControl = 16 << 20

// control is the server's side of the socket.
func (s *Server) control() http.Handler {
	verbs := map[string]func(context.Context, request) (reply, error){
		"info":            s.doInfo,
		"head":            s.doHead,
		"swap-head":       s.doSwapHead,
		"create-release":  s.doCreateRelease,
		"release":         s.doRelease,
		"releases":        s.doReleases,
		"remove-release":  s.doRemoveRelease,
		"check":           s.doCheck,
		"services":        s.doServices,
		"ensure":          s.doEnsure,
		"wait":            s.doWait,
		"set-traffic":     s.doSetTraffic,
		"restore":         s.doRestore,
		"remove-revision": s.doRemoveRevision,
		"remove-service":  s.doRemoveService,
		"logs":            s.doLogs,
		"measure":         s.doMeasure,
		"timers":          s.doTimers,
		"set-timer":       s.doSetTimer,
		"remove-timer":    s.doRemoveTimer,
		"start-run":       s.doStartRun,
		"follow-run":      s.doFollowRun,
		"end-runs":        s.doEndRuns,
	}
	mux := http.NewServeMux()
	for verb, do := range verbs {
		mux.HandleFunc("POST /v1/"+verb, func(w http.ResponseWriter, r *http.Request) {
			var in request
			var out reply
			err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControl)).Decode(&in)
			if err == nil {
				out, err = do(r.Context(), in)
			}
			if err != nil {
				out = reply{Error: toWire(err)}
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	return mux
}

// socketIn is the control socket's name in a server's folder.
func socketIn(dir string) string { return filepath.Join(dir, "control.sock") }

// maxSocket is the longest name of a unix socket that every system takes.
const maxSocket = 100

// listenControl opens the socket, mode 0600 in a folder of mode 0700. A
// socket that a killed server left is replaced; the folder's lock makes sure
// that nobody listens there.
func listenControl(dir string) (net.Listener, error) {
	if err := removeFile(socketIn(dir)); err != nil {
		return nil, err
	}
	name, done, err := shortName(socketIn(dir))
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // its name may be a short one by then
	if err := os.Chmod(socketIn(dir), 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// shortName is a name for the socket that fits into a socket address.
func shortName(socket string) (name string, done func(), err error) {
	if len(socket) <= maxSocket {
		return socket, func() {}, nil
	}
	d, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + filepath.Base(socket), func() { d.Close() }, nil
}

func (s *Server) doInfo(context.Context, request) (reply, error) {
	mode, why := s.Sandbox()
	return reply{URL: s.url, Sandbox: mode, Why: why}, nil
}

func (s *Server) doHead(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.book.head(in.Scope)
	return headReply(rec), err
}

func headReply(rec headRecord) reply {
	out := reply{Head: rec.Head}
	if rec.Version > 0 {
		out.Version = strconv.FormatInt(rec.Version, 10)
	}
	return out
}

func (s *Server) doSwapHead(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.book.head(in.Scope)
	if err != nil {
		return reply{}, err
	}
	if headReply(rec).Version != in.Version {
		return reply{}, deployer.ErrConflict
	}
	rec = headRecord{Scope: in.Scope, Version: rec.Version + 1, Head: in.Head}
	return headReply(rec), writeJSON(s.book.headFile(in.Scope), rec)
}

// fence checks a writer's right; it needs mu.
func (s *Server) fence(f deployer.Fence) error {
	if s.closing {
		return errors.New("the local target is ending")
	}
	rec, err := s.book.head(f.Scope)
	if err != nil {
		return err
	}
	if f.Epoch == 0 || f.Epoch < rec.Head.Epoch {
		return fmt.Errorf("epoch %d, current %d: %w", f.Epoch, rec.Head.Epoch, deployer.ErrFenced)
	}
	return nil
}

// find returns the scope's service, nil where there is none; it needs mu.
func (s *Server) find(scope deployer.Scope, name string) (*service, error) {
	svc := s.services[name]
	if svc == nil || svc.rec.Scope == scope {
		return svc, nil
	}
	object := "service " + name
	if svc.rec.Scope.Owner == scope.Owner {
		// Units of all scopes share one port here, so a name exists once.
		object += " (of " + svc.rec.Scope.String() + ", namespace " + svc.rec.Scope.Namespace + ")"
	}
	return nil, &deployer.ForeignError{Object: object, Owner: svc.rec.Scope.Owner, Mine: scope.Owner}
}

// write runs change on a copy of the service's record and saves it under the
// writer's epoch. svc is nil where there is none. It needs mu.
func (s *Server) write(f deployer.Fence, name string, change func(*serviceRecord) error) (*service, error) {
	if err := s.fence(f); err != nil {
		return nil, err
	}
	svc, err := s.find(f.Scope, name)
	if svc == nil || err != nil {
		return nil, err
	}
	rec := svc.rec.clone()
	rec.Epoch = f.Epoch
	if err := change(&rec); err != nil {
		return nil, err
	}
	return svc, s.save(svc, rec)
}

func (s *Server) doCreateRelease(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fence(in.Fence); err != nil {
		return reply{}, err
	}
	if in.Release == nil {
		return reply{}, errors.New("no release")
	}
	file := s.book.releaseFile(in.Fence.Scope, in.Release.ID)
	if _, err := os.Lstat(file); err == nil {
		return reply{}, fmt.Errorf("release %s: %w", in.Release.ID, deployer.ErrExists)
	}
	return reply{}, writeJSON(file, in.Release)
}

func (s *Server) doRelease(_ context.Context, in request) (reply, error) {
	r, err := s.book.release(in.Scope, in.ID)
	return reply{Release: &r}, err
}

func (s *Server) doReleases(_ context.Context, in request) (reply, error) {
	ids, err := s.book.releases(in.Scope)
	return reply{IDs: ids}, err
}

func (s *Server) doRemoveRelease(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fence(in.Fence); err != nil {
		return reply{}, err
	}
	return reply{}, removeFile(s.book.releaseFile(in.Fence.Scope, in.ID))
}

func (s *Server) doCheck(ctx context.Context, in request) (reply, error) {
	s.mu.Lock()
	_, err := s.book.head(in.Scope)
	for _, u := range in.Check {
		if _, e := s.find(in.Scope, u.Name); e != nil && err == nil {
			err = e
		}
	}
	s.mu.Unlock()
	if err != nil {
		return reply{}, err
	}
	if err := unable(in.Check); err != nil {
		return reply{}, err
	}
	failures := make([]error, len(in.Check))
	var wg sync.WaitGroup
	asked := map[string]bool{}
	for n, u := range in.Check {
		if asked[u.Image] {
			continue
		}
		asked[u.Image] = true
		image, err := name.NewDigest(u.Image)
		if err != nil {
			failures[n] = fmt.Errorf("unit %s: image %q: %w", u.Unit, u.Image, err)
			continue
		}
		wg.Go(func() {
			if f := s.images.check(ctx, image); f != nil {
				f.Unit = u.Unit
				failures[n] = f
			}
		})
	}
	wg.Wait()
	return reply{}, errors.Join(failures...)
}

// unable refuses what would not be true here: there are no Secrets and
// ConfigMaps, and no inside that is not outside.
func unable(units []checkedUnit) error {
	var errs []error
	no := func(u checkedUnit, what string) {
		errs = append(errs, &deployer.Failure{
			Code: deployer.Unable, Unit: u.Unit, Cause: "the local target has no " + what,
			Next: "leave it out in environments.<env> of faas.yml, or deploy to a cluster",
		})
	}
	for _, u := range units {
		if u.Secrets {
			no(u, "secrets")
		}
		if u.Config {
			no(u, "config maps")
		}
		if u.Internal {
			no(u, "inside that hides a unit (network: internal)")
		}
	}
	return errors.Join(errs...)
}

func (s *Server) doServices(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []deployer.Service
	for _, svc := range s.services {
		if svc.rec.Scope != in.Scope {
			continue
		}
		if svc.rec.Job {
			all = append(all, s.observedJob(svc.rec))
			continue
		}
		o := deployer.Service{
			Name: svc.rec.Name, Unit: svc.rec.Unit, Owner: svc.rec.Scope.Owner, Epoch: svc.rec.Epoch,
			URL: s.at(svc.rec.Name), Template: svc.rec.Template, Traffic: slices.Clone(svc.rec.Traffic),
		}
		for name, i := range svc.instances {
			phase, why, failure := i.observed()
			o.Revisions = append(o.Revisions, deployer.Observed{
				Name: name, Hash: i.spec.Hash(), Image: i.spec.Image.String(), Phase: phase, URL: s.at(name),
				Created: i.created, Failure: failure, Why: why, Sandbox: string(s.host.launch.mode()),
			})
		}
		slices.SortFunc(o.Revisions, func(a, b deployer.Observed) int { return strings.Compare(a.Name, b.Name) })
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b deployer.Service) int { return strings.Compare(a.Name, b.Name) })
	return reply{Services: all}, nil
}

func (s *Server) doEnsure(_ context.Context, in request) (reply, error) {
	if len(in.Units) != 1 {
		return reply{}, errors.New("one unit is needed")
	}
	u := in.Units[0]
	if err := u.Validate(); err != nil {
		return reply{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	change := func(rec *serviceRecord) error {
		if u.Job == nil {
			rec.Template = in.Revision
		}
		r, ok := rec.Revisions[in.Revision]
		if ok && r.Spec.Hash() != u.Hash() {
			return fmt.Errorf("revision %s has other content: %w", in.Revision, deployer.ErrExists)
		}
		if !ok {
			rec.Revisions[in.Revision] = revisionRecord{Spec: u, Created: time.Now().UTC()}
		}
		return nil
	}
	svc, err := s.write(in.Fence, u.Name, change)
	if err != nil {
		return reply{}, err
	}
	if svc == nil {
		rec := serviceRecord{Scope: in.Fence.Scope, Name: u.Name, Unit: u.Unit, Epoch: in.Fence.Epoch, Job: u.Job != nil, Revisions: map[string]revisionRecord{}}
		_ = change(&rec)
		if err := writeJSON(s.book.serviceFile(u.Name), rec); err != nil {
			return reply{}, err
		}
		s.adopt(rec)
		svc = s.services[u.Name]
	}
	if u.Job != nil {
		return reply{}, nil // no process until somebody runs it
	}
	i := svc.instances[in.Revision]
	if i == nil {
		i = s.instance(svc, in.Revision, svc.rec.Revisions[in.Revision])
	}
	s.publish()
	i.demand()
	return reply{}, nil
}

// longPoll is how long one wait may hold the socket.
const longPoll = 2 * time.Second

func (s *Server) doWait(ctx context.Context, in request) (reply, error) {
	s.mu.Lock()
	svc, err := s.find(in.Scope, in.Service)
	var i *instance
	var spec deployer.Spec
	if svc != nil {
		i = svc.instances[in.Revision]
		spec = svc.rec.Revisions[in.Revision].Spec
	}
	s.mu.Unlock()
	if err != nil {
		return reply{}, err
	}
	if spec.Job != nil {
		return s.prepareJob(ctx, spec, in.Revision)
	}
	if i == nil {
		return reply{}, fmt.Errorf("revision %s: %w", in.Revision, deployer.ErrNotFound)
	}
	up, why, err := i.await(ctx, longPoll, in.Known)
	if !up || err != nil {
		return reply{Why: why}, err
	}
	return reply{Revision: &deployer.Revision{
		Name: i.name, Service: i.service, Unit: i.spec.Unit, Image: i.spec.Image,
		URL: s.at(i.name), Sandbox: string(s.host.launch.mode()),
	}}, nil
}

func (s *Server) doSetTraffic(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc, err := s.write(in.Fence, in.Service, func(rec *serviceRecord) error {
		sum := 0
		for _, t := range in.Shares {
			sum += t.Percent
			if t.Percent < 0 || t.Percent > 100 {
				return fmt.Errorf("share of %s is %d %%", t.Revision, t.Percent)
			}
			if _, ok := rec.Revisions[t.Revision]; !ok {
				return fmt.Errorf("revision %s: %w", t.Revision, deployer.ErrNotFound)
			}
		}
		if sum != 100 {
			return fmt.Errorf("shares of %s add up to %d", rec.Name, sum)
		}
		rec.Traffic = slices.Clone(in.Shares)
		return nil
	})
	if err != nil {
		return reply{}, err
	}
	if svc == nil {
		return reply{}, fmt.Errorf("service %s: %w", in.Service, deployer.ErrNotFound)
	}
	s.publish() // first the way, then the end of what nobody goes to any more
	s.pin(svc)
	return reply{}, nil
}

func (s *Server) doRestore(_ context.Context, in request) (reply, error) {
	if len(in.Units) != 1 {
		return reply{}, errors.New("one unit is needed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	svc, err := s.write(in.Fence, in.Units[0].Name, func(rec *serviceRecord) error {
		if _, ok := rec.Revisions[in.Revision]; !ok {
			return fmt.Errorf("revision %s: %w", in.Revision, deployer.ErrNotFound)
		}
		rec.Template = in.Revision
		return nil
	})
	if err == nil && svc == nil {
		err = fmt.Errorf("service %s: %w", in.Units[0].Name, deployer.ErrNotFound)
	}
	return reply{}, err
}

func (s *Server) doRemoveRevision(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc, err := s.write(in.Fence, in.Service, func(rec *serviceRecord) error {
		for _, t := range rec.Traffic {
			if t.Revision == in.Revision && t.Percent > 0 {
				return fmt.Errorf("revision %s has %d %% of the traffic", in.Revision, t.Percent)
			}
		}
		rec.Traffic = slices.DeleteFunc(rec.Traffic, func(t deployer.Share) bool { return t.Revision == in.Revision })
		delete(rec.Revisions, in.Revision)
		return nil
	})
	if err != nil || svc == nil {
		return reply{}, err
	}
	i := svc.instances[in.Revision]
	delete(svc.instances, in.Revision)
	s.publish()
	if i != nil {
		s.bury(i)
	}
	return reply{}, nil
}

func (s *Server) doRemoveService(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fence(in.Fence); err != nil {
		return reply{}, err
	}
	svc, err := s.find(in.Fence.Scope, in.Service)
	if err != nil || svc == nil {
		return reply{}, err
	}
	if err := removeFile(s.book.serviceFile(in.Service)); err != nil {
		return reply{}, err
	}
	delete(s.services, in.Service)
	s.publish()
	for i := range maps.Values(svc.instances) {
		s.bury(i)
	}
	return reply{}, nil
}

// bury ends an instance that nothing refers to any more, in the background.
func (s *Server) bury(i *instance) {
	if err := i.log.remove(); err != nil {
		s.host.say("%s: %v", i.name, err)
	}
	s.running.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.opts.Times.Drain+s.opts.Times.Grace+time.Second)
		defer cancel()
		i.end(ctx)
	})
}

func (s *Server) doLogs(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	svc, err := s.find(in.Scope, in.Service)
	var i *instance
	if svc != nil {
		i = svc.instances[in.Revision]
	}
	s.mu.Unlock()
	if err != nil {
		return reply{}, err
	}
	if i == nil {
		return reply{}, fmt.Errorf("revision %s: %w", in.Revision, deployer.ErrNotFound)
	}
	lines, err := i.log.tail(in.N)
	return reply{Lines: lines}, err
}
