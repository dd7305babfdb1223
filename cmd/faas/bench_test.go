package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkPlan is the whole program from its start: faas plan of 200
// functions in 5,000 files against the embedded services, and git status of
// the same tree, by turns in the same run.
//
//	go test -run '^$' -bench Plan ./cmd/faas
func BenchmarkPlan(b *testing.B) {
	l := newLab(b)
	program := filepath.Join(b.TempDir(), "faas")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, text)
	}
	const functions, each = 200, 25
	for _, mode := range []string{"independent", "aggregated"} {
		b.Run(mode, func(b *testing.B) {
			l.dir = b.TempDir()
			var yml strings.Builder
			fmt.Fprintf(&yml, "version: 1\nservice: many\nprovider: {runtime: nodejs18}\ndeploy: {mode: %s}\nfunctions:\n", mode)
			files := map[string]string{"package.json": "{}"}
			for i := range functions {
				fmt.Fprintf(&yml, "  f%d: {handler: functions/f%d/index.handler, source: functions/f%d, events: [{http: {path: /f%d}}]}\n", i, i, i, i)
				files[fmt.Sprintf("functions/f%d/index.js", i)] = "exports.handler = async () => 1;\n"
				for j := range each - 1 {
					files[fmt.Sprintf("functions/f%d/lib/m%d.js", i, j)] = fmt.Sprintf("// %d %d\n%s", i, j, strings.Repeat("exports.x = 1;\n", 60))
				}
			}
			files["faas.yml"] = yml.String()
			l.write(files)
			took := func(env []string, name string, args ...string) time.Duration {
				b.Helper()
				cmd := exec.Command(name, args...)
				cmd.Dir, cmd.Env = l.dir, env
				start := time.Now()
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%s %v: %v\n%s", name, args, err, out)
				}
				return time.Since(start)
			}
			git := func(args ...string) time.Duration {
				return took([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir, "GIT_CONFIG_NOSYSTEM=1"}, "git", args...)
			}
			git("init", "-q")
			git("add", ".")
			git("-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "-m", "all")
			time.Sleep(3 * time.Second) // both read files again that have just changed
			cold := took(l.environ, program, "plan")
			git("status")
			var ours, theirs time.Duration
			for b.Loop() {
				ours += took(l.environ, program, "plan")
				theirs += git("status")
			}
			b.ReportMetric(ours.Seconds()/theirs.Seconds(), "x-git-status")
			b.ReportMetric(ours.Seconds()*1000/float64(b.N), "plan-ms")
			b.ReportMetric(theirs.Seconds()*1000/float64(b.N), "git-ms")
			b.ReportMetric(cold.Seconds()*1000, "first-plan-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}
