package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/devenv"
)

// asProgram makes the test binary behave as the program: the same main, in a
// process that can be killed.
const asProgram = "STAGE_RUNNER_TEST_PROGRAM"

// kills is how often the job is ended in the middle, by each signal in turn;
// KILL_COUNT asks for more. One that dies with the deploy lock in its hands
// makes the next wait until the lock has run out.
const kills = 4

// moment is when a signal is sent: once so many lines were written, after a
// time, or at the line that says something; with none of these, never.
type moment struct {
	line  int // negative: does not count
	after time.Duration
	says  string
}

func (m moment) String() string {
	if m.says != "" {
		return m.says
	}
	if m.line >= 0 {
		return fmt.Sprintf("line %d", m.line)
	}
	return m.after.String()
}

// A job is killed at any time and run again: the release becomes live, the
// route answers with the newest code, and nothing piles up.
func TestKilledAnywhereThenRunAgain(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KILL_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KILL_SEED=%d repeats this run", seed)
	rounds := kills
	if n := os.Getenv("KILL_COUNT"); n != "" {
		if _, err := fmt.Sscan(n, &rounds); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(seed, 0))
	tmp := t.TempDir()

	// A run that is left alone says how many lines there are to die at.
	l.newPipeline()
	started := time.Now()
	lines := len(strings.Split(l.program(t, tmp, whole, moment{line: -1}, 0).log, "\n"))
	length := time.Since(started)
	for i := range rounds {
		signal := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[i%2]
		// Lines name the steps; times fall between them.
		at := moment{line: random.IntN(lines)}
		if i%4 >= 2 {
			at = moment{line: -1, after: time.Duration(random.Int64N(int64(length)))}
		}
		text := fmt.Sprintf("version %d", i)
		l.write(map[string]string{"index.js": "exports.handler = async () => '" + text + "';\n"})
		l.newPipeline()
		cut := l.program(t, tmp, whole, at, signal)
		if strings.Contains(cut.log, "goroutine ") || strings.Contains(cut.log, "E1901") {
			t.Errorf("%v at %v:\n%s", signal, at, cut.log)
		}
		// A program that has not begun yet is ended by the system; it has said,
		// and done, nothing.
		early := cut.code == -1 && cut.log == ""
		if signal == syscall.SIGTERM && cut.code != 143 && cut.code != 0 && !early {
			t.Errorf("SIGTERM at %v ended with %d:\n%s", at, cut.code, cut.log)
		}

		// The same job again, as GitLab's retry does, with what the first left.
		again := l.ok(whole, "TMPDIR="+tmp)
		if status, body, _ := l.get(again.report.Result.URLs[0].URL); status != 200 || body != text {
			t.Errorf("%v at %v, then again: the route answers %d %q, want %q\nfirst:\n%s\nagain:\n%s", signal, at, status, body, text, cut.log, again.log)
		}
		if again.report.Result.Release == "" {
			t.Errorf("%v at %v, then again: no release is live:\n%s", signal, at, again.log)
		}
		if t.Failed() {
			t.FailNow()
		}
	}

	// One more whole run in a process of its own, then nothing is left of any.
	l.newPipeline()
	if last := l.program(t, tmp, whole, moment{line: -1}, 0); last.code != 0 {
		t.Errorf("the last run: exit %d\n%s", last.code, last.log)
	}
	entries, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left in TMPDIR: %s", e.Name())
	}
	if left, _ := filepath.Glob(filepath.Join(l.dir, ".faas", ".tmp-*")); len(left) > 0 {
		t.Errorf("left in the work tree: %v", left)
	}
	if p := processesIn(t, l.dir); len(p) > 0 {
		t.Errorf("processes still in the work tree: %v", p)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), tmp) || strings.Contains(string(mounts), l.dir) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
}

// program runs the stages in a process and sends it the signal at the moment.
func (l *lab) program(t *testing.T, tmp, stage string, at moment, signal syscall.Signal) outcome {
	t.Helper()
	j := devenv.Job{
		Dir: l.dir, Environment: "test", ProjectID: 42, ProjectPath: "team/shop", Commit: "c0ffee00c0ffee00", Branch: "main",
		IID: max(l.iid, 1), Created: time.Now(), Platform: l.platform.Dir, Extra: append(slices.Clone(l.environ), "TMPDIR="+tmp, asProgram+"=1"),
	}
	cmd := exec.Command(os.Args[0], "run", stage)
	cmd.Env, cmd.Dir = j.Environ(), l.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if at.after > 0 {
		timer := time.AfterFunc(at.after, func() { _ = cmd.Process.Signal(signal) })
		defer timer.Stop()
	}
	var log bytes.Buffer
	lines := bufio.NewReader(io.TeeReader(pipe, &log))
	for n := 0; ; n++ {
		if n == at.line {
			_ = cmd.Process.Signal(signal)
		}
		line, err := lines.ReadString('\n')
		if at.says != "" && strings.Contains(line, at.says) {
			_ = cmd.Process.Signal(signal)
		}
		if err != nil {
			break
		}
	}
	_ = cmd.Wait() // its exit code is read below
	return outcome{code: cmd.ProcessState.ExitCode(), log: log.String()}
}

// processesIn are the processes whose folder is in dir.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var in []string
	for _, p := range all {
		if cwd, err := os.Readlink(p + "/cwd"); err == nil && (cwd == dir || strings.HasPrefix(cwd, dir+"/")) {
			line, _ := os.ReadFile(p + "/cmdline")
			in = append(in, filepath.Base(p)+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return in
}
