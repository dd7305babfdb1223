package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkPlan is the whole program from its start, as make build makes it:
// faas plan of so many functions with 25 files each against the embedded
// services, and git status of the same tree, by turns in the same run. The
// ratio is that of the medians; first is a plan without kept sums.
//
//	go test -run '^$' -bench Plan ./cmd/faas
func BenchmarkPlan(b *testing.B) {
	l := newLab(b)
	program := filepath.Join(b.TempDir(), "faas")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "urfave_cli_no_docs", "-ldflags", "-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, text)
	}
	for _, mode := range []string{"aggregated", "independent", "mixed"} {
		for _, functions := range []int{20, 200, 2000} {
			b.Run(fmt.Sprintf("%s/%d", mode, functions), func(b *testing.B) { benchmarkPlan(b, l, program, mode, functions) })
		}
	}
}

func benchmarkPlan(b *testing.B, l *lab, program, mode string, functions int) {
	const each = 25
	l.dir = b.TempDir()
	var yml strings.Builder
	deploy := mode
	if mode == "mixed" { // every other function stands alone
		deploy = "aggregated"
	}
	fmt.Fprintf(&yml, "version: 1\nservice: many\nprovider: {runtime: nodejs18}\ndeploy: {mode: %s}\nfunctions:\n", deploy)
	files := map[string]string{"package.json": "{}"}
	for i := range functions {
		alone := ""
		if mode == "mixed" && i%2 == 0 {
			alone = ", standalone: true"
		}
		fmt.Fprintf(&yml, "  f%d: {handler: functions/f%d/index.handler, source: functions/f%d, events: [{http: {path: /f%d}}]%s}\n", i, i, i, i, alone)
		files[fmt.Sprintf("functions/f%d/index.js", i)] = "exports.handler = async () => 1;\n"
		for j := range each - 1 {
			files[fmt.Sprintf("functions/f%d/lib/m%d.js", i, j)] = fmt.Sprintf("// %d %d\n%s", i, j, strings.Repeat("exports.x = 1;\n", 60))
		}
	}
	files["faas.yml"] = yml.String()
	l.write(files)
	var cpu time.Duration // of the last program
	took := func(env []string, name string, args ...string) time.Duration {
		b.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = l.dir, env
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		return time.Since(start)
	}
	git := func(args ...string) time.Duration {
		return took([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir, "GIT_CONFIG_NOSYSTEM=1"}, "git", args...)
	}
	git("init", "-q")
	git("add", ".")
	// Without maintenance, which would go on in the background.
	git("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "gc.auto=0", "-c", "maintenance.auto=false", "commit", "-q", "-m", "all")
	time.Sleep(3 * time.Second) // both read files again that have just changed
	first := took(l.environ, program, "plan")
	git("status")
	var ours, theirs, oursCPU, theirsCPU []time.Duration
	for b.Loop() {
		ours, oursCPU = append(ours, took(l.environ, program, "plan")), append(oursCPU, cpu)
		theirs, theirsCPU = append(theirs, git("status")), append(theirsCPU, cpu)
	}
	median := func(all []time.Duration) float64 {
		slices.Sort(all)
		return all[len(all)/2].Seconds() * 1000
	}
	b.ReportMetric(median(ours)/median(theirs), "x-git-status")
	b.ReportMetric(median(ours), "plan-ms")
	b.ReportMetric(median(theirs), "git-ms")
	b.ReportMetric(median(oursCPU), "plan-cpu-ms")
	b.ReportMetric(median(theirsCPU), "git-cpu-ms")
	b.ReportMetric(first.Seconds()*1000, "first-plan-ms")
	b.ReportMetric(0, "ns/op")
}
