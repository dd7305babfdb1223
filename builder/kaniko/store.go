package kaniko

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// store keeps what is expensive to make again, in a folder that several
// processes may share: unpacked images and layers, compressed layers, and
// which layers a step has made. Losing any of it costs time only.
//
//	tree/<kind>-<mode>-<uid>-<sum>/   unpacked files, and .lock, .owners beside
//	blob/<sum>                        a compressed layer
//	step/<sum>.json                   a prefix, see below
type store struct {
	dir string
	// limit is how many bytes may stay after a build.
	limit int64
}

// prefix is what a stage has made up to a step.
type prefix struct {
	Key    string        `json:"key"`
	Layers []storedLayer `json:"layers"`
	// History has one entry per step.
	History []v1.History `json:"history"`
	// Config is what the stage says in the end; nil before its last step.
	Config *v1.Config `json:"config,omitempty"`

	opened []v1.Layer
}

type storedLayer struct {
	layer.Info
	Title string `json:"title"`
}

// tree is an unpacked image or layer. It is kept from removal until close.
type tree struct {
	dir  string
	lock *os.File
	// foreign are owners that are not in the files; see [unpacker].
	foreign map[string][2]int
}

func (t *tree) close() {
	if t.lock != nil {
		t.lock.Close()
	}
}

// tree returns the files of layers, unpacked now or before. name is unique for
// them; overlay says that there is one layer, to be laid over others.
func (s *store) tree(ctx context.Context, name string, mode sandbox.Mode, overlay bool, layers func() ([]v1.Layer, error)) (*tree, bool, error) {
	kind := "image"
	if overlay {
		kind = "layer"
	}
	// A user namespace sees its own owner only, so its copy is another.
	dir := filepath.Join(s.dir, "tree", fmt.Sprintf("%s-%s-%d-%s", kind, mode, os.Geteuid(), name))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, false, err
	}
	for {
		t, err := s.open(ctx, dir, unix.LOCK_SH)
		if err != nil {
			return nil, false, err
		}
		if whole(dir) {
			now := time.Now()
			_ = os.Chtimes(dir+".lock", now, now) // for the removal of the oldest
			b, err := os.ReadFile(dir + ".owners")
			if err == nil {
				err = json.Unmarshal(b, &t.foreign)
			}
			if err != nil {
				t.close()
				return nil, false, err
			}
			return t, true, nil
		}
		t.close()
		if t, err = s.open(ctx, dir, unix.LOCK_EX); err != nil {
			return nil, false, err
		}
		if whole(dir) {
			t.close() // another process was faster
			continue
		}
		err = s.unpack(ctx, t, layers, mode == sandbox.Root, overlay)
		if err == nil {
			err = unix.Flock(int(t.lock.Fd()), unix.LOCK_SH)
		}
		if err != nil {
			t.close()
			return nil, false, err
		}
		if whole(dir) {
			return t, false, nil
		}
		t.close() // removed in between: again
	}
}

// whole says whether a tree is there with all that belongs to it.
func whole(dir string) bool {
	_, err := os.Stat(dir)
	_, errOwners := os.Stat(dir + ".owners")
	return err == nil && errOwners == nil
}

// open locks a tree. The file of the lock is never removed while it is held.
func (s *store) open(ctx context.Context, dir string, how int) (*tree, error) {
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
				return &tree{dir: dir, lock: f}, nil
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

// unpack fills a tree whose lock is held alone. It appears complete or not at
// all.
func (s *store) unpack(ctx context.Context, t *tree, layers func() ([]v1.Layer, error), owners, overlay bool) error {
	tmp := t.dir + ".part"
	// What another process left when it was killed.
	if err := errors.Join(removeTree(tmp), removeTree(t.dir), os.Mkdir(tmp, 0o755), os.Chmod(tmp, 0o755)); err != nil {
		return err
	}
	list, err := layers()
	if err == nil {
		t.foreign, err = unpack(ctx, list, tmp, owners, overlay)
	}
	if err == nil {
		var b []byte
		if b, err = json.Marshal(t.foreign); err == nil {
			err = os.WriteFile(t.dir+".owners", b, 0o644)
		}
	}
	if err == nil {
		err = os.Rename(tmp, t.dir)
	}
	if err != nil {
		_ = removeTree(tmp)
	}
	return err
}

// put keeps a layer's compressed bytes.
func (s *store) put(l *layer.Layer) error {
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	return s.write(filepath.Join("blob", l.Info().Digest.Hex), r)
}

// write makes a file, whole or not at all.
func (s *store) write(name string, r io.Reader) error {
	p := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(p), ".part-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), p)
}

// layer opens a kept layer; its bytes are verified. The error is
// [fs.ErrNotExist] in the chain when it is not there, or not what it was.
func (s *store) layer(d storedLayer) (v1.Layer, error) {
	p := filepath.Join(s.dir, "blob", d.Digest.Hex)
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return nil, err
	}
	if n != d.Size || hex.EncodeToString(h.Sum(nil)) != d.Digest.Hex {
		return nil, fmt.Errorf("%s is damaged: %w", p, fs.ErrNotExist)
	}
	now := time.Now()
	_ = os.Chtimes(p, now, now)
	return &keptLayer{d.Info, p}, nil
}

