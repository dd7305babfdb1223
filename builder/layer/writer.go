package layer

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Entry is one file, folder or link of a layer.
type Entry struct {
	// Name is the path in the image, with or without a leading slash.
	Name string
	// Mode's type bits choose folder, symbolic link or regular file; its
	// permission, setuid, setgid and sticky bits are written as they are.
	Mode fs.FileMode
	// UID and GID are numbers in the image; 0 is root.
	UID, GID int
	// Link is the target of a symbolic link, or with Hard the path in the
	// image of a file added before.
	Link string
	Hard bool
	// Size is how many bytes Body has; more or fewer is an error.
	Size int64
	Body io.Reader
}

// Writer makes one layer out of entries, in the order they are added. Callers
// who want the layer to depend on content alone add in a sorted order. Missing
// parent folders are added with mode 0755 and owner root. Not safe for
// concurrent use.
type Writer struct {
	spool  *Spool
	comp   Compressor
	raw    *counter
	cooked *counter
	z      io.WriteCloser
	zbuf   *bufio.Writer
	tar    *tar.Writer
	seen   map[string]byte // typeflag by cleaned name
	copy   []byte
	look   bool // for machine code in archives
	native bool
	err    error
}

// NewWriter starts a layer. dir holds the temporary file if one is needed; ""
// is the system's folder.
func NewWriter(dir string, c Compressor) (*Writer, error) {
	return newWriter(&Spool{Dir: dir}, c)
}

func newWriter(s *Spool, c Compressor) (*Writer, error) {
	out := &counter{w: s, h: sha256.New()}
	z, err := c.writer(out)
	if err != nil {
		return nil, err
	}
	w := openWriter(s, c, z)
	w.cooked, w.look = out, true
	return w, nil
}

// openWriter starts a layer whose tar stream goes to z.
func openWriter(s *Spool, c Compressor, z io.WriteCloser) *Writer {
	w := &Writer{spool: s, comp: c, seen: map[string]byte{}, z: z, cooked: &counter{h: sha256.New()}}
	// The tar writer makes many small writes; compressors like big ones.
	w.zbuf = bufio.NewWriterSize(z, 64<<10)
	w.raw = &counter{w: w.zbuf, h: sha256.New()}
	w.tar = tar.NewWriter(w.raw)
	return w
}

// counter counts and hashes what it hands on.
type counter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	return n, err
}

func (c *counter) hash() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(c.h.Sum(nil))}
}

// ErrDuplicate is the cause when a name is added twice.
var ErrDuplicate = errors.New("the name is there already")

// ErrNotFolder is the cause when something is added below a file or a link.
var ErrNotFolder = errors.New("what is above it is not a folder")

// ErrChanged is the cause when a file had another size than announced: it was
// written to while it was read.
var ErrChanged = errors.New("the file changed while it was read")

// Has tells whether name was added, and whether as a folder.
func (w *Writer) Has(name string) (found, dir bool) {
	t, ok := w.seen[strings.Trim(path.Clean("/"+name), "/")]
	return ok, t == tar.TypeDir
}

// Add writes one entry. A folder may be added again and is then left as it
// was; any other name that is there already gives [ErrDuplicate]. After an
// error the layer can only be aborted.
func (w *Writer) Add(e Entry) error {
	if w.err != nil {
		return w.err
	}
	if err := w.add(e); err != nil {
		w.err = fmt.Errorf("layer: add %q: %w", e.Name, err)
		return w.err
	}
	return nil
}

func (w *Writer) add(e Entry) error {
	name, err := cleanName(e.Name)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX, Uid: e.UID, Gid: e.GID, Mode: tarMode(e.Mode)}
	switch {
	case e.Hard:
		target, err := cleanName(e.Link)
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", e.Link, err)
		}
		if t, ok := w.seen[target]; !ok || t == tar.TypeDir {
			return fmt.Errorf("hard link to %q, which was not added before", e.Link)
		}
		h.Typeflag, h.Linkname = tar.TypeLink, target
	case e.Mode.IsDir():
		if w.seen[name] == tar.TypeDir {
			return nil
		}
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case e.Mode.Type() == fs.ModeSymlink:
		if e.Link == "" || strings.ContainsRune(e.Link, 0) || !utf8.ValidString(e.Link) {
			return fmt.Errorf("bad link target %q", e.Link)
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Link, 0o777
	case e.Mode.IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	default:
		return fmt.Errorf("a %s can't go into a layer", typeName(e.Mode))
	}
	if _, ok := w.seen[name]; ok {
		return ErrDuplicate
	}
	if err := w.parents(name); err != nil {
		return err
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	w.seen[name] = h.Typeflag
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	return w.body(e)
}

