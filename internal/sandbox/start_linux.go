package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/internal/run"
)

// Process is a started sandbox. Its methods are safe for concurrent use.
type Process struct {
	mode     Mode
	program  string
	asInit   bool
	ctx      context.Context // the Start call's, for the cause of a cancellation
	cmd      *exec.Cmd
	status   *os.File // from the first process inside
	messages *json.Decoder
	tail     *run.Tail
	work     string        // overlay's work folder, ours to remove
	ended    chan struct{} // lets go of the thread that the kernel watches
	once     sync.Once
	err      error
}

// detected remembers what a probe found: the machine does not change while we
// run, and a probe costs a process.
var detected struct {
	sync.Mutex
	mode   Mode
	reason string
}

// Detect returns the best mode that works here, found by trying it, and why
// the better ones don't; the reason is empty for Root. When ctx ends first the
// answer is None.
func Detect(ctx context.Context) (Mode, string) {
	detected.Lock()
	defer detected.Unlock()
	if detected.mode != "" {
		return detected.mode, detected.reason
	}
	mode, reasons := None, []string(nil)
	for _, m := range []Mode{Root, UserNS} {
		err := probe(ctx, m)
		if err == nil {
			mode = m
			break
		}
		reasons = append(reasons, strings.TrimPrefix(err.Error(), "sandbox: "))
	}
	reason := strings.Join(reasons, "; ")
	if ctx.Err() == nil {
		detected.mode, detected.reason = mode, reason
	}
	return mode, reason
}

// probe makes an empty sandbox with everything but a command in it.
func probe(ctx context.Context, m Mode) error {
	p, err := start(ctx, Spec{Mode: m, Argv: []string{"probe"}}, true)
	if err != nil {
		return err
	}
	return p.Wait()
}

// Start makes the sandbox and starts the command in it. The caller calls
// [Process.Wait], which also releases what Start took. When ctx ends, the
// command gets SIGTERM and after the grace everything inside is killed.
//
// Errors: [ErrForbidden] in the chain when the machine lacks a right (the
// message says which), [ErrNoOverlay] when only Spec.Lower is impossible; a
// command that is missing inside gives an error with [os.ErrNotExist].
func Start(ctx context.Context, s Spec) (*Process, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if s.Mode == "" {
		mode, reason := Detect(ctx)
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if mode == None {
			return nil, &forbidden{mode: None, what: reason}
		}
		s.Mode = mode
	}
	return start(ctx, s, false)
}

func start(ctx context.Context, s Spec, probe bool) (_ *Process, err error) {
	if s.Mode == Root && os.Geteuid() != 0 {
		return nil, &forbidden{mode: Root, what: fmt.Sprintf("running as user %d", os.Geteuid()), right: "needs root with CAP_SYS_ADMIN"}
	}
	p := &Process{
		mode: s.Mode, program: s.Argv[0], asInit: s.AsInit, ctx: ctx,
		tail: &run.Tail{Max: 4 << 10}, ended: make(chan struct{}),
	}
	order := order{
		Mode: s.Mode, Lower: s.Lower, Root: s.Root, Upper: s.Upper, TmpfsBytes: s.TmpfsBytes,
		Binds: s.Binds, Argv: s.Argv, Env: s.Env, Dir: s.Dir, UID: s.UID, GID: s.GID, Hostname: s.Hostname,
		KeepCapabilities: s.KeepCapabilities, AsInit: s.AsInit, Changes: s.Changes, Probe: probe, Extra: len(s.ExtraFiles),
	}
	if order.TmpfsBytes == 0 {
		order.TmpfsBytes = DefaultTmpfsBytes
	}
	if order.Hostname == "" {
		order.Hostname = "sandbox"
	}
	if order.Dir == "" {
		order.Dir = "/"
	}
	if s.Upper != "" {
		// Overlay wants it beside the changes, on the same file system.
		p.work, err = os.MkdirTemp(filepath.Dir(filepath.Clean(s.Upper)), ".sandbox-work-")
		if err != nil {
			return nil, fmt.Errorf("sandbox: make overlay's work folder: %w", err)
		}
		order.Work = p.work
	}
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox: %w", err), p.removeWork())
	}
	order.Nonce = hex.EncodeToString(nonce)

	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox: %w", err), p.removeWork())
	}
	defer specW.Close()
	defer specR.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox: %w", err), p.removeWork())
	}
	defer statusW.Close()
	p.status, p.messages = statusR, json.NewDecoder(statusR)

	grace := s.Grace
	if grace == 0 {
		grace = run.DefaultGrace
	}
	p.cmd = exec.CommandContext(ctx, "/proc/self/exe")
	p.cmd.Args = []string{sentinel, order.Nonce}
	p.cmd.Env = []string{}
	p.cmd.Dir = "/"
	p.cmd.Stdin, p.cmd.Stdout = s.Stdin, s.Stdout
	if s.Stderr != nil {
		p.cmd.Stderr = io.MultiWriter(s.Stderr, p.tail)
		if sameWriter(s.Stdout, s.Stderr) {
			p.cmd.Stdout = p.cmd.Stderr // one pipe: what was written first stays first
		}
	} else {
		p.cmd.Stderr = p.tail
	}
	p.cmd.ExtraFiles = append([]*os.File{specR, statusW}, s.ExtraFiles...)
	p.cmd.SysProcAttr = attributes(s)
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = grace

	if err := absolute(&order); err != nil {
		statusR.Close()
		return nil, errors.Join(err, p.removeWork())
	}
	if err := p.launch(); err != nil {
		statusR.Close()
		return nil, errors.Join(p.explain(failure{Op: opNamespaces, Errno: errnoOf(err), Text: err.Error()}), p.removeWork())
	}
	specR.Close()
	statusW.Close()
	sendErr := gob.NewEncoder(specW).Encode(order)
	f, ready := p.await()
	if ready && sendErr == nil {
		return p, nil
	}
	if !ready && f == nil {
		err = p.Wait()
		var x *run.ExitError
		if errors.As(err, &x) {
			err = fmt.Errorf("sandbox: ended before the command was started: code %d: %s", x.Code, x.Tail)
		} else if err == nil {
			err = errors.New("sandbox: ended before the command was started; does main call sandbox.Main first?")
		}
		return nil, err
	}
	_ = p.cmd.Process.Kill()
	_ = p.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if f != nil {
		return nil, p.explain(*f)
	}
	return nil, fmt.Errorf("sandbox: hand over the order: %w", sendErr)
}

