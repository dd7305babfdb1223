package worktree

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Known are the sums of files as an earlier plan of the same work tree
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
type Known struct {
	root  string // absolute, links resolved
	file  string // where they are kept
	dev   uint64 // of root: files elsewhere are always read
	since time.Time
	sums  []knownSum // by path
	holds []bool     // of sums: those whose file [Look] found as it was
}

// knownSum is a file's sum, and how the file was when it was summed.
type knownSum struct {
	path string
	at   fileStat
	sum  string // of [File]
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
const knownMagic = "kuroko tree sums 3\n"

// loadKnown reads what is known of the work tree at dir from the folder cache.
// A file that is damaged, another user's, another tree's or from the future is
// as good as none. With an empty cache, or a file system whose clock is not
// this machine's, nothing is remembered.
func loadKnown(cache, dir string, now time.Time) Known {
	root, err := filepath.Abs(dir)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if cache == "" || err != nil || !localFiles(root) {
		return Known{}
	}
	info, err := os.Lstat(root)
	if err != nil {
		return Known{}
	}
	at, ok := statOf(info)
	if !ok {
		return Known{}
	}
	name := sha256.Sum256([]byte(root))
	k := Known{root: root, dev: at.dev, since: now, file: filepath.Join(cache, hex.EncodeToString(name[:16]))}
	if text, err := readOwn(k.file); err == nil {
		k.sums, _ = decodeKnown(text, root, now)
	}
	return k
}

// readOwn reads a file that only this user can have written.
func readOwn(file string) (string, error) {
	info, err := os.Lstat(file)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o022 != 0 || info.Size() > maxKnown || !ours(info) {
		return "", fs.ErrPermission
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var text strings.Builder // a part of which each path and sum will be
	text.Grow(int(info.Size()))
	_, err = io.Copy(&text, f)
	return text.String(), err
}

// find is where the sum of the file at path stands, or would. Whoever asks in
// the order of paths finds it at near, behind the one before.
func (k Known) find(path string, near int) (at int, ok bool) {
	if near < len(k.sums) && k.sums[near].path == path {
		return near, true
	}
	return slices.BinarySearchFunc(k.sums, path, func(s knownSum, path string) int { return strings.Compare(s.path, path) })
}

// Holds reports whether the file at path was found to be a regular one, as it
// was when it was summed.
func (k Known) Holds(path string) bool {
	i, ok := k.find(path, len(k.sums))
	return ok && k.holds != nil && k.holds[i] && k.sums[i].at.regular()
}

// settled is how the file is, where that may be remembered.
func (k Known) settled(info fs.FileInfo) (fileStat, bool) {
	if k.file == "" {
		return fileStat{}, false
	}
	at, ok := statOf(info)
	return at, ok && at.dev == k.dev && max(at.mtime, at.ctime) < k.since.Add(-racy).UnixNano()
}

// with are the sums to keep: what was read now and was settled, and what was
// known and still holds.
func (k Known) with(paths, sums []string, fresh []fileStat) []knownSum {
	out := make([]knownSum, 0, len(paths))
	near := 0
	for i, p := range paths {
		at, known := k.find(p, near)
		near = at + 1
		switch {
		case sums[i] == "": // gone
		case fresh[i] != fileStat{}:
			out = append(out, knownSum{p, fresh[i], sums[i]})
		case known && k.sums[at].sum == sums[i]:
			out = append(out, k.sums[at])
		}
	}
	return out
}

// remember replaces what is kept by sums. It is for the next plan's speed:
// that it could not be written is nobody's problem.
func (k Known) remember(sums []knownSum) {
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

// The file: magic, a checksum of the rest, then the rest: root, the time of
// writing, and the entries in the order of their paths. Numbers have eight
// bytes, little end first. The checksum finds damage; nobody else can write
// the file.
const knownEntry = 6*8 + 2*sha256.Size // beside its path

var damage = crc32.MakeTable(crc32.Castagnoli) // which processors count themselves

func encodeKnown(root string, now time.Time, sums []knownSum) []byte {
	size := len(knownMagic) + 4*8 + len(root)
	for _, e := range sums {
		size += 8 + len(e.path) + knownEntry
	}
	b := make([]byte, len(knownMagic)+8, size)
	copy(b, knownMagic)
	number := func(n uint64) { b = binary.LittleEndian.AppendUint64(b, n) }
	text := func(s string) { number(uint64(len(s))); b = append(b, s...) }
	text(root)
	number(uint64(now.UnixNano()))
	number(uint64(len(sums)))
	for _, e := range sums {
		text(e.path)
		number(e.at.dev)
		number(e.at.ino)
		number(uint64(e.at.size))
		number(uint64(e.at.mode))
		number(uint64(e.at.mtime))
		number(uint64(e.at.ctime))
		b = append(b, e.sum...)
	}
	binary.LittleEndian.PutUint64(b[len(knownMagic):], uint64(crc32.Checksum(b[len(knownMagic)+8:], damage)))
	return b
}

// decodeKnown reads what encodeKnown wrote for the same root before now.
func decodeKnown(file, root string, now time.Time) ([]knownSum, bool) {
	b, ok := strings.CutPrefix(file, knownMagic) // paths and sums are parts of it
	cut := func(n uint64) (s string) {
		if n > uint64(len(b)) {
			ok, b = false, ""
			return ""
		}
		s, b = b[:n], b[n:]
		return s
	}
	number := func() uint64 {
		s := cut(8)
		if !ok {
			return 0
		}
		return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
	}
	text := func() string { return cut(number()) }
	want, got := number(), crc32.New(damage)
	// Without the Reader's own way, which would copy all of it at once.
	if _, err := io.Copy(got, struct{ io.Reader }{strings.NewReader(b)}); err != nil || want != uint64(got.Sum32()) {
		return nil, false
	}
	// With a clock that went back, a later change could have an earlier ctime.
	if text() != root || int64(number()) > now.UnixNano() {
		return nil, false
	}
	n := number()
	if !ok || n > uint64(len(b))/knownEntry {
		return nil, false
	}
	sums := make([]knownSum, 0, n)
	for i := range int(n) {
		e := knownSum{
			path: text(),
			at:   fileStat{dev: number(), ino: number(), size: int64(number()), mode: uint32(number()), mtime: int64(number()), ctime: int64(number())},
			sum:  cut(2 * sha256.Size),
		}
		if !ok || i > 0 && e.path <= sums[i-1].path {
			return nil, false
		}
		sums = append(sums, e)
	}
	return sums, b == ""
}
