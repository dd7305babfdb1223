// Package rootfs keeps unpacked images: folders that a sandbox shows as its
// root, below an overlay that takes the changes.
//
// An image is unpacked once on a machine, however many processes ask for it at
// once, and appears whole or not at all. What an archive says is not trusted:
// nothing is written outside of its folder.
package rootfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Store is a folder of unpacked images and layers that several processes may
// share. Whoever can write to it can change what later builds contain; losing
// any of it costs time only.
//
//	<kind>-<owners>-<uid>-<name>/   unpacked files, and .lock, .owners, .size beside
type Store struct{ Dir string }

// Want says what is asked for.
type Want struct {
	// Name is unique for the layers: their digest.
	Name string
	// Owners keeps the owners of files, which only root can; else every file
	// belongs to the caller, and [Tree.Foreign] says whose it was.
	Owners bool
	// Overlay is one layer to be laid over others: removed files are kept in
	// overlay's form.
	Overlay bool
	// Part, with Overlay, unpacks only what it chooses; a whole tree that is there
	// does as well.
	Part *Part
	// Layers are asked for when they are needed.
	Layers func() ([]v1.Layer, error)
}

// Part chooses from a layer.
type Part struct {
	// ID is unique for the choice.
	ID string
	// Has says whether a file, folder or link is wanted, or the mark that there
	// is none of this name. With a name it has those of the folders above.
	Has func(name string) bool
}

// ErrNotInPart is from [Store.Tree]: a wanted file is another name of one that
// was left out. Ask for the whole.
var ErrNotInPart = errors.New("a wanted file is a link to one that is not wanted")

// Tree is an unpacked image or layer. It is kept from removal until Close.
type Tree struct {
	Dir string
	// Foreign are owners that are not in the files, by name.
	Foreign map[string][2]int

	lock *os.File
}

// Close lets the tree go.
func (t *Tree) Close() {
	if t.lock != nil {
		t.lock.Close()
	}
}

// Tree returns the files of an image, unpacked now or, kept, before.
func (s Store) Tree(ctx context.Context, w Want) (t *Tree, kept bool, err error) {
	kind, who := "image", "userns"
	if w.Overlay {
		kind = "layer"
	}
	if w.Owners {
		who = "root"
	}
	// A user namespace sees its own owner only, so its copy is another.
	dir := filepath.Join(s.Dir, fmt.Sprintf("%s-%s-%d-%s", kind, who, os.Geteuid(), w.Name))
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, false, err
	}
	if whole(dir) {
		w.Part = nil
	} else if w.Part != nil {
		dir += "-" + w.Part.ID
	}
	for {
		t, err := open(ctx, dir, unix.LOCK_SH)
		if err != nil {
			return nil, false, err
		}
		if whole(dir) {
			now := time.Now()
			_ = os.Chtimes(dir+".lock", now, now) // for the removal of the oldest
			b, err := os.ReadFile(dir + ".owners")
			if err == nil {
				err = json.Unmarshal(b, &t.Foreign)
			}
			if err != nil {
				t.Close()
				return nil, false, err
			}
			return t, true, nil
		}
		t.Close()
		if t, err = open(ctx, dir, unix.LOCK_EX); err != nil {
			return nil, false, err
		}
		if whole(dir) {
			t.Close() // another process was faster
			continue
		}
		err = t.fill(ctx, w)
		if err == nil {
			err = unix.Flock(int(t.lock.Fd()), unix.LOCK_SH)
		}
		if err != nil {
			t.Close()
			return nil, false, err
		}
		if whole(dir) {
			return t, false, nil
		}
		t.Close() // removed in between: again
	}
}

// whole says whether a tree is there with all that belongs to it.
func whole(dir string) bool {
	_, err := os.Stat(dir)
	_, errOwners := os.Stat(dir + ".owners")
	return err == nil && errOwners == nil
}

// open locks a tree. The file of the lock is never removed while it is held.
func open(ctx context.Context, dir string, how int) (*Tree, error) {
	for {
		f, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			a, errA := f.Stat()
			b, errB := os.Stat(dir + ".lock")
			if errA == nil && errB == nil && os.SameFile(a, b) {
				return &Tree{Dir: dir, lock: f}, nil
			}
			f.Close()
			continue
		}
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		select { // another process unpacks the same
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// fill unpacks into a tree whose lock is held alone. It appears complete or
// not at all.
func (t *Tree) fill(ctx context.Context, w Want) error {
	tmp := t.Dir + ".part"
	// What another process left when it was killed.
	if err := errors.Join(Remove(tmp), Remove(t.Dir), os.Mkdir(tmp, 0o755), os.Chmod(tmp, 0o755)); err != nil {
		return err
	}
	list, err := w.Layers()
	if err == nil {
		t.Foreign, err = unpack(ctx, list, tmp, w)
	}
	if err == nil {
		var b []byte
		if b, err = json.Marshal(t.Foreign); err == nil {
			err = os.WriteFile(t.Dir+".owners", b, 0o644)
		}
	}
	if err == nil {
		err = os.WriteFile(t.Dir+".size", strconv.AppendInt(nil, diskUse(tmp), 10), 0o644)
	}
	if err == nil {
		err = os.Rename(tmp, t.Dir)
	}
	if err != nil {
		_ = Remove(tmp)
	}
	return err
}

// Kept is a tree in a store.
type Kept struct {
	Dir  string
	Used time.Time
	Size int64 // about how much it takes on disk
}

// List are the store's trees, in no order.
func (s Store) List() ([]Kept, error) {
	list, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Kept
	for _, e := range list {
		dir, ok := strings.CutSuffix(filepath.Join(s.Dir, e.Name()), ".lock")
		if !ok {
			continue
		}
		st, err := os.Stat(dir + ".lock")
		if err != nil {
			continue
		}
		all = append(all, Kept{Dir: dir, Used: st.ModTime(), Size: size(dir)})
	}
	return all, nil
}

// Trim drops what was not used for longest until at most limit bytes are left,
// and never what somebody is using.
func (s Store) Trim(limit int64) error {
	all, err := s.List()
	if err != nil {
		return err
	}
	var total int64
	for _, k := range all {
		total += k.Size
	}
	sort.Slice(all, func(a, b int) bool { return all[a].Used.Before(all[b].Used) })
	for _, k := range all {
		if total <= limit {
			break
		}
		if k.Drop() {
			total -= k.Size
		}
	}
	return nil
}

// Drop removes a tree that nobody uses, and tells whether it did.
func (k Kept) Drop() bool {
	f, err := os.OpenFile(k.Dir+".lock", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false
	}
	// The lock's file goes last, while it is held: who waits for it looks
	// whether it is still the one.
	return errors.Join(Remove(k.Dir), Remove(k.Dir+".part"), os.RemoveAll(k.Dir+".owners"), os.RemoveAll(k.Dir+".size"), os.Remove(k.Dir+".lock")) == nil
}

// size is what a tree was noted to take; one that is not whole is looked at.
// Looking at all of them after every build takes longer than many builds.
func size(dir string) int64 {
	if b, err := os.ReadFile(dir + ".size"); err == nil && whole(dir) {
		if n, err := strconv.ParseInt(string(b), 10, 64); err == nil {
			return n
		}
	}
	return diskUse(dir) + diskUse(dir+".part")
}

// diskUse is about how much a tree takes.
func diskUse(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		n += 512
		if d.Type().IsRegular() {
			if st, err := d.Info(); err == nil {
				n += st.Size()
			}
		}
		return nil
	})
	return n
}
