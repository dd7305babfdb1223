package npm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// smallPackage is how much of an unpacked package stays in memory.
const smallPackage = 256 << 10

// Write fetches the plan's packages and adds them to w below prefix, package
// after package in the order of their places, files sorted within each, the
// links of .bin folders at the end. While one package is written the next ones
// are fetched; how far ahead is bounded, and so is memory.
//
// Errors: [*fetch.Error], [*fetch.PackageError], [*NeedsInstallerError] for what only
// an archive tells, w's own errors, ctx's cause.
func (f *Fetcher) Write(ctx context.Context, w *layer.Writer, prefix string, plan Plan) error {
	if plan.Empty() {
		return nil
	}
	limits := f.limits()
	workers := f.Parallel
	if workers <= 0 {
		workers = 16
	}
	group, gctx := errgroup.WithContext(ctx)
	results := make([]chan *unpacked, len(plan.Packages))
	for i := range results {
		results[i] = make(chan *unpacked, 1)
	}
	// ahead bounds how many packages are fetched and not yet written.
	ahead := make(chan struct{}, 2*workers)
	jobs := make(chan int)
	group.Go(func() error {
		defer close(jobs)
		for i := range plan.Packages {
			select {
			case ahead <- struct{}{}:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
			select {
			case jobs <- i:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return nil
	})
	var total atomic.Int64
	for range min(workers, len(plan.Packages)) {
		group.Go(func() error {
			for i := range jobs {
				u, err := f.open(gctx, plan.Packages[i], limits)
				if err != nil {
					return err
				}
				n := total.Add(u.data.Len())
				results[i] <- u
				if n > limits.Total {
					return fmt.Errorf("npm: the packages unpack to more than %d bytes: %w", limits.Total, fetch.ErrHostile)
				}
			}
			return nil
		})
	}
	out := treeWriter{w: w, prefix: path.Clean("/" + prefix), targets: map[string]bool{}}
	for _, file := range plan.bins {
		out.targets[file] = false
	}
	group.Go(func() error {
		for i, p := range plan.Packages {
			select {
			case u := <-results[i]:
				err := out.add(gctx, p, u)
				u.data.Close()
				if err != nil {
					return err
				}
				<-ahead
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return out.links(plan.bins)
	})
	err := group.Wait()
	for _, c := range results {
		select {
		case u := <-c:
			u.data.Close()
		default:
		}
	}
	return err
}

// open fetches and unpacks one package. The caller closes its data.
func (f *Fetcher) open(ctx context.Context, p Package, limits fetch.Limits) (*unpacked, error) {
	archive, err := f.archive(ctx, p)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	data := &layer.Spool{Dir: f.Temp, Memory: smallPackage}
	u, err := unpack(archive.Section(0, archive.Len()), data, limits)
	if err == nil && u.has("binding.gyp") {
		err = needs(p.ID(), "it compiles native code when it is installed")
	}
	if err != nil {
		data.Close()
		switch {
		case errors.Is(err, errUnreadable):
			return nil, needs(p.ID(), err.Error())
		case errors.Is(err, fetch.ErrHostile):
			host := f.Registry
			if a, e := url.Parse(f.base(p.Name)); e == nil {
				host = a.Host
			}
			return nil, &fetch.PackageError{Package: p.ID(), Host: host, Err: err}
		}
		return nil, err
	}
	return u, nil
}

func (u *unpacked) has(name string) bool {
	_, ok := slices.BinarySearchFunc(u.files, name, func(f file, n string) int { return strings.Compare(f.path, n) })
	return ok
}

// treeWriter puts unpacked packages into a layer.
type treeWriter struct {
	w      *layer.Writer
	prefix string
	// targets are the files that .bin links point to, and whether they came.
	targets map[string]bool
}

func (t *treeWriter) add(ctx context.Context, p Package, u *unpacked) error {
	if err := t.w.Add(layer.Entry{Name: path.Join(t.prefix, p.Place), Mode: fs.ModeDir | 0o755}); err != nil {
		return t.clash(p, err)
	}
	for _, f := range u.files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		place := path.Join(p.Place, f.path)
		e := layer.Entry{Name: path.Join(t.prefix, place), Mode: 0o644, Size: f.size, Body: u.data.Section(f.off, f.size)}
		if f.exec {
			e.Mode = 0o755
		}
		if _, program := t.targets[place]; program {
			t.targets[place] = true
			e.Mode = 0o755
			e.Body, e.Size = unixFirstLine(u.data.Section(f.off, f.size), f.size)
		}
		if err := t.w.Add(e); err != nil {
			return t.clash(p, err)
		}
	}
	return nil
}

// clash turns a name that is there already into npm's business: two archives
// hold the same place, and only npm knows which one it would leave there.
func (t *treeWriter) clash(p Package, err error) error {
	if errors.Is(err, layer.ErrDuplicate) || errors.Is(err, layer.ErrNotFolder) {
		return needs(p.ID(), "its files overlap with another package's")
	}
	return err
}

// unixFirstLine takes the carriage return off a "#!" line, as npm does for
// programs that were published from Windows.
func unixFirstLine(r *io.SectionReader, size int64) (io.Reader, int64) {
	head, _ := bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 2048).Peek(2048)
	end := bytes.IndexByte(head, '\n')
	if !bytes.HasPrefix(head, []byte("#!")) || end < 4 || head[end-1] != '\r' {
		return r, size
	}
	line := append(bytes.Clone(head[:end-1]), '\n')
	rest := io.NewSectionReader(r, int64(end)+1, size-int64(end)-1)
	return io.MultiReader(bytes.NewReader(line), rest), size - 1
}

// links writes the .bin folders. A program whose file did not come gets no
// link.
func (t *treeWriter) links(bins map[string]string) error {
	places := make([]string, 0, len(bins))
	for place := range bins {
		places = append(places, place)
	}
	slices.Sort(places)
	for _, place := range places {
		if !t.targets[bins[place]] {
			continue
		}
		to, err := filepath.Rel(path.Dir(place), bins[place])
		if err != nil {
			return fmt.Errorf("npm: link %s: %w", place, err)
		}
		err = t.w.Add(layer.Entry{Name: path.Join(t.prefix, place), Mode: fs.ModeSymlink | 0o777, Link: filepath.ToSlash(to)})
		if err != nil {
			return t.clash(Package{Name: place}, err)
		}
	}
	return nil
}
