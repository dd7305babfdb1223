package parts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// builder makes one part into out.
type builder struct {
	set      Set
	part     part
	out      string
	versions map[string]string
	every    time.Duration
	start    time.Time
}

const ldflags = "-s -w"

// flagsOf is what goes into a part's key beside its sources.
func flagsOf(name string) string {
	switch name {
	case "kube":
		return ldflags + " stamped"
	case "ingress":
		return ldflags + " types of Gateway API, without its admission policy"
	}
	return ldflags
}

// goBuild compiles pkg of the part's module to out/name. -v names each package
// as it is compiled, which is the only honest measure of progress there is.
func (b *builder) goBuild(ctx context.Context, name, pkg, extra string) error {
	total := b.countPackages(ctx, pkg)
	cmd := exec.CommandContext(ctx, "go", "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace(ldflags+" "+extra),
		"-o", filepath.Join(b.out, name), pkg)
	cmd.Dir = b.moduleDir()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var mu sync.Mutex
	compiled, downloads := 0, 0
	done := make(chan struct{})
	go func() {
		t := time.NewTicker(b.every)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				mu.Lock()
				c, d := compiled, downloads
				mu.Unlock()
				b.set.Log("%s", progress(name, c, total, d, time.Since(b.start), b.part.cold))
			}
		}
	}()
	var other []string // what is neither a package nor a download: the errors
	sc := bufio.NewScanner(stderr)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		mu.Lock()
		switch {
		case strings.HasPrefix(line, "go: downloading "):
			downloads++
		case line != "" && !strings.ContainsAny(line, " :\t"):
			compiled++
		default:
			other = append(other, line)
		}
		mu.Unlock()
	}
	err = cmd.Wait()
	close(done)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, tail(other, 20))
	}
	return nil
}

// progress is the line shown while a part is compiled. What is left is the
// rate so far times the packages left; that is an upper bound, since packages
// which the Go build cache has are not compiled again.
func progress(name string, compiled, total, downloads int, elapsed, cold time.Duration) string {
	s := fmt.Sprintf("      %s: %s, %d packages compiled", name, round(elapsed), compiled)
	if total > 0 {
		s += fmt.Sprintf(" of at most %d", total)
	}
	if downloads > 0 {
		s += fmt.Sprintf(", %d modules downloaded", downloads)
	}
	if compiled >= 100 && total > compiled {
		left := time.Duration(float64(elapsed) * float64(total-compiled) / float64(compiled))
		return s + fmt.Sprintf(", at most %s left", round(left))
	}
	if elapsed < cold {
		return s + fmt.Sprintf(", at most about %s left on two idle cores", round(cold-elapsed))
	}
	return s
}

// countPackages is how many packages a cold build of pkg compiles; 0 if go list
// can't say.
func (b *builder) countPackages(ctx context.Context, pkg string) int {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", pkg)
	cmd.Dir = b.moduleDir()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		return 0
	}
	return bytes.Count(out, []byte("\n"))
}

func (b *builder) moduleDir() string { return filepath.Join(b.set.Lab, b.part.dir) }

func makeMain(name string) func(context.Context, *builder) error {
	return func(ctx context.Context, b *builder) error { return b.goBuild(ctx, name, ".", "") }
}

// makeKube builds Kubernetes' components as one binary. Knative and kubelet
// check the version they find, so it is stamped as the upstream build does.
func makeKube(ctx context.Context, b *builder) error {
	v := b.versions["k8s.io/kubernetes"]
	nums := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	if len(nums) != 3 {
		return fmt.Errorf("go.mod requires k8s.io/kubernetes %q, which is no version", v)
	}
	var stamp []string
	for _, kv := range [][2]string{{"gitVersion", v}, {"gitMajor", nums[0]}, {"gitMinor", nums[1]}, {"gitTreeState", "clean"},
		{"gitCommit", strings.Repeat("0", 40)}, {"buildDate", "1970-01-01T00:00:00Z"}} {
		stamp = append(stamp, "-X k8s.io/component-base/version."+kv[0]+"="+kv[1])
	}
	if err := b.goBuild(ctx, "kube", ".", strings.Join(stamp, " ")); err != nil {
		return err
	}
	for _, n := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"} {
		if err := os.Symlink("kube", filepath.Join(b.out, n)); err != nil {
			return err
		}
	}
	return nil
}

// makeKnative builds Knative Serving's programs and gathers its manifests.
func makeKnative(ctx context.Context, b *builder) error {
	for _, c := range []string{"controller", "webhook", "autoscaler", "activator", "queue"} {
		if err := b.goBuild(ctx, c, "knative.dev/serving/cmd/"+c, ""); err != nil {
			return err
		}
	}
	return b.manifests(ctx)
}

// makeIngress builds the ingress and gathers the types of Gateway API it serves.
func makeIngress(ctx context.Context, b *builder) error {
	if err := b.goBuild(ctx, "ingress", ".", ""); err != nil {
		return err
	}
	config, err := b.configOf(ctx, "sigs.k8s.io/gateway-api")
	if err != nil {
		return err
	}
	return b.gather("gateway-crds.yaml", config+"/crd/standard/gateway.networking.k8s.io_[a-u]*s.yaml")
}

