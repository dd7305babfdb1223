package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/kuroko-faas/kuroko/oss"
)

// mem is an oss.Store in memory that fails on demand.
type mem struct {
	mu      sync.Mutex
	objects map[string][]byte
	// fault is asked before every call; op is get, put, create.
	fault func(op, key string) error
	// body wraps what Get returns.
	body func(key string, data []byte) io.ReadCloser
	gets map[string]int // by key
}

var _ oss.Store = (*mem)(nil)

func newMem() *mem { return &mem{objects: map[string][]byte{}, gets: map[string]int{}} }

func (m *mem) check(ctx context.Context, op, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	f := m.fault
	m.mu.Unlock()
	if f != nil {
		return f(op, key)
	}
	return nil
}

func etag(b []byte) string {
	s := sha256.Sum256(b)
	return `"` + hex.EncodeToString(s[:8]) + `"`
}

func (m *mem) Get(ctx context.Context, key string, o oss.GetOptions) (*oss.Object, error) {
	m.mu.Lock()
	m.gets[key]++
	m.mu.Unlock()
	if err := m.check(ctx, "get", key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[key]
	if !ok {
		return nil, fmt.Errorf("oss: get %s: %w", key, oss.ErrNotFound)
	}
	if o.IfNoneMatch == etag(b) {
		return nil, oss.ErrNotModified
	}
	body := io.NopCloser(bytes.NewReader(b))
	if m.body != nil {
		body = m.body(key, b)
	}
	return &oss.Object{Info: oss.Info{Key: key, ETag: etag(b), Size: int64(len(b))}, Body: body}, nil
}

func (m *mem) Put(ctx context.Context, key string, b []byte, _ oss.PutOptions) error {
	if err := m.check(ctx, "put", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key] = bytes.Clone(b)
	return nil
}

func (m *mem) Create(ctx context.Context, key string, b []byte, _ oss.PutOptions) error {
	if err := m.check(ctx, "create", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; ok {
		return oss.ErrExists
	}
	m.objects[key] = bytes.Clone(b)
	return nil
}

func (m *mem) List(_ context.Context, prefix string, limit int) ([]oss.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []oss.Info
	for _, k := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(k, prefix) && (limit <= 0 || len(out) < limit) {
			out = append(out, oss.Info{Key: k, Size: int64(len(m.objects[k]))})
		}
	}
	return out, nil
}

func (m *mem) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

func (m *mem) set(key string, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key] = b
}

func (m *mem) at(key string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects[key]
}

// count says how often keys with that prefix were read since the last call.
func (m *mem) count(prefix string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for k, c := range m.gets {
		if strings.HasPrefix(k, prefix) {
			n += c
		}
	}
	return n
}

func (m *mem) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gets = map[string]int{}
}

func (m *mem) setFault(f func(op, key string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

// down is a fault for every call.
func down(op, key string) error {
	return &oss.Unavailable{Op: op + " " + key, Endpoint: "store.test", Status: 503, Code: "ServiceUnavailable", Attempts: 4}
}

// hang is a store that never answers.
type hang struct{}

func (hang) Get(ctx context.Context, _ string, _ oss.GetOptions) (*oss.Object, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// brokenBody ends in the middle.
type brokenBody struct{ r io.Reader }

func (b brokenBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
func (brokenBody) Close() error { return nil }
