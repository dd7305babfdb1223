package stages

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// knownSums are the sums of files as an earlier plan of the same work tree
// read them, each with what the file system said of the file then. They make
// `faas plan` as quick as `git status`, which does the same. A pipeline reads
// every file: what is built never depends on them.
//
// A sum counts only while device, inode, size, mode, mtime and ctime are what
// they were. Nobody can set a ctime, so a file of the same size whose mtime
// was put back is read again. What remains is a change within the clock tick
// of the one before: a file that had changed within racy before it was read is
// never remembered. Contents that git would convert (filters, LFS, line ends)
// are no matter, as they are in the blob ids of git's index: the sums are of
// the bytes in the work tree.
//
// The zero value knows nothing and remembers nothing. Reading is safe for
// concurrent use.
type knownSums struct {
	root  string // absolute, links resolved
	file  string // where they are kept
	dev   uint64 // of root: files elsewhere are always read
	since time.Time
	sums  map[string]knownSum
	seen  map[string]string // by file: sums that hold, as [Look] found
}

// knownSum is a file's sum, and how the file was when it was summed.
type knownSum struct {
	at  fileStat
	sum [sha256.Size]byte
}

// fileStat is what changes whenever a file does.
type fileStat struct {
	dev, ino     uint64
	size         int64
	mode         uint32
	mtime, ctime int64 // ns since 1970
}

// racy is the coarsest clock of a file system that may be trusted (FAT's two
// seconds), and half a second of the kernel's own.
const racy = 2500 * time.Millisecond

// maxKnown bounds the file that is read back: some 300,000 files.
const maxKnown = 64 << 20

// knownMagic starts the file; its number changes with the format and with what
// a sum is made of.
const knownMagic = "kuroko tree sums 1\n"

// Tree is the work tree, looked at while other things are done.
type Tree struct {
	cancel context.CancelFunc
	done   chan struct{}
	known  knownSums
	paths  []string // tracked
	err    error
}

// Look starts to list the files of the work tree at dir and to find out which
// of them are as an earlier plan saw them, whose sums are kept in a file below
// cache; an empty cache keeps nothing. The caller closes the Tree.
func Look(ctx context.Context, dir, cache string) *Tree {
	ctx, cancel := context.WithCancel(ctx)
	t := &Tree{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		listed := make(chan struct{})
		go func() {
			defer close(listed)
			t.paths, t.err = tracked(ctx, dir)
		}()
		t.known = loadKnown(cache, dir, time.Now())
		<-listed
		if t.err == nil {
			t.known.seen = t.known.look(dir, t.paths)
		}
	}()
	return t
}

// wait returns when everything was looked at.
func (t *Tree) wait() (paths []string, known knownSums, err error) {
	<-t.done
	return slices.Clone(t.paths), t.known, t.err
}

// Close ends what still runs. A nil Tree is closed.
func (t *Tree) Close() {
	if t != nil {
		t.cancel()
		<-t.done
	}
}

// look finds the files whose known sum holds.
func (k knownSums) look(dir string, paths []string) map[string]string {
	if len(k.sums) == 0 {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil // whoever reads the files will say so
	}
	defer root.Close()
	sums := make([]string, len(paths))
	_ = k.each(root, paths, func(r *treeReader, i int) error {
		sums[i] = r.unchanged(paths[i])
		return nil
	})
	seen := make(map[string]string, len(paths))
	for i, sum := range sums {
		if sum != "" {
			seen[paths[i]] = sum
		}
	}
	return seen
}

// loadKnown reads what is known of the work tree at dir from the folder cache.
// A file that is damaged, another user's, another tree's or from the future is
// as good as none. With an empty cache, or a file system whose clock is not
// this machine's, nothing is remembered.
func loadKnown(cache, dir string, now time.Time) knownSums {
	root, err := filepath.Abs(dir)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if cache == "" || err != nil || !localFiles(root) {
		return knownSums{}
	}
	info, err := os.Lstat(root)
	if err != nil {
		return knownSums{}
	}
	at, ok := statOf(info)
	if !ok {
		return knownSums{}
	}
	name := sha256.Sum256([]byte(root))
	k := knownSums{root: root, dev: at.dev, since: now, file: filepath.Join(cache, hex.EncodeToString(name[:16]))}
	if data, err := readOwn(k.file); err == nil {
		k.sums, _ = decodeKnown(data, root, now)
	}
	return k
}

// readOwn reads a file that only this user can have written.
func readOwn(file string) ([]byte, error) {
	info, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o022 != 0 || info.Size() > maxKnown || !ours(info) {
		return nil, fs.ErrPermission
	}
	return os.ReadFile(file)
}

