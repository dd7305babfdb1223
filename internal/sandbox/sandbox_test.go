//go:build linux

package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// onlyDetect, in the environment, makes this program print what it detects.
const onlyDetect = "KUROKO_TEST_DETECT"

func TestMain(m *testing.M) {
	sandbox.Main()
	if os.Getenv(onlyDetect) != "" {
		mode, reason := sandbox.Detect(context.Background())
		_, err := sandbox.Start(context.Background(), sandbox.Spec{Root: "/", Argv: []string{"true"}})
		fmt.Printf("%s\n%s\n%t %v\n", mode, reason, errors.Is(err, sandbox.ErrForbidden), err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestUnprivileged runs the tests of this package again as an ordinary user.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user; the other tests run as this user already")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^Test[^U]", "-test.v="+strconv.FormatBool(testing.Verbose()))
	if testing.Short() {
		cmd.Args = append(cmd.Args, "-test.short")
	}
	tmp := t.TempDir()
	for _, dir := range []string{tmp, filepath.Dir(tmp)} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Env = []string{"TMPDIR=" + tmp, "PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// modes runs f in every mode that this process may use.
func modes(t *testing.T, f func(t *testing.T, m sandbox.Mode)) {
	t.Helper()
	for _, m := range []sandbox.Mode{sandbox.Root, sandbox.UserNS} {
		t.Run(string(m), func(t *testing.T) {
			if m == sandbox.Root && os.Geteuid() != 0 {
				t.Skip("mode root needs root")
			}
			p, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: m, Root: hostTools(t), Binds: toolBinds, Argv: []string{"/usr/bin/true"}})
			if errors.Is(err, sandbox.ErrForbidden) {
				t.Skipf("not possible on this machine: %v", err)
			}
			if err == nil {
				err = p.Wait()
			}
			if err != nil {
				t.Fatalf("the smallest sandbox: %v", err)
			}
			f(t, m)
		})
	}
}

var toolBinds = []sandbox.Bind{{Source: "/usr", Target: "/usr", ReadOnly: true}}

// hostTools is a root that lacks everything but the way to the host's /usr,
// which toolBinds brings.
func hostTools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range []string{"bin", "sbin", "lib", "lib64"} {
		to, err := os.Readlink("/" + n)
		if err != nil {
			if _, err := os.Stat("/" + n); err != nil {
				continue
			}
			t.Skipf("needs a system whose /%s is a link into /usr", n)
		}
		if err := os.Symlink(to, filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sh runs script in the sandbox and returns what it wrote to stdout.
func sh(t *testing.T, s sandbox.Spec, script string) (string, error) {
	t.Helper()
	var out, errOut bytes.Buffer
	s.Stdout, s.Stderr = &out, &errOut
	s.Argv = []string{"/bin/sh", "-c", script}
	if s.Root == "" && s.Lower == nil {
		s.Root = hostTools(t)
	}
	s.Binds = append(slices.Clone(toolBinds), s.Binds...)
	if s.Env == nil {
		s.Env = []string{"PATH=/usr/bin:/bin"}
	}
	p, err := sandbox.Start(t.Context(), s)
	if err != nil {
		return "", err
	}
	err = p.Wait()
	if errOut.Len() > 0 {
		t.Logf("stderr: %s", errOut.String())
	}
	return out.String(), err
}

func mustSh(t *testing.T, s sandbox.Spec, script string) string {
	t.Helper()
	out, err := sh(t, s, script)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out
}

func TestSeesOnlyWhatItWasGiven(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		secret := filepath.Join(t.TempDir(), "secret")
		write(t, secret, "password")
		got := mustSh(t, sandbox.Spec{Mode: m, Env: []string{"ONLY=this", "PATH=/usr/bin"}}, `
			test -e `+secret+` && echo leaked a file
			ls / | tr '\n' ' '; echo
			env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= | sort
			hostname
			ls /proc | grep -c '^[0-9]' | tr '\n' ' '
			for p in /proc/[0-9]*; do tr '\0' '\n' < $p/environ 2>/dev/null | grep -e HOME -e GOPATH; done
			ls -l /proc/self/fd | grep -c -e pipe -e socket -e /dev/ -e /tmp
			awk '{print $5}' /proc/self/mountinfo | sort | tr '\n' ' '; echo
			grep `+filepath.Dir(secret)+` /proc/self/mountinfo
			true
		`)
		lines := strings.Split(got, "\n")
		if lines[0] != "bin dev lib lib64 proc sbin tmp usr " && lines[0] != "bin dev lib proc sbin tmp usr " {
			t.Errorf("/ holds %q", lines[0])
		}
		if lines[1] != "ONLY=this" || !strings.HasPrefix(lines[2], "PATH=") || lines[3] != "sandbox" {
			t.Errorf("environment and host name: %q", lines[1:4])
		}
		if strings.Contains(got, "leaked") || strings.Contains(got, "HOME=") {
			t.Errorf("something of the caller is visible:\n%s", got)
		}
		for _, mount := range strings.Fields(lines[len(lines)-2]) {
			if !slices.ContainsFunc([]string{"/", "/usr", "/dev", "/proc"}, func(p string) bool { return mount == p || strings.HasPrefix(mount, p+"/") && p != "/" }) {
				t.Errorf("unexpected mount %s", mount)
			}
		}
	})
}

func TestIDs(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		for _, id := range []int{0, 65532} {
			t.Run(strconv.Itoa(id), func(t *testing.T) {
				got := mustSh(t, sandbox.Spec{Mode: m, UID: id, GID: id}, `id -u; id -g; umask; grep -e ^Cap -e ^NoNewPrivs /proc/self/status; cat /proc/1/environ 2>&1 >/dev/null | grep -c denied; echo x > /dev/null && head -c 4 /dev/zero | wc -c`)
				want := fmt.Sprintf("%d\n%d\n0022\nCapInh:\t%016d\nCapPrm:\t%016d\nCapEff:\t%016d\nCapBnd:\t%016d\nCapAmb:\t%016d\nNoNewPrivs:\t1\n1\n4\n", id, id, 0, 0, 0, 0, 0)
				if got != want {
					t.Errorf("got\n%swant\n%s", got, want)
				}
			})
		}
	})
}

