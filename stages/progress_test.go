package stages

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/ci"
)

type screen struct{ bytes.Buffer }

func (*screen) Terminal() bool { return true }

// transfer plays one push of 40 MiB that takes 20 seconds.
func transfer(w io.Writer) {
	at := time.Unix(0, 0)
	m := newMeter(w, func() time.Time { return at })
	t := builder.Transfer{Image: "nodejs18", Title: "dependencies layer", Size: 40 << 20}
	for s := range 20 {
		at = time.Unix(int64(s), 0)
		t.Sent, t.Took = int64(s)*2<<20, time.Duration(s)*time.Second
		m.show(t)
	}
	t.Sent, t.Done, t.Took = t.Size, true, 20*time.Second
	m.show(t)
	m.show(builder.Transfer{Title: "code layer", Size: 100, Sent: 100, Done: true, Took: time.Millisecond})
	m.show(builder.Transfer{Title: "base layer", Size: 100, Done: true, Reused: true, Took: time.Hour})
}

func TestProgressInAJobLog(t *testing.T) {
	var out bytes.Buffer
	transfer(&out)
	want := "  push dependencies layer: 20.0 MiB of 40.0 MiB, 2.0 MiB/s\n  pushed dependencies layer: 40.0 MiB, 2.0 MiB/s in 20s\n"
	want = strings.ReplaceAll(want, "2.0 MiB/s", "2048.0 KiB/s")
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestProgressOnATerminal(t *testing.T) {
	out := &screen{}
	transfer(out)
	if strings.Contains(out.String(), "\n") || !strings.HasSuffix(out.String(), "\r\x1b[K") || !strings.Contains(out.String(), "push dependencies layer: 20.0 MiB of 40.0 MiB") {
		t.Errorf("%q", out.String())
	}
}

func TestLayerTable(t *testing.T) {
	ref, err := name.NewDigest("registry.example/team/app@sha256:" + strings.Repeat("a", 64))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s := &state{Runner: &Runner{Log: ci.Log{W: &out, Now: time.Now}}}
	s.layerTable(builder.Image{Name: "nodejs18", Ref: ref, Requests: 9, Uploaded: 2000, Warnings: []string{"something was left out"},
		Referrers: []builder.Referrer{{Predicate: "https://slsa.dev/provenance/v1", Signed: true}},
		Layers:    []builder.Layer{{Title: "base", Size: 90 << 20, Reused: true}, {Title: "code", Size: 1234, Took: 31 * time.Millisecond}}})
	want := fmt.Sprintf("  image nodejs18: %s\n", ref) + `    layer               size          time
    base            90.0 MiB  reused
    code              1234 B  pushed  31ms
    9 registry requests, 2000 B sent
    beside it: provenance (signed)
  warning: something was left out
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
