package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/lab/internal/image"
)

// Init is pid 1 of the lab: it makes the node's files and network, starts the
// components one after the other and then only watches them. It returns when
// the lab could not be started; once it runs it ends by being killed.
func Init(state string) error {
	if os.Getpid() != 1 {
		return errors.New("init runs as pid 1 of the lab only")
	}
	c, err := Load(state)
	if err != nil {
		return err
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := c.mounts(); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if err := c.nodeNetwork(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	s := newSupervisor(c.path("run"), c.path("log"), c.env())
	if err := c.startControlPlane(s, self); err != nil {
		return err
	}
	if err := c.startNode(s); err != nil {
		return err
	}
	if err := writeFile(c.path("run", "ready"), nil, 0o644); err != nil {
		return err
	}
	select {}
}

// mounts gives the lab files of its own: whatever the components write to the
// system's folders goes to overlays below the state folder.
func (c Config) mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	// State and cache stay what they are even if they lie below a folder that
	// is covered next.
	type keep struct {
		path string
		file *os.File
	}
	var kept []keep
	for _, p := range []string{c.State, c.Cache} {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		kept = append(kept, keep{p, f})
	}
	upper := c.path("var", "overlay")
	if err := os.MkdirAll(upper, 0o755); err != nil {
		return err
	}
	// An overlay can't keep its changes on another overlay, as in a container
	// without a volume; memory will do then, for containerd's layers too.
	if err := overlayOn(upper); err != nil {
		if err := unix.Mount("tmpfs", c.path("var"), "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"/etc", "/var/lib", "/var/log", "/opt"} {
		if !isDir(dir) {
			continue
		}
		base := filepath.Join(upper, strings.ReplaceAll(dir[1:], "/", "-"))
		if err := mountOverlay(base, dir, dir); err != nil {
			return fmt.Errorf("overlay on %s: %w", dir, err)
		}
	}
	for _, k := range kept {
		if !covered(k.path) {
			continue
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", k.file.Fd()), k.path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("keep %s: %w", k.path, err)
		}
	}
	if err := c.kernelSettings(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(nodeName)); err != nil {
		return err
	}
	for path, text := range map[string]string{
		"/etc/hosts":       "127.0.0.1 localhost\n" + c.Node + " " + nodeName + "\n",
		"/etc/resolv.conf": "nameserver " + c.Node + "\n",
	} {
		// Either may be a link, or a file that is mounted.
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") // kubelet asks for it
}

// covered says whether path lies where mounts puts something else.
func covered(path string) bool {
	for _, dir := range []string{"/etc/", "/var/lib/", "/var/log/", "/opt/", "/run/"} {
		if strings.HasPrefix(path+"/", dir) {
			return true
		}
	}
	return false
}

// overlayOn tries an overlay with its changes in dir.
func overlayOn(dir string) error {
	try := filepath.Join(dir, "try")
	if err := os.MkdirAll(filepath.Join(try, "lower"), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(try, "merged"), 0o755); err != nil {
		return err
	}
	if err := mountOverlay(try, filepath.Join(try, "lower"), filepath.Join(try, "merged")); err != nil {
		return err
	}
	return unix.Unmount(filepath.Join(try, "merged"), unix.MNT_DETACH)
}

func mountOverlay(base, lower, target string) error {
	up, work := filepath.Join(base, "up"), filepath.Join(base, "work")
	if err := errors.Join(os.MkdirAll(up, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	return unix.Mount("overlay", target, "overlay", 0, "lowerdir="+lower+",upperdir="+up+",workdir="+work)
}

// kernelSettings shows kubelet the settings it insists on, as files mounted
// over the real ones, rather than let it change the machine's.
func (c Config) kernelSettings() error {
	dir := c.path("var", "sysctl")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		target := "/proc/sys/" + name
		if _, err := os.Stat(target); err != nil {
			continue
		}
		f := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(f, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(f, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	return nil
}

// nodeNetwork waits for the link that up moves in.
func (c Config) nodeNetwork() error {
	if err := linkUp("lo"); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); !hasLink("eth0"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("no link after 20 s")
		}
	}
	if err := configure("eth0", c.Node+"/24"); err != nil {
		return err
	}
	for last := poolFirst; last <= poolLast; last++ {
		if err := configure("eth0", c.pool(last)+"/32"); err != nil {
			return err
		}
	}
	if err := defaultRoute(c.Host); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

func (c Config) apiserver(extra ...string) []string {
	pki := func(f string) string { return c.path("pki", f) }
	return append([]string{c.bin("kube", "kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + c.Node, "--bind-address=0.0.0.0", "--secure-port=6443", "--cert-dir=" + c.path("var", "apiserver"),
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"), "--client-ca-file=" + pki("ca.crt"),
		"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		// No front proxy is ever allowed; scheduler and controllers complain without the file.
		"--requestheader-client-ca-file=" + pki("ca.crt"), "--requestheader-allowed-names=none",
		"--service-cluster-ip-range=" + serviceCIDR, "--v=1"}, extra...)
}

func (c Config) etcd() []string {
	return []string{c.bin("etcd", "etcd"), "--name=lab", "--data-dir=" + c.path("var", "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=lab=http://127.0.0.1:2380"}
}

func (c Config) startControlPlane(s *supervisor, self string) error {
	if err := s.start("registry", []string{self, "registry", "-addr", "0.0.0.0:5000", "-dir", c.path("var", "registry")}); err != nil {
		return err
	}
	if err := s.start("etcd", c.etcd()); err != nil {
		return err
	}
	if err := s.start("kube-apiserver", c.apiserver("--kubelet-client-certificate="+c.path("pki", "admin.crt"),
		"--kubelet-client-key="+c.path("pki", "admin.key"), "--kubelet-preferred-address-types=InternalIP",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true")); err != nil {
		return err
	}
	if err := s.wait("API server", 2*time.Minute, c.apiReady()); err != nil {
		return err
	}
	conf := func(n string) string { return c.path("pki", n+".kubeconfig") }
	if err := s.start("kube-controller-manager", []string{c.bin("kube", "kube-controller-manager"), "--kubeconfig=" + conf("kcm"),
		"--authentication-kubeconfig=" + conf("kcm"), "--authorization-kubeconfig=" + conf("kcm"), "--cert-dir=" + c.path("var", "kcm"),
		"--service-account-private-key-file=" + c.path("pki", "sa.key"), "--root-ca-file=" + c.path("pki", "ca.crt"),
		"--use-service-account-credentials=true", "--cluster-cidr=" + podCIDR, "--service-cluster-ip-range=" + serviceCIDR,
		"--allocate-node-cidrs=false", "--leader-elect=false",
		"--flex-volume-plugin-dir=" + c.path("var", "volume-plugins")}); err != nil {
		return err
	}
	return s.start("kube-scheduler", []string{c.bin("kube", "kube-scheduler"), "--kubeconfig=" + conf("scheduler"),
		"--authentication-kubeconfig=" + conf("scheduler"), "--authorization-kubeconfig=" + conf("scheduler"),
		"--cert-dir=" + c.path("var", "scheduler"), "--leader-elect=false"})
}

// containerdSocket lies in the /run of the lab, which no one else sees.
const containerdSocket = "/run/lab-containerd.sock"

// startNode starts what runs pods.
func (c Config) startNode(s *supervisor) error {
	if err := c.nodeFiles(); err != nil {
		return err
	}
	ctx := context.Background() // this process has no one to cancel it
	if err := s.wait("registry", 30*time.Second, func() error {
		_, err := image.Push(ctx, c.Registry()+"/lab/pause:1", image.Spec{Files: []image.File{{Source: c.bin("pause", "pause"), Path: "/pause"}}})
		return err
	}); err != nil {
		return err
	}
	if err := s.start("containerd", []string{c.bin("node", "usr/bin/containerd"), "--config", c.path("run", "containerd.toml")}); err != nil {
		return err
	}
	if err := s.wait("containerd's socket", 30*time.Second, func() error { _, err := os.Stat(containerdSocket); return err }); err != nil {
		return err
	}
	if err := s.start("kubelet", []string{c.bin("kube", "kubelet"), "--config=" + c.path("run", "kubelet.yaml"), "--kubeconfig=" + c.path("pki", "kubelet.kubeconfig"),
		"--hostname-override=" + nodeName, "--node-ip=" + c.Node, "--root-dir=" + c.path("var", "kubelet"), "--cert-dir=" + c.path("var", "kubelet-pki"), "--v=2"}); err != nil {
		return err
	}
	if err := s.start("kube-proxy", []string{c.bin("kube", "kube-proxy"), "--config=" + c.path("run", "kube-proxy.yaml")}); err != nil {
		return err
	}
	return s.start("coredns", []string{c.bin("coredns", "coredns"), "-conf", c.path("run", "Corefile")})
}

// apiReady returns a check of the API server's own readiness.
func (c Config) apiReady() func() error {
	var client *http.Client
	return func() error {
		if client == nil {
			ca, err := os.ReadFile(c.path("pki", "ca.crt"))
			if err != nil {
				return err
			}
			cert, err := tls.LoadX509KeyPair(c.path("pki", "admin.crt"), c.path("pki", "admin.key"))
			if err != nil {
				return err
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(ca)
			client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}}
		}
		resp, err := client.Get("https://127.0.0.1:6443/readyz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	}
}
