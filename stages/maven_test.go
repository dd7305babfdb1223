package stages

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What Maven's start script reads leaves the last word to the project.
func TestMavenStart(t *testing.T) {
	rc := filepath.Join(t.TempDir(), ".mavenrc")
	if err := os.WriteFile(rc, []byte(mavenStart), 0o644); err != nil {
		t.Fatal(err)
	}
	for opts, want := range map[string]string{
		"":                         "-XX:TieredStopAtLevel=1",
		"-Xmx1g -Da=b":             "-XX:TieredStopAtLevel=1 -Xmx1g -Da=b",
		"-XX:TieredStopAtLevel=4 ": "-XX:TieredStopAtLevel=1 -XX:TieredStopAtLevel=4 ",
	} {
		cmd := exec.Command("sh", "-euc", `unset MAVEN_OPTS; [ -z "$1" ] || MAVEN_OPTS=$1; . "$0"; printf %s "$MAVEN_OPTS"`, rc, opts)
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("MAVEN_OPTS %q: %q, %v", opts, out, err)
		}
	}
}

func TestFewClasses(t *testing.T) {
	dir := t.TempDir()
	write := func(format string, n int) {
		t.Helper()
		for i := range n {
			file := filepath.Join(dir, fmt.Sprintf(format, i))
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("src/C%d.java", manyClasses-1)
	write(".m2/C%d.java", 2)
	write("src/T%d.txt", 2)
	if !fewClasses(dir) || !fewClasses(filepath.Join(dir, "none")) {
		t.Error("few are many")
	}
	write("src/Last%d.java", 1)
	if fewClasses(dir) {
		t.Error("many are few")
	}
}
