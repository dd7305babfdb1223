package kaniko_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

// A builder that is killed takes everything in the sandbox with it, leaves no
// mount, and what it left on disk goes with the next build.
func TestKilledBuilderLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		tmp, mounts := t.TempDir(), mountCount(t)
		seconds := strconv.Itoa(100000 + os.Getpid()) // nobody else sleeps as long
		if err := os.WriteFile(filepath.Join(tmp, "Dockerfile"), []byte("FROM "+l.base+"\nRUN (sleep "+seconds+" &) ; echo at the sleep; sleep "+seconds+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(l.executor, "--context", tmp, "--dockerfile", "Dockerfile", "--destination", l.must("team/killed:1").String())
		cmd.Env = []string{"TMPDIR=" + tmp, "HOME=" + tmp, "PATH=" + os.Getenv("PATH")}
		log, err := cmd.StderrPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		var said []string
		for lines := bufio.NewScanner(log); lines.Scan() && lines.Text() != "at the sleep"; {
			said = append(said, lines.Text())
		}
		// The shell says so before either of them sleeps.
		for end := time.Now().Add(time.Minute); len(sleepers(t, seconds)) < 2; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("nothing to kill:\n%s", strings.Join(said, "\n"))
			}
		}
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			left := sleepers(t, seconds)
			if len(left) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("still there: %v", left)
			}
		}
		if n := mountCount(t); n != mounts {
			t.Errorf("%d mounts, %d before", n, mounts)
		}
		left, _ := filepath.Glob(filepath.Join(tmp, "kuroko-kaniko-*"))
		if len(left) != 1 {
			t.Fatalf("the killed build's folder: %v", left)
		}
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(left[0], old, old); err != nil {
			t.Fatal(err)
		}
		o := l.options()
		o.TmpDir = tmp
		if _, err := kaniko.New(o).BuildTo(t.Context(), kaniko.Source{Dockerfile: []byte("FROM " + l.base + "\nRUN true\n")}, []name.Tag{l.must("team/next:1")}); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(tmp, "kuroko-kaniko-*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// sleepers are the processes that sleep so many seconds.
func sleepers(t *testing.T, seconds string) (pids []string) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("sleep\x00"+seconds)) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

func mountCount(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

// The folder for temporary files may lie in the context, as with a runner
// whose work tree is all that can be written.
func TestTemporaryFilesInTheContext(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644); err != nil {
			t.Fatal(err)
		}
		o := l.options()
		o.TmpDir = dir
		var digests []string
		for range 2 {
			res, err := kaniko.New(o).BuildTo(t.Context(), kaniko.Source{Dockerfile: []byte("FROM " + l.base + "\nCOPY . /x/\n"), Context: os.DirFS(dir)}, []name.Tag{l.must("team/in:1")})
			if err != nil {
				t.Fatal(err)
			}
			digests = append(digests, res.Digest.String())
		}
		if digests[0] != digests[1] {
			t.Errorf("the folder is in the image: %v", digests)
		}
	})
}
