package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/devenv"
)

// What the job did not fetch is told before anything is built, whichever
// engine would have put it into the image.
func TestFilesThatWereNotFetched(t *testing.T) {
	l := newLab(t)
	l.publish(devenv.Release{})
	git := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = l.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	git("init", "-q")
	const pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
	for builder, files := range map[string]map[string]string{
		"layer":      {"faas.yml": shop},
		"dockerfile": {"faas.yml": shop + "build: {builder: dockerfile}\n", "Dockerfile": "ARG FAAS_BASE\nFROM ${FAAS_BASE}\nCOPY . /app/\n"},
	} {
		l.write(files)
		l.write(map[string]string{"model.bin": pointer})
		git("add", "-A")
		l.newPipeline()
		l.refused(l.run("prepare"), 1, "model.bin", "is a Git LFS pointer", "GIT_LFS_SKIP_SMUDGE")
		l.write(map[string]string{"model.bin": "the content"})
		git("update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("a", 40)+",vendored")
		if err := os.MkdirAll(filepath.Join(l.dir, "vendored"), 0o755); err != nil {
			t.Fatal(err)
		}
		l.newPipeline()
		l.refused(l.run("prepare"), 1, "vendored", "is a submodule that was not checked out", "GIT_SUBMODULE_STRATEGY")
		git("rm", "-q", "--cached", "vendored")
		l.newPipeline()
		if o := l.run("prepare"); o.code != 0 {
			t.Errorf("%s: with everything there: exit %d\n%s", builder, o.code, o.log)
		}
	}
}
