package kaniko

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuroko-faas/kuroko/builder/rootfs"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// Unpacking a layer of many files takes longer than most steps, above all on a
// file system on which many were just removed. Where no command follows, only
// a few are looked at.

// source are the files of a COPY --from.
type source struct {
	trees []*rootfs.Tree
	// whole means that what is copied can't be told from its paths.
	whole bool
}

// taken unpacks of s what a COPY --from takes.
func (b *build) taken(ctx context.Context, s *built, st step) (source, error) {
	at, patterns := st.takenFrom()
	if !st.unclear && !slices.Contains(at, "") {
		list, err := b.unpacked(ctx, s, &rootfs.Part{ID: partID("taken", at), Has: func(name string) bool {
			return slices.ContainsFunc(at, func(p string) bool { return covers(p, name) })
		}})
		if err != nil {
			return source{}, err
		}
		straight, err := b.straight(list, at)
		if err == nil && straight && patterns {
			err = walkBelow(list, at, func(_ string, d fs.DirEntry) { straight = straight && d.Type() != fs.ModeSymlink })
		}
		if err != nil || straight {
			return source{trees: list}, err
		}
	}
	list, err := b.unpacked(ctx, s, nil)
	return source{list, true}, err
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

// below are the files that a chain's steps from number at on start with. from
// are those of each COPY --from.
func (b *build) below(ctx context.Context, s *built, config v1.Config, chain []step, at int, from map[int]source) ([]*rootfs.Tree, error) {
	names, err := b.touched(config, chain, at, from)
	if err != nil {
		return nil, err
	}
	if names != nil {
		sorted := slices.Sorted(maps.Keys(names))
		list, err := b.unpacked(ctx, s, &rootfs.Part{ID: partID("touched", sorted), Has: func(name string) bool { return names[name] }})
		if err != nil {
			return nil, err
		}
		if straight, err := b.straight(list, sorted); err != nil || straight {
			return list, err
		}
	}
	return b.unpacked(ctx, s, nil)
}

// touched are the paths that the steps may look at, and those above them, if
// no link leads elsewhere; nil is all.
func (b *build) touched(config v1.Config, chain []step, at int, from map[int]source) (map[string]bool, error) {
	names := map[string]bool{}
	add := func(p string) {
		for p = clean(p); p != "" && !names[p]; p = clean(path.Dir(p)) {
			names[p] = true
		}
	}
	// Owners are looked up there.
	add("etc/passwd")
	add("etc/group")
	dir := config.WorkingDir
	for n, st := range chain {
		if st.unclear || st.run && n >= at {
			return nil, nil
		}
		if st.dir != "" {
			if dir = inside(dir, st.dir); n >= at {
				add(dir)
			}
		}
		if !st.copies || n < at {
			continue
		}
		into := inside(dir, st.into)
		add(into)
		for _, doc := range st.documents {
			add(path.Join(into, doc))
		}
		// Whichever folder above a file is the source, it comes to the target
		// under an end of its path.
		each := func(name string) {
			for {
				add(path.Join(into, name))
				_, rest, ok := strings.Cut(name, "/")
				if !ok {
					return
				}
				name = rest
			}
		}
		src, other := from[n]
		switch {
		case src.whole:
			return nil, nil
		case other:
			paths, _ := st.takenFrom()
			if err := walkBelow(src.trees, paths, func(name string, _ fs.DirEntry) { each(name) }); err != nil {
				return nil, err
			}
		default:
			for name := range b.files {
				each(name)
			}
		}
	}
	return names, nil
}

// inside is p seen from dir.
func inside(dir, p string) string {
	if path.IsAbs(p) {
		return p
	}
	return path.Join("/", dir, p)
}

func partID(kind string, names []string) string {
	return keyOf(append([]string{kind}, names...)...)[:20]
}

// straight says that no path leads over a link.
func (b *build) straight(list []*rootfs.Tree, paths []string) (bool, error) {
	k, err := newKnown(list, b.mode == sandbox.Root)
	if err != nil {
		return false, err
	}
	defer k.close()
	for _, p := range paths {
		for ; p != "." && p != ""; p = path.Dir(p) {
			if at, st := k.find(p); at >= 0 && st.Mode().Type() == fs.ModeSymlink {
				return false, nil
			}
		}
	}
	return true, nil
}

// walkBelow visits what trees have at and below paths.
func walkBelow(list []*rootfs.Tree, paths []string, visit func(string, fs.DirEntry)) error {
	for _, t := range list {
		root, err := os.OpenRoot(t.Dir)
		if err != nil {
			return err
		}
		for _, p := range paths {
			err = fs.WalkDir(root.FS(), p, func(name string, d fs.DirEntry, err error) error {
				if d == nil {
					return nil // not in this tree
				}
				if err == nil {
					visit(name, d)
				}
				return err
			})
			if err != nil {
				break
			}
		}
		root.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
