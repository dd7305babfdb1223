//go:build e2e

package knative_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
)

// slowEnv makes this test binary a job of its own: a deploy that can be
// stopped while its traffic stands where it was.
const slowEnv = "KUROKO_TEST_SLOW_DEPLOY"

// slowDeploy is that job's order.
type slowDeploy struct {
	Plan  deployer.Plan
	Lease time.Duration
}

// staying is a target that says on stdout when it is to move traffic, and goes
// on only when a line comes on stdin.
type staying struct{ deployer.Target }

func (s staying) SetTraffic(ctx context.Context, f deployer.Fence, service string, all []deployer.Share) error {
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
	_, err := deployer.Deploy(t.Context(), staying{target(t, lab(t))}, s.Plan, o)
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
