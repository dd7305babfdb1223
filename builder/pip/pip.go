// Package pip makes a dependency layer straight from a requirements.txt with
// hashes: the wheels it names are found in a package index, checked against
// its hashes and written into a layer, as pip install --require-hashes
// --no-compile would have installed them, but without pip or Python.
//
// What needs pip itself (a version without a wheel for the platform, a
// requirement without hash, addresses, editable installs) is told by
// [ErrNeedsInstaller], and every such line is named.
package pip

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNeedsInstaller is what a [*NeedsInstallerError] is.
	ErrNeedsInstaller = errors.New("needs pip itself")
	// ErrIntegrity is the cause when a wheel is none of those that the file's
	// hashes allow.
	ErrIntegrity = errors.New("the archive does not match the hashes of requirements.txt")
	// ErrNotPublished is the cause when the index does not have a version.
	ErrNotPublished = errors.New("the package index does not have this version")
)

// Lock is the command that makes a requirements.txt with hashes.
const Lock = "pip-compile --generate-hashes"

// LockError is a requirements.txt that can't be read, all problems at once.
type LockError struct{ Problems []string } // "line 3: …"

func (e *LockError) Error() string { return strings.Join(e.Problems, "; ") }

// NeedsInstallerError names what only pip can do.
type NeedsInstallerError struct {
	Reasons []string
	// Local are those that other files of the repository decide: then
	// requirements.txt alone does not say what is installed.
	Local []string
}

func (e *NeedsInstallerError) Error() string {
	return "needs pip itself: " + strings.Join(e.Reasons, "; ")
}

// Is makes it an [ErrNeedsInstaller].
func (e *NeedsInstallerError) Is(target error) bool { return target == ErrNeedsInstaller }

func needs(format string, args ...any) error {
	return &NeedsInstallerError{Reasons: []string{fmt.Sprintf(format, args...)}}
}

// OutOfStepError is a file that lacks what its own packages require, or pins
// what they exclude.
type OutOfStepError struct{ Problems []string }

func (e *OutOfStepError) Error() string {
	return "requirements.txt is incomplete: " + strings.Join(e.Problems, "; ")
}

// Platform is what wheels are chosen for: CPython of a version on glibc.
type Platform struct {
	Minor int    // of Python 3: 11
	Glibc int    // minor of glibc 2: 36
	Arch  string // Go's name: amd64, arm64
}

// ParseABI reads the abi label of a base image: cp311-glibc2.36-amd64. The
// architecture is optional there and given apart.
func ParseABI(abi, arch string) (Platform, error) {
	p := Platform{Arch: arch}
	if _, err := fmt.Sscanf(abi, "cp3%d-glibc2.%d", &p.Minor, &p.Glibc); err != nil || p.Minor < 7 || p.Glibc < 17 {
		return p, fmt.Errorf("pip: %q is no ABI of CPython 3 on glibc", abi)
	}
	if p.machine() == "" {
		return p, fmt.Errorf("pip: no wheels are known for %s", arch)
	}
	return p, nil
}

func (p Platform) machine() string {
	return map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i686", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}[p.Arch]
}

// tags are what the platform runs, best first, in the order of the packaging
// library (PEP 425, 600).
func (p Platform) tags() []string {
	oldest := 17
	if p.Arch == "amd64" || p.Arch == "386" {
		oldest = 5
	}
	var plats []string
	for minor := p.Glibc; minor >= oldest; minor-- {
		plats = append(plats, fmt.Sprintf("manylinux_2_%d_%s", minor, p.machine()))
		if old := map[int]string{17: "2014", 12: "2010", 5: "1"}[minor]; old != "" {
			plats = append(plats, "manylinux"+old+"_"+p.machine())
		}
	}
	plats = append(plats, "linux_"+p.machine())
	var all []string
	on := func(python, abi string) {
		for _, plat := range plats {
			all = append(all, python+"-"+abi+"-"+plat)
		}
	}
	cp := fmt.Sprintf("cp3%d", p.Minor)
	py := []string{fmt.Sprintf("py3%d", p.Minor), "py3"}
	for minor := p.Minor - 1; minor >= 0; minor-- {
		py = append(py, fmt.Sprintf("py3%d", minor))
	}
	on(cp, cp)
	on(cp, "abi3")
	on(cp, "none")
	for minor := p.Minor - 1; minor >= 2; minor-- {
		on(fmt.Sprintf("cp3%d", minor), "abi3")
	}
	for _, python := range py {
		on(python, "none")
	}
	all = append(all, cp+"-none-any")
	for _, python := range py {
		all = append(all, python+"-none-any")
	}
	return all
}
