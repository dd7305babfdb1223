package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/oss"
)

func TestResolveAndOpen(t *testing.T) {
	l := newLab(t)
	id := l.publish("1.0.0", 100)
	c := l.client()
	c.Cache = t.TempDir()
	b := l.must(c, l.query())
	if b.Digest != "sha256:"+id || b.Choice.Source != SourceChannel || b.Choice.Seq != 1 || b.Choice.Version != "1.0.0" || len(b.Warnings) > 0 {
		t.Errorf("got %+v", b.Choice)
	}
	if b.Meta.Version != "1.0.0" || b.Meta.Runtimes["nodejs18"].Base != "base/nodejs18"+fakeDigest {
		t.Errorf("bundle.yml: %+v", b.Meta)
	}
	got := files(t, b.Dir)
	if got["scripts/hello.sh"] != "-r-xr-xr-x #!/bin/sh\necho hello\n" || got["runtimes/node/main.js"] != "-r--r--r-- // adapter\n" {
		t.Errorf("files: %v", got)
	}
	in, err := os.Stat(filepath.Dir(b.Dir))
	if err != nil || in.Mode().Perm() != 0o700 {
		t.Errorf("the private copy's folder has mode %v, %v", in.Mode(), err)
	}

	// The second job of the node costs one conditional request.
	l.store.reset()
	b2 := l.must(c, l.query())
	if l.store.count("") != 1 || l.store.count("v1/chan/") != 1 {
		t.Errorf("requests: %v", l.store.gets)
	}
	if b2.Dir == b.Dir {
		t.Error("two jobs share one copy")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
	if err := new(Bundle).Close(); err != nil {
		t.Error(err)
	}
}

func TestCreatedAtIsClamped(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	for _, tc := range []struct {
		name string
		at   time.Time
		want time.Time
		note string
	}{
		{"believable", l.now.Add(-time.Hour), l.now.Add(-time.Hour), ""},
		{"zero", time.Time{}, l.now, ""},
		{"clock skew", l.now.Add(30 * time.Second), l.now, ""},
		{"future", l.now.Add(time.Hour), l.now, "in the future"},
		{"old", l.now.Add(-73 * time.Hour), l.now, "more than 72 hours ago"},
		{"nearly old", l.now.Add(-72 * time.Hour), l.now.Add(-72 * time.Hour), ""},
	} {
		q := l.query()
		q.At = tc.at
		ch, err := l.client().Resolve(t.Context(), q)
		if err != nil {
			t.Fatal(tc.name, err)
		}
		if !ch.At.Equal(tc.want) || (tc.note != "") != (len(ch.Warnings) == 1) || !strings.Contains(strings.Join(ch.Warnings, "\n"), tc.note) {
			t.Errorf("%s: at %s, warnings %q", tc.name, ch.At, ch.Warnings)
		}
	}
}

// What the store may serve instead of the channel document, and what must
// come of it: refused by a fresh client, ignored with a word by one that knows
// better.
func TestChannelAttacks(t *testing.T) {
	l := newLab(t)
	first := l.publish("1.0.0", 100)
	old := l.store.at("v1/chan/acme/stable.json")
	l.now = l.now.Add(time.Hour)
	l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")
	current := l.store.at("v1/chan/acme/stable.json")
	cacheDir := t.TempDir()
	c := l.client()
	c.Cache = cacheDir
	l.must(c, l.query())

	evil := l.last
	evil.Seq = 99
	evil.Entries = []Entry{{Manifest: first, Version: "evil", From: t0, Percent: 100}}
	mix := evil
	mix.Name = "canary"
	org := evil
	org.Org = "other"
	needs := evil
	needs.Needs = []string{"quorum"}
	format := evil
	format.Format = 2
	wrongType, err := Seal(TypeFresh, evil, l.key)
	if err != nil {
		t.Fatal(err)
	}
	var stripped envelope
	if err := json.Unmarshal(current, &stripped); err != nil {
		t.Fatal(err)
	}
	stripped.Signatures = nil
	nosig, _ := json.Marshal(stripped)
	twice := l.seal(evil, testKey(9), testKey(9))
	flipped := bytes.Replace(current, []byte(`"payload":"`), []byte(`"payload":"A`), 1)
	for _, tc := range []struct {
		name, want string
		raw        []byte
	}{
		{"rollback", "seq 1, but 2 was seen", old},
		{"foreign key", "signed by 0 of 1", l.seal(evil, testKey(9))},
		{"foreign key twice", "signed by 0 of 1", twice},
		{"no signature", "signed by 0 of 1", nosig},
		{"changed payload", "", flipped},
		{"mix-up of channels", "acme/canary, not of acme/stable", l.seal(mix)},
		{"mix-up of organisations", "other/stable", l.seal(org)},
		{"other document type", "has type", wrongType},
		{"needs more than we know", `needs "quorum"`, l.seal(needs)},
		{"newer format", "format 2", l.seal(format)},
		{"garbage", "not a signed document", []byte("<html>")},
		{"empty object", "has type", []byte("{}")},
		{"nothing", "not a signed document", nil},
		{"too large", "too large", bytes.Repeat([]byte("x"), maxEnvelope+2)},
	} {
		l.store.set("v1/chan/acme/stable.json", tc.raw)
		ch, err := c.Resolve(t.Context(), l.query())
		if err != nil || ch.Source != SourceCache || ch.Seq != 2 || ch.Version != "1.1.0" || len(ch.Warnings) != 1 || !strings.Contains(ch.Warnings[0], tc.want) {
			t.Errorf("%s: %+v %v", tc.name, ch, err)
		}
		if tc.name == "rollback" {
			// A runner without any memory relies on the floor it is told.
			q := l.query()
			if _, err := l.client().Resolve(t.Context(), q); err != nil {
				t.Errorf("rollback, fresh client: %v", err)
			}
			q.Floor = 2
			if _, err := l.client().Resolve(t.Context(), q); !errors.Is(err, ErrUntrusted) {
				t.Errorf("rollback below the floor: %v", err)
			}
			continue
		}
		if _, err := l.client().Resolve(t.Context(), l.query()); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s, fresh client: %v", tc.name, err)
		}
	}
}

