package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
	"github.com/kuroko-faas/kuroko/internal/nogc"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/stages"
)

func TestMain(m *testing.M) {
	nogc.End(100)
	sandbox.Main()
	os.Exit(devtest.Main(m))
}

// lab is a platform on this machine and a developer's work tree.
type lab struct {
	t        testing.TB
	services *devenv.Server
	started  devtest.Lab
	dir      string
	environ  []string
	stdin    string
	ahead    *worktree.Look // what was begun before main; nil for nothing
	commit   int
}

// newLab starts the embedded services with one published bundle.
func newLab(t testing.TB) *lab {
	t.Helper()
	return newLabWith(t, nil)
}

// newLabWith is newLab whose bundle has these files in place of its own.
func newLabWith(t testing.TB, files map[string]string) *lab {
	t.Helper()
	return labOf(t, devtest.Start(t), files)
}

// labOf is newLabWith on services that were started.
func labOf(t testing.TB, started devtest.Lab, files map[string]string) *lab {
	t.Helper()
	started.Publish(t, devenv.Release{Files: files}, "test", "prod")
	l := &lab{t: t, services: started.Services, started: started, dir: t.TempDir()}
	l.environ = []string{
		"CI_PROJECT_ID=42", "CI_PROJECT_PATH=team/shop", "FAAS_ENVIRONMENT=test", "FAAS_PLATFORM_DIR=" + started.Platform.Dir,
		"XDG_CACHE_HOME=" + t.TempDir(),
	}
	for _, n := range []string{"PATH", "HOME", "TMPDIR", "npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if v, ok := os.LookupEnv(n); ok {
			l.environ = append(l.environ, n+"="+v)
		}
	}
	return l
}

func (l *lab) write(files map[string]string) {
	l.t.Helper()
	devtest.Write(l.t, l.dir, files)
}

func (l *lab) remove(name string) {
	l.t.Helper()
	if err := os.RemoveAll(filepath.Join(l.dir, name)); err != nil {
		l.t.Fatal(err)
	}
}

// faas runs the program in the work tree.
func (l *lab) faas(args ...string) (code int, stdout, stderr string) {
	l.t.Helper()
	var out, log bytes.Buffer
	code = run(l.t.Context(), append([]string{"faas"}, append(args, "--dir", l.dir)...), l.environ, l.ahead, strings.NewReader(l.stdin), &out, &log)
	return code, out.String(), log.String()
}

// runner is a pipeline's, under the bundle that is current.
func (l *lab) runner(log io.Writer) *stages.Runner {
	l.t.Helper()
	getenv := command{environ: l.environ}.getenv
	job := ci.Job{Dir: l.dir, Environment: "test"}
	job.Project.ID, job.Project.Path = 42, "team/shop"
	l.commit++
	job.Commit.SHA = fmt.Sprintf("%040x", l.commit)
	client, platform, err := stages.Platform(getenv)
	if err != nil {
		l.t.Fatal(err)
	}
	b, err := stages.ChooseBundle(l.t.Context(), client, platform, job, nil, version, "")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { b.Close() })
	world, err := stages.Connect(getenv, ci.Job{}, log)
	if err != nil {
		l.t.Fatal(err)
	}
	return &stages.Runner{Job: job, Log: ci.Log{W: log, Now: world.Now}, Bundle: b, World: world, Version: version, Environ: l.environ}
}

// apply runs the pipeline's stages.
func (l *lab) apply() stages.Report {
	l.t.Helper()
	l.remove(stages.WorkDir)
	var log bytes.Buffer
	rep, err := l.runner(&log).Run(l.t.Context(), []string{"prepare", "test", "build", "deploy", "promote"})
	if err != nil {
		l.t.Fatalf("%v\n%s", err, log.String())
	}
	return rep
}

// plan is what faas plan --json prints.
func (l *lab) plan(args ...string) stages.Plans {
	l.t.Helper()
	code, out, log := l.faas(append([]string{"plan", "--json"}, args...)...)
	if code != 0 {
		l.t.Fatalf("faas plan: exit %d\n%s", code, log)
	}
	var p stages.Plans
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		l.t.Fatal(err)
	}
	return p
}

