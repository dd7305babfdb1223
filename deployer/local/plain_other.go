//go:build !linux

package local

import (
	"os"
	"syscall"
)

// plainAttributes: a process group of its own. Only Linux can tie it to us.
func plainAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func makeDevices(*os.File) {}
