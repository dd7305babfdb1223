package ahead

import (
	"os"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/internal/worktree"
)

func TestBegin(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]bool{
		"":                             false,
		"status":                       false,
		"release list plan":            false,
		"plan":                         true,
		"plan --env prod --json":       true,
		"plan --dir elsewhere":         false,
		"plan -dir elsewhere":          false,
		"plan --env prod --dir=.":      false,
		"--dir elsewhere plan":         false,
		"help plan":                    false,
		"secret set plan --dir .":      false,
		"plan --markdown --out report": true,
	} {
		l := begin(strings.Fields(args), os.Environ())
		l.Close()
		if got := l.At(here, worktree.Cache(os.Getenv)); got != want {
			t.Errorf("faas %s: begun %v, want %v", args, got, want)
		}
	}
	if Look() != nil {
		t.Error("a test program looks at its folder")
	}
}
