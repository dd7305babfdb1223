package ossd

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrLocked is New's error for a folder that another process has open.
var ErrLocked = errors.New("the folder is in use by another object store")

// The folder:
//
//	.lock                          held while open
//	.tmp/…                         uploads under way; emptied at open
//	<bucket>/bucket.json           name, ACL, versioning
//	<bucket>/objects/<sha256 of the key>-<version>
//
// An object file is its content, then the description as JSON, then a tail
// of fixed size that says how long the JSON is. Content comes first because
// its checksums are known last. One rename makes an object visible, replacing
// the version of the same name; one unlink removes it.
type store struct {
	root string
	lock *os.File

	mu      sync.RWMutex // guards what follows and the visible files
	buckets map[string]*bucket
	seq     int64
}

// bucket is stored as JSON without its content.
type bucket struct {
	Name       string
	ACL        ACL
	Versioning string // "", "Enabled" or "Suspended"
	Created    time.Time

	objects map[string][]*object // versions, newest last; never an empty list
	uploads map[string]*upload
}

// object is one version, immutable once it is in a bucket.
type object struct {
	Key     string
	Version string // "null" for what is written without versioning
	Seq     int64  // orders versions
	Deleted bool   // a delete marker
	Type    string // Normal, Appendable, Multipart
	ETag    string // without quotes
	MD5     string // upper-case hex
	Size    int64
	CRC     uint64
	Mod     time.Time
	ACL     ACL               // "" or "default": the bucket's
	Header  map[string]string // kept headers, by canonical name
}

const (
	nullVersion = "null"
	tailFormat  = "%08x ossd1\n"
	tailSize    = 15
)

var crcTable = crc64.MakeTable(crc64.ECMA)

func randomID(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails
	return strings.ToUpper(hex.EncodeToString(b))
}

func openStore(root string) (*store, error) {
	s := &store{root: root, buckets: map[string]*bucket{}}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("ossd: %w", err)
	}
	var err error
	if s.lock, err = lockFile(filepath.Join(root, ".lock")); err != nil {
		return nil, fmt.Errorf("ossd: open %s: %w", root, err)
	}
	if err := s.load(); err != nil {
		s.close()
		return nil, fmt.Errorf("ossd: open %s: %w", root, err)
	}
	return s, nil
}

func (s *store) close() error { return s.lock.Close() }

func (s *store) load() error {
	if err := os.RemoveAll(s.tmp()); err != nil {
		return err
	}
	if err := os.Mkdir(s.tmp(), 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(s.root, e.Name(), "bucket.json"))
		if !e.IsDir() || errors.Is(err, os.ErrNotExist) {
			continue // also a bucket whose creation was cut short
		}
		if err != nil {
			return err
		}
		b := &bucket{objects: map[string][]*object{}, uploads: map[string]*upload{}}
		if err := json.Unmarshal(raw, b); err != nil {
			return fmt.Errorf("%s/bucket.json: %w", e.Name(), err)
		}
		if b.Name != e.Name() {
			return fmt.Errorf("%s/bucket.json describes bucket %q", e.Name(), b.Name)
		}
		if err := s.loadObjects(b); err != nil {
			return err
		}
		s.buckets[b.Name] = b
	}
	return nil
}

func (s *store) loadObjects(b *bucket) error {
	dir := filepath.Join(s.root, b.Name, "objects")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		o, err := readDescription(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if e.Name() != fileName(o) {
			return fmt.Errorf("%s: it describes key %q, version %s", filepath.Join(dir, e.Name()), o.Key, o.Version)
		}
		b.objects[o.Key] = append(b.objects[o.Key], o)
		s.seq = max(s.seq, o.Seq)
	}
	for _, versions := range b.objects {
		slices.SortFunc(versions, func(x, y *object) int { return int(x.Seq - y.Seq) })
	}
	return nil
}

// readDescription reads what follows an object file's content.
func readDescription(path string) (*object, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	o, err := parseDescription(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w); remove it to go on without it", path, err)
	}
	return o, nil
}

func parseDescription(f io.ReaderAt, size int64) (*object, error) {
	tail := make([]byte, tailSize)
	if size < tailSize {
		return nil, errors.New("too short")
	}
	if _, err := f.ReadAt(tail, size-tailSize); err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(string(tail[:8]), 16, 32)
	if err != nil || string(tail[8:]) != " ossd1\n" || int64(n) > size-tailSize {
		return nil, errors.New("bad end")
	}
	raw := make([]byte, n)
	if _, err := f.ReadAt(raw, size-tailSize-int64(n)); err != nil {
		return nil, err
	}
	var o object
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	if o.Key == "" || o.Version == "" || o.Size != size-tailSize-int64(n) {
		return nil, errors.New("the description does not fit the content")
	}
	return &o, nil
}

func (s *store) tmp() string { return filepath.Join(s.root, ".tmp") }

func fileName(o *object) string {
	sum := sha256.Sum256([]byte(o.Key))
	return hex.EncodeToString(sum[:]) + "-" + o.Version
}

func (s *store) path(b *bucket, o *object) string {
	return filepath.Join(s.root, b.Name, "objects", fileName(o))
}

// staged is content that was received and is not visible yet.
type staged struct {
	path string
	size int64
	md5  string // upper-case hex
	crc  uint64
}

