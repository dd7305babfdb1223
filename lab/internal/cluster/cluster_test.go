package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/lab/internal/parts"
)

func TestFreeNetworkAvoidsWhatIsUsed(t *testing.T) {
	host, node, err := freeNetwork("000000ff", nil)
	if err != nil || host != "10.99.255.1" || node != "10.99.255.2" {
		t.Errorf("%s %s %v", host, node, err)
	}
	used := []netip.Prefix{netip.MustParsePrefix("10.99.255.0/25"), netip.MustParsePrefix("10.99.0.0/23"), netip.MustParsePrefix("192.168.0.0/16")}
	if host, _, err := freeNetwork("000000ff", used); err != nil || host != "10.99.2.1" {
		t.Errorf("beside others: %s %v, want 10.99.2.1", host, err)
	}
	if _, _, err := freeNetwork("1", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); !errors.Is(err, errNoNetwork) {
		t.Errorf("all used: %v", err)
	}
	if a, _, err := freeNetwork("not hex", nil); err == nil {
		t.Errorf("id that is none: %s", a)
	}
}

func TestCertificatesProveWhatTheyMust(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	if err := writePKI(dir, "https://10.99.1.2:6443", []string{"10.99.1.2"}, now); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for name, usage := range map[string]x509.ExtKeyUsage{"apiserver": x509.ExtKeyUsageServerAuth, "kubelet": x509.ExtKeyUsageServerAuth,
		"admin": x509.ExtKeyUsageClientAuth, "kcm": x509.ExtKeyUsageClientAuth, "scheduler": x509.ExtKeyUsageClientAuth, "proxy": x509.ExtKeyUsageClientAuth} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		o := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}
		if usage == x509.ExtKeyUsageServerAuth {
			o.DNSName = "10.99.1.2"
		}
		if _, err := pair.Leaf.Verify(o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	fi, err := os.Stat(filepath.Join(dir, "admin.kubeconfig"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("kubeconfig: %v %v", fi.Mode(), err)
	}
}

func TestSettings(t *testing.T) {
	text := `apiVersion: v1
kind: ConfigMap
metadata:
  name: config-network
data:
  _example: x
---
kind: ConfigMap
metadata:
  name: config-domain
data:
  _example: x
---
kind: ConfigMap
metadata:
  name: config-deployment
data:
  queue-sidecar-image: ko://knative.dev/serving/cmd/queue
---
spec:
  image: ko://knative.dev/serving/cmd/webhook
  resources:
    requests:
      cpu: 100m
      memory: 60Mi
    limits:
      cpu: 1000m
`
	got, err := withSettings(text, map[string]string{"queue": "r/q@sha256:1", "webhook": "r/w@sha256:2"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"image: r/q@sha256:1\n", "image: r/w@sha256:2\n", "data:\n  ingress-class: " + ingressClass + "\n", "data:\n  lab.example: \"\"\n",
		"  progress-deadline: 60s\n", "requests:\n      cpu: 10m\n", "limits:\n      cpu: 1000m\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if _, err := withSettings(text, map[string]string{"queue": "r/q"}); err == nil || !strings.Contains(err.Error(), "webhook") {
		t.Errorf("an image is missing: %v", err)
	}
	if _, err := withSettings("kind: ConfigMap\n", nil); err == nil {
		t.Error("a ConfigMap is missing, and there is no error")
	}
}

func TestFilesAreFilledIn(t *testing.T) {
	c := Config{ID: "0a1b2c3d", State: "/s", Node: "10.99.1.2", Host: "10.99.1.1", Parts: parts.Paths{"node": "/deb"}}
	entries, err := files.ReadDir("files")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := c.render(e.Name(), "@IMAGE@", "r/i@sha256:1", "@POOL@", c.pool(16)+"-"+c.pool(79))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \n\"',=/:", r) }) {
			if strings.HasPrefix(f, "@") && strings.HasSuffix(f, "@") {
				t.Errorf("%s: %s is not filled in", e.Name(), f)
			}
		}
	}
}

func TestLogEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := logEnd(path, 3); !strings.Contains(got, "no such file") {
		t.Errorf("no log: %q", got)
	}
	for text, want := range map[string]string{
		"":                                   "(empty)",
		"a\nb\n":                             "a\nb",
		"1\n2\n3\n4\n":                       "2\n3\n4",
		strings.Repeat("x\n", 20000) + "end": "x\nx\nend",
		strings.Repeat("y", 500):             strings.Repeat("y", 400) + "…",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := logEnd(path, 3); got != want {
			t.Errorf("end of %.20q…: %.40q, want %.40q", text, got, want)
		}
	}
}

func TestProcessesAreFoundByTheirMark(t *testing.T) {
	c := Config{ID: "feedf00d", State: t.TempDir()}
	if got := c.Processes(); len(got) != 0 {
		t.Fatalf("before: %v", got)
	}
	cmd := exec.Command("sleep", "60")
	cmd.Env = []string{markVariable + "=" + c.ID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	// Its environment is its own once it runs the program.
	for end := time.Now().Add(10 * time.Second); len(c.Processes()) == 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if got := c.Processes(); len(got) != 1 || got[0].PID != cmd.Process.Pid {
		t.Errorf("found %v, want pid %d", got, cmd.Process.Pid)
	}
	if err := killAll(c.Processes, 10*time.Second); err != nil {
		t.Error(err)
	}
	<-done
}

func TestInitIsNotTakenForAnother(t *testing.T) {
	c := Config{ID: "feedf00d", State: t.TempDir()}
	me, err := readProc(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	write := func(start string) {
		t.Helper()
		if err := os.MkdirAll(c.path("run"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.path("run", "init"), []byte(fmt.Sprintf("%d %s\n", me.PID, start)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(me.Start)
	if pid, ok := c.initPID(); !ok || pid != me.PID {
		t.Errorf("pid %d %v", pid, ok)
	}
	write("1")
	if _, ok := c.initPID(); ok {
		t.Error("a process that was started at another time is taken for the lab's: down would kill a stranger")
	}
}

func TestTree(t *testing.T) {
	procs := []proc{{PID: 9, Parent: 5}, {PID: 5, Parent: 2}, {PID: 2, Parent: 1}, {PID: 3, Parent: 1}, {PID: 6, Parent: 9}}
	var got []int
	for _, p := range tree(procs, 5) {
		got = append(got, p.PID)
	}
	if len(got) != 3 || got[0] != 5 || got[1] != 6 || got[2] != 9 {
		t.Errorf("below 5: %v", got)
	}
}

func TestCgroupsOfVersionOneAndTwo(t *testing.T) {
	for version, hierarchy := range map[string][]string{"v1": {"cpu", "memory", "unified"}, "v2": {""}} {
		root := t.TempDir()
		for _, h := range hierarchy {
			dir := filepath.Join(root, h)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			names := []string{"cgroup.procs"}
			if version == "v2" {
				names = append(names, "cgroup.controllers", "cgroup.subtree_control")
			}
			for _, n := range names {
				if err := os.WriteFile(filepath.Join(dir, n), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := makeCgroups(root, "lab"); err != nil {
			t.Fatal(err)
		}
		want := map[string]int{"v1": 2, "v2": 1}[version]
		if got := cgroupDirs(root, "lab"); len(got) != want {
			t.Errorf("%s: made %v, want %d", version, got, want)
		}
		if err := removeCgroups(root, "lab", time.Second); err != nil {
			t.Errorf("%s: %v", version, err)
		}
		if got := cgroupDirs(root, "lab"); len(got) != 0 {
			t.Errorf("%s: left %v", version, got)
		}
	}
	if err := makeCgroups(filepath.Join(t.TempDir(), "none"), "lab"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("no cgroups: %v", err)
	}
}

func TestDownOfNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "never")
	if err := Down(t.Context(), dir, t.Logf); err != nil {
		t.Error(err)
	}
	if st, err := StatusOf(dir); err != nil || st.State != "down" {
		t.Errorf("%+v %v", st, err)
	}
}
