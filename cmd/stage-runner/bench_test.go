package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkStart measures what a job pays before the runner does anything: the
// time of `stage-runner version` over that of an empty Go program, the two
// started in turn in the same run.
//
//	go test -run '^$' -bench Start ./cmd/stage-runner
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	empty := filepath.Join(dir, "empty.go")
	if err := os.WriteFile(empty, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	build := func(out string, args ...string) string {
		out = filepath.Join(dir, out)
		cmd := exec.Command("go", append([]string{"build", "-trimpath", "-tags", "urfave_cli_no_docs", "-ldflags", "-s -w", "-o", out}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, text)
		}
		return out
	}
	runner, nothing := build("stage-runner", "."), build("nothing", empty)
	once := func(program string, args ...string) time.Duration {
		start := time.Now()
		if err := exec.Command(program, args...).Run(); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	once(runner, "version") // the page cache
	once(nothing)
	var ours, floor time.Duration
	for b.Loop() {
		ours += once(runner, "version")
		floor += once(nothing)
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(ms(ours), "runner-ms")
	b.ReportMetric(ms(floor), "empty-ms")
	b.ReportMetric(ms(ours-floor), "over-ms")
	b.ReportMetric(0, "ns/op")
}
