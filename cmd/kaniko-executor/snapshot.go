package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/GoogleContainerTools/kaniko/pkg/snapshot"
	"github.com/GoogleContainerTools/kaniko/pkg/util"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

// snapshots finds what instructions change, by kaniko's means: a map of all
// files with what can be seen of them without reading.
type snapshots struct {
	seen  *snapshot.LayeredMap
	all   *snapshot.Snapshotter
	begun bool
}

func newSnapshots() (*snapshots, error) {
	if err := util.InitIgnoreList(); err != nil {
		return nil, err
	}
	s := &snapshots{seen: snapshot.NewLayeredMap(util.RedoHasher())}
	s.all = snapshot.NewSnapshotter(s.seen, "/")
	return s, nil
}

// begin looks at all files before the first command.
func (s *snapshots) begin() error {
	if s.begun {
		return nil
	}
	s.begun = true
	return s.all.Init()
}

// take makes a layer of just these files and the folders that they are in, and
// says whether there was anything.
func (s *snapshots) take(paths []string, place int) (bool, error) {
	if len(paths) == 0 {
		return false, nil
	}
	names := map[string]bool{}
	for _, p := range paths {
		for p = filepath.Clean(p); p != "/" && !names[p]; p = filepath.Dir(p) {
			names[p] = true
		}
	}
	var sorted []string
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	f, err := os.Create(layerFile(place))
	if err != nil {
		return false, err
	}
	defer f.Close()
	s.seen.Snapshot()
	t := util.NewTar(f)
	for _, n := range sorted {
		if err := errors.Join(s.seen.Add(n), t.AddFileToTar(n)); err != nil {
			return false, err
		}
	}
	t.Close()
	return true, nil
}

// takeAll makes a layer of everything that changed.
func (s *snapshots) takeAll(place int) (bool, error) {
	made, err := s.all.TakeSnapshotFS()
	if err != nil {
		return false, err
	}
	if err := attributes(made); err != nil {
		return false, err
	}
	// Both lie in one folder of the parent's, so nothing is copied.
	return true, os.Rename(made, layerFile(place))
}

func layerFile(place int) string { return filepath.Join(kaniko.Out, fmt.Sprintf("%d.tar", place)) }

// attributes refuses files with extended attributes: kaniko leaves them out of
// the layer and says nothing.
func attributes(layer string) error {
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	t := tar.NewReader(f)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := "/" + strings.TrimSuffix(strings.TrimPrefix(h.Name, "/"), "/")
		if h.Typeflag == tar.TypeSymlink {
			continue
		}
		buf := make([]byte, 4<<10)
		n, err := unix.Llistxattr(name, buf)
		if err != nil {
			continue // a whiteout, or a file system without them
		}
		for _, a := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
			// Capabilities are in the layer, where the parent sees them; labels
			// of a security module belong to the machine.
			if a != "" && !strings.HasPrefix(a, "security.") {
				return fmt.Errorf("%s has the extended attribute %s, which would not be in the image; remove it in the same RUN", name, a)
			}
		}
	}
}
