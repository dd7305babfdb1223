package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
	"github.com/kuroko-faas/kuroko/stages"
)

// everything is all that an image is in its registry, unpacked: manifest,
// configuration, layers, and the documents beside it.
func everything(t *testing.T, reference string) string {
	t.Helper()
	ref, err := name.NewDigest(reference)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	add := func(data []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	blobs := func(ref name.Reference) {
		img, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		add(img.RawManifest())
		add(img.RawConfigFile())
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers {
			r, err := l.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			add(io.ReadAll(r))
			r.Close()
		}
	}
	blobs(ref)
	index, err := remote.Referrers(ref)
	if err != nil {
		t.Fatal(err)
	}
	beside, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(beside.Manifests) == 0 {
		t.Error("there are no documents beside the image")
	}
	for _, d := range beside.Manifests {
		blobs(ref.Context().Digest(d.Digest.String()))
	}
	return all.String()
}

// Secrets of a build reach its command and nothing else: not a test, log,
// report, plan, key, layer or document.
func TestBuildSecrets(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	const key, license = "kw9-upstream-key", "first line of a license\nsecond line of a license\n"
	file := filepath.Join(t.TempDir(), "license")
	if err := os.WriteFile(file, []byte(license), 0o600); err != nil {
		t.Fatal(err)
	}
	const faas = shop + `build: {output: dist, secrets: [UPSTREAM, license], command: "sh build.sh"}
test: {command: "test -z \"$UPSTREAM$license\" && test ! -e /run/secrets && echo tests see none"}
`
	const script = `set -e
mkdir -p dist
touch ran
(printf %s "$UPSTREAM" | sha256sum; sha256sum < "$license") > dist/sums
`
	const shown = `echo "key $UPSTREAM, $(printf %s "$UPSTREAM" | base64)"
cat "$license"
`
	inside := ""
	if mode, _ := sandbox.Detect(t.Context()); mode != sandbox.None {
		inside = `cmp "$license" /run/secrets/license
test "$UPSTREAM" = "$(cat /run/secrets/UPSTREAM)"
test "$(stat -c %a /run/secrets/*)" = "$(printf '400\n400')"
(echo x > /run/secrets/UPSTREAM) 2>/dev/null && exit 9
`
	}
	l.write(map[string]string{"faas.yml": faas, "build.sh": script + inside + shown})
	env := []string{"UPSTREAM=" + key, "license=" + file}
	l.newPipeline()
	o := l.ok("prepare,test,build", env...)
	if !strings.Contains(o.log, "tests see none") || !strings.Contains(o.log, "key [MASKED], [MASKED]") {
		t.Errorf("the log:\n%s", o.log)
	}
	image := everything(t, o.report.Result.Images[0].Ref)
	for _, want := range []string{key, license} {
		if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(want))); !strings.Contains(image, sum) {
			t.Errorf("the command did not see %q", want)
		}
	}
	leaks := func(where, text string) {
		t.Helper()
		for _, s := range []string{key, "line of a license"} {
			if strings.Contains(text, s) {
				t.Errorf("%s has %q", where, s)
			}
		}
	}
	files := func() {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(l.dir, stages.WorkDir, "*"))
		if err != nil || len(list) == 0 {
			t.Fatal(list, err)
		}
		for _, f := range list {
			if data, err := os.ReadFile(f); err == nil {
				leaks(f, string(data))
			}
		}
	}
	leaks("the log", o.log+o.stdout)
	leaks("the image", image)
	files()

	// Another value is no other input; another name is.
	plan := func(env ...string) string {
		l.newPipeline()
		l.ok("prepare", env...)
		data, err := os.ReadFile(filepath.Join(l.dir, stages.WorkDir, "buildplan.json"))
		if err != nil {
			t.Fatal(err)
		}
		_, keys, _ := strings.Cut(string(data), `"key": `)
		return keys[:70]
	}
	before := plan(env...)
	if after := plan("UPSTREAM=another-value", "license="+file); after != before {
		t.Errorf("the value is in the key: %s, %s", before, after)
	}
	l.write(map[string]string{"faas.yml": strings.Replace(faas, "UPSTREAM,", "UPSTREAM, THIRD,", 1)})
	if after := plan(append(env, "THIRD=third-value")...); after == before {
		t.Errorf("the name is not in the key: %s", after)
	}

	// Those that are missing are named before anything runs.
	if err := os.Remove(filepath.Join(l.dir, "ran")); err != nil {
		t.Fatal(err)
	}
	l.newPipeline()
	o = l.run("prepare,test,build", env[0])
	l.refused(o, 1, "E1003", "the CI variable license is not set", "the CI variable THIRD is not set", "this ref is not protected")
	if _, err := os.Stat(filepath.Join(l.dir, "ran")); err == nil || strings.Contains(o.log, "tests see none") {
		t.Error("something ran")
	}

	l.newPipeline()
	l.refused(l.run("prepare", env[1], "UPSTREAM=short", "THIRD=third-value"), 1, "E1003", "the CI variable UPSTREAM has fewer than 6 characters")

	// What a command printed before it failed is in the report, without them.
	l.write(map[string]string{"faas.yml": faas, "build.sh": shown + "exit 3\n"})
	l.newPipeline()
	o = l.run("prepare,test,build", env...)
	l.refused(o, 1, "E1301", "exited with code 3")
	leaks("the log", o.log+o.stdout)
	files()

	// A command that writes one into what is packaged is refused.
	l.write(map[string]string{"build.sh": script + "mkdir -p dist/js; echo \"const k = '$UPSTREAM'\" > dist/js/app.js\n"})
	l.newPipeline()
	l.refused(l.run("prepare,test,build", env...), 1, "E1301", "dist/js/app.js holds the value of the secret UPSTREAM")
}

