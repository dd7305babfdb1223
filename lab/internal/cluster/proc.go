package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// proc is what /proc says about a process of the machine.
type proc struct {
	PID, Parent int
	Inner       int // its id in its own, innermost pid namespace
	Start       string
	Name        string
	RSS         int64 // bytes
	State       byte
}

func readProc(pid int) (proc, error) {
	p := proc{PID: pid}
	dir := fmt.Sprintf("/proc/%d", pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return p, err
	}
	// pid (name) state ppid …; the name may hold anything, brackets too.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return p, errors.New("unreadable " + dir + "/stat")
	}
	p.Name = string(stat[open+1 : end])
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 22 {
		return p, errors.New("short " + dir + "/stat")
	}
	p.State, p.Start = f[0][0], f[19]
	p.Parent, _ = strconv.Atoi(f[1])
	pages, _ := strconv.ParseInt(f[21], 10, 64)
	p.RSS = pages * int64(os.Getpagesize())
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return p, err
	}
	for _, line := range strings.Split(string(status), "\n") {
		if v, ok := strings.CutPrefix(line, "NSpid:"); ok {
			ids := strings.Fields(v)
			p.Inner, _ = strconv.Atoi(ids[len(ids)-1])
		}
	}
	return p, nil
}

func allProcs() []proc {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var procs []proc
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, err := readProc(pid); err == nil && p.State != 'Z' {
				procs = append(procs, p)
			}
		}
	}
	return procs
}

// tree returns root and its descendants.
func tree(procs []proc, root int) []proc {
	in := map[int]bool{root: true}
	for grown := true; grown; {
		grown = false
		for _, p := range procs {
			if !in[p.PID] && in[p.Parent] {
				in[p.PID], grown = true, true
			}
		}
	}
	var out []proc
	for _, p := range procs {
		if in[p.PID] {
			out = append(out, p)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].PID < out[j].PID })
	return out
}

// Processes lists the processes of a lab however they lost their parent: those
// below its init, those that carry its mark, those in its cgroups.
func (c Config) Processes() []proc {
	procs := allProcs()
	mine := map[int]proc{}
	if pid, ok := c.initPID(); ok {
		for _, p := range tree(procs, pid) {
			mine[p.PID] = p
		}
	}
	grouped := map[int]bool{}
	for _, d := range cgroupDirs(cgroupRoot, c.cgroup()) {
		for _, pid := range cgroupProcs(d) {
			grouped[pid] = true
		}
	}
	mark := []byte(markVariable + "=" + c.ID)
	for _, p := range procs {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
		marked := false
		for _, kv := range bytes.Split(env, []byte{0}) {
			marked = marked || bytes.Equal(kv, mark)
		}
		if (marked || grouped[p.PID]) && p.PID != os.Getpid() {
			mine[p.PID] = p
		}
	}
	out := make([]proc, 0, len(mine))
	for _, p := range mine {
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].PID < out[j].PID })
	return out
}

// initPID is the lab's pid 1 as the machine sees it. A pid that was given to
// another process since is told by its start time.
func (c Config) initPID() (int, bool) {
	b, err := os.ReadFile(filepath.Join(c.State, "run", "init"))
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0, false
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil {
		return 0, false
	}
	p, err := readProc(pid)
	if err != nil || p.Start != f[1] || p.State == 'Z' {
		return 0, false
	}
	return pid, true
}

// killAll ends processes and waits until they are gone.
func killAll(find func() []proc, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		left := find()
		if len(left) == 0 {
			return nil
		}
		for _, p := range left {
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill %s (pid %d): %w", p.Name, p.PID, err)
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s (pid %d) does not end", left[0].Name, left[0].PID)
		}
	}
}