func TestReadOnlyBindIsReadOnly(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "f"), "original")
		file := filepath.Join(t.TempDir(), "one")
		write(t, file, "single")
		rw := t.TempDir()
		got := mustSh(t, sandbox.Spec{Mode: m, Binds: []sandbox.Bind{
			{Source: dir, Target: "/ro", ReadOnly: true},
			{Source: file, Target: "/deep/er/one", ReadOnly: true},
			{Source: rw, Target: "/rw"},
		}}, `
			cat /ro/f /deep/er/one; echo
			(echo bad > /ro/f) 2>/dev/null && echo overwrote
			(echo bad > /ro/new) 2>/dev/null && echo created
			(echo bad > /deep/er/one) 2>/dev/null && echo overwrote one
			mount -o remount,rw /ro 2>/dev/null && echo remounted
			rm -f /ro/f 2>/dev/null && echo removed
			echo good > /rw/new; echo done
			(echo 1 > /proc/sys/kernel/printk) 2>/dev/null && echo wrote a sysctl
			(echo core > /proc/sys/kernel/core_pattern) 2>/dev/null && echo wrote a sysctl
			true`)
		if got != "originalsingle\ndone\n" {
			t.Errorf("got %q", got)
		}
		if b, _ := os.ReadFile(filepath.Join(rw, "new")); string(b) != "good\n" {
			t.Errorf("the writable bind did not receive the file: %q", b)
		}
	})
}

// A file, and then the folder that holds it, as SSL_CERT_FILE and SSL_CERT_DIR
// are: the folder covers the file's mount.
func TestBindThatCoversAnother(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		dir := t.TempDir()
		file, other := filepath.Join(dir, "file"), filepath.Join(dir, "sub", "gone")
		write(t, file, "one")
		if err := os.Mkdir(filepath.Dir(other), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, other, "two")
		empty := t.TempDir()
		got := mustSh(t, sandbox.Spec{Mode: m, Binds: []sandbox.Bind{
			{Source: file, Target: "/certs/file", ReadOnly: true}, {Source: dir, Target: "/certs", ReadOnly: true},
			{Source: other, Target: "/more/sub/gone", ReadOnly: true}, {Source: empty, Target: "/more", ReadOnly: true},
		}}, `cat /certs/file; ls -A /more; for f in /certs/file /certs/new /certs/sub/gone /more/new; do (echo bad > $f) 2>/dev/null && echo wrote $f; done; true`)
		if got != "one" {
			t.Errorf("got %q", got)
		}
	})
}