const shop = `version: 1
service: shop
provider: {runtime: nodejs18}
functions:
  hello: {handler: index.handler, events: [{http: {path: /hello}}]}
`

// A plan before and after the first release, in every form.
func TestPlan(t *testing.T) {
	l := newLab(t)
	l.write(map[string]string{"faas.yml": shop, "index.js": "exports.handler = async () => 'hello';\n"})

	code, out, log := l.faas("plan")
	for _, want := range []string{"shop in test: 1 function in 1 unit", "build  nodejs18", "create  shop-main", "nothing is live yet", "known after the build", "ANY  /hello"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q in\n%s%s", code, want, out, log)
		}
	}
	first := l.apply()
	if _, out, _ := l.faas("plan"); !strings.Contains(out, "reuse  nodejs18") || !strings.Contains(out, "nothing changes: r1 is live") {
		t.Errorf("after the release:\n%s", out)
	}

	l.write(map[string]string{"index.js": "exports.handler = async () => 'servus';\n"})
	dir := filepath.Join(t.TempDir(), "plans")
	code, out, log = l.faas("plan", "--out", dir, "--markdown")
	if code != 0 || !strings.Contains(out, "| shop-main | update | hello | code |") || !strings.Contains(out, "a rollback returns to r1") {
		t.Errorf("exit %d\n%s%s", code, out, log)
	}
	for _, f := range []string{"buildplan.json", "deployplan.json", "plan.md"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
	second := l.apply()
	if first.Result.Release != "r1" || second.Result.Release != "r2" {
		t.Errorf("releases %s, %s", first.Result.Release, second.Result.Release)
	}
	if p := l.plan("--vs", "r1"); p.Deploy.Observed != "release r1" || p.Deploy.Changes[0].Why != "code" {
		t.Errorf("against r1: %s %+v", p.Deploy.Observed, p.Deploy.Changes)
	}
	if code, _, log := l.faas("plan", "--vs", "r7"); code != 2 || !strings.Contains(log, "faas release list") {
		t.Errorf("against r7: exit %d\n%s", code, log)
	}

	if _, out, _ := l.faas("plan", "--origins"); !strings.Contains(out, `functions.hello.runtime: "nodejs18"  # line 3 (provider)`) {
		t.Errorf("origins:\n%s", out)
	}

	// What can't be applied is in the plan and in the error; what changes
	// nothing is an error only when asked.
	l.write(map[string]string{"faas.yml": shop + "rollout: {steps: [{weight: 5, pause: 5m}], strategy: direct}\n"})
	if code, out, _ := l.faas("plan"); code != 0 || !strings.Contains(out, "changes nothing:\n  line 6") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, _, log := l.faas("plan", "--strict"); code != 1 || !strings.Contains(log, "line 6") {
		t.Errorf("strict: exit %d\n%s", code, log)
	}
	l.write(map[string]string{"faas.yml": strings.Replace(shop, "path: /hello", "path: /hello, auth: jwt", 1)})
	if code, out, log := l.faas("plan"); code != 1 || !strings.Contains(out, "auth: jwt") || !strings.Contains(out, "shop-main") || !strings.Contains(log, "E1003") {
		t.Errorf("refused: exit %d\n%s%s", code, out, log)
	}

	// Without a project nobody may look at the cluster, and a plan is still one.
	l.write(map[string]string{"faas.yml": shop})
	l.environ = l.environ[1:]
	if code, out, log := l.faas("plan"); code != 0 || !strings.Contains(out, "observed: none") {
		t.Errorf("no project: exit %d\n%s%s", code, out, log)
	}
	if code, _, _ := l.faas("plan", "--json", "--markdown"); code != 2 {
		t.Errorf("two forms at once: exit %d", code)
	}
}

func get(client *http.Client, url string) (status int, body string, err error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}
