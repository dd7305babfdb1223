// Package peers drives the builders that are compared: ours and those that a
// user could pick instead.
package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/bench/internal/measure"
)

// App is one application to build.
type App struct {
	Name string
	Dir  string // has a Dockerfile for those who need one
	// Layer is what our layer engine is told besides: base, dependencies,
	// command of the image.
	Layer []string
	// Command is what has to run in a copy of the folder before the layer
	// engine finds what it packs; "" is nothing.
	Command string
}

// Peer is one builder. A peer that can't run here says why in Prepare.
type Peer interface {
	Name() string
	// Prepare makes what a user has before the first build: the program, a
	// running daemon. It returns the reason when the builder can't run here.
	Prepare(ctx context.Context) error
	// Forget drops everything that builds leave behind, but not an unpacked
	// base where the builder keeps one (that is said in its name).
	Forget(ctx context.Context) error
	// Build builds app and pushes it to repository.
	Build(ctx context.Context, app App, repository string) (measure.Usage, error)
	// Empty is a process of the same program that does nothing.
	Empty(ctx context.Context) (measure.Usage, error)
	Close() error
}

// ErrOther is from Build: the builder has no part in this application.
var ErrOther = errors.New("not for this application")

// Layer is our layer engine: bench/layer.
type Layer struct {
	Program, State string
	// Work has the applications whose command leaves files in its folder: they
	// must not be in the others' build context.
	Work string
	// After is the engine's own part of applications with a command: what the
	// builder that shares its Work has left there is packed.
	After bool
}

func (l *Layer) Name() string {
	if l.After {
		return "layer engine, after the command"
	}
	return "layer engine"
}

func (l *Layer) Prepare(context.Context) error { return nil }
func (l *Layer) Close() error                  { return l.Forget(context.Background()) }
func (l *Layer) Empty(ctx context.Context) (measure.Usage, error) {
	return measure.Command(ctx, nil, l.Program, "--nothing")
}

func (l *Layer) Forget(context.Context) error {
	if l.After {
		return os.RemoveAll(l.State)
	}
	return errors.Join(os.RemoveAll(l.State), os.RemoveAll(l.Work))
}

func (l *Layer) Build(ctx context.Context, app App, repository string) (measure.Usage, error) {
	dir := app.Dir
	args := append([]string{"--repository", repository, "--state", l.State}, app.Layer...)
	switch {
	case app.Command == "" && l.After:
		return measure.Usage{}, ErrOther
	case app.Command != "":
		dir = filepath.Join(l.Work, app.Name)
		if l.After {
			break
		}
		if err := Checkout(app.Dir, dir); err != nil {
			return measure.Usage{}, err
		}
		args = append(args, "--command", app.Command)
	}
	return measure.Command(ctx, nil, l.Program, append(args, "--dir", dir)...)
}

// Checkout brings the files of from to dir, and leaves there what is equal and
// what is not of from, as git does in a job's folder.
func Checkout(from, dir string) error {
	return fs.WalkDir(os.DirFS(from), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if have, err := os.ReadFile(to); err == nil && bytes.Equal(have, data) {
			return nil
		}
		return os.WriteFile(to, data, 0o644)
	})
}

// Instructions is our kaniko engine: bench/instructions. Its unpacked base
// outlives Forget, as it does on a runner.
type Instructions struct{ Program, Executor, State string }

func (k *Instructions) Name() string { return "kaniko engine, base unpacked" }

func (k *Instructions) Prepare(context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("it needs user namespaces or root; run as root here")
	}
	return os.MkdirAll(k.State, 0o755)
}

func (k *Instructions) Forget(context.Context) error { return nil }
func (k *Instructions) Close() error                 { return os.RemoveAll(k.State) }
func (k *Instructions) Empty(ctx context.Context) (measure.Usage, error) {
	return measure.Command(ctx, nil, k.Program, "--nothing")
}

func (k *Instructions) Build(ctx context.Context, app App, repository string) (measure.Usage, error) {
	return measure.Command(ctx, nil, k.Program, "--dir", app.Dir, "--repository", repository, "--state", k.State, "--executor", k.Executor)
}

// Kaniko is kaniko's own executor with its cache, in a root of its own: it
// unpacks over the root that it runs in.
type Kaniko struct{ Program, Dir string }

func (k *Kaniko) Name() string { return "kaniko with cache" }

func (k *Kaniko) Prepare(context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("it needs root for a root of its own")
	}
	if _, err := exec.LookPath("unshare"); err != nil {
		return err
	}
	return nil
}

func (k *Kaniko) Forget(context.Context) error { return nil } // a new repository is a new cache
func (k *Kaniko) Close() error                 { return os.RemoveAll(k.Dir) }
func (k *Kaniko) Empty(ctx context.Context) (measure.Usage, error) {
	return measure.Command(ctx, nil, k.Program, "version")
}

// inRoot gives a folder what a container has, and starts a program in it.
const inRoot = `mount --make-rprivate /
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount --bind "$2" "$1/kaniko/context"
root=$1; shift 2
exec chroot "$root" /kaniko/executor "$@"`

func (k *Kaniko) Build(ctx context.Context, app App, repository string) (measure.Usage, error) {
	root := filepath.Join(k.Dir, "root")
	if err := os.RemoveAll(root); err != nil {
		return measure.Usage{}, err
	}
	for _, d := range []string{"kaniko/context", "proc", "dev", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return measure.Usage{}, err
		}
	}
	// A link would be one too many: the executor asks where it stands.
	data, err := os.ReadFile(k.Program)
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "kaniko/executor"), data, 0o755)
	}
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if data, rerr := os.ReadFile(f); rerr == nil && err == nil {
			err = os.WriteFile(filepath.Join(root, f), data, 0o644)
		}
	}
	if err != nil {
		return measure.Usage{}, err
	}
	return measure.Command(ctx, nil, "unshare", "--mount", "--pid", "--fork", "sh", "-ec", inRoot, "sh", root, app.Dir,
		"--context=dir:///kaniko/context", "--dockerfile=Dockerfile", "--destination="+repository+":latest", "--cache=true",
		"--cache-repo="+repository+"/cache", "--snapshot-mode=redo", "--insecure", "--insecure-pull", "--force", "--verbosity=warn")
}

