package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
)

// newServers is [newLab] with an example's files and its runtime's images.
func newServers(t *testing.T, runtime, example string) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), started: devtest.Start(t, runtime)}
	l.services, l.platform = l.started.Services, l.started.Platform
	if example != "" {
		checkout, err := devenv.Where()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(l.dir, os.DirFS(filepath.Join(checkout, "examples", example))); err != nil {
			t.Fatal(err)
		}
	}
	l.publish(devenv.Release{})
	return l
}

// serve runs the main job and returns what the function answers. The image
// must be whole, and nobody special's.
func (l *lab) serve(entrypoint ...string) string {
	l.t.Helper()
	l.newPipeline()
	o := l.ok(whole)
	if !strings.Contains(o.log, "unverified") {
		l.t.Errorf("a server without adapter can't prove itself, and the log does not say so:\n%s", o.log)
	}
	ref, err := name.NewDigest(o.report.Result.Images[0].Ref)
	if err != nil {
		l.t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err == nil {
		err = validate.Image(img)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		l.t.Fatal(err)
	}
	if c := cfg.Config; c.User != "65532:65532" || !slices.Equal(c.Entrypoint, entrypoint) || len(c.Cmd) != 0 {
		l.t.Errorf("user %s, entry point %q, arguments %q; want %q", c.User, c.Entrypoint, c.Cmd, entrypoint)
	}
	status, body, _ := l.get(o.report.Result.URLs[0].URL + "/hello")
	if status != 200 {
		l.t.Errorf("status %d: %s", status, body)
	}
	return body
}

func TestPythonServer(t *testing.T) {
	l := newServers(t, "python3.11", "hello-python")
	if got, want := l.serve("/usr/bin/python3", "app.py"), `{"greeting": "hello from Python"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// A changed file is a changed answer.
	app, err := os.ReadFile(filepath.Join(l.dir, "app.py"))
	if err != nil {
		t.Fatal(err)
	}
	l.write(map[string]string{"app.py": strings.ReplaceAll(string(app), "from Python", "again")})
	if got, want := l.serve("/usr/bin/python3", "app.py"), `{"greeting": "hello again"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestJavaServer(t *testing.T) {
	l := newServers(t, "java17", "hello-java")
	if got, want := l.serve("/usr/bin/java", "com.example.hello.Hello"), `{"greeting":"hello from Java"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A server's start command comes from the handler, the Procfile or
// package.json; it is part of what is built.
func TestNodeServer(t *testing.T) {
	l := newServers(t, "nodejs18", "")
	const server = `require('http').createServer((req, res) => res.end(process.argv[2] + ' ' + process.env.WHO + ' ' + req.url)).listen(process.env.PORT);`
	const app = "version: 1\nservice: web\nprovider: {runtime: nodejs18, contract: app}\nfunctions:\n  web: {environment: {WHO: me}"
	l.write(map[string]string{
		"faas.yml": app + "}\n", "server.js": server,
		"package.json": `{"name": "web", "scripts": {"start": "node server.js package"}}`,
	})
	if got := l.serve("/usr/bin/node", "server.js", "package"); got != "package me /hello" {
		t.Errorf("package.json: %s", got)
	}
	l.write(map[string]string{"Procfile": "web: node server.js 'proc file'\n"})
	if got := l.serve("/usr/bin/node", "server.js", "proc file"); got != "proc file me /hello" {
		t.Errorf("Procfile: %s", got)
	}
	l.write(map[string]string{"faas.yml": app + ", handler: server.js handler}\n"})
	if got := l.serve("/usr/bin/node", "server.js", "handler"); got != "handler me /hello" {
		t.Errorf("handler: %s", got)
	}
	for handler, want := range map[string]string{
		"node server.js $PORT": `"$" needs a shell`, "servers.js": "names servers.js, which is not there",
	} {
		l.newPipeline()
		l.write(map[string]string{"faas.yml": app + ", handler: '" + handler + "'}\n"})
		l.refused(l.run(whole), 1, want, "functions.web", "E1305")
	}
}
