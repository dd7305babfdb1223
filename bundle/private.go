package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// privatePrefix begins the names of private copies.
const privatePrefix = "kuroko-bundle-"

// privateFolder makes a folder for one process (mode 0700) and removes those
// that killed processes left beside it. The lock says that the owner lives:
// the system drops it, however the process ends.
func privateFolder(base string) (dir string, lock *os.File, err error) {
	if base == "" {
		base = os.TempDir()
	}
	sweepPrivate(base)
	for range 10 {
		if dir, err = os.MkdirTemp(base, privatePrefix); err != nil {
			return "", nil, err
		}
		lock, err = lockFolder(dir)
		if err == nil {
			return dir, lock, nil
		}
		// Another process took it for a left one, between the two calls.
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK) {
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	return "", nil, fmt.Errorf("%s: folders vanish as fast as they are made: %w", base, err)
}

// lockFolder takes the lock and makes sure that the folder still stands where
// it did.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	held, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Lstat(dir); err == nil && !os.SameFile(held, there) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sweepPrivate removes what nobody holds any more. Folders of other users are
// theirs; what can't be removed is left.
func sweepPrivate(base string) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), privatePrefix) {
			continue
		}
		dir := filepath.Join(base, e.Name())
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || int(st.Uid) != os.Geteuid() {
			continue
		}
		if lock, err := lockFolder(dir); err == nil {
			_ = os.RemoveAll(dir)
			lock.Close()
		}
	}
}
