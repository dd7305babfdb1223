package bundle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"time"
)

// cache is a folder on the node that jobs of many projects share. Anybody may
// have written to it, so nothing in it is trusted: what is read is verified
// whenever it is read, and used from memory. Without a folder every method
// finds and keeps nothing.
//
//	chan/<org>~<name>.json   last known good document, with the ETag it came with
//	man/<sha256> pack/<sha256> bin/<sha256>   as in the store
//	lock/<sha256>            flock: one download for all jobs of the node
type cache struct{ dir string }

// open makes the folder where needed. The error is for a warning at most: a
// job must not fail because a cache does.
func (c cache) open() (*os.Root, error) {
	if c.dir == "" {
		return nil, fs.ErrNotExist
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	return os.OpenRoot(c.dir)
}

// read returns an entry, or nothing.
func (c cache) read(name string, limit int64) []byte {
	if c.dir == "" {
		return nil
	}
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		return nil
	}
	defer root.Close()
	raw, err := readFile(root, name, limit)
	if err != nil {
		return nil
	}
	now := time.Now()
	_ = root.Chtimes(name, now, now) // for prune; not being the owner is fine
	return raw
}

// has says whether an entry of that name is there, whatever it holds.
func (c cache) has(name string) bool {
	if c.dir == "" {
		return false
	}
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		return false
	}
	defer root.Close()
	_, err = root.Lstat(name)
	return err == nil
}

// keepEntries bounds each folder of the cache.
const keepEntries = 16

// write keeps data as folder/name and drops the folder's oldest entries.
func (c cache) write(folder, name string, data []byte) error {
	if c.dir == "" {
		return nil
	}
	root, err := c.open()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	path := folder + "/" + name
	if in, err := root.Lstat(path); err == nil && !in.Mode().IsRegular() {
		// Planted; a folder would keep the rename from working.
		if err := root.RemoveAll(path); err != nil {
			return err
		}
	}
	if err := writeFile(root, path, data, 0o644); err != nil {
		return err
	}
	prune16(root, folder)
	return nil
}

// prune16 removes the entries that were used longest ago.
func prune16(root *os.Root, folder string) {
	es, err := fs.ReadDir(root.FS(), folder)
	if err != nil || len(es) <= keepEntries {
		return
	}
	type aged struct {
		name string
		at   time.Time
	}
	var all []aged
	for _, e := range es {
		if in, err := e.Info(); err == nil && in.Mode().IsRegular() {
			all = append(all, aged{e.Name(), in.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.name, b.name)) })
	for i, e := range all {
		if i >= keepEntries {
			_ = root.Remove(folder + "/" + e.name) // somebody else may have
		}
	}
}

// lockWait is how long a job waits for another one's download. A lock that is
// held longer belongs to somebody slow or hostile.
const lockWait = 30 * time.Second

// lock waits for the node-wide lock on name. It gives up quietly, since the
// lock only saves downloads; unlock must be called in any case. The error is
// ctx's.
func (c cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	none := func() {}
	root, err := c.open()
	if err != nil {
		return none, nil
	}
	defer root.Close()
	if err := root.Mkdir("lock", 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return none, nil
	}
	f, err := root.OpenFile("lock/"+name, os.O_CREATE|os.O_RDWR|nonblock, 0o644)
	if err != nil {
		return none, nil
	}
	deadline := time.Now().Add(lockWait)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			prune16(root, "lock")
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(deadline) {
			f.Close()
			return none, nil
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-ctx.Done():
			f.Close()
			return none, ctx.Err()
		}
	}
}

// state is the last known good document as the cache keeps it.
type state struct {
	ETag    string   `json:"etag"`
	Roots   [][]byte `json:"roots,omitempty"`
	Channel []byte   `json:"channel"` // envelope
}

func stateFile(org, name string) string { return org + "~" + name + ".json" }

// document returns the cached document if it verifies, and the reason if one
// is there that doesn't.
func (c cache) document(org, name string, rs roots) (*document, error) {
	raw := c.read("chan/"+stateFile(org, name), 3*maxEnvelope)
	if raw == nil {
		return nil, nil
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, failf(ErrUntrusted, "cached channel document: %w", err)
	}
	rs, err := rs.extend(s.Roots)
	if err != nil {
		return nil, err
	}
	d, err := openChannel(s.Channel, rs, org, name)
	if err != nil {
		return nil, err
	}
	d.etag = s.ETag
	return d, nil
}

// keep stores d as last known good unless the cache holds a newer one.
func (c cache) keep(d *document, rs roots) error {
	if c.dir == "" {
		return nil
	}
	if old, err := c.document(d.Org, d.Name, rs); err == nil && old != nil && (old.Seq > d.Seq || old.Seq == d.Seq && old.etag == d.etag) {
		return nil
	}
	raw, err := json.Marshal(state{ETag: d.etag, Roots: d.roots.chain, Channel: d.raw})
	if err != nil {
		return err
	}
	return c.write("chan", stateFile(d.Org, d.Name), raw)
}
