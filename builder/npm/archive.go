package npm

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// unpacked is a package's files, the way npm puts them on disk.
type unpacked struct {
	files []file // sorted by path
	data  *layer.Spool
}

type file struct {
	path string // below the package's folder
	exec bool
	off  int64
	size int64
}

// errUnreadable is an archive that passed its integrity check but has a form
// that we don't read. npm may.
var errUnreadable = errors.New("its archive has a form that only npm reads")

// unpack reads an archive by npm's rules: the first folder is cut off, only
// files count, of several equal names the last one's content does, and
// .gitignore becomes .npmignore where there is none. A name that leaves the
// package, and sizes beyond the limits, give [fetch.ErrHostile].
func unpack(r io.Reader, data *layer.Spool, l fetch.Limits) (*unpacked, error) {
	zr, err := gzip.NewReader(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errUnreadable, err)
	}
	defer zr.Close()
	// The limit holds for everything that comes out of the compressor:
	// headers and ignored entries cost time as well.
	capped := &io.LimitedReader{R: zr, N: l.Package + int64(l.Files)*1024 + 1<<20}
	tr := tar.NewReader(capped)
	files := map[string]file{}
	npmignore := map[string]bool{}
	var entries int
	buf := make([]byte, 32<<10) // for all files: most are smaller
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, readError(capped, err, l)
		}
		if entries++; entries > l.Files {
			return nil, fmt.Errorf("%w: it has more than %d files", fetch.ErrHostile, l.Files)
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeCont:
		case tar.TypeGNUSparse:
			return nil, fmt.Errorf("%w: a sparse file", errUnreadable)
		default:
			continue // npm makes folders for files only, and no links at all
		}
		name, err := entryName(h.Name)
		if err != nil {
			return nil, err
		}
		if name == "" {
			continue
		}
		switch path.Base(name) {
		case ".npmignore":
			npmignore[name] = true
		case ".gitignore":
			renamed := strings.TrimSuffix(name, ".gitignore") + ".npmignore"
			if npmignore[renamed] {
				continue
			}
			name = renamed
		}
		f := file{path: name, exec: h.Mode&0o111 != 0, off: data.Len()}
		if f.size, err = io.CopyBuffer(data, io.LimitReader(tr, l.Package-data.Len()+1), buf); err != nil {
			return nil, readError(capped, err, l)
		}
		if data.Len() > l.Package {
			return nil, fmt.Errorf("%w: it unpacks to more than %d bytes", fetch.ErrHostile, l.Package)
		}
		if have, again := files[name]; again {
			f.exec = have.exec // new content in the file that is there
		}
		files[name] = f
	}
	u := &unpacked{data: data}
	for _, f := range files {
		u.files = append(u.files, f)
	}
	slices.SortFunc(u.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return u, nil
}

func readError(capped *io.LimitedReader, err error, l fetch.Limits) error {
	var disk *layer.TempError
	switch {
	case errors.As(err, &disk):
		return err // our side, not the archive's
	case capped.N <= 0:
		return fmt.Errorf("%w: it unpacks to more than %d bytes", fetch.ErrHostile, l.Package)
	}
	return fmt.Errorf("%w: %v", errUnreadable, err)
}

// entryName is the name below the package's folder: without the first folder,
// whatever it is called. Names without one are not part of the package.
func entryName(name string) (string, error) {
	switch {
	case strings.ContainsRune(name, 0), !utf8.ValidString(name):
		return "", fmt.Errorf("%w: a name in it is not text: %q", fetch.ErrHostile, name)
	case strings.HasPrefix(name, "/"):
		return "", fmt.Errorf("%w: it holds the absolute name %q", fetch.ErrHostile, name)
	case len(name) > 4096:
		return "", fmt.Errorf("%w: a name in it has %d bytes", fetch.ErrHostile, len(name))
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w: it holds the name %q", fetch.ErrHostile, name)
		}
	}
	_, rest, _ := strings.Cut(path.Clean(name), "/")
	return rest, nil
}
