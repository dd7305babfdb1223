package bundle

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func sumOf(i int) string { return fmt.Sprintf("%064x", i) }

// The bucket is part of the frozen format: an independent implementation must
// agree. These were computed with
//
//	int(hashlib.sha256((manifest + str(project)).encode()).hexdigest(), 16) % 100
func TestBucketVectors(t *testing.T) {
	for _, tc := range []struct {
		manifest string
		project  int64
		want     int
	}{
		{sumOf(0), 1, 17},
		{sumOf(0), 42, 65},
		{sumOf(1), 42, 16},
		{strings.Repeat("ab", 32), 9007199254740993, 60},
	} {
		if got := Bucket(tc.manifest, tc.project); got != tc.want {
			t.Errorf("Bucket(%.4s…, %d) = %d, want %d", tc.manifest, tc.project, got, tc.want)
		}
	}
}

func TestRolloutIsMonotonicAndFair(t *testing.T) {
	in := map[int64]bool{}
	for _, percent := range []int{1, 5, 25, 60, 99, 100} {
		c := Channel{Entries: []Entry{{Manifest: sumOf(2), From: t0, Percent: percent}, {Manifest: sumOf(1), From: t0.Add(-time.Hour), Percent: 100}}}
		n := 0
		for id := range int64(10_000) {
			p, err := c.choose(Query{ProjectID: id, At: t0})
			if err != nil {
				t.Fatal(err)
			}
			if p.manifest == sumOf(2) {
				n++
				in[id] = true
			} else if in[id] {
				t.Fatalf("project %d left the rollout at %d %%", id, percent)
			}
		}
		if got := float64(n) / 100; got < float64(percent)-1.5 || got > float64(percent)+1.5 {
			t.Errorf("%d %% reached %.2f %% of the projects", percent, got)
		}
	}
}

// Whatever is published later, the answer for a past instant stays, for as
// long as readers look back.
func TestHistoryIsStable(t *testing.T) {
	seeds := uint64(10)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 0))
		type question struct {
			project int64
			at      time.Time
		}
		said := map[question]string{}
		c := Channel{Org: "a", Name: "s", Root: 1}
		now := t0
		next := 1
		for step := range 120 {
			now = now.Add(time.Duration(1+r.IntN(180)) * time.Minute)
			e := Entry{Manifest: sumOf(next), Version: fmt.Sprint(next), Percent: 1 + r.IntN(100)}
			switch r.IntN(4) {
			case 0: // a new bundle
				next++
				e.Manifest = sumOf(next)
			case 1: // back to an older one
				e.Manifest, e.Percent = sumOf(1+r.IntN(next)), 100
			case 2:
				e.Percent = 100
			}
			if step == 0 {
				e.Percent = 100
			}
			if r.IntN(3) == 0 {
				e.From = now.Add(DefaultLead + time.Duration(1+r.IntN(3600))*time.Second)
			}
			n, err := Next(c, e, Terms{Now: now, Lead: DefaultLead, Why: "x"})
			if err != nil && !errors.Is(err, ErrContent) {
				t.Fatal(err)
			}
			if err == nil {
				c = n
			}
			if step == 0 {
				continue
			}
			// Pipelines of the whole last minute ask, before and after.
			for range 20 {
				q := question{int64(r.IntN(500)), now.Add(time.Duration(r.IntN(int(DefaultLead.Seconds()))) * time.Second)}
				p, err := c.choose(Query{ProjectID: q.project, At: q.at})
				if err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, step, err)
				}
				said[q] = p.manifest
			}
			for q, want := range said {
				if now.Sub(q.at) > maxAge {
					delete(said, q)
					continue
				}
				p, err := c.choose(Query{ProjectID: q.project, At: q.at})
				if err != nil || p.manifest != want {
					t.Fatalf("seed %d, step %d: project %d at %s had %s, now %s %v", seed, step, q.project, q.at, want[60:], p.manifest, err)
				}
			}
		}
		if len(c.Entries) > 110 {
			t.Errorf("seed %d: %d entries, nothing was pruned", seed, len(c.Entries))
		}
	}
}

