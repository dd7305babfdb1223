package kaniko

import (
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
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
)

// store keeps what is expensive to make again, in a folder that several
// processes may share: unpacked images and layers, compressed layers, which
// layers a step has made, and what RUNs keep in caches. Losing any of it costs time only.
//
//	tree/            unpacked files, a [rootfs.Store]
//	blob/<sum>       a compressed layer
//	step/<sum>.json  a prefix, see below
//	mount/<sum>      a cache that RUNs mount
//	packages/<version>-<sum>.json  the packages in a layer
type store struct {
	dir string
	// limit is how many bytes may stay after a build.
	limit int64
}

func (s *store) trees() rootfs.Store { return rootfs.Store{Dir: filepath.Join(s.dir, "tree")} }

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
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return unzipped{z, f}, nil
}

// unzipped closes what it reads from.
type unzipped struct {
	*gzip.Reader
	f *os.File
}

func (u unzipped) Close() error { return errors.Join(u.Reader.Close(), u.f.Close()) }

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
		size int64
		used time.Time
		drop func() bool
	}
	var items []item
	var total int64
	add := func(i item) {
		total += i.size
		items = append(items, i)
	}
	trees, err := s.trees().List()
	if err != nil {
		return err
	}
	for _, t := range trees {
		add(item{t.Size, t.Used, t.Drop})
	}
	for _, kind := range []string{"blob", "step", "packages", "mount"} {
		list, err := os.ReadDir(filepath.Join(s.dir, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range list {
			p := filepath.Join(s.dir, kind, e.Name())
			st, err := os.Stat(p)
			if err != nil {
				continue
			}
			if st.IsDir() {
				add(item{folderSize(p), st.ModTime(), func() bool { return dropFolder(p) }})
				continue
			}
			add(item{st.Size(), st.ModTime(), func() bool { return os.Remove(p) == nil }})
		}
	}
	sort.Slice(items, func(a, b int) bool { return items[a].used.Before(items[b].used) })
	for _, i := range items {
		if total <= s.limit {
			break
		}
		if i.drop() {
			total -= i.size
		}
	}
	return nil
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
				_ = rootfs.Remove(p)
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
	return dir, func() { _ = rootfs.Remove(dir); f.Close() }, nil
}
