package main

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
	"github.com/kuroko-faas/kuroko/internal/devenv"
)

// proxy is a web proxy behind which there is one site; it notes who asked for
// what.
type proxy struct {
	URL      string
	host     string
	site     http.Handler
	password string // that it asks for; empty for none

	mu    sync.Mutex
	asked []string
}

func startProxy(t *testing.T, host string, site http.Handler) *proxy {
	t.Helper()
	p := &proxy{host: host, site: site}
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	p.URL = srv.URL
	return p
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.URL.Host+" "+r.URL.Path)
	want := p.password
	p.mu.Unlock()
	if got := r.Header.Get("Proxy-Authorization"); want != "" && got != "Basic "+base64.StdEncoding.EncodeToString([]byte("ci:"+want)) {
		http.Error(w, "who are you?", http.StatusProxyAuthRequired)
		return
	}
	if r.URL.Host != p.host {
		http.Error(w, "no way to "+r.URL.Host, http.StatusBadGateway)
		return
	}
	r.Host = p.host
	p.site.ServeHTTP(w, r)
}

// since is what was asked for after the first n requests.
func (p *proxy) since(n int) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked[n:])
}

func (p *proxy) require(password string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.password = password
}

// The bundle says where packages come from and how the web is reached: the
// runner itself and the commands of the repository go there.
func TestMirrorAndProxyOfTheBundle(t *testing.T) {
	l := newLab(t)
	const host = "npm.mirror.example"
	packages := npmtest.New(npmtest.Package{Name: "tiny", Version: "1.2.3", Files: map[string]string{"index.js": "module.exports = 'tiny'\n"}})
	packages.URL = "http://" + host
	p := startProxy(t, host, packages)
	checkout, err := devenv.Where()
	if err != nil {
		t.Fatal(err)
	}
	meta, err := os.ReadFile(filepath.Join(checkout, "platform/bundle.yml"))
	if err != nil {
		t.Fatal(err)
	}
	const mirrors = "mirrors: {npm: \"http://" + host + "/\"}\n"
	publish := func(more string) {
		l.publish(devenv.Release{Files: map[string]string{"platform/bundle.yml": string(meta) + mirrors + more}})
		l.newPipeline()
	}
	const manifest = `{"name": "shop", "version": "1.0.0", "dependencies": {"tiny": "1.2.3"}}`
	l.write(map[string]string{
		"faas.yml":     shop + "build: {output: dist, command: 'mkdir -p dist; npm view tiny version > dist/version; echo proxy $HTTP_PROXY $http_proxy'}\n",
		"package.json": manifest, "package-lock.json": packages.Lock(manifest),
	})
	// The job's machine knows neither; what it says does not count.
	l.environ = []string{"npm_config_registry=http://127.0.0.1:1/", "HTTP_PROXY=http://127.0.0.1:1", "http_proxy=http://127.0.0.1:1"}

	publish("proxy: {http: \"" + p.URL + "\", none: [registry.example]}\n")
	o := l.ok("prepare,test,build")
	image := everything(t, o.report.Result.Images[0].Ref)
	if !strings.Contains(image, "module.exports = 'tiny'") || !strings.Contains(image, "1.2.3\n") {
		t.Errorf("the package or the command's output is missing:\n%s", o.log)
	}
	if !strings.Contains(o.log, "proxy "+p.URL+" "+p.URL) {
		t.Errorf("the command sees another proxy:\n%s", o.log)
	}
	asked := p.since(0)
	for _, a := range asked {
		if !strings.HasPrefix(a, host+" ") {
			t.Errorf("something else went through the proxy: %s", a)
		}
	}
	if !slices.Contains(asked, host+" /tiny") || !slices.ContainsFunc(asked, func(a string) bool { return strings.HasSuffix(a, ".tgz") }) {
		t.Errorf("the proxy was asked for %q", asked)
	}

	// A proxy of the machine may ask who comes: what it is told is in no log.
	const password = "pr0xy-passw0rd"
	p.require(password)
	l.environ = []string{"HTTP_PROXY=" + strings.Replace(p.URL, "//", "//ci:"+password+"@", 1), "NPM_CACHE=none"}
	l.write(map[string]string{"index.js": "exports.handler = async () => ({greeting: 'again'});\n"})
	publish("")
	before := len(p.since(0))
	o = l.ok("prepare,test,build")
	if len(p.since(before)) == 0 {
		t.Error("the machine's proxy was not asked")
	}
	if image := everything(t, o.report.Result.Images[0].Ref); strings.Contains(image+o.log+o.stdout, password) || !strings.Contains(o.log, "proxy http://[MASKED]@") {
		t.Errorf("the password is in the image or the log:\n%s", o.log)
	}
	p.require("another")
	l.write(map[string]string{"index.js": "exports.handler = async () => ({greeting: 'once more'});\n", "faas.yml": shop + "build: {command: npm view tiny version}\n"})
	publish("")
	o = l.run("prepare,test,build")
	if o.code == 0 || strings.Contains(o.log, password) {
		t.Errorf("exit %d:\n%s", o.code, o.log)
	}
}
