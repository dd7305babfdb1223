// Package debian makes base, build and runner images from Debian packages,
// without a daemon and without root.
//
// The machine's own apt resolves and downloads a recipe's packages into a
// private folder; its sources and its trust are used as they are. The
// archives are then read as data: no maintainer script runs, nothing is
// unpacked over a file system. What those scripts would have made (the CA
// bundle, users, time zone) is generated.
//
// The result depends on the recipe and on the packages' sums only: sorted
// entries, times 0, owners 0:0, so that a user namespace with a single id can
// unpack it.
package debian

import (
	"errors"
	"fmt"
	"strings"
)

// What callers must tell apart. Network trouble is a [*builder.Unavailable],
// a full disk wraps syscall.ENOSPC.
var (
	// ErrNoApt means that this machine has no apt-get or dpkg-deb.
	ErrNoApt = errors.New("this machine has no apt")
	// ErrUnsafe is wrapped by errors about an archive that wants to write
	// outside its image or holds what an image must not hold.
	ErrUnsafe = errors.New("unsafe archive")
	// ErrConflict is wrapped when two packages claim one path.
	ErrConflict = errors.New("packages conflict")
	// ErrRecipe is wrapped when the packages lack what the recipe counts on: a
	// link's target, a library that another program needs.
	ErrRecipe = errors.New("the recipe does not fit the packages")
	// ErrNotBuilt is wrapped when an image was never made on this machine.
	ErrNotBuilt = errors.New("not built yet")
)

// PackageError says that apt can't give a recipe what it asks for.
type PackageError struct {
	Wanted []string // as the recipe writes them
	// Offered lists the versions that the machine's sources do have.
	Offered []string
	Detail  string // apt's own words
}

func (e *PackageError) Error() string {
	s := "the machine's package sources don't offer " + strings.Join(e.Wanted, ", ")
	if len(e.Offered) > 0 {
		s += " (offered: " + strings.Join(e.Offered, ", ") + ")"
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// ExpectError says that an image would not be what its name promises.
type ExpectError struct {
	Image string
	Want  string // "nodejs 18"
	Got   string // "nodejs 20.19.2-1"
}

func (e *ExpectError) Error() string {
	return fmt.Sprintf("%s must hold %s, but would hold %s", e.Image, e.Want, e.Got)
}
