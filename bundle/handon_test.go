package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// handedLab has a pipeline whose first job chose 1.0.0, and a channel that has
// moved on to 1.1.0 since.
func handedLab(t *testing.T) (l *lab, q Query, old, current string) {
	l = newLab(t)
	old = l.publish("1.0.0", 100)
	q = l.query()
	q.Handed = filepath.Join(t.TempDir(), ".faas")
	b := l.must(l.client(), q)
	if err := b.HandOn(q.Handed); err != nil {
		t.Fatal(err)
	}
	l.now = l.now.Add(time.Minute)
	current = l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")
	return l, q, old, current
}

func TestHandOn(t *testing.T) {
	l, q, old, current := handedLab(t)
	l.store.reset()
	b := l.must(l.client(), q)
	if b.Digest != digest(old) || b.Choice.Source != SourcePipeline || b.Choice.Version != "1.0.0" || b.Choice.Seq != 1 || len(b.Warnings) > 0 {
		t.Errorf("got %+v %q", b.Choice, b.Warnings)
	}
	if l.store.count("v1/man/")+l.store.count("v1/pack/") != 0 {
		t.Errorf("content was downloaded although it was handed on: %v", l.store.gets)
	}
	if files(t, b.Dir)["scripts/hello.sh"] == "" {
		t.Error("files are missing")
	}
	// Handing on what was handed on is the same.
	again := filepath.Join(t.TempDir(), "again")
	if err := b.HandOn(again); err != nil {
		t.Fatal(err)
	}
	q2 := q
	q2.Handed = again
	if b := l.must(l.client(), q2); b.Digest != digest(old) {
		t.Errorf("second hand: %+v", b.Choice)
	}

	// Without the store it works as well, and says what it could not see.
	l.store.setFault(down)
	if b := l.must(l.client(), q); b.Digest != digest(old) || len(b.Warnings) != 1 || !strings.Contains(b.Warnings[0], "could not be seen") {
		t.Errorf("store down: %+v %q", b.Choice, b.Warnings)
	}
	l.store.setFault(nil)

	// Without the pack the digest still stands.
	if err := os.Remove(filepath.Join(again, HandedPack)); err != nil {
		t.Fatal(err)
	}
	if b := l.must(l.client(), q2); b.Digest != digest(old) {
		t.Errorf("no pack: %+v", b.Choice)
	}
	// …and is never exchanged for another: mid-pipeline there is no stand-in.
	c := l.client()
	c.Seed = l.seed()
	l.store.setFault(down)
	if _, err := l.use(c, q2); !errors.Is(err, ErrUnavailable) {
		t.Errorf("no pack and store down: %v", err)
	}
	l.store.setFault(nil)

	// Neither file: the job chooses itself.
	if err := os.Remove(filepath.Join(again, HandedFile)); err != nil {
		t.Fatal(err)
	}
	q2.At = l.now
	if b := l.must(l.client(), q2); b.Digest != digest(current) || b.Choice.Source != SourceChannel {
		t.Errorf("nothing handed on: %+v", b.Choice)
	}
	q2.Handed = filepath.Join(again, "missing", "folder")
	if b := l.must(l.client(), q2); b.Digest != digest(current) {
		t.Errorf("no folder: %+v", b.Choice)
	}
}

// A work tree that wasn't cleaned holds another pipeline's files.
func TestHandedOfAnotherPipeline(t *testing.T) {
	l, q, _, current := handedLab(t)
	for name, change := range map[string]func(*Query){
		"pipeline": func(q *Query) { q.PipelineID = 8 },
		"project":  func(q *Query) { q.ProjectID = 43 },
	} {
		other := q
		other.At = l.now
		change(&other)
		b := l.must(l.client(), other)
		if b.Digest != digest(current) || len(b.Warnings) != 1 || !strings.Contains(b.Warnings[0], "pipeline 7 of project 42") {
			t.Errorf("%s: %+v %q", name, b.Choice, b.Warnings)
		}
	}
}

func TestHandedIsRevoked(t *testing.T) {
	l, q, old, _ := handedLab(t)
	l.now = l.now.Add(time.Minute)
	l.revoke(old, "leaks tokens")
	_, err := l.use(l.client(), q)
	if !errors.Is(err, ErrRevoked) || !strings.Contains(err.Error(), "1.0.0") || !strings.Contains(err.Error(), "leaks tokens") {
		t.Errorf("got %v", err)
	}
	// A node that has seen the revocation remembers it while the store is down.
	c := l.client()
	c.Cache = t.TempDir()
	fresh := q
	fresh.Handed, fresh.At = "", l.now
	l.must(c, fresh)
	l.store.setFault(down)
	if _, err := l.use(c, q); !errors.Is(err, ErrRevoked) {
		t.Errorf("store down, revocation cached: %v", err)
	}
}

