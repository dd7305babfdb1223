package debian

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

// fileList is what a recipe copies from the folder given, sorted by target.
type fileList []fileCopy

type fileCopy struct {
	To   string      // in the image, relative to its root
	Mode fs.FileMode // 0644, 0755 or a folder
	from string
	size int64
}

// collect finds the files without reading them, and the optional ones that are
// not there. Links and special files are refused.
func collect(dirs []string, files []File) (list fileList, missing []string, err error) {
	var errs []error
	for _, f := range files {
		top, err := findFile(dirs, f.From)
		if errors.Is(err, fs.ErrNotExist) && f.Optional {
			missing = append(missing, f.From)
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		err = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(top, p)
			if err != nil {
				return err
			}
			c := fileCopy{from: p, To: usrMerge(strings.TrimPrefix(path.Join(f.To, filepath.ToSlash(rel)), "/")), Mode: 0o644}
			switch {
			case info.IsDir():
				c.Mode = fs.ModeDir | 0o755
			case !info.Mode().IsRegular():
				return fmt.Errorf("%s: only files and folders can be put into an image", p)
			default:
				if c.size = info.Size(); info.Mode()&0o111 != 0 {
					c.Mode = 0o755
				}
			}
			list = append(list, c)
			return nil
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	slices.SortFunc(list, func(a, b fileCopy) int { return strings.Compare(a.To, b.To) })
	return list, missing, errors.Join(errs...)
}

func findFile(dirs []string, name string) (string, error) {
	for _, dir := range dirs {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if _, err := os.Lstat(p); err == nil {
			return p, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if len(dirs) == 0 {
		return "", fmt.Errorf("%s: no folder of files was given: %w", name, fs.ErrNotExist)
	}
	return "", fmt.Errorf("%s: not in %s: %w", name, strings.Join(dirs, ", "), fs.ErrNotExist)
}

// sums are the files' contents by name, for the layer's key.
func (l fileList) sums(ctx context.Context) ([]any, error) {
	var all []any
	for _, f := range l {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		sum := ""
		if !f.Mode.IsDir() {
			var err error
			if sum, err = fileSum(f.from); err != nil {
				return nil, err
			}
		}
		all = append(all, []any{f.To, f.Mode, sum})
	}
	return all, nil
}

func (l fileList) write(ctx context.Context, w *layer.Writer) error {
	for _, f := range l {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := f.write(w); err != nil {
			return err
		}
	}
	return nil
}

func (f fileCopy) write(w *layer.Writer) error {
	e := layer.Entry{Name: f.To, Mode: f.Mode, Size: f.size}
	if f.Mode.IsDir() {
		return w.Add(e)
	}
	r, err := os.Open(f.from)
	if err != nil {
		return err
	}
	defer r.Close()
	e.Body = r
	return w.Add(e)
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
