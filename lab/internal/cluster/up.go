package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/lab/internal/parts"
)

// Options say which lab is meant and how to speak about it.
type Options struct {
	Checkout string // the lab's owner; its path names the lab
	State    string // folder of the lab's state
	Lab      string // the checkout's lab folder: sources of the parts
	Cache    string
	Tier     Tier
	Log      func(format string, args ...any)
}

// ErrDied is in the chain of errors that say a component of the lab ended.
var ErrDied = errors.New("a component of the lab ended")

// Possible says why the lab with pods can't run on this machine, wrapping
// ErrUnavailable, or nil.
func Possible() error {
	no := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrUnavailable, fmt.Sprintf(format, args...))
	}
	if os.Getuid() != 0 {
		return no("it needs root for real pods (make test-api does not)")
	}
	// The same namespaces the lab is made in, with nothing in them.
	cmd := exec.Command("/proc/self/exe", "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: labNamespaces}
	if out, err := cmd.CombinedOutput(); err != nil {
		return no("it may not make namespaces: %v %s", err, bytes.TrimSpace(out))
	}
	name := fmt.Sprintf("kuroko-lab-try-%d", os.Getpid())
	if err := makeCgroups(cgroupRoot, name); err != nil {
		_ = removeCgroups(cgroupRoot, name, time.Second)
		return err
	}
	if err := removeCgroups(cgroupRoot, name, time.Second); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !strings.Contains(string(b), "\toverlay\n") {
		// It may be a module that is loaded with the first mount.
		if err := exec.Command("modprobe", "overlay").Run(); err != nil {
			return no("the kernel has no overlay file system")
		}
	}
	return nil
}

const labNamespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// Up brings the lab up, or finds it up. It takes about 30 s once the parts are
// made.
func Up(ctx context.Context, o Options) (Info, error) {
	if err := Possible(); err != nil {
		return Info{}, err
	}
	if len(o.State) > 70 {
		return Info{}, fmt.Errorf("state folder %s: its path is too long for the sockets in it; set KUROKO_LAB_STATE", o.State)
	}
	if err := os.MkdirAll(o.State, 0o755); err != nil {
		return Info{}, err
	}
	unlock, err := lock(ctx, o.State)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	set := parts.Set{Lab: o.Lab, Cache: o.Cache, Log: o.Log}
	names := parts.Names()
	paths, err := set.Build(ctx, names)
	if err != nil {
		return Info{}, err
	}
	if c, err := Load(o.State); err == nil {
		st := c.Status()
		if st.State == "up" && (c.Tier == o.Tier || c.Tier == TierKnative) {
			if d := changed(c.Parts, paths); d != "" {
				o.Log("the lab runs an older %s; lab-down and lab-up renew it", d)
			}
			o.Log("the lab is up already")
			return ReadInfo(o.State)
		}
		if st.State != "down" {
			for _, d := range st.Died {
				o.Log("%s\n%s", d, indent(d.LogEnd))
			}
			o.Log("the lab was %s; starting it anew, empty", st.State)
		}
	}
	if err := down(o.State, o.Log); err != nil {
		return Info{}, fmt.Errorf("clear what was left: %w", err)
	}
	used, err := usedNetworks()
	if err != nil {
		return Info{}, err
	}
	id := ID(o.State)
	host, node, err := freeNetwork(id, used)
	if err != nil {
		return Info{}, err
	}
	cache, err := filepath.Abs(o.Cache)
	if err != nil {
		return Info{}, err
	}
	c := Config{ID: id, Checkout: o.Checkout, State: o.State, Cache: cache, Tier: o.Tier, Host: host, Node: node, Link: "kl-" + id, Parts: paths}
	start := time.Now()
	if err := c.bringUp(ctx, o); err != nil {
		return Info{}, fmt.Errorf("%w\nit is left as it is to be looked at; lab-down removes it", err)
	}
	info := c.info()
	if err := info.write(); err != nil {
		return Info{}, err
	}
	o.Log("up after %.0f s", time.Since(start).Seconds())
	return info, nil
}

func changed(running, wanted parts.Paths) string {
	var names []string
	for _, n := range parts.Names() {
		if running[n] != "" && wanted[n] != "" && running[n] != wanted[n] {
			names = append(names, n)
		}
	}
	return strings.Join(names, ", ")
}

