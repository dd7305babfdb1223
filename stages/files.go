package stages

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WorkDir is the folder in the work tree where a job leaves what a later job
// can't recompute. GitLab carries it as artefacts.
const WorkDir = ".faas"

// The arrows between jobs.
const (
	fileBuildPlan  = "buildplan.json"
	fileImages     = "images.json"
	fileDeployPlan = "deployplan.json"
	fileRelease    = "release.json"
	fileStaged     = "staged.json"
	fileReport     = "report.json"
)

// maxWorkFile bounds what is read back: an artefact is untrusted input.
const maxWorkFile = 16 << 20

// errNoFile says that an earlier job did not leave the file.
var errNoFile = errors.New("not left by an earlier job")

// readWork decodes .faas/<name>. A file that is missing, or that no job of
// ours wrote so, is [errNoFile]: a repository can commit anything there.
func readWork(dir, name string, v any) error {
	path := filepath.Join(dir, WorkDir, name)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s/%s: %w", WorkDir, name, errNoFile)
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxWorkFile {
		return fmt.Errorf("%s/%s: is no regular file of at most %d bytes: %w", WorkDir, name, maxWorkFile, errNoFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s/%s: %w: %w", WorkDir, name, errNoFile, err)
	}
	return nil
}

// writeWork writes .faas/<name> whole or not at all.
func writeWork(dir, name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, WorkDir, name), append(data, '\n'))
}

func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // a no-op after the rename
	_, err = tmp.Write(data)
	// CreateTemp makes 0600; the helper container that uploads artefacts may
	// run as another user.
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
