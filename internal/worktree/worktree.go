// Package worktree lists the files of a git work tree and sums them, and keeps
// the sums, so that another look at the same tree reads only what has changed.
// It imports little: a program may begin a look before its other packages are
// there.
package worktree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/internal/run"
)

// File is one file that may enter an image: its slash path from the
// repository's root and the sum of what decides its layer entry.
type File struct {
	Path string
	// Sum is sha256 over kind, executable bit and content; never over times,
	// owners or the rest of the mode, which differ between checkouts.
	Sum string
}

// FileError is a file whose content is not there: it was not fetched.
type FileError struct {
	What string // "is a Git LFS pointer: its content was not fetched"
	Next string // what the developer can do
}

func (e *FileError) Error() string { return e.What }

// List lists the files of the work tree that could enter an image: tracked
// files, and everything under output, which the build command made and git
// usually ignores. Without git metadata every file counts as tracked. The
// result is sorted; which files really take part, project.FileSets decides.
func List(ctx context.Context, dir, output string) ([]string, error) {
	paths, err := tracked(ctx, dir)
	if err != nil {
		return nil, err
	}
	return WithOutput(dir, output, paths)
}

// WithOutput adds the files below output to the tracked ones. paths is its own
// afterwards.
func WithOutput(dir, output string, paths []string) ([]string, error) {
	if output != "" {
		more, err := Walk(dir, output)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		paths = append(paths, more...)
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// Sum reads the files at paths, several at once. One that is gone from
// the work tree but still in git's index is left out; a link that leaves the
// tree is an error.
func Sum(dir string, paths []string) ([]File, error) {
	return Known{}.Sum(dir, paths)
}

// Sum is [Sum] without reading what is known, and remembers the sums for the
// next time.
func (k Known) Sum(dir string, paths []string) ([]File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	sums := make([]string, len(paths))
	fresh := make([]fileStat, len(paths)) // of what was read now and may be remembered
	err = k.each(root, paths, func(r *reader, i int) error {
		var err error
		sums[i], fresh[i], err = r.sum(paths[i])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read %s: %w", paths[i], err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	files := make([]File, 0, len(paths))
	for i, sum := range sums {
		if sum != "" {
			files = append(files, File{Path: paths[i], Sum: sum})
		}
	}
	if slices.ContainsFunc(fresh, func(at fileStat) bool { return at != fileStat{} }) {
		k.remember(k.with(paths, sums, fresh))
	}
	return files, nil
}

// each calls do for every path, several at once.
func (k Known) each(root *os.Root, paths []string, do func(r *reader, i int) error) error {
	return inParts(len(paths), readers, func(from, to int) error {
		r := &reader{root: root, known: k}
		defer r.close()
		for i := from; i < to; i++ {
			if err := do(r, i); err != nil {
				return err
			}
		}
		return nil
	})
}

// inParts calls do for so many parts of n neighbours, at once. Neighbours go
// to one reader, which keeps their folder open.
func inParts(n, parts int, do func(from, to int) error) error {
	var group errgroup.Group
	size := max(1, (n+parts-1)/parts)
	for from := 0; from < n; from += size {
		group.Go(func() error { return do(from, min(from+size, n)) })
	}
	return group.Wait()
}

// readers is how many files are read at once: mostly they wait for the kernel.
const readers = 4

// reader reads files of one folder after the other.
type reader struct {
	root  *os.Root
	known Known
	near  int          // where the next file's known sum will be
	in    []openFolder // from the root down to where the last file was
	buf   []byte       // made for the first file that is read
}

type openFolder struct {
	path string // ends in a slash
	dir  *os.Root
}

// folder opens dir, which is empty or ends in a slash, from the nearest folder
// above it that is open.
func (r *reader) folder(dir string) (*os.Root, error) {
	for n := len(r.in); n > 0 && !strings.HasPrefix(dir, r.in[n-1].path); n-- {
		r.in[n-1].dir.Close()
		r.in = r.in[:n-1]
	}
	at, done := r.root, 0
	if n := len(r.in); n > 0 {
		at, done = r.in[n-1].dir, len(r.in[n-1].path)
	}
	for done < len(dir) {
		end := done + strings.IndexByte(dir[done:], '/') + 1
		in, err := at.OpenRoot(dir[done : end-1])
		if err != nil { // also a link to another folder of the tree
			in, err = r.root.OpenRoot(filepath.FromSlash(dir[:end-1]))
		}
		if err != nil {
			return nil, err
		}
		at, done = in, end
		r.in = append(r.in, openFolder{dir[:end], in})
	}
	return at, nil
}

func (r *reader) close() {
	for _, f := range r.in {
		f.dir.Close()
	}
	r.in = nil
}

// sum is the sum of the file at p: the known one, or what is read now. at is
// set when the latter may be remembered.
func (r *reader) sum(p string) (sum string, at fileStat, err error) {
	i, known := r.known.find(p, r.near)
	r.near = i + 1
	if known && r.known.holds != nil && r.known.holds[i] {
		return r.known.sums[i].sum, fileStat{}, nil
	}
	dir, base := path.Split(p)
	in, err := r.folder(dir)
	if err != nil {
		return "", fileStat{}, err
	}
	info, err := in.Lstat(base)
	if err != nil {
		return "", fileStat{}, err
	}
	if now, ok := statOf(info); known && ok && now == r.known.sums[i].at {
		return r.known.sums[i].sum, fileStat{}, nil
	}
	at, settled := r.known.settled(info)
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	sum, read, err := sumFile(in, base, p, info, r.buf)
	if err != nil {
		return "", fileStat{}, err
	}
	if was, ok := statOf(read); !settled || !ok || was != at {
		at = fileStat{}
	}
	return sum, at, nil
}

// tracked asks git; a folder that is no work tree is walked.
func tracked(ctx context.Context, dir string) ([]string, error) {
	if _, err := os.Lstat(filepath.Join(dir, ".git")); err != nil {
		return Walk(dir, ".")
	}
	var out bytes.Buffer
	err := run.Command{
		Path: "git",
		// The checkout may belong to the helper container's user; see
		// https://git-scm.com/docs/git-config#Documentation/git-config.txt-safedirectory
		Args:   []string{"-c", "safe.directory=*", "-c", "core.fsmonitor=false", "ls-files", "-z", "--recurse-submodules"},
		Env:    []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C"},
		Dir:    dir,
		Stdout: &out,
	}.Run(ctx)
	if err != nil {
		var exit *run.ExitError
		if errors.As(err, &exit) && exit.Tail != "" {
			return nil, fmt.Errorf("list the files git tracks: %s", exit.Tail)
		}
		return nil, fmt.Errorf("list the files git tracks: %w", err)
	}
	list := strings.Split(out.String(), "\x00")
	return list[:len(list)-1], nil // each path ends in a NUL
}

// Head is the checked-out commit and branch; empty outside a git work tree. git
// runs in environ.
func Head(ctx context.Context, environ []string, dir string) (sha, branch string, err error) {
	if _, err := os.Stat(filepath.Join(dir, ".git")); err != nil {
		return "", "", nil
	}
	var out bytes.Buffer
	err = run.Command{
		Path: "git",
		// As where the tree is listed: the checkout may be another user's.
		Args: []string{"-c", "safe.directory=*", "rev-parse", "HEAD", "--symbolic-full-name", "HEAD"},
		Dir:  dir, Env: append(slices.Clone(environ), "LC_ALL=C"), Stdout: &out,
	}.Run(ctx)
	if err != nil {
		return "", "", err
	}
	// A detached HEAD is no branch, which is no error.
	sha, ref, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
	branch, ok := strings.CutPrefix(ref, "refs/heads/")
	if !ok {
		branch = ""
	}
	return sha, branch, nil
}

// Walk lists the files below sub, but for those that are never code.
func Walk(dir, sub string) ([]string, error) {
	var paths []string
	err := filepath.WalkDir(filepath.Join(dir, filepath.FromSlash(sub)), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); n == "node_modules" || n == ".git" || n == ".faas" {
				return fs.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		paths = append(paths, filepath.ToSlash(rel))
		return nil
	})
	return paths, err
}

// A pointer stands where Git LFS was not asked for the content; in an image it
// is never what somebody wanted. https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
const (
	lfsPointer    = "version https://git-lfs.github.com/spec/v1\n"
	maxLFSPointer = 1024
)

// sumFile sums the file called base in its folder, which is as info says; p is
// its path in the tree. read says how that was which was read: it may have
// been replaced meanwhile. A link is never followed, and one that leaves the
// tree is refused.
func sumFile(in *os.Root, base, p string, info fs.FileInfo, buf []byte) (sum string, read fs.FileInfo, err error) {
	read = info
	h := sha256.New()
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		to, err := in.Readlink(base)
		if err != nil {
			return "", nil, err
		}
		if target := path.Join(path.Dir(p), to); path.IsAbs(to) || target == ".." || strings.HasPrefix(target, "../") {
			return "", nil, fmt.Errorf("is a link to %s, outside the repository", to)
		}
		fmt.Fprintf(h, "link %s", to)
	case info.IsDir():
		return "", nil, &FileError{
			What: "is a submodule that was not checked out", Next: "set the variable GIT_SUBMODULE_STRATEGY: recursive in .gitlab-ci.yml",
		}
	case !info.Mode().IsRegular():
		return "", nil, fmt.Errorf("is no regular file (%s)", info.Mode().Type())
	default:
		f, err := in.Open(base)
		if err != nil {
			return "", nil, err
		}
		defer f.Close()
		if read, err = f.Stat(); err != nil {
			return "", nil, err
		}
		fmt.Fprintf(h, "file %v ", info.Mode()&0o111 != 0)
		n, err := io.ReadFull(f, buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return "", nil, err
		}
		if info.Size() <= maxLFSPointer && strings.HasPrefix(string(buf[:min(n, len(lfsPointer))]), lfsPointer) {
			return "", nil, &FileError{
				What: "is a Git LFS pointer: its content was not fetched",
				Next: "let the job fetch it (unset GIT_LFS_SKIP_SMUDGE, use a GitLab runner with git-lfs), or leave it out with package.exclude in faas.yml",
			}
		}
		h.Write(buf[:n])
		if n == len(buf) {
			if _, err := io.Copy(h, f); err != nil {
				return "", nil, err
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)), read, nil
}
