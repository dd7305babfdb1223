package stages

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

func TestServicesOfARepository(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", root}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	write("apps/a/faas.yml", "service: shop\nfunctions: 7\n")
	write("apps/b/faas.yml", "service: {name: market}\n")
	write("scratch/faas.yml", "service: nobody-tracks-this\n")
	git("init", "-q")
	git("add", "apps")
	b := filepath.Join(root, "apps/b")
	if got, want := services(t.Context(), b, "market"), []string{"market", "shop"}; !slices.Equal(got, want) {
		t.Errorf("in a folder of the repository: %q, want %q", got, want)
	}
	if got, want := services(t.Context(), root, "bazaar"), []string{"bazaar", "market", "shop"}; !slices.Equal(got, want) {
		t.Errorf("at the top: %q, want %q", got, want)
	}
	write("apps/a/faas.yml", "functions: [\n")
	if got := services(t.Context(), b, "market"); got != nil {
		t.Errorf("beside one that can't be read: %q; want none, which says nothing", got)
	}
	if err := os.Remove(filepath.Join(root, "apps/a/faas.yml")); err != nil {
		t.Fatal(err)
	}
	if got := services(t.Context(), b, "market"); got != nil {
		t.Errorf("one is not checked out: %q; want none", got)
	}
	git("add", "-A", "apps")
	if got, want := services(t.Context(), b, "market"), []string{"market"}; !slices.Equal(got, want) {
		t.Errorf("after a removal: %q, want %q", got, want)
	}
	if err := os.RemoveAll(filepath.Join(root, ".git")); err != nil {
		t.Fatal(err)
	}
	if got, want := services(t.Context(), b, "market"), []string{"market"}; !slices.Equal(got, want) {
		t.Errorf("without git: %q, want %q", got, want)
	}
}
