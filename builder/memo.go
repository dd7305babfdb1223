package builder

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// memo is what an engine remembers, in this process and, with a folder, on
// this machine. All of it is a hint: losing it costs requests, and an entry
// that can't be read is not there. Safe for concurrent use, also by several
// processes.
type memo struct {
	dir  string // "" keeps nothing on disk
	life time.Duration
	now  func() time.Time

	mu     sync.Mutex
	kept   map[string][]byte               // entries of the folder, kind and key joined
	due    [][2]string                     // kind and key of entries that flush writes
	blobs  map[string]map[string]time.Time // digest → repository → when it was seen there
	absent map[string]bool                 // tags that this process has looked for
	cells  map[string]*cell
}

// cell is work that is done once in a process.
type cell struct {
	mu   sync.Mutex
	done bool
	v    any
}

func newMemo(dir string, life time.Duration, now func() time.Time) *memo {
	return &memo{dir: dir, life: life, now: now, kept: map[string][]byte{}, blobs: map[string]map[string]time.Time{}, absent: map[string]bool{}, cells: map[string]*cell{}}
}

// once gives the value of f for key; concurrent callers wait for one run. A
// failed run is not remembered.
func once[T any](m *memo, key string, f func() (T, error)) (T, error) {
	m.mu.Lock()
	c := m.cells[key]
	if c == nil {
		c = &cell{}
		m.cells[key] = c
	}
	m.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return c.v.(T), nil
	}
	v, err := f()
	if err == nil {
		c.v, c.done = v, true
	}
	return v, err
}

// lock holds key until the returned function is called.
func (m *memo) lock(key string) (unlock func()) {
	m.mu.Lock()
	c := m.cells["lock "+key]
	if c == nil {
		c = &cell{}
		m.cells["lock "+key] = c
	}
	m.mu.Unlock()
	c.mu.Lock()
	return c.mu.Unlock
}

func (m *memo) file(kind, key string) string { return filepath.Join(m.dir, kind, Key(key)+".json") }

// load reads an entry into v.
func (m *memo) load(kind, key string, v any) bool {
	m.mu.Lock()
	b, ok := m.kept[kind+" "+key]
	m.mu.Unlock()
	if !ok && m.dir != "" {
		var err error
		b, err = os.ReadFile(m.file(kind, key))
		ok = err == nil
	}
	return ok && json.Unmarshal(b, v) == nil
}

// save writes an entry; a folder that can't be written to forgets.
func (m *memo) save(kind, key string, v any) {
	m.later(kind, key, v)
	m.flush()
}

// later is save for an entry that flush writes: to make a file can take as long
// as a request, and nobody has to wait for it in between.
func (m *memo) later(kind, key string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[kind+" "+key] = b
	if m.dir != "" {
		m.due = append(m.due, [2]string{kind, key})
	}
}

// flush writes what is due. An entry that was dropped meanwhile is not.
func (m *memo) flush() {
	m.mu.Lock()
	due := m.due
	m.due = nil
	m.mu.Unlock()
	var all sync.WaitGroup
	for _, d := range due {
		m.mu.Lock()
		b, ok := m.kept[d[0]+" "+d[1]]
		m.mu.Unlock()
		if ok {
			all.Go(func() { m.write(d[0], d[1], b) })
		}
	}
	all.Wait()
}

func (m *memo) write(kind, key string, b []byte) {
	name := m.file(kind, key)
	if os.MkdirAll(filepath.Dir(name), 0o755) != nil {
		return
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return
	}
	_, err = tmp.Write(b)
	if cerr := tmp.Close(); err != nil || cerr != nil || os.Rename(tmp.Name(), name) != nil {
		os.Remove(tmp.Name())
	}
}

func (m *memo) drop(kind, key string) {
	m.mu.Lock()
	delete(m.kept, kind+" "+key)
	m.mu.Unlock()
	if m.dir != "" {
		os.Remove(m.file(kind, key))
	}
}

// holds tells whether repo is believed to hold the blob.
func (m *memo) holds(repo name.Repository, h v1.Hash) bool {
	m.mu.Lock()
	at, ok := m.blobs[h.String()][repo.Name()]
	m.mu.Unlock()
	if !ok {
		var seen time.Time
		if !m.load("blob", repo.Name()+"@"+h.String(), &seen) {
			return false
		}
		at = seen
	}
	age := m.now().Sub(at)
	return age >= 0 && age < m.life
}

// saw remembers that repo holds the blob. For other processes it is due.
func (m *memo) saw(repo name.Repository, h v1.Hash) {
	if now, known := m.sawNow(repo, h); !known {
		m.later("blob", repo.Name()+"@"+h.String(), now)
	}
}

// sawNow is saw for this process alone: of a blob that no later build asks for.
func (m *memo) sawNow(repo name.Repository, h v1.Hash) (now time.Time, known bool) {
	now = m.now()
	m.mu.Lock()
	where := m.blobs[h.String()]
	if where == nil {
		where = map[string]time.Time{}
		m.blobs[h.String()] = where
	}
	_, known = where[repo.Name()]
	where[repo.Name()] = now
	m.mu.Unlock()
	return now, known
}

// elsewhere finds another repository of the same registry that this process
// has seen the blob in: it can be mounted from there.
func (m *memo) elsewhere(repo name.Repository, h v1.Hash) *name.Repository {
	m.mu.Lock()
	defer m.mu.Unlock()
	for where := range m.blobs[h.String()] {
		if where == repo.Name() {
			continue
		}
		if r, err := name.NewRepository(where); err == nil && r.RegistryStr() == repo.RegistryStr() {
			return &r
		}
	}
	return nil
}

// distrust forgets that repo holds the blobs.
func (m *memo) distrust(repo name.Repository, blobs []v1.Hash) {
	for _, h := range blobs {
		m.mu.Lock()
		delete(m.blobs[h.String()], repo.Name())
		m.mu.Unlock()
		m.drop("blob", repo.Name()+"@"+h.String())
	}
}

// looked remembers that a tag was looked for and not there.
func (m *memo) looked(tag name.Tag) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.absent[tag.Name()] = true
}

func (m *memo) wasAbsent(tag name.Tag) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.absent[tag.Name()]
}

func (m *memo) appeared(tag name.Tag) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.absent, tag.Name())
}