// keptLayer is a layer in a store.
type keptLayer struct {
	info layer.Info
	path string
}

func (l *keptLayer) Digest() (v1.Hash, error)            { return l.info.Digest, nil }
func (l *keptLayer) DiffID() (v1.Hash, error)            { return l.info.DiffID, nil }
func (l *keptLayer) Size() (int64, error)                { return l.info.Size, nil }
func (l *keptLayer) MediaType() (types.MediaType, error) { return l.info.MediaType, nil }
func (l *keptLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }

func (l *keptLayer) Uncompressed() (io.ReadCloser, error) {
	x, err := partial.CompressedToLayer(l)
	if err != nil {
		return nil, err
	}
	return x.Uncompressed()
}

// load finds what was made for a key; nil when any part of it is missing.
func (s *store) load(key string) *prefix {
	p := filepath.Join(s.dir, "step", key+".json")
	b, err := os.ReadFile(p)
	if err != nil {
		return nil
	}
	var x prefix
	if json.Unmarshal(b, &x) != nil || x.Key != key {
		return nil
	}
	for _, d := range x.Layers {
		l, err := s.layer(d)
		if err != nil {
			return nil
		}
		x.opened = append(x.opened, l)
	}
	now := time.Now()
	_ = os.Chtimes(p, now, now)
	return &x
}

// save remembers a prefix whose layers are in the store.
func (s *store) save(x *prefix) error {
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	return s.write(filepath.Join("step", x.Key+".json"), strings.NewReader(string(b)))
}

// trim removes what was not used for longest until at most limit bytes are
// left, and never what a build is using.
func (s *store) trim() error {
	type item struct {
		path string
		size int64
		used time.Time
		tree bool
	}
	var items []item
	var total int64
	for _, kind := range []string{"tree", "blob", "step"} {
		list, err := os.ReadDir(filepath.Join(s.dir, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range list {
			p := filepath.Join(s.dir, kind, e.Name())
			if kind == "tree" {
				name, ok := strings.CutSuffix(p, ".lock")
				if !ok {
					continue
				}
				p = name
			}
			i := item{path: p, tree: kind == "tree"}
			at := p
			if i.tree {
				at += ".lock"
				i.size = diskUse(p)
			}
			st, err := os.Stat(at)
			if err != nil {
				continue
			}
			if i.used = st.ModTime(); !i.tree {
				i.size = st.Size()
			}
			total += i.size
			items = append(items, i)
		}
	}
	sort.Slice(items, func(a, b int) bool { return items[a].used.Before(items[b].used) })
	for _, i := range items {
		if total <= s.limit {
			break
		}
		if i.tree && !s.drop(i.path) {
			continue
		}
		if !i.tree && os.Remove(i.path) != nil {
			continue
		}
		total -= i.size
	}
	return nil
}

// drop removes a tree that nobody uses.
func (s *store) drop(dir string) bool {
	f, err := os.OpenFile(dir+".lock", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false
	}
	// The lock's file goes last, while it is held: who waits for it looks
	// whether it is still the one.
	return errors.Join(removeTree(dir), removeTree(dir+".part"), os.RemoveAll(dir+".owners"), os.Remove(dir+".lock")) == nil
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

// workDir makes a folder for one build, held by a lock, and removes those of
// builds that were killed.
func workDir(parent string) (dir string, done func(), err error) {
	if parent == "" {
		parent = os.TempDir()
	}
	old, _ := filepath.Glob(filepath.Join(parent, "kuroko-kaniko-*"))
	for _, p := range old {
		// One that is not locked yet is younger than this.
		if st, err := os.Lstat(p); err != nil || !st.IsDir() || time.Since(st.ModTime()) < time.Minute {
			continue
		}
		if f, err := os.Open(p); err == nil {
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				_ = removeTree(p)
			}
			f.Close()
		}
	}
	if dir, err = os.MkdirTemp(parent, "kuroko-kaniko-"); err != nil {
		return "", nil, err
	}
	f, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() { _ = removeTree(dir); f.Close() }, nil
}
