package sandbox

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// builders are the capabilities that installing software into a root needs.
// None of them reaches out of a sandbox without devices: there is no mounting,
// no tracing, no opening by handle, no raw network.
var builders = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID,
	unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_MKNOD,
	unix.CAP_AUDIT_WRITE, unix.CAP_SETFCAP,
}

// dropRights takes ids and capabilities from this process for good. The
// calling goroutine is locked to its thread and starts the command from it:
// what only counts at exec is dropped for that thread alone.
func dropRights(o *order) error {
	var keep uint64
	if o.KeepCapabilities {
		for _, c := range builders {
			keep |= 1 << c
		}
	} else if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return &stepError{op: "forbid new privileges", err: err}
	}
	for c := 0; c <= lastCapability(); c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && err != unix.EINVAL {
			return &stepError{op: "drop capabilities", rights: true, err: err}
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return &stepError{op: "drop capabilities", err: err}
	}
	if o.Mode == Root {
		// The syscall package's forms change every thread.
		for _, step := range []struct {
			op string
			do func() error
		}{
			{"drop groups", func() error { return syscall.Setgroups(nil) }},
			{"set the group id", func() error { return syscall.Setresgid(o.GID, o.GID, o.GID) }},
			{"set the user id", func() error { return syscall.Setresuid(o.UID, o.UID, o.UID) }},
		} {
			if err := step.do(); err != nil {
				return &stepError{op: step.op, rights: true, err: err}
			}
		}
	}
	if err := capset(keep); err != nil {
		return &stepError{op: "drop capabilities", err: err}
	}
	return nil
}

// capset limits the capabilities of every thread to keep. With cgo, which
// only tests are built with, Go can't reach the other threads: they keep
// theirs, out of reach because the init is not dumpable.
func capset(keep uint64) error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	for i := range d {
		part := uint32(keep >> (32 * i))
		d[i] = unix.CapUserData{Effective: part, Permitted: part}
	}
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&d[0])), 0)
	if e == unix.ENOTSUP {
		_, _, e = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&d[0])), 0)
	}
	if e != 0 {
		return e
	}
	return nil
}

// lastCapability is the highest capability that this kernel knows.
func lastCapability() int {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n < 64 {
			return n
		}
	}
	return unix.CAP_LAST_CAP
}
