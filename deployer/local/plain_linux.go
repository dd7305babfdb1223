package local

import "syscall"

// plainAttributes: a process group of its own, that ends with us.
func plainAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
