package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
)

func TestSweepUsage(t *testing.T) {
	for _, tc := range []struct {
		args string
		exit int
		want string
	}{
		{"sweep", 78, "KUBECONFIG is not set, and this is no pod of a cluster"},
		{"sweep --kubeconfig /nowhere/at/all", 78, "open the cluster"},
		{"sweep --every 0s", 2, "--every"},
		{"sweep --health :1", 2, "--health is for --watch"},
		{"sweep --lead-in kuroko", 2, "--lead-in is for --watch"},
		{"sweep now", 2, `unexpected argument "now"`},
	} {
		var out, log bytes.Buffer
		exit := run(t.Context(), append([]string{"faasctl"}, strings.Fields(tc.args)...), func(string) string { return "" }, &out, &log)
		if exit != tc.exit || !strings.Contains(log.String(), tc.want) || out.Len() > 0 {
			t.Errorf("%s: exit %d, stdout %q, log\n%s\nwant %d, %q", tc.args, exit, out.String(), log.String(), tc.exit, tc.want)
		}
	}
}

func TestSweepLogIsLinesOfJSON(t *testing.T) {
	var out bytes.Buffer
	log := &sweepLog{w: &out}
	log.swept(deployer.Swept{
		Scope: deployer.Scope{Service: "shop", Environment: "prod", Namespace: "shop-prod", Owner: "42"},
		Done:  []string{"one", "two"}, Notes: []string{"look"}, Waits: "held: by me",
	}, io.ErrUnexpectedEOF)
	var got []string
	for d := json.NewDecoder(&out); d.More(); {
		var l sweepLine
		if err := d.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if l.Service != "shop" || l.Namespace != "shop-prod" || l.Time.IsZero() {
			t.Errorf("line %+v does not say where and when", l)
		}
		got = append(got, l.Level+" "+l.Msg)
	}
	if want := "info one|info two|warn look|info left: held: by me|error unexpected EOF"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHealthFollowsTheLastLook(t *testing.T) {
	age := time.Second
	addr, stop, err := serveHealth("127.0.0.1:0", func() time.Duration { return age }, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, want := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		res, err := http.Get("http://" + addr + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("last look %s ago: %d, want %d", age, res.StatusCode, want)
		}
		age = 2 * time.Minute
	}
}