// stage writes body to a temporary file.
func (s *store) stage(body io.Reader) (*staged, error) {
	st := &staged{path: filepath.Join(s.tmp(), randomID(16))}
	f, err := os.OpenFile(st.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	sum, crc := md5.New(), crc64.New(crcTable)
	st.size, err = io.Copy(io.MultiWriter(f, sum, crc), body)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		st.drop()
		return nil, err
	}
	st.md5, st.crc = strings.ToUpper(hex.EncodeToString(sum.Sum(nil))), crc.Sum64()
	return st, nil
}

func (st *staged) drop() { os.Remove(st.path) } // what stays is removed at the next open

// commit makes content the newest version of o.Key and completes o. The
// caller holds mu.
func (s *store) commit(b *bucket, o *object, content *staged, now time.Time) error {
	o.Version = nullVersion
	if b.Versioning == "Enabled" {
		o.Version = "CAE" + randomID(12)
	}
	o.Seq, o.Mod = s.seq+1, now
	o.Size, o.MD5, o.CRC = content.size, content.md5, content.crc
	if o.ETag == "" {
		o.ETag = content.md5
	}
	if err := s.publish(b, o, content); err != nil {
		return err
	}
	s.seq++
	versions := slices.DeleteFunc(slices.Clone(b.objects[o.Key]), func(v *object) bool { return v.Version == o.Version })
	b.objects[o.Key] = append(versions, o)
	return nil
}

// publish completes the file of o and renames it into place.
func (s *store) publish(b *bucket, o *object, content *staged) error {
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(content.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s"+tailFormat, raw, len(raw))
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(content.path, s.path(b, o))
	}
	if err != nil {
		content.drop()
	}
	return err
}

// setACL rewrites o with another ACL. The caller holds mu.
func (s *store) setACL(b *bucket, o *object, acl ACL) error {
	content, err := s.copyOf(b, o)
	if err != nil {
		return err
	}
	next := *o
	next.ACL = acl
	if err := s.publish(b, &next, content); err != nil {
		return err
	}
	versions := b.objects[o.Key]
	versions[slices.Index(versions, o)] = &next
	return nil
}

// copyOf stages o's content. The caller holds mu, at least for reading.
func (s *store) copyOf(b *bucket, o *object) (*staged, error) {
	f, err := os.Open(s.path(b, o))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return s.stage(io.LimitReader(f, o.Size))
}

// remove deletes one version, or (version "") what a plain delete means in
// this bucket. It returns the version that went or, marker true, the delete
// marker that came or went. The caller holds mu.
func (s *store) remove(b *bucket, key, version string, now time.Time) (id string, marker bool, err error) {
	if version == "" && b.Versioning != "" {
		empty, err := s.stage(strings.NewReader(""))
		if err != nil {
			return "", false, err
		}
		o := &object{Key: key, Deleted: true}
		if err := s.commit(b, o, empty, now); err != nil {
			return "", false, err
		}
		return o.Version, true, nil
	}
	if version == "" {
		version = nullVersion
	}
	o := b.version(key, version)
	if o == nil {
		return version, false, nil
	}
	if err := os.Remove(s.path(b, o)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", false, err
	}
	b.objects[key] = slices.DeleteFunc(slices.Clone(b.objects[key]), func(v *object) bool { return v == o })
	if len(b.objects[key]) == 0 {
		delete(b.objects, key)
	}
	return version, o.Deleted, nil
}

func (b *bucket) newest(key string) *object {
	if v := b.objects[key]; len(v) > 0 {
		return v[len(v)-1]
	}
	return nil
}

// version is the version id of key, or the newest for "".
func (b *bucket) version(key, id string) *object {
	if id == "" {
		return b.newest(key)
	}
	for _, o := range b.objects[key] {
		if o.Version == id {
			return o
		}
	}
	return nil
}

func (b *bucket) keys() []string { return slices.Sorted(maps.Keys(b.objects)) }

func (s *store) createBucket(name string, acl ACL, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[name]
	if b == nil {
		b = &bucket{Name: name, Created: now, objects: map[string][]*object{}, uploads: map[string]*upload{}}
		if err := os.MkdirAll(filepath.Join(s.root, name, "objects"), 0o755); err != nil {
			return err
		}
	}
	old := b.ACL
	b.ACL = acl
	if err := s.saveBucket(b); err != nil {
		b.ACL = old
		return err
	}
	s.buckets[name] = b
	return nil
}

// saveBucket writes bucket.json. The caller holds mu.
func (s *store) saveBucket(b *bucket) error {
	raw, err := json.Marshal(b)
	if err != nil {
		return err
	}
	tmp := filepath.Join(s.tmp(), randomID(16))
	if err := os.WriteFile(tmp, raw, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.root, b.Name, "bucket.json"))
}

// deleteBucket removes an empty bucket. The caller holds mu.
func (s *store) deleteBucket(b *bucket) error {
	for _, u := range b.uploads {
		u.drop()
	}
	dir := filepath.Join(s.root, b.Name)
	if err := os.Remove(filepath.Join(dir, "bucket.json")); err != nil { // from here on it is gone
		return err
	}
	delete(s.buckets, b.Name)
	return os.RemoveAll(dir)
}
