package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
	"github.com/kuroko-faas/kuroko/internal/nogc"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
	"github.com/kuroko-faas/kuroko/oss/ossd"
	"github.com/kuroko-faas/kuroko/stages"
)

func TestMain(m *testing.M) {
	nogc.End(100)
	sandbox.Main()
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(devtest.Main(m))
}

// lab is a platform and one repository of functions.
type lab struct {
	t        *testing.T
	services *devenv.Server
	platform *devenv.Platform
	started  devtest.Lab
	dir      string // the work tree
	iid      int64
	environ  []string // of every job, beside GitLab's
}

const shop = `version: 1
service: shop
provider: {runtime: nodejs18}
functions:
  hello: {handler: index.handler, events: [{http: {path: /hello}}]}
`

// newLab starts the embedded services. Each test has its own, and most of them
// wait most of the time: for pauses, locks, programs that start.
func newLab(t *testing.T) *lab {
	t.Helper()
	t.Parallel()
	return labOf(t, devtest.Start(t))
}

func labOf(t *testing.T, started devtest.Lab) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), started: started}
	l.services, l.platform = l.started.Services, l.started.Platform
	l.write(map[string]string{
		"faas.yml": shop,
		"index.js": "exports.handler = async () => ({greeting: 'hello'});\n",
	})
	return l
}

func (l *lab) write(files map[string]string) {
	l.t.Helper()
	devtest.Write(l.t, l.dir, files)
}

// publish makes a bundle current.
func (l *lab) publish(r devenv.Release) string {
	l.t.Helper()
	return l.started.Publish(l.t, r, "test")
}

// outcome is what a job left: exit code, both outputs, the report on disk.
type outcome struct {
	code        int
	stdout, log string
	report      stages.Report
}

