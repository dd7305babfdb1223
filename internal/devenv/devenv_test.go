package devenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/builder/debian"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/internal/devenv/gitlabci"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	os.Exit(m.Run())
}

// world is the whole platform with one repository, for pipelines as GitLab
// would run them.
type world struct {
	t        *testing.T
	services *Server
	platform *Platform
	images   map[string]bundle.Images
	repo     *Repository
	bin      string
	checkout string
}

// The versions of the two runners, of one length: linking takes seconds, so the
// next one is the seed runner with another version in it.
const (
	seedRunner = "1.0.0-seed"
	nextRunner = "1.1.0-next"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: runs whole pipelines")
	}
	w := &world{t: t}
	var err error
	if w.checkout, err = Where(); err != nil {
		t.Fatal(err)
	}
	if w.services, err = Start(t.Context(), t.TempDir(), "auto"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.services.Close(); err != nil {
			t.Error(err)
		}
	})
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache folder, so no base images: ", err)
	}
	w.images, err = w.services.PushBaseImages(t.Context(), filepath.Join(cache, "kuroko"))
	if errors.Is(err, debian.ErrNotBuilt) {
		t.Skip("base images are missing; make images makes them: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if w.platform, err = NewPlatform(w.services.Services, w.checkout, t.TempDir(), "stable"); err != nil {
		t.Fatal(err)
	}
	gitlab, err := StartGitLab(t.Context(), w.checkout, t.TempDir())
	var unable *gitlabci.Unable
	if errors.As(err, &unable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gitlab.Close() })
	if w.repo, err = gitlab.NewRepository(t.Context(), "team/hello", filepath.Join(w.checkout, "examples", "hello-node"), 4711); err != nil {
		t.Fatal(err)
	}
	w.bin = t.TempDir()
	w.build(w.bin, "stage-runner", seedRunner)
	w.repo.Bin = w.bin
	w.repo.Env = map[string]string{"FAAS_PLATFORM_DIR": w.platform.Dir}
	return w
}

// build compiles a program as the Makefile does.
func (w *world) build(dir, program, version string) string {
	w.t.Helper()
	out := filepath.Join(dir, program)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", out, "./cmd/"+program)
	cmd.Dir = w.checkout
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v\n%s", err, text)
	}
	return out
}

