package bundle

import (
	"encoding/json"
	"os"
	"testing"
	"time"
)

// Bytes from a store or an artefact must never panic, hang or get past the
// checks: whatever is accepted passes the checks again.

func FuzzEnvelope(f *testing.F) {
	key := testKey(1)
	good, err := Seal(TypeChannel, map[string]int{"a": 1}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"payloadType":"x","payload":"","signatures":[{"keyid":"","sig":""}]}`))
	r := NewRoot(t0, pubs(public(key)), pubs(public(key)), nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := parseEnvelope(raw)
		if err != nil {
			return
		}
		p, err := e.payload(TypeChannel, r.trust(r.Roles.Channel))
		if err == nil && string(p) != `{"a":1}` {
			t.Errorf("accepted an unsigned payload: %q", p)
		}
		claimOf(raw)
		if _, err := r.Follow(raw); err == nil {
			t.Error("followed to a key set that nobody signed")
		}
	})
}

func FuzzChannel(f *testing.F) {
	l := newLab(f)
	l.publish("1.0.0", 100)
	good, err := json.Marshal(l.last)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, int64(42), int64(0))
	f.Add([]byte(`{"format":1,"org":"a","name":"b","root":1,"seq":1,"issued":"2026-01-01T00:00:00Z","expires":"2027-01-01T00:00:00Z","pins":[{"path":"a/**","manifest":"`+sumOf(1)+`"}]}`), int64(1), int64(-1))
	f.Fuzz(func(t *testing.T, raw []byte, project, at int64) {
		c, err := parseChannel(raw)
		if err != nil {
			return
		}
		p, err := c.choose(Query{ProjectID: project, ProjectPath: "a/b", At: time.Unix(at, 0), Runner: "1.0"})
		if err != nil {
			return
		}
		if !okSum(p.manifest) || !c.lists(p.manifest) || !printable(p.why) {
			t.Errorf("chose %+v", p)
		}
	})
}

func FuzzManifest(f *testing.F) {
	l := newLab(f)
	f.Add(l.build("1.0.0").manifest)
	f.Add([]byte(`{"format":1,"files":[{"path":"../x"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseManifest(raw)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if badPath(file.Path) != "" || file.Size < 0 {
				t.Errorf("accepted %+v", file)
			}
		}
	})
}

func FuzzPack(f *testing.F) {
	pack, err := compress([]byte("hello world"))
	if err != nil {
		f.Fatal(err)
	}
	bomb, err := compress(make([]byte, 1<<20))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pack, "a/b", int64(5))
	f.Add(bomb, "a", int64(1<<20))
	f.Add([]byte("(\xb5/\xfd"), "x", int64(0))
	f.Fuzz(func(t *testing.T, pack []byte, path string, size int64) {
		// The sum of the pack is right: a publisher signed it.
		m := &Manifest{Format: 1, Pack: Blob{sum(pack), int64(len(pack))}, Files: []File{
			{Path: path, SHA256: sum([]byte("hello")), Size: size}, {Path: path + "~", SHA256: sum([]byte(" world")), Size: 6},
		}}
		if m.Validate() != nil {
			return
		}
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if m.unpack(pack, dir) == nil && len(files(t, dir)) != 2 {
			t.Error("unpacked something else than listed")
		}
		m.file(pack, path)
	})
}

func FuzzHandedOn(f *testing.F) {
	l := newLab(f)
	l.publish("1.0.0", 100)
	dir := f.TempDir()
	if err := l.must(l.client(), l.query()).HandOn(dir); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(dir + "/" + HandedFile)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1,"choice":{"digest":"sha256:00","org":"acme","channel":"stable"},"roots":["e30="],"channel":"e30=","manifest":"e30="}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var h handedOn
		if json.Unmarshal(raw, &h) != nil {
			return
		}
		d, err := h.verify(l.query(), roots{Root: l.root})
		if err != nil {
			return
		}
		if d.Seq != 1 || digest(d.Entries[0].Manifest) != h.Choice.Digest {
			t.Errorf("accepted %s", h.Choice.Digest)
		}
	})
}

func FuzzYAML(f *testing.F) {
	f.Add([]byte(clustersYML))
	f.Add([]byte(policyYML))
	f.Add([]byte(bundleYML))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("version: 1\nclusters: {a: {kind: local, gateway: {}}}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, parse := range []func([]byte) error{
			func(b []byte) error { _, err := ParseClusters(b); return err },
			func(b []byte) error { _, err := ParsePolicy(b); return err },
			func(b []byte) error { _, err := ParseMeta(b); return err },
			func(b []byte) error { _, err := readMeta(b); return err },
			func(b []byte) error { _, err := parsePlatform(b); return err },
		} {
			if err := parse(raw); err != nil && err.Error() == "" {
				t.Error("an error without words")
			}
		}
	})
}
