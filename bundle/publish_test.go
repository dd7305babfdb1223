package bundle

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/oss"
)

func TestPublishIsIdempotent(t *testing.T) {
	l := newLab(t)
	p := l.build("1.0.0")
	first, err := Publish(t.Context(), l.store, p)
	if err != nil || first.Uploaded != first.Objects || first.Bytes == 0 {
		t.Fatalf("%+v %v", first, err)
	}
	again, err := Publish(t.Context(), l.store, p)
	if err != nil || again.Uploaded != 0 {
		t.Errorf("again: %+v %v", again, err)
	}
	// A changed file costs that file, the pack and the manifest.
	other, err := Publish(t.Context(), l.store, l.build("1.0.0", "platform/scripts/hello.sh", "echo other"))
	if err != nil || other.Uploaded != 3 {
		t.Errorf("one file changed: %+v %v", other, err)
	}
	for key := range l.store.objects {
		if !strings.HasPrefix(key, "v1/man/") && !strings.HasPrefix(key, "v1/pack/") && !strings.HasPrefix(key, "v1/blob/") {
			t.Errorf("published %s", key)
		}
	}
}

// Nobody sees a bundle whose objects aren't all there.
func TestPublishStopsHalfway(t *testing.T) {
	l := newLab(t)
	p := l.build("1.0.0")
	id := strings.TrimPrefix(p.Digest, "sha256:")
	n := 0
	var mu sync.Mutex
	l.store.setFault(func(op, key string) error {
		mu.Lock()
		defer mu.Unlock()
		if n++; n > 3 {
			return down(op, key)
		}
		return nil
	})
	var u *oss.Unavailable
	if _, err := Publish(t.Context(), l.store, p); !errors.As(err, &u) {
		t.Fatalf("got %v", err)
	}
	if l.store.at(manifestKey(id)) != nil {
		t.Error("the manifest is there before its objects")
	}
	l.store.setFault(nil)
	if _, err := Publish(t.Context(), l.store, p); err != nil || l.store.at(manifestKey(id)) == nil {
		t.Errorf("second try: %v", err)
	}
}

func TestPublishReadsBack(t *testing.T) {
	l := newLab(t)
	p := l.build("1.0.0")
	m := mustManifest(t, p.manifest)
	l.store.set(packKey(m.Pack.SHA256), []byte("planted"))
	if _, err := Publish(t.Context(), l.store, p); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "delete that object") {
		t.Errorf("got %v", err)
	}
}

