// Package measure runs programs and says what they took.
package measure

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Usage is what one run took.
type Usage struct {
	Wall, CPU time.Duration
	// Peak is the resident memory of the largest process of the tree, in bytes.
	Peak int64
}

// limit is the longest time of one build; more is a failure.
const limit = 10 * time.Minute

// Main has to be the first call of main: Command starts this program again as
// a small process between itself and what it measures. A child is charged with
// the memory that its parent has when it is started, and ours may have much.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != between {
		return
	}
	cmd := exec.Command(os.Args[2], os.Args[3:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	start := time.Now()
	err := cmd.Run()
	u := Usage{Wall: time.Since(start)}
	code := 127
	if s := cmd.ProcessState; s != nil {
		u.CPU, code = s.UserTime()+s.SystemTime(), s.ExitCode()
		if r, ok := s.SysUsage().(*syscall.Rusage); ok {
			u.Peak = r.Maxrss << 10 // Linux counts in KiB
		}
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	answer := os.NewFile(3, "usage")
	if err := json.NewEncoder(answer).Encode(u); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 127
	}
	os.Exit(code)
}

const between = "--measure-between"

// Command runs a program to its end, with its output kept for the error. env
// is added to the process's own.
func Command(ctx context.Context, env []string, name string, args ...string) (Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return Usage{}, err
	}
	answer, far, err := os.Pipe()
	if err != nil {
		return Usage{}, err
	}
	defer answer.Close()
	cmd := exec.CommandContext(ctx, self, append([]string{between, name}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), env...)
	cmd.ExtraFiles = []*os.File{far}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	far.Close()
	var u Usage
	if derr := json.NewDecoder(answer).Decode(&u); derr != nil && err == nil {
		err = fmt.Errorf("what it took is not known: %w", derr)
	}
	if err != nil {
		text := out.String()
		if len(text) > 2000 {
			text = "…" + text[len(text)-2000:]
		}
		return u, fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, text)
	}
	return u, nil
}

// Daemon watches a process that outlives the builds: its own CPU time with
// that of the children it has waited for, and its peak since Reset.
type Daemon struct {
	PID int
	cpu time.Duration
}

// Reset starts counting.
func (d *Daemon) Reset() {
	// 5 resets the peak, see proc(5).
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.PID), []byte("5"), 0)
	d.cpu = d.total()
}

// Usage is what it took since Reset; Wall is zero.
func (d *Daemon) Usage() Usage {
	u := Usage{CPU: d.total() - d.cpu}
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID))
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			u.Peak = n << 10
		}
	}
	return u
}

// tick is the unit of /proc/PID/stat on every Linux that we know.
const tick = 10 * time.Millisecond

func (d *Daemon) total() time.Duration {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.PID))
	_, rest, ok := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 15 {
		return 0
	}
	var sum time.Duration
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseInt(f, 10, 64)
		sum += time.Duration(n) * tick
	}
	return sum
}

// Median is the middle one of values; zero for none.
func Median[T int64 | time.Duration](values []T) T {
	if len(values) == 0 {
		return 0
	}
	s := slices.Clone(values)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