// known is the sum of the file that is as info says.
func (k knownSums) known(path string, info fs.FileInfo) (sum string, ok bool) {
	was, ok := k.sums[path]
	if !ok {
		return "", false
	}
	if now, ok := statOf(info); !ok || now != was.at {
		return "", false
	}
	return hex.EncodeToString(was.sum[:]), true
}

// settled is how the file is, where that may be remembered.
func (k knownSums) settled(info fs.FileInfo) (fileStat, bool) {
	if k.file == "" {
		return fileStat{}, false
	}
	at, ok := statOf(info)
	return at, ok && at.dev == k.dev && max(at.mtime, at.ctime) < k.since.Add(-racy).UnixNano()
}

// with are the sums to keep: what was read now and was settled, and what was
// known and still holds.
func (k knownSums) with(paths, sums []string, fresh []fileStat) map[string]knownSum {
	out := make(map[string]knownSum, len(paths))
	for i, p := range paths {
		e := k.sums[p]
		if fresh[i] != (fileStat{}) {
			e.at = fresh[i]
		}
		// A sum that is not the known one, of a file not settled, is left out.
		if n, err := hex.Decode(e.sum[:], []byte(sums[i])); err != nil || n != len(e.sum) || e.at == (fileStat{}) {
			continue
		}
		if fresh[i] == (fileStat{}) && e.sum != k.sums[p].sum {
			continue
		}
		out[p] = e
	}
	return out
}

// remember replaces what is kept by sums. It is for the next plan's speed:
// that it could not be written is nobody's problem.
func (k knownSums) remember(sums map[string]knownSum) {
	if k.file == "" {
		return
	}
	if err := os.MkdirAll(filepath.Dir(k.file), 0o700); err != nil {
		return
	}
	tmp, err := os.CreateTemp(filepath.Dir(k.file), ".tmp-*")
	if err != nil {
		return
	}
	defer os.Remove(tmp.Name()) // a no-op after the rename
	_, err = tmp.Write(encodeKnown(k.root, k.since, sums))
	if cerr := tmp.Close(); err == nil && cerr == nil {
		_ = os.Rename(tmp.Name(), k.file)
	}
}

// The file: magic, the sum of the rest, then the rest: root, the time of
// writing, and the entries. Numbers have eight bytes, little end first.
const knownEntry = 6*8 + sha256.Size // beside its path

func encodeKnown(root string, now time.Time, sums map[string]knownSum) []byte {
	size := len(knownMagic) + sha256.Size + 3*8 + len(root)
	for p := range sums {
		size += 8 + len(p) + knownEntry
	}
	b := make([]byte, len(knownMagic)+sha256.Size, size)
	copy(b, knownMagic)
	number := func(n uint64) { b = binary.LittleEndian.AppendUint64(b, n) }
	text := func(s string) { number(uint64(len(s))); b = append(b, s...) }
	text(root)
	number(uint64(now.UnixNano()))
	number(uint64(len(sums)))
	for p, e := range sums {
		text(p)
		number(e.at.dev)
		number(e.at.ino)
		number(uint64(e.at.size))
		number(uint64(e.at.mode))
		number(uint64(e.at.mtime))
		number(uint64(e.at.ctime))
		b = append(b, e.sum[:]...)
	}
	sum := sha256.Sum256(b[len(knownMagic)+sha256.Size:])
	copy(b[len(knownMagic):], sum[:])
	return b
}

// decodeKnown reads what encodeKnown wrote for the same root before now.
func decodeKnown(b []byte, root string, now time.Time) (map[string]knownSum, bool) {
	b, ok := bytes.CutPrefix(b, []byte(knownMagic))
	if !ok || len(b) < sha256.Size {
		return nil, false
	}
	if sum := sha256.Sum256(b[sha256.Size:]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, false
	}
	b = b[sha256.Size:]
	number := func() (n uint64) {
		if len(b) < 8 {
			ok = false
			return 0
		}
		n, b = binary.LittleEndian.Uint64(b), b[8:]
		return n
	}
	text := func() (s string) {
		n := number()
		if !ok || n > uint64(len(b)) {
			ok = false
			return ""
		}
		s, b = string(b[:n]), b[n:]
		return s
	}
	// With a clock that went back, a later change could have an earlier ctime.
	if text() != root || int64(number()) > now.UnixNano() {
		return nil, false
	}
	n := number()
	if !ok || n > uint64(len(b))/knownEntry {
		return nil, false
	}
	sums := make(map[string]knownSum, n)
	for range n {
		p := text()
		e := knownSum{at: fileStat{dev: number(), ino: number(), size: int64(number()), mode: uint32(number()), mtime: int64(number()), ctime: int64(number())}}
		if !ok || copy(e.sum[:], b) < sha256.Size {
			return nil, false
		}
		b = b[sha256.Size:]
		sums[p] = e
	}
	return sums, len(b) == 0
}
