package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	os.Exit(m.Run())
}

// The page's commands, at most eight, end in a function that answers; also in
// a folder whose name no image may have.
func TestFirstFunction(t *testing.T) {
	const folder = "第一个Hello"
	if testing.Short() {
		t.Skip("-short: builds programs and deploys")
	}
	checkout, err := devenv.Where()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache folder, so no base images: ", err)
	}
	if _, err := os.Stat(filepath.Join(cache, "kuroko")); err != nil {
		t.Skip("base images are missing; make images makes them: ", err)
	}
	page, err := os.ReadFile(filepath.Join(checkout, "docs", "first-function.md"))
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		commands = append(commands, strings.Split(strings.TrimSpace(block[1]), "\n")...)
	}
	if len(commands) == 0 || len(commands) > 8 {
		t.Fatalf("the page has %d commands", len(commands))
	}
	home := t.TempDir()
	env := []string{"HOME=" + home, "XDG_CACHE_HOME=" + cache}
	for _, n := range []string{"PATH", "TMPDIR", "npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if v, ok := os.LookupEnv(n); ok {
			env = append(env, n+"="+v)
		}
	}
	// A home of its own would mean an empty module and build cache.
	for _, n := range []string{"GOPATH", "GOCACHE", "GOMODCACHE", "GOPROXY", "GOFLAGS", "GOSUMDB", "GONOSUMDB", "GOTOOLCHAIN"} {
		out, err := exec.CommandContext(t.Context(), "go", "env", n).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, n+"="+strings.TrimSpace(string(out)))
	}
	var last bytes.Buffer
	for _, line := range commands {
		line = strings.ReplaceAll(line, "~/hello", "~/"+folder)
		var log bytes.Buffer
		background := strings.HasSuffix(line, "&")
		cmd := exec.Command("/bin/sh", "-c", strings.TrimSuffix(strings.TrimSpace(line), "&"))
		if background {
			cmd.Args[2] = "exec " + cmd.Args[2]
		}
		last.Reset()
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = checkout, env, &last, &log
		if !background {
			if err := cmd.Run(); err != nil {
				t.Fatalf("%s: %v\n%s", line, err, log.String())
			}
			continue
		}
		logFile, err := os.Create(filepath.Join(home, "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer logFile.Close()
		cmd.Stdout, cmd.Stderr = nil, logFile
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended, end := context.WithCancelCause(t.Context())
		go func() { end(errors.Join(errors.New("it ended"), cmd.Wait())) }()
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM) // ended already: nothing to do
			<-ended.Done()
		})
		for live := false; !live; {
			data, err := os.ReadFile(filepath.Join(home, folder, "url"))
			live = err == nil && bytes.HasSuffix(data, []byte("\n"))
			select {
			case <-ended.Done():
				text, _ := os.ReadFile(logFile.Name())
				t.Fatalf("%s: %v\n%s", line, context.Cause(ended), text)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	if got := last.String(); got != `{"greeting":"hello"}` {
		t.Errorf("the function answers %q", got)
	}
}
