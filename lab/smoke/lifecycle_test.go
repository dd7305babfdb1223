//go:build e2e

package smoke

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLifecycle brings a second lab up beside the running one, kills parts of
// it, and checks that down leaves the machine as it was.
func TestLifecycle(t *testing.T) {
	here(t, "knative")
	program := os.Getenv("KUROKO_LAB_PROGRAM")
	state := filepath.Join(t.TempDir(), "l")
	if len(state) > 70 { // its sockets' paths are limited
		dir, err := os.MkdirTemp("", "kl")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		state = filepath.Join(dir, "l")
	}
	// lab runs the lab program on that state and wants an exit code.
	lab := func(t *testing.T, want int, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Env = append(os.Environ(), "KUROKO_LAB_STATE="+state)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("lab %s: exit %d, want %d\n%s", strings.Join(args, " "), got, want, out)
		}
		return string(out)
	}
	traces := func(t *testing.T) string {
		t.Helper()
		return lab(t, 0, "traces")
	}
	before := machine(t)

	lab(t, 0, "down") // of nothing
	lab(t, 0, "up", "--tier", "pods")
	t.Cleanup(func() {
		// Whatever failed, nothing stays. t.Context has ended here.
		c := exec.Command(program, "down")
		c.Env = append(os.Environ(), "KUROKO_LAB_STATE="+state)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	pids := components(t, lab(t, 0, "status", "--json"))
	if len(pids) != 9 {
		t.Errorf("%d components run: %v", len(pids), pids)
	}
	for _, kind := range []string{"process ", "link ", "cgroup ", "state "} {
		if !strings.Contains(traces(t), kind) {
			t.Errorf("a running lab has no %s in its traces: the check would find nothing", kind)
		}
	}
	if out := lab(t, 0, "up", "--tier", "pods"); !strings.Contains(out, "up already") {
		t.Errorf("up twice: %s", out)
	}
	if again := components(t, lab(t, 0, "status", "--json")); again["etcd"] != pids["etcd"] {
		t.Error("the second up started etcd again")
	}

	t.Run("a component dies", func(t *testing.T) {
		if err := syscall.Kill(pids["kube-scheduler"], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		died := filepath.Join(state, "run", "died")
		eventually(t, 20*time.Second, func() string {
			b, err := os.ReadFile(died)
			if err != nil {
				return err.Error()
			}
			if !strings.HasPrefix(string(b), "kube-scheduler was killed by SIGKILL") {
				return string(b)
			}
			return ""
		})
		out := lab(t, 1, "status")
		if !strings.Contains(out, "lab is broken") || !strings.Contains(out, "kube-scheduler was killed by SIGKILL; the end of ") {
			t.Errorf("status: %s", out)
		}
	})
	t.Run("up after that starts anew and says why", func(t *testing.T) {
		out := lab(t, 0, "up", "--tier", "pods")
		if !strings.Contains(out, "kube-scheduler was killed by SIGKILL") {
			t.Errorf("up: %s", out)
		}
		if p := components(t, lab(t, 0, "status", "--json")); p["etcd"] == pids["etcd"] || len(p) != 9 {
			t.Errorf("components: %v", p)
		}
	})
	t.Run("down after its own process is gone", func(t *testing.T) {
		b, err := os.ReadFile(filepath.Join(state, "run", "init"))
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("kill", "-9", strings.Fields(string(b))[0]).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		lab(t, 0, "down")
		lab(t, 0, "down")
		if left := traces(t); left != "" {
			t.Errorf("left behind:\n%s", left)
		}
		if after := machine(t); !slices.Equal(before, after) {
			t.Errorf("the machine changed:\nnow    %v\nbefore %v", only(after, before), only(before, after))
		}
	})
}

// components returns the pids in a status.
func components(t *testing.T, status string) map[string]int {
	t.Helper()
	var st struct {
		Components []struct {
			Name string
			PID  int
		}
	}
	if err := json.Unmarshal([]byte(status), &st); err != nil {
		t.Fatalf("%v in %s", err, status)
	}
	pids := map[string]int{}
	for _, c := range st.Components {
		pids[c.Name] = c.PID
	}
	return pids
}

// machine lists what any lab could leave on a machine: mounts, links, cgroups
// of labs, and the folders its components would use if they had the machine's.
// The lab this test runs in changes its own; those are left out.
func machine(t *testing.T) []string {
	t.Helper()
	var all []string
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 {
			all = append(all, "mount "+f[4])
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		all = append(all, "link "+l.Name)
	}
	for _, glob := range []string{"/sys/fs/cgroup/kuroko-lab-*", "/sys/fs/cgroup/*/kuroko-lab-*", "/sys/fs/cgroup/kubepods*", "/sys/fs/cgroup/*/kubepods*",
		"/usr/libexec/kubernetes*", "/etc/cni*", "/opt/cni*", "/var/lib/cni*", "/var/lib/kubelet*", "/var/log/pods*", "/var/log/containers*", "/run/containerd*",
		"/run/netns/*", "/run/xtables.lock", filepath.Join(os.TempDir(), "kuroko-lab-api-*")} {
		found, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// only are the entries of a that b lacks.
func only(a, b []string) []string {
	var out []string
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}