func TestContentAttacks(t *testing.T) {
	l := newLab(t)
	id := l.publish("1.0.0", 100)
	m, err := ParseManifest(l.store.at(manifestKey(id)))
	if err != nil {
		t.Fatal(err)
	}
	pack := packKey(m.Pack.SHA256)
	// A whole other bundle, consistent in itself, that nobody chose.
	other := l.build("9.9.9", "platform/scripts/hello.sh", "#!/bin/sh\necho evil\n")
	if _, err := Publish(t.Context(), l.store, other); err != nil {
		t.Fatal(err)
	}
	good := map[string][]byte{manifestKey(id): l.store.at(manifestKey(id)), pack: l.store.at(pack)}
	flip := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b }
	for _, tc := range []struct {
		name, key string
		raw       []byte
	}{
		{"manifest changed", manifestKey(id), flip(good[manifestKey(id)])},
		{"manifest of another", manifestKey(id), other.manifest},
		{"manifest empty", manifestKey(id), nil},
		{"pack changed", pack, flip(good[pack])},
		{"pack cut", pack, good[pack][:len(good[pack])-1]},
		{"pack longer", pack, append(bytes.Clone(good[pack]), 0)},
		{"pack empty", pack, nil},
	} {
		for k, v := range good {
			l.store.set(k, v)
		}
		l.store.set(tc.key, tc.raw)
		c := l.client()
		c.Cache = t.TempDir()
		if _, err := l.use(c, l.query()); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", tc.name, err)
		}
		empty(t, c.Private)
		if kept := files(t, c.Cache); len(kept) > 1 { // the lock file
			t.Errorf("%s: cached %v", tc.name, slicesOf(kept))
		}
	}
}

