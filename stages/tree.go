package stages

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

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// File is one file that may enter an image: its slash path from the
// repository's root and the sum of what decides its layer entry.
type File struct {
	Path string
	// Sum is sha256 over kind, executable bit and content; never over times,
	// owners or the rest of the mode, which differ between checkouts.
	Sum string
}

// ListTree lists the files of the work tree that could enter an image: tracked
// files, and everything under output, which the build command made and git
// usually ignores. Without git metadata every file counts as tracked. The
// result is sorted; which files really take part, project.FileSets decides.
func ListTree(ctx context.Context, dir, output string) ([]string, error) {
	paths, err := tracked(ctx, dir)
	if err != nil {
		return nil, err
	}
	if output != "" {
		more, err := walk(dir, output)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		paths = append(paths, more...)
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// SumFiles reads the files at paths, several at once. One that is gone from
// the work tree but still in git's index is left out; a link that leaves the
// tree is an error.
func SumFiles(dir string, paths []string) ([]File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	sums := make([]string, len(paths))
	var group errgroup.Group
	// Neighbours go to one reader, which keeps their folder open.
	size := max(1, (len(paths)+readers-1)/readers)
	for from := 0; from < len(paths); from += size {
		group.Go(func() error {
			r := treeReader{root: root, buf: make([]byte, 64<<10)}
			defer r.close()
			for i := from; i < min(from+size, len(paths)); i++ {
				sum, err := r.sum(paths[i])
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("read %s: %w", paths[i], err)
				}
				if err == nil {
					sums[i] = sum
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	files := make([]File, 0, len(paths))
	for i, sum := range sums {
		if sum != "" {
			files = append(files, File{Path: paths[i], Sum: sum})
		}
	}
	return files, nil
}

// readers is how many files are read at once: mostly they wait for the kernel.
const readers = 4

// treeReader reads files of one folder after the other.
type treeReader struct {
	root *os.Root
	dir  string
	in   *os.Root // dir, open; nil for none yet
	buf  []byte
}

func (r *treeReader) close() {
	if r.in != nil {
		r.in.Close()
	}
	r.in = nil
}

// sum is the sum of the file at p.
func (r *treeReader) sum(p string) (string, error) {
	dir, base := path.Split(p)
	if dir == "" {
		return sumFile(r.root, p, p, r.buf)
	}
	if r.in == nil || r.dir != dir {
		r.close()
		in, err := r.root.OpenRoot(filepath.FromSlash(dir))
		if err != nil {
			return "", err
		}
		r.in, r.dir = in, dir
	}
	return sumFile(r.in, base, p, r.buf)
}

// tracked asks git; a folder that is no work tree is walked.
func tracked(ctx context.Context, dir string) ([]string, error) {
	if _, err := os.Lstat(filepath.Join(dir, ".git")); err != nil {
		return walk(dir, ".")
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
	var paths []string
	for _, p := range strings.Split(out.String(), "\x00") {
		if p != "" {
			paths = append(paths, p)
		}
	}
	return paths, nil
}

func walk(dir, sub string) ([]string, error) {
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

// treeError is the designed error of a work tree that can't be read.
func treeError(err error) error {
	e := &usererr.Error{
		Code: usererr.CodeBuildInput, What: "read the work tree", Err: err,
		Next: "correct what is named above, or leave it out with package.exclude in faas.yml",
	}
	var input *builder.InputError
	if errors.As(err, &input) && input.Next != "" {
		e.Next = input.Next
	}
	return e
}

// sumFile sums the file called base in its folder; p is its path in the tree.
// It never follows a link, and refuses one that leaves the tree.
func sumFile(in *os.Root, base, p string, buf []byte) (string, error) {
	info, err := in.Lstat(base)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		to, err := in.Readlink(base)
		if err != nil {
			return "", err
		}
		if target := path.Join(path.Dir(p), to); path.IsAbs(to) || target == ".." || strings.HasPrefix(target, "../") {
			return "", fmt.Errorf("is a link to %s, outside the repository", to)
		}
		fmt.Fprintf(h, "link %s", to)
	case info.IsDir():
		return "", &builder.InputError{
			What: "is a submodule that was not checked out", Next: "set the variable GIT_SUBMODULE_STRATEGY: recursive in .gitlab-ci.yml",
		}
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("is no regular file (%s)", info.Mode().Type())
	default:
		f, err := in.Open(base)
		if err != nil {
			return "", err
		}
		defer f.Close()
		fmt.Fprintf(h, "file %v ", info.Mode()&0o111 != 0)
		n, err := io.ReadFull(f, buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return "", err
		}
		if info.Size() <= maxLFSPointer && strings.HasPrefix(string(buf[:min(n, len(lfsPointer))]), lfsPointer) {
			return "", &builder.InputError{
				What: "is a Git LFS pointer: its content was not fetched",
				Next: "let the job fetch it (unset GIT_LFS_SKIP_SMUDGE, use a GitLab runner with git-lfs), or leave it out with package.exclude in faas.yml",
			}
		}
		h.Write(buf[:n])
		if n == len(buf) {
			if _, err := io.Copy(h, f); err != nil {
				return "", err
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