// A link in the root must not lead a mount point out of it.
func TestMountPointsStayInside(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		root, outside := hostTools(t), t.TempDir()
		for name, to := range map[string]string{"evil": outside, "etc": "../../../.." + outside} {
			if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
		src := filepath.Join(t.TempDir(), "src")
		write(t, src, "bound")
		_, err := sh(t, sandbox.Spec{Mode: m, Root: root, Binds: []sandbox.Bind{{Source: src, Target: "/evil/x"}, {Source: src, Target: "/etc/y"}}}, `cat /evil/x /etc/y`)
		if left, _ := os.ReadDir(outside); len(left) > 0 {
			t.Errorf("the mount point was made outside: %v (error %v)", left, err)
		}
	})
}

// The set-up works below a folder of the machine for a moment: that must not
// show in a root or a bind that holds the folder.
func TestSetUpDoesNotShow(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		for _, place := range []string{"/tmp", "/var", "/run"} {
			mine := filepath.Join(place, filepath.Base(t.TempDir())+"-shows")
			if err := os.Mkdir(mine, 0o755); err != nil {
				t.Logf("not checked: %v", err)
				continue
			}
			defer os.Remove(mine)
			root := sandbox.Spec{Mode: m, Root: "/", Argv: []string{"/bin/sh", "-c", "test -d " + mine + " && test ! -e /tmp/skeleton"}}
			bind := sandbox.Spec{Mode: m, Root: hostTools(t), Binds: append(slices.Clone(toolBinds), sandbox.Bind{Source: place, Target: "/seen"}),
				Argv: []string{"/bin/sh", "-c", "test -d /seen/" + filepath.Base(mine) + " && test ! -e /seen/skeleton"}}
			for what, s := range map[string]sandbox.Spec{"root": root, "bind": bind} {
				p, err := sandbox.Start(t.Context(), s)
				if err == nil {
					err = p.Wait()
				}
				if err != nil {
					t.Errorf("%s of %s: %v", what, place, err)
				}
			}
		}
	})
}

// Debian's and systemd's /etc/resolv.conf: a link to what isn't there yet.
func TestBindOverDanglingLink(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		root := hostTools(t)
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../run/stub/resolv.conf", filepath.Join(root, "etc/resolv.conf")); err != nil {
			t.Fatal(err)
		}
		src := filepath.Join(t.TempDir(), "resolv.conf")
		write(t, src, "nameserver 192.0.2.1")
		if got := mustSh(t, sandbox.Spec{Mode: m, Root: root, Binds: []sandbox.Bind{{Source: src, Target: "/etc/resolv.conf", ReadOnly: true}}}, `cat /etc/resolv.conf`); got != "nameserver 192.0.2.1" {
			t.Errorf("got %q", got)
		}
	})
}

// The changes, and what is below them, are shown to process 1 alone.
func TestChanges(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		for _, upper := range []string{"", t.TempDir()} {
			low := hostTools(t)
			write(t, filepath.Join(low, "doomed"), "x")
			got, err := sh(t, sandbox.Spec{Mode: m, Lower: []string{t.TempDir(), low}, Upper: upper, AsInit: true, Changes: true, ExtraFiles: []*os.File{os.Stdin}},
				`rm /doomed; echo new > /made; cd /proc/self/fd/4/; echo *; test -c doomed && cat made; cat /proc/self/fd/5/doomed; echo; echo no > made || echo no > /proc/self/fd/5/x || echo read-only`)
			if errors.Is(err, sandbox.ErrNoOverlay) {
				t.Skipf("not possible on this machine: %v", err)
			}
			if want := "doomed made\nnew\nx\nread-only\n"; err != nil || got != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		}
	})
}