func TestOutage(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	seed := l.seed()
	l.now = l.now.Add(time.Hour)
	l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")
	node := t.TempDir()
	warm := l.client()
	warm.Cache = node
	l.must(warm, l.query())

	l.store.setFault(down)
	for _, tc := range []struct {
		name, cache, seed string
		source, version   string
	}{
		{"nothing here", "", "", "", ""},
		{"seed", "", seed, SourceSeed, "1.0.0"},
		{"node cache", node, "", SourceCache, "1.1.0"},
		{"both", node, seed, SourceCache, "1.1.0"},
	} {
		c := l.client()
		c.Cache, c.Seed = tc.cache, tc.seed
		b, err := l.use(c, l.query())
		if tc.source == "" {
			var u *oss.Unavailable
			if !errors.Is(err, ErrUnavailable) || !errors.As(err, &u) || u.Attempts != 4 {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil || b.Choice.Source != tc.source || b.Meta.Version != tc.version {
			t.Errorf("%s: %+v %v", tc.name, b, err)
			continue
		}
		if len(b.Warnings) != 1 || !strings.Contains(b.Warnings[0], "answered 503 ServiceUnavailable (tried 4 times)") || strings.Contains(b.Warnings[0], "\n") {
			t.Errorf("%s: warnings %q", tc.name, b.Warnings)
		}
	}

	c0 := l.client()
	c0.Seed = seed
	q := l.query()
	q.Floor = 9
	if b := l.must(c0, q); !strings.Contains(b.Warnings[0], "older than what was used before (seq 9)") {
		t.Errorf("below the floor: %q", b.Warnings)
	}

	// A store that hangs is as good as none; the caller's own end is not.
	c := l.client()
	c.Store, c.ChannelTimeout = hang{}, time.Millisecond
	if _, err := c.Resolve(t.Context(), l.query()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no answer within 1ms") {
		t.Errorf("hanging store: %v", err)
	}
	c.Seed = seed
	if b, err := l.use(c, l.query()); err != nil || b.Choice.Source != SourceSeed {
		t.Errorf("hanging store with seed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Resolve(ctx, l.query()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	c.Store = nil
	if b, err := l.use(c, l.query()); err != nil || b.Choice.Source != SourceSeed {
		t.Errorf("no store: %v", err)
	}
}

// The channel can be read, but its bundle can't: the last one that worked
// stands in, and what was never opened doesn't become "last known good".
func TestOutageOfContent(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	seed, node := l.seed(), t.TempDir()
	c := l.client()
	c.Cache = node
	l.must(c, l.query())
	l.now = l.now.Add(time.Hour)
	id := l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")

	for name, fault := range map[string]func(op, key string) error{
		"unavailable": down,
		"missing":     func(string, string) error { return oss.ErrNotFound },
		"denied":      func(string, string) error { return oss.ErrDenied },
	} {
		l.store.setFault(func(op, key string) error {
			if strings.HasPrefix(key, "v1/chan/") {
				return nil
			}
			return fault(op, key)
		})
		for _, tc := range []struct{ cache, seed, source string }{{node, seed, SourceCache}, {"", seed, SourceSeed}} {
			c := l.client()
			c.Cache, c.Seed = tc.cache, tc.seed
			b, err := l.use(c, l.query())
			if err != nil || b.Choice.Source != tc.source || b.Meta.Version != "1.0.0" || len(b.Warnings) != 1 {
				t.Errorf("%s, %s: %+v %v", name, tc.source, b, err)
			}
		}
		if _, err := l.use(l.client(), l.query()); err == nil {
			t.Errorf("%s: opened from nowhere", name)
		}
	}
	l.store.setFault(nil)
	b := l.must(c, l.query())
	if b.Digest != "sha256:"+id || b.Choice.Source != SourceChannel {
		t.Errorf("after the outage: %+v", b.Choice)
	}

	// Tampering is no outage: nothing stands in.
	m, _ := ParseManifest(l.store.at(manifestKey(id)))
	l.store.set(packKey(m.Pack.SHA256), []byte("tampered"))
	c = l.client()
	c.Seed = seed
	if _, err := l.use(c, l.query()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("tampered pack with a seed at hand: %v", err)
	}
}

func TestSeedIsAFloor(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	old := l.store.at("v1/chan/acme/stable.json")
	l.now = l.now.Add(time.Hour)
	l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")
	c := l.client()
	c.Seed = l.seed()
	l.store.set("v1/chan/acme/stable.json", old)
	ch, err := c.Resolve(t.Context(), l.query())
	if err != nil || ch.Source != SourceSeed || ch.Version != "1.1.0" || !strings.Contains(ch.Warnings[0], "seq 1, but 2 was seen") {
		t.Errorf("got %+v, %v", ch, err)
	}
}

func TestNoSuchChannel(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	c := l.client()
	c.Seed = l.seed()
	for _, name := range []string{"stabel", "../stable", "", "UP"} {
		q := l.query()
		q.Channel = name
		if _, err := c.Resolve(t.Context(), q); !errors.Is(err, ErrNone) {
			t.Errorf("%q: %v", name, err)
		}
	}
	l.store.setFault(func(string, string) error { return oss.ErrDenied })
	if _, err := l.client().Resolve(t.Context(), l.query()); !errors.Is(err, oss.ErrDenied) {
		t.Errorf("denied: %v", err)
	}
}

func TestBrokenTransferIsTriedAgain(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	var mu sync.Mutex
	broken := map[string]int{}
	l.store.body = func(key string, data []byte) io.ReadCloser {
		mu.Lock()
		defer mu.Unlock()
		if broken[key]++; broken[key] <= 2 {
			return brokenBody{bytes.NewReader(data[:len(data)/2])}
		}
		return io.NopCloser(bytes.NewReader(data))
	}
	l.must(l.client(), l.query())
	l.store.body = func(_ string, data []byte) io.ReadCloser { return brokenBody{bytes.NewReader(data)} }
	if _, err := l.client().Resolve(t.Context(), l.query()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "get v1/chan/acme/stable.json: unexpected EOF") {
		t.Errorf("always broken: %v", err)
	}
}

func TestStale(t *testing.T) {
	l := newLab(t)
	online := testKey(5)
	pub := l.root.Keys[l.root.Roles.Channel.Keys[0]]
	l.root = NewRoot(t0, pubs(pub), pubs(pub), pubs(public(online)))
	l.publish("1.0.0", 100)
	l.now = l.now.Add(31 * 24 * time.Hour)
	ch, err := l.client().Resolve(t.Context(), l.query())
	if err != nil || !ch.Stale || len(ch.Warnings) != 1 || !strings.Contains(ch.Warnings[0], "not confirmed since") {
		t.Errorf("expired: %+v %v", ch, err)
	}
	d := l.store.at("v1/chan/acme/stable.json")
	good := Fresh{Format: 1, Org: "acme", Name: "stable", Seq: 1, SHA256: sum(d), Expires: l.now.Add(time.Hour)}
	other, expired := good, good
	other.SHA256 = sum(nil)
	expired.Expires = l.now
	for _, tc := range []struct {
		name  string
		f     Fresh
		typ   string
		key   byte
		stale bool
	}{
		{"vouched for", good, TypeFresh, 5, false},
		{"by a stranger", good, TypeFresh, 6, true},
		{"by the channel's key", good, TypeFresh, 1, true},
		{"another document", other, TypeFresh, 5, true},
		{"expired itself", expired, TypeFresh, 5, true},
		{"another type", good, TypeChannel, 5, true},
	} {
		raw, err := Seal(tc.typ, tc.f, testKey(tc.key))
		if err != nil {
			t.Fatal(err)
		}
		l.store.set(freshKey("acme", "stable"), raw)
		ch, err := l.client().Resolve(t.Context(), l.query())
		if err != nil || ch.Stale != tc.stale {
			t.Errorf("%s: %+v %v", tc.name, ch, err)
		}
	}
	// The online key can't sign a channel document.
	l.store.set("v1/chan/acme/stable.json", l.seal(l.last, online))
	if _, err := l.client().Resolve(t.Context(), l.query()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("channel signed by the freshness key: %v", err)
	}
}

func TestPoisonedCache(t *testing.T) {
	l := newLab(t)
	id := l.publish("1.0.0", 100)
	m, err := ParseManifest(l.store.at(manifestKey(id)))
	if err != nil {
		t.Fatal(err)
	}
	c := l.client()
	c.Cache = t.TempDir()
	man, pack := filepath.Join(c.Cache, "man", id), filepath.Join(c.Cache, "pack", m.Pack.SHA256)
	chanFile := filepath.Join(c.Cache, "chan", "acme~stable.json")
	secret := filepath.Join(t.TempDir(), "secret")
	replace := func(make func(string) error) func(string) error {
		return func(p string) error { os.Remove(p); return make(p) }
	}
	spoils := map[string]func(string) error{
		"changed": replace(func(p string) error { return os.WriteFile(p, []byte("evil"), 0o644) }),
		"emptied": replace(func(p string) error { return os.WriteFile(p, nil, 0o644) }),
		"link":    replace(func(p string) error { return os.Symlink("/etc/passwd", p) }),
		"outward": replace(func(p string) error { return os.Symlink(secret, p) }),
		"pipe":    replace(func(p string) error { return syscall.Mkfifo(p, 0o644) }),
		"folder":  replace(func(p string) error { return os.MkdirAll(filepath.Join(p, "x"), 0o755) }),
	}
	want := files(t, l.must(c, l.query()).Dir)
	for name, spoil := range spoils {
		for _, p := range []string{man, pack, chanFile} {
			if err := spoil(p); err != nil {
				t.Fatal(err)
			}
			l.store.reset()
			b := l.must(c, l.query())
			if got := files(t, b.Dir); len(got) != len(want) || got["scripts/hello.sh"] != want["scripts/hello.sh"] {
				t.Errorf("%s %s: files %v", name, filepath.Base(p), slicesOf(got))
			}
			if p != chanFile && (len(b.Warnings) != 1 || !strings.Contains(b.Warnings[0], "changed by somebody") || l.store.count("v1/pack/") != 1) {
				t.Errorf("%s %s: warnings %q, requests %v", name, filepath.Base(p), b.Warnings, l.store.gets)
			}
			// …and the cache is good again.
			l.store.reset()
			if b := l.must(c, l.query()); len(b.Warnings) != 0 || l.store.count("v1/pack/") != 0 {
				t.Errorf("%s %s: not repaired: %q", name, filepath.Base(p), b.Warnings)
			}
		}
	}
	if _, err := os.Stat(secret); !errors.Is(err, os.ErrNotExist) {
		t.Error("a planted link was written through")
	}
	// The copies are private: what jobs see doesn't change with the cache.
	b := l.must(c, l.query())
	if err := os.RemoveAll(c.Cache); err != nil {
		t.Fatal(err)
	}
	if got := files(t, b.Dir); len(got) != len(want) {
		t.Error("the copy depends on the cache")
	}
}

// A cache that can't be used at all costs a download, not the job.
func TestUnusableCache(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	c := l.client()
	c.Cache = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(c.Cache, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := l.must(c, l.query())
	if len(b.Warnings) == 0 || !strings.HasPrefix(b.Warnings[0], "node cache: ") {
		t.Errorf("warnings: %q", b.Warnings)
	}
}

func TestManyJobsOneDownload(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	l.store.reset() // of the publisher's reading back
	node := t.TempDir()
	var wg sync.WaitGroup
	for range 12 {
		c := l.client()
		c.Cache = node
		wg.Go(func() {
			ch, err := c.Resolve(t.Context(), l.query())
			if err != nil {
				t.Error(err)
				return
			}
			b, err := c.Open(t.Context(), ch)
			if err != nil {
				t.Error(err)
				return
			}
			b.Close()
		})
	}
	wg.Wait()
	if m, p := l.store.count("v1/man/"), l.store.count("v1/pack/"); m != 1 || p != 1 {
		t.Errorf("%d manifests and %d packs were downloaded", m, p)
	}
}

// An older document never replaces a newer one: a slow job finishes late.
func TestCacheKeepsTheNewest(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	old := l.store.at("v1/chan/acme/stable.json")
	l.now = l.now.Add(time.Hour)
	l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")
	c, rs := cache{t.TempDir()}, roots{Root: l.root}
	for _, raw := range [][]byte{l.store.at("v1/chan/acme/stable.json"), old} {
		d, err := openChannel(raw, rs, "acme", "stable")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.keep(d, rs); err != nil {
			t.Fatal(err)
		}
		if d, err := c.document("acme", "stable", rs); err != nil || d.Seq != 2 {
			t.Errorf("kept %+v %v", d, err)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := cache{t.TempDir()}
	for i := range 40 {
		if err := c.write("pack", strings.Repeat("a", i+1), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	es, err := os.ReadDir(filepath.Join(c.dir, "pack"))
	if err != nil || len(es) != keepEntries {
		t.Errorf("%d entries, %v", len(es), err)
	}
}
