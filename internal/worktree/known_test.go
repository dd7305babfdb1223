package worktree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// remembering is a work tree and the folder its sums are kept in.
type remembering struct {
	t          *testing.T
	dir, cache string
	paths      []string
}

func newRemembering(t *testing.T, files map[string]string) remembering {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("sums are remembered on Linux only")
	}
	r := remembering{t: t, dir: t.TempDir(), cache: filepath.Join(t.TempDir(), "trees")}
	if !localFiles(r.dir) {
		t.Skip("the temporary folder is on a file system whose clock is not trusted")
	}
	write(t, r.dir, files)
	for p := range files {
		r.paths = append(r.paths, p)
	}
	slices.Sort(r.paths)
	return r
}

// at are the sums as a plan at the given time takes them.
func (r remembering) at(now time.Time) []File {
	r.t.Helper()
	k := loadKnown(r.cache, r.dir, now)
	k.holds = k.look()
	files, err := k.Sum(r.dir, r.paths)
	if err != nil {
		r.t.Fatal(err)
	}
	return files
}

func (r remembering) read() []File {
	r.t.Helper()
	files, err := Sum(r.dir, r.paths)
	if err != nil {
		r.t.Fatal(err)
	}
	return files
}

// kept is the file in which the sums are.
func (r remembering) kept() string {
	r.t.Helper()
	k := loadKnown(r.cache, r.dir, time.Now())
	return k.file
}

// later is when files made just now have settled.
func later() time.Time { return time.Now().Add(time.Hour) }