// Buildah is Debian's, with its layers kept by overlay.
type Buildah struct{ Dir string }

func (b *Buildah) Name() string { return "buildah" }

func (b *Buildah) Prepare(ctx context.Context) error {
	for _, p := range []string{"buildah", "runc"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install buildah runc", p)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root here, for overlay mounts")
	}
	return b.Forget(ctx)
}

func (b *Buildah) store() []string {
	return []string{"--storage-driver", "overlay", "--root", filepath.Join(b.Dir, "root"), "--runroot", filepath.Join(b.Dir, "run")}
}

func (b *Buildah) Forget(ctx context.Context) error {
	if _, err := os.Stat(b.Dir); err == nil {
		for _, args := range [][]string{{"rm", "--all"}, {"rmi", "--all", "--force"}} {
			_, _ = measure.Command(ctx, nil, "buildah", append(b.store(), args...)...)
		}
		_ = syscall.Unmount(filepath.Join(b.Dir, "root", "overlay"), syscall.MNT_DETACH)
		if err := os.RemoveAll(b.Dir); err != nil {
			return err
		}
	}
	return os.MkdirAll(b.Dir, 0o755)
}

func (b *Buildah) Close() error {
	_ = syscall.Unmount(filepath.Join(b.Dir, "root", "overlay"), syscall.MNT_DETACH)
	return os.RemoveAll(b.Dir)
}

func (b *Buildah) Empty(ctx context.Context) (measure.Usage, error) {
	return measure.Command(ctx, nil, "buildah", "--version")
}

func (b *Buildah) Build(ctx context.Context, app App, repository string) (measure.Usage, error) {
	s := strings.Join(b.store(), " ")
	script := fmt.Sprintf("buildah %s bud -q --isolation chroot --layers --tls-verify=false -t %s:latest %s && buildah %s push -q --tls-verify=false %s:latest",
		s, repository, app.Dir, s, repository)
	return measure.Command(ctx, nil, "sh", "-ec", script)
}

// BuildKit is a buildkitd that is already running, and buildctl.
type BuildKit struct {
	Daemon, Client string // programs
	Dir            string
	Registry       string // spoken to without TLS

	cmd     *exec.Cmd
	daemon  measure.Daemon
	stopped chan error
}

func (b *BuildKit) Name() string   { return "BuildKit" }
func (b *BuildKit) socket() string { return "unix://" + filepath.Join(b.Dir, "bk.sock") }

func (b *BuildKit) Prepare(ctx context.Context) error {
	if _, err := exec.LookPath("runc"); err != nil {
		return errors.New("runc is not installed: apt-get install runc")
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root here")
	}
	if err := os.MkdirAll(b.Dir, 0o755); err != nil {
		return err
	}
	config := fmt.Sprintf(`root = %q
insecure-entitlements = ["network.host"]
[grpc]
  address = [%q]
[worker.oci]
  enabled = true
  binary = "runc"
  networkMode = "host"
  snapshotter = "overlayfs"
  gc = false
[worker.containerd]
  enabled = false
[registry.%q]
  http = true
`, filepath.Join(b.Dir, "root"), b.socket(), b.Registry)
	file := filepath.Join(b.Dir, "buildkitd.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(b.Dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	b.cmd = exec.Command(b.Daemon, "--config", file)
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		return err
	}
	b.stopped = make(chan error, 1)
	go func() { b.stopped <- b.cmd.Wait() }()
	b.daemon.PID = b.cmd.Process.Pid
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := measure.Command(ctx, nil, b.Client, "--addr", b.socket(), "debug", "workers"); err == nil {
			return nil
		}
		select {
		case <-b.stopped:
			text, _ := os.ReadFile(filepath.Join(b.Dir, "log"))
			return fmt.Errorf("buildkitd ended: %s", strings.TrimSpace(string(text)))
		case <-ctx.Done():
			return errors.New("buildkitd did not answer within a minute")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (b *BuildKit) Forget(ctx context.Context) error {
	_, err := measure.Command(ctx, nil, b.Client, "--addr", b.socket(), "prune", "--all")
	return err
}

func (b *BuildKit) Close() error {
	if b.cmd != nil && b.cmd.Process != nil {
		_ = b.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-b.stopped:
		case <-time.After(10 * time.Second):
			_ = b.cmd.Process.Kill()
			<-b.stopped
		}
	}
	return os.RemoveAll(b.Dir)
}

func (b *BuildKit) Empty(ctx context.Context) (measure.Usage, error) {
	return measure.Command(ctx, nil, b.Client, "--version")
}

func (b *BuildKit) Build(ctx context.Context, app App, repository string) (measure.Usage, error) {
	b.daemon.Reset()
	u, err := measure.Command(ctx, nil, b.Client, "--addr", b.socket(), "build", "--frontend", "dockerfile.v0", "--local", "context="+app.Dir, "--local", "dockerfile="+app.Dir,
		"--allow", "network.host", "--opt", "force-network-mode=host",
		"--output", "type=image,name="+repository+":latest,push=true,registry.insecure=true", "--progress", "plain")
	d := b.daemon.Usage()
	u.CPU += d.CPU
	u.Peak = max(u.Peak, d.Peak)
	return u, err
}