// newPipeline forgets the files of the pipeline before, as a new job would.
func (l *lab) newPipeline() {
	l.t.Helper()
	l.iid++
	if err := os.RemoveAll(filepath.Join(l.dir, stages.WorkDir)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) run(stage string, extra ...string) outcome {
	l.t.Helper()
	return l.runCtx(l.t.Context(), stage, extra...)
}

func (l *lab) runCtx(ctx context.Context, stage string, extra ...string) outcome {
	l.t.Helper()
	j := devenv.Job{
		Dir: l.dir, Environment: "test", ProjectID: 42, ProjectPath: "team/shop", Commit: "c0ffee00c0ffee00", Branch: "main",
		IID: max(l.iid, 1), Created: time.Now(), Platform: l.platform.Dir, Extra: slices.Concat(l.environ, extra),
	}
	var stdout, log bytes.Buffer
	o := outcome{code: run(ctx, []string{"stage-runner", "run", stage}, j.Environ(), &stdout, &log)}
	o.stdout, o.log = stdout.String(), log.String()
	data, err := os.ReadFile(filepath.Join(l.dir, stages.WorkDir, "report.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return o
	}
	if err == nil {
		err = json.Unmarshal(data, &o.report)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return o
}

// ok fails the test unless the job ended with 0.
func (l *lab) ok(stage string, extra ...string) outcome {
	l.t.Helper()
	o := l.run(stage, extra...)
	if o.code != 0 {
		l.t.Fatalf("%s: exit %d\n%s", stage, o.code, o.log)
	}
	return o
}

// refused fails the test unless the job ended with the code and said all of
// want.
func (l *lab) refused(o outcome, code int, want ...string) {
	l.t.Helper()
	if o.code != code {
		l.t.Errorf("exit %d, want %d", o.code, code)
	}
	for _, w := range want {
		if !strings.Contains(o.log, w) {
			l.t.Errorf("the log does not say %q", w)
		}
	}
	if strings.Contains(o.log, "goroutine ") || strings.Contains(o.log, "E1901") {
		l.t.Error("the log shows a bug of ours")
	}
	if l.t.Failed() {
		l.t.Logf("log:\n%s", o.log)
	}
}

func (l *lab) get(url string) (status int, body string, header http.Header) {
	l.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		l.t.Fatal(err)
	}
	return resp.StatusCode, b.String(), resp.Header
}

const whole = "prepare,test,build,deploy,promote"

// The main job: an image by digest, a live revision, an answer; then nothing
// to do; then only what changed.
func TestMainJob(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.newPipeline()
	first := l.ok(whole)

	if len(first.report.Result.URLs) != 1 || first.report.Result.Release != "r1" || first.report.Outcome != "ok" {
		t.Fatalf("report: %+v", first.report)
	}
	url := first.report.Result.URLs[0].URL
	if status, body, _ := l.get(url); status != 200 || body != `{"greeting":"hello"}` {
		t.Errorf("GET %s: %d %s", url, status, body)
	}
	var line stages.Report
	if err := json.Unmarshal([]byte(first.stdout), &line); err != nil || line.Result.Release != "r1" {
		t.Errorf("stdout is not the report's one line (%v): %s", err, first.stdout)
	}
	for _, f := range []string{"bundle.json", "bundle.pack", "buildplan.json", "images.json", "deployplan.json", "release.json", "report.json"} {
		if _, err := os.Stat(filepath.Join(l.dir, stages.WorkDir, f)); err != nil {
			t.Error(err)
		}
	}

	// The image stands in the registry, whole, and starts as nobody special.
	ref := first.report.Result.Images[0].Ref
	pulled(t, ref)

	// The same commit again: nothing is built, nothing is rolled out.
	l.newPipeline()
	again := l.ok(whole)
	if got := again.report.Result; !got.Images[0].Reused || got.Images[0].Ref != ref || got.Release != "r1" || got.URLs[0].Revision != first.report.Result.URLs[0].Revision {
		t.Errorf("second run: %+v", got)
	}

	// A README changes nothing; code does, and r1 stays the way back.
	l.write(map[string]string{"README.md": "new"})
	l.newPipeline()
	if got := l.ok(whole).report.Result; !got.Images[0].Reused || got.Release != "r1" {
		t.Errorf("after a README: %+v", got)
	}
	l.write(map[string]string{"index.js": "exports.handler = async () => ({greeting: 'servus'});\n"})
	l.newPipeline()
	changed := l.ok(whole)
	if got := changed.report.Result; got.Images[0].Reused || got.Release != "r2" {
		t.Errorf("after a change: %+v", got)
	}
	if _, body, _ := l.get(url); body != `{"greeting":"servus"}` {
		t.Errorf("after a change the route says %s", body)
	}
	if !strings.Contains(changed.log, "a rollback returns to r1") {
		t.Error("the plan does not say what a rollback returns to")
	}

	// Back without a build, held, and refused until somebody resumes.
	l.newPipeline()
	if got := l.ok("rollback").report.Result; got.Release != "r1" {
		t.Errorf("rollback: %+v", got)
	}
	if _, body, _ := l.get(url); body != `{"greeting":"hello"}` {
		t.Errorf("after the rollback the route says %s", body)
	}
	l.newPipeline()
	l.refused(l.run(whole), 76, "held", "faas release resume")
}

// A platform change reaches the repository with no commit in it; one that
// only alters a script or a stage touches neither image nor revision.
func TestPlatformChange(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{Version: "1"})
	l.newPipeline()
	first := l.ok(whole).report

	l.publish(devenv.Release{Version: "2", Files: map[string]string{
		"platform/scripts/note.sh*":   "#!/bin/sh\necho \"$FAAS_SERVICE under $FAAS_BUNDLE_VERSION, token=${CI_JOB_TOKEN:-none}\"\n",
		"platform/stages/prepare.yml": "steps:\n  - uses: read-project\n  - uses: plan-build\n  - run: scripts/note.sh\n  - {run: scripts/note.sh, when: merge-request}\n",
	}})
	l.newPipeline()
	second := l.ok(whole, "CI_JOB_TOKEN=very-secret-token")
	if got := second.report.Result; !got.Images[0].Reused || got.Release != first.Result.Release {
		t.Errorf("a script changed images or releases: %+v", got)
	}
	if !strings.Contains(second.log, "shop under 2, token=none") {
		t.Errorf("the script did not run as documented:\n%s", second.log)
	}
	if !strings.Contains(second.log, "skipped: Run scripts/note.sh (not merge-request)") {
		t.Error("the skipped step does not say why")
	}

	l.publish(devenv.Release{Version: "3", Files: map[string]string{"runtimes/node/platform.json": `{"mark": "seen"}`}})
	l.newPipeline()
	third := l.ok(whole).report
	if third.Result.Images[0].Reused || third.Result.Release == first.Result.Release {
		t.Errorf("the adapter's change reached nobody: %+v", third.Result)
	}
	if _, body, h := l.get(third.Result.URLs[0].URL); h.Get("X-Faas-Platform") != "seen" || body != `{"greeting":"hello"}` {
		t.Errorf("got header %q, body %s", h.Get("X-Faas-Platform"), body)
	}
}

// One pipeline, one bundle: a later job uses what the first one chose.
func TestPipelineKeepsItsBundle(t *testing.T) {
	l := newLab(t)
	one := l.publish(devenv.Release{Version: "1"})
	l.newPipeline()
	l.ok("prepare,test,build")
	two := l.publish(devenv.Release{Version: "2"})
	if one != two && l.ok("deploy,promote").report.Bundle.Digest != one {
		t.Error("the deploy job used another bundle than the build job")
	}
	// Whatever the store does meanwhile.
	l.services.OSSD.SetFault(ossd.Always(ossd.Fault{Status: 503, Code: "ServiceUnavailable"}))
	if got := l.ok("deploy,promote").report.Bundle; got.Digest != one || got.Source != "pipeline" {
		t.Errorf("during an outage: %+v", got)
	}
	l.services.OSSD.SetFault(nil)

	pack := filepath.Join(l.dir, stages.WorkDir, "bundle.pack")
	data, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(pack, data, 0o644); err != nil {
		t.Fatal(err)
	}
	l.refused(l.run("deploy,promote"), 78, "error: verify the platform bundle", "E1203")
}

// An expired channel document is a warning, and for a tier whose policy says
// so the end of deploys, not of builds.
func TestStaleChannel(t *testing.T) {
	l := newLab(t)
	l.write(map[string]string{"faas.yml": strings.Replace(shop, "service: shop", "service: {name: shop, tier: core}", 1) + "rollout: {strategy: direct}\n"})
	l.publish(devenv.Release{TTL: time.Second})
	deadline := time.Now().Add(20 * time.Second)
	for {
		l.newPipeline()
		o := l.ok("prepare,test,build")
		if strings.Contains(o.log, "was not confirmed since") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the channel of one second is still current:\n%s", o.log)
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.refused(l.run("deploy,promote"), 78, "E1210", "tier core")
}

func TestMissingVariablesAreNamedAtOnce(t *testing.T) {
	var stdout, log bytes.Buffer
	code := run(t.Context(), []string{"stage-runner", "run", "prepare"}, []string{"PATH=/usr/bin"}, &stdout, &log)
	want := `error: read the CI job environment
  why:  not set: CI_COMMIT_SHA, CI_PIPELINE_CREATED_AT, CI_PIPELINE_ID, CI_PIPELINE_IID, CI_PROJECT_DIR, CI_PROJECT_ID, CI_PROJECT_PATH, FAAS_ENVIRONMENT
  next: run this command from a job that includes ci-templates/faas.gitlab-ci.yml
  who:  platform    code: E1102
`
	if code != 78 || log.String() != want || stdout.Len() != 0 {
		t.Errorf("exit %d, stdout %q, log\n%s", code, stdout.String(), log.String())
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"run"}, {"run", "a", "b"}, {"run", "a,,b"}, {"walk"}, {"run", "--fast", "a"}, {}} {
		var log bytes.Buffer
		if code := run(t.Context(), append([]string{"stage-runner"}, args...), nil, &log, &log); code != 2 || !strings.Contains(log.String(), "E1101") {
			t.Errorf("%q: exit %d\n%s", args, code, log.String())
		}
	}
}

func TestBadFaasYml(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.write(map[string]string{"faas.yml": "version: 1\nservice: shop\nprovider: {runtime: nodejs19, memroy: 1Gi}\nfunctions:\n  hello: {handler: index.handler}\n"})
	o := l.run("prepare")
	l.refused(o, 1, "error: read faas.yml", `line 3, column 21: provider.runtime: unknown runtime "nodejs19"`, "nodejs18", "memroy", `memory`, "E1001")
	if o.report.Outcome != "failed" || o.report.Exit != 1 || o.report.Error.Code != "E1001" || len(o.report.Error.Why) < 2 {
		t.Errorf("report: %+v", o.report)
	}

	l.write(map[string]string{"faas.yml": shop + "    # no events\n"})
	if err := os.Remove(filepath.Join(l.dir, "index.js")); err != nil {
		t.Fatal(err)
	}
	l.refused(l.run("prepare"), 1, "E1305", "functions.hello.handler", "index.js")

	if err := os.Remove(filepath.Join(l.dir, "faas.yml")); err != nil {
		t.Fatal(err)
	}
	l.refused(l.run("prepare"), 1, "E1002")

	// What protects and is not applied is refused, not skipped.
	l.write(map[string]string{"index.js": "", "faas.yml": strings.Replace(shop, "path: /hello}", "path: /hello, auth: jwt}", 1)})
	l.refused(l.run("prepare"), 1, "E1003", "auth: jwt")
}

func TestLockFileOutOfStep(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.write(map[string]string{
		"package.json":      `{"name":"shop","version":"1.0.0","dependencies":{"ms":"2.1.3","left-pad":"1.3.0"}}`,
		"package-lock.json": `{"name":"shop","version":"1.0.0","lockfileVersion":3,"packages":{"":{"name":"shop","version":"1.0.0","dependencies":{"ms":"2.1.3"}},"node_modules/ms":{"version":"2.1.3","integrity":"sha512-6FlzubTLZG3J2a/NVCAleEhjzq5oxgHyaCU9yYXvcLsvoVaHJq/s5xXI6/XXP6tz7R9xAOtHnSO/tXtF3WRTlA=="}}}`,
	})
	l.refused(l.run("prepare,build"), 1, "E1301", "left-pad", "npm install --package-lock-only")
	if err := os.Remove(filepath.Join(l.dir, "package-lock.json")); err != nil {
		t.Fatal(err)
	}
	l.refused(l.run("prepare,build"), 1, "E1301", "package-lock.json", "npm install --package-lock-only")
}

func TestStoreAndRegistryFail(t *testing.T) {
	l := newLab(t)
	digest := l.publish(devenv.Release{})

	// Nobody there, and nothing to stand in.
	o := l.run("prepare", "FAAS_PLATFORM_URL=http://"+closedPort)
	l.refused(o, 75, "E1201", "tried")
	if o.report.Exit != 75 || o.report.Outcome != "failed" || o.report.Error.Code != "E1201" || !strings.HasPrefix(o.stdout, `{"version":1,"outcome":"failed"`) {
		t.Errorf("no report of a job without a bundle: %+v, stdout %s", o.report, o.stdout)
	}
	// There, and failing.
	l.services.OSSD.SetFault(ossd.Always(ossd.Fault{Status: 503, Code: "ServiceUnavailable"}))
	l.refused(l.run("prepare"), 75, "E1201", "503", "tried")
	l.services.OSSD.SetFault(nil)

	// A tampered manifest, then a tampered channel.
	hex := strings.TrimPrefix(digest, "sha256:")
	if err := l.services.OSSD.PutObject(l.services.Bucket, "v1/pack/"+packOf(t, l, hex), []byte("rubbish")); err != nil {
		t.Fatal(err)
	}
	l.newPipeline()
	l.refused(l.run("prepare"), 78, "E1203")
	if _, err := os.Stat(filepath.Join(l.dir, stages.WorkDir, "bundle.json")); err == nil {
		t.Error("a bundle that was refused was handed on")
	}
	if err := l.services.OSSD.PutObject(l.services.Bucket, "v1/chan/acme/stable.json", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	l.refused(l.run("prepare"), 78, "E1203")
}

func TestRegistryFails(t *testing.T) {
	l := newLab(t)
	dead := strings.ReplaceAll(l.services.ClustersFile("test"), l.services.Registry, closedPort)
	l.publish(devenv.Release{Files: map[string]string{"platform/clusters.yml": dead}})
	l.refused(l.run("prepare,build"), 75, "E1302")
}

// A function that can't start: reason, exit code, last lines, and the release
// before it still serves.
func TestCrashAtStart(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.newPipeline()
	url := l.ok(whole).report.Result.URLs[0].URL
	l.write(map[string]string{"index.js": "console.error('no database here'); throw new Error('cannot live without it');\n"})
	l.newPipeline()
	o := l.run(whole)
	l.refused(o, 1, "E1401", "exited with code 1", "no database here", "cannot live without it", "release r1 still serves")
	if status, body, _ := l.get(url); status != 200 || body != `{"greeting":"hello"}` {
		t.Errorf("the release before does not serve: %d %s", status, body)
	}
	if o.report.Outcome != "failed" || o.report.Error.Who != "project" {
		t.Errorf("report: %+v", o.report)
	}
	// Mended, it goes on.
	l.write(map[string]string{"index.js": "exports.handler = async () => ({greeting: 'well'});\n"})
	l.newPipeline()
	l.ok(whole)
	if _, body, _ := l.get(url); body != `{"greeting":"well"}` {
		t.Errorf("got %s", body)
	}
}

// User commands see no credentials, and what they print is redacted.
func TestCommandsSeeNoSecrets(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.write(map[string]string{"faas.yml": shop + "test: {command: 'env; echo token is very-secret-token; cat /proc/$PPID/cmdline >/dev/null; cat " + l.platform.Dir + "/platform.json || echo unseen'}\n"})
	o := l.ok("prepare,test", "CI_JOB_TOKEN=very-secret-token", "CI_REGISTRY_PASSWORD=other-secret", "KUBECONFIG=/x/y")
	for _, leak := range []string{"very-secret-token", "other-secret", "CI_JOB_TOKEN", "KUBECONFIG", "FAAS_PLATFORM_DIR"} {
		if strings.Contains(o.log, leak) {
			t.Errorf("the log shows %s:\n%s", leak, o.log)
		}
	}
	if !strings.Contains(o.log, "token is [MASKED]") {
		t.Errorf("the command did not run:\n%s", o.log)
	}
	// Where it ran stands in log and report.
	steps := o.report.Stages[len(o.report.Stages)-1].Steps
	ran := steps[len(steps)-1]
	image := l.started.Images["nodejs18"].Build
	image = image[strings.LastIndex(image, "@")+1:]
	if mode, _ := sandbox.Detect(t.Context()); mode == sandbox.None {
		if ran.Sandbox != "none" || ran.BuildImage != "" || !strings.Contains(o.log, "sandbox: none") {
			t.Errorf("ran in %q %q:\n%s", ran.Sandbox, ran.BuildImage, o.log)
		}
	} else if ran.Sandbox != "namespaces" || ran.BuildImage != image || !strings.Contains(o.log, "sandbox: namespaces, build image "+image) || !strings.Contains(o.log, "unseen") {
		t.Errorf("ran in %q %q:\n%s", ran.Sandbox, ran.BuildImage, o.log)
	}

	l.write(map[string]string{"faas.yml": shop + "test: {command: exit 3}\n"})
	o = l.run("prepare,test")
	l.refused(o, 1, "E1004", "exited with code 3")
	steps = o.report.Stages[len(o.report.Stages)-1].Steps
	if steps[len(steps)-1].Exit != 3 {
		t.Errorf("the command's own code is not in the report: %+v", steps)
	}
}

// SIGTERM is a cancelled context: 143, a report, and the next run goes on.
func TestCancelled(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.write(map[string]string{"faas.yml": shop + "test: {command: 'touch started; sleep 600'}\n"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(l.dir, "started")); err == nil {
				cancel()
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	o := l.runCtx(ctx, "prepare,test")
	l.refused(o, 143, "E1107")
	if o.report.Outcome != "cancelled" || o.report.Exit != 143 {
		t.Errorf("report: %+v", o.report)
	}
	l.write(map[string]string{"faas.yml": shop})
	l.ok(whole)
}

// The job's time limit ends it with words while there is time for them.
func TestTimeLimit(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.write(map[string]string{"faas.yml": shop + "test: {command: sleep 600}\n"})
	// Two seconds are left of a limit of an hour, beside the time to report.
	started := time.Now().Add(timeToReport + 2*time.Second - time.Hour).UTC().Format(time.RFC3339)
	o := l.run("prepare,test", "CI_JOB_STARTED_AT="+started, "CI_JOB_TIMEOUT=3600")
	l.refused(o, 75, "E1108", "CI_JOB_TIMEOUT")
	if o.report.Outcome != "failed" || o.report.Error.Code != "E1108" {
		t.Errorf("report: %+v", o.report)
	}
}

// What the deploy job runs is what this project pushed, whatever a test or a
// build command wrote into .faas meanwhile.
func TestForeignImageIsRefused(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.newPipeline()
	l.ok("prepare,test,build")
	file := filepath.Join(l.dir, stages.WorkDir, "images.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(data, []byte("/team/shop/"), []byte("/other/team/")), 0o644); err != nil {
		t.Fatal(err)
	}
	l.refused(l.run("deploy,promote"), 78, "E1304", "the plan pushes to")
}

func TestDeployWithoutBuild(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	l.refused(l.run("deploy,promote"), 79, "E1106", "start a new pipeline")
}

func TestDiskFull(t *testing.T) {
	err := stages.Explain(t.Context(), &fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC})
	if err == nil || !strings.Contains(err.Error(), "write to disk") {
		t.Errorf("got %v", err)
	}
}

// closedPort is an address on loopback that nobody listens on, and that the
// system gives to no other test.
const closedPort = "127.0.0.1:1"

// packOf reads which pack a manifest names.
func packOf(t *testing.T, l *lab, manifest string) string {
	t.Helper()
	_, body, _ := l.get(l.services.BucketURL() + "/v1/man/" + manifest)
	var m struct {
		Pack struct {
			SHA256 string `json:"sha256"`
		} `json:"pack"`
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil || m.Pack.SHA256 == "" {
		t.Fatalf("manifest: %v %s", err, body)
	}
	return m.Pack.SHA256
}
