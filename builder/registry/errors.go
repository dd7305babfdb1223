package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// What callers tell apart with errors.Is.
var (
	// ErrNotFound: the registry has no such manifest or blob.
	ErrNotFound = errors.New("not found")
	// ErrDenied: credentials are missing, wrong or not enough.
	ErrDenied = errors.New("access denied")
	// ErrBlobUnknown: a manifest names a blob that its repository does not hold.
	ErrBlobUnknown = errors.New("the registry does not hold a blob of this manifest")
	// ErrDamaged: what was sent or received has another size or digest than
	// it should.
	ErrDamaged = errors.New("damaged")
)

// Error is an operation that a registry did not do.
type Error struct {
	Op       string // "push layer sha256:… to team/app"
	Host     string
	Status   int      // HTTP status, 0 when there was no answer
	Codes    []string // OCI error codes of the answer
	Message  string   // what the registry said, at most a line
	Attempts int
	Wait     time.Duration // what Retry-After asked for
	Err      error         // the cause; nil when Status says it all
}

func (e *Error) Error() string {
	s := "registry: " + e.Op + ": " + e.Host
	if e.Status == 0 {
		s += ":"
	}
	s += " " + e.Reason()
	if e.Attempts > 1 {
		s += fmt.Sprintf(" (tried %d times)", e.Attempts)
	}
	return s
}

// Reason is the message without operation, host and number of tries.
func (e *Error) Reason() string {
	var parts []string
	if e.Status != 0 {
		s := fmt.Sprintf("answered %d %s", e.Status, http.StatusText(e.Status))
		if len(e.Codes) > 0 {
			s += " (" + strings.Join(e.Codes, ", ") + ")"
		}
		parts = append(parts, s)
	}
	if e.Message != "" {
		parts = append(parts, e.Message)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	s := strings.Join(parts, ": ")
	if e.Wait > 0 {
		s += fmt.Sprintf("; it asks to wait %v", e.Wait)
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Is maps statuses and codes to the package's sentinels.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	case ErrDenied:
		return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
	case ErrBlobUnknown:
		return e.has("BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN")
	}
	return false
}

func (e *Error) has(codes ...string) bool {
	for _, have := range e.Codes {
		for _, c := range codes {
			if have == c {
				return true
			}
		}
	}
	return false
}

// Temporary tells whether a later try may find the registry well.
func (e *Error) Temporary() bool {
	var source *Error
	switch {
	case errors.As(e.Err, &source): // what should be sent could not be read
		return source.Temporary()
	case e.Status == 0:
		return !errors.Is(e.Err, errInsecureRealm) && !errors.Is(e.Err, errAddress)
	case e.Status == http.StatusTooManyRequests, e.Status == http.StatusRequestTimeout:
		return true
	}
	return e.Status >= 500 && e.Status != http.StatusNotImplemented || errors.Is(e.Err, ErrDamaged)
}

// explain reads the body of a bad answer: OCI's JSON, or the first line of
// whatever else it is.
func (e *Error) explain(contentType string, body []byte) {
	var oci struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &oci) == nil && len(oci.Errors) > 0 {
		var messages []string
		for _, x := range oci.Errors {
			if x.Code != "" {
				e.Codes = append(e.Codes, oneLine(x.Code, 60))
			}
			if x.Message != "" {
				messages = append(messages, oneLine(x.Message, 200))
			}
			if len(e.Codes) == 5 {
				break
			}
		}
		e.Message = strings.Join(messages, "; ")
		return
	}
	if strings.HasPrefix(contentType, "text/plain") || contentType == "" {
		e.Message = oneLine(string(body), 200)
	}
}

// oneLine keeps the first line of s, printable and at most n bytes: it comes
// from outside and goes to a log.
func oneLine(s string, n int) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
