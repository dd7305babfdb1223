package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the roots of the machine's cgroup hierarchies: one for
// version 2, one per controller for version 1.
func hierarchies(root string) []string {
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return []string{root}
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil
	}
	var dirs []string
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil && e.IsDir() { // not the links of joint controllers
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// makeCgroups makes the lab's cgroup in each hierarchy; kubelet puts its pods
// below it.
func makeCgroups(root, name string) error {
	dirs := hierarchies(root)
	if len(dirs) == 0 {
		return fmt.Errorf("%w: no cgroups at %s", ErrUnavailable, root)
	}
	for _, h := range dirs {
		v2 := h == root
		if !v2 && strings.HasSuffix(h, "/unified") {
			continue // the version 2 half of a hybrid set-up has no controllers
		}
		if v2 {
			for _, c := range []string{"+cpu", "+cpuset", "+memory", "+pids"} {
				_ = os.WriteFile(filepath.Join(h, "cgroup.subtree_control"), []byte(c), 0o644) // kubelet says what it misses
			}
		}
		dir := filepath.Join(h, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("%w: cgroups can't be made: %v", ErrUnavailable, err)
			}
			return err
		}
		// A new cpuset of version 1 is empty until it is told what it has.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(h, f)); err == nil && !v2 {
				if err := os.WriteFile(filepath.Join(dir, f), b, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// cgroupDirs lists the lab's cgroups, deepest first.
func cgroupDirs(root, name string) []string {
	var dirs []string
	for _, h := range hierarchies(root) {
		_ = filepath.WalkDir(filepath.Join(h, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // one that vanished is none of the lab's any more
		})
	}
	sort.Slice(dirs, func(i, j int) bool { return len(dirs[i]) > len(dirs[j]) })
	return dirs
}

// removeCgroups ends whatever is left in the lab's cgroups and removes them.
func removeCgroups(root, name string, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		dirs := cgroupDirs(root, name)
		if len(dirs) == 0 {
			return nil
		}
		var last error
		for _, dir := range dirs {
			for _, pid := range cgroupProcs(dir) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				last = err
			}
		}
		if last == nil {
			continue
		}
		if time.Now().After(end) {
			return fmt.Errorf("cgroup stays: %w", last)
		}
	}
}

func cgroupProcs(dir string) []int {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}
