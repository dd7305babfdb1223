//go:build api || e2e

// Package smoke tests that the lab is what docs/lab.md says, with its own
// kubectl alone: tag api in the rootless tier, tag e2e in the full lab.
package smoke

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// lab is what the lab's variables say.
type lab struct {
	Tier       string            `json:"tier"`
	Kubeconfig string            `json:"kubeconfig"`
	Registry   string            `json:"registry"`
	Ingress    string            `json:"ingress"`
	Domain     string            `json:"domain"`
	Bin        map[string]string `json:"bin"`
}

// here reads the lab this test runs in, and skips outside of one.
func here(t *testing.T, tier string) lab {
	t.Helper()
	path := os.Getenv("KUROKO_LAB")
	if path == "" {
		t.Skip("needs the lab: make test-api or make e2e")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var l lab
	if err := json.Unmarshal(b, &l); err != nil {
		t.Fatal(err)
	}
	if l.Tier != tier {
		t.Skipf("needs the lab's tier %s, this is %s", tier, l.Tier)
	}
	return l
}

// try runs kubectl and returns its output, or its message as an error.
func (l lab) try(ctx context.Context, stdin string, args ...string) (string, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.Bin["kubectl"], append([]string{"--kubeconfig", l.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	return out.String(), errs.String(), err
}

// kubectl runs kubectl and fails the test if it does.
func (l lab) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, errs, err := l.try(t.Context(), stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, errs)
	}
	return out
}

// eventually polls check until it returns "", and fails with what it returned last.
func eventually(t *testing.T, limit time.Duration, check func() string) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		got := check()
		if got == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s: %s", limit, got)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}
