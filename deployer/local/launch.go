package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// launcher turns an image and an order into a process.
type launcher interface {
	// prepare pulls and unpacks; errors are *deployer.Failure or ctx's.
	prepare(ctx context.Context, ref name.Digest, revision string, progress func(string)) (rootfs, error)
	// start starts the process. When ctx ends it gets SIGTERM, and after the
	// grace everything it started is killed. wait blocks until all has ended
	// and returns nil, ctx's cause or a *run.ExitError.
	start(ctx context.Context, o order) (wait func() error, err error)
	// another reports whether, after a start that failed with f, start will
	// now try another way.
	another(o order, f *deployer.Failure) bool
	mode() sandbox.Mode
}

// order is a process to start: Argv, Dir and Env as the image sees them.
type order struct {
	fs        rootfs
	argv, env []string
	dir       string
	uid, gid  int
	log       io.Writer // both outputs, in order
	grace     time.Duration
}

// nobody is who a unit runs as when its image doesn't say: the user that our
// base images have.
const nobody = 65532

// orderFor combines what the image says with what the unit says.
func orderFor(fs rootfs, env map[string]string) (order, error) {
	o := order{fs: fs, uid: nobody, gid: nobody, dir: cmp.Or(fs.Config.Dir, "/")}
	o.argv = append(slices.Clone(fs.Config.Entrypoint), fs.Config.Cmd...)
	if len(o.argv) == 0 {
		return o, errors.New("the image names no program to start")
	}
	merged := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin"}
	for _, kv := range fs.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		merged[k] = v
	}
	for k, v := range env {
		merged[k] = v
	}
	for k, v := range merged {
		o.env = append(o.env, k+"="+v)
	}
	slices.Sort(o.env)
	user, group, _ := strings.Cut(fs.Config.User, ":")
	if uid, err := strconv.ParseUint(user, 10, 31); err == nil && uid != 0 {
		o.uid = int(uid)
		o.gid = int(uid)
		if gid, err := strconv.ParseUint(group, 10, 31); err == nil && gid != 0 {
			o.gid = int(gid)
		}
	}
	return o, nil
}

// sandboxed runs units in namespaces of their own.
type sandboxed struct {
	images *images
	how    sandbox.Mode
	// noOverlay: the machine has none, so each revision has a whole root of
	// its own.
	noOverlay atomic.Bool
}

// errAgain asks to prepare once more: the way to run has changed.
var errAgain = errors.New("prepare again")

func (l *sandboxed) mode() sandbox.Mode { return l.how }

func (*sandboxed) another(order, *deployer.Failure) bool { return false }

func (l *sandboxed) prepare(ctx context.Context, ref name.Digest, revision string, progress func(string)) (rootfs, error) {
	whole := ""
	if l.noOverlay.Load() {
		whole = hexOf(ref.DigestStr()) + "." + revision
	}
	return l.images.get(ctx, ref, whole, progress)
}

// tmpfsBytes is how much a unit may write: it goes away with the process.
const tmpfsBytes = 256 << 20

func (l *sandboxed) start(ctx context.Context, o order) (func() error, error) {
	s := sandbox.Spec{
		Mode: l.how, Lower: o.fs.lower, TmpfsBytes: tmpfsBytes,
		Argv: o.argv, Env: o.env, Dir: o.dir, UID: o.uid, GID: o.gid,
		Stdout: o.log, Stderr: o.log, Hostname: "localhost", Grace: o.grace,
	}
	switch {
	case l.noOverlay.Load():
		s.Root = o.fs.whole
	case o.fs.whole != "":
		s.Lower = []string{o.fs.whole}
	}
	// Names are looked up as on this machine.
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if _, err := os.Stat(f); err == nil {
			s.Binds = append(s.Binds, sandbox.Bind{Source: f, Target: f, ReadOnly: true})
		}
	}
	p, err := sandbox.Start(ctx, s)
	if errors.Is(err, sandbox.ErrNoOverlay) && s.Root == "" {
		l.noOverlay.Store(true)
		return nil, errAgain
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", o.argv[0], err)
	}
	return p.Wait, nil
}