// A sum that was remembered stands in for reading the file, until the file
// changes; also by a change that keeps the size and puts the mtime back.
func TestKnownSums(t *testing.T) {
	r := newRemembering(t, map[string]string{"a.js": "one", "lib/b.js": "two"})
	first := r.at(later())
	if !slices.Equal(first, r.read()) {
		t.Fatalf("got %v", first)
	}
	// Only a reader that does not open the file takes this for its sum.
	k := loadKnown(r.cache, r.dir, later())
	marked := strings.Repeat("m", 2*sha256.Size)
	k.sums[0].sum = marked
	k.remember(k.sums)
	if got := r.at(later()); got[0].Sum != marked || got[1] != first[1] {
		t.Errorf("the files were read again: %v", got)
	}

	p := filepath.Join(r.dir, "a.js")
	before, err := os.Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	was, _ := statOf(before)
	for same := true; same; { // until the clock of the file system has ticked
		if err := os.WriteFile(p, []byte("ONE"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, before.ModTime(), before.ModTime()); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		now, _ := statOf(info)
		if now.size != was.size || now.mtime != was.mtime {
			t.Fatalf("the edit shows: %+v, before %+v", now, was)
		}
		same = now == was
	}
	if got := r.at(later()); !slices.Equal(got, r.read()) || got[0] == first[0] {
		t.Errorf("after an edit that keeps size and mtime: %v", got)
	}
}

// What changed a moment ago may change again within the same tick of the
// clock: it is not remembered, as git's index does not trust it.
func TestKnownSumsLeaveOutWhatIsTooNew(t *testing.T) {
	r := newRemembering(t, map[string]string{"a.js": "one"})
	r.at(time.Now())
	if _, err := os.Stat(r.kept()); err == nil {
		t.Error("a file made just now was remembered")
	}
	r.at(later())
	if k := loadKnown(r.cache, r.dir, later()); len(k.sums) != 1 {
		t.Errorf("later it was not: %v", k.sums)
	}
}

// A folder that became a link to where it was moved has the files it had, and
// is no folder of the tree: they are read, and refused where they are outside.
func TestKnownSumsBehindALink(t *testing.T) {
	r := newRemembering(t, map[string]string{"a.js": "one", "lib/b.js": "two", "lib/deep/c.js": "three"})
	r.at(later())
	away := filepath.Join(t.TempDir(), "lib")
	if err := os.Rename(filepath.Join(r.dir, "lib"), away); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(away, filepath.Join(r.dir, "lib")); err != nil {
		t.Fatal(err)
	}
	k := loadKnown(r.cache, r.dir, later())
	if got := k.look(); !slices.Equal(got, []bool{true, false, false}) {
		t.Errorf("got %v", got)
	}
	k.holds = k.look()
	if _, err := k.Sum(r.dir, r.paths); err == nil {
		t.Error("files outside the tree are part of it")
	}
}

// Whatever is done to the files between plans, also at once after one: the
// sums are those that reading gives.
func TestKnownSumsAreNeverWrong(t *testing.T) {
	const files, steps = 12, 400
	names := map[string]string{}
	for i := range files {
		names[fmt.Sprintf("d%d/f%d", i%3, i)] = "0000"
	}
	r := newRemembering(t, names)
	rnd := rand.New(rand.NewPCG(4, 2))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	any := func() string { return filepath.Join(r.dir, r.paths[rnd.IntN(len(r.paths))]) }
	hits := 0
	for range steps {
		p := any()
		info, err := os.Lstat(p)
		must(err)
		switch rnd.IntN(7) {
		case 0: // same size
			must(os.Remove(p))
			must(os.WriteFile(p, fmt.Appendf(nil, "%04d", rnd.IntN(10000)), 0o644))
		case 1: // in place, same size, same mtime
			if info.Mode().IsRegular() {
				must(os.WriteFile(p, fmt.Appendf(nil, "%04d", rnd.IntN(10000)), 0o644))
				must(os.Chtimes(p, info.ModTime(), info.ModTime()))
			}
		case 2: // two change places
			q := any()
			if p == q {
				break
			}
			must(os.Rename(p, p+".tmp"))
			must(os.Rename(q, p))
			must(os.Rename(p+".tmp", q))
		case 3:
			must(os.Remove(p))
			must(os.Symlink(fmt.Sprintf("f%d", rnd.IntN(files)), p))
		case 4:
			if info.Mode().IsRegular() {
				must(os.Chmod(p, []os.FileMode{0o644, 0o755, 0o600}[rnd.IntN(3)]))
			}
		case 5: // another inode with the same name, size and mtime
			must(os.WriteFile(p+".tmp", fmt.Appendf(nil, "%04d", rnd.IntN(10000)), 0o644))
			must(os.Chtimes(p+".tmp", info.ModTime(), info.ModTime()))
			must(os.Rename(p+".tmp", p))
		case 6: // nothing
		}
		// Nearly no grace, so that files are remembered while they change; it
		// is still longer than a tick of the kernel's clock.
		now := time.Now().Add(racy - 20*time.Millisecond)
		hits += len(loadKnown(r.cache, r.dir, now).sums)
		if got, want := r.at(now), r.read(); !slices.Equal(got, want) {
			t.Fatalf("got %v\nwant %v", got, want)
		}
	}
	t.Logf("%d sums were at hand in %d plans of %d files", hits, steps, files)
}

// A file that nobody of ours wrote is as good as none.
func TestKnownSumsOfOthers(t *testing.T) {
	r := newRemembering(t, map[string]string{"a.js": "one", "lib/b.js": "two"})
	r.at(later())
	file := r.kept()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	root := loadKnown(r.cache, r.dir, later()).root
	if sums, ok := decodeKnown(good, root, later()); !ok || len(sums) != 2 {
		t.Fatalf("got %v, %v", sums, ok)
	}
	for n := range good {
		if _, ok := decodeKnown(good[:n], root, later()); ok {
			t.Errorf("the first %d bytes are taken for all %d", n, len(good))
		}
		bad := bytes.Clone(data)
		bad[n] ^= 0x40
		if _, ok := decodeKnown(string(bad), root, later()); ok {
			t.Errorf("a flipped bit in byte %d goes unnoticed", n)
		}
	}
	if _, ok := decodeKnown(good, root+"x", later()); ok {
		t.Error("another tree's sums are taken")
	}
	if _, ok := decodeKnown(good, root, time.Now()); ok {
		t.Error("sums from the future are taken: the clock went back")
	}
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	if k := loadKnown(r.cache, r.dir, later()); k.sums != nil {
		t.Error("a file that anybody can write is taken")
	}
	if err := os.Rename(file, file+".real"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file+".real", file); err != nil {
		t.Fatal(err)
	}
	if k := loadKnown(r.cache, r.dir, later()); k.sums != nil {
		t.Error("a link is followed")
	}
	// A folder that can't be written costs speed, nothing else.
	r.cache = filepath.Join(r.dir, "a.js", "trees")
	if got := r.at(later()); !slices.Equal(got, r.read()) {
		t.Errorf("got %v", got)
	}
}

// FuzzKnown: whatever stands in the file, it is refused or is what was written.
func FuzzKnown(f *testing.F) {
	at := time.Unix(1e9, 0)
	for n := range 3 {
		var sums []knownSum
		for i := range n {
			sums = append(sums, knownSum{fmt.Sprint(i), fileStat{ino: uint64(i), mtime: int64(i)}, fmt.Sprintf("%064d", i)})
		}
		f.Add(encodeKnown("/r", at, sums)[len(knownMagic)+8:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := binary.LittleEndian.AppendUint64([]byte(knownMagic), uint64(crc32.Checksum(body, damage)))
		sums, ok := decodeKnown(string(sum)+string(body), "/r", time.Unix(2e9, 0))
		if !ok {
			return
		}
		if again, ok := decodeKnown(string(encodeKnown("/r", at, sums)), "/r", at); !ok || !slices.Equal(again, sums) {
			t.Errorf("%v become %v", sums, again)
		}
	})
}
