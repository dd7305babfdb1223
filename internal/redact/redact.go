// Package redact keeps secrets out of everything that is written: logs,
// reports, error messages. It also finds them base64-encoded, alone or inside
// a longer text, because a registry's auth is base64 of user:password and
// GitLab masks exact values only.
package redact

import (
	"encoding/base64"
	"io"
	"os"
	"sort"
	"strings"
	"sync"
)

// Mask is what stands in place of a secret.
const Mask = "[MASKED]"

// minLength is the shortest value treated as a secret: masking "1" or "test"
// would make every log unreadable and protect nothing.
const minLength = 6

// Redactor replaces a fixed set of secrets. The zero value replaces nothing.
// It is safe for concurrent use.
type Redactor struct {
	replacer *strings.Replacer
	longest  int
	needles  []string
}

// New returns a Redactor for the values, each also as base64 (standard and
// URL alphabet) at any of the three alignments it can have inside a longer
// encoded text. Values shorter than 6 bytes are left alone.
func New(values ...string) *Redactor {
	set := map[string]bool{}
	for _, v := range values {
		for _, line := range append(strings.Split(v, "\n"), v) {
			line = strings.TrimSpace(line)
			if len(line) < minLength {
				continue
			}
			set[line] = true
			for _, enc := range encoded(line) {
				set[enc] = true
			}
		}
	}
	r := &Redactor{}
	for n := range set {
		r.needles = append(r.needles, n)
		r.longest = max(r.longest, len(n))
	}
	// Longest first, so that a secret inside another does not split it.
	sort.Slice(r.needles, func(i, j int) bool {
		if len(r.needles[i]) != len(r.needles[j]) {
			return len(r.needles[i]) > len(r.needles[j])
		}
		return r.needles[i] < r.needles[j]
	})
	pairs := make([]string, 0, 2*len(r.needles))
	for _, n := range r.needles {
		pairs = append(pairs, n, Mask)
	}
	r.replacer = strings.NewReplacer(pairs...)
	return r
}

// encoded returns the parts of base64 texts that depend on v alone, for v at
// byte offset 0, 1 and 2 of a three-byte group.
func encoded(v string) []string {
	var out []string
	for offset := range 3 {
		padded := strings.Repeat("\x00", offset) + v
		whole := len(padded) / 3 * 3
		first := 0
		if offset > 0 {
			first = 3 // the group that mixes v with what stands before it
		}
		if whole-first < minLength {
			continue
		}
		part := []byte(padded[first:whole])
		out = append(out, base64.RawStdEncoding.EncodeToString(part), base64.RawURLEncoding.EncodeToString(part))
	}
	return out
}

// String returns s with every secret replaced.
func (r *Redactor) String(s string) string {
	if r == nil || r.replacer == nil {
		return s
	}
	return r.replacer.Replace(s)
}

// Writer returns a writer that redacts what passes through to w. It holds
// back the end of what was written while that could be the start of a secret;
// Close writes the rest and does not close w.
func (r *Redactor) Writer(w io.Writer) *Writer { return &Writer{r: r, w: w} }

// Writer is a redacting writer. It is safe for concurrent use.
type Writer struct {
	r    *Redactor
	w    io.Writer
	mu   sync.Mutex
	rest string
}

func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.r.String(w.rest + string(p))
	keep := w.r.openEnd(s)
	w.rest = s[len(s)-keep:]
	if _, err := io.WriteString(w.w, s[:len(s)-keep]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Terminal tells whether what passes through is shown to a person at once.
func (w *Writer) Terminal() bool {
	f, ok := w.w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Close writes what was held back.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := io.WriteString(w.w, w.r.String(w.rest))
	w.rest = ""
	return err
}

// openEnd is how many bytes at the end of s could begin a secret.
func (r *Redactor) openEnd(s string) int {
	if r == nil {
		return 0
	}
	for n := min(r.longest-1, len(s)); n > 0; n-- {
		end := s[len(s)-n:]
		for _, needle := range r.needles {
			if len(needle) > n && strings.HasPrefix(needle, end) {
				return n
			}
		}
	}
	return 0
}