// body copies exactly e.Size bytes and makes sure that there are no more.
func (w *Writer) body(e Entry) error {
	if e.Size == 0 && e.Body == nil {
		return nil
	}
	if w.copy == nil {
		w.copy = make([]byte, 64<<10)
	}
	body := &sniffer{r: e.Body}
	n, inside, err := w.copied(e.Name, body)
	if inside != nil {
		defer inside.Close()
	}
	switch {
	case errors.Is(err, tar.ErrWriteTooLong):
		return fmt.Errorf("%w: more than %d bytes", ErrChanged, e.Size)
	case err != nil:
		return err
	case n != e.Size:
		return fmt.Errorf("%w: %d bytes of %d", ErrChanged, n, e.Size)
	}
	switch {
	case w.native:
	case inside != nil:
		a := &archive{temp: inside.Dir, left: archiveBytes}
		w.native = a.native(inside.Section(0, inside.Len()), inside.Len(), archiveDepth)
	default:
		w.native = string(body.head[:body.n]) == elfMagic
	}
	return nil
}

// copied writes the body into the layer. An archive is kept aside as well, to
// be looked into, as long as no machine code was found.
func (w *Writer) copied(name string, body *sniffer) (n int64, inside *Spool, err error) {
	to := onlyWriter{w.tar}
	var head [len(elfMagic)]byte
	k, err := io.ReadFull(body, head[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return 0, nil, err
	}
	if w.look && !w.native && isArchive(name, head[:k]) {
		inside = &Spool{Dir: w.spool.Dir}
		to = onlyWriter{io.MultiWriter(w.tar, inside)}
	}
	wrote, err := to.Write(head[:k])
	if err != nil {
		return int64(wrote), inside, err
	}
	n, err = io.CopyBuffer(to, body, w.copy)
	return n + int64(wrote), inside, err
}

// sniffer keeps the first bytes of what it reads. Like onlyWriter it hides
// WriteTo and ReadFrom, which would go around our buffer and its bound.
type sniffer struct {
	r    io.Reader
	head [len(elfMagic)]byte
	n    int
}

func (s *sniffer) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += copy(s.head[s.n:], p[:n])
	return n, err
}

type onlyWriter struct{ io.Writer }

func (w *Writer) parents(name string) error {
	for i := 0; i < len(name); i++ {
		if name[i] != '/' {
			continue
		}
		dir := name[:i]
		switch t, ok := w.seen[dir]; {
		case ok && t != tar.TypeDir:
			return fmt.Errorf("%w: %q", ErrNotFolder, dir)
		case ok:
			continue
		}
		err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755,
			ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
		if err != nil {
			return err
		}
		w.seen[dir] = tar.TypeDir
	}
	return nil
}

// Close finishes the layer. The caller closes the Layer.
func (w *Writer) Close() (*Layer, error) {
	defer w.Abort()
	if w.err != nil {
		return nil, w.err
	}
	if err := errors.Join(w.tar.Close(), w.zbuf.Flush(), w.z.Close()); err != nil {
		return nil, err
	}
	l := &Layer{comp: w.comp, spool: w.spool, info: Info{
		Digest: w.cooked.hash(), DiffID: w.raw.hash(), Size: w.cooked.n, Raw: w.raw.n, MediaType: w.comp.MediaType(), Native: w.native,
	}}
	w.spool = nil // the layer's now
	return l, nil
}

// Abort gives up the layer and its temporary file. After Close it does nothing.
func (w *Writer) Abort() {
	if w.err == nil {
		w.err = errors.New("layer: the writer is closed")
	}
	if w.spool != nil {
		w.spool.Close()
		w.spool = nil
	}
}

// cleanName makes a path in the image out of what a caller or an archive says.
func cleanName(name string) (string, error) {
	switch {
	case strings.ContainsRune(name, 0):
		return "", errors.New("the name holds a zero byte")
	case !utf8.ValidString(name):
		return "", errors.New("the name is not UTF-8")
	}
	trimmed := strings.TrimPrefix(name, "/")
	for _, part := range strings.Split(trimmed, "/") {
		if part == ".." {
			return "", errors.New("the name leaves the layer")
		}
	}
	clean := path.Clean(trimmed)
	if clean == "." || clean == "/" || clean == "" {
		return "", errors.New("the name is empty")
	}
	return strings.TrimPrefix(clean, "/"), nil
}

func tarMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	if m&fs.ModeSetuid != 0 {
		mode |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		mode |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	return mode
}

func typeName(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "file of type " + m.Type().String()
}