// An instruction has the secrets that it mounts, as the job has them.
func TestRealSecretsOfDockerfiles(t *testing.T) {
	if os.Getenv("KUROKO_TEST_IMAGES") == "" {
		t.Skip("runs kaniko over a real base image, which takes seconds: make test-images")
	}
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("kaniko needs a sandbox: ", why)
	}
	checkout, err := devenv.Where()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(checkout, "bin")
	if _, err := os.Stat(filepath.Join(bin, "kaniko-executor")); err != nil {
		t.Skip("needs bin/kaniko-executor: run make build")
	}
	l := newLab(t)
	l.publish(devenv.Release{})
	const key = "kw9-upstream-key"
	l.write(map[string]string{
		"faas.yml": shop + "build: {builder: dockerfile, secrets: [UPSTREAM]}\n",
		"Dockerfile": `ARG FAAS_BASE
FROM ${FAAS_BASE}
USER 0:0
WORKDIR /app
COPY . ./
RUN --mount=type=secret,id=UPSTREAM,required ["/usr/bin/node", "-e", "const key = require('fs').readFileSync('/run/secrets/UPSTREAM'); console.log('key ' + key + ' ' + process.env.UPSTREAM); require('fs').writeFileSync('sum', require('crypto').createHash('sha256').update(key).digest('hex'))"]
`,
	})
	l.environ = []string{"PATH=" + bin + string(os.PathListSeparator) + os.Getenv("PATH"), "UPSTREAM=" + key}
	o := l.ok("prepare,build")
	image := everything(t, o.report.Result.Images[0].Ref)
	if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(key))); !strings.Contains(image, sum) {
		t.Errorf("the instruction did not see it:\n%s", o.log)
	}
	if strings.Contains(image+o.log+o.stdout, key) || !strings.Contains(o.log, "key [MASKED] undefined") {
		t.Errorf("the image or the log has it:\n%s", o.log)
	}
	l.newPipeline()
	l.write(map[string]string{"faas.yml": shop + "build: {builder: dockerfile}\n"})
	l.refused(l.run("prepare,build"), 1, "E1301", "line 6, column 5: RUN --mount=type=secret: build.secrets does not list UPSTREAM")
}
