package kaniko

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/rootfs"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// Unpacking a layer of many files takes longer than most steps, and a file
// system on which many were just removed makes new ones slowly. Where no
// command runs, only a few files are looked at, by name.

// sources are the files that a COPY --from takes from s, its layers unpacked
// as far as that needs.
func (b *build) sources(ctx context.Context, s *built, st step) ([]*rootfs.Tree, error) {
	at, patterns := st.takenFrom()
	if st.unclear || slices.Contains(at, "") {
		return b.unpacked(ctx, s, nil)
	}
	// What is above them as well: a file there hides the folders below it.
	list, err := b.unpacked(ctx, s, &rootfs.Part{ID: keyOf(append([]string{"sources"}, at...)...)[:16], Has: func(name string) bool {
		return slices.ContainsFunc(at, func(p string) bool { return covers(p, name) })
	}})
	if err != nil {
		return nil, err
	}
	straight, err := b.straight(list, at, patterns)
	if err != nil || straight {
		return list, err
	}
	return b.unpacked(ctx, s, nil)
}

// takenFrom are the paths that a COPY --from takes, each up to where a pattern
// begins, and whether one does.
func (st step) takenFrom() (paths []string, patterns bool) {
	for _, p := range st.taken {
		if i := strings.IndexAny(p, "*?[\\"); i >= 0 {
			p, patterns = clean(path.Dir(p[:i]+"x")), true
		}
		paths = append(paths, p)
	}
	return paths, patterns
}

// below are the files that steps start with.
func (b *build) below(ctx context.Context, s *built, steps []step, from map[int][]*rootfs.Tree) ([]*rootfs.Tree, error) {
	part, err := b.touched(steps, from)
	if err != nil {
		return nil, err
	}
	list, err := b.unpacked(ctx, s, part)
	if err != nil || part == nil {
		return list, err
	}
	straight, err := b.straight(list, []string{"etc/passwd", "etc/group"}, false)
	if err != nil || straight {
		return list, err
	}
	return b.unpacked(ctx, s, nil)
}

// straight says that no link leads from the paths, nor with patterns from what
// lies below them, to elsewhere.
func (b *build) straight(list []*rootfs.Tree, paths []string, patterns bool) (bool, error) {
	k, err := newKnown(list, b.mode == sandbox.Root)
	if err != nil {
		return false, err
	}
	defer k.close()
	for _, p := range paths {
		for dir := p; dir != "." && dir != ""; dir = path.Dir(dir) {
			if at, st := k.find(dir); at >= 0 && st.Mode().Type() == fs.ModeSymlink {
				return false, nil
			}
		}
	}
	if !patterns {
		return true, nil
	}
	straight := true
	err = walkBelow(list, paths, func(_ string, d fs.DirEntry) {
		straight = straight && d.Type() != fs.ModeSymlink
	})
	return straight, err
}

// walkBelow visits what trees have at and below paths.
func walkBelow(list []*rootfs.Tree, paths []string, visit func(string, fs.DirEntry)) error {
	for _, t := range list {
		root, err := os.OpenRoot(t.Dir)
		if err != nil {
			return err
		}
		for _, p := range paths {
			err = errors.Join(err, fs.WalkDir(root.FS(), path.Join(".", p), func(name string, d fs.DirEntry, err error) error {
				if d == nil {
					return nil // not in this tree
				}
				if err == nil {
					visit(name, d)
				}
				return err
			}))
		}
		if err = errors.Join(err, root.Close()); err != nil {
			return err
		}
	}
	return nil
}

// touched chooses the files that steps without a command may look at: those
// that have a name in common with something that is copied, wherever they are,
// because links may lead a path anywhere. nil is all. from are the trees of
// each COPY --from.
func (b *build) touched(steps []step, from map[int][]*rootfs.Tree) (*rootfs.Part, error) {
	// Owners are looked up in these.
	names := map[string]bool{"passwd": true, "group": true}
	add := func(p string) {
		for part := range strings.SplitSeq(p, "/") {
			names[part] = true
		}
	}
	for n, st := range steps {
		if st.run || st.unclear {
			return nil, nil
		}
		for _, p := range append(slices.Clone(st.into), st.taken...) {
			add(p)
		}
		switch trees, ok := from[n]; {
		case ok:
			at, _ := st.takenFrom()
			err := walkBelow(trees, at, func(name string, _ fs.DirEntry) { names[path.Base(name)] = true })
			if err != nil {
				return nil, err
			}
		case st.copies:
			for name := range b.files {
				add(name)
			}
		}
	}
	id := slices.Sorted(func(yield func(string) bool) {
		for n := range names {
			if !yield(n) {
				return
			}
		}
	})
	return &rootfs.Part{ID: keyOf(append([]string{"touched"}, id...)...)[:16], Has: func(name string) bool { return names[path.Base(name)] }}, nil
}
