package builder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/npm"
	"github.com/kuroko-faas/kuroko/builder/pip"
	"github.com/kuroko-faas/kuroko/builder/registry"
)

// treeError says whose tree it was. The developer can change only the code.
func treeError(t Tree, err error) error {
	var fe *layer.FileError
	if !errors.As(err, &fe) {
		return err
	}
	what := fmt.Sprintf("%s: %q can't go into the image", t.Title, fe.Path)
	next := "remove the file or change what it is"
	switch {
	case errors.Is(err, layer.ErrChanged):
		next = "stop what writes to the file while the image is built"
	case errors.Is(err, layer.ErrLinkLeaves):
		next = "replace the link by a copy, or point it inside the project"
	}
	return &InputError{What: what, Next: next, Err: fe.Err}
}

// explain turns the errors of the packages below into those of [Engine].
func explain(op string, err error) error {
	var input *InputError
	var away *Unavailable
	if errors.As(err, &input) || errors.As(err, &away) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if e := explainNPM(err); e != nil {
		return e
	}
	if e := explainPip(err); e != nil {
		return e
	}
	if e := explainPackage(err); e != nil {
		return e
	}
	var re *registry.Error
	if !errors.As(err, &re) {
		return fmt.Errorf("builder: %w", err)
	}
	switch {
	case errors.Is(err, registry.ErrDenied):
		return fmt.Errorf("builder: %s: %w: %w", op, ErrDenied, err)
	case errors.Is(err, ErrNoBase), errors.Is(err, ErrNotFound), errors.Is(err, registry.ErrNotFound) && !re.Temporary():
		return fmt.Errorf("builder: %w", err)
	case re.Temporary(), errors.Is(err, registry.ErrBlobUnknown):
		return &Unavailable{Op: re.Op, Host: re.Host, Attempts: re.Attempts, Err: reason{re.Reason(), err}}
	}
	return fmt.Errorf("builder: %s: %w", op, err)
}

func explainNPM(err error) error {
	var (
		lock *npm.LockError
		step *npm.OutOfStepError
		plat *npm.UnsupportedError
	)
	switch {
	case errors.As(err, &lock):
		next := "correct " + lock.File
		if lock.File == "package-lock.json" {
			next = "run " + npm.UpdateLock + " and commit package-lock.json"
		}
		return &InputError{What: "read " + lock.File, Next: next, Err: lock.Err}
	case errors.As(err, &step):
		return &InputError{What: "package-lock.json is out of step with package.json", Next: "run " + step.Fix + " and commit package-lock.json",
			Err: errors.New(strings.Join(step.Problems, "; "))}
	case errors.As(err, &plat):
		return &InputError{What: installing, Next: "make " + plat.Package + " an optional dependency, or leave it out", Err: err}
	}
	return nil
}

// installing is what fails where a package can't be had or used.
const installing = "install the dependencies"

func explainPip(err error) error {
	var (
		lock *pip.LockError
		step *pip.OutOfStepError
		need *pip.NeedsInstallerError
	)
	switch {
	case errors.As(err, &lock):
		return &InputError{What: "read requirements.txt", Next: "correct requirements.txt", Err: err}
	case errors.As(err, &step):
		return &InputError{What: "requirements.txt is incomplete", Next: "run " + pip.Lock + " and commit requirements.txt", Err: errors.New(strings.Join(step.Problems, "; "))}
	case errors.As(err, &need):
		return &InputError{What: installing, Next: "write what those files say into requirements.txt (" + pip.Lock + "), or install with pip in a Dockerfile: build.builder: dockerfile",
			Err: fmt.Errorf("requirements.txt names other files of the repository, which no key of an image knows: %s", strings.Join(need.Local, "; "))}
	}
	return nil
}

// explainPackage is for what a package registry gave or did not give.
func explainPackage(err error) error {
	var (
		pkg *fetch.PackageError
		get *fetch.Error
	)
	switch {
	case errors.As(err, &pkg):
		next := "check that the package registry is the one that the lock file was made with"
		if errors.Is(err, npm.ErrNotPublished) || errors.Is(err, pip.ErrNotPublished) {
			next = "check that " + pkg.Package + " is published at " + pkg.Host + ", or choose another version"
		}
		return &InputError{What: installing, Next: next, Err: err}
	case errors.As(err, &get) && (get.Status == http.StatusUnauthorized || get.Status == http.StatusForbidden):
		return fmt.Errorf("builder: %w: %w", ErrDenied, err)
	case errors.As(err, &get):
		return &Unavailable{Op: "fetch " + get.Package, Host: get.Host, Attempts: get.Attempts, Err: reason{get.Reason(), err}}
	}
	return nil
}

// reason is an error in the words that are left when operation, host and
// number of tries are told elsewhere.
type reason struct {
	words string
	err   error
}

func (r reason) Error() string { return r.words }
func (r reason) Unwrap() error { return r.err }
