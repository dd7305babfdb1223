package bundle

import (
	"errors"
	"fmt"
	"strings"
)

// What went wrong, compared with errors.Is. Errors of this package carry at
// most one of them; an error with none is the machine's (disk full) or the
// context's.
var (
	// ErrUnavailable: the store did not do its part and nothing here could stand
	// in. A later try may help (exit 75).
	ErrUnavailable = errors.New("store unavailable")
	// ErrUntrusted: a signature, sum, size or sequence is not what it must be.
	// Nothing was unpacked or executed (exit 78).
	ErrUntrusted = errors.New("not trustworthy")
	// ErrRevoked: the pipeline's bundle was revoked since it was chosen. Only a
	// new pipeline may choose another (exit 79).
	ErrRevoked = errors.New("bundle was revoked")
	// ErrNone: there is no channel of that name, or nothing in it applies to the
	// project (exit 78).
	ErrNone = errors.New("no bundle for this project")
	// ErrRunner: the runner that the bundle names can't be started here: no blob
	// for this platform, or the started one is still not the named one (exit 78).
	ErrRunner = errors.New("the bundle's runner can't be started")
	// ErrContent: files of the bundle contradict themselves or the format; see
	// [ContentError] for positions (exit 78).
	ErrContent = errors.New("bundle content is wrong")
	// ErrConflict: somebody else published meanwhile. Read the channel again.
	ErrConflict = errors.New("the channel was changed by somebody else meanwhile")
)

// failure is an error of one kind. Its text is the cause alone: the kind is
// for errors.Is.
type failure struct{ kind, err error }

func (f *failure) Error() string {
	s := f.err.Error()
	if strings.HasPrefix(s, "oss: ") { // the store's own words
		return s
	}
	return "bundle: " + s
}

func (f *failure) Unwrap() []error { return []error{f.kind, f.err} }

// failf makes an error of the given kind.
func failf(kind error, format string, args ...any) error {
	return &failure{kind, fmt.Errorf(format, args...)}
}

// reason is err without our own prefix, for use inside a longer sentence.
func reason(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.err.Error()
	}
	return strings.TrimPrefix(err.Error(), "bundle: ")
}
