package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder/pip/piptest"
	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// newServers is [newLab] with an example's files and its runtime's images.
func newServers(t *testing.T, runtime, example string) *lab {
	t.Helper()
	t.Parallel()
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

// serve runs the main job and returns what the function answers, and its image.
func (l *lab) serve(entrypoint ...string) (body, image string) {
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
	return body, ref.String()
}

func TestPythonServer(t *testing.T) {
	l := newServers(t, "python3.11", "hello-python")
	got, image := l.serve("/usr/bin/python3", "app.py")
	if want := `{"greeting": "hello from Python"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	pulled(t, image)
	// A changed file is a changed answer.
	app, err := os.ReadFile(filepath.Join(l.dir, "app.py"))
	if err != nil {
		t.Fatal(err)
	}
	l.write(map[string]string{"app.py": strings.ReplaceAll(string(app), "from Python", "again")})
	if got, _ := l.serve("/usr/bin/python3", "app.py"); got != `{"greeting": "hello again"}` {
		t.Errorf("after a change: %s", got)
	}
}

func TestJavaServer(t *testing.T) {
	l := newServers(t, "java17", "hello-java")
	got, image := l.serve("/usr/bin/java", "com.example.hello.Hello")
	if want := `{"greeting":"hello from Java"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	pulled(t, image)
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
	if got, _ := l.serve("/usr/bin/node", "server.js", "package"); got != "package me /hello" {
		t.Errorf("package.json: %s", got)
	}
	l.write(map[string]string{"Procfile": "web: node server.js 'proc file'\n"})
	if got, _ := l.serve("/usr/bin/node", "server.js", "proc file"); got != "proc file me /hello" {
		t.Errorf("Procfile: %s", got)
	}
	l.write(map[string]string{"faas.yml": app + ", handler: server.js handler}\n"})
	if got, _ := l.serve("/usr/bin/node", "server.js", "handler"); got != "handler me /hello" {
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

// Wheels from a private index become a layer; its token is in nothing that
// stays.
func TestPythonDependencies(t *testing.T) {
	l := newServers(t, "python3.11", "")
	greeter := piptest.Wheel{Name: "greeter", Version: "1.0", Files: map[string]string{"greeter.py": "GREETING = 'hello from a wheel'\n"},
		EntryPoints: "[console_scripts]\nserve-greeting = app:main\n"}
	index := piptest.NewIndex(t, greeter)
	index.Token = "t0ken-of-the-index"
	netrc := filepath.Join(t.TempDir(), "netrc")
	if err := os.WriteFile(netrc, []byte("machine 127.0.0.1 login ci password "+index.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const app = `from http.server import *
import os, greeter
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(greeter.GREETING.encode())
def main():
    HTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
`
	l.write(map[string]string{
		"faas.yml":         "version: 1\nservice: web\nprovider: {runtime: python3.11, contract: app}\nfunctions:\n  web: {handler: serve-greeting, environment: {PYTHONPATH: /app}}\n",
		"app.py":           app,
		"requirements.txt": greeter.Line(t),
	})
	env := []string{"PIP_INDEX_URL=" + index.URL, "NETRC=" + netrc}
	o := l.ok(whole, env...)
	if status, body, _ := l.get(o.report.Result.URLs[0].URL); status != 200 || body != "hello from a wheel" {
		t.Errorf("%d %s", status, body)
	}
	if strings.Contains(o.log+o.stdout, index.Token) {
		t.Error("the log tells the token")
	}
	// One that other files decide is refused with what to do.
	l.newPipeline()
	l.write(map[string]string{"requirements.txt": "greeter==1.0\n-e git+https://x.example/y\n"})
	l.refused(l.run(whole, env...), 1, "line 2: an editable install", "pip-compile --generate-hashes")
	l.newPipeline()
	greeter.Version = "1.1"
	l.write(map[string]string{"requirements.txt": greeter.Line(t)})
	l.refused(l.run(whole, "PIP_INDEX_URL="+index.URL), 78, "access denied")
}

// What a build left beside its classes is a layer of its own, which a change
// of the code leaves alone.
func TestJavaDependencies(t *testing.T) {
	l := newServers(t, "java17", "hello-java")
	faas, err := os.ReadFile(filepath.Join(l.dir, "faas.yml"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(faas), "output: target/classes", "output: target")
	text = strings.Replace(text, "command: javac -d target/classes", "command: mkdir -p target/dependency && cp greeting.jar target/dependency/ && javac -d target/classes -cp greeting.jar", 1)
	l.write(map[string]string{"faas.yml": strings.Replace(text, `exclude: ["src/**"]`, `exclude: ["src/**", greeting.jar]`, 1)})
	src := t.TempDir()
	devtest.Write(t, src, map[string]string{"lib/Greeting.java": "package lib; public class Greeting { public static String text() { return \"hello from a jar\"; } }"})
	for _, args := range [][]string{{"javac", "lib/Greeting.java"}, {"jar", "cf", filepath.Join(l.dir, "greeting.jar"), "lib/Greeting.class"}} {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = src
		if out, err := cmd.CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
			t.Skip("needs a JDK: ", err)
		} else if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	main := filepath.Join(l.dir, "src/main/java/com/example/hello/Hello.java")
	code, err := os.ReadFile(main)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.ReplaceAll(string(code), `"{\"greeting\":\"hello from Java\"}"`, `lib.Greeting.text()`)
	l.write(map[string]string{"src/main/java/com/example/hello/Hello.java": changed})
	if got, _ := l.serve("/usr/bin/java", "com.example.hello.Hello"); got != "hello from a jar" {
		t.Errorf("got %s", got)
	}
	l.write(map[string]string{"src/main/java/com/example/hello/Hello.java": strings.ReplaceAll(changed, "text()", `text().concat(" again")`)})
	l.newPipeline()
	o := l.ok(whole)
	if !regexp.MustCompile(`dependencies +\S+ \S+ +reused`).MatchString(o.log) || !regexp.MustCompile(`code +\S+ \S+ +pushed`).MatchString(o.log) {
		t.Errorf("the log should have reused dependencies and pushed code:\n%s", o.log)
	}
}

// A built-in layer comes on the base of the functions that name it: ffmpeg
// runs, as nobody special, in an image without a shell.
func TestBuiltInLayer(t *testing.T) {
	l := newServers(t, "python3.11", "")
	if l.started.Images["python3.11"].Layers["ffmpeg"] == "" {
		t.Skip("needs the image layer/ffmpeg/python3.11: make images IMAGES=layer/ffmpeg/python3.11")
	}
	const app = `from http.server import *
import os, subprocess
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        out = subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", "-f", "wav", "-"], capture_output=True)
        self.send_response(200); self.end_headers()
        self.wfile.write(b"%d %s %d %s" % (os.getuid(), out.stdout[:4], len(out.stdout), out.stderr))
HTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
`
	const plain = "version: 1\nservice: media\nprovider: {runtime: python3.11, contract: app}\nfunctions:\n  media: {handler: app.py"
	l.write(map[string]string{"faas.yml": plain + ", layers: ['builtin:ffmpeg']}\n", "app.py": app})
	o := l.ok(whole)
	if _, body, _ := l.get(o.report.Result.URLs[0].URL); body != "65532 RIFF 88278 " {
		t.Errorf("got %q, log:\n%s", body, o.log)
	}
	// Without it, it is another image.
	l.newPipeline()
	l.write(map[string]string{"faas.yml": plain + "}\n"})
	again := l.ok("prepare,test,build")
	if again.report.Result.Images[0].Ref == o.report.Result.Images[0].Ref {
		t.Error("an image with a layer is the one without")
	}
	l.newPipeline()
	l.write(map[string]string{"faas.yml": plain + ", layers: ['builtin:nope']}\n"})
	l.refused(l.run(whole), 1, "builtin:nope", "builtin:ffmpeg")
}

// A pom.xml alone is enough: Maven of the build image compiles and copies the
// libraries, which are a layer of their own. The repository's password stays
// outside.
func TestMavenBuild(t *testing.T) {
	if os.Getenv("KUROKO_TEST_IMAGES") == "" {
		t.Skip("runs Maven twice, which takes half a minute: make test-images")
	}
	const repo = "/usr/share/maven-repo"
	for _, f := range []string{"org/apache/maven/plugins/maven-dependency-plugin/2.8", "org/apache/maven/plugins/maven-compiler-plugin/3.1", "org/apache/maven/plugins/maven-resources-plugin/2.6", "org/apache/commons/commons-lang3/3.12.0"} {
		if _, err := os.Stat(filepath.Join(repo, f)); err != nil {
			t.Skip("needs Debian's Maven repository with libmaven-{dependency,compiler,resources}-plugin-java: ", err)
		}
	}
	l := newServers(t, "java17", "hello-java")
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("needs namespaces: ", why)
	}
	const token = "t0ken-of-the-repository"
	files := http.FileServer(http.Dir(repo))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	netrc := filepath.Join(t.TempDir(), "netrc")
	if err := os.WriteFile(netrc, []byte("machine 127.0.0.1 login ci password "+token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	main := "src/main/java/com/example/hello/Hello.java"
	code, err := os.ReadFile(filepath.Join(l.dir, main))
	if err != nil {
		t.Fatal(err)
	}
	l.write(map[string]string{
		main:       strings.ReplaceAll(string(code), `"{\"greeting\":\"hello from Java\"}"`, `org.apache.commons.lang3.StringUtils.capitalize("hello from maven")`),
		"faas.yml": "version: 1\nservice: hello-java\nprovider: {runtime: java17, contract: app}\nfunctions:\n  hello: {handler: com.example.hello.Hello, events: [{http: {path: /hello}}]}\npackage: {exclude: [\"src/**\"]}\n",
		"pom.xml": `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>com.example</groupId><artifactId>hello</artifactId><version>1</version>
<properties><maven.compiler.source>17</maven.compiler.source><maven.compiler.target>17</maven.compiler.target><project.build.sourceEncoding>UTF-8</project.build.sourceEncoding></properties>
<dependencies><dependency><groupId>org.apache.commons</groupId><artifactId>commons-lang3</artifactId><version>3.12.0</version></dependency></dependencies></project>`,
	})
	env := []string{"MAVEN_MIRROR_URL=" + srv.URL, "NETRC=" + netrc}
	l.newPipeline()
	o := l.ok(whole, env...)
	if _, body, _ := l.get(o.report.Result.URLs[0].URL + "/hello"); body != "Hello from maven" {
		t.Errorf("got %q, log:\n%s", body, o.log)
	}
	if strings.Contains(o.log+o.stdout, token) {
		t.Error("the log tells the token")
	}
	if !regexp.MustCompile(`sandbox: namespaces, build image sha256:`).MatchString(o.log) {
		t.Errorf("the log does not say where Maven ran:\n%s", o.log)
	}
	// Equal inputs are the same image, without Maven; another source is not.
	l.newPipeline()
	o = l.ok("prepare,test,build", env...)
	if !o.report.Result.Images[0].Reused || !strings.Contains(o.log, "nothing that build.command reads has changed") || strings.Contains(o.log, "BUILD SUCCESS") {
		t.Errorf("built again:\n%s", o.log)
	}
	l.write(map[string]string{main: strings.ReplaceAll(string(code), "hello from Java", "hello from a change")})
	l.newPipeline()
	o = l.ok("prepare,test,build", env...)
	if o.report.Result.Images[0].Reused || !strings.Contains(o.log, "BUILD SUCCESS") {
		t.Errorf("not built again:\n%s", o.log)
	}
	// Gradle is planned, and said to be.
	l.newPipeline()
	os.Remove(filepath.Join(l.dir, "pom.xml"))
	l.write(map[string]string{"build.gradle": "plugins { id 'java' }\n"})
	l.refused(l.run("prepare,test,build", env...), 1, "build.gradle", "planned", "build: {command:")
}

// build.base puts a function on a base that the platform allows beside its
// own: by digest, and for what the runtime's packages are made for.
func TestBaseOfItsOwn(t *testing.T) {
	l := newLab(t)
	own, err := name.NewDigest(l.services.Registry + "/" + l.started.Images["nodejs18"].Base)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(own)
	if err != nil {
		t.Fatal(err)
	}
	push := func(repo string, change func(*v1.Config)) string {
		t.Helper()
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		change(&cfg.Config)
		made, err := mutate.ConfigFile(img, cfg)
		if err == nil {
			err = remote.Write(own.Context().Registry.Repo(repo).Tag("latest"), made)
		}
		if err != nil {
			t.Fatal(err)
		}
		digest, err := made.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return repo + "@" + digest.String()
	}
	marked := push("base/marked", func(c *v1.Config) { c.Env = append(c.Env, "MARK=of its own") })
	foreign := push("base/foreign", func(c *v1.Config) { c.Labels["abi"] = "node99-glibc2.99" })
	l.publish(devenv.Release{Files: map[string]string{"platform/policy.yml": "version: 1\nbases: [base/marked, base/foreign]\n"}})
	l.write(map[string]string{"index.js": "exports.handler = async () => `${process.env.MARK} ${process.getuid()}`;\n", "faas.yml": shop + "build: {base: \"" + marked + "\"}\n"})
	l.newPipeline()
	o := l.ok(whole)
	if _, body, _ := l.get(o.report.Result.URLs[0].URL); !strings.HasPrefix(body, "of its own ") || strings.HasSuffix(body, " 0") {
		t.Errorf("got %q", body)
	}
	for base, want := range map[string]string{
		foreign:              "has the abi \"node99-glibc2.99\"",
		"base/marked:latest": "write its digest",
		"base/other@sha256:" + strings.Repeat("a", 64): "is not allowed by the platform's policy",
	} {
		l.newPipeline()
		l.write(map[string]string{"faas.yml": shop + "build: {base: \"" + base + "\"}\n"})
		if o := l.run("prepare,test,build"); o.code == 0 || !strings.Contains(o.log, want) {
			t.Errorf("%s: exit %d, want %q in\n%s", base, o.code, want, o.log)
		}
	}
}