// manifests copies Knative Serving's own manifests from its modules, in the
// order they are applied. Images stay ko://… references.
func (b *builder) manifests(ctx context.Context) error {
	dirs := map[string]string{}
	for _, m := range []string{"serving", "networking", "caching"} {
		dir, err := b.configOf(ctx, "knative.dev/"+m)
		if err != nil {
			return err
		}
		dirs[m] = dir
	}
	core := filepath.Join(dirs["serving"], "core")
	return errors.Join(
		b.gather("0-namespace.yaml", core+"/100-namespace.yaml"),
		b.gather("1-crds.yaml", core+"/300-resources/*.yaml", dirs["networking"]+"/certificate.yaml", dirs["networking"]+"/domain-claim.yaml",
			dirs["networking"]+"/ingress.yaml", dirs["networking"]+"/serverlessservice.yaml", dirs["caching"]+"/image.yaml"),
		b.gather("2-rbac.yaml", core+"/200-roles/*.yaml", core+"/200-serviceaccount.yaml"),
		b.gather("3-config.yaml", core+"/configmaps/*.yaml", dirs["networking"]+"/config-network.yaml"),
		b.gather("4-deploy.yaml", core+"/999-cache.yaml", core+"/deployments/controller.yaml", core+"/deployments/webhook.yaml",
			core+"/deployments/autoscaler.yaml", core+"/deployments/activator.yaml"),
		b.gather("5-webhooks.yaml", core+"/webhooks/*.yaml"))
}

// configOf is the config folder of a module as the part's go.mod pins it.
func (b *builder) configOf(ctx context.Context, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = b.moduleDir()
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go list -m %s: %w", module, err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "config"), nil
}

// gather joins the files the patterns match into one file of the part.
func (b *builder) gather(name string, globs ...string) error {
	var buf bytes.Buffer
	for _, g := range globs {
		files, err := filepath.Glob(g)
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("no manifest %s", g)
		}
		for _, file := range files { // Glob sorts
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			buf.WriteString("---\n")
			buf.Write(data)
			if !bytes.HasSuffix(data, []byte("\n")) {
				buf.WriteByte('\n')
			}
		}
	}
	return os.WriteFile(filepath.Join(b.out, name), buf.Bytes(), 0o644)
}

// nodePackages are Debian's packages that a node needs, with the libraries a
// minimal machine lacks. They are unpacked, never installed.
func nodePackages() []string {
	return []string{"containerd", "runc", "containernetworking-plugins", "iptables", "libip4tc2", "libip6tc2", "libxtables12",
		"libnftnl11", "libnfnetlink0", "libnetfilter-conntrack3", "libmnl0", "conntrack", "nftables", "libnftables1", "libseccomp2"}
}

// nodeSalt is what the node part is made from: the distribution's release, as
// its packages fit together and to the machine's libc. A point release does not
// rebuild it.
func nodeSalt() (string, error) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("%w: /etc/os-release: %v", ErrUnavailable, err)
	}
	var id []string
	for _, line := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(line, "ID=") || strings.HasPrefix(line, "VERSION_ID=") {
			id = append(id, line)
		}
	}
	return strings.Join(append(id, nodePackages()...), "\n"), nil
}

// makeNode downloads Debian's packages with the machine's own apt and unpacks them.
func makeNode(ctx context.Context, b *builder) error {
	for _, p := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w: needs %s, as containerd and runc come from Debian's packages", ErrUnavailable, p)
		}
	}
	debs := filepath.Join(b.out, ".debs")
	if err := os.Mkdir(debs, 0o777); err != nil {
		return err
	}
	if os.Getuid() == 0 { // lets apt download as its own user instead of warning
		if err := os.Chmod(debs, 0o777); err != nil {
			return err
		}
	}
	out, err := aptGet(ctx, debs, nil, append([]string{"download"}, nodePackages()...))
	if err != nil {
		// No or old package lists. Make private ones: the machine's own stay as they are.
		lists := filepath.Join(b.out, ".lists")
		if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
			return err
		}
		private := []string{"-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="}
		if o, err := aptGet(ctx, debs, private, []string{"update"}); err != nil {
			return fmt.Errorf("%w: apt-get update: %v\n%s", ErrUnavailable, err, o)
		}
		if out, err = aptGet(ctx, debs, private, append([]string{"download"}, nodePackages()...)); err != nil {
			return fmt.Errorf("%w: apt-get download: %v\n%s", ErrUnavailable, err, out)
		}
		if err := os.RemoveAll(lists); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) < len(nodePackages()) {
		return fmt.Errorf("apt-get download brought %d of %d packages", len(files), len(nodePackages()))
	}
	var versions []string
	for _, f := range files {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", f, b.out).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w\n%s", filepath.Base(f), err, out)
		}
		versions = append(versions, strings.TrimSuffix(filepath.Base(f), ".deb"))
	}
	if err := os.Chmod(b.out, 0o755); err != nil { // packages carry the mode of /
		return err
	}
	if err := os.WriteFile(filepath.Join(b.out, "packages"), []byte(strings.Join(versions, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	// Debian makes these names when it installs the package; we only unpack it.
	for _, n := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		link := filepath.Join(b.out, "usr/sbin", n)
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink("xtables-nft-multi", link); err != nil {
			return err
		}
	}
	return os.RemoveAll(debs)
}

func aptGet(ctx context.Context, dir string, opts, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "apt-get", append(append([]string{"-qq"}, opts...), args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return tail(strings.Split(strings.TrimSpace(string(out)), "\n"), 10), err
}

func tail(lines []string, n int) string {
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// lockFile waits for an exclusive lock on path.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
