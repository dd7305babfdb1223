//go:build e2e

package knative_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	clusterfiles "github.com/kuroko-faas/kuroko/deployer/knative/cluster"
)

// slowEnv makes this test binary a job of its own: a deploy that can be
// killed or stopped while its traffic stands somewhere.
const slowEnv = "KUROKO_TEST_SLOW_DEPLOY"

// slowDeploy is that job's order.
type slowDeploy struct {
	Plan deployer.Plan
	// Weight is the share at which it stays; 0: it stops before it moves any.
	Weight int
	Lease  time.Duration
}

// staying is a target that moves traffic to Weight %, says so on stdout, and
// goes on only when a line comes on stdin.
type staying struct {
	deployer.Target
	slowDeploy
}

func (s staying) SetTraffic(ctx context.Context, f deployer.Fence, service string, all []deployer.Share) error {
	if s.Weight > 0 {
		svcs, err := s.Services(ctx, f.Scope)
		if err != nil {
			return err
		}
		old := ""
		for _, sh := range svcs[0].Traffic {
			if sh.Percent == 100 {
				old = sh.Revision
			}
		}
		part := []deployer.Share{{Revision: old, Percent: 100 - s.Weight}, {Revision: all[0].Revision, Percent: s.Weight}}
		if err := s.Target.SetTraffic(ctx, f, service, part); err != nil {
			return err
		}
	}
	fmt.Println("here")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	return s.Target.SetTraffic(ctx, f, service, all)
}

// TestSlowDeployChild is no test of its own: it is the job.
func TestSlowDeployChild(t *testing.T) {
	in := os.Getenv(slowEnv)
	if in == "" {
		t.Skip("it is started by other tests, as another process")
	}
	var s slowDeploy
	if err := json.Unmarshal([]byte(in), &s); err != nil {
		t.Fatal(err)
	}
	o := quick()
	o.Holder, o.Lease.For = "the doomed job", s.Lease
	_, err := deployer.Deploy(t.Context(), staying{target(t, lab(t)), s}, s.Plan, o)
	fmt.Printf("ended: %v, fenced: %v\n", err, errors.Is(err, deployer.ErrFenced))
}

// spawnSlow starts the job and waits until its traffic stands.
func spawnSlow(t *testing.T, s slowDeploy) (cmd *exec.Cmd, in io.Writer, out *bufio.Reader) {
	t.Helper()
	order, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(exe, "-test.run=^TestSlowDeployChild$")
	cmd.Env = append(os.Environ(), slowEnv+"="+string(order))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	r := bufio.NewReader(stdout)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("the job ended before its traffic stood: %v, %q", err, line)
		}
		if strings.TrimSpace(line) == "here" {
			return cmd, stdin, r
		}
	}
}

// watchdogImage is faasctl in an image of its own.
func watchdogImage(t *testing.T) string {
	t.Helper()
	host := registry(t)
	bin := filepath.Join(t.TempDir(), "faasctl")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "../../cmd/faasctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build faasctl: %v\n%s", err, b)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer(t, "bin/faasctl", 0o755, program))
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config = runtime.GOARCH, "linux", v1.Config{Env: []string{"PATH=/bin"}}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref := host + "/test/watchdog"
	repo := missing(t).Registry.Repo("test", "watchdog")
	if err := remote.Write(repo.Tag("e2e"), img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref + "@" + digest.String()
}

