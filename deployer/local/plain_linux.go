package local

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// plainAttributes: a process group of its own, that ends with us.
func plainAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// makeDevices makes the few devices that programs open, where that is allowed.
func makeDevices(dev *os.File) {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "random": 8, "urandom": 9} {
		if unix.Mknodat(int(dev.Fd()), name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))) == nil {
			_ = unix.Fchmodat(int(dev.Fd()), name, 0o666, 0) // whatever our umask is
		}
	}
}