func (c Config) bringUp(ctx context.Context, o Options) error {
	if err := errors.Join(os.MkdirAll(c.path("run"), 0o755), os.MkdirAll(c.path("log"), 0o755), os.MkdirAll(c.path("var"), 0o755)); err != nil {
		return err
	}
	if err := writePKI(c.path("pki"), "https://"+c.Node+":6443", []string{c.Node}, time.Now()); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	if err := writeJSON(c.path("config.json"), c); err != nil {
		return err
	}
	if err := makeCgroups(cgroupRoot, c.cgroup()); err != nil {
		return err
	}
	pid, err := c.spawn()
	if err != nil {
		return err
	}
	if err := connect(c.Link, c.Host, pid); err != nil {
		return err
	}
	shown := 0
	if err := c.until(ctx, "the control plane and node", 3*time.Minute, func(ctx context.Context) error {
		list, _ := c.components()
		for ; shown < len(list); shown++ {
			o.Log("started %s", list[shown].Name)
		}
		_, err := os.Stat(c.path("run", "ready"))
		return err
	}); err != nil {
		return err
	}
	k := c.kubectl()
	if err := c.until(ctx, "node Ready", 2*time.Minute, func(ctx context.Context) error {
		out, err := k.run(ctx, "", "get", "node", nodeName, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err == nil && out != "True" {
			err = fmt.Errorf("node %s: Ready=%s", nodeName, out)
		}
		return err
	}); err != nil {
		return err
	}
	o.Log("node Ready")
	if c.Tier != TierKnative {
		return nil
	}
	return c.knative(ctx, o.Log)
}

// spawn starts init in namespaces of its own and leaves it running.
func (c Config) spawn() (int, error) {
	log, err := os.OpenFile(c.path("log", "init.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, "init", c.State)
	cmd.Env, cmd.Dir = c.env(), "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: labNamespaces, Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%w: start in namespaces: %v", ErrUnavailable, err)
	}
	pid := cmd.Process.Pid
	go cmd.Wait() // takes it away should it end before we do
	p, err := readProc(pid)
	if err != nil {
		return 0, fmt.Errorf("the lab's process is gone: %s", logEnd(c.path("log", "init.log"), logLines))
	}
	return pid, os.WriteFile(c.path("run", "init"), []byte(fmt.Sprintf("%d %s\n", pid, p.Start)), 0o644)
}

// until polls f, and stops at once when a component or the lab's own process
// has ended.
func (c Config) until(ctx context.Context, what string, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not after %s", limit))
	defer cancel()
	var last error
	for {
		if err := f(ctx); err == nil {
			return nil
		} else if ctx.Err() == nil {
			last = err
		}
		if err := c.Alive(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Alive is nil as long as every component runs; else it names the one that
// ended and shows its log's end. The error wraps ErrDied.
func (c Config) Alive() error {
	if b, err := os.ReadFile(c.path("run", "died")); err == nil {
		return fmt.Errorf("%w: %s", ErrDied, bytes.TrimSpace(b))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, ok := c.initPID(); !ok {
		return fmt.Errorf("%w: the process that holds it; the end of its log:\n%s", ErrDied, indent(logEnd(c.path("log", "init.log"), logLines)))
	}
	return nil
}

func (c Config) components() ([]Component, error) {
	var list []Component
	b, err := os.ReadFile(c.path("run", "components.json"))
	if err != nil {
		return nil, err
	}
	return list, json.Unmarshal(b, &list)
}

// lock holds the lab against other commands. The lock is beside the state, so
// that removing the state doesn't remove it.
func lock(ctx context.Context, state string) (func(), error) {
	f, err := os.OpenFile(state+".lock", os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another command holds the lab: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// kubectl runs the lab's own kubectl as administrator.
type kubectl struct{ path, kubeconfig string }

func (c Config) kubectl() kubectl {
	return kubectl{c.bin("kube", "kubectl"), c.Kubeconfig()}
}

// run returns what kubectl printed; the error holds its own message.
func (k kubectl) run(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, k.path, append([]string{"--kubeconfig", k.kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", args[0], err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}