func TestOverlay(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		top, upper := t.TempDir(), t.TempDir()
		write(t, filepath.Join(top, "greeting"), "top")
		bottom := hostTools(t)
		write(t, filepath.Join(bottom, "greeting"), "bottom")
		write(t, filepath.Join(bottom, "doomed"), "x")
		// A character that overlay's options would have to quote.
		odd := filepath.Join(t.TempDir(), `a,b:c\d`)
		if err := os.Rename(bottom, odd); err != nil {
			t.Fatal(err)
		}
		spec := sandbox.Spec{Mode: m, Lower: []string{top, odd}, Upper: upper}
		got, err := sh(t, spec, `cat /greeting; echo new > /made; rm /doomed; echo change >> /greeting; touch /tmp/t`)
		if errors.Is(err, sandbox.ErrNoOverlay) {
			t.Skipf("not possible on this machine: %v", err)
		}
		if err != nil || got != "top" {
			t.Fatalf("got %q, %v", got, err)
		}
		var names []string
		list, _ := os.ReadDir(upper)
		for _, e := range list {
			names = append(names, e.Name())
		}
		if want := []string{"doomed", "greeting", "made", "tmp"}; !slices.Equal(names, want) {
			t.Errorf("changes %v, want %v: nothing of our own may be among them", names, want)
		}
		if st, err := os.Lstat(filepath.Join(upper, "doomed")); err != nil || st.Mode()&os.ModeCharDevice == 0 {
			t.Errorf("the removal is not recorded: %v %v", st, err)
		}
		if b, _ := os.ReadFile(filepath.Join(odd, "greeting")); string(b) != "bottom" {
			t.Errorf("a lower folder changed: %q", b)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(upper), ".sandbox-work-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		spec.Upper = ""
		got = mustSh(t, spec, `echo in memory > /made; cat /made; id -u; test -w / && echo writable`)
		if got != "in memory\n0\nwritable\n" {
			t.Errorf("changes in memory: %q", got)
		}
		spec.TmpfsBytes = 1 << 20
		if _, err := sh(t, spec, `head -c 3000000 /dev/zero > /big`); err == nil {
			t.Error("3 MB went into a limit of 1 MiB")
		}
	})
}

func TestNetworkIsTheCallers(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		want, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Skip("needs /proc/net")
		}
		port := fmt.Sprintf("0100007F:%04X", l.Addr().(*net.TCPAddr).Port)
		if !strings.Contains(string(want), port) {
			t.Skip("the listener is not in /proc/net/tcp here")
		}
		if got := mustSh(t, sandbox.Spec{Mode: m, UID: 65532, GID: 65532}, `grep -c `+port+` /proc/net/tcp`); got != "1\n" {
			t.Errorf("the caller's listener is seen %s times", got)
		}
	})
}

// A builder may change owners (as far as ids exist) and modes, but not mount,
// and a device node that it makes can't be opened.
func TestKeepCapabilities(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		got := mustSh(t, sandbox.Spec{Mode: m, KeepCapabilities: true, AsInit: true}, `
			echo $$; touch /f; chmod 0 /f; echo w > /f && cat /f
			mount -t tmpfs x /tmp 2>/dev/null && echo mounted
			mount -o remount,rw /usr 2>/dev/null && echo remounted
			mknod /zero c 1 5 2>/dev/null && head -c 1 /zero 2>/dev/null | wc -c | grep 1 && echo opened a device
			mknod /dev/zero2 c 1 5 2>/dev/null && (head -c 1 /dev/zero2 | wc -c | grep 1) 2>/dev/null && echo opened a device
			(echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo wrote a sysctl
			grep NoNewPrivs /proc/self/status`)
		if got != "1\nw\nNoNewPrivs:\t0\n" {
			t.Errorf("got %q", got)
		}
		if m == sandbox.Root {
			if got := mustSh(t, sandbox.Spec{Mode: m, KeepCapabilities: true}, `touch /f; chown 1000:1001 /f; stat -c %u:%g /f`); got != "1000:1001\n" {
				t.Errorf("chown: %q", got)
			}
		}
	})
}

// The program that set the sandbox up can't be overwritten from inside.
func TestProgramIsOutOfReach(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		got := mustSh(t, sandbox.Spec{Mode: m, KeepCapabilities: true}, `ls -l /proc/1/fd /proc/1/exe >/dev/null 2>&1 && echo process 1 is open; (exec 3>>/proc/1/exe) 2>/dev/null && echo program is writable; true`)
		if got != "" {
			t.Errorf("got %q", got)
		}
	})
}

