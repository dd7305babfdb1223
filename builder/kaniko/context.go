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
	"sort"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/kuroko-faas/kuroko/builder"
)

// copyContext copies the files of fsys that paths names (nil: all) and
// .dockerignore leaves into dir, which exists. Modes are 0755 and 0644, by the
// executable bit, so that the caller's umask doesn't matter. It returns a hash
// of names, links, executable bits and contents.
func copyContext(dir string, fsys fs.FS, paths []string) (string, error) {
	if fsys == nil {
		return hex.EncodeToString(sha256.New().Sum(nil)), nil
	}
	ignore, err := ignored(fsys)
	if err != nil {
		return "", err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	c := contextCopy{fsys: fsys, root: root, ignore: ignore, made: map[string]bool{".": true}}
	if paths == nil {
		err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return c.add(name)
		})
	} else {
		for _, p := range paths {
			if err = c.add(path.Clean(p)); err != nil {
				break
			}
		}
	}
	if err != nil {
		return "", err
	}
	sort.Strings(c.lines)
	h := sha256.New()
	for _, l := range c.lines {
		io.WriteString(h, l)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

type contextCopy struct {
	fsys   fs.FS
	root   *os.Root
	ignore *patternmatcher.PatternMatcher
	made   map[string]bool
	lines  []string // what the hash is made of, in any order
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
	if err := c.folder(path.Dir(name)); err != nil {
		return err
	}
	st, err := fs.Lstat(c.fsys, name)
	if err != nil {
		return vanished(name, err)
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
		c.line("link", name, to)
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
	c.line("dir", name, "")
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
	in, err := c.fsys.Open(name)
	if err != nil {
		return vanished(name, err)
	}
	defer in.Close()
	perm, kind := fs.FileMode(0o644), "file"
	if mode&0o111 != 0 {
		perm, kind = 0o755, "program"
	}
	out, err := c.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	h := sha256.New()
	w := bufio.NewWriterSize(out, 64<<10)
	_, err = io.Copy(io.MultiWriter(w, h), in)
	err = errors.Join(err, w.Flush(), out.Chmod(perm), out.Close())
	c.line(kind, name, hex.EncodeToString(h.Sum(nil)))
	return err
}

// line adds to the hash; %q keeps a name from looking like two lines.
func (c *contextCopy) line(kind, name, content string) {
	c.lines = append(c.lines, fmt.Sprintf("%s %q %q\n", kind, name, content))
}

func vanished(name string, err error) error {
	return &builder.InputError{What: "read " + name, Next: "check that nothing changes the files during the build", Err: err}
}

// ignored reads .dockerignore; nil when there is none.
func ignored(fsys fs.FS) (*patternmatcher.PatternMatcher, error) {
	f, err := fsys.Open(".dockerignore")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
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
		return nil, &builder.InputError{What: ".dockerignore can't be read", Next: "correct its patterns", Err: err}
	}
	return m, nil
}
