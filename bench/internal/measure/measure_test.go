package measure

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestCommand(t *testing.T) {
	// This process has more memory than the child that it measures.
	ballast := make([]byte, 200<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	u, err := Command(t.Context(), []string{"GREETING=hello"}, "sh", "-c", `test "$GREETING" = hello`)
	if err != nil {
		t.Fatal(err)
	}
	if u.Wall <= 0 || u.Peak <= 0 || u.Peak > 100<<20 {
		t.Errorf("%+v", u)
	}
	if len(ballast) == 0 {
		t.Error("no ballast")
	}
	if _, err := Command(t.Context(), nil, "sh", "-c", "echo why it failed; exit 3"); err == nil || !strings.Contains(err.Error(), "why it failed") {
		t.Errorf("got %v", err)
	}
	if _, err := Command(t.Context(), nil, "/no/such/program"); err == nil {
		t.Error("a program that is not there ran")
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct{ in, want []time.Duration }{
		{nil, []time.Duration{0}}, {[]time.Duration{3}, []time.Duration{3}}, {[]time.Duration{9, 1, 5}, []time.Duration{5}}, {[]time.Duration{4, 1, 2, 9}, []time.Duration{3}},
	} {
		if got := Median(c.in); got != c.want[0] {
			t.Errorf("Median(%v) = %v, want %v", c.in, got, c.want[0])
		}
	}
}