// The job is killed while 30 % of the traffic go to the new revision, and
// nobody starts another. The watchdog as rendered, in the cluster, with its
// own rights, brings the old revision back, and the record says why.
func TestWatchdogInTheClusterEndsADeadCanary(t *testing.T) {
	c := lab(t)
	one, two := image(t, "one"), image(t, "two")
	id := strings.ToLower(rand.Text()[:8])
	ns := "test-" + id
	setup := clusterfiles.Setup{
		System: "test-system-" + id, Image: watchdogImage(t), Images: []string{registry(t) + "/"},
		Tiers:      map[string]clusterfiles.Limits{"standard": {Memory: "1Gi"}},
		Namespaces: []clusterfiles.Namespace{{Name: ns, Tier: "standard", Owner: "1"}},
	}
	c.apply(t, setup)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = c.serve.Services(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
		for _, n := range []string{ns, setup.System} {
			_ = c.kube.CoreV1().Namespaces().Delete(ctx, n, metav1.DeleteOptions{})
		}
		_ = c.kube.RbacV1().ClusterRoleBindings().Delete(ctx, clusterfiles.WatchdogRole+"-scopes", metav1.DeleteOptions{})
		for _, n := range []string{clusterfiles.DeployRole, clusterfiles.SecretRole, clusterfiles.ReadRole, clusterfiles.WatchdogRole, clusterfiles.WatchdogRole + "-scopes"} {
			_ = c.kube.RbacV1().ClusterRoles().Delete(ctx, n, metav1.DeleteOptions{})
		}
		for _, n := range []string{clusterfiles.Policy, clusterfiles.Policy + "-jobs", clusterfiles.Policy + "-cronjobs"} {
			_ = c.kube.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(ctx, n, metav1.DeleteOptions{})
			_ = c.kube.AdmissionregistrationV1().ValidatingAdmissionPolicies().Delete(ctx, n, metav1.DeleteOptions{})
		}
	})
	eventually(t, "the watchdog runs", func() bool {
		d, err := c.kube.AppsV1().Deployments(setup.System).Get(t.Context(), clusterfiles.Watchdog, metav1.GetOptions{})
		return err == nil && d.Status.AvailableReplicas == 2
	})
	k, scope := target(t, c), scopeIn(ns)
	plan := func(n int64, u deployer.Spec) deployer.Plan {
		return deployer.Plan{Scope: scope, Pipeline: n, Units: []deployer.Spec{u}}
	}
	out, err := deployer.Deploy(t.Context(), k, plan(1, unit("main", one)), quick())
	if err != nil {
		t.Fatal(err)
	}
	stop := load(t, out.Units[0].URL, 20)
	job, _, _ := spawnSlow(t, slowDeploy{Plan: plan(2, unit("main", two)), Weight: 30, Lease: 30 * time.Second})
	svcs, err := k.Services(t.Context(), scope)
	if err != nil || len(svcs) != 1 || svcs[0].Only(out.Units[0].Revision) {
		t.Fatalf("services %+v, %v; want 30 %% on the new revision", svcs, err)
	}
	if err := job.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	dead := time.Now()
	var h deployer.Head
	for {
		if svcs, err = k.Services(t.Context(), scope); err == nil {
			h, err = k.Head(t.Context(), scope)
		}
		if err == nil && svcs[0].Only(out.Units[0].Revision) && h.Rollout == nil {
			break
		}
		if time.Since(dead) > 2*time.Minute {
			t.Fatalf("2 min after the kill: traffic %+v, head %+v, %v", svcs, h, err)
		}
		if err := context.Cause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	took := time.Since(dead)
	t.Logf("%s after the kill only %s serves; the record: %+v", took.Round(100*time.Millisecond), out.Units[0].Revision, *h.Undone)
	if took > 90*time.Second {
		t.Errorf("it took %s; want at most 90 s", took)
	}
	if h.Undone == nil || h.Undone.To != "r2" || h.Undone.Why == "" || !strings.HasPrefix(h.Undone.By, "watchdog ") || h.Live != "r1" {
		t.Errorf("head %+v, %+v; want r1 live, and r2 undone by the watchdog", h, h.Undone)
	}
	for range 20 {
		a, err := k.Probe(t.Context(), scope, "app-main", "", "n")
		if err != nil || a.Revision != out.Units[0].Revision {
			t.Fatalf("the route answers %+v, %v", a, err)
		}
	}
	stop().unbroken(t)
}

// A holder is stopped for a minute, its lease is taken over, another deploys;
// when the holder wakes, its write is refused and nothing has changed.
func TestStoppedHolderIsFenced(t *testing.T) {
	t.Parallel() // it waits more than it does
	c := lab(t)
	one, two := image(t, "one"), image(t, "two")
	k, scope := target(t, c), scopeIn(c.namespace(t))
	plan := func(n int64, u deployer.Spec) deployer.Plan {
		return deployer.Plan{Scope: scope, Pipeline: n, Units: []deployer.Spec{u}}
	}
	if _, err := deployer.Deploy(t.Context(), k, plan(1, unit("main", one)), quick()); err != nil {
		t.Fatal(err)
	}
	// The lease's times are a job's own.
	job, in, said := spawnSlow(t, slowDeploy{Plan: plan(2, unit("main", two)), Lease: 30 * time.Second})
	if err := job.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	three := unit("main", two)
	three.Table = `{"name":"three","functions":[]}`
	out, err := deploy(t, k, scope, 3, three)
	if err != nil {
		t.Fatalf("beside a stopped holder: %v", err)
	}
	if took := time.Since(stopped); took < 20*time.Second {
		t.Errorf("another deployed %s after the holder had stopped; it had renewed its lease of 30 s at most 10 s before", took)
	}
	before := only(t, k, scope)
	time.Sleep(time.Until(stopped.Add(time.Minute)))
	if err := job.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "go on\n"); err != nil {
		t.Fatal(err)
	}
	for {
		line, err := said.ReadString('\n')
		if err != nil {
			t.Fatalf("the job did not say how it ended: %v", err)
		}
		if strings.HasPrefix(line, "ended: ") {
			t.Logf("after %s the job %s", time.Since(stopped).Round(time.Second), line)
			if !strings.Contains(line, "fenced: true") {
				t.Error("the job was not told that its lease is another's")
			}
			break
		}
	}
	if after := only(t, k, scope); !slices.Equal(after.Traffic, before.Traffic) || after.Epoch != before.Epoch || after.Template != before.Template {
		t.Errorf("the service is %+v after the holder woke; was %+v", after, before)
	}
	c.unharmed(t, k, scope, out.Release)
}
