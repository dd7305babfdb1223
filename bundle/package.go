package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// index is build.json in a package's folder: which of the objects is the
// bundle.
type index struct {
	Format  int    `json:"format"` // 1
	Digest  string `json:"digest"`
	Version string `json:"version"`
}

const indexFile = "build.json"

// WriteDir stores the package in dir, laid out like the store, so that it can
// be looked at, copied and published later. dir must not exist or be empty.
func (p *Package) WriteDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("bundle: write package: %w", err)
	}
	old, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("bundle: write package: %w", err)
	}
	if len(old) > 0 {
		return fmt.Errorf("bundle: write package: %s is not empty", dir)
	}
	files := maps.Clone(p.objects)
	s, err := hexOf(p.Digest)
	if err != nil {
		return err
	}
	files[manifestKey(s)] = p.manifest
	files[indexFile] = append(mustIndent(index{1, p.Digest, p.Version}), '\n')
	for _, key := range slices.Sorted(maps.Keys(files)) {
		name := filepath.Join(dir, filepath.FromSlash(key))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("bundle: write package: %w", err)
		}
		if err := os.WriteFile(name, files[key], 0o644); err != nil {
			return fmt.Errorf("bundle: write package: %w", err)
		}
	}
	return nil
}

// ReadDir reads a package that WriteDir stored, and verifies all of it.
func ReadDir(dir string) (*Package, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("bundle: read package: %w", err)
	}
	defer root.Close()
	read := func(key string, limit int64) ([]byte, error) {
		raw, err := readFile(root, key, limit)
		if err != nil {
			return nil, fmt.Errorf("bundle: read package %s: %w", dir, err)
		}
		return raw, nil
	}
	raw, err := read(indexFile, 1<<16)
	if err != nil {
		return nil, err
	}
	var ix index
	if err := json.Unmarshal(raw, &ix); err != nil || ix.Format != 1 {
		return nil, failf(ErrContent, "%s: not a package's %s", dir, indexFile)
	}
	id, err := hexOf(ix.Digest)
	if err != nil {
		return nil, err
	}
	p := &Package{Digest: ix.Digest, Version: ix.Version, objects: map[string][]byte{}}
	if p.manifest, err = read(manifestKey(id), maxManifest); err != nil {
		return nil, err
	}
	if sum(p.manifest) != id {
		return nil, failf(ErrUntrusted, "%s: the manifest does not have its sum", dir)
	}
	m, err := ParseManifest(p.manifest)
	if err != nil {
		return nil, err
	}
	p.Files = len(m.Files)
	pack, err := read(packKey(m.Pack.SHA256), m.Pack.Size)
	if err != nil {
		return nil, err
	}
	p.objects[packKey(m.Pack.SHA256)] = pack
	for _, f := range m.Files {
		if err := p.load(read, blobKey(f.SHA256), Blob{f.SHA256, f.Size}); err != nil {
			return nil, err
		}
	}
	about, err := m.file(pack, "bundle.yml")
	if err != nil {
		return nil, err
	}
	meta, err := ParseMeta(about)
	if err != nil {
		return nil, err
	}
	if meta.Version != ix.Version {
		return nil, failf(ErrUntrusted, "%s: %s says version %q, the bundle %q", dir, indexFile, ix.Version, meta.Version)
	}
	if meta.Runner != nil {
		for _, b := range meta.Runner.Blobs {
			if err := p.load(read, binKey(b.SHA256), b); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// load reads a compressed object and checks its plain bytes.
func (p *Package) load(read func(string, int64) ([]byte, error), key string, b Blob) error {
	z, err := read(key, packedLimit(b.Size))
	if err != nil {
		return err
	}
	if err := checkBlob(z, b, io.Discard); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	p.objects[key] = z
	return nil
}

// packedLimit is the most that size plain bytes can have compressed.
func packedLimit(size int64) int64 { return size + size/64 + 1024 }

// checkBlob decompresses z into w and verifies size and sum. What w received
// must be thrown away on error.
func checkBlob(z []byte, b Blob, w io.Writer) error {
	d, err := decompressor(bytes.NewReader(z))
	if err != nil {
		return failf(ErrUntrusted, "blob %.12s: %w", b.SHA256, err)
	}
	defer d.Close()
	h := newHash(w)
	src := &readErr{r: io.LimitReader(d, b.Size+1)}
	n, err := io.Copy(h, src)
	switch {
	case src.err != nil:
		return failf(ErrUntrusted, "blob %.12s: %w", b.SHA256, src.err)
	case err != nil:
		return fmt.Errorf("bundle: blob %.12s: %w", b.SHA256, err)
	case n != b.Size || h.sum() != b.SHA256:
		return failf(ErrUntrusted, "blob %.12s does not have its sum", b.SHA256)
	}
	return nil
}

var errNotRegular = errors.New("not a regular file")

// readFile reads a regular file below root, at most limit bytes. Links that
// leave root, and pipes that would block, are refused.
func readFile(root *os.Root, name string, limit int64) ([]byte, error) {
	in, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !in.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", name, errNotRegular)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := readAll(f, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return raw, nil
}

// writeFile replaces a file below root in one step, so that nobody sees half.
func writeFile(root *os.Root, name string, data []byte, mode os.FileMode) error {
	tmp := name + ".tmp-" + randomName()
	f, err := root.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		root.Remove(tmp) // the write's error is what counts
	}
	return err
}
