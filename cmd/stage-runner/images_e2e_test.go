//go:build e2e

package main

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// server is a program of one language that says on $PORT who it runs as.
type server struct {
	files   map[string]string
	handler string
	says    string // how its answer begins
	command string // of the build: fields of faas.yml
	copies  string // what the Dockerfile copies
	start   string // its entry point
}

// build is faas.yml's field of that name.
func (s server) build(more string) string {
	fields := strings.Trim(s.command+", "+more, ", ")
	if fields == "" {
		return ""
	}
	return "build: {" + fields + "}\npackage: {exclude: [\"src/**\"]}\n"
}

// servers are those of the default bundle's runtimes. Each is built from
// faas.yml alone and from a Dockerfile.
var servers = map[string]server{
	"nodejs18": {
		files:   map[string]string{"server.js": "require('http').createServer((q, r) => r.end('node ' + process.getuid() + ' ' + q.url)).listen(process.env.PORT);\n"},
		handler: "server.js", says: "node", copies: "server.js", start: `["/usr/bin/node", "server.js"]`,
	},
	"python3.11": {
		files: map[string]string{"app.py": `import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"python %d %s" % (os.getuid(), self.path.encode()))
ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
`},
		handler: "app.py", says: "python", copies: "app.py", start: `["/usr/bin/python3", "app.py"]`,
	},
	"java17": {
		files: map[string]string{"src/Server.java": `import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.file.*;
public class Server {
    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(System.getenv("PORT"))), 0);
        server.createContext("/", exchange -> {
            byte[] body = ("java " + Files.getAttribute(Path.of("/proc/self"), "unix:uid") + " " + exchange.getRequestURI()).getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
`},
		handler: "Server", says: "java", command: "command: javac -d target/classes src/Server.java, output: target/classes",
		copies: "target/classes", start: `["/usr/bin/java", "Server"]`,
	},
}

// A server of each language, by each engine: a program that shares nothing
// with us pulls the image back, and the lab's containerd and Knative run it as
// nobody special, with no adapter, until it answers.
func TestServersInTheLab(t *testing.T) {
	c := devtest.NewCluster(t)
	executor := t.TempDir()
	for runtime, server := range servers {
		t.Run(runtime, func(t *testing.T) {
			l := &lab{t: t, dir: t.TempDir(), started: c.Start(t, runtime), environ: []string{"KUBECONFIG=" + c.Kubeconfig}}
			l.services, l.platform = l.started.Services, l.started.Platform
			l.publish(devenv.Release{})
			l.write(server.files)
			short := strings.ReplaceAll(runtime, ".", "")
			run := func(t *testing.T, engine, build string) {
				l.write(map[string]string{"faas.yml": "version: 1\nservice: " + engine + "-" + short + "\nprovider: {runtime: " + runtime + ", contract: app, initTimeout: 60s}\n" +
					"functions:\n  web: {handler: " + server.handler + ", events: [{http: {path: /hello}}]}\n" + build})
				l.newPipeline()
				began := time.Now()
				o := l.run(whole)
				if o.code != 0 {
					t.Fatalf("exit %d\n%s", o.code, o.log)
				}
				images := o.report.Result.Images
				if len(images) != 1 || images[0].Engine != engine {
					t.Fatalf("images %+v, want one by %s", images, engine)
				}
				pulled(t, images[0].Ref)
				status, body, err := ask(c.Client(), o.report.Result.URLs[0].URL)
				if want := server.says + " 65532 /hello"; err != nil || status != http.StatusOK || body != want {
					t.Errorf("the unit answers %d %q, %v; want %q", status, body, err, want)
				}
				t.Logf("built, live, pulled and asked in %.1f s: %s", time.Since(began).Seconds(), images[0].Ref)
			}
			t.Run("layer", func(t *testing.T) { run(t, "layer", server.build("")) })
			t.Run("dockerfile", func(t *testing.T) {
				needExecutor(t, executor)
				l.write(map[string]string{"Dockerfile": "ARG FAAS_BASE\nFROM ${FAAS_BASE}\nWORKDIR /app\nCOPY " + server.copies + " ./\nENTRYPOINT " + server.start + "\n"})
				run(t, "kaniko", server.build("builder: dockerfile"))
			})
		})
	}
}

// needExecutor puts dir with kaniko-executor in it into PATH.
func needExecutor(t *testing.T, dir string) {
	t.Helper()
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("kaniko needs a sandbox: ", why)
	}
	if _, err := os.Stat(filepath.Join(dir, "kaniko-executor")); errors.Is(err, fs.ErrNotExist) {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", "../kaniko-executor")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build kaniko-executor: %v\n%s", err, out)
		}
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}
