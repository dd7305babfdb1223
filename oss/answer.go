package oss

import (
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Answer is a refusal as the service (or a proxy on the way) sent it.
type Answer struct {
	Status    int
	Code      string // "NoSuchKey"; empty when the answer is not the service's XML
	Message   string // one printable line
	RequestID string
	// RetryAfter is what the server asked for; 0 when it did not.
	RetryAfter time.Duration
	Location   string    // where a redirect points, without query
	Date       time.Time // the server's clock; zero when it did not say
}

// maxAnswer bounds how much of a refusal is read. The service's are below 2 KiB.
const maxAnswer = 64 << 10

// ReadAnswer reads and closes resp.Body.
func ReadAnswer(resp *http.Response) *Answer {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // half a message is better than none
	resp.Body.Close()
	return parseAnswer(resp.StatusCode, resp.Header, raw)
}

func parseAnswer(status int, h http.Header, raw []byte) *Answer {
	if len(raw) == 0 { // answers to HEAD carry the message in a header
		raw, _ = base64.StdEncoding.DecodeString(h.Get("X-Oss-Err"))
	}
	var body struct {
		XMLName                  xml.Name `xml:"Error"`
		Code, Message, RequestId string
	}
	if xml.Unmarshal(raw, &body) != nil {
		body.Code, body.Message, body.RequestId = "", "", ""
	}
	a := &Answer{
		Status:     status,
		Code:       oneLine(body.Code, 80),
		Message:    oneLine(body.Message, 300),
		RequestID:  oneLine(body.RequestId, 80),
		RetryAfter: retryAfter(h, time.Now()),
	}
	if a.RequestID == "" {
		a.RequestID = oneLine(h.Get("X-Oss-Request-Id"), 80)
	}
	if u, err := url.Parse(h.Get("Location")); err == nil {
		u.RawQuery, u.User, u.Fragment = "", nil, ""
		a.Location = oneLine(u.String(), 300)
	}
	if t, err := http.ParseTime(h.Get("Date")); err == nil {
		a.Date = t
	}
	return a
}

// Error is for the rare caller that prints an Answer itself; see [Call.Fail].
func (a *Answer) Error() string {
	s := strconv.Itoa(a.Status)
	if a.Code != "" {
		s += " " + a.Code
	} else if t := http.StatusText(a.Status); t != "" {
		s += " " + t
	}
	if a.Message != "" {
		s += ": " + a.Message
	}
	if a.RequestID != "" {
		s += " (request " + a.RequestID + ")"
	}
	return s
}

// retryAfter reads the standard header (seconds or a date) and the service's
// own (milliseconds). Nonsense and the past are 0; more than a day is a day.
func retryAfter(h http.Header, now time.Time) time.Duration {
	d := time.Duration(0)
	if v := strings.TrimSpace(h.Get("Retry-After")); v != "" {
		if n, err := strconv.ParseInt(v, 10, 32); err == nil {
			d = time.Duration(n) * time.Second
		} else if t, err := http.ParseTime(v); err == nil {
			d = t.Sub(now)
		}
	} else if n, err := strconv.ParseInt(h.Get("X-Oss-Qos-Delay-Time"), 10, 32); err == nil {
		d = time.Duration(n) * time.Millisecond
	}
	return min(max(d, 0), 24*time.Hour)
}

// oneLine makes foreign text safe for a log: one line of printable characters,
// at most limit bytes of it.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// refused is the contract's error for a.
func (c Call) refused(a *Answer) error {
	plain := func(err error) error { return fmt.Errorf("oss: %s: %w", c.Op, err) }
	said := func(err error) error { return fmt.Errorf("oss: %s: %w: %s answered %w", c.Op, err, c.Endpoint, a) }
	switch a.Status {
	case http.StatusNotModified:
		if c.Conditional {
			return plain(ErrNotModified)
		}
	case http.StatusNotFound:
		if a.Code == "NoSuchBucket" {
			return said(ErrNoBucket)
		}
		return plain(ErrNotFound)
	case http.StatusConflict:
		if a.Code == "FileAlreadyExists" {
			return plain(ErrExists)
		}
	case http.StatusRequestedRangeNotSatisfiable:
		return plain(ErrRange)
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		err := said(ErrDenied)
		if a.Code == "RequestTimeTooSkewed" && !a.Date.IsZero() {
			return fmt.Errorf("%w; this machine's clock differs from the server's by %s", err, time.Since(a.Date).Abs().Round(time.Minute))
		}
		return err
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return c.unavailable(a)
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
	default:
		if a.Status >= 500 {
			return c.unavailable(a)
		}
		if a.Status/100 == 3 && a.Location != "" {
			return fmt.Errorf("oss: %s: %s redirects to %s (%d); configure that address if it is the right one", c.Op, c.Endpoint, a.Location, a.Status)
		}
	}
	return fmt.Errorf("oss: %s: %s answered %w", c.Op, c.Endpoint, a)
}

func (c Call) unavailable(a *Answer) error {
	return &Unavailable{Op: c.Op, Endpoint: c.Endpoint, Status: a.Status, Code: a.Code, RequestID: a.RequestID, RetryAfter: a.RetryAfter, Err: a}
}
