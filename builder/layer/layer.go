// Package layer writes image layers that depend on nothing but their content:
// the same files give the same digest on any machine, under any umask, owner
// or modification time.
//
// A layer streams through tar, a hash (the diffID), a compressor and another
// hash (the digest) into a spool: memory for small layers, an unlinked
// temporary file for the rest, so that memory stays bounded whatever the
// layer's size.
package layer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Info is what an image's manifest and configuration say about a layer.
type Info struct {
	Digest    v1.Hash         `json:"digest"` // of the compressed bytes
	DiffID    v1.Hash         `json:"diffID"` // of the tar stream
	Size      int64           `json:"size"`   // compressed bytes
	Raw       int64           `json:"raw"`    // bytes of the tar stream
	MediaType types.MediaType `json:"mediaType"`
	// Native means that a file is machine code (ELF), or an archive with some
	// inside, as jars have: it fits one kind of processor and the system
	// libraries that it was linked against. Archives that can't be looked into
	// count as well.
	Native bool `json:"native,omitempty"`
}

// Descriptor is the layer's entry in a manifest.
func (i Info) Descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: i.MediaType, Digest: i.Digest, Size: i.Size}
}

// Layer is a finished layer and its content. It implements [v1.Layer], so
// that go-containerregistry can append, validate and write it. Safe for
// concurrent use until Close.
type Layer struct {
	info  Info
	comp  Compressor
	spool *Spool
}

var _ v1.Layer = (*Layer)(nil)

// Info describes the layer.
func (l *Layer) Info() Info { return l.info }

// Open gives the compressed bytes from the start; each call has its own
// position. The reader is valid until the layer is closed.
func (l *Layer) Open() io.ReadSeeker { return l.spool.Section(0, l.spool.Len()) }

// Close gives the spool's space back.
func (l *Layer) Close() error { return l.spool.Close() }

// Digest is the hash of the compressed bytes.
func (l *Layer) Digest() (v1.Hash, error) { return l.info.Digest, nil }

// DiffID is the hash of the tar stream.
func (l *Layer) DiffID() (v1.Hash, error) { return l.info.DiffID, nil }

// Size is the number of compressed bytes.
func (l *Layer) Size() (int64, error) { return l.info.Size, nil }

// MediaType names tar and compression in OCI's words.
func (l *Layer) MediaType() (types.MediaType, error) { return l.info.MediaType, nil }

// Compressed reads the layer as it is pushed.
func (l *Layer) Compressed() (io.ReadCloser, error) { return io.NopCloser(l.Open()), nil }

// Uncompressed reads the tar stream.
func (l *Layer) Uncompressed() (io.ReadCloser, error) { return l.comp.reader(l.Open()) }

// inMemory is how many bytes a spool holds before it goes to disk.
const inMemory = 1 << 20

// Spool keeps what is written to it: a little in memory, more in an unlinked
// temporary file, whose space the system takes back even after a kill. The
// zero value works. Writing is not safe for concurrent use; reading is, once
// writing has ended.
type Spool struct {
	Dir string // for the temporary file; "" is the system's folder
	// Memory is how many bytes stay in memory; 0 means 1 MiB.
	Memory int

	buf []byte
	f   *os.File
	n   int64
}

func (s *Spool) Write(p []byte) (int, error) {
	if s.f == nil {
		limit := s.Memory
		if limit == 0 {
			limit = inMemory
		}
		if len(s.buf)+len(p) <= limit {
			if cap(s.buf)-len(s.buf) < len(p) {
				// append grows large slices by a quarter, and copies each time.
				s.buf = slices.Grow(s.buf, max(len(p), min(len(s.buf), limit-len(s.buf))))
			}
			s.buf = append(s.buf, p...)
			s.n += int64(len(p))
			return len(p), nil
		}
		f, err := Temp(s.Dir)
		if err != nil {
			return 0, err
		}
		s.f = f
		if err := s.flush(s.buf); err != nil {
			return 0, err
		}
		s.buf = nil
	}
	if err := s.flush(p); err != nil {
		return 0, err
	}
	s.n += int64(len(p))
	return len(p), nil
}

func (s *Spool) flush(p []byte) error {
	if _, err := s.f.Write(p); err != nil {
		return SpoolError(s.Dir, err)
	}
	return nil
}

// Len is the number of bytes written.
func (s *Spool) Len() int64 { return s.n }

// Section reads n bytes from off on, with a position of its own.
func (s *Spool) Section(off, n int64) *io.SectionReader {
	if s.f == nil {
		return io.NewSectionReader(readerAt(s.buf), off, n)
	}
	return io.NewSectionReader(s.f, off, n)
}

// Close gives memory and disk back.
func (s *Spool) Close() error {
	s.buf = nil
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}

type readerAt []byte

func (b readerAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Temp makes a temporary file in dir ("" is the system's folder) that has no
// name any more: closing it, or the end of the process, frees its space.
func Temp(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "kuroko-layer-*")
	if err != nil {
		return nil, SpoolError(dir, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, SpoolError(dir, err)
	}
	return f, nil
}

// TempError is a folder that could not take temporary data. The cause, such
// as syscall.ENOSPC, is kept for errors.Is.
type TempError struct {
	Dir string
	Err error
}

func (e *TempError) Error() string {
	return fmt.Sprintf("layer: write temporary data in %s: %v", e.Dir, e.Err)
}

func (e *TempError) Unwrap() error { return e.Err }

// SpoolError makes a [*TempError]; "" is the system's folder.
func SpoolError(dir string, err error) error {
	if dir == "" {
		dir = os.TempDir()
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err // the file has no name worth telling
	}
	return &TempError{dir, err}
}