func TestChoose(t *testing.T) {
	hour := func(n int) time.Time { return t0.Add(time.Duration(n) * time.Hour) }
	base := Entry{Manifest: sumOf(1), Version: "1", From: hour(-9), Percent: 100}
	top := func(change func(*Entry)) Channel {
		e := Entry{Manifest: sumOf(2), Version: "2", From: hour(-1), Percent: 100}
		change(&e)
		return Channel{Org: "a", Name: "s", Seq: 3, Entries: []Entry{e, base}, Tiers: map[string]string{"Pay": "core", "pay/lab": "sandbox"}}
	}
	q := Query{ProjectID: 42, ProjectPath: "fe/order", At: t0, Runner: "1.2.3"}
	with := func(change func(*Query)) Query { x := q; change(&x); return x }
	for _, tc := range []struct {
		name string
		c    Channel
		q    Query
		want string // version; or the error
	}{
		{"newest", top(func(*Entry) {}), q, "2"},
		{"not yet active", top(func(e *Entry) { e.From = hour(1) }), q, "1"},
		{"active this second", top(func(e *Entry) { e.From = t0 }), q, "2"},
		{"older pipeline", top(func(*Entry) {}), with(func(q *Query) { q.At = hour(-2) }), "1"},
		{"pipeline older than everything", top(func(*Entry) {}), with(func(q *Query) { q.At = hour(-99) }), "1"},
		{"outside the percentage", top(func(e *Entry) { e.Percent = 1 }), q, "1"},
		{"named project", top(func(e *Entry) { e.Percent = 1; e.Projects = []int64{7, 42} }), q, "2"},
		{"needs a newer runner", top(func(e *Entry) { e.MinRunner = "1.3" }), q, "1"},
		{"runner is new enough", top(func(e *Entry) { e.MinRunner = "1.2" }), q, "2"},
		{"needs what we don't know", top(func(e *Entry) { e.Needs = []string{"moon"} }), q, "1"},
		{"not for the tier", top(func(e *Entry) { e.Tiers = []string{"sandbox"} }), q, "1"},
		{"for the tier", top(func(e *Entry) { e.Tiers = []string{"sandbox", "standard"} }), q, "2"},
		{"the table makes it core", top(func(e *Entry) { e.Tiers = []string{"standard"} }), with(func(q *Query) { q.ProjectPath = "pay/gate" }), "1"},
		{"the longest path wins", top(func(e *Entry) { e.Tiers = []string{"sandbox"} }), with(func(q *Query) { q.ProjectPath = "pay/lab/x" }), "2"},
		{"the project is stricter", top(func(e *Entry) { e.Tiers = []string{"standard"} }), with(func(q *Query) { q.Tier = "core" }), "1"},
		{"the project can't be laxer", top(func(e *Entry) { e.Tiers = []string{"sandbox"} }), with(func(q *Query) { q.Tier = "sandbox" }), "1"},
	} {
		p, err := tc.c.choose(tc.q)
		if err != nil || p.version != tc.want || !strings.Contains(p.why, "a/s seq 3") {
			t.Errorf("%s: %+v %v, want %s", tc.name, p, err, tc.want)
		}
	}

	c := top(func(*Entry) {})
	c.Revoked = []Revoked{{sumOf(2), "bad"}}
	if p, err := c.choose(q); err != nil || p.version != "1" {
		t.Errorf("revoked: %+v %v", p, err)
	}
	c.Revoked = append(c.Revoked, Revoked{sumOf(1), "bad too"})
	if _, err := c.choose(q); !errors.Is(err, ErrNone) {
		t.Errorf("all revoked: %v", err)
	}
	if _, err := (&Channel{}).choose(q); !errors.Is(err, ErrNone) {
		t.Errorf("empty: %v", err)
	}
}

func TestPins(t *testing.T) {
	hour := func(n int) time.Time { return t0.Add(time.Duration(n) * time.Hour) }
	c := Channel{Org: "a", Name: "s", Seq: 1, Entries: []Entry{{Manifest: sumOf(1), Version: "1", From: hour(-9), Percent: 100}}}
	for _, tc := range []struct {
		name string
		pin  Pin
		held bool
	}{
		{"by id", Pin{Project: 42}, true},
		{"another id", Pin{Project: 43}, false},
		{"by path", Pin{Path: "fe/order"}, true},
		{"GitLab's paths ignore case", Pin{Path: "FE/Order"}, true},
		{"by pattern", Pin{Path: "fe/*"}, true},
		{"below a group", Pin{Path: "fe/**"}, true},
		{"below another group", Pin{Path: "f/**"}, false},
		{"begun", Pin{Project: 42, From: t0}, true},
		{"not begun", Pin{Project: 42, From: hour(1)}, false},
		{"ended", Pin{Project: 42, Until: t0}, false},
		{"not ended", Pin{Project: 42, Until: hour(1)}, true},
	} {
		tc.pin.Manifest, tc.pin.Why = sumOf(7), "trial"
		c.Pins = []Pin{tc.pin}
		p, err := c.choose(Query{ProjectID: 42, ProjectPath: "fe/order", At: t0})
		if err != nil || (p.manifest == sumOf(7)) != tc.held {
			t.Errorf("%s: %+v %v", tc.name, p, err)
		}
	}
	c.Pins = []Pin{{Project: 42, Manifest: sumOf(7), Why: "trial"}}
	c.Revoked = []Revoked{{sumOf(7), "leaks"}}
	if _, err := c.choose(Query{ProjectID: 42, At: t0}); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "leaks") {
		t.Errorf("pinned to a revoked bundle: %v", err)
	}
}

