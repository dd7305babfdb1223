package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/kuroko-faas/kuroko/oss"
)

// RunnerMarker is the environment variable by which a runner tells the one
// that it executes that it was started for a bundle, and as which version.
const RunnerMarker = "FAAS_RUNNER_STARTED"

// RunnerPlan says who executes a bundle.
type RunnerPlan struct {
	// Exec: get the runner with Client.Runner and execute it with Env added.
	// Otherwise the asking process goes on itself.
	Exec bool
	// Env is what the new process must find in its environment.
	Env []string
	// Why is one line for the log.
	Why string
}

// PlanRunner decides whether the runner of version own executes a bundle, or
// another one must. platform is "os/arch"; marker is the value of
// [RunnerMarker] in the environment.
//
// A process that was started for a bundle and still isn't the named version
// would start the next one forever: that is an [ErrRunner], as are a bundle
// without a runner for this platform and one that needs a newer runner but
// names none.
func PlanRunner(m Meta, own, platform, marker string) (RunnerPlan, error) {
	if m.Runner == nil {
		if older(own, m.MinRunner) {
			return RunnerPlan{}, failf(ErrRunner, "bundle %s needs runner %s or newer and names none; this one is %s", m.Version, m.MinRunner, own)
		}
		return RunnerPlan{Why: fmt.Sprintf("runner %s; bundle %s names none", own, m.Version)}, nil
	}
	named := m.Runner.Version
	if named == own {
		return RunnerPlan{Why: fmt.Sprintf("runner %s, as bundle %s says", own, m.Version)}, nil
	}
	if marker != "" {
		return RunnerPlan{}, failf(ErrRunner, "bundle %s names runner %s; the one started as %s says it is %s", m.Version, named, marker, own)
	}
	if _, ok := m.Runner.Blobs[platform]; !ok {
		return RunnerPlan{}, noRunner(*m.Runner, platform)
	}
	return RunnerPlan{
		Exec: true,
		Env:  []string{RunnerMarker + "=" + named},
		Why:  fmt.Sprintf("runner %s starts runner %s, which bundle %s names", own, named, m.Version),
	}, nil
}

func noRunner(r Runner, platform string) error {
	return failf(ErrRunner, "runner %s is not published for %s, only for: %s", r.Version, platform,
		strings.Join(slices.Sorted(maps.Keys(r.Blobs)), ", "))
}

// runnerName is the executable's name, for people who look at processes.
const runnerName = "stage-runner"

// Runner returns the path of the stage runner that a bundle names: an
// executable file (0555) in a folder that nobody else can enter (0700), below
// Private. What is there already is verified again; what isn't comes from the
// node's cache or the store and is verified before it gets its name.
//
// Errors: [ErrRunner], [ErrUntrusted], [ErrUnavailable], oss.ErrDenied.
func (c *Client) Runner(ctx context.Context, r Runner, platform string) (string, error) {
	b, ok := r.Blobs[platform]
	if !ok {
		return "", noRunner(r, platform)
	}
	if !okSum(b.SHA256) || b.Size <= 0 || b.Size > maxRunner {
		return "", failf(ErrUntrusted, "runner %s for %s: sum or size is malformed", r.Version, platform)
	}
	dir, err := c.runnerDir(b.SHA256)
	if err != nil {
		return "", fmt.Errorf("bundle: runner: %w", err)
	}
	file := filepath.Join(dir, runnerName)
	if runnerIntact(file, b) {
		return file, nil
	}
	unlock, err := cache{c.Cache}.lock(ctx, "bin-"+b.SHA256)
	if err != nil {
		return "", err
	}
	defer unlock()
	if z := (cache{c.Cache}).read("bin/"+b.SHA256, packedLimit(b.Size)); z != nil {
		err := install(z, b, file)
		if err == nil || !errors.Is(err, ErrUntrusted) {
			return file, err
		}
		// Changed by somebody; what the store has replaces it below.
	}
	z, _, err := c.get(ctx, binKey(b.SHA256), "", packedLimit(b.Size), c.fetchTimeout())
	if errors.Is(err, oss.ErrNotFound) {
		return "", failf(ErrRunner, "runner %s for %s is not in the store: %s", r.Version, platform, reason(err))
	}
	if err != nil {
		return "", err
	}
	if err := install(z, b, file); err != nil {
		return "", err
	}
	// A cache that can't be written costs the next job a download, no more.
	_ = cache{c.Cache}.write("bin", b.SHA256, z)
	return file, nil
}

// runnerDir makes the private folder of a runner. A folder of that name which
// isn't ours alone is left to its owner.
func (c *Client) runnerDir(name string) (string, error) {
	base := c.Private
	if base == "" {
		base = os.TempDir()
	}
	top := filepath.Join(base, fmt.Sprintf("kuroko-runner-%d", os.Getuid()))
	if err := os.Mkdir(top, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if !private(top) {
		var err error
		if top, err = os.MkdirTemp(base, "kuroko-runner-"); err != nil {
			return "", err
		}
	}
	dir := filepath.Join(top, name)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if !private(dir) {
		return "", fmt.Errorf("%s is not a private folder", dir)
	}
	return dir, nil
}

// private says that dir is a folder, ours, and closed to others.
func private(dir string) bool {
	in, err := os.Lstat(dir)
	if err != nil || !in.IsDir() || in.Mode().Perm() != 0o700 {
		return false
	}
	st, ok := in.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Getuid()
}

// runnerIntact verifies an installed runner.
func runnerIntact(file string, b Blob) bool {
	in, err := os.Lstat(file)
	if err != nil || !in.Mode().IsRegular() || in.Mode().Perm() != 0o555 || in.Size() != b.Size {
		return false
	}
	raw, err := os.ReadFile(file)
	return err == nil && sum(raw) == b.SHA256
}

// install decompresses z into file. Until its sum is known to be right it has
// another name and can't be executed.
func install(z []byte, b Blob, file string) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-") // mode 0600
	if err != nil {
		return fmt.Errorf("bundle: runner: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	err = checkBlob(z, b, tmp)
	if err == nil {
		err = tmp.Chmod(0o555)
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil && !errors.Is(err, ErrUntrusted) {
		err = fmt.Errorf("bundle: runner: %w", err)
	}
	return err
}
