// Package redact keeps secrets out of everything that is written: logs,
// reports, error messages. It also finds them base64-encoded, alone or inside
// a longer text, because a registry's auth is base64 of user:password and
// GitLab masks exact values only.
package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
)

// Mask is what stands in place of a secret.
const Mask = "[MASKED]"

// MinLength is the shortest value treated as a secret: masking "1" or "test"
// would make every log unreadable and protect nothing.
const MinLength = 6

// Redactor replaces secrets. The zero value replaces nothing until some are
// added. It is safe for concurrent use.
type Redactor struct {
	mu    sync.RWMutex
	words words
}

// words is a set of secrets in all their forms.
type words struct {
	values   []string
	replacer *strings.Replacer
	longest  int
	needles  []string
}

// New returns a Redactor for the values, each also as base64 (standard and
// URL alphabet) at any of the three alignments it can have inside a longer
// encoded text, and as JSON writes it. Values shorter than 6 bytes are left
// alone.
func New(values ...string) *Redactor {
	r := &Redactor{}
	r.Add(values...)
	return r
}

// Add has the Redactor replace more values, also where its writers have been
// handed out already: which variables are secret may stand in a file that is
// read later. What was written before stays.
func (r *Redactor) Add(values ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.words.values)
	for _, v := range values {
		if !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	r.words = wordsOf(all)
}

func (r *Redactor) now() words {
	if r == nil {
		return words{}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.words
}

func wordsOf(values []string) words {
	set := map[string]bool{}
	for _, v := range values {
		for _, line := range append(strings.Split(v, "\n"), v) {
			line = strings.TrimSpace(line)
			if len(line) < MinLength {
				continue
			}
			set[line] = true
			for _, enc := range encoded(line) {
				set[enc] = true
			}
			if quoted, err := json.Marshal(line); err == nil {
				set[string(quoted[1:len(quoted)-1])] = true
			}
		}
	}
	w := words{values: values}
	for n := range set {
		w.needles = append(w.needles, n)
		w.longest = max(w.longest, len(n))
	}
	// Longest first, so that a secret inside another does not split it.
	sort.Slice(w.needles, func(i, j int) bool {
		if len(w.needles[i]) != len(w.needles[j]) {
			return len(w.needles[i]) > len(w.needles[j])
		}
		return w.needles[i] < w.needles[j]
	})
	pairs := make([]string, 0, 2*len(w.needles))
	for _, n := range w.needles {
		pairs = append(pairs, n, Mask)
	}
	w.replacer = strings.NewReplacer(pairs...)
	return w
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
		if whole-first < MinLength {
			continue
		}
		part := []byte(padded[first:whole])
		out = append(out, base64.RawStdEncoding.EncodeToString(part), base64.RawURLEncoding.EncodeToString(part))
	}
	return out
}

// String returns s with every secret replaced.
func (r *Redactor) String(s string) string { return r.now().replace(s) }

func (w words) replace(s string) string {
	if w.replacer == nil {
		return s
	}
	return w.replacer.Replace(s)
}

// Find returns the number of the first value that a reader's text holds as it
// is; -1 for none. Of values that are too short to be secrets, and of white
// space around them, nothing is looked for.
func Find(r io.Reader, values []string) (int, error) {
	longest := 0
	var needles [][]byte
	for _, v := range values {
		n := bytes.TrimSpace([]byte(v))
		if len(n) < MinLength {
			n = nil
		}
		needles = append(needles, n)
		longest = max(longest, len(n))
	}
	if longest == 0 {
		return -1, nil
	}
	buf := make([]byte, 64<<10+longest)
	kept := 0
	for {
		n, err := r.Read(buf[kept:])
		text := buf[:kept+n]
		for i, needle := range needles {
			if needle != nil && bytes.Contains(text, needle) {
				return i, nil
			}
		}
		if err == io.EOF {
			return -1, nil
		}
		if err != nil {
			return -1, err
		}
		kept = copy(buf, text[max(0, len(text)-longest+1):])
	}
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
	words := w.r.now()
	s := words.replace(w.rest + string(p))
	keep := words.openEnd(s)
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
func (w words) openEnd(s string) int {
	for n := min(w.longest-1, len(s)); n > 0; n-- {
		end := s[len(s)-n:]
		for _, needle := range w.needles {
			if len(needle) > n && strings.HasPrefix(needle, end) {
				return n
			}
		}
	}
	return 0
}
