package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/local"
)

func TestLocalServe(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, stdout := io.Pipe()
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"faasctl", "local", "serve", "--dir", dir, "--addr", "127.0.0.1:0", "--sandbox", "none"}, os.Getenv, stdout, &stderr)
		stdout.Close()
	}()
	var line struct{ URL, Socket, Sandbox string }
	if err := json.NewDecoder(out).Decode(&line); err != nil {
		t.Fatalf("no line of JSON: %v\n%s", err, stderr.String())
	}
	if line.Sandbox != "none" || line.Socket != filepath.Join(dir, "control.sock") {
		t.Errorf("got %+v", line)
	}
	if h, err := local.Dial(line.Socket).Head(t.Context(), deployer.Scope{Service: "x", Environment: "e", Owner: "1"}); err != nil || h.Version != "" {
		t.Errorf("head of a new scope: %+v, %v", h, err)
	}
	res, err := http.Get(line.URL + "/nobody")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("a unit that is not there: %s", res.Status)
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--dir", dir, "--sandbox", "none"}, 77, "another local target uses the folder"},
		{[]string{"--sandbox", "none"}, 2, "--dir is needed"},
		{[]string{"--dir", t.TempDir(), "--sandbox", "jail"}, 2, `sandbox "jail"`},
		{[]string{"--dir", t.TempDir(), "--sandbox", "none", "--addr", strings.TrimPrefix(line.URL, "http://")}, 77, "choose another --addr"},
	} {
		var log bytes.Buffer
		got := run(t.Context(), append([]string{"faasctl", "local", "serve"}, tc.args...), os.Getenv, io.Discard, &log)
		if got != tc.code || !strings.Contains(log.String(), tc.says) {
			t.Errorf("%q: code %d, want %d and %q:\n%s", tc.args, got, tc.code, tc.says, log.String())
		}
	}
	cancel()
	if got := <-code; got != 0 {
		t.Errorf("ended with code %d:\n%s", got, stderr.String())
	}
	if _, err := os.Lstat(line.Socket); err == nil {
		t.Error("the socket is still there")
	}
}