func TestHandedIsTamperedWith(t *testing.T) {
	l, q, _, current := handedLab(t)
	file, pack := filepath.Join(q.Handed, HandedFile), filepath.Join(q.Handed, HandedPack)
	goodFile, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	goodPack, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(*handedOn)) []byte {
		var h handedOn
		if err := json.Unmarshal(goodFile, &h); err != nil {
			t.Fatal(err)
		}
		f(&h)
		raw, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	evil := l.build("9.9.9", "platform/scripts/hello.sh", "#!/bin/sh\necho evil\n")
	evilID := strings.TrimPrefix(evil.Digest, "sha256:")
	evilDoc := l.last
	evilDoc.Entries = []Entry{{Manifest: evilID, Version: "9.9.9", From: t0, Percent: 100}}
	for name, raw := range map[string][]byte{
		"garbage":                  []byte("{"),
		"empty":                    nil,
		"format":                   edit(func(h *handedOn) { h.Format = 2 }),
		"digest of another bundle": edit(func(h *handedOn) { h.Choice.Digest = digest(current) }),
		"malformed digest":         edit(func(h *handedOn) { h.Choice.Digest = "sha256:../../etc" }),
		"own digest and manifest":  edit(func(h *handedOn) { h.Choice.Digest = evil.Digest; h.Manifest = evil.manifest }),
		"own manifest":             edit(func(h *handedOn) { h.Manifest = evil.manifest }),
		"own document": edit(func(h *handedOn) {
			h.Choice.Digest, h.Manifest, h.Channel = evil.Digest, evil.manifest, l.seal(evilDoc, testKey(9))
		}),
		"other organisation": edit(func(h *handedOn) { h.Choice.Org = "evil" }),
		"forged log line":    edit(func(h *handedOn) { h.Choice.Why = "ok\nall is well" }),
		"other channel":      edit(func(h *handedOn) { h.Choice.Channel = "canary" }),
		"no document":        edit(func(h *handedOn) { h.Channel = nil }),
		"broken key sets":    edit(func(h *handedOn) { h.Roots = [][]byte{[]byte("{}")} }),
	} {
		if err := os.WriteFile(file, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := l.use(l.client(), q); !errors.Is(err, ErrUntrusted) {
			t.Errorf("bundle.json, %s: %v", name, err)
		}
	}
	for name, make := range map[string]func(string) error{
		"pipe":   func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"folder": func(p string) error { return os.Mkdir(p, 0o755) },
	} {
		for _, p := range []string{pack, file} {
			if err := errors.Join(os.Remove(p), make(p)); err != nil {
				t.Fatal(err)
			}
			if _, err := l.use(l.client(), q); !errors.Is(err, ErrUntrusted) {
				t.Errorf("%s is a %s: %v", filepath.Base(p), name, err)
			}
			if err := errors.Join(os.Remove(p), os.WriteFile(file, goodFile, 0o644), os.WriteFile(pack, goodPack, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Everything replaced at once, consistent in itself.
	evilPack := evil.objects[packKey(mustManifest(t, evil.manifest).Pack.SHA256)]
	if err := os.WriteFile(pack, evilPack, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"all but the document":            edit(func(h *handedOn) { h.Choice.Digest, h.Manifest = evil.Digest, evil.manifest }),
		"all but the document and digest": edit(func(h *handedOn) { h.Manifest = evil.manifest }),
	} {
		if err := os.WriteFile(file, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := l.use(l.client(), q); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(file, goodFile, 0o644); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(goodPack)
	flipped[len(flipped)/2] ^= 1
	for name, raw := range map[string][]byte{
		"flipped": flipped, "cut": goodPack[:len(goodPack)-1], "longer": append(bytes.Clone(goodPack), 0), "empty": nil, "of another bundle": evilPack,
	} {
		if err := os.WriteFile(pack, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		c := l.client()
		if _, err := l.use(c, q); !errors.Is(err, ErrUntrusted) {
			t.Errorf("bundle.pack, %s: %v", name, err)
		}
		empty(t, c.Private)
	}
}

func mustManifest(t testing.TB, raw []byte) *Manifest {
	t.Helper()
	m, err := ParseManifest(raw)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The seed is handed on like anything else, so that one pipeline never uses
// two bundles when an outage ends in its middle.
func TestHandOnTheSeed(t *testing.T) {
	l := newLab(t)
	id := l.publish("1.0.0", 100)
	c := l.client()
	c.Seed = l.seed()
	l.now = l.now.Add(time.Minute)
	l.publish("1.1.0", 100, "platform/scripts/new.sh", "x")
	l.store.setFault(down)
	q := l.query()
	q.Handed = t.TempDir()
	if err := l.must(c, q).HandOn(q.Handed); err != nil {
		t.Fatal(err)
	}
	l.store.setFault(nil)
	if b := l.must(c, q); b.Digest != digest(id) || b.Choice.Source != SourcePipeline {
		t.Errorf("got %+v", b.Choice)
	}
}

func TestHandOnNeedsEvidence(t *testing.T) {
	l := newLab(t)
	id := l.publish("1.0.0", 100)
	b, err := l.client().Open(t.Context(), Choice{Digest: digest(id)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.HandOn(t.TempDir()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("got %v", err)
	}
	for _, d := range []string{"", "sha256:", id, "sha256:" + strings.ToUpper(id), "sha256:../" + id[3:]} {
		if _, err := l.client().Open(t.Context(), Choice{Digest: d}); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%q: %v", d, err)
		}
	}
}