func TestManySandboxesLeaveNothing(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		count := func() (fds int, mounts string) {
			list, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			return len(list), string(b)
		}
		root := hostTools(t)
		spec := sandbox.Spec{Mode: m, Root: root}
		mustSh(t, spec, `true`)
		fds, mounts := count()
		for range 5 {
			mustSh(t, spec, `true`)
			if _, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: m, Root: root, Argv: []string{"/missing"}}); err == nil {
				t.Fatal("a missing program started")
			}
		}
		after, mountsAfter := count()
		if after > fds || mounts != mountsAfter {
			t.Errorf("descriptors %d then %d; mounts changed: %t", fds, after, mounts != mountsAfter)
		}
	})
}

func TestDetect(t *testing.T) {
	m, reason := sandbox.Detect(t.Context())
	t.Logf("%s (%s)", m, reason)
	if (m == sandbox.Root) != (reason == "") {
		t.Errorf("mode %s with reason %q", m, reason)
	}
	for _, works := range []sandbox.Mode{sandbox.Root, sandbox.UserNS} {
		p, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: works, Root: hostTools(t), Binds: toolBinds, Argv: []string{"/usr/bin/true"}})
		if err == nil {
			if p.Wait() == nil && m != works {
				t.Errorf("mode %s works, detected is %s: %s", works, m, reason)
			}
			break
		}
	}
	_, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: sandbox.None, Root: "/", Argv: []string{"true"}})
	if !errors.Is(err, sandbox.ErrForbidden) {
		t.Errorf("mode none: %v", err)
	}
	if os.Geteuid() != 0 {
		_, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: sandbox.Root, Root: "/", Argv: []string{"true"}})
		if !errors.Is(err, sandbox.ErrForbidden) || !strings.Contains(err.Error(), "CAP_SYS_ADMIN") {
			t.Errorf("mode root without root: %v", err)
		}
	}
}

// A sandbox is itself a machine that allows no sandbox: the capability is
// gone, and because parts of /proc are covered there is no new one.
func TestDetectSaysWhatIsMissing(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		// A copy, because go test's own folder may be closed to other users.
		self := filepath.Join(t.TempDir(), "detect")
		program, err := os.ReadFile("/proc/self/exe")
		if err == nil {
			err = os.WriteFile(self, program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		// Not 0, which can't be mapped into another namespace without CAP_SETFCAP.
		got := mustSh(t, sandbox.Spec{
			Mode: m, UID: 65532, GID: 65532, Binds: []sandbox.Bind{{Source: self, Target: "/detect", ReadOnly: true}}, Env: []string{onlyDetect + "=1"},
		}, `exec /detect`)
		lines := strings.Split(got, "\n")
		if lines[0] != "none" || !strings.Contains(lines[1], "CAP_SYS_ADMIN") || !strings.Contains(lines[1], "procMount: Unmasked") {
			t.Errorf("detected %q: does not name both missing rights", lines[:2])
		}
		if !strings.HasPrefix(lines[2], "true ") || !strings.Contains(lines[2], "CAP_SYS_ADMIN") {
			t.Errorf("Start: %q", lines[2])
		}
	})
}

func TestSpecIsChecked(t *testing.T) {
	_, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: "vm", Upper: "/x", Dir: "rel", UID: 5, KeepCapabilities: true, Binds: []sandbox.Bind{{Target: "/../"}}})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`"vm"`, "Lower and Root", "Upper needs Lower", "Argv", `"rel"`, "KeepCapabilities", "/../"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not name %s", err, want)
		}
	}
}