// sameWriter reports whether both outputs go to one place.
func sameWriter(a, b io.Writer) bool {
	return a != nil && b != nil && reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

// attributes are the namespaces for s.
func attributes(s Spec) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Setsid:     true,
		Pdeathsig:  syscall.SIGKILL,
	}
	if s.Mode != UserNS {
		return a
	}
	a.Cloneflags |= syscall.CLONE_NEWUSER
	// The kernel lets an unprivileged process map one id only: its own.
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: s.UID, HostID: os.Geteuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: s.GID, HostID: os.Getegid(), Size: 1}}
	if s.UID != 0 {
		// Without them exec would take the rights that setting up needs from a
		// first process that isn't uid 0.
		for c := range uintptr(lastCapability() + 1) {
			a.AmbientCaps = append(a.AmbientCaps, c)
		}
	}
	return a
}

// launch starts the first process from a thread that stays: the kernel kills
// the sandbox when the *thread* that made it ends, and Go may end threads.
func (p *Process) launch() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			<-p.ended
		}
	}()
	return <-started
}

// await reads messages until the command runs or the set-up failed. Neither
// means that the first process ended without a word.
func (p *Process) await() (f *failure, ready bool) {
	for {
		var m message
		if err := p.messages.Decode(&m); err != nil {
			return nil, ready
		}
		switch {
		case m.Failure != nil:
			return m.Failure, false
		case m.Started:
			return nil, true
		case m.Exec:
			// The pipe closes when exec worked, and brings the error if not.
			ready = true
		}
	}
}

// Wait waits for the command, its output and the end of everything inside. It
// returns nil for exit code 0, ctx's cause when ctx ended, else a
// [*run.ExitError]. It may be called more than once.
func (p *Process) Wait() error {
	p.once.Do(func() { p.err = p.wait() })
	return p.err
}

func (p *Process) wait() error {
	defer close(p.ended)
	defer p.status.Close()
	err := p.cmd.Wait()
	var last message
	for m := (message{}); p.messages.Decode(&m) == nil; m = (message{}) {
		if m.Exit != nil {
			last = m
		}
	}
	rmErr := p.removeWork()
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	state := p.cmd.ProcessState
	if state == nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	ws := state.Sys().(syscall.WaitStatus)
	e := &run.ExitError{Program: p.program, Code: ws.ExitStatus(), Tail: p.tail.String()}
	switch {
	case ws.Signaled():
		e.Signal, e.Code = ws.Signal(), 128+int(ws.Signal())
	case last.Exit != nil && last.Exit.Signal != 0:
		e.Signal, e.Code = syscall.Signal(last.Exit.Signal), 128+last.Exit.Signal
	}
	if e.Code == 0 && e.Signal == 0 {
		var x *exec.ExitError
		if err != nil && !errors.As(err, &x) && !errors.Is(err, exec.ErrWaitDelay) {
			return fmt.Errorf("sandbox: %s: %w", p.program, err)
		}
		return rmErr
	}
	return e
}

