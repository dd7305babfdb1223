package local

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// plain runs units without namespaces, where the machine forbids them. In
// order of preference:
//
//   - as root: the unit's root folder becomes / by chroot, and the unit runs
//     as its image's user;
//   - otherwise the image's program through the image's own dynamic loader,
//     with paths mapped to the folder the image is unpacked in. The program
//     sees the whole machine and runs as the server's user;
//   - a program that can't live outside its own / (Debian's node has absolute
//     paths compiled in) is replaced by this machine's program of that name.
//
// All of it is ugly, which is why the mode is called none.
type plain struct {
	images *images
	say    func(format string, args ...any)

	noChroot atomic.Bool

	mu sync.Mutex
	// instead maps programs that don't run outside their / to this machine's.
	instead map[string]string
}

func (*plain) mode() sandbox.Mode { return sandbox.None }

func (l *plain) prepare(ctx context.Context, ref name.Digest, _ string, progress func(string)) (rootfs, error) {
	fs, err := l.images.get(ctx, ref, hexOf(ref.DigestStr()), progress)
	if err == nil && os.Geteuid() == 0 && !l.noChroot.Load() {
		furnish(fs.whole)
	}
	return fs, err
}

// furnish puts into a root folder what programs expect of a machine. What is
// not possible is left out: most programs don't miss it.
func furnish(root string) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return
	}
	defer r.Close()
	for _, dir := range []string{"dev", "etc", "tmp"} {
		_ = r.Mkdir(dir, 0o755)
	}
	_ = r.Chmod("tmp", 0o777|fs.ModeSticky)
	for _, f := range []string{"etc/resolv.conf", "etc/hosts"} {
		if b, err := os.ReadFile("/" + f); err == nil {
			_ = r.WriteFile(f, b, 0o644)
		}
	}
	if d, err := r.Open("dev"); err == nil {
		defer d.Close()
		makeDevices(d)
	}
}

func (l *plain) start(ctx context.Context, o order) (func() error, error) {
	if os.Geteuid() == 0 && !l.noChroot.Load() {
		wait, err := l.chroot(ctx, o)
		if !errors.Is(err, fs.ErrPermission) {
			return wait, err
		}
		l.noChroot.Store(true) // root in name only
	}
	argv, err := l.argv(o)
	if err != nil {
		return nil, err
	}
	dir, err := within(o.fs.whole, o.dir)
	if err != nil {
		return nil, fmt.Errorf("working directory %s: %w", o.dir, err)
	}
	cmd := exec.Cmd{Path: argv[0], Args: argv, Dir: dir, Env: o.env, SysProcAttr: plainAttributes()}
	return runPlain(ctx, &cmd, o)
}

func (l *plain) chroot(ctx context.Context, o order) (func() error, error) {
	program, err := lookProgram(o.fs.whole, o.argv[0], o.env)
	if err != nil {
		return nil, err
	}
	cmd := exec.Cmd{
		Path: strings.TrimPrefix(program, o.fs.whole), Args: o.argv, Dir: o.dir, Env: o.env,
		SysProcAttr: plainAttributes(),
	}
	cmd.SysProcAttr.Chroot = o.fs.whole
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)}
	return runPlain(ctx, &cmd, o)
}

// another looks for another way to run a program that was ended by a signal
// before it was Ready, and reports whether there is one.
func (l *plain) another(o order, f *deployer.Failure) bool {
	if f.Signal == "" || os.Geteuid() == 0 && !l.noChroot.Load() {
		return false
	}
	program, err := lookProgram(o.fs.whole, o.argv[0], o.env)
	if err != nil {
		return false
	}
	own, err := exec.LookPath(path.Base(o.argv[0]))
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.instead[program] != "" {
		return false
	}
	if l.instead == nil {
		l.instead = map[string]string{}
	}
	l.instead[program] = own
	l.say("%s of the image does not run outside its own root folder: this machine's %s is used instead, whatever its version", o.argv[0], own)
	return true
}

// note says which programs are not the images' own.
func (l *plain) note() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var own []string
	for _, program := range l.instead {
		own = append(own, program)
	}
	if len(own) == 0 {
		return ""
	}
	slices.Sort(own)
	return "; programs of this machine run instead of the images' own: " + strings.Join(slices.Compact(own), ", ")
}

