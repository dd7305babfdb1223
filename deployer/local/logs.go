package local

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
)

// logFile is where a revision's output goes: at most two files of max bytes.
// It is safe for concurrent use.
type logFile struct {
	name string
	max  int64

	mu   sync.Mutex
	f    *os.File
	size int64
	gone bool // removed: what is still written has no place any more
}

// Write never fails: a full disk must not stop a function.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return len(p), nil
	}
	if l.f != nil && l.size+int64(len(p)) > l.max {
		l.close()
		_ = os.Rename(l.name, l.name+".1")
	}
	if l.f == nil {
		f, err := os.OpenFile(l.name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return len(p), nil
		}
		l.f, l.size = f, 0
		if st, err := f.Stat(); err == nil {
			l.size = st.Size()
		}
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
	return len(p), nil
}

func (l *logFile) close() {
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
}

// Close lets go of the file; a later Write opens it again.
func (l *logFile) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.close()
}

// remove forgets what was written.
func (l *logFile) remove() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.close()
	l.gone = true
	return errors.Join(removeFile(l.name), removeFile(l.name+".1"))
}

// maxLine is how much of one line a message may carry.
const maxLine = 2000

// tail returns the last n lines, oldest first.
func (l *logFile) tail(n int) ([]string, error) {
	var lines []string
	for _, name := range []string{l.name + ".1", l.name} {
		b, err := readEnd(name, 256<<10)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if s := strings.TrimRight(string(b), "\n"); s != "" {
			lines = append(lines, strings.Split(s, "\n")...)
		}
	}
	lines = lines[max(0, len(lines)-max(0, n)):]
	for i, line := range lines {
		if len(line) > maxLine {
			line = line[:maxLine] + "…"
		}
		lines[i] = strings.ToValidUTF8(strings.TrimRight(line, "\r"), "�")
	}
	return lines, nil
}

// readEnd reads at most the last n bytes, from a line's start.
func readEnd(name string, n int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, st.Size()-n)
	b := make([]byte, st.Size()-from)
	got, err := f.ReadAt(b, from)
	if got < len(b) && err != nil {
		return nil, err
	}
	if from > 0 {
		if _, rest, ok := strings.Cut(string(b), "\n"); ok {
			return []byte(rest), nil
		}
	}
	return b, nil
}
