package fetch

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// ErrHostile is the cause when an archive tries to leave its folder or is
// larger than any honest one.
var ErrHostile = errors.New("the archive is not safe to unpack")

// PackageError is a package that can't be used as it was delivered.
type PackageError struct {
	Package string // name and version
	Host    string // the registry that delivered it
	Err     error
}

func (e *PackageError) Error() string { return fmt.Sprintf("%s from %s: %v", e.Package, e.Host, e.Err) }
func (e *PackageError) Unwrap() error { return e.Err }

// Bad is the error for what lies at an address and can't be used.
func Bad(pkg, address string, err error) error {
	host := ""
	if a, e := url.Parse(address); e == nil {
		host = a.Host
	}
	return &PackageError{Package: pkg, Host: host, Err: err}
}

// Error is a package registry that did not answer as it should; a later try
// may help.
type Error struct {
	Package  string
	Host     string
	Status   int // 0 when there was no answer
	Attempts int
	Err      error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("fetch %s: %s: %s", e.Package, e.Host, e.Reason())
	if e.Attempts > 1 {
		s += fmt.Sprintf(" (tried %d times)", e.Attempts)
	}
	return s
}

// Reason is the message without package, host and number of tries.
func (e *Error) Reason() string {
	switch {
	case e.Status == 0 && e.Err != nil:
		return e.Err.Error()
	case e.Err != nil:
		return fmt.Sprintf("answered %d: %v", e.Status, e.Err)
	}
	return fmt.Sprintf("answered %d", e.Status)
}

func (e *Error) Unwrap() error { return e.Err }

func (e *Error) temporary() bool {
	return e.Status == 0 || e.Status >= 500 || e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout
}