func TestChannelValidate(t *testing.T) {
	good := func() Channel {
		return Channel{
			Format: 1, Org: "a", Name: "s", Root: 1, Seq: 1, Issued: t0, Expires: t0.Add(time.Hour),
			Entries: []Entry{{Manifest: sumOf(2), From: t0, Percent: 100}, {Manifest: sumOf(1), From: t0.Add(-time.Hour), Percent: 5}},
			Pins:    []Pin{{Project: 1, Manifest: sumOf(1)}}, Revoked: []Revoked{{sumOf(3), "x"}}, Tiers: map[string]string{"g": "core"},
		}
	}
	if c := good(); c.Validate() != nil {
		t.Fatal(c.Validate())
	}
	for name, spoil := range map[string]func(*Channel){
		"format":             func(c *Channel) { c.Format = 0 },
		"organisation":       func(c *Channel) { c.Org = "../x" },
		"channel":            func(c *Channel) { c.Name = "a/b" },
		"seq":                func(c *Channel) { c.Seq = 0 },
		"root":               func(c *Channel) { c.Root = 0 },
		"expires":            func(c *Channel) { c.Expires = c.Issued },
		"no issue date":      func(c *Channel) { c.Issued = time.Time{} },
		"forged log line":    func(c *Channel) { c.Why = "ok\nbundle verified" },
		"manifest":           func(c *Channel) { c.Entries[0].Manifest = "../../etc/passwd" },
		"percent 0":          func(c *Channel) { c.Entries[0].Percent = 0 },
		"percent 101":        func(c *Channel) { c.Entries[0].Percent = 101 },
		"no start":           func(c *Channel) { c.Entries[1].From = time.Time{} },
		"order":              func(c *Channel) { c.Entries[1].From = t0.Add(time.Hour) },
		"version":            func(c *Channel) { c.Entries[0].Version = "\x1b[2J" },
		"entry's tier":       func(c *Channel) { c.Entries[0].Tiers = []string{"gold"} },
		"pin of nobody":      func(c *Channel) { c.Pins[0].Project = 0 },
		"pin of two":         func(c *Channel) { c.Pins[0].Path = "x" },
		"pin's pattern":      func(c *Channel) { c.Pins[0] = Pin{Path: "[", Manifest: sumOf(1)} },
		"pin's manifest":     func(c *Channel) { c.Pins[0].Manifest = "x" },
		"revoked":            func(c *Channel) { c.Revoked[0].Manifest = "x" },
		"tier":               func(c *Channel) { c.Tiers["g"] = "gold" },
		"too many entries":   func(c *Channel) { c.Entries = make([]Entry, maxEntries+1) },
		"unprintable runner": func(c *Channel) { c.Entries[0].MinRunner = "\r" },
	} {
		c := good()
		spoil(&c)
		if err := c.Validate(); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOlder(t *testing.T) {
	for _, tc := range []struct {
		own, min string
		want     bool
	}{
		{"1.0.0", "1.0.0", false}, {"1.0", "1.0.0", false}, {"1.0.0", "1", false}, {"v1.9.9", "1.10.0", true}, {"1.10.0", "v1.9.9", false},
		{"2", "10", true}, {"dev", "99", false}, {"", "99", false}, {"1", "", false}, {"1.2.3-4-gabc", "1.2.3", false}, {"1.2.2-dirty", "1.2.3", true}, {"0", "0.0", false},
	} {
		if got := older(tc.own, tc.min); got != tc.want {
			t.Errorf("older(%q, %q) = %v", tc.own, tc.min, got)
		}
	}
}