func TestPackageOnDisk(t *testing.T) {
	r := recipe("1.0.0")
	r.Runner = &RunnerFiles{Version: "2.0.0", Files: map[string]func() (io.ReadCloser, error){"linux/amd64": memFile([]byte("\x7fELF"))}}
	p, err := Build(t.Context(), checkout(), r)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "out")
	if err := p.WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := p.WriteDir(dir); err == nil {
		t.Error("written over another package")
	}
	got, err := ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != p.Digest || got.Version != "1.0.0" || got.Files != p.Files || !maps.EqualFunc(got.objects, p.objects, func(a, b []byte) bool { return string(a) == string(b) }) {
		t.Error("read back something else")
	}
	// Every object is checked.
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		good, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		bad := append([]byte{}, good...)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(path, bad, 0o644); err != nil {
			return err
		}
		if _, err := ReadDir(dir); err == nil {
			t.Errorf("%s: a flipped bit was not noticed", path)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		if _, err := ReadDir(dir); err == nil {
			t.Errorf("%s: missing was not noticed", path)
		}
		return os.WriteFile(path, good, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPublishersRace(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	base := l.last
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winner string
	lost := 0
	for i := range 8 {
		wg.Go(func() {
			terms := l.terms()
			terms.Now, terms.Who = t0.Add(time.Hour), fmt.Sprintf("publisher %d", i)
			c, err := Next(base, Entry{Manifest: sumOf(i), Version: fmt.Sprint(i), Percent: 100}, terms)
			if err != nil {
				t.Error(err)
				return
			}
			err = Move(t.Context(), l.store, c, l.key)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && winner == "":
				winner = terms.Who
			case errors.Is(err, ErrConflict):
				lost++
			default:
				t.Errorf("%s: %v, winner is %q", terms.Who, err, winner)
			}
		})
	}
	wg.Wait()
	c, repair, err := Current(t.Context(), l.store, l.root, "acme", "stable")
	if winner == "" || lost != 7 || err != nil || repair || c.Who != winner || c.Seq != 2 {
		t.Errorf("winner %q, %d lost, current %+v %v %v", winner, lost, c, repair, err)
	}
}

func TestMoveAgainIsNoConflict(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	if err := Move(t.Context(), l.store, l.last, l.key); err != nil {
		t.Errorf("the same document again, as after a lost answer: %v", err)
	}
	if err := Move(t.Context(), l.store, l.last); !errors.Is(err, ErrContent) {
		t.Errorf("without a key: %v", err)
	}
	bad := l.last
	bad.Seq, bad.Org = 2, ""
	if err := Move(t.Context(), l.store, bad, l.key); !errors.Is(err, ErrContent) {
		t.Errorf("invalid: %v", err)
	}
}

// A publisher died between the numbered copy and the pointer.
func TestRepair(t *testing.T) {
	l := newLab(t)
	first := l.publish("1.0.0", 100)
	l.now = l.now.Add(time.Hour)
	l.store.setFault(func(op, key string) error {
		if op == "put" {
			return down(op, key)
		}
		return nil
	})
	c, err := Next(l.last, Entry{Manifest: first, Version: "1.0.0", Percent: 100}, l.terms())
	if err != nil {
		t.Fatal(err)
	}
	if err := Move(t.Context(), l.store, c, l.key); err == nil {
		t.Fatal("moved without the pointer")
	}
	l.store.setFault(nil)
	got, repair, err := Current(t.Context(), l.store, l.root, "acme", "stable")
	if err != nil || !repair || got.Seq != 2 {
		t.Errorf("current: %+v %v %v", got, repair, err)
	}
	if got, err := Repair(t.Context(), l.store, l.root, "acme", "stable"); err != nil || got.Seq != 2 {
		t.Errorf("repair: %+v %v", got, err)
	}
	if ch, err := l.client().Resolve(t.Context(), l.query()); err != nil || ch.Seq != 2 {
		t.Errorf("after repair: %+v %v", ch, err)
	}
	// A numbered copy that isn't ours stops publishers; they don't skip it.
	l.store.set(numberedKey("acme", "stable", 3), []byte("{}"))
	if _, _, err := Current(t.Context(), l.store, l.root, "acme", "stable"); !errors.Is(err, ErrUntrusted) {
		t.Errorf("planted copy: %v", err)
	}
}

// A publisher that was late puts an older pointer over a newer one: the newer
// one's reading back puts it right.
func TestLatePointer(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	old := l.store.at("v1/chan/acme/stable.json")
	l.now = l.now.Add(time.Hour)
	late := 1
	l.store.setFault(func(op, key string) error {
		if op == "get" && key == "v1/chan/acme/stable.json" && late > 0 {
			late--
			l.store.set(key, old)
		}
		return nil
	})
	l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")
	if ch, err := l.client().Resolve(t.Context(), l.query()); err != nil || ch.Version != "1.1.0" {
		t.Errorf("got %+v %v", ch, err)
	}
}

func TestNextRefuses(t *testing.T) {
	l := newLab(t)
	a := l.publish("1.0.0", 100)
	l.now = l.now.Add(time.Hour)
	l.move(Entry{Manifest: sumOf(2), Version: "2", Percent: 50})
	prev := l.last
	later := Terms{Now: l.now.Add(time.Hour), Why: "x"}
	for _, tc := range []struct {
		name string
		e    Entry
		t    Terms
		want string
	}{
		{"no reason", Entry{Manifest: sumOf(3), Percent: 1}, Terms{Now: later.Now}, "needs a reason"},
		{"too soon", Entry{Manifest: sumOf(3), Percent: 1, From: later.Now.Add(59 * time.Second)}, Terms{Now: later.Now, Why: "x", Lead: time.Minute}, "must start 1m0s after"},
		{"before a listed one", Entry{Manifest: sumOf(3), Percent: 1, From: t0.Add(time.Minute)}, Terms{Now: t0, Why: "x"}, "listed already"},
		{"shrinking", Entry{Manifest: sumOf(2), Percent: 10}, later, "can't shrink"},
		{"percent", Entry{Manifest: sumOf(3), Percent: 0}, later, "0 percent"},
		{"manifest", Entry{Manifest: "x", Percent: 1}, later, "not a manifest"},
	} {
		if _, err := Next(prev, tc.e, tc.t); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if _, err := Next(Channel{Org: "A"}, Entry{}, later); err == nil {
		t.Error("bad names accepted")
	}
	c, err := Next(prev, Entry{Manifest: a, Version: "1.0.0", Percent: 100}, Terms{Now: later.Now, Why: "back", Who: "ops", Job: "https://ci/1", Lead: DefaultLead, TTL: time.Hour})
	if err != nil || !c.Entries[0].From.Equal(later.Now.Add(DefaultLead)) || c.Who != "ops" || c.Why != "back" || c.Job != "https://ci/1" || !c.Expires.Equal(c.Issued.Add(time.Hour)) || c.Seq != 3 {
		t.Errorf("going back: %+v %v", c, err)
	}
	if len(prev.Entries) != 2 {
		t.Error("Next changed its input")
	}
	// The lead holds although the document's date is rounded down.
	c, err = Next(prev, Entry{Manifest: sumOf(4), Percent: 1}, Terms{Now: later.Now.Add(900 * time.Millisecond), Why: "x", Lead: DefaultLead})
	if err != nil || c.Entries[0].From.Before(later.Now.Add(900*time.Millisecond+DefaultLead)) {
		t.Errorf("rounded: %+v %v", c.Entries[0], err)
	}
}

// What covers everybody stays, however old, until something newer that covers
// everybody is old enough.
func TestPrune(t *testing.T) {
	at := func(hours, percent int) Entry {
		return Entry{From: t0.Add(-time.Duration(hours) * time.Hour), Percent: percent}
	}
	tiered := at(120, 100)
	tiered.Tiers = []string{"sandbox"}
	for _, tc := range []struct {
		name string
		es   []Entry
		keep int
	}{
		{"young", []Entry{at(1, 100), at(2, 100), at(3, 100)}, 3},
		{"old and alone", []Entry{at(1, 5), at(1000, 100)}, 2},
		{"old behind a young one", []Entry{at(1, 100), at(1000, 100)}, 2},
		{"behind an old one", []Entry{at(1, 5), at(100, 100), at(1000, 100), at(2000, 5)}, 2},
		{"behind an old partial one", []Entry{at(100, 99), at(1000, 100)}, 2},
		{"behind an old one for some tiers", []Entry{tiered, at(1000, 100)}, 2},
	} {
		if got := prune(tc.es, t0, 0); len(got) != tc.keep {
			t.Errorf("%s: %d entries left, want %d", tc.name, len(got), tc.keep)
		}
	}
}

func TestRevokeRefuses(t *testing.T) {
	l := newLab(t)
	id := l.publish("1.0.0", 100)
	if _, err := Revoke(l.last, id, "bad", l.terms()); err == nil || !strings.Contains(err.Error(), "publish another one first") {
		t.Errorf("the only one: %v", err)
	}
	l.now = l.now.Add(time.Hour)
	other := l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")
	l.revoke(other, "bad")
	if ch, err := l.client().Resolve(t.Context(), l.query()); err != nil || ch.Version != "1.0.0" {
		t.Errorf("after undo: %+v %v", ch, err)
	}
	if _, err := Revoke(l.last, other, "bad", l.terms()); !errors.Is(err, ErrContent) {
		t.Errorf("twice: %v", err)
	}
	if _, err := Next(l.last, Entry{Manifest: other, Percent: 100}, Terms{Now: l.now.Add(time.Hour), Why: "x"}); err == nil || !strings.Contains(err.Error(), "revoked: bad") {
		t.Errorf("publishing a revoked one: %v", err)
	}
}

func TestCurrentOfNothing(t *testing.T) {
	l := newLab(t)
	if _, _, err := Current(t.Context(), l.store, l.root, "acme", "stable"); !errors.Is(err, oss.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, _, err := Current(t.Context(), l.store, l.root, "acme", "../x"); !errors.Is(err, ErrContent) {
		t.Errorf("got %v", err)
	}
}

func TestPlatformFile(t *testing.T) {
	good := Platform{Format: 1, URL: "https://store.test/b", Org: "acme", Channel: "stable", Root: NewRoot(t0, pubs(public(testKey(1))), pubs(public(testKey(2))), nil)}
	dir := t.TempDir()
	if err := good.Write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := LoadPlatform(dir)
	if err != nil || got.URL != good.URL || got.Dir != dir || len(got.Root.Keys) != 2 || got.Root.Validate() != nil {
		t.Errorf("got %+v %v", got, err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, PlatformFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"not JSON":      "url: x",
		"unknown key":   strings.Replace(string(raw), `"url"`, `"urls"`, 1),
		"two documents": string(raw) + string(raw),
		"format":        strings.Replace(string(raw), `"format": 1`, `"format": 2`, 1),
		"no web":        strings.Replace(string(raw), "https://store.test/b", "/tmp/b", 1),
		"credentials":   strings.Replace(string(raw), "https://", "https://a:b@", 1),
		"channel":       strings.Replace(string(raw), `"stable"`, `"../x"`, 1),
		"no threshold":  strings.Replace(string(raw), `"threshold": 1`, `"threshold": 0`, 1),
	} {
		if err := os.WriteFile(filepath.Join(dir, PlatformFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadPlatform(dir); !errors.Is(err, ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := LoadPlatform(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) || !errors.Is(err, ErrContent) {
		t.Errorf("missing: %v", err)
	}
	good.Root = Root{}
	if err := good.Write(dir); err == nil {
		t.Error("wrote a platform without keys")
	}
}

func TestSeedTakesWhatIsOutForAll(t *testing.T) {
	l := newLab(t)
	l.publish("1.0.0", 100)
	l.now = l.now.Add(time.Hour)
	l.publish("1.1.0", 5, "platform/scripts/new.sh", "x")
	c := l.client()
	c.Seed = l.seed()
	l.store.setFault(down)
	for id := range int64(20) {
		q := l.query()
		q.ProjectID = id
		if b := l.must(c, q); b.Meta.Version != "1.0.0" {
			t.Errorf("project %d: %+v", id, b.Choice)
		}
	}
}
