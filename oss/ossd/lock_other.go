//go:build !unix

package ossd

import "os"

// lockFile opens path; this system has no lock that the kernel gives free.
func lockFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
}
