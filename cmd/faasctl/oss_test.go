package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/aliyun"
)

// startOSS runs `oss dev` until stop is called, which returns its exit code
// and what it wrote to stderr.
func startOSS(t *testing.T, env map[string]string, args ...string) (line listening, stop func() (int, string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, stdout := io.Pipe()
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		all := append([]string{"faasctl", "oss", "dev", "--addr", "127.0.0.1:0"}, args...)
		code <- run(ctx, all, func(k string) string { return env[k] }, stdout, &stderr)
		stdout.Close()
	}()
	stop = func() (int, string) { cancel(); c := <-code; code <- c; return c, stderr.String() }
	t.Cleanup(func() { stop() })
	d := json.NewDecoder(out)
	if err := d.Decode(&line); err != nil {
		_, log := stop()
		t.Fatalf("no line of JSON: %v\n%s", err, log)
	}
	go io.Copy(io.Discard, out)
	return line, stop
}

func TestOSSDev(t *testing.T) {
	root := t.TempDir()
	env := map[string]string{"OSS_ACCESS_KEY_ID": "me", "OSS_ACCESS_KEY_SECRET": "hush"}
	line, stop := startOSS(t, env, "--root", root, "--bucket", "platform", "--public-read")
	if line.Bucket != "platform" || line.AccessKeyID != "me" || !line.PublicRead || line.URL != line.Endpoint+"/platform" {
		t.Errorf("got %+v", line)
	}
	config := aliyun.Config{Endpoint: line.Endpoint, Region: line.Region, Bucket: line.Bucket, AccessKeyID: "me", AccessKeySecret: "hush"}
	s, err := aliyun.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "k", []byte("kept"), oss.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if code, log := stop(); code != 0 || strings.Contains(log, "hush") {
		t.Errorf("ended with %d and log %q, want 0 and no secret", code, log)
	}

	// The same folder again: content stays, the ACL is what is asked for now,
	// and a key is made.
	line, stop = startOSS(t, nil, "--root", root, "--bucket", "platform", "--public-read")
	r, err := oss.NewHTTP(line.URL, oss.HTTPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := oss.ReadAll(t.Context(), r, "k", oss.GetOptions{}, 100)
	if err != nil || string(got) != "kept" {
		t.Errorf("after a restart: got %q, %v", got, err)
	}
	if code, log := stop(); code != 0 || !strings.Contains(log, "export OSS_ACCESS_KEY_ID="+line.AccessKeyID) {
		t.Errorf("ended with %d and log %q, want 0 and the key", code, log)
	}
}

func TestOSSDevRefuses(t *testing.T) {
	root := t.TempDir()
	line, _ := startOSS(t, nil, "--root", root)
	for name, c := range map[string]struct {
		env  map[string]string
		args []string
		code int
		want string
	}{
		"no root":      {nil, []string{"oss", "dev"}, 2, "root"},
		"half a key":   {map[string]string{"OSS_ACCESS_KEY_ID": "me"}, []string{"oss", "dev", "--root", t.TempDir()}, 2, "OSS_ACCESS_KEY_SECRET"},
		"bad bucket":   {nil, []string{"oss", "dev", "--root", t.TempDir(), "--bucket", "No"}, 77, `"No" is not a bucket name`},
		"in use":       {nil, []string{"oss", "dev", "--root", root}, 77, "in use by another object store"},
		"address used": {nil, []string{"oss", "dev", "--root", t.TempDir(), "--addr", strings.TrimPrefix(line.Endpoint, "http://")}, 77, "address already in use"},
		"left over":    {nil, []string{"oss", "dev", "--root", t.TempDir(), "x"}, 2, `unexpected argument "x"`},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), append([]string{"faasctl"}, c.args...), func(k string) string { return c.env[k] }, &stdout, &stderr)
			if code != c.code || stdout.Len() > 0 || !strings.Contains(stderr.String(), c.want) {
				t.Errorf("got %d, stdout %q, stderr %q; want %d and %q", code, &stdout, &stderr, c.code, c.want)
			}
		})
	}
}