// runPlain starts cmd and returns how to wait for it.
func runPlain(ctx context.Context, spec *exec.Cmd, o order) (func() error, error) {
	cmd := exec.CommandContext(ctx, spec.Path)
	cmd.Args, cmd.Dir, cmd.Env, cmd.SysProcAttr = spec.Args, spec.Dir, spec.Env, spec.SysProcAttr
	cmd.Path, cmd.Err = spec.Path, nil // as it will be found after chroot
	tail := &run.Tail{Max: 4 << 10}
	both := io.MultiWriter(o.log, tail) // one pipe: what was written first stays first
	cmd.Stdout, cmd.Stderr = both, both
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = o.grace
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// The kernel watches the thread that started the child, not the
		// process: it must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // grandchildren
		ended <- exitError(ctx, o.argv[0], tail.String(), err)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", o.argv[0], err)
	}
	return func() error { return <-ended }, nil
}

func exitError(ctx context.Context, program, tail string, err error) error {
	var x *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !errors.As(err, &x):
		return err
	}
	e := &run.ExitError{Program: program, Code: x.ExitCode(), Tail: tail}
	if ws, ok := x.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal, e.Code = ws.Signal(), 128+int(ws.Signal())
	}
	return e
}

// argv is the command as this machine must be told it.
func (l *plain) argv(o order) ([]string, error) {
	root := o.fs.whole
	program, err := lookProgram(root, o.argv[0], o.env)
	if err != nil {
		return nil, err
	}
	args := slices.Clone(o.argv[1:])
	for i, a := range args {
		if !path.IsAbs(a) {
			continue
		}
		if at, err := within(root, a); err == nil {
			if _, err := os.Lstat(at); err == nil {
				args[i] = at
			}
		}
	}
	l.mu.Lock()
	own := l.instead[program]
	l.mu.Unlock()
	if own != "" {
		return append([]string{own}, args...), nil
	}
	f, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("start %s without a sandbox: only programs can be started, no scripts: %w", o.argv[0], err)
	}
	defer f.Close()
	loader := ""
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return nil, err
			}
			loader = strings.TrimRight(string(b), "\x00")
		}
	}
	if loader == "" { // static
		return append([]string{program}, args...), nil
	}
	ld, err := within(root, loader)
	if err != nil {
		return nil, fmt.Errorf("dynamic loader %s: %w", loader, err)
	}
	return slices.Concat([]string{ld, "--inhibit-cache", "--library-path", strings.Join(libraryPath(root), ":"), program}, args), nil
}

// libraryPath are the image's own library folders.
func libraryPath(root string) []string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	var dirs []string
	for _, d := range []string{"/usr/local/lib/" + triplet, "/usr/local/lib", "/lib/" + triplet, "/usr/lib/" + triplet, "/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		at, err := within(root, d)
		if err != nil {
			continue
		}
		if st, err := os.Stat(at); err == nil && st.IsDir() && !slices.Contains(dirs, at) {
			dirs = append(dirs, at)
		}
	}
	return dirs
}

// lookProgram finds the program in the image, by its PATH when it has no
// slash.
func lookProgram(root, program string, env []string) (string, error) {
	candidates := []string{program}
	if !strings.Contains(program, "/") {
		candidates = nil
		for _, kv := range env {
			if p, ok := strings.CutPrefix(kv, "PATH="); ok {
				for _, dir := range filepath.SplitList(p) {
					candidates = append(candidates, path.Join(dir, program))
				}
			}
		}
	}
	for _, c := range candidates {
		at, err := within(root, c)
		if err != nil {
			continue
		}
		if st, err := os.Stat(at); err == nil && st.Mode().IsRegular() {
			return at, nil
		}
	}
	return "", fmt.Errorf("start %s: %w in the image", program, fs.ErrNotExist)
}

// within maps a path of the image to this machine, resolving every link as if
// root were /. The last component may be missing.
func within(root, name string) (string, error) {
	rest := strings.Split(path.Clean("/" + name)[1:], "/")
	at := "/"
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		to, err := os.Readlink(filepath.Join(root, next))
		if err != nil { // no link; perhaps missing, which the caller finds
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many links", name)
		}
		if path.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(to, "/"), "/"), rest...)
	}
	return filepath.Join(root, at), nil
}