func (w *world) publish(r Release) string {
	w.t.Helper()
	if r.Files == nil {
		r.Files = map[string]string{}
	}
	r.Files["platform/clusters.yml"] = w.services.ClustersFile("test", "prod")
	r.Runtimes, r.Why = w.images, "test"
	digest, err := w.platform.Publish(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return digest
}

func (w *world) pipeline() Outcome {
	w.t.Helper()
	out, err := w.repo.Pipeline(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) ok() Outcome {
	w.t.Helper()
	out := w.pipeline()
	if !out.OK {
		w.t.Fatalf("the pipeline failed: %s", out.Failure())
	}
	return out
}

// code fails the test unless the job ended with the code and said want.
func (w *world) code(out Outcome, job string, code int, want string) {
	w.t.Helper()
	j, ok := out.Job(job)
	if !ok || j.Code != code || !strings.Contains(j.Log, want) {
		w.t.Errorf("%s: ran %v, code %d (want %d), log (want %q):\n%s", job, ok, j.Code, code, want, j.Log)
	}
}

func get(ctx context.Context, t *testing.T, url string) (string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body), resp.Header
}

// The repository's own .gitlab-ci.yml, unchanged, from the first bundle to a
// platform change that needs no commit; then the runner itself is changed.
func TestPipeline(t *testing.T) {
	w := newWorld(t)
	one := w.publish(Release{Version: "1"})
	commit, err := w.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := w.ok()
	if len(first.Jobs) != 2 {
		t.Errorf("ran %d jobs, want build:test and deploy:test", len(first.Jobs))
	}
	build, deploy := first.Reports["build:test"], first.Reports["deploy:test"]
	if build.Bundle.Digest != one || deploy.Bundle.Digest != one || deploy.Bundle.Source != bundle.SourcePipeline {
		t.Errorf("bundles: build %+v, deploy %+v", build.Bundle, deploy.Bundle)
	}
	if build.Runner != seedRunner || len(deploy.Result.URLs) != 1 {
		t.Fatalf("runner %s, addresses %+v", build.Runner, deploy.Result.URLs)
	}
	url := deploy.Result.URLs[0].URL
	body, header := get(t.Context(), t, url)
	if !strings.Contains(body, "hello, world") || header.Get("X-Faas-Platform") != "" {
		t.Errorf("first answer: %s %v", body, header)
	}

	two := w.publish(Release{Version: "2", Files: map[string]string{"runtimes/node/platform.json": `{"mark": "unnoticed"}`}})
	second := w.ok()
	if got := second.Reports["deploy:test"]; got.Bundle.Digest != two || got.Commit != commit {
		t.Errorf("second pipeline: bundle %s, commit %s", got.Bundle.Digest, got.Commit)
	}
	if _, header := get(t.Context(), t, url); header.Get("X-Faas-Platform") != "unnoticed" {
		t.Errorf("the platform's change does not show: %v", header)
	}

	// The runner is under the bundle: the next pipeline runs the named one.
	next := filepath.Join(t.TempDir(), "stage-runner")
	data, err := os.ReadFile(filepath.Join(w.bin, "stage-runner"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(next, bytes.ReplaceAll(data, []byte(seedRunner), []byte(nextRunner)), 0o755); err != nil {
		t.Fatal(err)
	}
	system := runtime.GOOS + "/" + runtime.GOARCH
	w.publish(Release{Version: "3", Runner: RunnerFrom(nextRunner, system, next)})
	third := w.ok()
	if got := third.Reports["build:test"].Runner; got != nextRunner {
		t.Errorf("ran %s, the bundle names %s", got, nextRunner)
	}
	line := "runner " + seedRunner + " starts runner " + nextRunner + ", which bundle 3 names"
	if j, _ := third.Job("build:test"); strings.Count(j.Log, line) != 1 {
		t.Errorf("the log does not say once %q:\n%s", line, j.Log)
	}

	// A blob that still is not the named version would start the next forever.
	w.publish(Release{Version: "4", Runner: RunnerFrom("9.9.9", system, next)})
	w.code(w.pipeline(), "build:test", 78, "E1206")

	// A blob with other bytes than the bundle names is never executed.
	// (Other bytes at the end, so that no runner verified before has its sum.)
	if data, err = os.ReadFile(next); err != nil {
		t.Fatal(err)
	}
	data = append(data, "another build"...)
	if err := os.WriteFile(next, data, 0o755); err != nil {
		t.Fatal(err)
	}
	w.publish(Release{Version: "5", Runner: RunnerFrom("1.2.0", system, next)})
	key := fmt.Sprintf("v1/bin/%x", sha256.Sum256(data))
	if err := w.services.OSSD.PutObject(w.services.Bucket, key, []byte("#!/bin/sh\necho owned\n")); err != nil {
		t.Fatal(err)
	}
	w.code(w.pipeline(), "build:test", 78, "E1203")
}

// A bundle whose build stage is nothing but a shell script and a Dockerfile;
// then a repository that brings its own.
func TestDockerfiles(t *testing.T) {
	w := newWorld(t)
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("kaniko needs a sandbox: ", why)
	}
	w.build(w.bin, "kaniko-executor", seedRunner)
	base := w.services.Registry + "/" + w.images["nodejs18"].Base
	w.publish(Release{Version: "1", Remove: []string{"platform/stages/build.yml", "platform/scripts"}, Files: map[string]string{
		"platform/stages/build.yml": "title: Build\nsteps:\n  - run: scripts/build.sh\n  - uses: collect-images\n",
		"platform/scripts/build.sh*": `#!/bin/sh
set -eu
context=$(mktemp -d)
cp -r "$FAAS_PROJECT_DIR/index.js" "$context/"
cp -r "$FAAS_BUNDLE_DIR/runtimes/node" "$context/adapter"
for image in $FAAS_IMAGES; do
  kaniko-executor --context "$context" --dockerfile "$FAAS_BUNDLE_DIR/dockerfiles/node.Dockerfile" \
    --destination "$FAAS_REPOSITORY/$image:$FAAS_COMMIT" --digest-file "$FAAS_DIGESTS/$image"
done
`,
		"dockerfiles/node.Dockerfile": "FROM " + base + `
COPY adapter /opt/faas/adapter
COPY index.js /app/index.js
WORKDIR /app
USER 65532:65532
ENTRYPOINT ["/usr/bin/node", "/opt/faas/adapter/main.js"]
`,
	}})
	// No dependencies: the Dockerfile above has no install step.
	if err := w.repo.Write(map[string]string{
		"index.js":          "exports.handler = async () => 'from a Dockerfile';\n",
		"index.test.js":     "",
		"package.json":      `{"name": "hello-node", "version": "1.0.0", "scripts": {"test": "true"}}`,
		"package-lock.json": `{"name": "hello-node", "version": "1.0.0", "lockfileVersion": 3, "packages": {"": {"name": "hello-node", "version": "1.0.0"}}}`,
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.repo.Commit(t.Context(), "no dependencies"); err != nil {
		t.Fatal(err)
	}
	out := w.ok()
	if body, _ := get(t.Context(), t, out.Reports["deploy:test"].Result.URLs[0].URL); body != "from a Dockerfile" {
		t.Errorf("got %q", body)
	}
	if got := out.Reports["build:test"].Result.Images; len(got) != 1 || got[0].Engine != "script" {
		t.Errorf("images %+v", got)
	}

	// Under the default bundle the repository's own Dockerfile knows nothing of
	// adapters, entry points and users: those come on top.
	w.publish(Release{Version: "2"})
	if err := w.repo.Write(map[string]string{
		"faas.yml": "version: 1\nservice: hello\nprovider: {runtime: nodejs18}\nbuild: {builder: dockerfile, env: {WHERE: made in RUN}}\n" +
			"functions:\n  hello: {handler: index.handler, events: [{http: {path: /hello}}]}\n",
		"index.js": "exports.handler = async () => require('fs').readFileSync('made.txt', 'utf8') + ' by ' + process.getuid();\n",
		"Dockerfile": `ARG FAAS_BASE
ARG FAAS_BUILD_IMAGE
FROM ${FAAS_BUILD_IMAGE} AS made
ARG WHERE
USER 0:0
RUN npm --version && printf '%s' "$WHERE" >/made.txt
FROM ${FAAS_BASE}
USER 0:0
WORKDIR /app
COPY index.js ./
COPY --from=made /made.txt ./
CMD ["never"]
`,
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.repo.Commit(t.Context(), "a Dockerfile"); err != nil {
		t.Fatal(err)
	}
	out = w.ok()
	if body, _ := get(t.Context(), t, out.Reports["deploy:test"].Result.URLs[0].URL); !strings.HasPrefix(body, "made in RUN by ") || strings.HasSuffix(body, " 0") {
		t.Errorf("got %q", body)
	}
	first := out.Reports["build:test"].Result.Images
	if len(first) != 1 || first[0].Engine != "kaniko" || first[0].Sandbox == "" {
		t.Fatalf("images %+v", first)
	}
	// The finished image is found by its key.
	if again := w.ok().Reports["build:test"].Result.Images; len(again) != 1 || !again[0].Reused || again[0].Ref != first[0].Ref {
		t.Errorf("again: %+v, first %+v", again, first)
	}
}
