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
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// plain runs units without any isolation, where the machine forbids
// namespaces: the image's program through the image's own dynamic loader,
// with its paths mapped to the folder the image is unpacked in. It is ugly,
// and says so: the program sees the whole machine, runs as the server's user,
// and finds the loader under its own name.
type plain struct{ images *images }

func (plain) mode() sandbox.Mode { return sandbox.None }

func (l plain) prepare(ctx context.Context, ref name.Digest, _ string, progress func(string)) (rootfs, error) {
	return l.images.get(ctx, ref, hexOf(ref.DigestStr()), progress)
}

func (l plain) start(ctx context.Context, o order) (func() error, error) {
	argv, err := plainArgv(o)
	if err != nil {
		return nil, err
	}
	dir, err := within(o.fs.whole, o.dir)
	if err != nil {
		return nil, fmt.Errorf("working directory %s: %w", o.dir, err)
	}
	tail := &run.Tail{Max: 4 << 10}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, o.env
	both := io.MultiWriter(o.log, tail) // one pipe: what was written first stays first
	cmd.Stdout, cmd.Stderr = both, both
	cmd.SysProcAttr = plainAttributes()
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

// plainArgv is the command as this machine must be told it.
func plainArgv(o order) ([]string, error) {
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
