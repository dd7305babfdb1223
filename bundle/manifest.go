package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/tools/txtar"
)

// Limits of format 1. They protect readers; a publisher meets them first.
const (
	maxFiles    = 20_000
	maxFile     = 64 << 20  // bytes of one file
	maxTotal    = 512 << 20 // bytes of all files
	maxPack     = 256 << 20 // compressed bytes of a pack
	maxManifest = 16 << 20
	maxPath     = 1024
	maxElement  = 255
	maxRunner   = 512 << 20 // plain bytes of a stage runner
	// maxWindow is the zstd window: what a reader must keep in memory.
	maxWindow = 8 << 20
)

// Manifest lists a bundle's files. Its bytes, exactly as published, are what
// the digest names; they are never re-encoded.
type Manifest struct {
	Format int    `json:"format"` // 1
	Files  []File `json:"files"`  // sorted by path, byte order
	// Pack is the compressed pack: sum and size of the bytes in the store.
	Pack Blob `json:"pack"`
}

// File is one regular file. Exec is the only mode bit there is.
type File struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	Exec   bool   `json:"exec,omitempty"`
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func okSum(s string) bool {
	if len(s) != 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// digest and hexOf convert between "sha256:<hex>", which people and .faas
// files see, and the bare sum of keys and documents.
func digest(hexSum string) string { return "sha256:" + hexSum }

func hexOf(digest string) (string, error) {
	s, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || !okSum(s) {
		return "", failf(ErrUntrusted, "%q is not a bundle's digest", digest)
	}
	return s, nil
}

// ParseManifest decodes and validates a manifest.
func ParseManifest(raw []byte) (*Manifest, error) {
	if len(raw) > maxManifest {
		return nil, failf(ErrUntrusted, "manifest is larger than %d bytes", maxManifest)
	}
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, failf(ErrUntrusted, "manifest: %w", err)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return &m, nil
}

// Validate refuses everything that unpacking must never meet.
func (m *Manifest) Validate() error {
	if m.Format != 1 {
		return failf(ErrUntrusted, "manifest has format %d, this runner reads 1", m.Format)
	}
	if len(m.Files) > maxFiles {
		return failf(ErrUntrusted, "manifest lists %d files, at most %d are allowed", len(m.Files), maxFiles)
	}
	if !okSum(m.Pack.SHA256) || m.Pack.Size < 0 || m.Pack.Size > maxPack {
		return failf(ErrUntrusted, "manifest: pack is out of bounds (at most %d bytes)", maxPack)
	}
	var total int64
	prev := ""
	dirs := map[string]bool{}
	for _, f := range m.Files {
		if why := badPath(f.Path); why != "" {
			return failf(ErrUntrusted, "manifest: path %q %s", f.Path, why)
		}
		if !okSum(f.SHA256) {
			return failf(ErrUntrusted, "manifest: %s has no SHA-256 sum", f.Path)
		}
		if f.Size < 0 || f.Size > maxFile {
			return failf(ErrUntrusted, "manifest: %s has %d bytes, at most %d are allowed", f.Path, f.Size, maxFile)
		}
		if f.Path <= prev {
			return failf(ErrUntrusted, "manifest: %q is not in order", f.Path)
		}
		prev = f.Path
		for d := path.Dir(f.Path); d != "." && !dirs[d]; d = path.Dir(d) {
			dirs[d] = true
		}
		if total += f.Size; total > maxTotal {
			return failf(ErrUntrusted, "manifest: the files have more than %d bytes", maxTotal)
		}
	}
	for _, f := range m.Files {
		if dirs[f.Path] {
			return failf(ErrUntrusted, "manifest: %q is a file and a folder", f.Path)
		}
	}
	return nil
}

// badPath says what is wrong with a path, or nothing.
func badPath(p string) string {
	switch {
	case !fs.ValidPath(p) || p == ".":
		return "is not a plain relative path"
	case len(p) > maxPath:
		return "is too long"
	}
	for _, c := range []byte(p) {
		if c < 0x20 || c == 0x7f || c == '\\' || c == ':' {
			return "contains a character that is not allowed"
		}
	}
	for e := range strings.SplitSeq(p, "/") {
		if len(e) > maxElement {
			return "has a name that is too long"
		}
	}
	return ""
}

// compressor makes zstd frames. The same bytes give the same frame as long as
// the library's version stays. Close it: its tables are large.
func compressor() (*zstd.Encoder, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxWindow/2))
	if err != nil {
		return nil, fmt.Errorf("bundle: compress: %w", err)
	}
	return w, nil
}

// decompressor reads r with bounded memory.
func decompressor(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
}

// unpack writes the files of a pack into dir, which must be a new, empty
// folder. The pack is checked as a whole before anything is decompressed, and
// every file while it is written. On error dir holds rubbish: remove it.
func (m *Manifest) unpack(pack []byte, dir string) error {
	if int64(len(pack)) != m.Pack.Size || sum(pack) != m.Pack.SHA256 {
		return failf(ErrUntrusted, "pack %.12s does not have its sum", m.Pack.SHA256)
	}
	root, err := os.OpenRoot(dir) // names can't leave it, whatever they are
	if err != nil {
		return fmt.Errorf("bundle: unpack: %w", err)
	}
	defer root.Close()
	d, err := decompressor(bytes.NewReader(pack))
	if err != nil {
		return fmt.Errorf("bundle: unpack: %w", err)
	}
	defer d.Close()
	made := map[string]bool{".": true}
	for _, f := range m.Files {
		if err := mkdirs(root, path.Dir(f.Path), made); err != nil {
			return fmt.Errorf("bundle: unpack: %w", err)
		}
		if err := f.write(root, d); err != nil {
			return err
		}
	}
	if n, err := io.ReadFull(d, make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return failf(ErrUntrusted, "pack holds more than the manifest lists")
	}
	return nil
}

