package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/lab/internal/parts"
)

// apiNode is the address the rootless tier gives itself; its network namespace
// holds nothing else.
const apiNode = "10.99.0.2"

// Rootless runs argv beside a real API server with Knative's types, webhook and
// controller, and a registry, and returns its exit code. All of it lives in one
// user, network, mount and pid namespace that ends with it; where user
// namespaces are forbidden root does without one. There are no pods: a Revision
// never becomes ready by itself.
func Rootless(ctx context.Context, o Options, argv []string) (int, error) {
	flags, err := apiNamespaces()
	if err != nil {
		return 0, err
	}
	set := parts.Set{Lab: o.Lab, Cache: o.Cache, Log: o.Log}
	paths, err := set.Build(ctx, parts.APINames())
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "kuroko-lab-api-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	c := Config{ID: ID(dir), Checkout: o.Checkout, State: dir, Cache: o.Cache, Tier: TierAPI, Node: apiNode, Host: apiNode, Parts: paths}
	for _, d := range []string{"run", "log", "var"} {
		if err := os.Mkdir(c.path(d), 0o755); err != nil {
			return 0, err
		}
	}
	if err := writePKI(c.path("pki"), "https://127.0.0.1:6443", []string{c.Node}, time.Now()); err != nil {
		return 0, err
	}
	if err := errors.Join(writeJSON(c.path("config.json"), c), c.info().write()); err != nil {
		return 0, err
	}
	// The child dies with the thread that started it, so keep that one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, append([]string{"api-init", dir}, argv...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), c.info().Env()...)
	cmd.SysProcAttr = flags
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%w: %v", ErrUnavailable, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = cmd.Process.Kill() // the namespace ends with it
		<-done
		return 0, ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// apiNamespaces finds namespaces this process may make.
func apiNamespaces() (*syscall.SysProcAttr, error) {
	const own = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
	user := func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{Cloneflags: own | syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
	}
	try := func(a *syscall.SysProcAttr) error {
		cmd := exec.Command("/proc/self/exe", "true")
		cmd.SysProcAttr = a
		return cmd.Run()
	}
	err := try(user())
	if err == nil {
		return user(), nil
	}
	if os.Getuid() == 0 {
		root := func() *syscall.SysProcAttr {
			return &syscall.SysProcAttr{Cloneflags: own, Pdeathsig: syscall.SIGKILL}
		}
		if rerr := try(root()); rerr == nil {
			return root(), nil
		}
	}
	return nil, fmt.Errorf("%w: user namespaces are forbidden here (%v)", ErrUnavailable, err)
}

// APIInit is pid 1 of the rootless tier; it returns the exit code of argv.
func APIInit(dir string, argv []string) (int, error) {
	c, err := Load(dir)
	if err != nil {
		return 0, err
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 0, err
	}
	// Forbidden where parts of /proc are masked; then the outer one stays.
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err := linkUp("lo"); err != nil {
		return 0, err
	}
	if err := configure("lo", c.Node+"/32"); err != nil {
		return 0, err
	}
	s := newSupervisor(c.path("run"), c.path("log"), c.env())
	if err := c.startAPI(s, self); err != nil {
		for _, k := range []string{"etcd", "kube-apiserver", "webhook", "controller"} {
			if _, serr := os.Stat(c.path("log", k+".log")); serr == nil {
				err = fmt.Errorf("%w\nthe end of %s's log:\n%s", err, k, indent(logEnd(c.path("log", k+".log"), 5)))
			}
		}
		return 0, err
	}
	code, err := s.run(append([]string{program}, argv[1:]...), os.Environ())
	if err != nil {
		return 0, err
	}
	if d := s.dead(); len(d) > 0 {
		return 0, fmt.Errorf("%w while the command ran (which ended with %d): %s", ErrDied, code, d[0].Name)
	}
	return code, nil
}

func (c Config) startAPI(s *supervisor, self string) error {
	if err := s.start("registry", []string{self, "registry", "-addr", "0.0.0.0:5000", "-dir", c.path("var", "registry")}); err != nil {
		return err
	}
	if err := s.start("etcd", c.etcd()); err != nil {
		return err
	}
	// Without a controller manager there are no default service accounts, and
	// without kube-proxy the server must find the webhook's endpoint itself.
	if err := s.start("kube-apiserver", c.apiserver("--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
		"--enable-aggregator-routing=true")); err != nil {
		return err
	}
	if err := s.wait("API server", 2*time.Minute, c.apiReady()); err != nil {
		return err
	}
	kubectl := func(stdin string, args ...string) error {
		out, err := s.output(stdin, append([]string{c.bin("kube", "kubectl"), "--kubeconfig", c.Kubeconfig()}, args...))
		if err != nil {
			return fmt.Errorf("kubectl %s: %w: %s", args[0], err, strings.TrimSpace(out))
		}
		return nil
	}
	if err := kubectl("", "apply", "--server-side", "-f", c.manifest("0-namespace.yaml"), "-f", c.manifest("1-crds.yaml")); err != nil {
		return err
	}
	if err := kubectl("", "wait", "--for=condition=Established", "-f", c.manifest("1-crds.yaml"), "--timeout=60s"); err != nil {
		return err
	}
	b, err := os.ReadFile(c.manifest("3-config.yaml"))
	if err != nil {
		return err
	}
	refs := map[string]string{"queue": "lab.invalid/queue@sha256:" + strings.Repeat("0", 64)}
	text, err := withSettings(string(b), refs)
	if err != nil {
		return err
	}
	if err := kubectl(text, "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	svc, err := c.render("webhook-service.yaml")
	if err != nil {
		return err
	}
	// Last: from then on the webhooks must answer.
	if err := kubectl(svc, "apply", "--server-side", "-f", c.manifest("5-webhooks.yaml"), "-f", "-"); err != nil {
		return err
	}
	for i, p := range []string{"webhook", "controller"} {
		// Both would take the same ports otherwise.
		if err := s.start(p, []string{c.bin("knative", p), "--kubeconfig", c.Kubeconfig()}, "SYSTEM_NAMESPACE=knative-serving",
			"CONFIG_LOGGING_NAME=config-logging", "CONFIG_OBSERVABILITY_NAME=config-observability", "POD_NAME="+p, "WEBHOOK_NAME=webhook",
			"WEBHOOK_PORT=8443", fmt.Sprintf("METRICS_PROMETHEUS_PORT=%d", 9091+i), fmt.Sprintf("PROFILING_PORT=%d", 8009+i)); err != nil {
			return err
		}
	}
	probe, err := c.render("probe.yaml")
	if err != nil {
		return err
	}
	// The webhook answers when an object it must default is accepted.
	return s.wait("Knative's webhook", time.Minute, func() error { return kubectl(probe, "create", "--dry-run=server", "-f", "-") })
}
