package layer

import (
	"archive/zip"
	"encoding/binary"
	"io"
	"path"
	"strings"
)

const (
	// elfMagic begins programs, shared libraries and Node's addons.
	elfMagic = "\x7fELF"
	// zipMagic begins archives; a jar that is a program as well has a script
	// before it.
	zipMagic = "PK\x03\x04"
)

// Bounds of what is looked into: an archive's own depth (an ear holds wars
// that hold jars), how much its members unpack to, how long its list may be.
const (
	archiveDepth = 4
	archiveBytes = 1 << 30
	archiveList  = 8 << 20
)

// isArchive tells from a file's name and beginning whether it is looked into.
func isArchive(name string, head []byte) bool {
	switch path.Ext(strings.ToLower(name)) {
	case ".jar", ".war", ".ear":
		return true
	}
	return string(head) == zipMagic
}

// archive looks for machine code in zip archives, as Java's libraries carry
// it: packed in a jar, and unpacked to be loaded. What it can't look into
// counts as machine code: too big, too deep, damaged.
type archive struct {
	temp string
	left int64 // bytes that may still be unpacked
}

func (a *archive) native(r io.ReaderAt, size int64, depth int) bool {
	if depth == 0 || !shortList(r, size) {
		return true
	}
	z, err := zip.NewReader(r, size)
	if err != nil {
		return true
	}
	for _, f := range z.File {
		if f.Mode().IsDir() || path.Ext(f.Name) == ".class" {
			continue
		}
		if a.member(f, depth) {
			return true
		}
	}
	return false
}

func (a *archive) member(f *zip.File, depth int) bool {
	r, err := f.Open()
	if err != nil {
		return true
	}
	defer r.Close()
	body := &sniffer{r: r}
	if _, err := io.ReadFull(body, make([]byte, len(elfMagic))); err == io.EOF || err == io.ErrUnexpectedEOF {
		return false // shorter than any program
	} else if err != nil {
		return true
	}
	if string(body.head[:]) == elfMagic {
		return true
	}
	if !isArchive(f.Name, body.head[:]) {
		return false
	}
	inner := &Spool{Dir: a.temp}
	defer inner.Close()
	_, _ = inner.Write(body.head[:]) // it fits in memory
	n, err := io.Copy(inner, io.LimitReader(body, a.left+1))
	if a.left -= n; err != nil || a.left < 0 {
		return true
	}
	return a.native(inner.Section(0, inner.Len()), inner.Len(), depth-1)
}

// shortList makes sure that an archive's list of members fits in memory, which
// it is read into whole. Its size stands near the end.
func shortList(r io.ReaderAt, size int64) bool {
	const (
		endMagic = "PK\x05\x06"
		endSize  = 22
	)
	tail := make([]byte, min(size, endSize+1<<16)) // a comment may follow
	if n, _ := r.ReadAt(tail, size-int64(len(tail))); n < len(tail) {
		return false
	}
	at := strings.LastIndex(string(tail), endMagic)
	if at < 0 || len(tail)-at < endSize {
		return false
	}
	return binary.LittleEndian.Uint32(tail[at+12:]) <= archiveList
}