// inMemory is the files of a pack, checked as unpack checks them.
func (m *Manifest) inMemory(pack []byte) (fs.FS, error) {
	if int64(len(pack)) != m.Pack.Size || sum(pack) != m.Pack.SHA256 {
		return nil, failf(ErrUntrusted, "pack %.12s does not have its sum", m.Pack.SHA256)
	}
	d, err := decompressor(bytes.NewReader(pack))
	if err != nil {
		return nil, fmt.Errorf("bundle: pack: %w", err)
	}
	defer d.Close()
	all := new(txtar.Archive)
	for _, f := range m.Files {
		raw := make([]byte, f.Size)
		if _, err := io.ReadFull(d, raw); err != nil {
			return nil, failf(ErrUntrusted, "pack, at %s: %w", f.Path, err)
		}
		if sum(raw) != f.SHA256 {
			return nil, failf(ErrUntrusted, "%s does not have its sum", f.Path)
		}
		all.Files = append(all.Files, txtar.File{Name: f.Path, Data: raw})
	}
	if n, err := io.ReadFull(d, make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return nil, failf(ErrUntrusted, "pack holds more than the manifest lists")
	}
	return txtar.FS(all)
}

// mkdirs makes dir and its parents with a mode that no umask changes.
func mkdirs(root *os.Root, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := mkdirs(root, path.Dir(dir), made); err != nil {
		return err
	}
	if err := root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	made[dir] = true
	return root.Chmod(dir, 0o755)
}

// write stores exactly f from the next f.Size bytes of r, or fails.
func (f File) write(root *os.Root, r io.Reader) error {
	w, err := root.OpenFile(f.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("bundle: unpack: %w", err)
	}
	mode := os.FileMode(0o444)
	if f.Exec {
		mode = 0o555
	}
	h := sha256.New()
	src := &readErr{r: io.LimitReader(r, f.Size)}
	n, err := io.Copy(io.MultiWriter(w, h), src)
	if err == nil {
		err = w.Chmod(mode)
	}
	if e := w.Close(); err == nil {
		err = e
	}
	switch {
	case src.err != nil:
		return failf(ErrUntrusted, "pack, at %s: %w", f.Path, src.err)
	case err != nil:
		return fmt.Errorf("bundle: unpack %s: %w", f.Path, err)
	case n != f.Size || hex.EncodeToString(h.Sum(nil)) != f.SHA256:
		return failf(ErrUntrusted, "%s does not have its sum", f.Path)
	}
	return nil
}

// readErr tells errors of the source from errors of the disk.
type readErr struct {
	r   io.Reader
	err error
}

func (r *readErr) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// errTooLarge is returned by readAll.
var errTooLarge = errors.New("larger than allowed")

// readAll reads r, at most limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", errTooLarge, limit)
	}
	return b, err
}

// file reads one file of a pack into memory, for publishers.
func (m *Manifest) file(pack []byte, name string) ([]byte, error) {
	if int64(len(pack)) != m.Pack.Size || sum(pack) != m.Pack.SHA256 {
		return nil, failf(ErrUntrusted, "pack %.12s does not have its sum", m.Pack.SHA256)
	}
	d, err := decompressor(bytes.NewReader(pack))
	if err != nil {
		return nil, fmt.Errorf("bundle: pack: %w", err)
	}
	defer d.Close()
	for _, f := range m.Files {
		raw := make([]byte, f.Size)
		if _, err := io.ReadFull(d, raw); err != nil {
			return nil, failf(ErrUntrusted, "pack, at %s: %w", f.Path, err)
		}
		if f.Path == name {
			if sum(raw) != f.SHA256 {
				return nil, failf(ErrUntrusted, "%s does not have its sum", f.Path)
			}
			return raw, nil
		}
	}
	return nil, fmt.Errorf("bundle: %s: %w", name, fs.ErrNotExist)
}

// Keys of the store.
func manifestKey(s string) string { return "v1/man/" + s }
func packKey(s string) string     { return "v1/pack/" + s }
func blobKey(s string) string     { return "v1/blob/" + s[:2] + "/" + s }
func binKey(s string) string      { return "v1/bin/" + s }
func rootKey(n int) string        { return fmt.Sprintf("v1/root/%d.json", n) }

func channelKey(org, name string) string { return "v1/chan/" + org + "/" + name + ".json" }
func freshKey(org, name string) string   { return "v1/fresh/" + org + "/" + name + ".json" }

// numberedKey pads, so that a listing is in order.
func numberedKey(org, name string, seq uint64) string {
	return fmt.Sprintf("v1/chan/%s/%s/%012d.json", org, name, seq)
}
