package kaniko

import (
	"bufio"
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
	"sort"
	"strings"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/kuroko-faas/kuroko/builder"
)

// files are a build context by name: what a COPY can find.
type files map[string]contextFile

// contextFile is one file, folder or link of a context.
type contextFile struct {
	kind string // file, program, dir or link
	what string // sum of the content, or where the link leads
}

// copyContext copies the files of fsys that paths names (nil: all) and the
// ignore file leaves into dir, which exists. Modes are 0755 and 0644, by the
// executable bit, and times are 0, so that neither the caller's umask nor the
// checkout matters. dockerfile is the path that chooses the ignore file.
func copyContext(dir string, fsys fs.FS, paths []string, dockerfile string) (files, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return walkContext(root, fsys, paths, dockerfile)
}

// walkContext lists the files of a context and, unless root is nil, copies
// them there. Without a copy no file is read, and files have no sum.
func walkContext(root *os.Root, fsys fs.FS, paths []string, dockerfile string) (files, error) {
	if fsys == nil {
		return files{}, nil
	}
	ignore, err := ignored(fsys, dockerfile)
	if err != nil {
		return nil, err
	}
	c := contextCopy{fsys: fsys, root: root, ignore: ignore, made: map[string]bool{".": true}, files: files{}}
	if paths == nil {
		if paths, err = allNames(fsys); err != nil {
			return nil, err
		}
	}
	for _, p := range paths {
		if err := c.add(path.Clean(p)); err != nil {
			return nil, err
		}
	}
	if root != nil {
		err = c.finish()
	}
	return c.files, err
}

// allNames are the files and folders of fsys.
func allNames(fsys fs.FS) ([]string, error) {
	names := []string{}
	err := fs.WalkDir(fsys, ".", func(name string, _ fs.DirEntry, err error) error {
		names = append(names, name)
		return err
	})
	return names, err
}

// sum is a hash of names, links, executable bits and contents: of all files,
// or of what lies at or below one of names. Behind a link anything may lie, so
// then all count.
func (f files) sum(names []string, everything bool) string {
	var lines []string
	for name, e := range f {
		if !everything && !slices.ContainsFunc(names, func(n string) bool { return covers(n, name) }) {
			continue
		}
		if e.kind == "link" && !everything {
			return f.sum(nil, true)
		}
		// %q keeps a name from looking like two lines.
		lines = append(lines, fmt.Sprintf("%s %q %q\n", e.kind, name, e.what))
	}
	sort.Strings(lines)
	h := sha256.New()
	for _, l := range lines {
		io.WriteString(h, l)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// covers says whether a source in a COPY takes name, or goes through it.
func covers(source, name string) bool {
	if source == "." || source == name || strings.HasPrefix(name, source+"/") || strings.HasPrefix(source, name+"/") {
		return true
	}
	if !strings.ContainsAny(source, "*?[\\") {
		return false
	}
	// A pattern takes what its beginning matches, and what lies below.
	n := strings.Count(source, "/") + 1
	parts := strings.SplitN(name, "/", n+1)
	have := min(n, len(parts))
	ok, err := path.Match(strings.Join(strings.Split(source, "/")[:have], "/"), strings.Join(parts[:have], "/"))
	return ok || err != nil
}

type contextCopy struct {
	fsys   fs.FS
	root   *os.Root
	ignore *patternmatcher.PatternMatcher
	made   map[string]bool
	files  files
}

func (c *contextCopy) add(name string) error {
	if name == "." || c.made[name] {
		return nil
	}
	if c.ignore != nil {
		skip, err := c.ignore.MatchesOrParentMatches(filepath.FromSlash(name))
		if err != nil {
			return &builder.InputError{What: ".dockerignore", Err: err}
		}
		if skip {
			return nil
		}
	}
	st, err := fs.Lstat(c.fsys, name)
	if err != nil {
		return vanished(name, err)
	}
	if err := c.folder(path.Dir(name)); err != nil {
		return err
	}
	c.made[name] = true
	switch t := st.Mode().Type(); {
	case t.IsDir():
		return c.mkdir(name)
	case t == fs.ModeSymlink:
		to, err := fs.ReadLink(c.fsys, name)
		if err != nil {
			return vanished(name, err)
		}
		c.files[name] = contextFile{"link", to}
		if c.root == nil {
			return nil
		}
		return c.root.Symlink(to, name)
	case t.IsRegular():
		return c.file(name, st.Mode())
	}
	return &builder.InputError{What: fmt.Sprintf("%s is neither a file, a folder nor a link", name), Next: "remove it, or name it in .dockerignore"}
}

// folder makes parents that were not listed, as with a list of files only.
func (c *contextCopy) folder(name string) error {
	if c.made[name] {
		return nil
	}
	if err := c.folder(path.Dir(name)); err != nil {
		return err
	}
	c.made[name] = true
	return c.mkdir(name)
}

func (c *contextCopy) mkdir(name string) error {
	c.files[name] = contextFile{kind: "dir"}
	if c.root == nil {
		return nil
	}
	return mkdir(c.root, name)
}

// mkdir makes a folder of mode 0755 under any umask.
func mkdir(root *os.Root, name string) error {
	if err := root.Mkdir(name, 0o755); err != nil {
		return err
	}
	return root.Chmod(name, 0o755)
}

func (c *contextCopy) file(name string, mode fs.FileMode) error {
	perm, kind := fs.FileMode(0o644), "file"
	if mode&0o111 != 0 {
		perm, kind = 0o755, "program"
	}
	if c.root == nil {
		c.files[name] = contextFile{kind: kind}
		return nil
	}
	in, err := c.fsys.Open(name)
	if err != nil {
		return vanished(name, err)
	}
	defer in.Close()
	out, err := c.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	h := sha256.New()
	w := bufio.NewWriterSize(out, 64<<10)
	_, err = io.Copy(io.MultiWriter(w, h), in)
	err = errors.Join(err, w.Flush(), out.Chmod(perm), out.Close())
	c.files[name] = contextFile{kind, hex.EncodeToString(h.Sum(nil))}
	return err
}

// finish sets the times, the folders' last.
func (c *contextCopy) finish() error {
	var names []string
	for name, f := range c.files {
		if f.kind != "link" {
			names = append(names, name)
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(names)))
	epoch := time.Unix(0, 0)
	for _, name := range names {
		if err := c.root.Chtimes(name, epoch, epoch); err != nil {
			return err
		}
	}
	return nil
}

func vanished(name string, err error) error {
	return &builder.InputError{What: "read " + name, Next: "check that nothing changes the files during the build", Err: err}
}

// ignored reads the patterns of what the context leaves out; nil when there
// are none. A file beside the Dockerfile, named after it, comes first.
func ignored(fsys fs.FS, dockerfile string) (*patternmatcher.PatternMatcher, error) {
	for _, name := range []string{path.Clean(dockerfile) + ".dockerignore", ".dockerignore"} {
		if !fs.ValidPath(name) {
			continue
		}
		f, err := fsys.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		patterns, err := ignorefile.ReadAll(f)
		if err == nil && len(patterns) == 0 {
			return nil, nil
		}
		var m *patternmatcher.PatternMatcher
		if err == nil {
			m, err = patternmatcher.New(patterns)
		}
		if err != nil {
			return nil, &builder.InputError{What: name + " can't be read", Next: "correct its patterns", Err: err}
		}
		return m, nil
	}
	return nil, nil
}