// Nobody gets into a set-up by guessing the program's name.
func TestMainRefusesOutsiders(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"kuroko-sandbox", ""}
	out, err := cmd.CombinedOutput()
	var x *exec.ExitError
	if !errors.As(err, &x) || x.ExitCode() != 125 {
		t.Errorf("%v: %s", err, out)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOneWriterKeepsTheOrder(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		var both bytes.Buffer
		p, err := sandbox.Start(t.Context(), sandbox.Spec{
			Mode: m, Root: hostTools(t), Binds: toolBinds, Argv: []string{"/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; echo $i >&2; done"},
			Stdout: &both, Stderr: &both,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Fields(both.String()), strings.Fields("1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8"); !slices.Equal(got, want) {
			t.Errorf("output %q, want %q", got, want)
		}
	})
}

func ExampleStart() {
	p, err := sandbox.Start(context.Background(), sandbox.Spec{
		Root: "/srv/rootfs", UID: 65532, GID: 65532,
		Binds: []sandbox.Bind{{Source: "/srv/code", Target: "/app", ReadOnly: true}},
		Argv:  []string{"node", "main.js"}, Dir: "/app", Env: []string{"PORT=8080"},
		Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if errors.Is(err, sandbox.ErrForbidden) {
		return // decide what a weaker form is
	}
	_ = p.Wait()
}

// Folders laid over each other are shown as one, with what an upper one hides
// gone, and can't be written to.
func TestBindOfSeveralFolders(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		low, top := t.TempDir(), t.TempDir()
		for f, text := range map[string]string{low + "/both": "low", low + "/low": "low", low + "/gone": "low", top + "/both": "top"} {
			if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		// A character device 0:0 is how overlay says: not here any more.
		if err := syscall.Mknod(top+"/gone", syscall.S_IFCHR, 0); err != nil {
			t.Skipf("needs Linux 5.8 or root: %v", err)
		}
		out, err := sh(t, sandbox.Spec{Mode: m, Root: hostTools(t), Binds: append([]sandbox.Bind{
			{Lower: []string{top, low}, Target: "/seen"}, {Lower: []string{low}, Target: "/one"},
		}, toolBinds...)}, "cd /seen; cat both low; ls | tr '\\n' ' '; cat /one/gone; echo x > new || echo refused; echo x > /one/new || echo refused")
		if errors.Is(err, sandbox.ErrNoOverlay) {
			t.Skip(err)
		}
		if want := "toplowboth low lowrefused\nrefused\n"; err != nil || out != want {
			t.Errorf("got %q, %v; want %q", out, err, want)
		}
	})
}

// Files and folders that are in memory alone, and parts of earlier binds.
func TestBindsOfItsOwn(t *testing.T) {
	modes(t, func(t *testing.T, m sandbox.Mode) {
		const secret = "kuroko-in-memory-only"
		image, changes, upper := hostTools(t), t.TempDir(), t.TempDir()
		for _, dir := range []string{"a", "b"} {
			if err := os.MkdirAll(filepath.Join(image, "from", dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(image, "from/b/f"), []byte("of b"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/b", filepath.Join(image, "from/a/link")); err != nil {
			t.Fatal(err)
		}
		out, err := sh(t, sandbox.Spec{
			Mode: m, Lower: []string{image}, Upper: changes, UID: 65532, GID: 65532,
			Binds: []sandbox.Bind{
				{Target: "/run/secrets/one", File: &sandbox.File{Data: []byte(secret), Mode: 0o400, UID: 65532, GID: 65532}},
				{Target: "/run/secrets/empty", File: &sandbox.File{Mode: 0o444, UID: 65532, GID: 65532}},
				{Target: "/memory", Memory: 1 << 20},
				{Target: "/part", Lower: []string{filepath.Join(image, "from"), upper}, Part: "/a/link"},
				{Target: "/part-file", Lower: []string{filepath.Join(image, "from")}, Part: "b/f"},
				{Target: "/tmp", Memory: 1 << 20},
			},
		}, `cat /run/secrets/one; stat -c ' %a %u %s' /run/secrets/one /run/secrets/empty; cat /part/f
			(echo x > /run/secrets/one) 2>/dev/null && echo wrote the secret
			(echo x > /part/f) 2>/dev/null && echo wrote the part
			cat /part-file; ls -l /part-file | cut -c1
			grep -c ' /memory ' /proc/mounts; ls -A /memory | wc -l; stat -c %a /memory /tmp; true`)
		want := secret + " 400 65532 21\n 444 65532 0\nof bof b-\n1\n0\n755\n1777\n"
		if err != nil || out != want {
			t.Errorf("got %q, %v; want %q", out, err, want)
		}
		err = filepath.WalkDir(changes, func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(p)
			if strings.Contains(string(data), secret) {
				t.Errorf("%s holds the secret", p)
			}
			return err
		})
		if left, readErr := os.ReadDir(changes); err != nil || readErr != nil || len(left) > 0 {
			t.Errorf("mount points are among the changes: %v, %v, %v", left, err, readErr)
		}
		_, err = sh(t, sandbox.Spec{Mode: m, Lower: []string{image}, Binds: []sandbox.Bind{{Target: "/x", Lower: []string{image}, Part: "/from/none"}}}, "true")
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/from/none") {
			t.Errorf("a part that is not there: %v", err)
		}
	})
}
