package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Down ends the lab whose state is in dir and removes everything of it: its
// processes however they were orphaned, link, cgroups, mounts and state. A lab
// that isn't there is no error.
func Down(ctx context.Context, dir string, log func(string, ...any)) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := down(dir, log); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), os.Remove(dir+".lock"))
}

func down(dir string, log func(string, ...any)) error {
	c, err := Load(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	start := time.Now()
	found := false
	if pid, ok := c.initPID(); ok {
		found = true
		// All processes of a pid namespace end with its first.
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill the lab's process %d: %w", pid, err)
		}
	}
	if err := killAll(c.Processes, 20*time.Second); err != nil {
		return err
	}
	if err := removeLink(c.Link); err != nil {
		return fmt.Errorf("link %s: %w", c.Link, err)
	}
	if err := removeCgroups(cgroupRoot, c.cgroup(), 20*time.Second); err != nil {
		return err
	}
	for _, m := range mountsBelow(dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	// config.json goes last: without it nobody would find the rest again.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "config.json" {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(c.path("config.json")); err != nil {
		return err
	}
	if found {
		log("down after %.1f s", time.Since(start).Seconds())
	}
	return nil
}

// mountsBelow lists mounts at or below dir that this process sees, the deepest
// first.
func mountsBelow(dir string) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			found = append([]string{f[4]}, found...)
		}
	}
	return found
}

// Traces lists what a lab has on the machine, one line each: processes, mounts,
// links, cgroups, files. An empty list is a lab that left nothing.
func Traces(dir, id string) []string {
	c := Config{ID: id, State: dir}
	var out []string
	for _, p := range c.Processes() {
		out = append(out, fmt.Sprintf("process %d %s", p.PID, p.Name))
	}
	for _, m := range mountsBelow(dir) {
		out = append(out, "mount "+m)
	}
	if l := "kl-" + id; hasLink(l) {
		out = append(out, "link "+l)
	}
	for _, d := range cgroupDirs(cgroupRoot, c.cgroup()) {
		out = append(out, "cgroup "+d)
	}
	if _, err := os.Stat(dir); err == nil {
		out = append(out, "state "+dir)
	}
	return out
}
