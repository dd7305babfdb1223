package bundle

import (
	"os"
	"path/filepath"
	"testing"
)

// A killed process leaves its copy behind; the next one removes it, and never
// that of a process that lives.
func TestPrivateFoldersDoNotPileUp(t *testing.T) {
	base := t.TempDir()
	other := filepath.Join(base, "kuroko-other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	first, held, err := privateFolder(base)
	if err != nil {
		t.Fatal(err)
	}
	if in, err := os.Stat(first); err != nil || in.Mode().Perm() != 0o700 {
		t.Errorf("got %v, %v", in, err)
	}
	if err := os.WriteFile(filepath.Join(first, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, second, err := privateFolder(base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first); err != nil {
		t.Error("the copy of a living process is gone: ", err)
	}
	// What the system does when a process ends, however it ends.
	held.Close()
	second.Close()
	third, lock, err := privateFolder(base)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	left, err := os.ReadDir(base)
	if err != nil || len(left) != 2 || filepath.Join(base, left[0].Name()) != third || left[1].Name() != "kuroko-other" {
		t.Errorf("left: %v, %v", left, err)
	}
}
