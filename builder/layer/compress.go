package layer

import (
	"bufio"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
)

// Compressor names how a layer is compressed. The zero value is [Gzip].
type Compressor string

const (
	// Gzip is gzip at level 6: every registry and every runtime reads it.
	Gzip Compressor = "gzip"
	// Parallel is gzip at level 6 in blocks of 1 MiB, compressed at once on as
	// many processors as there are: the bytes don't depend on their number. It
	// takes more memory than Gzip, and a few bytes more per block.
	Parallel Compressor = "pgzip"
	// Zstd is zstd at level 3: a fifth smaller and faster, but older
	// container runtimes can't pull it.
	Zstd Compressor = "zstd"
)

// compressVersion is the version of the compression module. Another version
// may write other bytes for the same input; a test compares it to go.mod.
const compressVersion = "1.20.3"

// parallelVersion is that of the module that cuts into blocks.
const parallelVersion = "1.3.0"

// ID names algorithm, level and version. It belongs in every key of something
// compressed: the digest depends on it.
func (c Compressor) ID() string {
	switch c {
	case Parallel:
		return "pgzip6-1m-" + parallelVersion + "-klauspost-" + compressVersion
	case Zstd:
		return "zstd3-klauspost-" + compressVersion
	default:
		return "gzip6-klauspost-" + compressVersion
	}
}

// MediaType is the OCI media type of a layer compressed so.
func (c Compressor) MediaType() types.MediaType {
	if c == Zstd {
		return types.OCILayerZStd
	}
	return types.OCILayer
}

func (c Compressor) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Gzip, "":
		return gzip.NewWriterLevel(w, 6)
	case Parallel:
		z, err := pgzip.NewWriterLevel(w, 6)
		if err != nil {
			return nil, err
		}
		return z, z.SetConcurrency(1<<20, 4)
	case Zstd:
		// One goroutine: the bytes must not depend on the number of cores.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(3)),
			zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	}
	return nil, fmt.Errorf("layer: unknown compressor %q", string(c))
}

func (c Compressor) reader(r io.Reader) (io.ReadCloser, error) {
	if c == Zstd {
		z, err := zstd.NewReader(r)
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return gzip.NewReader(bufio.NewReader(r))
}