// Signal sends sig to the command; os.Kill ends everything inside.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Pid is the process id, outside, of the first process inside. With it
// everything inside ends.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Mode is the mode the sandbox runs in: Root or UserNS.
func (p *Process) Mode() Mode { return p.mode }

func (p *Process) removeWork() error {
	if p.work == "" {
		return nil
	}
	// Overlay leaves folders of mode 0 in it.
	_ = filepath.WalkDir(p.work, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(name, 0o700)
		}
		return nil
	})
	if err := os.RemoveAll(p.work); err != nil {
		return fmt.Errorf("sandbox: remove overlay's work folder: %w", err)
	}
	return nil
}

// absolute makes the caller's paths independent of the working folder.
func absolute(o *order) error {
	var err error
	abs := func(p *string) {
		if *p == "" || err != nil {
			return
		}
		*p, err = filepath.Abs(*p)
	}
	o.Lower = append([]string(nil), o.Lower...)
	o.Binds = append([]Bind(nil), o.Binds...)
	for i := range o.Lower {
		abs(&o.Lower[i])
	}
	for i := range o.Binds {
		abs(&o.Binds[i].Source)
		o.Binds[i].Lower = append([]string(nil), o.Binds[i].Lower...)
		for j := range o.Binds[i].Lower {
			abs(&o.Binds[i].Lower[j])
		}
	}
	abs(&o.Root)
	abs(&o.Upper)
	abs(&o.Work)
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	return nil
}

// explain turns a failed step into an error that says which right is missing.
func (p *Process) explain(f failure) error {
	err := error(errors.New(f.Text))
	if f.Errno != 0 {
		err = f.Errno
	}
	denied := f.Errno == unix.EPERM || f.Errno == unix.EACCES || f.Errno == unix.ENOSYS
	switch {
	case f.Op == opNamespaces && (denied || f.Errno == unix.ENOSPC || f.Errno == unix.EINVAL || f.Errno == unix.EUSERS):
		return &forbidden{mode: p.mode, what: "make namespaces", right: namespaceRight(p.mode), err: err}
	case f.Op == opProc && denied:
		return &forbidden{mode: p.mode, what: "mount /proc", err: err,
			right: "the container hides parts of its own /proc, so the kernel allows no new one: needs procMount: Unmasked or a privileged container"}
	case f.Op == opOverlay && p.mode == UserNS && (denied || f.Errno == unix.EINVAL || f.Errno == unix.ENODEV):
		return fmt.Errorf("%w: mode %s: mount overlay: %w (needs Linux 5.11 or later, and a folder for changes that does not itself lie on overlay)", ErrNoOverlay, p.mode, err)
	case f.Op == opOverlay && (denied || f.Errno == unix.EINVAL || f.Errno == unix.ENODEV):
		return fmt.Errorf("%w: mode %s: mount overlay: %w (needs the kernel's overlay module, and a folder for changes that does not itself lie on overlay)", ErrNoOverlay, p.mode, err)
	case f.Op == opPivot && f.Errno == unix.EINVAL:
		return &forbidden{mode: p.mode, what: f.Op, err: err, right: "the machine's root is an initial ram disk, which can't be changed"}
	case f.Op == opExec && f.Path != "":
		return fmt.Errorf("sandbox: start %s: %w", f.Path, err)
	case f.Rights && denied:
		right := "needs CAP_SYS_ADMIN; a security module or seccomp filter may take it away"
		if p.mode == UserNS {
			right = "a security module forbids it inside user namespaces; " + namespaceRight(p.mode)
		}
		return &forbidden{mode: p.mode, what: f.Op, right: right, err: err}
	case f.Path != "":
		return fmt.Errorf("sandbox: %s %s: %w", f.Op, f.Path, err)
	}
	return fmt.Errorf("sandbox: %s: %w", f.Op, err)
}

// namespaceRight says what would have to be allowed, from the switches that
// distributions put in the way.
func namespaceRight(m Mode) string {
	if m == Root {
		return "needs CAP_SYS_ADMIN: a privileged container, or one with that capability and a seccomp profile that allows unshare"
	}
	switches := []struct{ file, bad, say string }{
		{"/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces is 0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns is 1"},
	}
	for _, s := range switches {
		if b, err := os.ReadFile(s.file); err == nil && strings.TrimSpace(string(b)) == s.bad {
			return s.say
		}
	}
	return "needs user namespaces: the container's seccomp profile must allow unshare and clone with CLONE_NEWUSER"
}

func errnoOf(err error) syscall.Errno {
	var n syscall.Errno
	if errors.As(err, &n) {
		return n
	}
	return 0
}
